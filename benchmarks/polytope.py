"""Convex coefficients of many problems at once, and a crafting iteration beside its networks.

    python benchmarks/polytope.py [--device cuda] [--width 64] [--targets 50]

Measured are, on one device:

* the peak memory of an iteration for several numbers of targets and networks, each in a
  process of its own, with all networks at a time and streamed through one by one;
* the coefficients of 50 targets in 18 networks, five poisons with 512 features each, in one
  call, beside one call for each problem with the same tolerance, and beside one call for
  each with ``scipy``'s solver for quadratic problems with constraints (on the CPU);
* a crafting iteration over all targets and networks, everything that it does included,
  beside the networks' forward and backward passes on the same images alone.

What is compared alternates in one run; printed are medians.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize
from timing import measure
from torch import Tensor

from poisonkit.attacks.polytope import craft
from poisonkit.attacks.surrounding import (
    Procedure,
    Substitute,
    features_at,
    ready_to_craft,
)
from poisonkit.devices import choose_device, peak_memory_mib
from poisonkit.images import ImageSet
from poisonkit.models import create
from poisonkit.simplex import convex_coefficients

POISONS = 5
TOLERANCE = Procedure().tolerance


# Coefficients ---------------------------------------------------------------------------------


def problems(targets: int, networks: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Features as after a ReLU, of poisons that have come some of the way to their target."""
    generator = torch.Generator().manual_seed(0)
    shape = (networks, targets, POISONS, 512)
    bases = torch.relu(torch.randn(shape, generator=generator))
    aims = torch.relu(torch.randn((networks, targets, 512), generator=generator))
    return (bases + 2 * aims[..., None, :]).div(3).to(device), aims.to(device)


def one_by_one(vertices: Tensor, aims: Tensor) -> Tensor:
    flat = zip(vertices.flatten(0, 1), aims.flatten(0, 1), strict=True)
    found = [convex_coefficients(v, a, tolerance=TOLERANCE) for v, a in flat]
    return torch.stack(found).unflatten(0, aims.shape[:2])


def by_scipy(vertices: Tensor, aims: Tensor) -> Tensor:
    found = []
    pairs = zip(vertices.flatten(0, 1).cpu(), aims.flatten(0, 1).cpu(), strict=True)
    for one, aim in pairs:
        v, b = one.double().numpy(), aim.double().numpy()
        gram, product, square = v @ v.T, v @ b, float(b @ b)
        solution = minimize(
            lambda c, g=gram, p=product, s=square: (c @ g @ c / 2 - c @ p) / s,
            np.full(POISONS, 1 / POISONS),
            jac=lambda c, g=gram, p=product, s=square: (g @ c - p) / s,
            bounds=[(0, 1)] * POISONS,
            constraints={
                "type": "eq",
                "fun": lambda c: c.sum() - 1,
                "jac": lambda c: np.ones(POISONS),
            },
            method="SLSQP",
            options={"ftol": TOLERANCE},
        )
        found.append(torch.from_numpy(solution.x))
    return torch.stack(found).unflatten(0, aims.shape[:2])


def values(vertices: Tensor, aims: Tensor, c: Tensor) -> Tensor:
    v, a = vertices.double().cpu(), aims.double().cpu()
    nearest = (c.double().cpu()[..., None] * v).sum(-2)
    return 0.5 * ((nearest - a) ** 2).sum(-1) / (a * a).sum(-1)


def coefficients(args: argparse.Namespace, device: torch.device) -> None:
    vertices, aims = problems(args.targets, args.networks, device)
    print(f"coefficients of {args.targets} targets in {args.networks} networks:")

    def together() -> Tensor:
        return convex_coefficients(vertices, aims, tolerance=TOLERANCE)

    ways: dict[str, Callable[[], Tensor]] = {
        "in one call": together,
        "one by one": lambda: one_by_one(vertices, aims),
        "scipy, one by one": lambda: by_scipy(vertices, aims),
    }
    taken = measure(ways, rounds=args.rounds, device=device)
    best = values(vertices, aims, together())
    for name, work in ways.items():
        worse = float((values(vertices, aims, work()) - best).abs().max())
        ratio = taken[name] / taken["in one call"]
        print(
            f"  {name:20s} {1000 * taken[name]:9.1f} ms, {ratio:7.1f} times; "
            f"values differ by at most {worse:.1e}"
        )


