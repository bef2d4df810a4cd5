"""Beyond the paper: a victim's own measures, and where paper and released code differ."""

from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from poisonkit.figures.common import percent, plain
from poisonkit.figures.deep_confuse.shared import Series, accuracy_rows, chance
from poisonkit.store import Json, Record

_XLABEL = "accuracy on clean test images (%)"
_DEFENCE_MEANING: dict[str, Callable[[Json], str]] = {
    "none": lambda config: "trained as the others",
    "crops": lambda config: "crops at random places, two pixels of padding",
    "gaussian noise": lambda config: f"normal noise of deviation {config['epsilon'] / 2:g}",
    "adversarial training": lambda config: (
        f"each batch attacked by {config['attack_steps']} steps of projected gradient ascent "
        f"within {config['epsilon']:g}"
    ),
    "spectral filter": lambda config: (
        "the highest scores of Spectral Signatures removed (released percentile), "
        "then trained again"
    ),
}


def defences_figure(record: Record) -> Figure:
    """Draw the accuracy with each measure, after training on clean and on perturbed images."""
    names = record.config["defences"]
    series = [
        Series(
            label=f"trained on {kind} images",
            colour=colour,
            runs=[
                [t[kind] for t in record.metrics["trials"] if t["defence"] == name]
                for name in names
            ],
        )
        for kind, colour in {"clean": "clean", "perturbed": "poisoned"}.items()
    ]
    return accuracy_rows(names, series, guessing=chance(record), xlabel=_XLABEL)


def defences_table(record: Record) -> Styler:
    """Return what each measure does, and what it costs and saves."""
    rows = [
        {
            "Measure": row["defence"],
            "Meaning": _DEFENCE_MEANING.get(row["defence"], lambda _: "-")(record.config),
            "Trained on clean images": percent(row["clean"], row["clean_deviation"]),
            "On perturbed images": percent(row["perturbed"], row["perturbed_deviation"]),
            "Runs": row["runs"],
        }
        for row in record.metrics["rows"]
    ]
    return plain(pd.DataFrame(rows))


_SWITCH_MEANING = {
    "paper": "the default network, but with maxima and logits as they are; all others begin here",
    "selected on the test images": "the generator whose noise leaves the lowest test accuracy",
    "last trial, not selected": "the generator as it is after the last trial",
    "trajectory stored (Algorithm 1)": "the generator learns after each trial, not during it",
    "no batch normalisation": "network and surrogate as the paper's text describes them",
    "no batch normalisation at all": "network and surrogate likewise, and the generator",
    "5x5 kernels without padding": "network and surrogate with larger convolutions",
    "average pooling": "network and surrogate with averages instead of maxima",
    "normalised logits": "network and surrogate with batch normalisation of the outputs, too",
    "average pooling, normalised logits": "both of these: the default network, that of Table 1",
    "surrogates with 5x5 kernels": "noise of larger convolutions, the classifiers are not changed",
    "surrogates with average pooling": "noise of averages, the classifiers are not changed",
    "surrogates with normalised logits": "noise of normalised logits, the classifiers likewise",
    "released network for surrogates": "noise of the code's, the first row's trained on it",
    "released network for classifiers": "noise of the first row's, the code's trained on it",
    "released network": "kernels, pooling and logits at a time, for both",
    "rate of the surrogates 0.01": "the paper's rate, where the profile sets another",
    "released network, rate 0.01": "the code's network, with the paper's rate of its surrogates",
    "released generator": "the code's encoder-decoder",
    "released": "network, generator, selection and training as in the code",
}


def switches_figure(record: Record) -> Figure:
    """Draw the accuracy with each switch, in eval mode and by the statistics of test batches."""
    names = record.config["switches"]
    modes = {"accuracy": ("eval mode", True), "batch_statistics": ("batch statistics", False)}
    series = [
        Series(
            label=f"{kind}, {mode}",
            colour=colour,
            runs=[
                [t[kind][how] for t in record.metrics["trials"] if t["switch"] == name]
                for name in names
            ],
            filled=filled,
        )
        for kind, colour in {"clean": "clean", "perturbed": "poisoned"}.items()
        for how, (mode, filled) in modes.items()
    ]
    return accuracy_rows(names, series, guessing=chance(record), xlabel=_XLABEL)


def switches_table(record: Record) -> Styler:
    """Return what each switch changes, and the accuracies behind :func:`switches_figure`."""
    rows = []
    for row in record.metrics["rows"]:
        shown = {"Switch": row["switch"], "Meaning": _SWITCH_MEANING.get(row["switch"], "-")}
        for kind, title in {"clean": "Clean", "perturbed": "Perturbed"}.items():
            shown[f"{title}, eval mode"] = percent(**row[f"{kind}.accuracy"])
            shown[f"{title}, batch statistics"] = percent(**row[f"{kind}.batch_statistics"])
        rows.append({**shown, "Runs": row["runs"]})
    return plain(pd.DataFrame(rows))
