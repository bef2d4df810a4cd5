"""Every notebook runs from any folder, at a size below quick, with and without explorers."""

import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from poisonkit.workers import process_pool, usable_cores

CHECKOUT = Path(__file__).resolve().parent.parent
BELOW = CHECKOUT / "notebooks"
TINY: dict[str, Any] = {"trials": 1, "options": {"recipe.epochs": 2}}
#: Lemma 3.1 and Proposition 1 in numbers train nothing.
TINY_OF = {
    "lemma": {"trials": 1, "options": {"samples": 1000, "dimensions": 4}},
    "proposition": {"trials": 2},
}
#: Deep Confuse's trials are those of a generator, and classifiers are repeated for each;
#: Convex Polytope has targets, and MetaPoison surrogates and steps.
TINY_IN = {
    "deep_confuse": {
        "trials": 1,
        "repeats": 1,
        "options": {"recipe.epochs": 1, "select_epochs": 1, "images_per_class": 40},
    },
    "metapoison": {
        "steps": 2,
        "options": {"recipe.epochs": 1, "procedure.surrogates": 2},
    },
    "convex_polytope": {
        "targets": 2,
        "iterations": 2,
        "options": {"pretraining.epochs": 1, "fine_tuning.epochs": 2},
    },
}

pytest.importorskip("papermill")
pytestmark = pytest.mark.slow

PATHS = sorted(BELOW.glob("*/*.ipynb"))
#: With explorers all of them; as the book runs them, which shows none, one of each chapter.
CHAPTER_RUNS = [(path, True) for path in PATHS]
CHAPTER_RUNS += [(path, False) for path in {path.parent: path for path in PATHS}.values()]
Run = tuple[Path, dict[str, Any]]
RUNS: dict[str, Run] = {
    f"{path.parent.name}-{path.stem}-{live}": (
        path,
        {
            "interactive": live,
            **(TINY_OF.get(path.stem) or TINY_IN.get(path.parent.name, TINY)),
        },
    )
    for path, live in CHAPTER_RUNS
}
#: What a page shows with the network of Deep Confuse's released code.
for stem, choice in {
    "epsilon": {"network": "code"},
    "share": {"network": "code"},
    "label_map": {"network": "code"},
    "transfer": {"dataset": "mnist_network"},
}.items():
    given = {"interactive": False, **TINY_IN["deep_confuse"], **choice}
    RUNS[f"{stem}, the code's network"] = (BELOW / "deep_confuse" / f"{stem}.ipynb", given)
CHAPTERS = [*RUNS]
SCORECARD, OTHER_ATTACK = "scorecard", "another attack"
RUNS[SCORECARD] = (BELOW / "scorecard.ipynb", {})
RUNS[OTHER_ATTACK] = (
    BELOW / "spectral_signatures" / "removal.ipynb",
    {
        "interactive": False,
        **TINY,
        "source": "3",
        "target": "8",
        "pattern": "L",
        "position": (2, 2),
        "share": 0.2,
    },
)


def execute(run: Run, folder: Path) -> str:
    """Execute a notebook in a folder, with a cache there; return the traceback of a failure."""
    import papermill
    from nbclient.output_widget import OutputWidget

    from poisonkit.notebook import kernel_settings

    answered = AssertionError("displayed within an output: see poisonkit.explorers.shared.show")
    path, parameters = run
    os.chdir(folder)
    os.environ |= {"POISONKIT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    try:
        with (
            patch.object(OutputWidget, "sync_state", side_effect=answered),
            kernel_settings() as settings,
        ):
            papermill.execute_notebook(
                path,
                folder / "executed.ipynb",
                parameters=parameters,
                kernel_name="python3",
                progress_bar=False,
                **settings,
            )
    except Exception:
        return traceback.format_exc()
    return ""


@pytest.fixture(scope="module")
def folders(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Path]]:
    """Execute what the chosen tests ask for, one a core, and wait for one by its name."""
    here = [item for item in request.session.items if item.path == Path(__file__)]
    names = [item.callspec.params["name"] for item in here]
    with process_pool(usable_cores()) as pool:
        where = {name: tmp_path_factory.mktemp("run") for name in names}
        runs = {name: pool.submit(execute, RUNS[name], where[name]) for name in names}

        def wait(name: str) -> Path:
            assert not (failure := runs[name].result()), failure
            return where[name]

        yield wait


def outputs(folder: Path) -> list[Any]:
    import nbformat

    notebook = nbformat.read(folder / "executed.ipynb", as_version=4)
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_notebook_runs(name: str, folders: Callable[[str], Path]) -> None:
    folder = folders(name)
    shown = [output.get("data", {}) for output in outputs(folder)]
    assert any("image/png" in data for data in shown)
    explorers = [data for data in shown if data.get("text/plain", "").startswith("VBox(")]
    assert bool(explorers) == RUNS[name][1]["interactive"]
    assert list((folder / "cache" / "records").rglob("*.json"))
    assert not [output for output in outputs(folder) if output.output_type == "error"]


@pytest.mark.parametrize("name", [SCORECARD])
def test_the_scorecard_shows_every_exhibit(name: str, folders: Callable[[str], Path]) -> None:
    from poisonkit.claims import EXHIBITS

    shown = "".join(
        str(output.get("data", {}).get("text/html", "")) for output in outputs(folders(name))
    )
    assert all(exhibit.exhibit in shown for exhibit in EXHIBITS)


@pytest.mark.parametrize("name", [OTHER_ATTACK])
def test_another_attack_can_be_chosen_by_parameters(
    name: str, folders: Callable[[str], Path]
) -> None:
    assert "3 → 8, 20%" in str(outputs(folders(name)))
