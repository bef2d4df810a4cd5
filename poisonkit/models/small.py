"""A small convolutional network, enough for digits on a laptop's CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SmallConvNet(nn.Module):
    """Three 3x3 convolutions with batch normalisation, pooling, and two linear layers.

    The parts are named ``block1`` ... ``block3``, ``hidden`` (the last
    representation, after ReLU) and ``linear``.
    """

    def __init__(
        self,
        *,
        classes: int,
        channels: int = 1,
        image_size: tuple[int, int] = (16, 16),
        width: int = 16,
    ) -> None:
        super().__init__()
        self.block1 = self._block(channels, width)
        self.block2 = self._block(width, 2 * width)
        self.block3 = self._block(2 * width, 4 * width)
        pixels = (image_size[0] // 4) * (image_size[1] // 4)
        self.hidden = nn.Sequential(nn.Linear(4 * width * pixels, 4 * width), nn.ReLU())
        self.linear = nn.Linear(4 * width, classes)

    @staticmethod
    def _block(channels_in: int, channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.block1(x), 2)
        x = F.max_pool2d(self.block2(x), 2)
        x = self.block3(x)
        return self.linear(self.hidden(torch.flatten(x, 1)))
