"""A small registry of decorated functions by name; the error for an unknown name lists close matches."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TypeVar

Entry = TypeVar("Entry")
#: The most names that an error message lists: a library may have a thousand.
MOST_LISTED = 300


class UnknownNameError(ValueError):
    """An unknown name of an entry, option or setting; the message gives the value, the nearest match and what is allowed."""

    def __init__(self, kind: str, name: object, allowed: Iterable[object]) -> None:
        allowed = sorted(map(str, allowed))
        listed = ", ".join(allowed) if len(allowed) <= MOST_LISTED else f"{len(allowed)} names, such as {', '.join(allowed[:5])}"
        by_folded = {candidate.casefold(): candidate for candidate in allowed}
        close = [by_folded[c] for c in difflib.get_close_matches(str(name).casefold(), by_folded, n=3, cutoff=0.5)]
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        super().__init__(f"unknown {kind} {name!r}.{hint} Allowed: {listed}.")
        self.kind, self.name, self.close = kind, name, close


def check_name(kind: str, name: object, allowed: Collection[object]) -> None:
    """Raise UnknownNameError if ``name`` is not one of the ``allowed``."""
    if name not in allowed:
        raise UnknownNameError(kind, name, allowed)


def check_names(kind: str, names: Iterable[object], allowed: Collection[object]) -> None:
    """Raise UnknownNameError for the first of ``names`` that is not one of the ``allowed``."""
    for name in names:
        check_name(kind, name, allowed)


class Registry(Mapping[str, Entry]):
    """Entries by name, in the order of their registration.

    Two kinds of names are known but not iterated over: those registered with ``listed=False``, which need an optional library, and
    ``library/Name`` of the libraries that were added, whose entries are created on access.

    Args:
        kind: the noun for an entry in error messages, such as ``"method"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}
        self._unlisted: dict[str, Entry] = {}
        self._libraries: dict[str, tuple[Callable[[], Iterable[str]], Callable[[str], Entry]]] = {}

    def add(self, name: str, entry: Entry, *, replace: bool = False, listed: bool = True) -> None:
        """Add ``entry`` under ``name``. Raises ValueError if the name is taken and ``replace`` is not set."""
        if (name in self._entries or name in self._unlisted) and not replace:
            raise ValueError(f"{self.kind} {name!r} is already registered; pass replace=True to replace it")
        self._unlisted.pop(name, None)
        (self._entries if listed else self._unlisted)[name] = entry

    def registering(self, make: Callable[[str, Callable], Entry], name: str | None, replace: bool) -> Callable[[Callable], Callable]:
        """Return a decorator that adds ``make(name, function)``, under ``name`` or the function's own name."""

        def decorate(function: Callable) -> Callable:
            key = name or function.__name__
            self.add(key, make(key, function), replace=replace)
            return function

        return decorate

    def add_library(self, library: str, names: Callable[[], Iterable[str]], make: Callable[[str], Entry]) -> None:
        """Make every ``library/Name`` known.

        ``names`` returns the allowed parts after the slash, ``make`` the entry of a full name, without importing an optional library.
        """
        self._libraries[library] = (names, make)

    def remove(self, name: str) -> None:
        """Remove ``name``. Raises UnknownNameError if it is not registered."""
        self[name]
        self._entries.pop(name, None)
        self._unlisted.pop(name, None)

    @property
    def libraries(self) -> list[str]:
        """The libraries whose names are known as ``library/Name``."""
        return list(self._libraries)

    def names_of(self, library: str) -> list[str]:
        """Return all ``library/Name`` of a library. Raises UnknownNameError for an unknown library."""
        check_name(f"library of {self.kind}s", library, self._libraries)
        return [f"{library}/{name}" for name in self._libraries[library][0]()]

    @property
    def unlisted(self) -> dict[str, Entry]:
        """The names that need an optional library, and their entries."""
        return dict(self._unlisted)

    def unknown(self, name: object, suffix: str = "") -> UnknownNameError:
        """Return the error for an unknown name, with the nearest match among its library's names, or among all others.

        ``suffix`` is an optional ending that every name may have.
        """
        library = str(name).partition("/")[0]
        own = "/" not in str(name) or library not in self._libraries
        known = [*self._entries, *self._unlisted] if own else self.names_of(library)
        versions = [each + suffix for each in known if suffix]
        return UnknownNameError(self.kind, name, [*known, *versions, *(f"{each}/..." for each in self._libraries if own)])

    def __getitem__(self, name: str) -> Entry:
        if name not in self:
            raise self.unknown(name)
        for entries in (self._entries, self._unlisted):
            if name in entries:
                return entries[name]
        return self._libraries[name.partition("/")[0]][1](name)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        if name in self._entries or name in self._unlisted:
            return True
        library, slash, local = name.partition("/")
        return bool(slash) and library in self._libraries and local in self._libraries[library][0]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
