"""Progress bars with the time left: on the terminal's error stream, and in a notebook as plain output, which is not shown as an error."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


class Progress(tqdm):
    """A bar of :class:`tqdm.tqdm`. In a kernel it is drawn twice a second, since every drawing is a message to the browser."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if type(sys.stdout).__module__.startswith("ipykernel"):
            options = {"file": sys.stdout, "mininterval": 0.5, "ncols": 100, **options}
        super().__init__(*arguments, **options)
