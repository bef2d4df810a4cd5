"""What figure tests read off matplotlib's artists and tables."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from poisonkit.experiments import EXPERIMENTS
from poisonkit.store import Json, Record


def summed_up(
    experiment: str, trials: list[Json], arrays: Json | None = None, **config: Any
) -> Record:
    """A record of these trials, summed up as the experiment does, that lies in no file."""
    metrics: Json = {"trials": trials}
    if experiment in EXPERIMENTS:
        metrics |= EXPERIMENTS[experiment].summarise(SimpleNamespace(**config), trials)
    about: Json = {"config": config, "metrics": metrics, "provenance": {}, "digest": ""}
    record = Record(experiment=experiment, version=1, path=Path(), **about)
    vars(record)["arrays"] = arrays or {}
    return record


def points(line: Any) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]


def named(axes: Any, label: str) -> Any:
    [found] = [line for line in axes.lines if line.get_label() == label]
    return found


def marks(axes: Any, marker: str, colour: str) -> list[tuple[float, float]]:
    """The points drawn with a marker, or the ends of plain lines if it is "None"."""
    own = [line for line in axes.lines if (line.get_marker(), line.get_color()) == (marker, colour)]
    return [point for line in own for point in points(line)]


def close(found: Any, expected: Any) -> bool:
    return np.shape(found) == np.shape(expected) and np.allclose(found, expected)
