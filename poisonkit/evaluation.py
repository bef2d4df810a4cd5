"""What a trained network answers: predictions and accuracy, in eval mode or by batch statistics."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from poisonkit.errors import PoisonkitError
from poisonkit.images import ImageSet, batches
from poisonkit.models import evaluating


@torch.no_grad()
def predict(
    model: nn.Module, x: Tensor, *, batch_statistics: bool = False, batch_size: int = 1000
) -> Tensor:
    """Return the predicted label of each uint8 image, int64 [N].

    ``batch_statistics`` normalises each batch by its own mean and variance, as
    code that never leaves training mode does; the model's running averages and
    dropout are left alone. The batches are then even: a small last one would have
    statistics that say nothing.
    """
    if len(x) == 0:
        return torch.empty(0, dtype=torch.int64, device=x.device)
    if len(x) == 1 and batch_statistics:
        raise PoisonkitError("one image alone has no batch statistics")
    parts = batches(x, batch_size=batch_size, even=batch_statistics)
    with evaluating(model), by_batch_statistics(model, batch_statistics):
        labels = [model(batch).argmax(1) for batch in parts]
    return torch.cat(labels)


def evaluate(
    model: nn.Module, images: ImageSet, *, batch_statistics: bool = False, batch_size: int = 1000
) -> float:
    """Return the share of images whose label the model predicts, see :func:`predict`."""
    if len(images) == 0:
        raise PoisonkitError(f"{images.name}: no images to evaluate on")
    if batch_statistics:
        images = shuffled(images, batch_size=batch_size)
    found = predict(model, images.x, batch_statistics=batch_statistics, batch_size=batch_size)
    return float((found == images.y).double().mean())


def shuffled(images: ImageSet, *, batch_size: int = 1000) -> ImageSet:
    """Return images that lie class by class, as folders do, in an order drawn once.

    Their batches would each be of one class or two, whose statistics are not the data's.
    What is one batch, or not sorted by its labels, is returned as it is.
    """
    if len(images) <= batch_size or bool((images.y.diff() < 0).any()):
        return images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images.select(order.to(images.device))


@contextmanager
def by_batch_statistics(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Normalise each batch by its own mean and variance, and leave the running averages alone."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    tracked = [norm.track_running_stats for norm in norms]
    if wanted:
        for norm in norms:
            # Without tracking, training mode neither reads nor writes the running averages.
            norm.train()
            norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, flag in zip(norms, tracked, strict=True):
            norm.track_running_stats = flag
