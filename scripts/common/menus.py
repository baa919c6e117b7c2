"""Choose blocks of the recipe by name: ``--loss_name focal`` takes an entry of a menu.

A menu is ``configs/menus/<kind>.json``, chosen from by ``<kind>_name``. Its first entry is what the recipe has itself.
An entry's blocks replace those of the recipe at their places; what else it holds are values, overrides like any other.
An argument that the config has changed in a replaced block is changed in the new block, too.
"""

import functools
import logging
import re
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.utils import ID_SEP_KEY

from scripts.common import CONFIGS
from scripts.common.errors import InputError

logger = logging.getLogger("meshnet")
MENUS = CONFIGS / "menus"


@functools.cache
def menus() -> dict[str, dict[str, dict]]:
    """Return the entries by kind and name; a file's other keys, such as ``_flip_``, are pieces that entries quote."""
    return {path.stem: _entries(path) for path in sorted(MENUS.glob("*.json"))}


@functools.cache
def recipe() -> dict:
    """Return ``train.json`` as it stands in its file."""
    return ConfigParser.load_config_file(CONFIGS / "train.json")


def places(kind: str) -> list[str]:
    """Return the places of the recipe for which some entry of a menu has a block, such as "loss_def"."""
    return list(dict.fromkeys(p for e in menus()[kind].values() for p, v in e.items() if _is_block(p, v)))


def entry(kind: str, name: str) -> tuple[dict, dict]:
    """Return an entry's blocks by their places in the recipe, and its own values by their keys.

    Raises:
        InputError: no entry has this name.
    """
    entries = menus()[kind]
    if name not in list(entries):
        raise InputError(f"{kind}_name {name!r}: expected one of {', '.join(entries)}")
    blocks = {place: value for place, value in entries[name].items() if _is_block(place, value)}
    return blocks, {key: value for key, value in entries[name].items() if key not in blocks}


def values_of_all() -> dict:
    """Return the own values of all entries of all menus, as shipped."""
    entries = (entry(kind, name) for kind, names in menus().items() for name in names)
    return {key: value for _, values in entries for key, value in values.items()}


def choices(parser: ConfigParser) -> tuple[dict[str, dict | list], dict, list[str]]:
    """Return the block at each place of a menu, the values of the chosen entries, and what is wrong with their names.

    A place where the config has a block of its own is left out, which the log says if the entry has one for it.
    """
    config = parser.get()
    blocks, values, problems = {}, {}, []
    for kind, entries in menus().items():
        try:
            theirs, own = entry(kind, name := parser.get_parsed_content(f"{kind}_name"))
        except InputError as error:
            problems.append(str(error))
            continue
        values |= own
        for place in places(kind):
            if _expression(config, place) == _expression(recipe(), place):
                blocks[place] = _block(config, place, theirs.get(place))
            elif place in theirs and name != next(iter(entries)) and "evaluating" not in config:
                logger.warning(f"{kind}_name {name}: {place} is given by the config itself, which stands")
    return blocks, values, problems


def at(config: dict, place: str) -> Any:
    """Return what stands at a ``place``, such as "train#schedule"; an empty block if nothing does."""
    for key in place.split("#"):
        config = config.get(key, {}) if isinstance(config, dict) else {}
    return config


def _entries(path: Path) -> dict[str, dict]:
    parser = ConfigParser(ConfigParser.load_config_file(path))
    parser.resolve_macro_and_relative_ids()
    return {name: entry for name, entry in parser.get().items() if not name.startswith("_")}


def _block(config: dict, place: str, theirs: dict | list | None) -> dict | list:
    """Return an entry's block, or what stands in the recipe if the entry has none, with the config's changes."""
    ours = at(config, place)
    shipped = at(recipe(), place)
    if not isinstance(ours, dict):
        return theirs or []
    if theirs is None:  # the recipe's expression ends with the class that it makes then
        return ours | {"_target_": re.search(r", '([\w.]+)'\)$", shipped["_target_"])[1]}
    return theirs | {key: value for key, value in ours.items() if key[0] != "_" and not _same(value, shipped.get(key))}


def _same(value: Any, shipped: Any) -> bool:
    """Return whether a config's value is the shipped one, in which MONAI writes :: for #."""
    return value == shipped or str(value) == ReferenceResolver.normalize_id(str(shipped))


def _expression(config: dict, place: str) -> Any:
    """Return the expression that chooses from a menu at ``place``, if it stands there."""
    block = at(config, place)
    expression = block.get("_target_") if isinstance(block, dict) else block
    return expression.replace(ID_SEP_KEY, "#") if isinstance(expression, str) else None


def _is_block(place: str, value: Any) -> bool:
    return isinstance(value, dict) or "#" in place
