"""Uncertainty, without which no number of this project stands; and what scores tell apart.

scipy and scikit-learn take seconds to import; what needs them imports them.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor


def wilson(hits: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a rate, ``hits`` out of ``total``."""
    from scipy.stats import binomtest

    interval = binomtest(hits, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def more_often(hits: int, total: int, others: int, of: int, *, level: float = 0.05) -> bool:
    """Tell whether ``hits`` out of ``total`` are more than ``others`` out of ``of``.

    Fisher's exact test, one-sided; ``level`` is the probability of finding so when there
    is no difference.
    """
    from scipy.stats import fisher_exact

    table = [[hits, total - hits], [others, of - others]]
    return float(fisher_exact(table, alternative="greater").pvalue) < level


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the sample standard deviation (None for a single value)."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), deviation


def auroc(marked: Tensor, scores: Tensor) -> float:
    """Return the area under the ROC curve: how often a marked row's score is the higher one.

    Parameters
    ----------
    marked : bool [n]. If all rows are, or none is, the area is not a number.
    scores : [n].
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(marked.cpu().numpy(), scores.cpu().numpy()))
