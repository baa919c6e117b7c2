"""List what is wrong in a whole cohort: ``python scripts/check_cohort.py --help``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where Python looks is scripts/ instead
    from scripts.common.command import run_command
    from scripts.data.check_cohort import check_cohort

    run_command(check_cohort)
