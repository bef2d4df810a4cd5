"""Noise generators: networks from images to bounded noise of the same shape (Deep Confuse).

The paper (section 5) gives an encoder-decoder of four 4x4 convolutions each way with
16, 32, 64 and 128 channels for MNIST and ImageNet, and a U-Net for CIFAR-10; strides,
padding and normalisation it does not state. The released MNIST code has another
encoder-decoder, that for ImageNet this one without normalisation of its last layer. All end
in ``epsilon * tanh``, equation 3.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poisonkit.bounds import check_epsilon
from poisonkit.errors import PoisonkitError, look_up
from poisonkit.images import ImageSet
from poisonkit.models import evaluating, must_take
from poisonkit.models.deep_confuse import Normalised


def _down(
    channels_in: int,
    channels: int,
    *,
    kernel: int,
    stride: int = 1,
    padding: int = 0,
    normalised: bool = True,
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, kernel, stride, padding),
        *_norm(channels, normalised),
        nn.ReLU(inplace=True),
    )


def _up(
    channels_in: int,
    channels: int,
    *,
    kernel: int,
    stride: int,
    padding: int = 0,
    normalised: bool = True,
) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(channels_in, channels, kernel, stride, padding),
        *_norm(channels, normalised),
        nn.ReLU(inplace=True),
    )


def _norm(channels: int, wanted: bool) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels)] if wanted else []


class AutoEncoder(nn.Module):
    """Four 4x4 convolutions of stride 2 down, four transposed ones up.

    Sides that are no multiple of 16 are padded with zeros and the noise cut to size.

    Parameters
    ----------
    normalised : which layers are. In the released MNIST and CIFAR-10 generators all are, in
        the ImageNet code's all but the last; the paper mentions none.
    """

    def __init__(self, *, channels: int, width: int = 16, normalised: Normalised = "all") -> None:
        super().__init__()
        widths = [channels, width, 2 * width, 4 * width, 8 * width]
        inner = normalised != "none"
        down = partial(_down, kernel=4, stride=2, padding=1, normalised=inner)
        up = partial(_up, kernel=4, stride=2, padding=1, normalised=inner)
        self.encoder = nn.Sequential(*(down(a, b) for a, b in itertools.pairwise(widths)))
        self.decoder = nn.Sequential(
            *(up(a, b) for a, b in itertools.pairwise(widths[:0:-1])),
            nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1),
            *_norm(channels, normalised == "all"),
        )

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        rows, columns = -height % 16, -width % 16
        top, left = rows // 2, columns // 2
        x = F.pad(x, (left, columns - left, top, rows - top))
        out = self.decoder(self.encoder(x))
        return out[:, :, top : top + height, left : left + width]


class ReleasedMnistAutoEncoder(nn.Module):
    """The released MNIST code's encoder-decoder: 28 pixels to 2 and back."""

    def __init__(self, *, channels: int, width: int = 16) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            _down(channels, width, kernel=3, stride=3, padding=1),
            nn.MaxPool2d(2, stride=2),
            _down(width, 4 * width, kernel=3, stride=2, padding=1),
            nn.MaxPool2d(2, stride=1),
        )
        self.decoder = nn.Sequential(
            _up(4 * width, 8 * width, kernel=3, stride=2),
            _up(8 * width, 4 * width, kernel=5, stride=3, padding=1),
            nn.ConvTranspose2d(4 * width, channels, 2, stride=2, padding=1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class UNet(nn.Module):
    """A U-Net of four levels: double 3x3 convolutions, average pooling, bilinear upsampling.

    ``normalised`` is as in :class:`AutoEncoder`.
    """

    def __init__(self, *, channels: int, width: int = 64, normalised: Normalised = "all") -> None:
        super().__init__()
        widths = [channels, width, 2 * width, 4 * width, 8 * width]

        layer = partial(_down, kernel=3, padding=1, normalised=normalised != "none")

        def double(before: int, after: int) -> nn.Sequential:
            return nn.Sequential(layer(before, after), layer(after, after))

        self.down = nn.ModuleList(double(a, b) for a, b in itertools.pairwise(widths))
        up = widths[:0:-1]
        self.up = nn.ModuleList(double(a + b, b) for a, b in itertools.pairwise(up))
        last = nn.Conv2d(width, channels, 1)
        self.last = nn.Sequential(last, *_norm(channels, normalised == "all"))

    def forward(self, x: Tensor) -> Tensor:
        levels: list[Tensor] = []
        for number, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if number else x)
            levels.append(x)
        for block, skip in zip(self.up, reversed(levels[:-1]), strict=True):
            x = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=True)
            x = block(torch.cat([skip, x], 1))
        return self.last(x)


