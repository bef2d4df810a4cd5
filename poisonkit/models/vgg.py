"""VGG networks for small images: the convolutions of Simonyan and Zisserman, one linear layer."""

import torch
from torch import Tensor, nn

#: torchvision's names of the published configurations.
CONFIGURATIONS = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}


class SmallImageVGG(nn.Module):
    """VGG with batch normalisation, its classifier cut down to what small images leave.

    Images of 32 pixels are a single pixel after the fifth pooling, so one linear layer
    follows it; larger ones are averaged. The parts are named ``stage1.0`` ...
    ``stage5.2`` (convolution k of a stage, read after its ReLU), ``pool`` and ``linear``.

    Parameters
    ----------
    configuration : a key of :data:`CONFIGURATIONS`.
    width : channels of the first stage, 64 as published; the others keep their ratio to it.
    """

    def __init__(
        self, *, configuration: str, classes: int, channels: int = 3, width: int = 64
    ) -> None:
        from torchvision.models.vgg import cfgs

        super().__init__()
        stages: list[nn.Sequential] = [nn.Sequential()]
        for entry in cfgs[CONFIGURATIONS[configuration]]:
            if isinstance(entry, str):
                stages.append(nn.Sequential())
                continue
            wide = -(-entry * width // 64)
            stages[-1].append(
                nn.Sequential(
                    nn.Conv2d(channels, wide, 3, padding=1, bias=False),
                    nn.BatchNorm2d(wide),
                    nn.ReLU(inplace=True),
                )
            )
            channels = wide
        self.stages = len(stages) - 1
        for number, stage in enumerate(stages[:-1], start=1):
            self.add_module(f"stage{number}", stage)
        self.downsample = nn.MaxPool2d(2)
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        for number in range(1, self.stages + 1):
            x = self.downsample(self.get_submodule(f"stage{number}")(x))
        return self.linear(torch.flatten(self.pool(x), 1))
