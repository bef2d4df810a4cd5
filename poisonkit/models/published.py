"""torchvision's ResNets and DenseNets, with a first stage for small images.

As published, the first convolution and the pooling after it reduce an image to a quarter
of its side, which leaves of 32 pixels a single one in the end. Here the first convolution
is 3x3 of stride 1 and nothing is pooled, as CIFAR-10 classifiers of these kinds have it.
"""

from collections.abc import Callable

from torch import nn
from torchvision.models import DenseNet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

#: Kind of unit, and units in each of the four stages.
RESNETS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}
#: Layers in each of the blocks.
DENSENETS: dict[str, tuple[int, ...]] = {
    "densenet22": (3, 3, 3),
    "densenet121": (6, 12, 24, 16),
}


def _first_convolution(channels: int, wide: int) -> nn.Conv2d:
    return nn.Conv2d(channels, wide, 3, padding=1, bias=False)


def _resnet(name: str) -> Callable[..., nn.Module]:
    def build(*, classes: int, channels: int, image_size: tuple[int, int]) -> nn.Module:
        unit, units = RESNETS[name]
        network = ResNet(unit, units, num_classes=classes)
        network.conv1 = _first_convolution(channels, 64)
        network.maxpool = nn.Identity()
        return network

    return build


def _densenet(name: str) -> Callable[..., nn.Module]:
    def build(
        *, classes: int, channels: int, image_size: tuple[int, int], width: int = 64
    ) -> nn.Module:
        network = DenseNet(
            growth_rate=width // 2,
            block_config=DENSENETS[name],
            num_init_features=width,
            num_classes=classes,
        )
        network.features.conv0 = _first_convolution(channels, width)
        network.features.pool0 = nn.Identity()
        return network

    return build


#: Name to factory; a DenseNet's width is the channels of its first convolution, twice its
#: growth rate.
PUBLISHED: dict[str, Callable[..., nn.Module]] = {
    **{name: _resnet(name) for name in RESNETS},
    **{name: _densenet(name) for name in DENSENETS},
}
