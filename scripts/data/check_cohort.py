"""List what is wrong in a whole cohort, the test fold included, which training does not read."""

import os
from pathlib import Path

from scripts.common.errors import InputError
from scripts.data.check_scans import check_scans, problems_of
from scripts.data.cohort import one_per_contrast
from scripts.data.datalist_schema import read_datalist


def check_cohort(dataset_dir: str, datalist: str | None = None) -> None:
    """Read every scan and mask of a cohort and print a table of what is wrong with them.

    Args:
        dataset_dir: the folder that the datalist's paths start from.
        datalist: path of the datalist, if it is not ``datalist.json`` in that folder.

    Raises:
        InputError: the datalist is not usable, or a scan has an error; warnings alone are a success.
    """
    path = Path(datalist or os.path.join(dataset_dir, "datalist.json"))
    content = read_datalist(path, Path(dataset_dir).resolve())
    scans = [one for scan in content["training"] for one in one_per_contrast(scan, scan.get("contrasts", ()))]
    reports = check_scans(scans, content["spacing"], content["spatial_size"], path.with_suffix(".checked.json"))
    errors, warnings = problems_of(scans, reports)
    rows = [f"warning  {line}" for line in warnings] + [f"error    {line}" for line in errors]
    print("\n".join([*rows, f"{len(scans)} scans: {len(errors)} errors, {len(warnings)} warnings"]))
    if errors:
        raise InputError(f"{path}: {len(errors)} errors in its scans")
