"""A label map becomes a head: tissue where its labels are, each structure and tissue with its own brightness."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.common.errors import InputError
from scripts.simulation.anatomy import Head, box, load_head
from scripts.simulation.label_map import OUTSIDE
from scripts.simulation.scanner import RANGES, simulate_scan

SHAPE, AFFINE = box(4)
PLACES = (
    torch.from_numpy(nib.affines.apply_affine(AFFINE, np.moveaxis(np.indices(SHAPE), 0, -1))).movedim(-1, 0).float()
)
PLAIN = RANGES["patients"] | RANGES["easy"] | {"noise": (0, 0), "bias": (0, 0), "blur": (0, 0), "no_lesion": 1}
STILL = PLAIN | {"turn": 0, "size": (1, 1), "shift": 0, "warp": (0, 0)}


@pytest.fixture(scope="module")
def labels(head_maps: np.ndarray) -> np.ndarray:
    """MNI152's brain in labels: ventricles, fluid, cortex, white matter, a thalamus; bone, fat and skin around it."""
    csf, grey, white, _, depth, to_ventricle, _ = head_maps
    labels = np.select([depth > 0, depth > -8, depth > -12, depth > -16], [3, 515, 507, 511], 0)
    labels[(depth > 0) & (white > grey)] = 2
    labels[(depth > 0) & (csf > 0.5)] = 24
    labels[(depth > 18) & (to_ventricle == 0)] = 4
    labels[np.linalg.norm(PLACES.numpy() - np.reshape((-12, -18, 7), (3, 1, 1, 1)), axis=0) < 9] = 10
    return labels.astype(np.int16)


def loaded(labels: np.ndarray, path: Path) -> Head:
    nib.save(nib.Nifti1Image(labels, AFFINE), path)
    return load_head(str(path), 4)


@pytest.fixture(scope="module")
def person(labels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Head:
    return loaded(labels, tmp_path_factory.mktemp("person") / "sub-1_dseg.nii.gz")


def scan(person: Head, **ranges: object) -> np.ndarray:
    return simulate_scan([person], [], SHAPE, 4, np.random.default_rng(0), STILL | ranges)[0]


def test_tissues_have_the_volumes_of_their_labels(person: Head, labels: np.ndarray) -> None:
    maps = person.at(PLACES)
    for k, known in enumerate(((4, 24), (3,), (2,))):
        counted = np.isin(labels, known).sum() + (0.5 * (labels == 10).sum() if k else 0)
        assert maps[k].sum() == pytest.approx(counted, rel=0.03)
    assert maps[:3].sum(0)[maps[4] > 8].min() > 0.97


def test_distances_start_at_the_ventricles_and_at_the_brains_surface(person: Head, labels: np.ndarray) -> None:
    maps = person.at(PLACES)
    assert maps[5][labels == 4].max() < 0.01
    assert maps[5][labels == 3].min() > 0
    assert maps[4][np.isin(labels, (2, 3, 4))].min() > 0
    assert maps[4][labels > 500].max() < 0


def test_each_tissue_outside_has_a_brightness_of_its_own(person: Head, labels: np.ndarray) -> None:
    dark = dict.fromkeys(OUTSIDE, (0.01, 0.01)) | {"outside_gain": (1, 1)}
    for name, label in (("bone", 515), ("fat", 507), ("skin", 511)):
        bright = scan(person, **(dark | {name: (1.5, 1.5)})) - scan(person, **dark)
        assert np.argmax([np.median(bright[labels == other]) for other in (2, 3, 515, 507, 511)]) == (
            (515, 507, 511).index(label) + 2
        )


def test_deep_grey_matter_is_darker_than_the_cortex_by_its_iron(person: Head, labels: np.ndarray) -> None:
    none, much = (scan(person, iron=(iron, iron), structure=(1, 1)) for iron in (0, 2))
    inside = (labels == 10) & (person.at(PLACES)[5] > 4)
    assert np.median(much[inside]) < 0.8 * np.median(none[inside])
    assert np.median(much[labels == 2]) == pytest.approx(np.median(none[labels == 2]), rel=0.02)


def test_labels_of_a_brain_alone_are_a_brain_without_a_head(labels: np.ndarray, tmp_path: Path) -> None:
    brain = loaded(np.where(labels < 500, labels, 0), tmp_path / "brain_dseg.nii.gz")
    image = scan(brain, bone=(0, 0))
    assert image[brain.at(PLACES)[4] < -6].max() < 0.1
    assert np.median(image[labels == 4]) > 2 * np.median(image[labels == 2])


def test_labels_that_are_not_in_mni_space_are_refused(labels: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"away_dseg.nii.gz: no brain's labels where"):
        loaded(np.roll(labels, 24, 0), tmp_path / "away_dseg.nii.gz")
