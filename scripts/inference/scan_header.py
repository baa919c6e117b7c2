"""Give a volume the header of its scan, so that both lie in one place."""

import gzip

import nibabel as nib
import numpy as np

from scripts.common.errors import InputError
from scripts.data.volumes import Volume

RESET = ("descrip", "aux_file", "intent_code", "intent_name", "intent_p1", "intent_p2", "intent_p3")
RESET = (*RESET, "cal_max", "cal_min", "slice_code", "slice_start", "slice_end", "slice_duration", "toffset")


def encode(data: np.ndarray, scan: Volume) -> bytes:
    """``data`` (D, H, W) as a NIfTI file, compressed, on the grid of ``scan``.

    Both forms, their codes and the units are the scan's; what describes its own voxels is reset.

    Raises:
        InputError: the scan has other sides.
    """
    if scan.shape != data.shape:
        raise InputError(f"{scan.path}: has shape {scan.shape}, but its mask {data.shape}; was it replaced meanwhile?")
    header = scan.header.copy()
    header.extensions.clear()  # which may tell who was scanned
    for key in {*RESET} & {*header}:
        header[key] = np.zeros_like(header[key])
    header.set_data_dtype(data.dtype)
    header.set_slope_inter(1, 0)
    header.set_data_offset(0)  # where nibabel puts it
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    return gzip.compress(kind(data, None, header).to_bytes(), 1, mtime=0)  # None: the forms stay as they are
