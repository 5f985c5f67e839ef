"""Independent pieces of work, one after the other or in several processes of one thread each."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

Each = Callable[[Callable[..., Any], Iterable[Any]], Iterator[Any]]

GUARD = 'In a script, put everything that starts workers into a function, and call it below the line `if __name__ == "__main__":`.'


def is_guarded() -> bool:
    """Return whether workers can start: the main program is none that they would run again, or it compares ``__name__``."""
    path = getattr(sys.modules["__main__"], "__file__", None)
    if path == "<stdin>":  # a worker would look for a file of that name
        return False
    if not (path and path.endswith(".py") and os.path.isfile(path)):
        return True
    return re.search(rb"\b__name__\s*==|==\s*__name__\b", Path(path).read_bytes()) is not None


def check_guard() -> None:
    """Raise RuntimeError in a script that workers would run again: it never compares ``__name__``, or a worker is running it now."""
    check_begun()
    if not is_guarded():
        raise _unguarded()


def check_begun() -> None:
    """Raise RuntimeError in a worker that is still importing the main script: work there would repeat its caller's, or wait for it."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise _unguarded()


def _unguarded() -> RuntimeError:
    path = getattr(sys.modules["__main__"], "__file__", None) or sys.argv[0]  # in a worker, its caller's
    return RuntimeError(f"each worker imports {path!r}, and would start workers of its own. {GUARD}")


@contextmanager
def pool(processes: int, setup: Callable[..., None] | None = None, *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """Yield an executor of spawned processes with one thread each; on an error or Ctrl-C, or if this process dies, they end at once.

    Args:
        processes: the most that run at once.
        setup: is called with ``arguments`` in each of them first.

    Raises:
        RuntimeError: in a script without ``if __name__ == "__main__":``, which every process would run again.
    """
    check_guard()
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin, (setup, arguments)) as executor:
        try:
            yield executor
        except BaseException:
            workers = list((executor._processes or {}).values())  # Python has executor.terminate_workers() from 3.14 on
            executor.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.terminate()
            raise


def _begin(setup: Callable[..., None] | None, arguments: tuple) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the caller ends its own
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if setup is not None:
        setup(*arguments)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()  # type: ignore[union-attr]
    os._exit(1)


@contextmanager
def side_by_side(processes: int) -> Iterator[Each]:
    """Yield a ``map(function, items)``: with one process Python's own, else one whose items are begun at once, in processes of one thread.

    Functions, items and results are pickled; models and methods are those that the package registers. Raises as :func:`pool` does.
    """
    if processes == 1:
        yield map
        return
    with pool(processes) as executor:
        yield executor.map
