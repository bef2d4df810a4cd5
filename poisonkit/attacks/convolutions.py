"""Convolution, made to be differentiated twice on a GPU.

torch's second derivative of a convolution always computes a gradient by the weights that
convolves one gradient with another, kernels as large as the images, whether or not it is asked
for. Here only what is asked for is computed, each part by a convolution of the layer's own size.
On an H200 a meta-gradient of small networks, launched kernel by kernel, takes 1.0 to 1.4 times
as long with these (`benchmarks/deep_confuse.py`, `benchmarks/metapoison.py`; one round each).
What they save where the kernels are recorded, or large, has not been measured.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

_convolve = torch.ops.aten.convolution
_backward = torch.ops.aten.convolution_backward


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, how: tuple[object, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = how  # type: ignore[attr-defined]
        return _convolve(x, weight, None, *how)

    @staticmethod
    def backward(ctx, slope: Tensor):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        return *_ConvolveBackward.apply(slope, x, weight, ctx.how, ctx.needs_input_grad[:2]), None


class _ConvolveBackward(torch.autograd.Function):
    """The gradients by input and weight; each is linear in ``slope`` and in the other one."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, slope: Tensor, x: Tensor, weight: Tensor, how: tuple[object, ...], wanted
    ):
        ctx.save_for_backward(slope, x, weight)
        ctx.how = how
        ctx.set_materialize_grads(False)
        of_x, of_weight, _ = _backward(slope, x, weight, None, *how, [*wanted, False])
        return of_x, of_weight

    @staticmethod
    @once_differentiable
    def backward(ctx, by_x: Tensor | None, by_weight: Tensor | None):  # type: ignore[no-untyped-def]
        slope, x, weight = ctx.saved_tensors
        by_slope, by_input, by_kernel, *_ = ctx.needs_input_grad
        of_slope = of_x = of_weight = None
        if by_slope:
            parts = [_convolve(by_x, weight, None, *ctx.how)] if by_x is not None else []
            parts += [_convolve(x, by_weight, None, *ctx.how)] if by_weight is not None else []
            of_slope = sum(parts[1:], parts[0]) if parts else None
        if by_input and by_weight is not None:
            of_x = _backward(slope, x, by_weight, None, *ctx.how, [True, False, False])[0]
        if by_kernel and by_x is not None:
            of_weight = _backward(slope, by_x, weight, None, *ctx.how, [False, True, False])[1]
        return of_slope, of_x, of_weight, None, None


class Convolution(nn.Module):
    """A convolution with another's weight and bias."""

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = like.weight, like.bias
        step = [list(like.stride), list(like.padding), list(like.dilation)]
        self._how = (*step, False, [0, 0], like.groups)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [N, C, H, W]."""
        y: Tensor = _Convolve.apply(x, self.weight, self._how)
        return y if self.bias is None else y + self.bias[:, None, None]


def use_asked_derivatives(network: nn.Module) -> None:
    """Let each convolution compute only the second derivatives that are asked for.

    Names of parameters stay as they are. Convolutions that pad with other than zeros, or by a
    word, are left as they are.
    """
    for parent in [*network.modules()]:
        for name, module in parent.named_children():
            if type(module) is not nn.Conv2d or module.padding_mode != "zeros":
                continue
            if not isinstance(module.padding, str):
                setattr(parent, name, Convolution(module))
