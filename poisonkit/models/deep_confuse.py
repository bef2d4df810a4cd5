"""The classifiers of the Deep Confuse experiments: the paper's, and the released code's."""

import torch
from torch import Tensor, nn

from poisonkit.models.vgg import SmallImageVGG


class TwoLayerConvNet(nn.Module):
    """Two 3x3 convolutions with 20 and 50 channels, then 500 hidden units (section 5, MNIST).

    The paper does not mention pooling here; each convolution is followed by 2x2
    max-pooling, as its other classifier's are. Nor does it mention batch normalisation,
    which its code has everywhere: ``normalised`` adds it to all layers but the last.
    ``released`` is the code's form: 5x5 convolutions without padding, average pooling,
    and batch normalisation of the logits too.

    The parts are named ``convolutions``, ``hidden`` (the last hidden layer, after
    ReLU) and ``linear``.

    Parameters
    ----------
    width : channels of the first convolution; all others keep their ratio to it (10 is
        the paper's small network, 40 its large one).
    """

    def __init__(
        self,
        *,
        classes: int,
        channels: int = 1,
        image_size: tuple[int, int] = (28, 28),
        width: int = 20,
        normalised: bool = False,
        released: bool = False,
    ) -> None:
        super().__init__()
        wide, units = width * 5 // 2, width * 25
        self.convolutions = nn.Sequential(
            *self._stage(channels, width, normalised, released),
            *self._stage(width, wide, normalised, released),
        )
        with torch.no_grad():
            seen = self.convolutions.eval()(torch.zeros(1, channels, *image_size))
        self.convolutions.train()
        norm = [nn.BatchNorm1d(units)] if normalised or released else []
        self.hidden = nn.Sequential(nn.Linear(seen.numel(), units), *norm, nn.ReLU(inplace=True))
        last = [nn.BatchNorm1d(classes)] if released else []
        self.linear = nn.Sequential(nn.Linear(units, classes), *last)

    @staticmethod
    def _stage(
        channels_in: int, channels: int, normalised: bool, released: bool
    ) -> list[nn.Module]:
        norm = [nn.BatchNorm2d(channels)] if normalised or released else []
        if released:
            convolution, pool = nn.Conv2d(channels_in, channels, 5), nn.AvgPool2d(2)
            return [convolution, *norm, nn.ReLU(inplace=True), pool]
        convolution = nn.Conv2d(channels_in, channels, 3, padding=1)
        return [convolution, *norm, nn.ReLU(inplace=True), nn.MaxPool2d(2)]

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.hidden(torch.flatten(self.convolutions(x), 1)))


class FiveLayerConvNet(nn.Module):
    """Five 3x3 convolutions, each followed by 2x2 max-pooling (section 5, CIFAR-10, ImageNet).

    32, 64, 128, 128 and 128 channels; what is left of the image is averaged before
    the linear layer. ``normalised`` adds batch normalisation, which the paper does
    not mention and the released ImageNet code has.

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
