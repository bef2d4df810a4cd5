"""The MetaPoison explorer: what it crafts, what it says, and what it refuses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ipywidgets")

from explorer_controls import controls, status

from poisonkit.experiments import EXPERIMENTS
from poisonkit.explorers import metapoison as explorers

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
TINY: dict[str, object] = {
    "procedure.steps": 2,
    "procedure.surrogates": 2,
    "kept_every": 1,
    "poisons": 8,
    "victims": 2,
    "recipe.epochs": 1,
    "images_per_class": 20,
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("POISONKIT_CACHE", str(tmp_path))
    return EXPERIMENTS["metapoison/crafting"].configure(profile="quick", **TINY)


@pytest.fixture
def crafted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Everything that the explorer has crafted so far."""
    found: list[Any] = []
    original = explorers._craft

    def keep(*arguments: Any) -> Any:
        found.append(original(*arguments))
        return found[-1]

    monkeypatch.setattr(explorers, "_craft", keep)
    return found


def test_stepping_through_the_crafting_tells_what_the_victims_of_each_step_do(
    config: Any, crafted: list[Any]
) -> None:
    box = explorers.crafting_explorer(config, device="cpu")
    assert len(crafted) == 1
    step = controls(box)["step"]
    for kept in range(3):
        step.value = kept
        taken = sum(entry["predictions"] == ["1"] for entry in crafted[0].victims[kept])
        assert status(box) == (
            f"After {kept} steps {taken} of 2 victims take the target, of class 8, for class 1."
        )
    assert len(crafted) == 1


def test_budget_bound_target_and_label_are_those_chosen(config: Any, crafted: list[Any]) -> None:
    box = explorers.crafting_explorer(config, device="cpu")
    moved = controls(box)
    moved["poisons"].value, moved["target"].value, moved["taken for"].value = "3", "5", "9"
    moved["how many"].value, moved["target no."].value, moved["epsilon"].value = 5, 4, 0.2
    moved["Craft"].click()
    found = crafted[-1]
    names = found.data.train.class_names
    assert len(found.pair.rows) == 5
    assert names[found.pair.poison_label] == "3"
    assert (names[int(found.pair.targets.y[0])], names[found.pair.wanted]) == ("5", "9")
    assert found.config.target == 4
    limit = found.poisons.last.verify(found.data.train).max()
    assert 0 < int(limit) <= 51
    assert "of class 5, for class 9" in status(box)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("target", "1", "poisons and targets are both of class"),
        ("target no.", 500, "target 500 is not one of the 35 test images"),
        ("taken for", "8", "the label that it is to be given"),
    ],
)
def test_a_request_that_makes_no_sense_is_a_sentence(
    config: Any, crafted: list[Any], name: str, value: object, told: str
) -> None:
    box = explorers.crafting_explorer(config, device="cpu")
    controls(box)[name].value = value
    controls(box)["Craft"].click()
    assert told in status(box)
    assert len(crafted) == 1
    assert not controls(box)["Craft"].disabled


def test_beyond_quick_nothing_is_crafted_before_the_button_is_pressed(
    config: Any, crafted: list[Any]
) -> None:
    box = explorers.crafting_explorer(replace(config, profile="small"), device="cpu")
    assert not crafted
    controls(box)["Craft"].click()
    assert len(crafted) == 1
