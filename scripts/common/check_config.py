"""MONAI takes any override in silence: this refuses misspelt keys and values of another kind, each in a line."""

import json
import logging
from collections.abc import Iterator
from difflib import get_close_matches
from math import isfinite
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS, ID_SEP_KEY

from scripts.common.errors import InputError
from scripts.common.json_file import RANGES, problems_of
from scripts.common.menus import at, changed, default_of, entry, menus, places, recipe, values_of_all
from scripts.common.overrides import enclosing_parser, is_computed, shipped_parts

logger = logging.getLogger("meshnet")


class Config(dict):
    """A config with its macros resolved, nothing instantiated, and what is chosen from menus in its place."""

    parser: ConfigParser
    blocks: dict[str, dict | list]  # those of menus by their places, with what the config changes in them

    def chosen(self, place: str, name: str, default: str | None = None) -> Any:
        """What makes the block that the menu's entry ``name`` has for a ``place`` of the recipe, or a list of those.

        Where the entry has none, it is the class ``default``, or an empty list.

        Raises:
            InputError: no entry has this name.
        """
        place = place.replace(ID_SEP_KEY, "#")
        kind = next(kind for kind in menus() if place in places(kind))
        blocks, values = entry(kind, name)
        if place not in blocks:
            return default or []
        block, id = self.blocks.get(place, blocks[place]), self.id_of(place)
        if isinstance(block, dict):
            block = {**block, "_mode_": "callable"}
        for key, value in {**values, id: block}.items():
            self.parser._do_parse(value, key)  # adds what is not there
        made = self.parser.get_parsed_content(id)
        if not isinstance(block, dict):
            return made

        def make(**_: Any) -> Any:  # the recipe's arguments are in the block
            return made()

        make.__qualname__ = block["_target_"]  # for messages
        return make

    @staticmethod
    def id_of(place: str) -> str:
        """Where the parser has the block that was chosen for ``place``."""
        return f"chosen::{ReferenceResolver.normalize_id(place)}"

    def given(self, *places: str) -> bool:
        """Whether the config itself has a value at one of the ``places``, such as "optimizer#momentum"."""
        return any(at(self.parser.get(), place.replace(ID_SEP_KEY, "#")) != {} for place in places)

    def resolved(self, key: str) -> Any:
        """The config at ``key`` with its references replaced by their values, in terms of JSON."""
        self.parser.get_parsed_content(key)
        items = self.parser.ref_resolver.items
        block = items.get(self.id_of(key), items[ReferenceResolver.normalize_id(key)]).get_config()
        if isinstance(block, dict):
            block = {name: value for name, value in block.items() if name not in ("_mode_", "_requires_", "_desc_")}
        return json.loads(json.dumps(block, default=str))


def check_config() -> Config:
    """Check the config that this is part of, overlays and overrides included, and change nothing.

    A key of the top level, or of a plain block like ``train``, must be in the shipped config or be read by another
    value (``@key``): what nothing reads is a misspelling. A value that stands there as it is (no expression, no
    reference) must be of the kind of the shipped default, and in its range of ``ranges.json``.

    Raises:
        InputError: one line per problem.
    """
    parser = enclosing_parser()
    config, shipped = parser.get(), shipped_parts(parser.get())
    chosen, values, problems = {}, {}, []
    if "train" in config:
        shipped.append(values_of_all() | recipe())
        chosen, values, problems = _choices(parser)
    checked = Config({**values, **config})
    checked.parser, checked.blocks = parser, chosen
    for place, block in chosen.items():
        _put_in(checked, place.split("#"), block)
    read = [*_references(checked), "config", *(f"{kind}_name" for kind in menus())]
    problems += [*_unread_keys({**values, **config}, shipped, read), *_wrong_kinds(config, shipped)]
    problems += [] if problems else _out_of_range(config)
    if problems:
        raise InputError("\n".join(problems))
    for line in _without_effect(config, shipped, read) if "train" in config and "evaluating" not in config else ():
        logger.warning(line)
    return checked


def _choices(parser: ConfigParser) -> tuple[dict, dict, list[str]]:
    """The blocks that are chosen from menus, the values of their entries, and what is wrong with their names."""
    config, chosen, values, problems = parser.get(), {}, {}, []
    for kind, entries in menus().items():
        try:
            blocks, own = entry(kind, name := parser.get_parsed_content(f"{kind}_name"))
        except InputError as error:
            problems.append(str(error))
            continue
        here = [place for place in places(kind) if _chooses(config, place) == _chooses(recipe(), place)]
        for place in here:
            block = at(config, place)
            if not isinstance(block, dict):
                chosen[place] = blocks.get(place, [])
            elif place in blocks:
                chosen[place] = blocks[place] | {key: block[key] for key in changed(block, at(recipe(), place))}
            else:
                chosen[place] = block | {"_target_": default_of(_chooses(recipe(), place))}
        values |= own
        for place in blocks.keys() - {*here} if name != next(iter(entries)) and "evaluating" not in config else ():
            logger.warning(f"{kind}_name {name}: {place} is given by the config itself, which stands")
    return chosen, values, problems


