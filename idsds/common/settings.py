"""Frozen, validated settings: the base class of everything that a params file can set."""

from __future__ import annotations

import ast
import keyword
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

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

    @field_validator("*", mode="before")
    @classmethod
    def _literally(cls, value: Any, info: ValidationInfo) -> Any:
        # True and 1.0 equal 1, so pydantic would accept them.
        annotation = cls.model_fields[info.field_name or ""].annotation
        allowed = get_args(annotation) if get_origin(annotation) is Literal else ()
        if allowed and not any(type(value) is type(each) and value == each for each in allowed):
            raise ValueError(f"must be {' or '.join(map(repr, allowed))}")
        return value

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any]) -> Self:
        """Return the settings in a notebook's ``globals()``.

        Papermill only warns about a key that the parameters cell does not have, so every name that its injected cell assigns must be a
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


def read_values(path: str | Path, known: Iterable[str] | None = None) -> dict[str, Any]:
    """Read a params file, whose keys papermill writes into a notebook as code: each must be a plain name.

    Args:
        known: the allowed settings; None leaves the check to the caller.

    Raises:
        SettingsError: if the file is not a mapping from names to values, or has a key that is not in ``known``; the message names it.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{str(path)!r} is not YAML: {' '.join(str(error).split())}") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise SettingsError(f"{str(path)!r} must hold settings (key: value), not a {type(values).__name__}")
    check_keys(values, str(path))
    for key in values if known is not None else ():
        if key not in known:
            raise SettingsError(f"{str(path)!r}: {UnknownNameError('key', key, known)}")
    return values


def check_keys(values: Mapping[Any, Any], where: str) -> None:
    """Raise SettingsError for a key that is not a plain name and could therefore contain code."""
    for key in values:
        if not isinstance(key, str) or not key.isidentifier() or keyword.iskeyword(key) or key.startswith("__"):
            raise SettingsError(f"{where!r}: the key {key!r} is not a valid name of a setting")


def parameters_of(source: str) -> set[str]:
    """Return the names that a notebook's parameters cell assigns."""
    plain = (node.target for node in ast.parse(source).body if isinstance(node, ast.AnnAssign))
    return _assigned(source) | {target.id for target in plain if isinstance(target, ast.Name)}


def _assigned(source: str) -> set[str]:
    """Return the names that a cell of plain assignments assigns."""
    return {
        target.id for statement in ast.parse(source).body for target in getattr(statement, "targets", ()) if isinstance(target, ast.Name)
    }
