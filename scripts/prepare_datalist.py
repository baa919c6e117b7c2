"""Write the datalist of a BIDS dataset or a table: ``python scripts/prepare_datalist.py --help``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where Python looks is scripts/ instead
    from scripts.common.command import run_command
    from scripts.data.datalist import prepare_datalist

    run_command(prepare_datalist)
