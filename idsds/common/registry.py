"""A small registry: decorated functions under their names; an unknown name lists the close matches."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

Entry = TypeVar("Entry")


class UnknownNameError(ValueError):
    """An unknown name of an entry, option or setting; the message gives the value, the nearest match and what is allowed."""

    def __init__(self, kind: str, name: object, allowed: Iterable[str]) -> None:
        allowed = sorted(map(str, allowed))
        by_folded = {candidate.casefold(): candidate for candidate in allowed}
        close = [by_folded[c] for c in difflib.get_close_matches(str(name).casefold(), by_folded, n=3, cutoff=0.5)]
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        super().__init__(f"unknown {kind} {name!r}.{hint} Allowed: {', '.join(allowed)}.")
        self.kind, self.name, self.close = kind, name, close


class Registry(Mapping[str, Entry]):
    """Entries by name, in the order of their registration.

    Args:
        kind: the noun for an entry in error messages, such as ``"method"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry, *, replace: bool = False) -> None:
        """Add ``entry`` under ``name``. Raises ValueError if the name is taken and ``replace`` is not set."""
        if name in self._entries and not replace:
            raise ValueError(f"{self.kind} {name!r} is already registered; pass replace=True to put another in its place")
        self._entries[name] = entry

    def remove(self, name: str) -> None:
        """Remove ``name``. Raises UnknownNameError if it is not registered."""
        self[name]
        del self._entries[name]

    def __getitem__(self, name: str) -> Entry:
        try:
            return self._entries[name]
        except (KeyError, TypeError):
            raise UnknownNameError(self.kind, name, self._entries) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
