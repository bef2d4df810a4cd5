"""Explorers answer every control, and show a mistake as a sentence, never as a traceback."""

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("ipywidgets")

from explorer_controls import controls, status
from ipywidgets import Output

from poisonkit.experiments import EXPERIMENTS
from poisonkit.explorers import spectral_signatures as explorers
from poisonkit.explorers.shared import show
from poisonkit.plots import panels

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
    monkeypatch.setattr(explorers, "show", lambda output, figure: shown.append(figure))
    return shown


def test_an_output_shows_one_figure_the_last_without_anything_displayed_within_it() -> None:
    """What is displayed within an output, a client that runs the notebook has to answer."""
    output = Output()
    messages: list[Any] = []
    output.observe(lambda change: messages.append(change["new"]), names="msg_id")
    pictures = []
    for colour in ("red", "blue"):
        figure, [[axes]] = panels(1, 1, size=(2, 1))
        axes.set_facecolor(colour)
        show(output, figure)
        [shown] = output.outputs
        assert shown["output_type"] == "display_data"
        image = Image.open(io.BytesIO(base64.b64decode(shown["data"]["image/png"])))
        pictures.append(image.convert("RGB").getpixel((image.width // 2, image.height // 3)))
    assert pictures == [(255, 0, 0), (0, 0, 255)]
    assert not messages


def test_moving_the_trigger_moves_its_pixels(config: Any, drawn: list[Any]) -> None:
    box = explorers.trigger_explorer(config, device="cpu")
    controls(box)["pattern"].value = "pixel"
    controls(box)["row"].value = 3
    controls(box)["column"].value = 5
    controls(box)["grey"].value = 77
    image = drawn[-1].axes[0].images[0].get_array()
    assert image[3, 5] == 77
    assert len(drawn) == 5


def test_images_have_the_size_that_was_asked_for(config: Any, drawn: list[Any]) -> None:
    small = replace(config, image_size=8, position=(4, 4))
    moved = explorers.trigger_explorer(small, device="cpu")
    assert drawn[-1].axes[0].images[0].get_array().shape[:2] == (8, 8)
    waiting = explorers.removal_explorer(replace(small, profile="small"), device="cpu")
    for box in (moved, waiting):
        assert controls(box)["row"].max == 7


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


def test_a_training_is_drawn_once_with_the_configured_layer(config: Any, drawn: list[Any]) -> None:
    box = explorers.removal_explorer(config, device="cpu")
    assert len(drawn) == 1
    controls(box)["Poison and train"].click()
    assert len(drawn) == 2
    assert controls(box)["layer"].value == config.tap


def test_centring_can_be_switched_off_without_training_again(config: Any, drawn: list[Any]) -> None:
    box = explorers.removal_explorer(config, device="cpu")
    before = status(box)
    assert controls(box)["centred"].value
    controls(box)["centred"].value = False
    assert len(drawn) == 2
    assert drawn[0].axes[0].get_xlabel() != drawn[1].axes[0].get_xlabel()
    assert status(box) == before


@pytest.mark.parametrize(
    ("options", "told"),
    [({"tap": "attic"}, "unknown layer"), ({"model": "vgg11", "tap": "pool"}, "set image_size")],
)
def test_what_cannot_be_trained_is_a_sentence_before_the_training(
    options: dict[str, str], told: str, config: Any, drawn: list[Any]
) -> None:
    box = explorers.removal_explorer(replace(config, **options), device="cpu")
    assert told in status(box)
    assert not drawn


def test_a_trigger_across_the_border_is_a_sentence(config: Any, drawn: list[Any]) -> None:
    box = explorers.removal_explorer(config, device="cpu")
    controls(box)["row"].value = 0
    controls(box)["Poison and train"].click()
    assert "outside images of 16 x 16" in status(box)
    assert not controls(box)["Poison and train"].disabled


def test_beyond_quick_nothing_trains_before_the_button_is_pressed(
    config: Any, drawn: list[Any]
) -> None:
    box = explorers.removal_explorer(replace(config, profile="small"), device="cpu")
    assert status(box) == ""
    assert not drawn
    controls(box)["Poison and train"].click()
    assert "poisoned images" in status(box)


def test_half_of_the_attack_can_be_chosen_where_whose_trace_it_is_is_asked(
    config: Any, drawn: list[Any]
) -> None:
    assert "marked by" not in controls(explorers.removal_explorer(config, device="cpu"))
    trace = EXPERIMENTS["spectral_signatures/trace"].configure(
        profile="quick", **{"recipe.epochs": 1, "images_per_class": 60}
    )
    box = explorers.removal_explorer(trace, device="cpu")
    assert "6 poisoned images" in status(box)
    for half in ("wrong label", "trigger"):
        controls(box)["marked by"].value = half
        controls(box)["Poison and train"].click()
        assert f"6 images marked by the {half} alone" in status(box)
