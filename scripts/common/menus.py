"""MONAI's macros name a file, not a choice by name: ``--loss_name focal`` chooses an entry of a menu.

A menu is ``configs/menus/<kind>.json``, chosen from by ``<kind>_name``. Its first entry is what the recipe has itself.
An entry's blocks replace those of the recipe at their places; what else it holds are values, overrides like any other.
What the config has changed in a block that is replaced is changed in the new one, too.
"""

import functools
import re
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.reference_resolver import ReferenceResolver

from scripts.common.errors import InputError

MENUS = Path(__file__).resolve().parents[2] / "configs" / "menus"


@functools.cache
def menus() -> dict[str, dict[str, dict]]:
    """By kind and name, the entries as they stand in their files."""
    return {path.stem: ConfigParser.load_config_file(path) for path in sorted(MENUS.glob("*.json"))}


@functools.cache
def recipe() -> dict:
    """``train.json`` as it stands in its file."""
    return ConfigParser.load_config_file(MENUS.parent / "train.json")


def places(kind: str) -> list[str]:
    """The places of the recipe for which some entry of a menu has a block, such as "loss_def"."""
    return list(dict.fromkeys(p for e in menus()[kind].values() for p, v in e.items() if _is_block(p, v)))


def entry(kind: str, name: str) -> tuple[dict, dict]:
    """Blocks by their places in the recipe, and the entry's own values by their keys.

    Raises:
        InputError: no entry has this name.
    """
    entries = menus()[kind]
    if name not in list(entries):
        raise InputError(f"{kind}_name {name!r}: expected one of {', '.join(entries)}")
    blocks = {place: value for place, value in entries[name].items() if _is_block(place, value)}
    return blocks, {key: value for key, value in entries[name].items() if key not in blocks}


def values_of_all() -> dict:
    """The own values of all entries of all menus, as shipped."""
    entries = (entry(kind, name) for kind, names in menus().items() for name in names)
    return {key: value for _, values in entries for key, value in values.items()}


def changed(block: dict, shipped: dict) -> set[str]:
    """The arguments that are others in a ``block`` of a config than in the ``shipped`` one, where # is not yet ::."""
    theirs = {key: ReferenceResolver.normalize_id(x) if isinstance(x, str) else x for key, x in shipped.items()}
    return {key for key, value in block.items() if key[0] != "_" and value not in (shipped.get(key), theirs.get(key))}


def at(config: dict, place: str) -> Any:
    """What stands at a ``place``, such as "train#schedule"; an empty block if nothing does."""
    for key in place.split("#"):
        config = config.get(key, {}) if isinstance(config, dict) else {}
    return config


def default_of(expression: str) -> str | None:
    """The class that a recipe's expression ``config.chosen(place, name, class)`` names."""
    found = re.search(r", '([\w.]+)'\)$", expression)
    return found and found[1]


def _is_block(place: str, value: Any) -> bool:
    return isinstance(value, dict) or "#" in place
