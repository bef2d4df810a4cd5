"""Published architectures for small images, all in the same named parts.

As published, most of these networks reduce an image to a quarter of its side before
their first stage, which leaves of 32 pixels a single one in the end. For images of up to 64
pixels the first convolution here is 3x3 of stride 1 and nothing is pooled after it, as CIFAR-10
classifiers of these kinds have it; for larger ones it is 7x7 of stride 2, and 3x3 maxima of
stride 2 follow, as in the published ResNets, DenseNets and DPN. Their units are torchvision's
and timm's, which take seconds to import: each function imports what it builds with.

The parts are named ``stem``, ``stage1`` ... (each ends before the image is made smaller;
``stage2.0`` is a unit of one), ``pool`` (the last representation [N, d]) and ``linear``.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

#: Channels of the first stage of a published network, to which ``width`` is relative.
FULL = 64
#: Pixels high and wide up to which the stem leaves an image its size.
SMALL_IMAGE = 64


def _network(
    stem: nn.Module, stages: Sequence[nn.Module], *, channels: int, classes: int
) -> nn.Sequential:
    """Put the parts together; ``channels`` are those that leave the last stage."""
    network = nn.Sequential(
        OrderedDict(
            stem=stem,
            **{f"stage{number}": stage for number, stage in enumerate(stages, 1)},
            pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            linear=nn.Linear(channels, classes),
        )
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _convolution(channels_in: int, channels: int, side: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, side, stride=stride, padding=side // 2, bias=False),
        nn.BatchNorm2d(channels),
    )


def _stem(channels_in: int, channels: int, image_size: tuple[int, int]) -> nn.Sequential:
    if max(image_size) <= SMALL_IMAGE:
        return nn.Sequential(*_convolution(channels_in, channels), nn.ReLU(inplace=True))
    return nn.Sequential(
        *_convolution(channels_in, channels, side=7, stride=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


# Residual networks ----------------------------------------------------------------------------

#: Makes a unit from channels in, channels of its first convolution, stride and shortcut.
Unit = Callable[[int, int, int, nn.Module | None], nn.Module]


def _basic(channels_in: int, channels: int, stride: int, shortcut: nn.Module | None) -> nn.Module:
    from torchvision.models.resnet import BasicBlock

    return BasicBlock(channels_in, channels, stride, shortcut)


def _bottleneck(
    channels_in: int,
    channels: int,
    stride: int,
    shortcut: nn.Module | None,
    *,
    groups: int = 1,
) -> nn.Module:
    from torchvision.models.resnet import Bottleneck

    return Bottleneck(channels_in, channels, stride, shortcut, groups=groups)


def _squeeze_and_excitation(
    channels_in: int, channels: int, stride: int, shortcut: nn.Module | None
) -> nn.Module:
    from timm.layers.squeeze_excite import SEModule
    from timm.models.resnet import BasicBlock as AttentiveBlock

    return AttentiveBlock(channels_in, channels, stride, shortcut, attn_layer=SEModule)


def _residual(
    unit: Unit,
    expansion: int,
    units: Sequence[int],
    *,
    classes: int,
    channels: int,
    image_size: tuple[int, int],
    width: int = FULL,
) -> nn.Module:
    stages = []
    wide = width
    for number, count in enumerate(units):
        stage = nn.Sequential()
        narrow = width * 2**number
        for index in range(count):
            stride = 2 if number and not index else 1
            fits = stride == 1 and wide == expansion * narrow
            shortcut = None if fits else _convolution(wide, expansion * narrow, 1, stride)
            stage.append(unit(wide, narrow, stride, shortcut))
            wide = expansion * narrow
        stages.append(stage)
    return _network(_stem(channels, width, image_size), stages, channels=wide, classes=classes)


#: The unit, how many times its first convolution's channels leave it, and units in each stage.
RESIDUAL: dict[str, tuple[Unit, int, tuple[int, ...]]] = {
    "resnet18": (_basic, 1, (2, 2, 2, 2)),
    "resnet50": (_bottleneck, 4, (3, 4, 6, 3)),
    "senet18": (_squeeze_and_excitation, 1, (2, 2, 2, 2)),
    "resnext29_2x64d": (partial(_bottleneck, groups=2), 4, (3, 3, 3)),
}


# Dual paths -----------------------------------------------------------------------------------

#: Of each stage of DPN92: channels of the residual path, by how many the dense path grows with
#: each unit, channels of each of the 32 groups of the unit's second convolution, and units.
DUAL_PATHS = ((256, 16, 3, 3), (512, 32, 6, 4), (1024, 24, 12, 20), (2048, 128, 24, 3))


def _dual_path(
    *, classes: int, channels: int, image_size: tuple[int, int], width: int = FULL
) -> nn.Module:
    from timm.models.dpn import DualPathBlock

    class Unit(DualPathBlock):
        """Its two paths in one tensor; timm returns them as a pair in earlier versions."""

        def forward(self, x: Tensor) -> Tensor:
            found: object = super().forward(x)
            if isinstance(found, tuple):
                found = torch.cat(found, 1)
            assert isinstance(found, Tensor)
            return found

    stages = []
    wide = width
    groups = max(1, 32 * width // FULL)
    for number, (*sizes, grouped, count) in enumerate(DUAL_PATHS):
        residual, grows = (max(1, size * width // FULL) for size in sizes)
        narrow = groups * grouped
        stage = nn.Sequential()
        for index in range(count):
            kind = "normal" if index else ("down" if number else "proj")
            stage.append(Unit(wide, narrow, narrow, residual, grows, groups, kind))
            wide = wide + grows if index else residual + 3 * grows
        stages.append(stage)
    stages[-1].append(nn.Sequential(nn.BatchNorm2d(wide), nn.ReLU(inplace=True)))
    return _network(_stem(channels, width, image_size), stages, channels=wide, classes=classes)


# Inverted residuals ---------------------------------------------------------------------------

#: MobileNetV2's (times its first convolution widens, channels, units) of each stage.
INVERTED = (
    ((1, 16, 1), (6, 24, 2)),
    ((6, 32, 3),),
    ((6, 64, 4), (6, 96, 3)),
    ((6, 160, 3), (6, 320, 1)),
)


def _inverted(
    *, classes: int, channels: int, image_size: tuple[int, int], width: int = FULL
) -> nn.Module:
    from torchvision.models.mobilenetv2 import InvertedResidual

    wide = width // 2
    stem = _stem(channels, wide, image_size)
    stages = []
    for number, groups in enumerate(INVERTED):
        stage = nn.Sequential()
        for times, size, count in groups:
            for _ in range(count):
                stride = 2 if number and not len(stage) else 1
                narrow = max(1, size * width // FULL)
                stage.append(InvertedResidual(wide, narrow, stride, times))
                wide = narrow
        stages.append(stage)
    last = 1280 * width // FULL
    stages[-1].append(nn.Sequential(*_convolution(wide, last, 1), nn.ReLU6(inplace=True)))
    return _network(stem, stages, channels=last, classes=classes)


# Inception ------------------------------------------------------------------------------------

#: GoogLeNet's channels of each unit's branches: 1x1; 3x3 after a narrower 1x1; a second such
#: pair; and 1x1 after pooling.
INCEPTION = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


def _inception(
    *, classes: int, channels: int, image_size: tuple[int, int], width: int = FULL
) -> nn.Module:
    from torchvision.models.googlenet import Inception

    wide = 192 * width // FULL
    stem = _stem(channels, wide, image_size)
    stages = []
    for number, units in enumerate(INCEPTION):
        stage = nn.Sequential()
        if number:
            stage.append(nn.MaxPool2d(3, stride=2, padding=1))
        for sizes in units:
            branches = [max(1, size * width // FULL) for size in sizes]
            stage.append(Inception(wide, *branches))
            wide = branches[0] + branches[2] + branches[4] + branches[5]
        stages.append(stage)
    return _network(stem, stages, channels=wide, classes=classes)


# Dense networks -------------------------------------------------------------------------------

#: Layers in each of the blocks.
DENSE: dict[str, tuple[int, ...]] = {
    "densenet22": (3, 3, 3),
    "densenet121": (6, 12, 24, 16),
}


def _dense(
    blocks: tuple[int, ...],
    *,
    classes: int,
    channels: int,
    image_size: tuple[int, int],
    width: int = FULL,
) -> nn.Module:
    from torchvision.models import DenseNet

    whole = DenseNet(growth_rate=width // 2, block_config=blocks, num_init_features=width)
    parts = dict(whole.features.named_children())
    stages = [nn.Sequential(parts["denseblock1"])]
    for number in range(2, len(blocks) + 1):
        smaller, block = parts[f"transition{number - 1}"], parts[f"denseblock{number}"]
        stages.append(nn.Sequential(smaller, block))
    last = parts["norm5"]
    assert isinstance(last, nn.BatchNorm2d)
    stages[-1].append(nn.Sequential(last, nn.ReLU(inplace=True)))
    stem = _stem(channels, width, image_size)
    return _network(stem, stages, channels=last.num_features, classes=classes)


# All of them ----------------------------------------------------------------------------------


#: Name to factory; ``width`` 64 is the published one, with any other all channels scale.
PUBLISHED: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(_residual, *parts) for name, parts in RESIDUAL.items()},
    "dpn92": _dual_path,
    "mobilenet_v2": _inverted,
    "googlenet": _inception,
    **{name: partial(_dense, blocks) for name, blocks in DENSE.items()},
}
