"""What victims of the Convex Polytope trials do that train a new last layer on the poisons."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from poisonkit.attacks.surrounding import Substitute, distances, features_at
from poisonkit.experiments.convex_polytope.data import Data, taps_of
from poisonkit.experiments.convex_polytope.setting import PolytopeConfig
from poisonkit.experiments.convex_polytope.steps import Poisons, victim
from poisonkit.experiments.networks import Context, Cost
from poisonkit.fine_tuning import classify, fit_linear
from poisonkit.images import ImageSet
from poisonkit.models import Classifier, evaluating, features
from poisonkit.statistics import wilson
from poisonkit.store import Json


class FrozenVictim:
    """A victim of which only the linear layer is trained (transfer learning).

    Parameters
    ----------
    network : as it was pre-trained.
    layer : name of the part whose output enters the linear layer.
    """

    def __init__(self, config: PolytopeConfig, data: Data, network: Classifier, layer: str) -> None:
        self._config, self._data, self._network = config, data, network
        self._seen = Substitute(network=network, taps=(layer,))
        self._features = features(network, data.fine_tuning.x, layer)
        self._test = features(network, data.test.x, layer)
        self._rows = torch.tensor(data.rows, device=self._features.device)

    def of(self, x: Tensor) -> Tensor:
        """Return the features [N, d] of float images in [0, 1]."""
        with torch.no_grad(), evaluating(self._network):
            return torch.cat([features_at(self._seen, part)[0].flatten(1) for part in x.split(100)])

    def fine_tune(
        self, images: Tensor | None = None, *, kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Train a linear layer for each set of poisons.

        Parameters
        ----------
        images : poisons [T, k, C, H, W], uint8 or in [0, 1]; without them, the one layer of
            the clean training set.
        kept : see :func:`poisonkit.fine_tuning.fit_linear`.
        """
        layer = self._network.get_submodule("body.linear")
        assert isinstance(layer, nn.Linear)
        replaced = None if images is None else self.poisoned_features(images)
        return fit_linear(
            self._features,
            self._data.fine_tuning.y,
            layer,
            self._config.fine_tuning,
            seed=self._config.seed,
            replaced=replaced,
            rows=None if replaced is None else self._rows,
            kept=kept,
        )

    def poisoned_features(self, images: Tensor) -> Tensor:
        """Return the features [T, k, d] of poisons."""
        x = images if images.is_floating_point() else images.float() / 255
        return self.of(x.flatten(0, 1)).unflatten(0, images.shape[:2])

    def poisoned_sets(self, images: Tensor) -> Tensor:
        """Return the features [T, n, d] of the fine-tuning images with the poisons in them."""
        found = self._features.repeat(len(images), 1, 1)
        found[:, self._rows] = self.poisoned_features(images)
        return found

    def predict(self, weight: Tensor, bias: Tensor, targets: ImageSet) -> list[int]:
        """Return what each layer takes its own target for (or the only one, every target)."""
        found = self.of(targets.x.float() / 255)
        asked = found if len(weight) == 1 else found[:, None]
        return [int(label) for label in classify(weight, bias, asked).flatten()]

    def accuracies(self, weight: Tensor, bias: Tensor) -> list[float]:
        """Return each layer's accuracy on the test images."""
        right = [
            (classify(w[None], b[None], self._test)[0] == self._data.test.y).double().mean()
            for w, b in zip(weight, bias, strict=True)
        ]
        return [float(share) for share in right]

    def distances(self, images: Tensor, targets: ImageSet) -> tuple[list[float], list[float]]:
        """See :func:`poisonkit.attacks.surrounding.distances`."""
        x = images if images.is_floating_point() else images.float() / 255
        near, single = distances(self._seen, x, targets.x.float() / 255)
        return near.tolist(), single.tolist()


def attack_frozen(
    config: PolytopeConfig, data: Data, name: str, poisons: Poisons, context: Context, cost: Cost
) -> Json:
    """Fine-tune a victim's linear layer on the poisons of each target.

    Returns
    -------
    For each target what it is taken for (``predictions``; ``unrounded``, from poisons
    before rounding; ``clean``, without poisons), the share of its poisons that are
    ``fitted``, the squared distances to its polytope and to a poison, and the accuracy on
    test images; ``clean_accuracy`` without poisons.
    """
    network = victim(config, data, name, context, cost)
    [layer] = taps_of(network, name, "last")
    frozen = FrozenVictim(config, data, network, layer)
    clean, poisoned = frozen.fine_tune(), frozen.fine_tune(poisons.rounded)
    fitted = classify(*poisoned, frozen.poisoned_features(poisons.rounded)) == data.poison_label
    to_polytope, to_poison = frozen.distances(poisons.rounded, poisons.targets)
    return {
        "victim": name,
        "predictions": frozen.predict(*poisoned, poisons.targets),
        "unrounded": frozen.predict(*frozen.fine_tune(poisons.images), poisons.targets),
        "clean": frozen.predict(*clean, poisons.targets),
        "fitted": fitted.double().mean(1).tolist(),
        "to_polytope": to_polytope,
        "to_poison": to_poison,
        "accuracy": frozen.accuracies(*poisoned),
        "clean_accuracy": frozen.accuracies(*clean)[0],
    }


def success(entries: Sequence[Json], label: int, *, of: str = "predictions") -> Json:
    """Return how many targets are taken for the poisons' class, over all entries given."""
    found = [prediction == label for entry in entries for prediction in entry[of]]
    low, high = wilson(sum(found), len(found))
    return {
        "hits": sum(found),
        "targets": len(found),
        "rate": sum(found) / len(found),
        "low": low,
        "high": high,
    }
