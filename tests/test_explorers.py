"""Explorers answer every control, and show a mistake as a sentence, never as a traceback."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ipywidgets")

from explorer_controls import controls, status

from poisonkit.experiments import EXPERIMENTS
from poisonkit.explorers import spectral_signatures as explorers

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("POISONKIT_CACHE", str(tmp_path))
    return EXPERIMENTS["spectral_signatures/removal"].configure(
        profile="quick", **{"recipe.epochs": 2}
    )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that an explorer has shown, in order."""
    shown: list[Any] = []
    monkeypatch.setattr(explorers, "_replace", lambda output, figure: shown.append(figure))
    return shown


def test_moving_the_trigger_moves_its_pixels(config: Any, drawn: list[Any]) -> None:
    box = explorers.trigger_explorer(config, device="cpu")
    controls(box)["pattern"].value = "pixel"
    controls(box)["row"].value = 3
    controls(box)["column"].value = 5
    controls(box)["grey"].value = 77
    image = drawn[-1].axes[0].images[0].get_array()
    assert image[3, 5] == 77
    assert len(drawn) == 5


def test_every_place_of_the_trigger_can_be_shown(config: Any, drawn: list[Any]) -> None:
    box = explorers.trigger_explorer(config, device="cpu")
    for row, column in ((0, 0), (15, 15)):
        controls(box)["row"].value, controls(box)["column"].value = row, column
    assert len(drawn) > 1


def test_the_threshold_answers_without_training_again(config: Any, drawn: list[Any]) -> None:
    box = explorers.removal_explorer(config, device="cpu")
    before = status(box)
    assert "poisoned images" in before
    controls(box)["removal"].value = 0
    assert drawn[-1].axes[0].get_title().startswith("removed 0 of")
    assert status(box) == before


def test_every_layer_can_be_chosen(config: Any, drawn: list[Any]) -> None:
    box = explorers.removal_explorer(config, device="cpu")
    layer = controls(box)["layer"]
    assert {"block1", "hidden", "linear"} <= set(layer.options)
    shown = len(drawn)
    layer.value = "block1"
    assert len(drawn) > shown


def test_a_trigger_across_the_border_is_a_sentence(config: Any, drawn: list[Any]) -> None:
    box = explorers.removal_explorer(config, device="cpu")
    controls(box)["row"].value = 0
    controls(box)["Poison and train"].click()
    assert "outside images of 16 x 16" in status(box)
    assert not controls(box)["Poison and train"].disabled


def test_beyond_quick_nothing_trains_before_the_button_is_pressed(
    config: Any, drawn: list[Any]
) -> None:
    from dataclasses import replace

    box = explorers.removal_explorer(replace(config, profile="small"), device="cpu")
    assert status(box) == ""
    assert not drawn
    controls(box)["Poison and train"].click()
    assert "poisoned images" in status(box)
