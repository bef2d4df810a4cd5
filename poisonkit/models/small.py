"""Small convolutional networks: for digits on a laptop's CPU, and for CIFAR-10 on one."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _block(channels_in: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


class SmallConvNet(nn.Module):
    """Three 3x3 convolutions with batch normalisation, pooling, and two linear layers.

    The parts are named ``block1`` ... ``block3``, ``hidden`` (the last
    representation, after ReLU) and ``linear``.
    """

    dropout_before = ("block2", "block3")

    def __init__(
        self,
        *,
        classes: int,
        channels: int = 1,
        image_size: tuple[int, int] = (16, 16),
        width: int = 16,
    ) -> None:
        super().__init__()
        self.block1 = _block(channels, width)
        self.block2 = _block(width, 2 * width)
        self.block3 = _block(2 * width, 4 * width)
        pixels = (image_size[0] // 4) * (image_size[1] // 4)
        self.hidden = nn.Sequential(nn.Linear(4 * width * pixels, 4 * width), nn.ReLU())
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.block1(x), 2)
        x = F.max_pool2d(self.block2(x), 2)
        x = self.block3(x)
        return self.linear(self.hidden(torch.flatten(x, 1)))


class CompactConvNet(nn.Module):
    """Six 3x3 convolutions in three stages, made for training on a CPU.

    Each 2x2 block of pixels becomes the channels of one before the first convolution,
    so that all of them work at half the images' resolution or less. Every stage ends
    in max-pooling and has twice the channels of the one before.

    The parts are named ``stage1.0`` ... ``stage3.1`` (convolution k of a stage), each
    read after its ReLU, ``hidden`` (the last representation) and ``linear``.

    Parameters
    ----------
    image_size : height and width, even and at least 16.
    width : channels of the first stage.
    """

    dropout_before = ("stage1.1", "stage2.1", "stage3.1")

    def __init__(
        self,
        *,
        classes: int,
        channels: int = 3,
        image_size: tuple[int, int] = (32, 32),
        width: int = 32,
    ) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(_block(4 * channels, width), _block(width, width))
        self.stage2 = nn.Sequential(_block(width, 2 * width), _block(2 * width, 2 * width))
        self.stage3 = nn.Sequential(_block(2 * width, 4 * width), _block(4 * width, 4 * width))
        pixels = (image_size[0] // 16) * (image_size[1] // 16)
        self.hidden = nn.Sequential(nn.Linear(4 * width * pixels, 4 * width), nn.ReLU())
        self.linear = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_unshuffle(x, 2)
        for stage in (self.stage1, self.stage2, self.stage3):
            x = F.max_pool2d(stage(x), 2)
        return self.linear(self.hidden(torch.flatten(x, 1)))


class FiveBlockConvNet(nn.Module):
    """Five 3x3 convolutions with batch normalisation, each pooled 2x2, and a linear layer.

    The network that MetaPoison's released code trains by default. The parts are named
    ``block1`` ... ``block5`` (each read before its pooling), ``pool`` (the last
    representation) and ``linear``.

    Parameters
    ----------
    width : channels of the first block; the next two have twice, the last two four times as many.
    """

    def __init__(
        self,
        *,
        classes: int,
        channels: int = 3,
        image_size: tuple[int, int] = (32, 32),
        width: int = 16,
    ) -> None:
        super().__init__()
        for number, factor in enumerate((1, 2, 2, 4, 4), start=1):
            self.add_module(f"block{number}", _block(channels, factor * width))
            channels = factor * width
        self.pool = nn.Flatten()
        pixels = -(-image_size[0] // 32) * -(-image_size[1] // 32)
        self.linear = nn.Linear(channels * pixels, classes)

    def forward(self, x: Tensor) -> Tensor:
        for number in range(1, 6):
            x = F.max_pool2d(self.get_submodule(f"block{number}")(x), 2, ceil_mode=True)
        return self.linear(self.pool(x))
