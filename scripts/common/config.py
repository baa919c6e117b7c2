"""Give a config's expressions the config itself, and what they choose from menus: ``@config`` in the JSON files."""

from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.utils import ID_SEP_KEY

from scripts.common.json_file import as_json
from scripts.common.menus import at, entry, menus, places


class Config(dict):
    """A config with its macros resolved, nothing instantiated, and what is chosen from menus in its place.

    Args:
        parser: which holds the config.
        blocks: of menus, by their places, with what the config changes in them.
        values: of the menus' chosen entries, which the config's own stand before.
    """

    def __init__(self, parser: ConfigParser, blocks: dict[str, dict | list], values: dict) -> None:
        super().__init__({**values, **parser.get()})
        self.parser = parser
        self.blocks = blocks
        for place, block in blocks.items():
            *above, key = place.split("#")
            inner = self
            for name in above:  # copies of what the block is in: the parser's own config stays
                inner[name] = dict(inner[name])
                inner = inner[name]
            inner[key] = block

    def chosen(self, place: str, name: str, default: str | None = None) -> Any:
        """Return what makes the block that the menu's entry ``name`` has for a ``place``, or the list it has there.

        Where the entry has none, return the class ``default``, or an empty list.

        Raises:
            InputError: no entry has this name.
        """
        place = place.replace(ID_SEP_KEY, "#")
        kind = next(kind for kind in menus() if place in places(kind))
        blocks, values = entry(kind, name)
        if place not in blocks:
            return default or []
        block = self.blocks.get(place, blocks[place])
        id = self._id_of(place)
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

    def made(self, key: str) -> Any:
        """Return what ``key`` makes, only when asked; an expression's ``@key`` is made whether it is needed or not."""
        return self.parser.get_parsed_content(key)

    def given(self, *places: str) -> bool:
        """Return whether the config itself has a value at one of the ``places``, such as "optimizer#momentum"."""
        return any(at(self.parser.get(), place.replace(ID_SEP_KEY, "#")) != {} for place in places)

    def resolved(self, key: str) -> Any:
        """Return the config at ``key`` with its references replaced by their values, in terms of JSON."""
        self.parser.get_parsed_content(key)
        items = self.parser.ref_resolver.items
        block = items.get(self._id_of(key), items[ReferenceResolver.normalize_id(key)]).get_config()
        if isinstance(block, dict):
            block = {name: value for name, value in block.items() if name not in ("_mode_", "_requires_", "_desc_")}
        return as_json(block)

    @staticmethod
    def _id_of(place: str) -> str:
        """Return where the parser has the block that was chosen for ``place``."""
        return f"chosen::{ReferenceResolver.normalize_id(place)}"
