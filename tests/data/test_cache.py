"""Preprocessing is done once, and what was kept is never what something else would have given."""

import importlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import AFFINE, lesion, small_disk_at, write
from monai.bundle import ConfigParser
from monai.data import CacheDataset, DataLoader, Dataset, PersistentDataset
from monai.transforms import Compose, EnsureTyped, LoadImaged, RandFlipd

from scripts.common.errors import InputError, describe
from scripts.common.revision import revision
from scripts.data.cache import cached_dataset
from scripts.data.check_scans import check_scans


def scan_in(folder: Path) -> dict:
    scan = {"image": str(write(folder / "T2w.nii.gz")), "label": str(write(folder / "mask.nii.gz", lesion()))}
    return {**scan, "sha256": check_scans([scan])[0]["sha256"]}


def preprocessing(maximum: float = 1.0, random: bool = False) -> list[dict]:
    """Transforms as a config says them."""
    keys = ["image", "label"]
    return [
        {"_target_": "LoadImaged", "keys": keys, "ensure_channel_first": True},
        {"_target_": "ScaleIntensityd", "keys": "image", "minv": 0, "maxv": maximum},
        *([{"_target_": "RandFlipd", "keys": keys, "prob": 0.5}] if random else []),
    ]


def dataset(data: list[dict], transforms: list[dict], cache: str, cache_dir: Path, **options: object) -> Dataset:
    """As train.json makes it: the transforms are instantiated, their config is what they are made of."""
    parser = ConfigParser({"transforms": transforms, "low": 0, **options.get("values", {})})
    transform = Compose(parser.get_parsed_content("transforms"))
    made_of = parser.get("transforms")
    return cached_dataset(data, transform, cache, str(cache_dir), made_of, options.get("values", {}))


def computed(
    data: dict, transforms: list[dict], cache_dir: Path, monkeypatch: pytest.MonkeyPatch, **options: object
) -> tuple[dict, int]:
    """The preprocessed scan, and how often it was computed for that."""
    calls, compute = [], PersistentDataset._pre_transform
    with monkeypatch.context() as patch:
        patch.setattr(PersistentDataset, "_pre_transform", lambda *a: calls.append(1) or compute(*a))
        return dataset([data], transforms, "disk", cache_dir, **options)[0], len(calls)


def test_a_dataset_that_is_read_only_is_a_line_that_says_where_else_to_keep_it(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^cache_dir /proc/1.cache: cannot be written \(.*\); give another --cache_dir"
    ):
        dataset([scan_in(tmp_path)], preprocessing(), "disk", Path("/proc/1.cache"))  # not even by root


def test_disk_memory_and_no_cache_give_the_same_voxels(tmp_path: Path) -> None:
    scan = scan_in(tmp_path)
    plain = dataset([scan], preprocessing(), "none", tmp_path)[0]
    memory = dataset([scan], preprocessing(), "memory", tmp_path)
    assert isinstance(memory, CacheDataset)
    for _ in range(2):
        disk = dataset([scan], preprocessing(), "disk", tmp_path / "cache")[0]
        for item in (disk, memory[0]):
            for key in ("image", "label"):
                assert torch.equal(item[key].as_tensor(), plain[key].as_tensor())
                assert torch.equal(item[key].affine, plain[key].affine)
                assert item[key].meta["filename_or_obj"] == scan[key]


def test_datasets_of_one_process_hold_a_scan_once_and_change_it_for_none(tmp_path: Path) -> None:
    scan = scan_in(tmp_path)
    one, other = (dataset([scan], preprocessing(random=random), "memory", tmp_path) for random in (True, False))
    another = dataset([scan], preprocessing(maximum=2.0), "memory", tmp_path)
    assert one._cache[0] is other._cache[0]
    assert another._cache[0] is not other._cache[0]
    one[0]["image"] += 5
    assert (other[0]["image"].max(), another[0]["image"].max()) == (1, 2)
    assert one[0]["label"].sum() == other[0]["label"].sum() == 4**3


def test_a_second_run_computes_nothing_and_random_transforms_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, cache = scan_in(tmp_path), tmp_path / "cache"
    assert computed(scan, preprocessing(), cache, monkeypatch)[1] == 1
    assert computed(scan, preprocessing(), cache, monkeypatch)[1] == 0
    assert computed(scan, preprocessing(random=True), cache, monkeypatch)[1] == 0
    scans = dataset([scan], preprocessing(random=True), "disk", cache)
    assert len({scans[0]["image"].as_tensor()[0, 0, 0, 0].item() for _ in range(20)}) == 2


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


