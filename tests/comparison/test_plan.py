"""A comparison is all restarts of all folds of all networks, and what is wrong with it is said before it begins."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MENUS, NOT_OF_TRAIN, OVERLAYS, ROOT, refused
from monai.bundle import ConfigParser

from scripts.common.errors import InputError
from scripts.comparison.plan import Run

STUDENT = {"name": "student", "overrides": {"+model_card": {"taught_by": "{output_dir}/wide/fold-{fold}"}}}


def test_runs_are_all_combinations_then_the_restarts_together(plan_of: Callable, tmp_path: Path) -> None:
    runs = plan_of(tmp_path, restarts=3).runs
    alone = [run for run in runs if run.restart is not None]
    assert len({*runs}) == len(runs) == 2 * 2 * 3 + 2 * 2
    assert {(r.network, r.fold, r.restart) for r in alone} == {
        (n, k, r) for n in ("thin", "wide") for k in (0, 1) for r in (0, 1, 2)
    }
    assert [run.restart for run in alone] == sorted(run.restart for run in alone)  # a first table early
    assert {run.name for run in runs if run.restart is None} == {
        f"{n}/fold-{k}/ensemble-3" for n in ("thin", "wide") for k in (0, 1)
    }


def test_one_restart_or_a_network_that_cannot_be_averaged_has_no_ensemble(plan_of: Callable, tmp_path: Path) -> None:
    assert all(run.restart == 0 for run in plan_of(tmp_path, restarts=1).runs)
    other = {"name": "other", "ensemble": False}
    together = [run for run in plan_of(tmp_path, **{"+networks": [other]}).runs if run.restart is None]
    assert {run.network for run in together} == {"thin", "wide"}


def test_a_run_is_trained_on_all_but_its_fold_with_a_seed_of_its_own(plan_of: Callable, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, seed=7)
    cohort = plan.recipe(Run("wide", 1, 1), cache="none").get_parsed_content("cohort")
    assert {scan["fold"] for scan in cohort.training} == {0, 2}
    assert not cohort.validation
    assert {scan["fold"] for scan in cohort.test} == {1}
    assert plan.overrides(Run("wide", 1, 1))["seed"] == 8


def test_a_network_may_name_the_folder_of_an_earlier_one_and_waits_for_it(plan_of: Callable, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, **{"+networks": [STUDENT]})
    run = Run("student", 1, 0)
    assert plan.overrides(run)["+model_card"]["taught_by"] == f"{tmp_path}/wide/fold-1"
    assert plan.needs(run) == [Run("wide", 1, 0), Run("wide", 1, 1)]
    one = {"name": "student", "overrides": {"x": "{output_dir}/wide/fold-{fold}/restart-{restart}/model.pt"}}
    assert plan_of(tmp_path, **{"+networks": [one]}).needs(Run("student", 1, 1)) == [Run("wide", 1, 1)]
    assert plan.needs(Run("wide", 1, 0)) == []
    assert plan.needs(Run("wide", 0, None, 2)) == [Run("wide", 0, 0), Run("wide", 0, 1)]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"only": "thin,wid"}, "only wid: no such network; there are thin, wide"),
        ({"reference": "meshnet_26"}, "reference meshnet_26: not one of the networks, thin, wide"),
        ({"folds": [0, 0]}, "folds [0, 0]: expected one or more, each once"),
        ({"restarts": 0}, "restarts 0: expected a whole number of at least 1"),
        ({"overrides": {"seed": 1}}, "overrides#seed: the comparison sets this itself, leave it out"),
        ({"networks": [STUDENT]}, "student: its overrides name wide, which must be compared too and stand before it"),
        ({"networks": [{"name": "a"}, {"name": "a"}]}, "networks: two have the same name or row of the paper"),
    ],
)
def test_a_wrong_value_is_a_line(plan_of: Callable, tmp_path: Path, flags: dict, line: str) -> None:
    if flags.get("networks") == [STUDENT]:
        flags = {"+networks": [STUDENT], "only": "thin,student"}
    with refused(f"^{re.escape(line)}$"):
        plan_of(tmp_path, **flags)


def test_a_misspelt_key_of_a_network_is_a_line(plan_of: Callable, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, **{"+networks": [{"name": "other", "overrides": {"chanels": 3}}]})
    with refused(r'^chanels: nothing reads this key, did you mean channels\? \(a new key is read as "@chanels"\)$'):
        plan.check()
    with refused("'epochs' was unexpected"):
        plan_of(tmp_path, **{"+networks": [{"name": "other", "epochs": 3}]})
    plan = plan_of(tmp_path, **{"+networks": [{"name": "other", "overlays": ["emma.json"]}]})
    with pytest.raises(InputError, match=r"^other: overlay emma\.json: no such file here or in configs/overlays/$"):
        plan.check()


def test_what_does_not_fit_the_grid_is_left_out_with_its_reason(
    plan_of: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    plan = plan_of(tmp_path, **{"+networks": [{"name": "unet", "overrides": {"network_name": "residual_unet"}}]})
    plan.check()
    assert capsys.readouterr().out.startswith("unet is left out: cannot be trained at 16x16x16 (ValueError: ")
    assert {run.network for run in plan.runs} == {"thin", "wide"}
    network = {"name": "unet", "overrides": {"network_name": "residual_unet"}}
    bad = plan_of(tmp_path, reference="unet", networks=[network])
    with pytest.raises(InputError, match="give another --reference"):
        bad.check()


def test_a_network_that_no_card_may_name_is_left_out_before_it_is_trained(
    plan_of: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    layer = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
    network = {"name": "layer", "overrides": {"network_def": layer}}
    plan = plan_of(tmp_path, **{"+networks": [network]})
    plan.check()
    assert capsys.readouterr().out.startswith("layer is left out: card: network_def: torch.nn.Conv3d is none of ")
    assert {run.network for run in plan.runs} == {"thin", "wide"}
    with pytest.raises(InputError, match=r"^layer: card: network_def: torch\.nn\.Conv3d .*; give another --reference$"):
        plan_of(tmp_path, reference="layer", networks=[network]).check()


def test_the_shipped_networks_are_rows_of_the_papers_table() -> None:
    shipped = ConfigParser.load_config_file(ROOT / "configs" / "protocol.json")["networks"]
    paper = ConfigParser.load_config_file(ROOT / "scripts" / "comparison" / "paper.json")
    named = {entry["paper"] for entry in shipped if "paper" in entry}
    assert named == {*paper} - {"U-MAMBA-BOT"}


def test_techniques_json_compares_every_entry_of_a_menu_and_every_overlay_that_needs_nothing_else() -> None:
    """The others need other scans, weights to start or to learn from, several processes; or they show and keep."""
    parser = ConfigParser(globals=False)
    parser.read_config([str(ROOT / "configs" / "protocol.json"), str(OVERLAYS / "techniques.json")])
    rows = parser["networks"]
    assert rows[0] == {"name": parser["reference"]} == {"name": "plain"}
    entries = [(kind, name) for kind, names in MENUS.items() for name in names[1:]]
    by_menu = [({"name": f"{kind}-{n}", "overrides": {f"{kind}_name": n}}) for kind, n in entries]
    by_key = [
        {"name": "instance_norm", "overrides": {"norm": "instance"}},
        {"name": "no_decay", "overrides": {"decay_norm_and_bias": False}},
    ]
    assert [row for row in rows if "overrides" in row and "overlays" not in row] == [*by_key, *by_menu]
    given = {path for row in rows for path in row.get("overlays", [])}
    others = {"baseline", "contrasts", "distill", "events", "finetune", "keep_checkpoints", "multi_gpu_train"}
    others |= {"simulated_patients", "teacher_agreement", "tracking", *NOT_OF_TRAIN}
    assert given == {path.name for path in OVERLAYS.glob("*.json") if path.stem not in others}


def test_a_comparison_may_validate_on_an_inner_fold(plan_of: Callable, tmp_path: Path) -> None:
    cohort = plan_of(tmp_path, inner_fold=0).recipe(Run("wide", 1, 1), cache="none").get_parsed_content("cohort")
    assert {scan["fold"] for scan in cohort.test} == {1}
    assert cohort.validation