def _put_in(config: dict, place: list[str], block: dict | list) -> None:
    """Put a chosen block into a copy of those that it is in; what the config changes in it stays changed."""
    key, *below = place
    if below:
        config[key] = dict(config[key])
        _put_in(config[key], below, block)
    else:
        config[key] = block


def _chooses(config: dict, place: str) -> Any:
    """The expression that chooses from a menu at ``place``, if it stands there."""
    block = at(config, place)
    expression = block.get("_target_") if isinstance(block, dict) else block
    return expression.replace(ID_SEP_KEY, "#") if isinstance(expression, str) else None


def _unread_keys(config: dict, shipped: list[dict], read: list[str]) -> Iterator[str]:
    references = [reference.split(ID_SEP_KEY) for reference in read]
    tracking = set(DEFAULT_MLFLOW_SETTINGS["configs"])

    def search(block: dict, above: list[str], shipped: list[dict]) -> Iterator[str]:
        for key, value in block.items():
            path, name = [*above, key], "#".join([*above, key])
            if not above and (key in tracking or key.startswith("_") or _is_program(value)):
                continue
            read = any(r[: len(path)] == path[: len(r)] for r in references)  # itself, its block or a part of it
            if not read and not any(key in other for other in shipped):  # an overlay may leave our own keys unread
                near = get_close_matches(key, sorted({*block} - {key}), 1)
                hint = f"did you mean {'#'.join([*above, *near])}?" if near else "is it misspelt?"
                yield f'{name}: nothing reads this key, {hint} (a new key is read as "@{name}")'
            elif isinstance(value, dict) and "_target_" not in value and not any(o.get(key) == {} for o in shipped):
                yield from search(value, path, [o[key] for o in shipped if isinstance(o.get(key), dict)])

    return search(config, [], shipped)


def _without_effect(config: dict, shipped: list[dict], read: list[str]) -> Iterator[str]:
    """Values that differ from those of all ``shipped`` parts, so the user's, but that what was chosen does not read."""
    read = {ReferenceResolver.split_id(reference)[0] for reference in read}
    for key, value in config.items():
        if key == "debug" or key.startswith("_") or isinstance(value, dict) or _is_program(value):  # read otherwise
            continue
        same = [ReferenceResolver.normalize_id(str(part[key])) == str(value) for part in shipped if key in part]
        if key in shipped[-1] and not any(same) and key not in read:
            yield f"{key} {value}: has no effect, nothing that was chosen reads it"


def _is_program(value: Any) -> bool:
    """Whether a value is there to be run, like ``initialize`` or ``run``."""
    return isinstance(value, list) and all(isinstance(item, str) and item.startswith("$") for item in value)


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from ReferenceResolver.match_refs_pattern(value)
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _references(item)


def _wrong_kinds(config: dict, shipped: list[dict]) -> Iterator[str]:
    """Problems of the top level's plain values."""
    for key in [key for key in dict.fromkeys(key for part in shipped for key in part) if key in config]:
        value, default = config[key], next(part[key] for part in shipped if key in part)
        kind = _kind(default)
        if kind and value is not None and not is_computed(value) and not kind[1](value):
            yield f"{key} {value!r}: expected {kind[0]}, like the shipped {json.dumps(default)}"


def _out_of_range(config: dict) -> Iterator[str]:
    """Problems of the top level's plain values of the right kind, and of the intensity scaling's two ends."""
    plain = {key: value for key, value in config.items() if key in RANGES and value is not None}
    plain = {key: value for key, value in plain.items() if not is_computed(value)}
    yield from problems_of(plain, {"properties": RANGES})
    scaling = config.get("intensity")
    for low, high in (("minv", "maxv"), ("b_min", "b_max"), ("a_min", "a_max"), ("lower", "upper")):
        ends = [scaling.get(end) if isinstance(scaling, dict) else None for end in (low, high)]
        if all(isinstance(end, int | float) for end in ends) and ends[0] >= ends[1]:
            yield f"intensity#{low} {ends[0]}: expected less than intensity#{high}, which is {ends[1]}"


def _kind(default: Any) -> tuple[str, Any] | None:
    """What a value must be where ``default`` is shipped: words for it, and the test; None where anything may stand."""
    if isinstance(default, bool):
        return "true or false", lambda value: isinstance(value, bool)
    if isinstance(default, int):
        return "a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)
    if isinstance(default, float):
        return "a finite number", lambda v: isinstance(v, int | float) and not isinstance(v, bool) and isfinite(v)
    if isinstance(default, str) and not is_computed(default):
        return "a text", lambda value: isinstance(value, str)
    return None
