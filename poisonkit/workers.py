"""Worker processes on this machine that end when the process that started them does."""

import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized

import torch

from poisonkit import devices, provenance

GRACE = 10.0  # seconds that a worker has to end by itself


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
    """Give an executor of so many processes, each with a Python and a share of the cores.

    Where there are several GPUs, the processes take turns among them, unless told which to use.

    A worker of the standard library's computes on until its task is done, an hour perhaps, and
    keeps its locks, though its parent is killed or another task has failed. These end at once:
    with their parent, and when an error or Ctrl-C leaves the context. What they had finished or
    checkpointed is in the store. Nothing makes leaving the context take longer than `GRACE`
    seconds, so all results must have been waited for inside of it.
    """
    others = set(active_children())
    # A forked process cannot use CUDA, and a forked OpenMP pool can hang.
    spawned = get_context("spawn")
    pool = ProcessPoolExecutor(
        workers,
        mp_context=spawned,
        initializer=_begin,
        initargs=(threads_of(workers), spawned.Value("i", 0)),
    )
    failed = True
    try:
        yield pool
        failed = False
    finally:
        processes = set(active_children()) - others
        # To wait for the executor would be to wait without end for a process that hangs.
        pool.shutdown(wait=False, cancel_futures=True)
        _end(processes, at_once=failed)


def _end(processes: Iterable[BaseProcess], *, at_once: bool) -> None:
    """Wait for the processes to end, or tell them to; kill those that have not after `GRACE`.

    One may hang while its interpreter ends, or a task may handle the signal that tells it to.
    """
    limit = time.monotonic() + GRACE
    try:
        for process in processes if at_once else ():
            process.terminate()
        for process in processes:
            process.join(max(0.0, limit - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def _begin(threads: int | None, begun: "Synchronized[int]") -> None:
    """Take a share of the cores, note the commit of the code, and end with the parent."""
    if threads is not None:
        torch.set_num_threads(threads)
    with begun.get_lock():
        devices.take_turn(begun.value)
        begun.value += 1
    provenance.describe()
    parent = parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
