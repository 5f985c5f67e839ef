"""Progress bars with the time left: on the terminal's error stream, and in a notebook as plain output, which is not shown as an error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ClassVar

from tqdm import tqdm


class Progress(tqdm):
    """A bar of :class:`tqdm.tqdm`. In a kernel it is drawn twice a second, since every drawing is a message to the browser."""

    #: In a process that works for another: takes the steps of every bar, none of which is drawn.
    sink: ClassVar[Callable[[float], None] | None] = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if type(self).sink is not None:
            type(self).sink(options.get("initial", 0))
            options["disable"] = True
        if type(sys.stdout).__module__.startswith("ipykernel"):
            options = {"file": sys.stdout, "mininterval": 0.5, "ncols": 100, **options}
        super().__init__(*arguments, **options)

    def update(self, n: float | None = 1) -> bool | None:
        """Advance the bar by ``n`` steps."""
        if type(self).sink is not None:
            type(self).sink(n or 0)
        return super().update(n)
