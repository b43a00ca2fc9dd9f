"""The fields of a checkpoint's description, checked as they are read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ixjax.io import InputError


@dataclasses.dataclass(frozen=True)
class Fields:
    """The entries of one JSON object, or of a GGUF file's metadata under config.json's names."""

    where: str
    """File and object that errors name."""
    values: Mapping[str, Any]
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The file's own names of fields, for errors, if it is not a config.json."""

    def key(self, name: str) -> str:
        """Return the file's own name of a field."""
        return self.keys.get(name, name)

    def error(self, name: str, expected: str) -> InputError:
        """Return an error about one field."""
        found = repr(self.values[name]) if name in self.values else "nothing"
        return InputError(f"{self.where}: {self.key(name)} is {found}; expected {expected}")

    def integer(self, name: str, default: int | None = None) -> int:
        """Return a positive integer; `default` if it is absent or null."""
        value = self._get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(name, "a positive integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a positive number; `default` if it is absent or null."""
        value = self._get(name, default)
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if not numeric or not 0 < value < math.inf:
            raise self.error(name, "a positive number")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        """Return a positive number; None if it is absent or null."""
        return None if self.values.get(name) is None else self.number(name)

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false; `default` if it is absent or null."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "true or false")
        return value

    def nested(self, name: str) -> Fields | None:
        """Return the object under `name`; None if it is absent, null or empty."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.error(name, "an object")
        where = self.where if self.keys else f"{self.where}: {name}"
        return Fields(where, value, self.keys) if value else None

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        return default if value is None else value
