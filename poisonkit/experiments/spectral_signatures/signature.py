"""Figures 1 and 2, Table 1: what separates a label's poisoned images from its clean ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from poisonkit.defenses.spectral import top_singular_vectors
from poisonkit.evaluation import evaluate, predict
from poisonkit.experiments.networks import Context
from poisonkit.experiments.running import Experiment
from poisonkit.experiments.spectral_signatures.setting import (
    HAND_MADE,
    QUICK,
    SMALL,
    VARIANTS,
    SpectralConfig,
    units,
)
from poisonkit.experiments.spectral_signatures.steps import begin, is_captured, train_on
from poisonkit.models import features
from poisonkit.statistics import auroc, mean_and_deviation
from poisonkit.store import Json


def views(images: Tensor, representation: Tensor, *, seed: int) -> dict[str, Tensor]:
    """Return the six quantities of Figure 1, one value for each image of a label.

    ``pixels`` and ``representation`` by ``norm`` (L2), ``random`` and ``top``: the
    distance from the mean along a random direction and along the top right
    singular vector of the centred data.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, matrix in (
        ("pixels", images.flatten(1).float() / 255),
        ("representation", representation),
    ):
        centred = matrix - matrix.mean(0)
        direction = torch.randn(matrix.shape[1], generator=generator).to(matrix)
        _, top = top_singular_vectors(centred)
        found[f"{name}.norm"] = matrix.norm(dim=1)
        found[f"{name}.random"] = (centred @ (direction / direction.norm())).abs()
        found[f"{name}.top"] = (centred @ top[0]).abs()
    return found


def statistics(representation: Tensor, poisoned: Tensor) -> Json:
    """Return Table 1's numbers for one label: without its poisoned images, and with them.

    ``norm`` is the length of the mean representation, ``singular_values`` the three
    largest of the centred matrix, ``shift`` the distance between the two means.
    """
    found: Json = {}
    means = []
    for name, part in (("clean", representation[~poisoned]), ("all", representation)):
        means.append(part.mean(0))
        values, _ = top_singular_vectors(part - means[-1], count=3)
        found[name] = {"norm": float(means[-1].norm()), "singular_values": values.tolist()}
    return found | {"shift": float((means[1] - means[0]).norm())}


def signature_trial(
    config: SpectralConfig, unit: Json, context: Context
) -> tuple[Json, dict[str, Tensor]]:
    """Measure Figure 1's quantities and Table 1's on the poisoned label; take Figure 2's images."""
    data, cost = begin(config, unit, context)
    model = train_on(config, data.train, unit["seed"], context, cost, "poisoned")
    own = data.train.y == data.target
    images, mask = data.train.x[own], data.mask[own]
    representation = features(model, images, config.tap, pool=config.pool)
    seen = views(images, representation, seed=unit["seed"])
    natural, triggered = predict(model, data.source_test.x), predict(model, data.triggered)
    fooled = (natural == data.source_test.y) & (triggered == data.target)
    # Images on which the backdoor works come first, as in the paper's figure.
    shown = torch.argsort(fooled.long(), descending=True, stable=True)[:4]
    hits_before = int((triggered == data.target).sum())
    numbers = {
        **unit,
        **data.facts(),
        "natural_before": evaluate(model, data.test),
        "hits_before": hits_before,
        "captured": is_captured(hits_before, len(triggered)),
        "auroc": {name: auroc(mask, values) for name, values in seen.items()},
        "statistics": statistics(representation, mask),
        "class_names": list(data.test.class_names),
    }
    arrays = {
        **{name: values.float() for name, values in seen.items()},
        "poisoned": mask,
        "natural_images": data.source_test.x[shown],
        "natural_predictions": natural[shown],
        "triggered_images": data.triggered[shown],
        "triggered_predictions": triggered[shown],
    }
    return {**numbers, "cost": cost.as_json()}, arrays


def signature_summary(config: SpectralConfig, trials: Sequence[Json]) -> Json:
    """The separation of each of the six views over all runs, and over the captured ones."""
    captured = [trial for trial in trials if trial["captured"]]
    found: Json = {"runs": len(trials), "captured": len(captured)}
    for name, chosen in (("all", trials), ("captured_only", captured)):
        if chosen:
            found[name] = {
                view: dict(zip(("mean", "deviation", "lowest"), _spread(chosen, view), strict=True))
                for view in chosen[0]["auroc"]
            }
    return found


def _spread(trials: Sequence[Json], view: str) -> tuple[float, float | None, float]:
    values = [trial["auroc"][view] for trial in trials]
    return *mean_and_deviation(values), min(values)


_PAIRS: dict[str, object] = {"pairs": tuple(HAND_MADE), "shares": (0.10,)}
SIGNATURE = Experiment(
    name="spectral_signatures/signature",
    summary="Figures 1 and 2, Table 1: what separates poisoned from clean images of a label",
    version=2,
    config=SpectralConfig,
    profiles={"quick": QUICK, "small": {**SMALL, **_PAIRS}, "paper": _PAIRS},
    variants=VARIANTS,
    units=units,
    trial=signature_trial,
    check=begin,
    summarise=signature_summary,
)
