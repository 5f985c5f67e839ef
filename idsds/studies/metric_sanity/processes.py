"""Independent pieces of work, one after the other or in several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from idsds.evaluation.cluster import check_guard

Each = Callable[[Callable[..., Any], Iterable[Any]], Iterator[Any]]


@contextmanager
def side_by_side(processes: int) -> Iterator[Each]:
    """Yield a ``map(function, items)``: with one process Python's own, else one whose items are begun at once, in processes of one thread.

    Functions, items and results are pickled; models and methods are those that the package registers.

    Raises:
        RuntimeError: in a script without ``if __name__ == "__main__":``, which every process would run again.
    """
    if processes == 1:
        yield map
        return
    check_guard()
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        try:
            yield pool.map
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
