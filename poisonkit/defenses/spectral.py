"""Spectral signatures: Algorithm 1 of Tran, Li and Madry (2018).

Poisoned images of a label shift the mean of its features in one direction. If
the shift is large against the spread, that direction shows up as the top right
singular vector of the centred feature matrix, and the poisoned images are those
that reach farthest along it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor

from poisonkit.errors import PoisonkitError

#: The paper removes 1.5 times as many images as it suspects poisoned.
REMOVAL_FACTOR = 1.5
#: The released code removes what lies above this percentile, whatever epsilon is.
RELEASED_PERCENTILE = 85.0


def check_features(features: Tensor, *, what: str = "the features") -> None:
    """Refuse features that have no spectral signature: too few, not finite, or constant."""
    if features.ndim != 2:
        raise PoisonkitError(f"{what} must have shape [n, d], not {list(features.shape)}")
    if len(features) < 3:
        raise PoisonkitError(f"{what} hold {len(features)} images; at least three are needed")
    if not bool(torch.isfinite(features).all()):
        row = int(torch.nonzero(~torch.isfinite(features).all(1))[0])
        raise PoisonkitError(f"{what} are not finite (first in row {row})")
    if bool((features == features[0]).all()):
        raise PoisonkitError(f"{what} are the same for all {len(features)} images")


def top_singular_vectors(centred: Tensor, *, count: int = 1) -> tuple[Tensor, Tensor]:
    """Return the largest singular values [count] and right singular vectors [count, d].

    The Lanczos iteration of ARPACK asks for products with the matrix and its
    transpose only, which are formed where the matrix lies; no full decomposition
    is made. Matrices too small for it are decomposed directly.

    Parameters
    ----------
    centred : float [n, d], each column of mean zero.
    """
    rows, columns = centred.shape
    if count >= min(rows, columns) - 1:
        _, values, vectors = torch.linalg.svd(centred.double(), full_matrices=False)
        return values[:count].to(centred.dtype), vectors[:count].to(centred.dtype)

    def product(matrix: Tensor, vector: np.ndarray) -> np.ndarray:
        moved = torch.from_numpy(np.ascontiguousarray(vector).reshape(-1)).to(matrix)
        return (matrix @ moved).cpu().numpy()

    operator = LinearOperator(
        shape=(rows, columns),
        matvec=lambda vector: product(centred, vector),
        rmatvec=lambda vector: product(centred.T, vector),
        dtype=np.float32 if centred.dtype == torch.float32 else np.float64,
    )
    # A fixed start makes the result the same for the same features.
    start = np.random.default_rng(0).standard_normal(min(rows, columns)).astype(operator.dtype)
    _, values, vectors = svds(operator, k=count, v0=start, return_singular_vectors="vh")
    order = np.argsort(values)[::-1].copy()
    found = torch.from_numpy(vectors[order].copy())
    return torch.from_numpy(values[order].copy()).to(centred), found.to(centred)


def outlier_scores(features: Tensor, *, centred: bool = True) -> Tensor:
    """Return the outlier score of each image of one label, float [n].

    Parameters
    ----------
    features : float [n, d], the representations R(x_i) of the label's images.
    centred : the paper's score, line 9 of Algorithm 1,
        ``tau_i = ((R(x_i) - mean R) . v)^2``; False gives the released code's
        ``|R(x_i) . v|``, whose v is the same but whose features keep their mean.

    Raises
    ------
    PoisonkitError
        For fewer than three images, or features that are not finite or constant.
    """
    if features.dtype not in (torch.float32, torch.float64):
        features = features.float()
    check_features(features)
    deviations = features - features.mean(0)
    _, vectors = top_singular_vectors(deviations)
    if centred:
        return (deviations @ vectors[0]).square()
    return (features @ vectors[0]).abs()


@dataclass(frozen=True)
class Filtered:
    """What the spectral filter decided.

    Attributes
    ----------
    keep : bool [N], the images to train on again.
    scores : float [N], the outlier score of each image within its label; NaN for
        labels that were not examined.
    removed_per_label : number of images removed, by label.
    """

    keep: Tensor
    scores: Tensor
    removed_per_label: dict[int, int]


def spectral_filter(
    features: Tensor,
    labels: Tensor,
    *,
    suspected: int | None = None,
    factor: float = REMOVAL_FACTOR,
    percentile: float | None = None,
    only_labels: Sequence[int] | None = None,
    centred: bool = True,
) -> Filtered:
    """Score the images of every label and remove the highest scores (Algorithm 1).

    Parameters
    ----------
    features : float [N, d].
    labels : int64 [N].
    suspected : epsilon, the upper bound on the number of poisoned images of a
        label; ``ceil(factor * suspected)`` images of each label are removed.
    percentile : remove instead what scores above this percentile of its label,
        as the released code does with 85. Exactly one of the two is given.
    only_labels : examine these labels only (the released code is told the
        poisoned one); by default all.
    centred : see :func:`outlier_scores`.

    Raises
    ------
    PoisonkitError
        If more images are to be removed than a label has, or its features have
        no signature. Nothing is changed in that case, as never.
    """
    _check_request(features, labels, suspected, factor, percentile)
    present = labels.unique().tolist()
    examined = present if only_labels is None else list(only_labels)
    keep = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    scores = features.new_full((len(labels),), math.nan)
    removed: dict[int, int] = {}
    for label in examined:
        if label not in present:
            raise PoisonkitError(f"no image has label {label}; present: {present}")
        rows = torch.nonzero(labels == label).flatten()
        own = features[rows]
        check_features(own, what=f"the features of label {label}")
        count = math.ceil(factor * suspected) if suspected is not None else None
        if count is not None and count >= len(rows):
            raise PoisonkitError(
                f"{count} images of label {label} are to be removed, but it has {len(rows)}"
            )
        scores[rows] = outlier_scores(own, centred=centred)
        out = _worst(scores[rows], count, percentile)
        keep[rows[out]] = False
        removed[label] = len(out)
    return Filtered(keep=keep, scores=scores, removed_per_label=removed)


def _check_request(
    features: Tensor,
    labels: Tensor,
    suspected: int | None,
    factor: float,
    percentile: float | None,
) -> None:
    if features.ndim != 2 or len(features) != len(labels):
        raise PoisonkitError(
            f"features of shape {list(features.shape)} do not fit {len(labels)} labels"
        )
    if (suspected is None) == (percentile is None):
        raise PoisonkitError("give either the number of suspected poisons or a percentile")
    if suspected is not None and (suspected < 1 or factor <= 0):
        raise PoisonkitError(
            f"suspected must be at least 1 and factor positive, not {suspected} and {factor}"
        )
    if percentile is not None and not 0 < percentile < 100:
        raise PoisonkitError(f"the percentile must lie in (0, 100), not {percentile}")


def _worst(scores: Tensor, count: int | None, percentile: float | None) -> Tensor:
    if count is not None:
        return scores.argsort(descending=True, stable=True)[:count]
    assert percentile is not None
    threshold = np.percentile(scores.cpu().numpy(), percentile)
    return torch.nonzero(scores > float(threshold)).flatten()
