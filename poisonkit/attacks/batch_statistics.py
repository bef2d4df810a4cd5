"""Batch normalisation by the batch at hand, made to be differentiated twice.

torch's second derivative of batch normalisation is put together from many operations over
whole feature maps. In closed form it is a combination of three of them with one coefficient
a channel each (`benchmarks/metapoison.py` and `benchmarks/deep_confuse.py` compare the two).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

#: Mean and variance of each channel, by the name of the part that normalises by them.
Averages = dict[str, tuple[Tensor, Tensor]]

_backward = torch.ops.aten.native_batch_norm_backward


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, scale = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.eps = eps  # type: ignore[attr-defined]
        return y

    @staticmethod
    def backward(ctx, slope: Tensor):  # type: ignore[no-untyped-def]
        x, weight, mean, scale = ctx.saved_tensors
        return *_NormaliseBackward.apply(slope, x, weight, mean, scale, ctx.eps), None


class _NormaliseBackward(torch.autograd.Function):
    """The gradients by input, weight and bias; their own gradient takes ``scale`` from the input.

    With n values a channel, x^ = (x - mean) * scale and P(v) = v - mean(v) - x^ mean(v x^),
    the gradient by the input is ``weight * scale * P(slope)``. It depends on the input
    through ``scale`` (its derivative is ``-scale^2 x^ / n``) and x^ (``scale * P``).
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, slope: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float
    ):
        found = _backward(slope, x, weight, None, None, mean, scale, True, eps, [True] * 3)
        ctx.save_for_backward(slope, x, weight, mean, scale, *found[1:])
        ctx.eps = eps
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, by_x: Tensor, by_weight: Tensor, by_bias: Tensor):  # type: ignore[no-untyped-def]
        slope, x, weight, mean, scale, of_weight, of_bias = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        along = [0, *range(2, x.ndim)]
        # Means over a channel: of by_x, of by_x x^, of by_x slope, of slope, of slope x^.
        of_slope, sum_normal, sum_plain = _backward(
            by_x, x, weight, None, None, mean, scale, True, ctx.eps, [True] * 3
        )
        u, un, us = sum_plain / count, sum_normal / count, (by_x * slope).sum(along) / count
        s, sn = of_bias / count, of_weight / count
        k, p = weight * scale.square(), by_weight * scale
        overlap = us - u * s - un * sn
        normal = -k * (overlap - 2 * un * sn) - p * sn
        constant = k * (sn * u + un * s) - p * s

        def channel(value: Tensor) -> Tensor:
            return value.view(1, -1, *[1] * (x.ndim - 2))

        of_x = torch.addcmul(channel(constant - normal * mean * scale), x, channel(normal * scale))
        of_x = of_x.addcmul_(by_x, channel(-k * sn)).addcmul_(slope, channel(p - k * un))
        of_slope = of_slope.addcmul_(x, channel(p)).add_(channel(by_bias - p * mean))
        return of_slope, of_x, count * scale * overlap, None, None, None


class BatchStatistics(nn.Module):
    """Batch normalisation that keeps no averages of its own, with another's weight and bias."""

    def __init__(self, like: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = like.weight, like.bias, like.eps
        self.momentum = 0.1 if like.momentum is None else like.momentum
        self.averages: tuple[Tensor, Tensor] | None = None
        self.moved: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [N, C, ...] over all but the channels, or by averages."""
        if self.averages is not None:
            return F.batch_norm(x, *self.averages, self.weight, self.bias, eps=self.eps)
        if self.moved is not None:
            with torch.no_grad():
                var, mean = torch.var_mean(x, [0, *range(2, x.ndim)])
                for average, value in zip(self.moved, (mean, var), strict=True):
                    average.lerp_(value, self.momentum)
        found: Tensor = _Normalise.apply(x, self.weight, self.bias, self.eps)
        return found


_OWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def use_batch_statistics(network: nn.Module) -> None:
    """Normalise by the batch at hand, and write no running averages.

    A network whose steps are unrolled is never evaluated, and pseudo-updates would
    write into its averages. Names of parameters stay as they are. What is more than torch's own
    normalisation, such as one with its activation in the same part, remains itself.
    """
    network.train()
    for parent in [*network.modules()]:
        for name, module in parent.named_children():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                if module.affine and type(module) in _OWN:
                    setattr(parent, name, BatchStatistics(module))
                else:
                    module.track_running_stats = False


@contextmanager
def normalising_by(network: nn.Module, averages: Averages) -> Iterator[None]:
    """Let parts of a network normalise by these averages for as long as the context lasts."""
    with _having(network, "averages", averages):
        yield


@contextmanager
def moving(network: nn.Module, averages: Averages) -> Iterator[None]:
    """Move averages towards each batch that a network normalises, as torch's own would be."""
    with _having(network, "moved", averages):
        yield


@contextmanager
def _having(network: nn.Module, attribute: str, averages: Averages) -> Iterator[None]:
    parts = {name: network.get_submodule(name) for name in averages}
    for name, part in parts.items():
        setattr(part, attribute, averages[name])
    try:
        yield
    finally:
        for part in parts.values():
            setattr(part, attribute, None)
