"""A BIDS App's two levels: participants are segmented, by many processes at once, then the group is put together."""

import logging.config
import os
import shlex
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from monai.bundle import ConfigWorkflow, create_workflow
from tqdm import tqdm

from scripts.common import CONFIGS
from scripts.common.errors import InputError, describe, first_cause, one_line
from scripts.data.decisions import DECISIONS
from scripts.data.volume_files import files_below, stem, why_no_scan
from scripts.group.page import write_page
from scripts.group.regions import write_overlap, write_regions
from scripts.group.spaces import check_spaces, normalize
from scripts.group.table import rows_of, write_lesions
from scripts.inference.derivative import DESCRIPTION, FAILURES, MASK, name_of, read_ours, refuse_other_dataset
from scripts.inference.failures import note_failures, read_failures
from scripts.inference.find_scans import find_scans, is_t2w, root_of
from scripts.inference.masks import ScansLeftOut

LEFT_OUT = 3  # the exit code if some scans have no result
logger = logging.getLogger("meshnet")


def segment(input: Path, output_dir: Path | None = None, **overrides: Any) -> int:
    """Segment a scan, a folder or a glob; outputs lie beside the scans unless ``output_dir`` is given.

    Args:
        input: as ``configs/inference.json`` has it.
        output_dir: the derivative to write.
        overrides: keys of ``configs/inference.json``.

    Returns:
        0, or 3 if scans were left out.

    Raises:
        InputError: nothing could start.
    """
    if output_dir is None:
        output_dir = input if input.is_dir() else input.parent
        root = Path(root_of(str(input)))
        if read_ours(root / DESCRIPTION) is None and ((root / DESCRIPTION).exists() or root != output_dir):
            raise InputError(f"{input}: lies in the dataset {root}; give --output_dir, as {root}/derivatives/meshnet")
    workflow = _workflow(input, output_dir, **overrides)
    with _logged(output_dir, "scan"):
        left_out = _run(workflow)
    return LEFT_OUT if any(left_out.values()) else 0


def participant(
    bids: Path, output_dir: Path, labels: list[str], select: list[str], spaces: list[str], **overrides: Any
) -> int:
    """Segment the T2w scans of a BIDS dataset, or of the participants with these ``labels``; any number at once.

    Args:
        bids: the dataset's folder.
        output_dir: the derivative to write.
        labels: participants, with or without "sub-"; all, if there are none.
        select: entities that scans must have, such as "acq-spc3"; of an entity that is given twice, either.
        spaces: other spaces that masks are brought to.
        overrides: keys of ``configs/inference.json``.

    Returns:
        0, or 3 if scans were left out; ``failures.tsv`` says which and why.

    Raises:
        InputError: nothing could start.
    """
    check_spaces(spaces)
    outcomes, query = _chosen(bids, labels, select)
    refuse_other_dataset(output_dir, bids)
    workflow = _workflow(**(query or {"input": bids}), output_dir=output_dir, input_root=str(bids), **overrides)
    with _logged(output_dir, "participant"):
        for subject in filter(outcomes.get, outcomes):
            logger.warning(f"{bids / subject}: {outcomes[subject]}; left out")
        done = _run(workflow) if query else {}
        for path, reason in tqdm(done.items(), "Bringing to " + ", ".join(spaces), disable=not spaces):
            scan = Path(path)
            if spaces and not reason:
                reason = _normalize(scan, output_dir / scan.relative_to(bids).parent / name_of(scan), spaces)
            outcomes[scan.relative_to(bids).as_posix()] = reason
        try:
            note_failures(output_dir, outcomes)
        except InputError as error:  # on a full disk, which is why scans were left out
            if not any(outcomes.values()):
                raise
            logger.error(str(error))
    return LEFT_OUT if any(outcomes.values()) else 0


def group(
    bids: Path, output_dir: Path, labels: list[str], select: list[str], atlas: str | None, atlas_labels: str | None
) -> int:
    """Write ``group/`` of the masks that ``participant`` made: table, overlap, regions and page.

    Masks that a reader rejected are in the page only.

    Args:
        bids: the dataset's folder.
        output_dir: the derivative that ``participant`` wrote.
        labels: participants, as ``participant`` takes them.
        select: entities, as ``participant`` takes them.
        atlas: a label image in MNI space; None: no regions.
        atlas_labels: its table of labels.

    Returns:
        0, or 3 if ``failures.tsv`` has a scan without a result.

    Raises:
        InputError: there is no mask, or a table that people wrote cannot be used.
    """
    if atlas_labels and not atlas:
        raise InputError("--atlas_labels: names the labels of --atlas; give that, too")
    refuse_other_dataset(output_dir, bids)
    outcomes, query = _chosen(bids, labels, select)
    if read_ours(output_dir / DESCRIPTION) is None:
        raise InputError(f"{output_dir}: holds no masks of this bundle; run participant first")
    logging.config.fileConfig(CONFIGS / "logging.conf", disable_existing_loggers=False)
    with _logged(output_dir, "group"):
        participants = path if (path := bids / "participants.tsv").is_file() else None
        rows = rows_of(output_dir, participants)
        scans = [Path(scan["image"]).relative_to(bids) for scan in find_scans(**query)] if query else []
        masks = {(scan.parent / f"{name_of(scan)}_{MASK}").as_posix(): scan.as_posix() for scan in scans}
        rows = [row for row in rows if row["mask"] in masks or not (labels or select)]
        known = read_failures(output_dir)
        for scan in (masks[mask] for mask in masks.keys() - {row["mask"] for row in rows}):
            outcomes[scan] = known.get(scan, "has no mask yet, or its process was stopped; run participant")
        note_failures(output_dir, outcomes | {scan: None for scan in known if not os.path.lexists(bids / scan)})
        _write_group(output_dir, rows, participants, atlas, atlas_labels)
        asked_for_all = not (labels or select)
        if left_out := [scan for scan in read_failures(output_dir) if asked_for_all or scan in outcomes]:
            logger.warning(f"{len(left_out)} scans or participants have no result: {output_dir / FAILURES}")
    return LEFT_OUT if left_out else 0


