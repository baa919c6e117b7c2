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
    """Put what is chosen into the parser's config, and return the values that entries add, as shipped.

    Args:
        parser: of a config whose macros are resolved. Blocks that quoted a replaced one (``%``) follow it.
        recipe: the shipped recipe, its macros resolved; what differs from it was given by the user or an overlay.

    Raises:
        InputError: a name is in no menu.
    """
    config, added = parser.get(), {}
    before = deepcopy(config)
    for path in sorted(MENUS.glob("*.json")):
        key = f"{path.stem}_name"
        if key not in config:
            continue
        menu, name = ConfigParser.load_config_file(path), config[key]
        if name not in menu:
            raise InputError(f"{key} {name!r}: expected one of {', '.join(menu)}")
        for place, value in menu[name].items():
            block, last = _at(config, place)
            default, shipped_last = _at(recipe, place)
            if default is None or shipped_last not in default:
                added[place] = value
                block.setdefault(last, value)
            elif isinstance(value, list) and default[shipped_last] == []:
                block[last] = value + block[last]  # an overlay's own come after
            elif block.get(last) == default[shipped_last]:
                _replace(config, block[last], value)
                block[last] = value
            elif isinstance(value, dict) and _same_kind(block[last], default[shipped_last]):
                changed = {k: v for k, v in block[last].items() if v != default[shipped_last].get(k)}
                block[last] = {**value, **changed}
            else:
                logger.warning(f"{key} {name}: {place} is given by the config itself, which stands")
    if config != before:
        _parse_again(parser)
    return added


def _at(config: dict, place: str) -> tuple[dict, str]:
    """The block in which ``place`` is, and its key there."""
    *above, last = place.split("#")
    for key in above:
        config = config.get(key, {})
    return config, last


def _same_kind(value: Any, default: Any) -> bool:
    return isinstance(value, dict) and isinstance(default, dict) and value.get("_target_") == default.get("_target_")


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
