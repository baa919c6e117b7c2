"""Preprocessing is done once, and what was kept is never what something else would have given."""

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import AFFINE, ROOT, lesion, write
from monai.data import CacheDataset, PersistentDataset
from monai.transforms import Compose, Lambdad, LoadImaged, RandFlipd, ScaleIntensityd

from scripts.common.errors import InputError
from scripts.data.cache import cached_dataset, describe
from scripts.data.check_scans import check_scans


def scan_in(folder: Path) -> dict:
    scan = {"image": str(write(folder / "T2w.nii.gz")), "label": str(write(folder / "mask.nii.gz", lesion()))}
    return {**scan, "sha256": check_scans([scan])[0]["sha256"]}


def preprocessing(maximum: float = 1.0, random: bool = False) -> Compose:
    keys = ["image", "label"]
    flip = [RandFlipd(keys, prob=0.5)] if random else []
    return Compose([LoadImaged(keys, ensure_channel_first=True), ScaleIntensityd("image", 0, maximum), *flip])


def computed(data: dict, transform: Compose, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict, int]:
    """The preprocessed scan, and how often it was computed for that."""
    calls, compute = [], PersistentDataset._pre_transform
    monkeypatch.setattr(PersistentDataset, "_pre_transform", lambda *a: calls.append(1) or compute(*a))
    item = cached_dataset([data], transform, "disk", str(cache_dir))[0]
    monkeypatch.setattr(PersistentDataset, "_pre_transform", compute)
    return item, len(calls)


def test_disk_memory_and_no_cache_give_the_same_voxels(tmp_path: Path) -> None:
    scan = scan_in(tmp_path)
    plain = cached_dataset([scan], preprocessing(), "none", "")[0]
    memory = cached_dataset([scan], preprocessing(), "memory", "")
    assert isinstance(memory, CacheDataset)
    for _ in range(2):
        disk = cached_dataset([scan], preprocessing(), "disk", str(tmp_path / "cache"))[0]
        for item in (disk, memory[0]):
            for key in ("image", "label"):
                assert torch.equal(item[key].as_tensor(), plain[key].as_tensor())
                assert torch.equal(item[key].affine, plain[key].affine)
                assert item[key].meta["filename_or_obj"] == scan[key]


def test_a_second_run_computes_nothing_and_random_transforms_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, cache = scan_in(tmp_path), tmp_path / "cache"
    assert computed(scan, preprocessing(), cache, monkeypatch)[1] == 1
    assert computed(scan, preprocessing(), cache, monkeypatch)[1] == 0
    assert computed(scan, preprocessing(random=True), cache, monkeypatch)[1] == 0
    dataset = cached_dataset([scan], preprocessing(random=True), "disk", str(cache))
    assert len({dataset[0]["image"].as_tensor()[0, 0, 0, 0].item() for _ in range(20)}) == 2


def test_another_preprocessing_is_computed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan, cache = scan_in(tmp_path), tmp_path / "cache"
    computed(scan, preprocessing(), cache, monkeypatch)
    item, calls = computed(scan, preprocessing(maximum=2.0), cache, monkeypatch)
    assert (calls, item["image"].max()) == (1, 2)


def test_a_changed_file_is_computed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed(scan_in(tmp_path), preprocessing(), tmp_path / "cache", monkeypatch)
    nib.save(nib.Nifti1Image(np.ones((24, 30, 20), np.uint8), AFFINE), tmp_path / "mask.nii.gz")
    scan = {"image": str(tmp_path / "T2w.nii.gz"), "label": str(tmp_path / "mask.nii.gz")}
    scan["sha256"] = check_scans([scan])[0]["sha256"]
    item, calls = computed(scan, preprocessing(), tmp_path / "cache", monkeypatch)
    assert (calls, item["label"].min()) == (1, 1)


def test_a_cut_off_cache_file_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scan, cache = scan_in(tmp_path), tmp_path / "cache"
    expected, _ = computed(scan, preprocessing(), cache, monkeypatch)
    (file,) = cache.iterdir()
    for content in (b"", file.read_bytes()[:1000], b"no zip file"):
        file.write_bytes(content)
        item, calls = computed(scan, preprocessing(), cache, monkeypatch)
        assert calls == 1
        assert torch.equal(item["image"].as_tensor(), expected["image"].as_tensor())
        assert f"{file}: cannot be read" in caplog.text
    assert computed(scan, preprocessing(), cache, monkeypatch)[1] == 0


def times(factor: float) -> Lambdad:
    return Lambdad("image", func=lambda image: image * factor)


class Ours:
    """A transform that MONAI's version says nothing about."""

    def __call__(self, item: dict) -> dict:
        """Do nothing."""
        return item


def test_what_a_function_computes_tells_functions_apart() -> None:
    assert describe(times(2)) == describe(times(2))
    different = [times(2), times(3), Lambdad("image", func=lambda i: i + 2), Lambdad("label", func=lambda i: i * 2)]
    assert len({str(describe(transform)) for transform in different}) == 4
    before = describe(Ours())
    call, Ours.__call__ = Ours.__call__, lambda self, item: {**item}
    after, Ours.__call__ = describe(Ours()), call
    assert before != after


def test_another_process_describes_the_same_transforms_the_same() -> None:
    program = (
        "from monai.transforms import *; from scripts.data.cache import describe; import torch;"
        "print(describe([LoadImaged('image'), Spacingd('image', (1, 2, 3)), CastToTyped('image', torch.uint8),"
        "Lambdad('image', lambda x: x > 0), Orientationd('image', 'RAS', labels=None)]))"
    )
    answers = {
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True).stdout
        for _ in range(2)
    }
    assert len(answers) == 1


def test_what_cannot_be_looked_into_and_unknown_caches_are_refused() -> None:
    with pytest.raises(InputError, match="use --cache none"):
        describe([iter([])])
    with pytest.raises(InputError, match="cache tape: expected memory, disk or none"):
        cached_dataset([], preprocessing(), "tape", "")
