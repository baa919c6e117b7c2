"""Segment a scan, or a BIDS dataset as a BIDS App does: ``python scripts/segment.py --help``."""

import argparse
import json
import os
import sys
from functools import partial
from itertools import takewhile
from pathlib import Path

if __name__ == "__main__":  # run as a command, Python looks in scripts/ instead of the bundle's root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.common.command import run_command

USAGE = """segment.py SCAN [--output_dir FOLDER] [--key value ...]
       segment.py BIDS OUT participant [--participant_label 01 02] [--session_label 1] [--select acq-spc3 run-1]
                                       [--space T1w ...] [--key value ...]
       segment.py BIDS OUT group [the same labels] [--atlas FILE --atlas_labels TSV]"""
KEYS = """--key value is any key of configs/inference.json, such as --ckpt_path or --threshold; see docs/segmenting.md.
Exit code: 0 all is done; 1 nothing could start, or 2 the command is not understood; 3 scans were left out.
OUT/failures.tsv names these after participant and group. logs/, beside what is written, has a log of each call."""


def main() -> int:
    """Run the command that was typed; returns the exit code."""
    parser = argparse.ArgumentParser(
        usage=USAGE, epilog=KEYS, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter
    )
    metadata = json.loads((Path(__file__).resolve().parents[1] / "configs" / "metadata.json").read_text())
    parser.add_argument("--version", action="version", version=f"{metadata['name']} {metadata['version']}")
    parser.add_argument("--output_dir", help="where the mask of SCAN goes; default: beside it")
    many = {"nargs": "+", "default": []}
    parser.add_argument("--participant_label", "--participant-label", **many, help="with or without sub-; default: all")
    parser.add_argument("--session_label", "--session-label", **many, help="with or without ses-; default: all")
    parser.add_argument("--select", **many, help="entities that scans must have; of acq-a acq-b, either")
    parser.add_argument("--space", **many, help="other spaces for masks, T1w and MNI152NLin2009aSym")
    parser.add_argument("--atlas", help="label image in MNI space")
    parser.add_argument("--atlas_labels", help="its table of labels")
    words = [*takewhile(lambda word: not word.startswith("-"), sys.argv[1:])]
    options, sys.argv[1:] = parser.parse_known_args(sys.argv[1 + len(words) :])
    select = [*(f"ses-{label.removeprefix('ses-')}" for label in options.session_label), *options.select]
    level = words[2] if len(words) == 3 else None
    of_scan = len(words) == 1 and not any((options.participant_label, select, options.space, options.atlas))
    if not of_scan and (level not in ("participant", "group") or options.output_dir):
        parser.error("give a scan and its options, or a BIDS folder, an output folder, and participant or group")
    if (level != "group" and (options.atlas or options.atlas_labels)) or (level == "group" and options.space):
        parser.error("--space is for participant, --atlas and --atlas_labels are for group")
    from scripts.group import app  # MONAI takes seconds, which --help does not

    paths = [Path(os.path.abspath(path)) for path in (*words[:2], *filter(None, [options.output_dir]))]
    asked = (*paths, options.participant_label, select)
    if level == "group":
        return run_command(partial(app.group, *asked, options.atlas, options.atlas_labels))
    return run_command(partial(app.participant, *asked, options.space) if level else partial(app.segment, *paths))


if __name__ == "__main__":
    sys.exit(main())
