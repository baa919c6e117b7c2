"""Plan a comparison: its runs, what each is trained with, and which runs it must wait for."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna

from scripts.common.errors import InputError
from scripts.common.json_file import check_json
from scripts.comparison.fit import misfit, refusal
from scripts.search.space import OF_EACH_RUN, check_count, overlay_paths, read_recipe, refuse_own

OWN = OF_EACH_RUN | {"dataset_dir", "seed"}
SCHEMA = json.loads(Path(__file__).with_name("networks.schema.json").read_text())


@dataclass(frozen=True)
class Run:
    """A network trained on all outer folds but ``fold`` and tested on it; or ``members`` restarts together."""

    network: str
    fold: int
    restart: int | None  # None: together
    members: int = 1

    @property
    def name(self) -> str:
        """Its folder below the comparison's."""
        last = f"ensemble-{self.members}" if self.restart is None else f"restart-{self.restart}"
        return f"{self.network}/fold-{self.fold}/{last}"


@dataclass(eq=False)
class Plan:
    """The runs of a comparison.

    Raises:
        InputError: a value is out of range, a network's keys are not train.json's, or the cohort is not usable.
    """

    output_dir: str  # of all runs; a run's is ``<network>/fold-<k>/restart-<r>`` below it
    # What is compared, by name once it is checked: ``name``, and if wanted ``overlays`` and ``overrides`` of
    # train.json, its row ``paper`` of the paper's Table 1, and ``ensemble`` false if its weights cannot be averaged. A
    # text in ``overrides`` may hold {output_dir}, {fold} and {restart}; with the name of an earlier network's folder
    # below {output_dir}, a run begins when that network's runs of the same fold have ended.
    networks: list[dict] | dict[str, dict]
    only: str | list[str]  # names of networks, with commas between or as a list; nothing for all
    reference: str  # the network that all others are tested against
    folds: list[int]  # outer folds to test on
    restarts: int  # trainings of each network and fold; number r has the seed ``seed + r``
    ensembles: bool  # whether the restarts of a fold, if there are several, are also evaluated together
    # ``dataset_dir`` (None for the default cohort), ``epochs``, ``seed``, ``inner_fold`` (validated on; None: all folds
    # but the tested one are trained on), ``overlays`` and ``overrides`` of all networks.
    common: dict
    left_out: dict[str, str] = field(default_factory=dict, init=False)  # why a network cannot be trained here

    def __post_init__(self) -> None:
        check_count(1, restarts=self.restarts, epochs=self.common["epochs"])
        check_count(0, seed=self.common["seed"])
        if not isinstance(self.folds, list | tuple) or not self.folds or len({*self.folds}) < len(self.folds):
            raise InputError(f"folds {self.folds}: expected one or more, each once")
        check_json("protocol.json", self.networks, SCHEMA, "see docs/protocol.md")
        self.folder = Path(self.output_dir).resolve()
        self.folds = [*self.folds]
        self.ensembles = self.ensembles and self.restarts > 1
        self.networks = _chosen(self.networks, self.only)
        if self.reference not in self.networks:
            raise InputError(f"reference {self.reference}: not one of the networks, {', '.join(self.networks)}")
        for block, own in ((self.common, OWN), *((entry, OWN - {"epochs"}) for entry in self.networks.values())):
            refuse_own("overrides", block.get("overrides", {}), own, "comparison")

    def check(self) -> None:
        """Read the cohort's folds, and ``leave_out`` what does not fit its grid."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # failures are said in one line each
        self.cohort = [self.recipe(Run(self.reference, k, 0)).get_parsed_content("cohort") for k in self.folds]
        self.leave_out()

    def leave_out(self, **overrides: Any) -> None:
        """Build every network, leave out those that cannot be trained on the grid or read again, and print why.

        Raises:
            InputError: the reference is left out.
        """
        for name in self.networks:
            recipe = self.recipe(Run(name, self.folds[0], 0), cache="none", **overrides)
            if reason := misfit(recipe) or refusal(recipe):
                if name == self.reference:
                    raise InputError(f"{name}: {reason}; give another --reference")
                print(f"{name} is left out: {reason}")
                self.left_out[name] = reason

    @property
    def runs(self) -> list[Run]:
        """Return all runs in the order in which they begin: the first restart of all networks and folds first."""
        names = [name for name in self.networks if name not in self.left_out]
        runs = [Run(name, fold, r) for r in range(self.restarts) for fold in self.folds for name in names]
        together = [name for name in names if self.ensembles and self.networks[name].get("ensemble", True)]
        return runs + [Run(name, fold, None, self.restarts) for fold in self.folds for name in together]

    @property
    def settings(self) -> dict:
        """Return what may not change while a study lives; networks and restarts may be added."""
        self.check()
        fingerprints = [cohort.fingerprint for cohort in self.cohort]
        common = {key: value for key, value in self.common.items() if key != "dataset_dir"}
        return {"direction": "maximize", "folds": self.folds, "cohort": fingerprints, **common}

    def needs(self, run: Run) -> list[Run]:
        """Return the runs that must have ended well before ``run`` can begin."""
        if run.restart is None:
            return [Run(run.network, run.fold, r) for r in range(run.members)]
        text = json.dumps(self.networks[run.network].get("overrides", {}))
        needed = []
        for name in _named(self.networks[run.network], list(self.networks)):
            its_own = f"{{output_dir}}/{name}/fold-{{fold}}/restart-{{restart}}/" in text
            needed += [Run(name, run.fold, r) for r in ([run.restart] if its_own else range(self.restarts))]
        return needed

    def overlays(self, network: str) -> list[str]:
        """Return the config files after train.json; a bare name is one of the bundle's own."""
        return overlay_paths([*self.common["overlays"], *self.networks[network].get("overlays", [])], network)

    def overrides(self, run: Run) -> dict:
        """Return the overrides of a run's training, but for its folders."""
        dataset_dir = self.common["dataset_dir"]
        overrides = {
            "epochs": self.common["epochs"],
            **self.common["overrides"],
            **_filled(self.networks[run.network].get("overrides", {}), run, self.folder),
            **({} if dataset_dir is None else {"dataset_dir": str(Path(dataset_dir).resolve())}),
        }
        seed = self.common["seed"] + (run.restart or 0)
        return {**overrides, "fold": run.fold, "inner_fold": self.common["inner_fold"], "seed": seed}

    def recipe(self, run: Run, *more: str, **overrides: Any) -> Any:
        """Read the config of a run, with the config files ``more`` behind the network's own, and check its keys."""
        return read_recipe({**self.overrides(run), **overrides}, [*self.overlays(run.network), *more])