GENERATORS: dict[str, Callable[..., nn.Module]] = {
    "autoencoder": AutoEncoder,
    "unet": UNet,
    "released_mnist": ReleasedMnistAutoEncoder,
    "released_imagenet": partial(AutoEncoder, normalised="inner"),
    "plain_autoencoder": partial(AutoEncoder, normalised="none"),
    "plain_unet": partial(UNet, normalised="none"),
}


class NoiseGenerator(nn.Module):
    """``epsilon * tanh(body(x))``: noise of at most epsilon, in (0, 1], for images in [0, 1]."""

    def __init__(self, body: nn.Module, *, epsilon: float) -> None:
        super().__init__()
        check_epsilon(epsilon)
        self.body = body
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, C, H, W] in [0, 1] to noise of the same shape."""
        return self.epsilon * torch.tanh(self.body(x))


def create_generator(
    name: str, *, like: ImageSet, epsilon: float, seed: int, **options: int
) -> NoiseGenerator:
    """Build a freshly initialised generator for the images of a data set.

    Parameters
    ----------
    name : a key of :data:`GENERATORS`.
    like : the images; they set channels and size.
    epsilon : bound of the noise on the [0, 1] scale, in (0, 1].
    seed : of the initial weights; the caller's random state is left as it was.
    options : passed to the factory, for instance ``width``.

    Raises
    ------
    PoisonkitError
        If epsilon is outside (0, 1], the generator has no such option, or it cannot return
        noise of the images' shape.
    """
    generator = build_generator(name, like.channels, options, epsilon=epsilon, seed=seed)
    check_shape(generator, (like.channels, *like.image_size), called=f"generator {name!r}")
    return generator.train().to(like.device)


def build_generator(
    name: str, channels: int, options: Mapping[str, int], *, epsilon: float, seed: int
) -> NoiseGenerator:
    """Build a generator for images of that many channels, see :func:`create_generator`."""
    factory = look_up("generator", name, GENERATORS)
    if options.get("width", 1) < 1:
        raise PoisonkitError(f"a generator must be at least 1 channel wide, not {options['width']}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            body = factory(channels=channels, **options)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            raise PoisonkitError(
                f"generator {name!r} does not have the option {', '.join(options)}"
            ) from error
    return NoiseGenerator(body, epsilon=epsilon)


@torch.no_grad()
def check_shape(
    generator: NoiseGenerator, shape: Sequence[int], *, called: str = "the generator"
) -> None:
    """Refuse images that the generator cannot make noise for, naming both sides.

    Parameters
    ----------
    shape : of one image, [C, H, W].
    called : how the message calls the generator.
    """
    # The first layer of every generator is a convolution.
    first = next(p for p in generator.parameters() if p.ndim == 4)
    if shape[0] != first.shape[1]:
        raise PoisonkitError(
            f"{called} takes images of {first.shape[1]} channels, these have {shape[0]}"
        )
    with must_take(called, shape[1:]), evaluating(generator):
        noise = generator(torch.zeros(1, *shape, device=first.device))
    if noise.shape[1:] != torch.Size(shape):
        raise PoisonkitError(
            f"{called} returns noise of {tuple(noise.shape[1:])}, the images are {tuple(shape)}"
        )
