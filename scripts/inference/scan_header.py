"""MONAI writes an affine of its own: here a volume gets the header of its scan, so that both lie in one place."""

import gzip

import nibabel as nib
import numpy as np

from scripts.common.errors import InputError

RESET = ("descrip", "aux_file", "intent_code", "intent_name", "intent_p1", "intent_p2", "intent_p3")
RESET = (*RESET, "cal_max", "cal_min", "slice_code", "slice_start", "slice_end", "slice_duration", "toffset")


def encode(data: np.ndarray, scan: str) -> bytes:
    """``data`` (D, H, W) as a NIfTI file, compressed, on the grid of ``scan``.

    Both forms, their codes and the units are the scan's; what describes its own voxels is reset. A scan of another
    format gives its affine.

    Raises:
        InputError: the scan has other sides.
    """
    image = nib.load(scan)
    if image.shape[:3] != data.shape:
        raise InputError(f"{scan}: has shape {image.shape}, but its mask {data.shape}; was it replaced meanwhile?")
    header = image.header.copy()
    kind = {nib.Nifti1Header: nib.Nifti1Image, nib.Nifti2Header: nib.Nifti2Image}.get(type(header))
    if kind is None:
        volume = nib.Nifti1Image(data, image.affine)
        volume.header.set_xyzt_units("mm")
    else:
        header.extensions.clear()  # which may tell who was scanned
        for key in {*RESET} & {*header}:
            header[key] = np.zeros_like(header[key])
        header.set_data_dtype(data.dtype)
        header.set_slope_inter(1, 0)
        header.set_data_offset(0)  # where nibabel puts it
        volume = kind(data, None, header)  # None: the forms stay as they are
    return gzip.compress(volume.to_bytes(), 1, mtime=0)
