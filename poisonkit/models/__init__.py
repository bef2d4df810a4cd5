"""Networks by name, and a way to read any intermediate feature of them.

Every network is wrapped as a :class:`Classifier`, which standardises its input
itself: its forward pass takes images in [0, 1]. The features of any part of it can
be read by the part's name (a *tap*), see :func:`features`. A network of your own becomes
one by :func:`wrap`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from poisonkit.devices import repeatable_kernels
from poisonkit.errors import PoisonkitError, look_up, unknown
from poisonkit.images import ImageSet, batches
from poisonkit.models.deep_confuse import BottleneckVGG, FiveLayerConvNet, TwoLayerConvNet
from poisonkit.models.dropout import add_dropout
from poisonkit.models.published import PUBLISHED
from poisonkit.models.resnet import SmallImageResNet
from poisonkit.models.small import CompactConvNet, FiveBlockConvNet, SmallConvNet
from poisonkit.models.vgg import CONFIGURATIONS, SmallImageVGG


def _any_size(network: Callable[..., nn.Module], **fixed: object) -> Callable[..., nn.Module]:
    """Return the factory of a network that takes images of any size."""

    def build(*, image_size: tuple[int, int], **options: int) -> nn.Module:
        return network(**fixed, **options)

    return build


#: Name to factory; a factory takes ``classes``, ``channels``, ``image_size`` and,
#: where it can be made narrower or wider, ``width``.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "small_cnn": SmallConvNet,
    "compact_cnn": CompactConvNet,
    "five_block_cnn": FiveBlockConvNet,
    **{
        f"{kind}resnet{6 * units + 2}": _any_size(
            SmallImageResNet, units=units, preactivation=bool(kind)
        )
        for kind in ("", "preact_")
        for units in (1, 2, 3, 5)
    },
    "released_resnet20": _any_size(SmallImageResNet, units=3, released=True),
    **{name: _any_size(SmallImageVGG, configuration=name) for name in CONFIGURATIONS},
    **PUBLISHED,
    "two_layer_cnn": TwoLayerConvNet,
    "two_layer_cnn_bn": partial(TwoLayerConvNet, normalised="inner"),
    "two_layer_cnn_bn_5x5": partial(TwoLayerConvNet, normalised="inner", kernel_size=5),
    "two_layer_cnn_bn_average": partial(TwoLayerConvNet, normalised="inner", pooling="average"),
    "two_layer_cnn_bn_logits": partial(TwoLayerConvNet, normalised="all"),
    "two_layer_cnn_bn_average_logits": partial(
        TwoLayerConvNet, normalised="all", pooling="average"
    ),
    "released_two_layer_cnn": partial(
        TwoLayerConvNet, normalised="all", kernel_size=5, pooling="average"
    ),
    "five_layer_cnn": _any_size(FiveLayerConvNet),
    "five_layer_cnn_bn": _any_size(FiveLayerConvNet, normalised=True),
    **{
        f"bottleneck_{name}": _any_size(BottleneckVGG, configuration=name)
        for name in CONFIGURATIONS
    },
}


class Classifier(nn.Module):
    """A network behind its own input standardisation.

    Parameters
    ----------
    body : the network proper; taps are names of its modules.
    mean, deviation : per channel, on the [0, 1] scale.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, body: nn.Module, *, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", mean.float().view(-1, 1, 1))
        self.register_buffer("deviation", deviation.float().view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, C, H, W] in [0, 1] to logits [N, classes]."""
        if x.shape[-3] != len(self.mean):
            raise PoisonkitError(
                f"the network takes images of {len(self.mean)} channels, these have {x.shape[-3]}"
            )
        return self.body((x - self.mean) / self.deviation)

    @property
    def taps(self) -> tuple[str, ...]:
        """The names of all parts whose output can be read, in the order of definition."""
        return tuple(name for name, _ in self.body.named_modules() if name)

    def module_at(self, tap: str) -> nn.Module:
        """Return the part of that name; an unknown tap is an error that lists those that exist."""
        modules = dict(self.body.named_modules())
        if tap not in modules or not tap:
            raise unknown("layer", tap, self.taps)
        return modules[tap]


def create(
    name: str,
    *,
    like: ImageSet,
    seed: int,
    standardise: str = "data",
    dropout: float = 0.0,
    **options: int,
) -> Classifier:
    """Build a freshly initialised network for the images of a data set.

    Parameters
    ----------
    name : a key of :data:`MODELS`.
    like : the training images; they set channels, size, classes and, with
        ``standardise="data"``, the mean and deviation that the network subtracts
        and divides by.
    seed : of the initial weights; the caller's random state is left as it was.
    standardise : ``data``; ``none`` to feed the network values 0..1 as they are; or
        ``bytes`` for values 0..255, as the released Spectral Signatures code does.
    dropout : rate of dropout within the units, see :func:`add_dropout`; 0 adds none.
    options : passed to the factory, for instance ``width``.
    """
    factory = look_up("model", name, MODELS)
    if options.get("width", 1) < 1:
        raise PoisonkitError(f"a network must be at least 1 channel wide, not {options['width']}")
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed the caller's CUDA generators too.
        torch.default_generator.manual_seed(seed)
        try:
            body = factory(
                classes=like.classes, channels=like.channels, image_size=like.image_size, **options
            )
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            raise PoisonkitError(f"{name} does not have the option {', '.join(options)}") from error
    if dropout:
        add_dropout(body, dropout, name=name)
    return wrap(body, like=like, standardise=standardise)


def wrap(body: nn.Module, *, like: ImageSet, standardise: str = "data") -> Classifier:
    """Return a network of your own as the package's functions take it.

    Parameters
    ----------
    body : maps standardised images [N, C, H, W] to logits [N, classes].
    like, standardise : see :func:`create`; ``none`` if the network standardises by itself.
    """
    if standardise not in ("data", "none", "bytes"):
        raise unknown("standardisation", standardise, ("data", "none", "bytes"))
    if standardise == "data":
        mean, deviation = channel_statistics(like.x)
    else:
        unit = 1.0 if standardise == "none" else 1 / 255
        mean, deviation = torch.zeros(like.channels), torch.full((like.channels,), unit)
    network = Classifier(body, mean=mean, deviation=deviation).to(like.device)
    # The layout that training uses: a network read from the store then computes, to the
    # last bit, what the freshly trained one did.
    return network.to(memory_format=torch.channels_last)


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of every channel on the [0, 1] scale.

    Summed as integers, so that the result depends on neither order nor device.
    """
    total = torch.zeros(x.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for chunk in x.split(1000):
        wide = chunk.long()
        total += wide.sum((0, 2, 3)).cpu()
        squares += (wide * wide).sum((0, 2, 3)).cpu()
    count = x.numel() / x.shape[1]
    mean = total / count
    deviation = (squares / count - mean**2).clamp_min(1e-12).sqrt()
    return mean / 255, (deviation / 255).clamp_min(1e-3)


def must_be_classifier(model: nn.Module) -> None:
    """Refuse a network whose features cannot be read by name."""
    if not isinstance(model, Classifier):
        raise PoisonkitError(
            f"features are read off a poisonkit.models.Classifier, not {type(model).__name__}; "
            "make it one by poisonkit.models.wrap(network, like=images)"
        )


@contextmanager
def tapped(model: Classifier, tap: str, *, gradients: bool = False) -> Iterator[list[Tensor]]:
    """Collect the outputs of one part of a model for as long as the context lasts.

    ``gradients`` leaves them part of the graph.
    """
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        # Copied at once: a later in-place activation would overwrite the output.
        outputs.append((output if gradients else output.detach()).clone())

    must_be_classifier(model)
    handle = model.module_at(tap).register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()


@contextmanager
def must_take(called: str, size: Sequence[int], *, advice: str = "") -> Iterator[None]:
    """Refuse a network that fails on images of a size within the block, and say so.

    Memory that runs out, or a device that fails, says nothing about the size, and remains the
    error that it is.

    Parameters
    ----------
    called : how the message calls the network.
    advice : what the message ends with.
    """
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError as error:
        # Where a library of CUDA's fails, memory has run out or the device has.
        if any(word in str(error) for word in ("CUDA error", "CUBLAS", "CUDNN")):
            raise
        raise PoisonkitError(
            f"{called} cannot take images of {tuple(size)} pixels ({error}){advice}"
        ) from error


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every part of a model in eval mode, and afterwards back in the mode it was in.

    Meanwhile CUDA computes the same features for the same images, to the last bit.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with repeatable_kernels():
            yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def features(
    model: Classifier, x: Tensor, tap: str, *, pool: str = "flatten", batch_size: int = 100
) -> Tensor:
    """Return the features that a model in eval mode computes at a tap.

    Parameters
    ----------
    x : uint8 images [N, C, H, W].
    tap : name of a part, see :attr:`Classifier.taps`.
    pool : ``flatten`` keeps all values of a feature map, ``mean`` averages over its pixels.
    batch_size : on a CPU, batches of 500 took a ResNet-32 twice as long: their
        activations leave the caches, and go back to the system after each layer.

    Returns
    -------
    float32 tensor [N, d] on the device of ``x``.
    """
    if pool not in ("flatten", "mean"):
        raise unknown("pooling", pool, ("flatten", "mean"))
    found: Tensor | None = None
    start = 0
    with evaluating(model), tapped(model, tap) as outputs:
        for batch in batches(x, batch_size=batch_size):
            model(batch)
            block = outputs.pop()
            if pool == "mean" and block.ndim > 2:
                block = block.flatten(2).mean(2)
            if found is None:
                found = block.new_empty((len(x), *block.shape[1:]), dtype=torch.float32)
            found[start : start + len(block)] = block
            start += len(block)
    return torch.empty(0, 0) if found is None else found.flatten(1)
