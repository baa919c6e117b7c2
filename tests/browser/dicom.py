"""Writes small MR series as DICOM files (PS3.10, explicit VR, little endian) with the elements that converters read."""

import struct
from pathlib import Path

import numpy as np

MR, STUDY = "1.2.840.10008.5.1.4.1.1.4", "1.2.826.0.1.3680043.8.498.1"
NAME = "ZIEGLER^ANNA"  # in each element that may say who it is, so that it is found wherever it leaks


def element(tag: int, kind: str, value: object) -> bytes:
    """One element: a number of ``US`` or ``UL``, bytes of ``OW`` or ``OB``, else text, several values in a list."""
    if kind in ("US", "UL"):
        content = struct.pack("<H" if kind == "US" else "<I", value)
    elif kind in ("OB", "OW"):
        content = value
    else:
        content = "\\".join(map(str, value if isinstance(value, list) else [value])).encode()
    content += (b"\0" if kind in ("UI", "OB") else b" ") * (len(content) % 2)
    length = struct.pack("<2xI" if kind in ("OB", "OW") else "<H", len(content))
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + kind.encode() + length + content


def write_series(
    folder: Path, data: np.ndarray, affine: np.ndarray, number: int = 1, about: str = "t2_tse_tra", te: float = 100,
    study: str = "1",
) -> Path:  # fmt: skip
    """Write ``data`` (X, Y, Z; uint16), which ``affine`` brings to mm (RAS), a slice a file, along its third axis."""
    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1, -1, 1, 1]) @ affine
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    along, down = (lps[:3, axis] / sizes[axis] for axis in (0, 1))
    series = f"{STUDY}.{study}.{number}"
    for k in range(data.shape[2]):
        image = f"{series}.{k + 1}"
        dataset = [
            (0x00080008, "CS", ["ORIGINAL", "PRIMARY", "M"]), (0x00080016, "UI", MR), (0x00080018, "UI", image),
            (0x00080020, "DA", "20260102"), (0x00080030, "TM", "101500"), (0x00080032, "TM", "101500"),
            (0x00080050, "SH", NAME), (0x00080060, "CS", "MR"), (0x00080070, "LO", "SIEMENS"), (0x00080080, "LO", NAME),
            (0x00080090, "PN", NAME), (0x0008103E, "LO", about), (0x00081050, "PN", NAME), (0x00100010, "PN", NAME),
            (0x00100020, "LO", NAME), (0x00100030, "DA", "19500203"), (0x00104000, "LT", NAME),
            (0x00180020, "CS", "SE"), (0x00180023, "CS", "2D"), (0x00180050, "DS", sizes[2]), (0x00180080, "DS", 5000),
            (0x00180081, "DS", te), (0x00180087, "DS", 3), (0x00180088, "DS", sizes[2]), (0x00181030, "LO", about),
            (0x0020000D, "UI", f"{STUDY}.{study}"), (0x0020000E, "UI", series), (0x00200010, "SH", NAME),
            (0x00200011, "IS", number), (0x00200012, "IS", 1), (0x00200013, "IS", k + 1),
            (0x00200032, "DS", [f"{v:.10g}" for v in lps[:3] @ [0, 0, k, 1]]),
            (0x00200037, "DS", [f"{v:.10g}" for v in [*along, *down]]), (0x00200052, "UI", f"{STUDY}.{study}.0"),
            (0x00204000, "LT", NAME), (0x00280002, "US", 1), (0x00280004, "CS", "MONOCHROME2"),
            (0x00280010, "US", data.shape[1]), (0x00280011, "US", data.shape[0]),
            (0x00280030, "DS", [f"{sizes[1]:.10g}", f"{sizes[0]:.10g}"]), (0x00280100, "US", 16),
            (0x00280101, "US", 16), (0x00280102, "US", 15), (0x00280103, "US", 0),
            (0x7FE00010, "OW", data[:, :, k].T.astype("<u2").tobytes()),
        ]  # fmt: skip
        meta = b"".join(
            element(*one)
            for one in [(0x00020001, "OB", b"\0\1"), (0x00020002, "UI", MR), (0x00020003, "UI", image),
                        (0x00020010, "UI", "1.2.840.10008.1.2.1"), (0x00020012, "UI", STUDY)]
        )  # fmt: skip
        start = bytes(128) + b"DICM" + element(0x00020000, "UL", len(meta)) + meta
        (folder / f"{k + 1:04}.dcm").write_bytes(start + b"".join(element(*one) for one in dataset))
    return folder
