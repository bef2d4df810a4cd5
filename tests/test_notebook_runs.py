"""Every notebook runs from any folder, at a size below quick, with and without explorers."""

from pathlib import Path
from typing import Any

import pytest

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

papermill = pytest.importorskip("papermill")
pytestmark = pytest.mark.slow


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.fixture
def run_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from poisonkit.notebook import kernel_settings

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POISONKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run_at(path: Path, **parameters: object) -> Any:
        with kernel_settings() as settings:
            return papermill.execute_notebook(
                path,
                tmp_path / path.name,
                parameters=parameters,
                kernel_name="python3",
                progress_bar=False,
                **settings,
            )

    return run_at


PATHS = sorted(BELOW.glob("*/*.ipynb"))
#: With explorers all of them; as the book runs them, which shows none, one of each chapter.
RUNS = [(path, True) for path in PATHS]
RUNS += [(path, False) for path in {path.parent: path for path in PATHS}.values()]


@pytest.mark.parametrize(
    ("path", "interactive"),
    [pytest.param(path, live, id=f"{path.parent.name}-{path.stem}-{live}") for path, live in RUNS],
)
def test_a_chapter_notebook_runs(
    path: Path, interactive: bool, run_at: Any, tmp_path: Path
) -> None:
    tiny = TINY_OF.get(path.stem) or TINY_IN.get(path.parent.name, TINY)
    executed = run_at(path, interactive=interactive, **tiny)
    shown = [output.get("data", {}) for output in outputs(executed)]
    assert any("image/png" in data for data in shown)
    explorers = [data for data in shown if data.get("text/plain", "").startswith("VBox(")]
    assert bool(explorers) == interactive
    assert list((tmp_path / "cache" / "records").rglob("*.json"))
    assert not [output for output in outputs(executed) if output.output_type == "error"]


def test_the_scorecard_shows_every_exhibit(run_at: Any) -> None:
    from poisonkit.claims import EXHIBITS

    executed = run_at(BELOW / "scorecard.ipynb")
    shown = "".join(
        str(output.get("data", {}).get("text/html", "")) for output in outputs(executed)
    )
    assert all(exhibit.exhibit in shown for exhibit in EXHIBITS)


def test_another_attack_can_be_chosen_by_parameters(run_at: Any) -> None:
    attack = {"source": "3", "target": "8", "pattern": "L", "position": (2, 2), "share": 0.2}
    executed = run_at(
        BELOW / "spectral_signatures" / "removal.ipynb", interactive=False, **attack, **TINY
    )
    assert "3 → 8, 20%" in str(outputs(executed))
