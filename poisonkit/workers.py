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
    """Return the threads that each of so many workers should compute with.

    One worker may do as it likes, as may all of them if ``OMP_NUM_THREADS`` says how many.
    """
    if workers == 1 or "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, usable_cores() // workers)


def process_pool(workers: int) -> ProcessPoolExecutor:
    """Return an executor of so many processes, each with a Python of its own.

    A worker of the standard library's, whose parent is killed, computes on until its task
    is done, an hour perhaps, and keeps its locks; these end at once. What they had finished
    or checkpointed is in the store.
    """
    # A forked process cannot use CUDA, and a forked OpenMP pool can hang.
    return ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_end_with_the_parent
    )


@contextmanager
def ending_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Give a pool whose workers end at once when an error, or Ctrl-C, leaves the context.

    The standard library would first let them finish what they are at.
    """
    others = set(active_children())
    with process_pool(workers) as pool:
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
