"""Features of 55,000 images and the scores of all labels, beside the plain forward pass.

    python benchmarks/spectral_features.py [--device cuda]

The paper's network, freshly initialised, on images of noise: ``features`` at group3.3
(4,096 values an image), then ``spectral_filter`` on all ten labels, against a pass over
the same images in batches of the same size that keeps nothing. The two alternate;
medians and their ratio are printed. The memory is the most that
this process has held, all of it: torch and poisonkit as imported, images and features.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from timing import seconds

from poisonkit.defenses.spectral import spectral_filter
from poisonkit.devices import choose_device, name_of, peak_memory_mib
from poisonkit.images import ImageSet, batches
from poisonkit.models import Classifier, create, evaluating, features

IMPORTED_MIB = peak_memory_mib(torch.device("cpu"))
LABELS = 10
POISONS = 500
TAP = "group3.3"


def noise(count: int, device: torch.device) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    return ImageSet(
        x=torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8),
        y=torch.arange(count) % LABELS,
        class_names=tuple("abcdefghij"),
        name="noise",
    ).to(device)


@torch.no_grad()
def forward(model: Classifier, images: torch.Tensor, batch_size: int) -> None:
    """Compute the logits of all images and keep none of them."""
    with evaluating(model):
        for batch in batches(images, batch_size=batch_size):
            model(batch)


def one_round(model: Classifier, images: ImageSet, batch_size: int) -> dict[str, float]:
    """Return the seconds that each part takes."""
    found: list[torch.Tensor] = []
    suspected = min(POISONS, len(images) // (2 * LABELS))
    parts: dict[str, Callable[[], object]] = {
        "forward": lambda: forward(model, images.x, batch_size),
        "features": lambda: found.append(features(model, images.x, TAP, batch_size=batch_size)),
        "scores": lambda: spectral_filter(found[0], images.y, suspected=suspected),
    }
    return {name: seconds(part, images.device) for name, part in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=int, default=55_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=100)
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    images = noise(arguments.images, device)
    model = create("preact_resnet32", like=images, seed=0)
    forward(model, images.x[:1000], arguments.batch_size)  # warm-up
    rounds = [one_round(model, images, arguments.batch_size) for _ in range(arguments.rounds)]
    middle = {part: statistics.median(taken[part] for taken in rounds) for part in rounds[0]}
    ours = middle["features"] + middle["scores"]
    print(
        f"{arguments.images} images, {LABELS} labels, batches of {arguments.batch_size}, "
        f"{name_of(device)}, {torch.get_num_threads()} threads"
    )
    print(f"forward pass      {middle['forward']:10.2f} s")
    print(f"features          {middle['features']:10.2f} s")
    print(f"scores            {middle['scores']:10.2f} s")
    print(f"ratio             {ours / middle['forward']:10.2f}")
    print(f"peak memory       {peak_memory_mib(device):10} MiB")
    print(f"  as imported     {IMPORTED_MIB:10} MiB")


if __name__ == "__main__":
    main()
