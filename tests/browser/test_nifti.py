"""What the page's reader makes of files, in a real browser, against the reader of the commands."""

import base64
import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from browser.chromium import Chromium
from scipy.spatial.transform import Rotation

from scripts.common.errors import InputError
from scripts.data.reader import read_volume

READ = """import('./nifti.js').then(async ({ readNifti, maskFile }) => {
  const found = {}
  for (const [name, text] of Object.entries(%s)) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))
    found[name] = await readNifti(new File([bytes], name)).then((scan) => {
      const { affine, warnings, sidesKnown, values } = scan, sum = values.reduce((a, b) => a + b, 0)
      const mask = btoa(String.fromCharCode(...maskFile(scan, new Uint8Array(values.length).fill(1))))
      return { affine, warnings, sidesKnown, sum, mask }
    }, (error) => ({ error: error.message }))
  }
  return found
})"""


def read(page: Chromium, folder: Path) -> dict:
    """What the page's reader finds in each file of a folder, by name."""
    files = {path.name: base64.b64encode(path.read_bytes()).decode() for path in folder.iterdir()}
    return page.ask(READ % json.dumps(files))


def header(rng: np.random.Generator) -> bytes:
    """A small file whose sform, qform, voxel sizes, codes and unit each may be wrong, or disagree with the others."""
    kind, order = (nib.Nifti1Image, nib.Nifti2Image)[rng.integers(2)], "<>"[rng.integers(2)]
    sizes = rng.uniform(0.3, 6, 3) * rng.choice([0.4, 1, 4], p=[0.1, 0.8, 0.1])
    turns = Rotation.random(2, rng).as_matrix() * rng.choice([-1, 1], (2, 1, 3))
    forms = [nib.affines.from_matvec(turn @ np.diag(sizes), rng.uniform(-90, 90, 3)) for turn in turns]
    if rng.random() < 0.5:  # the two agree, but for what writing rounds
        forms[1] = forms[0]
    image = kind(rng.integers(1, 900, (5, 4, 3)).astype(np.int16), None, kind.header_class(endianness=order))
    image.header.set_qform(forms[1], int(rng.choice([0, 1, 2, 5])))
    image.header.set_sform(forms[0], int(rng.choice([0, 1, 2, 5])))
    if rng.random() < 0.3:
        image.header["srow_x"][:3] += rng.normal(0, 1, 3)  # sheared
    if rng.random() < 0.4:
        image.header["pixdim"][1:4] = np.round(image.header["pixdim"][1:4], int(rng.integers(0, 4)))
    for share, name, values in (
        (0.15, "qform_code", [-1, 7]),
        (0.15, "sform_code", [-3, 9]),
        (0.3, "xyzt_units", [0, 1, 3, 10, 11]),
    ):
        if rng.random() < share:
            image.header[name] = rng.choice(values)
    if rng.random() < 0.3:
        image.header["pixdim"][rng.integers(4)] = rng.choice([0, -1, -2, 1])
    if rng.random() < 0.3:
        image.header["quatern_b"] = np.round(image.header["quatern_b"], 2) + rng.choice([0, 0.0005, 0.5])
    if rng.random() < 0.1:
        image.header["quatern_c"] = np.nan
    data = np.asarray(image.dataobj).astype(f"{order}i2").tobytes("F")
    image.header.set_data_dtype(np.int16)
    start = kind.header_class.single_vox_offset
    image.header["vox_offset"], image.header["magic"] = start, {352: b"n+1", 544: b"n+2"}[start]
    return image.header.binaryblock.ljust(start, b"\0") + data


@pytest.mark.slow
def test_an_affine_is_that_of_the_commands_whatever_sform_and_qform_say(page: Chromium, tmp_path: Path) -> None:
    rng, told, masks = np.random.default_rng(7), [], tmp_path / "masks"
    (tmp_path / "scans").mkdir()
    masks.mkdir()
    for i in range(400):
        (tmp_path / "scans" / f"{i:03}.nii").write_bytes(header(rng))
    for name, found in sorted(read(page, tmp_path / "scans").items()):
        path = tmp_path / "scans" / name
        if "error" in found:
            with pytest.raises(InputError):
                read_volume(path)
            told.append("refused")
            continue
        volume = read_volume(path)
        np.testing.assert_allclose(found["affine"], volume.affine, rtol=1e-5, atol=1e-4, err_msg=name)
        assert found["sidesKnown"] == volume.sides_known, name
        assert found["warnings"] == [line.removeprefix(f"{path}: ") for line in volume.warnings], name
        (masks / name).write_bytes(base64.b64decode(found["mask"]))
        np.testing.assert_array_equal(read_volume(masks / name).affine, volume.affine, err_msg=name)
        told += [warning.split()[0] for warning in found["warnings"]]
    counts = {word: told.count(word) for word in ("refused", "sform", "its", "unusual")}
    assert min(counts.values()) >= 10, counts  # each kind of trouble was there


@pytest.mark.slow
def test_a_name_does_not_say_whether_a_file_is_compressed(page: Chromium, tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 900, (12, 10, 8)).astype(np.int16)
    raw = nib.Nifti1Image(data, np.diag([2, 2, 2, 1])).to_bytes()
    for name, content in {"unpacked.nii.gz": raw, "packed.nii": gzip.compress(raw)}.items():
        (tmp_path / name).write_bytes(content)
        assert read_volume(tmp_path / name).data.sum() == data.sum()
    found = read(page, tmp_path)
    assert {name: one.get("sum") for name, one in found.items()} == dict.fromkeys(found, data.sum())
    page.drop(*tmp_path.iterdir())
    page.wait_for("document.querySelectorAll('#list .done').length === 2")