def _write_group(
    output_dir: Path, rows: list[dict], participants: Path | None, atlas: str | None, atlas_labels: str | None
) -> None:
    kept = [row for row in rows if row["decision"] != "reject"]
    if rejected := ", ".join(row["mask"] for row in rows if row not in kept):
        logger.info(f"Left out of the table, as {DECISIONS} rejects them: {rejected}")
    if atlas:  # first, as it may not fit
        logger.info(f"{write_regions(output_dir, kept, atlas, atlas_labels)}")
    else:
        _remove(output_dir / "group", "regions.tsv", "regions.json")
    logger.info(f"{write_lesions(output_dir, kept, participants)}: {len(kept)} scans")
    if (picture := write_overlap(output_dir, kept)) is None:  # and an older one is of other masks
        _remove(output_dir / "group", "overlap_mask.nii.gz", "overlap_mask.json", "overlap_mask.png")
    logger.info(f"{write_page(output_dir, rows, picture)}")


def _remove(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _workflow(input: Path, output_dir: Path, **overrides: Any) -> ConfigWorkflow:
    """The one of ``configs/inference.json``; it begins logging anew."""
    places = {"input": str(input), "output_dir": str(output_dir)}
    warnings.filterwarnings("ignore", "parsing config_file", UserWarning)  # that a config is code: this one is ours
    return create_workflow(config_file=str(CONFIGS / "inference.json"), **places, **overrides)


def _run(workflow: ConfigWorkflow) -> dict[str, str | None]:
    """By the path of each scan why it was left out, or None: it has its mask."""
    try:
        workflow.run()
    except Exception as error:
        if not isinstance(first_cause(error), ScansLeftOut):
            raise
        print(describe(error), file=sys.stderr)
    scans, masks = (workflow.parser.get_parsed_content(key) for key in ("scans", "masks"))
    reasons = {scan: _reason(scan, lines) for scan, lines in masks.problems.items()}
    return {scan["image"]: reasons.get(scan["image"]) for scan in scans}


def _reason(scan: str | Path, lines: str) -> str:
    """What lines for people say of a ``scan``, without its path."""
    return lines.replace(f"{scan}: ", "").replace("\n", "; ")


def _chosen(bids: Path, labels: list[str], select: list[str]) -> tuple[dict[str, str | None], dict]:
    """Why each participant who was asked for has no scan, or None; and what ``find_scans`` takes for the others."""
    there = sorted(path.name for path in bids.glob("sub-*") if path.is_dir())
    if not bids.is_dir():
        raise InputError(f"{bids}: no such folder")
    if not there:
        root = root_of(str(bids))
        part = f"; it is a part of {root}" if root != str(bids) else ""
        raise InputError(f"{bids}: no BIDS dataset, there is no sub- folder in it{part}")
    subjects = [f"sub-{label.removeprefix('sub-')}" for label in labels] or there
    if missing := [subject for subject in subjects if subject not in there]:
        named = one_line(", ".join(there), 200)
        raise InputError(f"--participant_label: there is no {', '.join(missing)} in {bids}; there are {named}")
    has_t2w = {subject: any(map(_is_t2w_scan, files_below(bids / subject))) for subject in subjects}
    reasons = {subject: None if has else "no T2w scan (*_T2w.nii.gz)" for subject, has in has_t2w.items()}
    if not (chosen := [subject for subject in subjects if has_t2w[subject]]):
        return reasons, {}
    input = bids / chosen[0] if labels and len(chosen) == 1 else bids
    return reasons, {"input": input, "select": [*(chosen if labels else []), *select] or None}


def _is_t2w_scan(path: Path) -> bool:
    return why_no_scan(path) is None and is_t2w(path)


def _normalize(scan: Path, prefix: Path, spaces: list[str]) -> str | None:
    """Bring the mask of ``scan`` to other spaces, by the T1w in its folder if there is one; why not, if that fails."""
    found = [path for path in sorted(scan.parent.glob("*_T1w.nii*")) if why_no_scan(path) is None]
    own = [path for path in found if stem(path.name).removesuffix("_T1w") == name_of(scan)] or found
    if len(own) > 1:
        logger.warning(f"{scan}: has {len(own)} T1w scans beside it; {own[0].name} is taken")
    try:
        normalize(scan, own[0] if own else None, Path(f"{prefix}_{MASK}"), prefix, spaces)
    except Exception as error:  # the other scans go on
        logger.error(f"{scan}: {(reason := _reason(scan, describe(error)))}")
        return reason
    return None


@contextmanager
def _logged(folder: Path, name: str) -> Iterator[None]:
    """Keep the log of a call in a file of its own in ``logs``, and the error that ends it."""
    path = folder / "logs" / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}_{name}_{uuid4().hex[:8]}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be written ({error.strerror}); give another output folder") from error
    logging.raiseExceptions = False  # a full disk is told of by what is written
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        handler.handle(logging.makeLogRecord({"levelname": "INFO", "msg": shlex.join(sys.orig_argv)}))
        yield
    except Exception as error:
        handler.handle(logging.makeLogRecord({"levelname": "ERROR", "msg": describe(error)}))
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        with suppress(OSError):
            handler.close()
