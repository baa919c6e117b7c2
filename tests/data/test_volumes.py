"""What git-annex has not fetched is known."""

from pathlib import Path

from scripts.data.volumes import is_annexed


def test_a_link_is_annexed_only_if_it_leads_into_the_annex(tmp_path: Path) -> None:
    (tmp_path / "annexed").symlink_to("../.git/annex/objects/x/y/key")
    (tmp_path / "to_annexed").symlink_to("annexed")
    (tmp_path / "gone").symlink_to("moved/elsewhere.nii.gz")
    (tmp_path / "circle").symlink_to("circle")
    assert [is_annexed(tmp_path / name) for name in ("annexed", "to_annexed", "gone", "circle")] == [
        True,
        True,
        False,
        False,
    ]
