"""MONAI's macros name a file, not a choice by name: ``--loss_name focal`` chooses an entry of a menu.

A menu is ``configs/menus/<kind>.json``, chosen from by ``<kind>_name``. Its first entry is what the recipe has itself.
An entry's blocks replace those of the recipe at their places; what else it holds are values, overrides like any other.
What the config has changed in a block that is replaced is changed in the new one, too.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.reference_resolver import ReferenceResolver

from scripts.common.errors import InputError

MENUS = Path(__file__).resolve().parents[2] / "configs" / "menus"


@dataclass(frozen=True)
class Choice:
    """What stands at a place of the recipe, ready to be made with the arguments that stand there."""

    block: dict  # of the entry, or the recipe's class alone, with all references resolved
    make: Any  # its class or function with its arguments
    changed: set[str] | None  # arguments that were changed where an entry replaces the recipe's; None: all are meant

    def __call__(self, **arguments: Any) -> Any:
        """The instance."""
        return self.make(**self.meant(arguments))

    def meant(self, arguments: dict) -> dict:
        """Those of the recipe's ``arguments`` that the chosen block shall have."""
        return {k: v for k, v in arguments.items() if self.changed is None or k in self.changed}

    def __repr__(self) -> str:
        return str(self.block["_target_"])


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


def choose(parser: ConfigParser, place: str, name: str, default: str | None) -> Any:
    """What shall stand at ``place``, resolved in ``parser``'s config: a ``Choice``, or a list.

    It is the block of the entry ``name`` or, if that has none, the class ``default``. The entry's values are read like
    the config's own, unless that has them.

    Raises:
        InputError: no entry has this name.
    """
    kind = next(kind for kind in menus() if place in places(kind))
    id = ReferenceResolver.normalize_id(f"{kind}_name::{name}::{place}")
    blocks, values = entry(kind, name)
    block = blocks.get(place, {"_target_": default} if default else [])
    component = isinstance(block, dict)
    for key, value in {**values, id: {**block, "_mode_": "callable"} if component else block}.items():
        parser._do_parse(value, key)  # adds what is not there
    made = parser.get_parsed_content(id)
    if not component:
        return made
    own = changed(at(parser.get(), place), at(recipe(), place)) if place in blocks else None
    return Choice(parser.ref_resolver.get_item(id).get_config(), made, own)


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
