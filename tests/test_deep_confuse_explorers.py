"""The Deep Confuse explorers: what they learn, what they show, and what they refuse."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

widgets = pytest.importorskip("ipywidgets")

from deep_confuse_laboratory import TINY  # noqa: E402
from explorer_controls import controls, status  # noqa: E402

from poisonkit.bounds import levels  # noqa: E402
from poisonkit.experiments import EXPERIMENTS  # noqa: E402
from poisonkit.explorers import deep_confuse as explorers  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("POISONKIT_CACHE", str(tmp_path))
    options = TINY | {"recipe.epochs": 1, "select_epochs": 1}
    return EXPERIMENTS["deep_confuse/label_map"].configure(
        profile="quick", image_size=16, **options
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[Any]]:
    """Watch one of the explorers' functions, and collect what each call was given and gave."""

    def watch(name: str) -> list[Any]:
        found: list[Any] = []
        original = getattr(explorers, name)

        def keep(*arguments: Any) -> Any:
            result = original(*arguments)
            found.append((arguments, result))
            return result

        monkeypatch.setattr(explorers, name, keep)
        return found

    return watch


def test_moving_epsilon_scales_the_noise_and_learns_nothing_anew(config: Any, calls: Any) -> None:
    learned, drawn = calls("learned_generator"), calls("noise_figure")
    box = explorers.noise_explorer(config, device="cpu")
    assert f"learned at an epsilon of {config.epsilon:g}" in status(box)
    epsilon = controls(box)["epsilon"]
    assert epsilon.value == config.epsilon
    largest = []
    for value in (0.0, 0.15, 0.6):
        epsilon.value = value
        (shown, noisy, _), _ = drawn[-1]
        largest.append(int((noisy.int() - shown.int()).abs().max()))
        assert largest[-1] <= levels(value)
    assert 0 == largest[0] < largest[1] < largest[2]
    assert len(learned) == 1


def test_the_noise_explorer_shows_one_image_of_each_class(config: Any, calls: Any) -> None:
    drawn = calls("noise_figure")
    number = controls(explorers.noise_explorer(config, device="cpu"))["image"]
    first = drawn[-1][0][0]
    number.value = 3
    second = drawn[-1][0][0]
    assert len(first) == len(second) == 10
    assert not torch.equal(first, second)


def test_a_shift_moves_every_label_and_what_was_chosen_is_learned(config: Any, calls: Any) -> None:
    attacked = calls("_attack_by")
    box = explorers.label_map_explorer(config, device="cpu")
    moved = controls(box)
    names = [f"{digit} →" for digit in range(10)]
    assert [moved[name].value for name in names] == [*range(1, 10), 0]
    moved["shift by"].value = 3
    assert [moved[name].value for name in names] == [(digit + 3) % 10 for digit in range(10)]
    moved["7 →"].value = 1
    assert len(attacked) == 1, "nothing is learned before the button is pressed"
    moved["Learn and train"].click()
    result = attacked[-1][1]
    assert result.label_map == (3, 4, 5, 6, 7, 8, 9, 1, 1, 2)
    assert torch.allclose(result.confusion.sum(1), torch.ones(10, dtype=torch.float64))
    assert f"{result.hits:.1%} are called what the map says" in status(box)
    assert f"{result.accuracy:.1%} what they are" in status(box)


def test_a_map_that_changes_nothing_is_refused_with_a_sentence(config: Any, calls: Any) -> None:
    learned = calls("learned_generator")
    box = explorers.label_map_explorer(config, device="cpu")
    controls(box)["shift by"].value = 0
    controls(box)["Learn and train"].click()
    assert "sends every class to itself" in status(box)
    assert len(learned) == 1
    assert not controls(box)["Learn and train"].disabled


@pytest.mark.parametrize("explorer", ["noise_explorer", "label_map_explorer"])
def test_beyond_quick_nothing_is_learned_before_the_button_is_pressed(
    config: Any, calls: Any, explorer: str
) -> None:
    learned = calls("learned_generator")
    box = getattr(explorers, explorer)(replace(config, profile="small"), device="cpu")
    assert not learned
    next(part for part in box.children if isinstance(part, widgets.Button)).click()
    assert len(learned) == 1