# A crafting iteration -------------------------------------------------------------------------


def scene(
    targets: int, networks: int, width: int, size: int, device: torch.device
) -> tuple[ImageSet, ImageSet, list[Substitute]]:
    """Random images, and networks of random weights: time and memory do not depend on either."""
    generator = torch.Generator().manual_seed(0)

    def images(count: int, label: int) -> ImageSet:
        x = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
        y = torch.full((count,), label)
        names = ("poisons", "targets")
        return ImageSet(x=x.to(device), y=y.to(device), class_names=names, name="random")

    train = images(2 * POISONS, 0)
    nets = [
        Substitute(
            network=create("resnet18", like=train, seed=k, width=width, dropout=0.2).eval(),
            taps=("pool",),
        )
        for k in range(networks)
    ]
    return train, images(targets, 1), nets


def passes_alone(nets: list[Substitute], x: Tensor, procedure: Procedure) -> None:
    """Run every network forward and back to its images, and nothing else."""
    with ready_to_craft(nets, procedure):
        for one in nets:
            leaf = x.clone().requires_grad_()
            [found] = features_at(one, leaf)
            found.backward(torch.ones_like(found))


def crafting(args: argparse.Namespace, device: torch.device) -> None:
    train, targets, nets = scene(args.targets, args.networks, args.width, 32, device)
    rows = list(range(POISONS))
    x = train.x[rows].float().div(255).repeat(args.targets, 1, 1, 1)
    few, more = (Procedure(iterations=count) for count in (1, 1 + args.iterations))

    def crafted(procedure: Procedure) -> None:
        craft(train, nets, targets, rows=rows, procedure=procedure, seed=0)

    def alone() -> None:
        for _ in range(args.iterations):
            passes_alone(nets, x, more)

    ways = {
        "one iteration": lambda: crafted(few),
        "all iterations": lambda: crafted(more),
        "networks alone": alone,
    }
    taken = measure(ways, rounds=args.rounds, device=device)
    # What is done once, reading the targets' features for one, is in both and falls out.
    spent = (taken["all iterations"] - taken["one iteration"]) / args.iterations
    least = taken["networks alone"] / args.iterations
    print(
        f"a crafting iteration over {args.targets} targets and {args.networks} networks (ResNet-18 "
        f"of width {args.width}): {1000 * spent:.1f} ms, its passes alone {1000 * least:.1f} ms, "
        f"{spent / least:.2f} times"
    )


# Memory ---------------------------------------------------------------------------------------


def memory(args: argparse.Namespace, device: torch.device) -> None:
    print("peak memory above that of one target and one network (MiB):")
    base = _peak(args, 1, 1, False)
    for targets, networks in ((10, 2), (20, 2), (10, 4), (20, 4)):
        found = {way: _peak(args, targets, networks, way) - base for way in (False, True)}
        print(
            f"  {targets:3d} targets, {networks} networks: {found[False]:6.0f} at a time "
            f"({found[False] / targets / networks:.1f} for each pair), {found[True]:6.0f} streamed"
        )


def _peak(args: argparse.Namespace, targets: int, networks: int, stream: bool) -> float:
    command = [sys.executable, __file__, "--device", args.device, "--width", str(args.width)]
    command += ["--peak", str(targets), str(networks), str(int(stream))]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return float(done.stdout)


def peak(args: argparse.Namespace, device: torch.device) -> None:
    targets, networks, stream = args.peak
    train, aims, nets = scene(targets, networks, args.width, 32, device)
    craft(
        train,
        nets,
        aims,
        rows=list(range(POISONS)),
        procedure=Procedure(iterations=2),
        seed=0,
        stream=bool(stream),
    )
    print(peak_memory_mib(device))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--targets", type=int, default=50)
    parser.add_argument("--networks", type=int, default=18)
    parser.add_argument("--width", type=int, default=16, help="64 is the published one")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", type=int, nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = choose_device(args.device)
    if args.peak:
        peak(args, device)
        return
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    # First: on Linux a new process begins with the peak of the one that started it.
    memory(args, device)
    coefficients(args, device)
    crafting(args, device)


if __name__ == "__main__":
    main()
