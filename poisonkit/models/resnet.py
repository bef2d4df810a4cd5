"""Residual networks for small images, in both orders of normalisation and convolution.

The post-activation form follows He et al., *Deep Residual Learning for Image
Recognition* (2016), section 4.2; the pre-activation form is the one that the
Spectral Signatures experiments use.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _convolution(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)


def _widen(x: Tensor, channels: int, *, before: int) -> Tensor:
    """Append zero channels so that a parameter-free shortcut fits a wider unit."""
    return F.pad(x, (0, 0, 0, 0, before, channels - x.shape[1] - before))


class ResidualUnit(nn.Module):
    """conv-BN-ReLU-conv-BN, added to the shortcut, then ReLU.

    Where stride or channels change, the shortcut skips pixels and appends zeros, or is
    ``projected``: a 1x1 convolution and its normalisation.
    """

    def __init__(
        self, channels_in: int, channels: int, stride: int, *, projected: bool = False
    ) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride
        self.shortcut: nn.Module | None = None
        if projected and (stride > 1 or channels_in != channels):
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels),
            )
        self.conv1 = _convolution(channels_in, channels, stride)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = _convolution(channels, channels)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)), inplace=True)
        out = self.norm2(self.conv2(out))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.stride > 1 or x.shape[1] != self.channels:
            x = _widen(x[:, :, :: self.stride, :: self.stride], self.channels, before=0)
        return F.relu(out + x, inplace=True)


class PreactivationUnit(nn.Module):
    """BN-leaky ReLU-conv, twice, added to the untouched residual stream.

    ``activate_shortcut`` sends the activated input down the shortcut as well,
    which the first unit of such a network does.
    """

    negative_slope = 0.1

    def __init__(
        self, channels_in: int, channels: int, stride: int, *, activate_shortcut: bool = False
    ) -> None:
        super().__init__()
        self.channels, self.stride, self.activate_shortcut = channels, stride, activate_shortcut
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = _convolution(channels_in, channels, stride)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = _convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        active = F.leaky_relu(self.norm1(x), self.negative_slope, inplace=True)
        shortcut = active if self.activate_shortcut else x
        out = self.conv1(active)
        out = self.conv2(F.leaky_relu(self.norm2(out), self.negative_slope, inplace=True))
        if self.stride > 1:
            shortcut = F.avg_pool2d(shortcut, self.stride, ceil_mode=True)
        if shortcut.shape[1] != self.channels:
            extra = self.channels - shortcut.shape[1]
            shortcut = _widen(shortcut, self.channels, before=extra // 2)
        return out + shortcut


class SmallImageResNet(nn.Module):
    """Three groups of residual units on a 3x3 stem, average pooling and one linear layer.

    The parts are named ``stem``, ``group1.0`` ... ``group3.4`` (unit k of a group,
    counted from 0), ``pool`` and ``linear``; any of them can be tapped.

    Parameters
    ----------
    units : units in each group; the depth is ``6 * units + 2``.
    width : channels of the first group; the others have twice and four times as many.
    preactivation : which of the two forms to build.
    released : as MetaPoison's code has the first form: projected shortcuts, and initial
        weights after Glorot and Bengio (2010).
    """

    def __init__(
        self,
        *,
        units: int,
        classes: int,
        channels: int = 3,
        width: int = 16,
        preactivation: bool = False,
        released: bool = False,
    ) -> None:
        super().__init__()
        self.preactivation, self.released = preactivation, released
        self.stem = _convolution(channels, width)
        self.stem_norm = nn.Identity() if preactivation else nn.BatchNorm2d(width)
        self.group1 = self._group(width, width, 1, units)
        self.group2 = self._group(width, 2 * width, 2, units)
        self.group3 = self._group(2 * width, 4 * width, 2, units)
        self.last_norm = nn.BatchNorm2d(4 * width) if preactivation else nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4 * width, classes)
        for module in self.modules():
            if released and isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _group(self, channels_in: int, channels: int, stride: int, units: int) -> nn.Sequential:
        group = nn.Sequential()
        for index in range(units):
            first = index == 0
            source, step = (channels_in, stride) if first else (channels, 1)
            group.append(
                PreactivationUnit(source, channels, step, activate_shortcut=first and stride == 1)
                if self.preactivation
                else ResidualUnit(source, channels, step, projected=self.released)
            )
        return group

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(x))
        if not self.preactivation:
            x = F.relu(x, inplace=True)
        x = self.group3(self.group2(self.group1(x)))
        if self.preactivation:
            x = F.leaky_relu(self.last_norm(x), PreactivationUnit.negative_slope, inplace=True)
        return self.linear(torch.flatten(self.pool(x), 1))
