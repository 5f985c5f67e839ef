"""Frozen, validated settings: the base of everything that a params file may set."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from idsds.common.registry import UnknownNameError


class SettingsError(ValueError):
    """Invalid settings; the message lists each fault with the key, the value, what is allowed and the nearest match."""


class Settings(BaseModel):
    """Base of all settings: frozen, without unknown keys, and without silent conversion of strings into numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(self._explain(error)) from None

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any]) -> Self:
        """Return the settings in a notebook's ``globals()``.

        Papermill only warns about a key that the parameters cell does not have, so whatever its injected cell assigns must be a
        setting. Other variables of the notebook are ignored, so that a cell can be run again.
        """
        injected = {name for source in namespace.get("In", ()) if source.lstrip().startswith("# Parameters") for name in _assigned(source)}
        return cls(**{name: namespace[name] for name in namespace if name in injected or name in cls.model_fields})

    @classmethod
    def _explain(cls, error: ValidationError) -> str:
        lines = [f"{len(error.errors())} fault(s) in {cls.__name__}:"]
        for fault in error.errors():
            key = ".".join(map(str, fault["loc"]))
            if fault["type"] == "extra_forbidden":
                lines.append(f"  {UnknownNameError('key', key, cls.model_fields)}")
            elif fault["type"] == "missing":
                lines.append(f"  {key}: missing")
            else:
                reason = fault["msg"].removeprefix("Value error, ")
                lines.append(f"  {key or 'settings'}: {reason}" + (f" (given: {fault['input']!r})" if key else ""))
        return "\n".join(lines)


def _assigned(source: str) -> set[str]:
    """Return the names that a cell of plain assignments assigns."""
    return {
        target.id for statement in ast.parse(source).body for target in getattr(statement, "targets", ()) if isinstance(target, ast.Name)
    }
