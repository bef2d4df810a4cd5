"""ResNet-20 training throughput beside the arithmetic limit of the machine.

    python benchmarks/training.py [--device cuda] [--precision bfloat16]

The limit is the number of floating-point operations of a training step, counted by
torch, over the rate of the fastest matrix product that the same run measures: the
best of several sizes of ``torch.matmul`` and of a wide 1x1 convolution, which on some
CPUs is served by a faster library. Everything that ``fit`` does is in the measured
time: order, crops, flips, optimiser, statistics. On CUDA ``fit`` records its steps, anew in
every round; beside it stands one that launches them kernel by kernel. Rounds alternate
between all of these, so that a drift of the machine's speed touches each; medians are printed.
"""

import argparse
import statistics
from unittest.mock import patch

import torch
import torch.nn.functional as F
from timing import seconds
from torch.utils.flop_counter import FlopCounterMode

from poisonkit import training
from poisonkit.devices import choose_device, repeatable_kernels
from poisonkit.images import ImageSet
from poisonkit.models import create
from poisonkit.training import Recipe, fit

ROUNDS = 5
BATCH = 128


def product_rates(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Measure floating-point operations per second of dense products."""
    rates = {}
    for size in (1024, 2048, 4096):
        a = torch.randn(size, size, device=device, dtype=dtype)
        b = torch.randn(size, size, device=device, dtype=dtype)
        repeats = max(1, 4096 // size)

        def multiply(a: torch.Tensor = a, b: torch.Tensor = b, repeats: int = repeats) -> None:
            for _ in range(repeats):
                torch.mm(a, b)

        multiply()
        rates[f"matmul {size}"] = repeats * 2 * size**3 / seconds(multiply, device)
    x = torch.randn(32, 512, 32, 32, device=device, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(512, 512, 1, 1, device=device, dtype=dtype)
    with torch.no_grad():
        F.conv2d(x, weight)
        rates["1x1 convolution"] = (
            2 * 32 * 32 * 32 * 512 * 512 / seconds(lambda: F.conv2d(x, weight), device)
        )
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    dtype = torch.float32 if arguments.precision == "float32" else torch.bfloat16

    generator = torch.Generator().manual_seed(0)
    count = BATCH * arguments.steps
    images = ImageSet(
        x=torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8),
        y=torch.randint(0, 10, (count,), generator=generator),
        class_names=tuple("abcdefghij"),
        name="noise",
    ).to(device)
    recipe = Recipe(epochs=1, batch_size=BATCH, precision=arguments.precision)
    model = create(arguments.model, like=images, seed=0)

    x, y = images.x[:BATCH].float() / 255, images.y[:BATCH]
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(x), y).backward()
    operations = counter.get_total_flops() / BATCH

    fit(model, images, recipe, seed=0)  # warm-up
    throughputs, limits, rates = [], [], {}
    launched: list[float] = []
    for number in range(ROUNDS):
        with repeatable_kernels():  # in full float32, as `fit` computes
            rates = product_rates(device, dtype)
        limits.append(max(rates.values()) / operations)
        spent = seconds(lambda number=number: fit(model, images, recipe, seed=number), device)
        throughputs.append(count / spent)
        if device.type == "cuda":
            with patch.object(training, "Recorded", lambda step: step):
                spent = seconds(
                    lambda number=number: fit(model, images, recipe, seed=number), device
                )
            launched.append(count / spent)
    throughput, limit = statistics.median(throughputs), statistics.median(limits)
    print(f"{arguments.model}, {arguments.precision}, {device}, {torch.get_num_threads()} threads")
    print(f"counted           {operations / 1e6:10.1f} MFLOP an image, forward and backward")
    for name, rate in rates.items():
        print(f"{name:18}{rate / 1e9:10.1f} GFLOP/s")
    print(f"limit             {limit:10.0f} images/s")
    print(f"fit               {throughput:10.0f} images/s")
    print(f"share of limit    {throughput / limit:10.2f}")
    if launched:
        one_by_one = statistics.median(launched)
        print(f"not recorded      {one_by_one:10.0f} images/s")
        print(f"ratio             {throughput / one_by_one:10.2f}")


if __name__ == "__main__":
    main()
