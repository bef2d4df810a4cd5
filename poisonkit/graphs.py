"""CUDA graphs: a step of many small kernels, recorded once and then launched as one."""

import gc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

#: Runs before the recording, in which libraries set themselves up and optimisers make their state.
WARM_UP = 3


class Recorded:
    """A step that changes its state in place; on CUDA it is recorded and replayed.

    The first runs with inputs of some shape are ordinary ones. Then the step's kernels
    are recorded, and each further run copies the inputs to where the recording reads them
    and launches them all at once. On a CPU every run is an ordinary one. A CPU would spend
    more time on launching the kernels of a small network than a large GPU on computing them.

    Parameters
    ----------
    work : takes tensors and returns tensors. Everything else that it changes it must
        change in place, and nothing may depend on a tensor's values in Python.
    """

    def __init__(self, work: Callable[..., tuple[Tensor, ...]]) -> None:
        self._work = work
        self._runs: Counter[object] = Counter()
        self._graphs: dict[object, _Graph] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the step once and return what it returns, in tensors of the caller's own."""
        if inputs[0].device.type != "cuda":
            return self._work(*inputs)
        # Streams and recordings are those of the current device, whichever the tensors are on.
        with torch.cuda.device(inputs[0].device):
            return self._on_cuda(inputs)

    def _on_cuda(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        shapes = tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in inputs)
        if self._runs[shapes] < WARM_UP:
            self._runs[shapes] += 1
            return self._run_aside(inputs)
        if shapes not in self._graphs:
            self._graphs[shapes] = _Graph(self._work, inputs, _aside(inputs[0].device))
        return self._graphs[shapes].replay(inputs)

    def _run_aside(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Run on another stream, as CUDA asks of what is recorded later."""
        here, aside = torch.cuda.current_stream(), _aside(inputs[0].device)
        aside.wait_stream(here)
        with torch.cuda.stream(aside), warnings.catch_warnings():
            # Of an optimiser made to be recorded that runs without: it is about to be.
            warnings.filterwarnings("ignore", message=".*capturable=True.*")
            results = self._work(*inputs)
        here.wait_stream(aside)
        for result in results:
            result.record_stream(here)
        return results


@cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    """Return the stream for what is or will be recorded on a device.

    One for all: each stream has a workspace of its own in cuBLAS.
    """
    return torch.cuda.Stream(device)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collect garbage now, and none within: a graph destroyed while another is recorded ends it."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Graph:
    def __init__(
        self,
        work: Callable[..., tuple[Tensor, ...]],
        inputs: tuple[Tensor, ...],
        stream: torch.cuda.Stream,
    ) -> None:
        self._inputs = [tensor.clone() for tensor in inputs]
        self._graph = torch.cuda.CUDAGraph()
        # By default torch records all graphs on one stream, of the first one's device.
        with _no_collection(), torch.cuda.graph(self._graph, stream=stream):
            self._results = work(*self._inputs)

    def replay(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for place, tensor in zip(self._inputs, inputs, strict=True):
            place.copy_(tensor)
        self._graph.replay()
        return tuple(result.clone() for result in self._results)
