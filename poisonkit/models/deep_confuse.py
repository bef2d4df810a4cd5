"""The classifiers of the Deep Confuse experiments: the paper's, and the released code's."""

from typing import Literal

import torch
from torch import Tensor, nn

from poisonkit.models.vgg import SmallImageVGG

#: Which layers are normalised over the batch: all, all but the last, none.
Normalised = Literal["all", "inner", "none"]


class TwoLayerConvNet(nn.Module):
    """Two 3x3 convolutions with 20 and 50 channels, then 500 hidden units (section 5, MNIST).

    The paper mentions neither pooling here nor batch normalisation. Its code pools averages and
    normalises everything, the logits too; its convolutions are 5x5, without padding.

    The parts are named ``convolutions``, ``hidden`` (the last hidden layer, after
    ReLU) and ``linear``.

    Parameters
    ----------
    width : channels of the first convolution; all others keep their ratio to it (10 is
        the paper's small network, 40 its large one).
    normalised : which layers are: none, all but the last (``inner``), all.
    kernel_size : 3, padded with zeros, or 5, without.
    pooling : of each 2x2 values the ``max`` or the ``average``.
    """

    def __init__(
        self,
        *,
        classes: int,
        channels: int = 1,
        image_size: tuple[int, int] = (28, 28),
        width: int = 20,
        normalised: Normalised = "none",
        kernel_size: Literal[3, 5] = 3,
        pooling: Literal["max", "average"] = "max",
    ) -> None:
        super().__init__()
        wide, units = width * 5 // 2, width * 25
        inner = normalised != "none"

        def stage(channels_in: int, channels: int) -> list[nn.Module]:
            padding = 1 if kernel_size == 3 else 0
            return [
                nn.Conv2d(channels_in, channels, kernel_size, padding=padding),
                *([nn.BatchNorm2d(channels)] if inner else []),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2) if pooling == "average" else nn.MaxPool2d(2),
            ]

        self.convolutions = nn.Sequential(*stage(channels, width), *stage(width, wide))
        with torch.no_grad():
            seen = self.convolutions.eval()(torch.zeros(1, channels, *image_size))
        self.convolutions.train()
        norm = [nn.BatchNorm1d(units)] if inner else []
        self.hidden = nn.Sequential(nn.Linear(seen.numel(), units), *norm, nn.ReLU(inplace=True))
        last = [nn.BatchNorm1d(classes)] if normalised == "all" else []
        self.linear = nn.Sequential(nn.Linear(units, classes), *last)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.hidden(torch.flatten(self.convolutions(x), 1)))


class FiveLayerConvNet(nn.Module):
    """Five 3x3 convolutions, each followed by 2x2 max-pooling (section 5, CIFAR-10, ImageNet).

    32, 64, 128, 128 and 128 channels; what is left of the image is averaged before
    the linear layer. The paper does not say which pooling; the released ImageNet code takes
    maxima. ``normalised`` adds batch normalisation, which the paper does not mention and
    that code has.

    The parts are named ``convolutions``, ``pool`` (the last hidden layer) and ``linear``.
    """

    def __init__(
        self, *, classes: int, channels: int = 3, width: int = 32, normalised: bool = False
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for factor in (1, 2, 4, 4, 4):
            layers.append(nn.Conv2d(channels, factor * width, 3, padding=1))
            layers += [nn.BatchNorm2d(factor * width)] if normalised else []
            layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
            channels = factor * width
        self.convolutions = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.flatten(self.pool(self.convolutions(x)), 1))


class BottleneckVGG(SmallImageVGG):
    """The released CIFAR-10 surrogate: a VGG squeezed through two dimensions before its logits."""

    def __init__(
        self, *, configuration: str = "vgg11", classes: int, channels: int = 3, width: int = 64
    ) -> None:
        super().__init__(
            configuration=configuration, classes=classes, channels=channels, width=width
        )
        last = self.linear.in_features
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(last, 2, 1))
        self.linear = nn.Linear(2, classes)
