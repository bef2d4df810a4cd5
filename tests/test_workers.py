"""Worker processes compute what they are given, and do not outlive who gave it to them."""

import atexit
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from operator import attrgetter
from pathlib import Path

import pytest
import torch

from poisonkit import devices, provenance, workers
from poisonkit.devices import choose_device
from poisonkit.workers import process_pool, threads_of, usable_cores

SCRIPT = """
import os, sys, time
from pathlib import Path
from poisonkit.workers import process_pool

def work(folder):
    Path(folder, str(os.getpid())).touch()
    time.sleep(600)

if __name__ == "__main__":
    with process_pool(2) as pool:
        list(pool.map(work, [sys.argv[1]] * 2))
"""


def test_a_pool_computes_in_processes_of_its_own() -> None:
    with process_pool(2) as pool:
        found = list(pool.map(abs, [-1, 2, -3]))
        process = pool.submit(os.getpid).result()
    assert found == [1, 2, 3]
    assert process != os.getpid()


def test_a_worker_notes_the_commit_it_was_started_from() -> None:
    """What is committed while it computes is not what it computed with."""
    with process_pool(1) as pool:
        assert pool.submit(_asked_before).result() == 1


def _asked_before() -> int:
    return provenance.describe.cache_info().currsize


def test_every_experiment_can_be_handed_to_a_worker() -> None:
    """`--workers 2` sends it there whole, its functions included."""
    from poisonkit.experiments import EXPERIMENTS  # here, for workers import this module, too

    with process_pool(1) as pool:
        received = list(pool.map(attrgetter("name"), EXPERIMENTS.values()))
    assert received == list(EXPERIMENTS)


def test_workers_share_the_cores_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = usable_cores()
    assert threads_of(1) == cores
    assert threads_of(cores + 1) == 1
    assert all(workers * (threads_of(workers) or 0) <= cores for workers in range(2, cores + 1))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_of(2) is None


def test_workers_take_turns_among_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And only if they are not told which to use."""
    with process_pool(3) as pool:
        found = list(pool.map(turn, [tmp_path] * 3))
    assert sorted(found) == [0, 1, 2]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = []
    for number in found:
        monkeypatch.setattr(devices, "_turn", number)
        assert choose_device("cuda") == choose_device("auto")
        assert choose_device("cuda:0") == torch.device("cuda:0")
        assert choose_device("cpu") == torch.device("cpu")
        chosen.append(choose_device("auto").index or 0)
    assert chosen == [number % 2 for number in found]


def turn(place: Path) -> int:
    """Tell whose turn a process has, once all three of them have begun."""
    (place / str(os.getpid())).touch()
    wait_for(lambda: len(list(place.iterdir())) == 3)
    return devices._turn


def test_an_error_ends_the_work_beside_it(tmp_path: Path) -> None:
    started, done = tmp_path / "started", tmp_path / "done"

    def fail_beside_it() -> None:
        with process_pool(2) as pool:
            pool.submit(work, started, done)
            wait_for(started.exists)
            pool.submit(divmod, 1, 0).result()

    with pytest.raises(ZeroDivisionError):
        fail_beside_it()
    assert started.exists()
    assert not done.exists()


@pytest.mark.skipif(os.name != "posix", reason="ignores a signal")
@pytest.mark.parametrize("fails", [True, False])
def test_a_process_that_does_not_end_is_killed(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "GRACE", 0.5)
    place = tmp_path / "process"

    def compute() -> None:
        with process_pool(1) as pool:
            pool.submit(stay, place).result()
            if fails:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        compute()
    assert not running(int(place.read_text()))


def stay(place: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    atexit.register(time.sleep, 600)
    place.write_text(str(os.getpid()))


def wait_for(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.1)


def work(started: Path, done: Path) -> None:
    started.touch()
    time.sleep(60)
    done.touch()


def running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # A process that has ended and that nobody has asked about is still listed.
    state = Path(f"/proc/{process}/stat")
    return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(os.name != "posix", reason="kills a process by a signal")
def test_workers_end_when_their_parent_is_killed_in_the_midst_of_a_task(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    started = tmp_path / "started"
    started.mkdir()
    parent = subprocess.Popen([sys.executable, str(script), str(started)])
    wait_for(lambda: len(list(started.iterdir())) == 2)
    processes = [int(path.name) for path in started.iterdir()]
    assert len(processes) == 2
    assert all(running(process) for process in processes)
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(running(process) for process in processes), seconds=30)
    assert not any(running(process) for process in processes)


@pytest.mark.parametrize("told", [False, True])
def test_a_worker_computes_with_its_share_of_the_cores(
    told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = usable_cores()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told:
        monkeypatch.setenv("OMP_NUM_THREADS", str(cores))
    with process_pool(2 * cores) as pool:
        assert pool.submit(torch.get_num_threads).result() == (cores if told else 1)