def times_in_a_partial(factor: int) -> list[dict]:
    partial = {"_target_": "torch.mul", "_mode_": "callable", "other": factor}
    return [*preprocessing(), {"_target_": "Lambdad", "keys": "image", "func": partial}]


def times_in_an_expression(factor: int) -> list[dict]:
    return [*preprocessing(), {"_target_": "Lambdad", "keys": "image", "func": f"$lambda i: i * {factor}"}]


@pytest.mark.parametrize("times", [preprocessing, times_in_a_partial, times_in_an_expression])
def test_another_argument_or_another_text_of_a_function_is_another_preprocessing(
    times: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, cache = scan_in(tmp_path), tmp_path / "cache"
    kept = [computed(scan, times(factor), cache, monkeypatch) for factor in (1, 5, 1)]
    assert [calls for _, calls in kept] == [1, 1, 0]
    assert [int(item["image"].max()) for item, _ in kept] == [1, 5, 1]


def test_a_function_whose_code_has_changed_is_another_preprocessing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, cache = scan_in(tmp_path), tmp_path / "cache"
    (tmp_path / "our_preprocessing").mkdir()
    package = tmp_path / "our_preprocessing"
    scale = "from our_preprocessing.factor import FACTOR\ndef scale(x):\n    return x * FACTOR\n"
    (package / "scale.py").write_text(scale)
    monkeypatch.syspath_prepend(tmp_path)
    target = {"_target_": "our_preprocessing.scale.scale", "_mode_": "callable"}
    transforms = [*preprocessing(), {"_target_": "Lambdad", "keys": "label", "func": target}]
    kept = []
    for text in ("FACTOR = 2", "FACTOR = 30", "FACTOR = 2"):
        (package / "factor.py").write_text(text)
        for module in [name for name in sys.modules if name.startswith("our_preprocessing")]:
            del sys.modules[module]
        importlib.invalidate_caches()
        shutil.rmtree(package / "__pycache__", ignore_errors=True)
        revision.cache_clear()  # a run has one
        kept.append(computed(scan, transforms, cache, monkeypatch))
    assert [calls for _, calls in kept] == [1, 1, 0]
    assert [int(item["label"].max()) for item, _ in kept] == [2, 30, 2]


def test_what_an_expression_refers_to_is_part_of_the_preprocessing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, cache = scan_in(tmp_path), tmp_path / "cache"
    transforms = preprocessing("@high")
    kept = [computed(scan, transforms, cache, monkeypatch, values={"high": high}) for high in (1, 3, 1)]
    assert [calls for _, calls in kept] == [1, 1, 0]
    assert [int(item["image"].max()) for item, _ in kept] == [1, 3, 1]
    with pytest.raises(InputError, match=r"refers to @low; give it in values, or --cache none$"):
        dataset([scan], preprocessing("$@low + 1"), "disk", cache)


def test_transforms_that_are_not_the_configs_are_refused(tmp_path: Path) -> None:
    transform = Compose([LoadImaged(["image", "label"]), EnsureTyped("image"), RandFlipd("image")])
    message = r"the transforms are not those of made_of \(LoadImaged, ScaleIntensityd\); use --cache none"
    with pytest.raises(InputError, match=message):
        cached_dataset([], transform, "disk", str(tmp_path), preprocessing(random=True), {})
    with pytest.raises(InputError, match="are not those of made_of"):
        cached_dataset([], transform, "disk", str(tmp_path), preprocessing()[:1], {})


def test_transforms_that_are_switched_off_are_not_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan, cache = scan_in(tmp_path), tmp_path / "cache"
    off = {"_target_": "ScaleIntensityd", "keys": "image", "maxv": 9, "_disabled_": True}
    assert computed(scan, preprocessing(), cache, monkeypatch)[1] == 1
    assert computed(scan, [*preprocessing(), off], cache, monkeypatch)[1] == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 kB; a preprocessed scan takes 70."""
    with small_disk_at(tmp_path / "disk", "40k") as disk:
        yield disk


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_full_disk_is_one_line_that_names_the_file(tmp_path: Path, small_disk: Path, num_workers: int) -> None:
    scans = dataset([scan_in(tmp_path)], preprocessing(), "disk", small_disk / "cache")
    with pytest.raises(InputError) as error:
        next(iter(DataLoader(scans, num_workers=num_workers)))
    line = describe(error.value) if num_workers else str(error.value)
    reason = "No space left on device); what was there before is kept"
    assert re.fullmatch(rf"{small_disk}/cache/\w+.pt: cannot be written \({re.escape(reason)}", line)
    assert list((small_disk / "cache").iterdir()) == []
