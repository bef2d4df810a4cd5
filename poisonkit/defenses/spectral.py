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
    # By column, so that no mask as large as the features is made; NaN carries through both.
    lowest, highest = features.amin(0), features.amax(0)
    if not bool((torch.isfinite(lowest) & torch.isfinite(highest)).all()):
        row = int(torch.nonzero(~torch.isfinite(features).all(1))[0])
        raise PoisonkitError(f"{what} are not finite (first in row {row})")
    if torch.equal(lowest, highest):
        raise PoisonkitError(
            f"{what} are the same for all {len(features)} images; a network that has learned "
            "nothing may be the reason, or a layer that is never active"
        )


def _precision(features: Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _take_off_mean(matrix: Tensor) -> Tensor:
    """Subtract from a matrix the mean [d] of its columns, which is returned.

    It is taken off twice. A mean of 10,000 times the spread, rounded to float32, is off
    by a thousandth of the spread; that rest is small, and so can be known exactly.
    """
    mean = matrix.mean(0)
    matrix -= mean
    rest = matrix.mean(0)
    matrix -= rest
    return mean + rest


def top_singular_vectors(centred: Tensor, *, count: int = 1) -> tuple[Tensor, Tensor]:
    """Return the largest singular values [count] and right singular vectors [count, d].

    The Lanczos iteration of ARPACK asks for products with the matrix and its
    transpose only, which are formed where the matrix lies; no full decomposition
    is made. Matrices too small for it are decomposed directly.

    Parameters
    ----------
    centred : float32 or float64 [n, d], each column of mean zero.

    Raises
    ------
    PoisonkitError
        If the matrix is not finite, or all zeros.
    """
    rows, columns = centred.shape
    largest = float(torch.linalg.vector_norm(centred, math.inf))
    if not 0 < largest < math.inf:
        raise PoisonkitError("a matrix that is not finite, or all zeros, has no top direction")
    if count >= min(rows, columns) - 1:
        _, values, vectors = torch.linalg.svd(centred.double(), full_matrices=False)
        return values[:count].to(centred.dtype), vectors[:count].to(centred.dtype)

    def product(matrix: Tensor, vector: np.ndarray) -> np.ndarray:
        moved = torch.from_numpy(np.ascontiguousarray(vector).reshape(-1)).to(matrix)
        # The iteration is less exact for singular values below 0.005: keep them above 1.
        return (matrix @ moved).div_(largest).cpu().numpy()

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
    return torch.from_numpy(values[order] * largest).to(centred), found.to(centred)


def outlier_scores(features: Tensor | np.ndarray, *, centred: bool = True) -> Tensor:
    """Return the outlier score of each image of one label, float [n].

    Parameters
    ----------
    features : float [n, d], the representations R(x_i) of the label's images.
    centred : the paper's score, line 9 of Algorithm 1,
        ``tau_i = ((R(x_i) - mean R) . v)^2``; False gives the released code's
        ``|R(x_i) . v|``, whose v is the same but whose features keep their mean.

    Returns
    -------
    float32, or float64 if the features are: within 1e-4 of the largest score of what a
    full decomposition in float64 gives. For float32 that holds while the largest singular
    value is 0.3 % above the second; if it is not, give the features as float64.

    Raises
    ------
    PoisonkitError
        For fewer than three images, features that are not finite or constant, or so
        large or small that no score is a number of their precision.
    """
    features = torch.as_tensor(features).detach()
    check_features(features)
    return _scores(features.to(_precision(features), copy=True), centred)


def _scores(matrix: Tensor, centred: bool) -> Tensor:
    """Score checked features [n, d], which are centred where they lie to save their memory."""
    mean = _take_off_mean(matrix)
    _, vectors = top_singular_vectors(matrix)
    distances = matrix @ vectors[0]
    scores = distances.square() if centred else (distances + mean @ vectors[0]).abs()
    if not 0 < float(scores.max()) < math.inf:
        raise PoisonkitError(
            f"the outlier scores are too large or too small for {scores.dtype}; "
            "scale the features, or give them as float64"
        )
    return scores


@dataclass(frozen=True)
class Filtered:
    """What the spectral filter decided.

    Attributes
    ----------
    keep : bool [N], the images to train on again.
    scores : float32 (float64 if the features are) [N], the outlier score of each
        image within its label; NaN for labels that were not examined.
    removed_per_label : number of images removed, by label.
    """

    keep: Tensor
    scores: Tensor
    removed_per_label: dict[int, int]


def spectral_filter(
    features: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
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
    features : float [N, d], of torch or numpy, as the labels.
    labels : integers [N].
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
    features, labels = torch.as_tensor(features).detach(), torch.as_tensor(labels)
    _check_request(features, labels, suspected, factor, percentile)
    # A product such as 1.1 * 100 lies above 110 by rounding alone.
    count = math.ceil(factor * suspected - 1e-9) if suspected is not None else None
    rows_of = _rows_of_labels(labels, only_labels)
    # All labels before the first decomposition: a refusal should not take minutes.
    for label, rows in rows_of.items():
        check_features(features[rows], what=f"the features of label {label}")
        if count is not None and count >= len(rows):
            raise PoisonkitError(
                f"{count} images of label {label} are to be removed, but it has {len(rows)}"
            )
    keep = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    scores = features.new_full((len(labels),), math.nan, dtype=_precision(features))
    removed: dict[int, int] = {}
    for label, rows in rows_of.items():
        own = _scores(features[rows].to(scores.dtype), centred)
        scores[rows] = own
        out = _worst(own, count, percentile)
        keep[rows[out]] = False
        removed[label] = len(out)
    return Filtered(keep=keep, scores=scores, removed_per_label=removed)


def _rows_of_labels(labels: Tensor, only: Sequence[int] | None) -> dict[int, Tensor]:
    """Return the rows [n] of each label to examine, by label."""
    present = labels.unique().tolist()
    for label in only or ():
        if label not in present:
            raise PoisonkitError(f"no image has label {label}; present: {present}")
    examined = present if only is None else only
    return {label: torch.nonzero(labels == label).flatten() for label in examined}


def _check_request(
    features: Tensor,
    labels: Tensor,
    suspected: int | None,
    factor: float,
    percentile: float | None,
) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise PoisonkitError(
            f"features of shape {list(features.shape)} do not fit "
            f"labels of shape {list(labels.shape)}"
        )
    if features.device != labels.device:
        raise PoisonkitError(f"features are on {features.device}, labels on {labels.device}")
    if (suspected is None) == (percentile is None):
        raise PoisonkitError("give either the number of suspected poisons or a percentile")
    if suspected is not None and not (1 <= suspected < math.inf and 0 < factor < math.inf):
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
