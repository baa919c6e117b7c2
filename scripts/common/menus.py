"""MONAI's macros name a file, not a choice by name: ``--loss_name focal`` chooses an entry of a menu.

A menu is ``configs/menus/<kind>.json``, chosen from by ``<kind>_name``. Its first entry is the default and names the
places of the recipe that are chosen for; an entry that has no block for a place leaves the first's. What else an entry
holds are values of its own, overrides like any other.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.reference_resolver import ReferenceResolver

from scripts.common.errors import InputError

MENUS = Path(__file__).resolve().parents[2] / "configs" / "menus"


@dataclass(frozen=True)
class Choice:
    """What an entry puts at a place, ready to be made with the arguments that the recipe gives there itself."""

    block: dict  # its config with all references resolved
    make: Any  # its class or function with its arguments

    def __call__(self, **changes: Any) -> Any:
        """The instance, with ``changes`` of the entry's arguments."""
        return self.make(**changes)

    def __repr__(self) -> str:
        return str(self.block["_target_"])


@functools.cache
def menus() -> dict[str, dict[str, dict]]:
    """By kind and name, the entries as they stand in their files."""
    return {path.stem: ConfigParser.load_config_file(path) for path in sorted(MENUS.glob("*.json"))}


def kind_of(place: str) -> str:
    """The menu that has blocks for a place of the recipe, such as "loss" for "loss_def"."""
    return next(kind for kind, entries in menus().items() if place in next(iter(entries.values())))


def entry(kind: str, name: str) -> tuple[dict, dict]:
    """Blocks by their places in the recipe, and the entry's own values by their keys.

    Raises:
        InputError: no entry has this name.
    """
    entries = menus()[kind]
    if name not in list(entries):
        raise InputError(f"{kind}_name {name!r}: expected one of {', '.join(entries)}")
    first = next(iter(entries.values()))
    blocks = {place: entries[name].get(place, block) for place, block in first.items()}
    return blocks, {key: value for key, value in entries[name].items() if key not in first}


def values_of_all() -> dict:
    """The own values of all entries of all menus, as shipped."""
    entries = (entry(kind, name) for kind, names in menus().items() for name in names)
    return {key: value for _, values in entries for key, value in values.items()}


def choose(parser: ConfigParser, place: str, name: str) -> Any:
    """What the entry ``name`` has for ``place``, resolved in ``parser``'s config: a ``Choice``, or a list.

    The entry's values are read like the config's own, unless that has them.

    Raises:
        InputError: no entry has this name.
    """
    kind = kind_of(place)
    id = ReferenceResolver.normalize_id(f"{kind}_name::{name}::{place}")
    blocks, values = entry(kind, name)
    component = isinstance(blocks[place], dict)
    for key, value in {**values, id: {**blocks[place], "_mode_": "callable"} if component else blocks[place]}.items():
        parser._do_parse(value, key)  # adds what is not there
    made = parser.get_parsed_content(id)
    return Choice(parser.ref_resolver.get_item(id).get_config(), made) if component else made
