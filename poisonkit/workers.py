"""Worker processes on this machine that end when the process that started them does."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_of(workers: int) -> int | None:
    """Return each worker's share of the cores; None if ``OMP_NUM_THREADS`` says how many."""
    if "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, usable_cores() // workers)


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Give an executor of so many processes, each with a Python of its own.

    A worker of the standard library's computes on until its task is done, an hour perhaps, and
    keeps its locks, though its parent is killed or another task has failed. These end at once:
    with their parent, and when an error or Ctrl-C leaves the context. What they had finished or
    checkpointed is in the store.
    """
    others = set(active_children())
    # A forked process cannot use CUDA, and a forked OpenMP pool can hang.
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_end_with_the_parent
    ) as pool:
        try:
            yield pool
        except BaseException:
            for process in set(active_children()) - others:
                process.terminate()
            raise


def _end_with_the_parent() -> None:
    parent = parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