def _chosen(networks: list[dict], only: str | list[str]) -> dict[str, dict]:
    """Return the networks to compare by name; each may name the folders of networks before it."""
    known = {entry["name"]: entry for entry in networks}
    if min(len(known), len({entry.get("paper", entry["name"]) for entry in networks})) < len(networks):
        raise InputError("networks: two have the same name or row of the paper")
    names = [name.strip() for name in (only if isinstance(only, str) else ",".join(only)).split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"only {unknown[0]}: no such network; there are {', '.join(known)}")
    chosen = {name: entry for name, entry in known.items() if not names or name in names}
    for i, (name, entry) in enumerate(chosen.items()):
        for needed in _named(entry, list(known)):
            if needed not in list(chosen)[:i]:
                raise InputError(f"{name}: its overrides name {needed}, which must be compared too and stand before it")
    return chosen


def _named(entry: dict, names: list[str]) -> list[str]:
    text = json.dumps(entry.get("overrides", {}))
    return [name for name in names if f"{{output_dir}}/{name}/" in text]


def _filled(overrides: dict, run: Run, folder: Path) -> dict:
    """Replace {output_dir}, {fold} and {restart} in the texts of ``overrides``."""
    text = json.dumps(overrides)
    for key, word in (("output_dir", folder), ("fold", run.fold), ("restart", run.restart)):
        text = text.replace(f"{{{key}}}", json.dumps(str(word))[1:-1])
    return json.loads(text)
