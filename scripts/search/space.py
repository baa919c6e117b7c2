"""Check a search's ranges and overrides before its first trial."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import optuna
from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv

from scripts.common.errors import InputError, describe
from scripts.training.run_record import RECIPE

# Keys of train.json that who starts several trainings sets for each of them.
OF_EACH_RUN = {"epochs", "fold", "inner_fold", "output_dir", "ckpt_dir", "resume", "overwrite", "report"}
OWN = OF_EACH_RUN | {"val_interval"}
BECAME = {"instance_norm.json": "norm: instance", "no_decay.json": "decay_norm_and_bias: false"}  # overlays, keys


def check_count(minimum: int, **values: Any) -> None:
    """Raise an ``InputError`` unless all values are whole numbers, at least ``minimum``."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise InputError(f"{name} {value!r}: expected a whole number of at least {minimum}")


def refuse_own(block: str, overrides: Iterable[str], own: set[str], who: str) -> None:
    """Raise an ``InputError`` if ``overrides``, from a config's ``block``, have a key that ``who`` sets itself."""
    for key in {key.lstrip("+") for key in overrides} & own:
        raise InputError(f"{block}#{key}: the {who} sets this itself, leave it out")


def overlay_paths(names: str | Sequence[str], of: str) -> list[str]:
    """Return paths of overlays, a bare name is one of the bundle's; ``InputError``, beginning with ``of``: no file."""
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
    overlays = RECIPE.parent / "overlays"
    paths = [Path(name) if Path(name).is_file() else overlays / name for name in names]
    if missing := [path for path in paths if not path.is_file()]:
        name = missing[0].name
        hint = f"is a key now, give the override {BECAME.get(name)}"
        if name not in BECAME:
            is_ours = (overlays / name).is_file()
            hint = f"it is {overlays / name}" if is_ours else "no such file here or in configs/overlays/"
        raise InputError(f"{of}: overlay {name}: {hint}")
    return [str(path.resolve()) for path in paths]


def check_space(space: dict[str, Callable], overrides: dict, common: dict, overlays: Sequence[str] = ()) -> None:
    """Build the training, without its scans, at both ends of all ranges, with what all trials have in ``common``.

    ``space`` has for each key a function of the trial and the key that suggests its value. An ``InputError`` says that
    Optuna refuses a range, the training a key or a value, or that the search sets a key of the user's itself.
    """
    for block, keys in (("overrides", overrides), ("space", space)):
        refuse_own(block, keys, OWN, "search")
    if not space:
        raise InputError("space: is empty; give at least one key with its range, see docs/search.md")
    for key in sorted({key.lstrip("+") for key in overrides} & {key.lstrip("+") for key in space}):
        raise InputError(f"overrides#{key}: the space draws this key; leave it out of one of the two")
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # failures are said in one line each
    probe = optuna.create_study().ask()
    ends = {}
    for name, suggest in space.items():
        try:
            suggest(probe, name)
            among = probe.distributions[name]
        except Exception as error:
            raise InputError(f"space#{name}: {describe(error)}; see docs/search.md") from error
        ends[name] = among.choices if hasattr(among, "choices") else (among.low, among.high)
    for i in range(max(map(len, ends.values()), default=1)):
        values = {name: values[min(i, len(values) - 1)] for name, values in ends.items()}
        read_recipe({**common, **values, "cache": "none"}, overlays).get_parsed_content("train#trainer")


def read_recipe(overrides: dict, overlays: Sequence[str] = ()) -> ConfigParser:
    """Read train.json with the files ``overlays`` and one of ``overrides``, as a training does, and check its keys."""
    recipe = ConfigParser(ConfigParser.load_config_files([str(RECIPE), *overlays]))
    for key, value in overrides.items():
        merge_kv(recipe, key, value)
    recipe.parse()
    recipe.get_parsed_content("config")
    return recipe
