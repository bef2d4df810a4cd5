"""Outlier scores beside a full SVD and beside the Adversarial Robustness Toolbox.

    python benchmarks/spectral.py [--device cuda] [--precision float64]

Before that, in a process of its own, benchmarks/spectral_features.py: the features of
55,000 images and the scores of all labels, beside the plain forward pass, and the memory.

5,500 images with 4,096 features, as for one poisoned label of CIFAR-10: features after
a ReLU with a decaying spectrum, a tenth of the rows shifted. The paper's scores are
compared with those by a full SVD; the released code's (features that keep their mean)
with ``SpectralSignatureDefense.spectral_signature_scores`` of the toolbox, which scores
so and runs on the CPU whatever the device. All alternate in one run; printed are medians
of their times, ratios, and the largest difference of the scores relative to the largest
score. Rankings of thousands of scores that are rounded differently swap neighbours that
nearly tie: printed are the ranks at which the two disagree, by how much the scores
there differ at most, and whether the same images would be removed. The toolbox is
optional: ``pip install -e ".[benchmark]"``.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from timing import seconds

from poisonkit.defenses.spectral import outlier_scores
from poisonkit.devices import choose_device

#: Of eleven images one is poisoned; one and a half times as many are removed.
REMOVED_SHARE = 1.5 / 11

Scores = Callable[[torch.Tensor], torch.Tensor]


def stand_in(rows: int, columns: int) -> torch.Tensor:
    """Features whose singular values fall off as those of a trained network's do."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.arange(1, columns + 1).float().rsqrt()
    features = torch.relu(torch.randn(rows, columns, generator=generator) * spread)
    features[-rows // 11 :] += 0.02 * torch.randn(columns, generator=generator)
    return features


def scores_by_full_decomposition(features: torch.Tensor) -> torch.Tensor:
    centred = features - features.mean(0)
    _, _, vectors = torch.linalg.svd(centred, full_matrices=False)
    return (centred @ vectors[0]).square()


def scores_of_the_toolbox() -> Scores | None:
    """Return the toolbox's scores as a function, if it is installed."""
    try:
        from art.defences.detector.poison.spectral_signature_defense import (
            SpectralSignatureDefense,
        )
    except ModuleNotFoundError as error:
        if error.name != "art":
            raise
        return None

    def scores(features: torch.Tensor) -> torch.Tensor:
        found: np.ndarray = SpectralSignatureDefense.spectral_signature_scores(features.numpy())
        return torch.from_numpy(found[:, 0])

    return scores


def timed(score: Scores, features: torch.Tensor) -> tuple[float, torch.Tensor]:
    found: list[torch.Tensor] = []
    spent = seconds(lambda: found.append(score(features)), features.device)
    return spent, found[0]


def measure(
    ways: dict[str, tuple[Scores, torch.Tensor]], *, rounds: int
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Return the median seconds of each way over alternating rounds, and its scores."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, torch.Tensor] = {}
    for _ in range(rounds):
        for name, (score, features) in ways.items():
            spent, found[name] = timed(score, features)
            taken[name].append(spent)
    return {name: statistics.median(times) for name, times in taken.items()}, found


def show_comparison(
    medians: dict[str, float], found: dict[str, torch.Tensor], *, ours: str, other: str
) -> None:
    first, second = (found[name].cpu().double() for name in (ours, other))
    difference = float((first - second).abs().max() / second.max())
    for name in (ours, other):
        print(f"{name:24}{medians[name]:10.3f} s")
    print(f"ratio                   {medians[other] / medians[ours]:10.1f}")
    print(f"largest difference      {difference:10.1e} of the largest score")


def show_ranking(ours: torch.Tensor, other: torch.Tensor) -> None:
    """Print where two rankings of the same images disagree."""
    ours, other = ours.cpu().double(), other.cpu().double()
    rank, other_rank = (scores.argsort(descending=True, stable=True) for scores in (ours, other))
    swapped = rank != other_rank
    apart = (other[rank] - other[other_rank]).abs().max() / other.max()
    removed = round(REMOVED_SHARE * len(ours))
    same = set(rank[:removed].tolist()) == set(other_rank[:removed].tolist())
    print(f"ranks that differ       {int(swapped.sum()):10} of {len(ours)}")
    print(f"  scores apart by       {float(apart):10.1e} of the largest score, at most")
    print(f"same {removed:4} removed       {'yes' if same else 'NO':>10}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, default=5500)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--precision", default="float32", choices=("float32", "float64"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scores-only", action="store_true", help="leave out spectral_features.py")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    if not arguments.scores_only:
        # First, since a process counts towards its memory what its parent holds at its start.
        script = str(Path(__file__).with_name("spectral_features.py"))
        options = ["--device", str(device), "--rounds", str(arguments.rounds)]
        subprocess.run([sys.executable, script, *options], check=True)
        print()

    features = stand_in(arguments.rows, arguments.columns).to(getattr(torch, arguments.precision))
    moved = features.to(device)
    ways = {
        "outlier_scores": (outlier_scores, moved),
        "full SVD": (scores_by_full_decomposition, moved),
    }
    toolbox = scores_of_the_toolbox()
    if toolbox is not None:
        ways["outlier_scores, released"] = (partial(outlier_scores, centred=False), moved)
        ways["toolbox"] = (toolbox, features)
    outlier_scores(moved)  # warm-up
    medians, found = measure(ways, rounds=arguments.rounds)
    shape = f"{arguments.rows} x {arguments.columns} {arguments.precision}"
    print(f"{shape}, {device}, {torch.get_num_threads()} threads")
    show_comparison(medians, found, ours="outlier_scores", other="full SVD")
    print()
    if toolbox is None:
        print('The Adversarial Robustness Toolbox is not installed: pip install -e ".[benchmark]"')
        return
    show_comparison(medians, found, ours="outlier_scores, released", other="toolbox")
    show_ranking(found["outlier_scores, released"], found["toolbox"])


if __name__ == "__main__":
    main()
