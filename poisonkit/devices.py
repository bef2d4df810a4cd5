"""The device that computes: its choice, its name, the memory it took."""

import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from poisonkit.errors import PoisonkitError, unknown

_turn = 0


def take_turn(number: int) -> None:
    """Let ``cuda`` without an index mean another GPU in each worker, where there are several."""
    global _turn
    _turn = number


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """Return the device of that name; ``auto`` is CUDA where it is to be had, else the CPU.

    ``cuda`` is the first GPU; in a worker process, the one whose turn it is.
    """
    name = str(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown("device", name, ("auto", "cpu", "cuda", "cuda:INDEX")) from None
    if device.type not in ("cpu", "cuda"):
        raise unknown("device", name, ("auto", "cpu", "cuda", "cuda:INDEX"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise PoisonkitError(f"device {name!r} was asked for, but torch finds no CUDA device here")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise PoisonkitError(f"device {name!r}: there are {torch.cuda.device_count()} CUDA devices")
    if device == torch.device("cuda") and _turn % torch.cuda.device_count():
        return torch.device("cuda", _turn % torch.cuda.device_count())
    return device


@contextmanager
def repeatable_kernels(*, tf32: bool = False) -> Iterator[None]:
    """Let cuDNN choose kernels that repeat to the last bit.

    What is asked for in float32 is computed in full float32, or, with ``tf32``, from factors
    of 10 bits where a GPU has units for it. CPUs compute in full float32 in any case.
    """
    cudnn = torch.backends.cudnn
    precision = "tf32" if tf32 else "ieee"
    # Not by cudnn.flags: it reads a switch that torch refuses to read once a caller has set
    # the newer ones.
    wanted = (
        (torch.backends.cuda.matmul, "fp32_precision", precision),
        (cudnn.conv, "fp32_precision", precision),  # type: ignore[attr-defined]
        (cudnn, "enabled", True),
        (cudnn, "benchmark", False),
        (cudnn, "deterministic", True),
    )
    before = [getattr(switches, name) for switches, name, _ in wanted]
    try:
        for switches, name, value in wanted:
            setattr(switches, name, value)
        yield
    finally:
        for (switches, name, _), value in zip(wanted, before, strict=True):
            setattr(switches, name, value)


@contextmanager
def reproducible(device: torch.device, *, tf32: bool = False) -> Iterator[None]:
    """Leave the caller's random state alone, and let :func:`repeatable_kernels` compute."""
    # Seeding touches every CUDA device, not only the one in use.
    devices = range(torch.cuda.device_count()) if device.type == "cuda" else ()
    with torch.random.fork_rng(devices=devices), repeatable_kernels(tf32=tf32):
        yield


def seed_device(device: torch.device, seed: int) -> None:
    """Seed what is drawn on a device without a generator; a CPU's seed leaves GPUs alone."""
    if device.type == "cuda":
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device is a GPU that computes in bfloat16 by itself."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def name_of(device: torch.device) -> str:
    """Return a device's model name, as far as the system tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_memory_mib(device: torch.device) -> int:
    """Return the most memory that this process has held, on the device that computes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)
