"""MONAI's macros name a file, not a choice by name: ``--loss_name focal`` puts an entry of a menu into the config.

A menu is ``configs/menus/<kind>.json``, chosen from by ``<kind>_name``. An entry is an overlay: blocks that replace
those of the recipe, and values of its own that are overrides like any other. What the config has changed in a block
that is replaced is changed in the new one, too: ``--optimizer_name sgd --optimizer#momentum 0.8`` is what it says.
"""

import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from scripts.common.errors import InputError

MENUS = Path(__file__).resolve().parents[2] / "configs" / "menus"
logger = logging.getLogger("meshnet")


def apply_menus(parser: ConfigParser, recipe: dict) -> dict:
    """Put what is chosen into the parser's config, and return the values of all entries, as shipped.

    Args:
        parser: of a config whose macros are resolved. Blocks that quoted a replaced one (``%``) follow it.
        recipe: the shipped recipe as its file has it; what differs from it was given by the user or an overlay.

    Raises:
        InputError: a name is in no menu.
    """
    config, values = parser.get(), {}
    before = deepcopy(config)
    for path in sorted(MENUS.glob("*.json")):
        key = f"{path.stem}_name"
        if key not in config:
            continue
        menu, name = ConfigParser.load_config_file(path), config[key]
        if name not in menu:
            raise InputError(f"{key} {name!r}: expected one of {', '.join(menu)}")
        places = {place for entry in menu.values() for place in entry}
        blocks = {place: block[last] for place in places for block, last in [_at(recipe, place)] if last in block}
        values |= {place: value for entry in menu.values() for place, value in entry.items() if place not in blocks}
        for place, value in menu[name].items():
            if place not in blocks:
                config.setdefault(place, value)
                continue
            (block, last), default = _at(config, place), blocks[place]
            if isinstance(value, list) and default == []:
                block[last] = value + block[last]  # an overlay's own come after
            elif block[last] == default:
                _replace(config, default, value)
                block[last] = value
            elif isinstance(value, dict) and isinstance(block[last], dict) and _kind(block[last]) == _kind(default):
                changed = {k: v for k, v in block[last].items() if v != default.get(k)}
                block[last] = {**value, **changed}
            elif "evaluating" not in config:  # where weights are tested, their card says what the network is
                logger.warning(f"{key} {name}: {place} is given by the config itself, which stands")
    if config != before:
        _parse_again(parser)
    return values


def _at(config: dict, place: str) -> tuple[dict, str]:
    """The block in which ``place`` is, and its key there."""
    *above, last = place.split("#")
    for key in above:
        config = config.get(key, {})
    return config, last


def _kind(block: dict) -> Any:
    return block.get("_target_")


def _replace(value: Any, old: Any, new: Any) -> None:
    """Put ``new`` where a copy of ``old`` stands, which a macro has left."""
    if not isinstance(old, dict):
        return
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        if item == old:
            value[key] = deepcopy(new)
        elif isinstance(item, dict | list):
            _replace(item, old, new)


def _parse_again(parser: ConfigParser) -> None:
    """Read the config anew, but for what is built."""
    resolver = parser.ref_resolver
    for key in set(resolver.items) - set(resolver.resolved_content):
        del resolver.items[key]
    parser._do_parse(parser.get())  # parse() itself would forget what is built
