"""Outlier scores by the top singular vector alone, beside those by a full SVD.

    python benchmarks/spectral.py [--device cuda]

5,500 images with 4,096 features, as for one poisoned label of CIFAR-10: features after
a ReLU with a decaying spectrum, a tenth of the rows shifted. The two ways alternate in
one run; medians of their times, the ratio, and the largest difference of the scores
(relative to the largest score) are printed.
"""

import argparse
import statistics

import torch
from training import seconds

from poisonkit.defenses.spectral import outlier_scores
from poisonkit.devices import choose_device

ROUNDS = 3


def stand_in(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """Features whose singular values fall off as those of a trained network's do."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.arange(1, columns + 1).float().rsqrt()
    features = torch.relu(torch.randn(rows, columns, generator=generator) * spread)
    features[-rows // 11 :] += 0.02 * torch.randn(columns, generator=generator)
    return features.to(device)


def scores_by_full_decomposition(features: torch.Tensor) -> torch.Tensor:
    centred = features - features.mean(0)
    _, _, vectors = torch.linalg.svd(centred, full_matrices=False)
    return (centred @ vectors[0]).square()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, default=5500)
    parser.add_argument("--columns", type=int, default=4096)
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    features = stand_in(arguments.rows, arguments.columns, device)
    outlier_scores(features)  # warm-up
    ours, full = [], []
    found: dict[str, torch.Tensor] = {}
    for _ in range(ROUNDS):
        ours.append(seconds(lambda: found.update(ours=outlier_scores(features)), device))
        full.append(
            seconds(lambda: found.update(full=scores_by_full_decomposition(features)), device)
        )
    fast, slow = statistics.median(ours), statistics.median(full)
    difference = float((found["ours"] - found["full"]).abs().max() / found["full"].max())
    print(f"{arguments.rows} x {arguments.columns}, {device}, {torch.get_num_threads()} threads")
    print(f"outlier_scores    {fast:10.3f} s")
    print(f"full SVD          {slow:10.3f} s")
    print(f"ratio             {slow / fast:10.1f}")
    print(f"largest difference{difference:10.1e} of the largest score")


if __name__ == "__main__":
    main()
