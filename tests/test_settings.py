"""From text typed at a shell to a checked configuration: names, types and defaults."""

import json
from dataclasses import dataclass, field
from typing import Literal

import pytest

from poisonkit.errors import PoisonkitError
from poisonkit.experiments.settings import as_json, options_of, with_options


@dataclass(frozen=True, kw_only=True)
class Inner:
    epochs: int = 3
    rate: float = 0.1
    marks: tuple[float, ...] = (0.5,)


@dataclass(frozen=True, kw_only=True)
class Outer:
    profile: Literal["quick", "paper"] = "paper"
    name: str = "cifar10"
    images: int | None = None
    kind: str | None = None
    position: tuple[int, int] | None = None
    pairs: tuple[tuple[str, str], ...] = (("a", "b"),)
    centred: bool = True
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("name", "typed", "value"),
    [
        ("profile", "quick", "quick"),
        ("name", "mnist", "mnist"),
        ("name", "7", "7"),  # a text stays a text
        ("kind", "8", "8"),  # a class may be called so
        ("kind", "none", None),
        ("images", "2000", 2000),
        ("images", "none", None),
        ("position", "(3, 4)", (3, 4)),
        ("position", [3, 4], (3, 4)),
        ("pairs", "[('a', 'b'), ('c', 'd')]", (("a", "b"), ("c", "d"))),
        ("pairs", [["a", "b"]], (("a", "b"),)),
        ("centred", "false", False),
        ("centred", "True", True),
        ("centred", False, False),
        ("inner.epochs", "12", 12),
        ("inner.rate", "5e-4", 5e-4),
        ("inner.rate", "1", 1.0),
        ("inner.marks", "(0.25, 1)", (0.25, 1.0)),
    ],
)
def test_an_option_takes_its_value_as_typed_or_as_it_is(name, typed, value):
    config = with_options(Outer(), {name: typed})
    found = config
    for part in name.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, tuple):
        assert [type(entry) for entry in found] == [type(entry) for entry in value]
    # Nothing else has changed, and the original has not at all.
    expected = as_json(Outer())
    place = expected["inner"] if "." in name else expected
    place[name.split(".")[-1]] = json.loads(json.dumps(value))
    assert as_json(config) == expected
    assert Outer() == Outer(inner=Inner())


@pytest.mark.parametrize(
    ("name", "wrong", "told"),
    [
        ("profile", "huge", "'profile' must be one of quick, paper, not 'huge'"),
        ("name", 7, "'name' must be a text, not 7"),
        ("images", "many", "'images' must be a whole number or none, not 'many'"),
        ("images", "2.5", "must be a whole number or none, not 2.5"),
        ("kind", 8, "'kind' must be a text or none, not 8"),
        ("images", True, "must be a whole number or none, not True"),
        ("position", "(3,)", r"must be \(a whole number, a whole number\) or none, not \(3,\)"),
        ("position", "(3, 4.5)", "'position' must be"),
        ("pairs", "[('a', 'b', 'c')]", r"must be a list of \(a text, a text\)"),
        ("pairs", "a", "must be a list of"),
        ("pairs", "none", "must be a list of .*, not 'none'"),
        ("centred", "yes", "'centred' must be true or false, not 'yes'"),
        ("centred", 1, "'centred' must be true or false, not 1"),
        ("inner.epochs", "1.0", "'inner.epochs' must be a whole number, not 1.0"),
        ("inner.rate", "fast", "'inner.rate' must be a number, not 'fast'"),
        ("inner.rate", False, "'inner.rate' must be a number, not False"),
        ("inner.rate", None, "'inner.rate' must be a number, not None"),
    ],
)
def test_a_value_of_another_type_is_refused_with_the_type_expected(name, wrong, told):
    with pytest.raises(PoisonkitError, match=told):
        with_options(Outer(), {name: wrong})


@pytest.mark.parametrize("name", ["epoch", "inner", "inner.epoch", "recipe.epochs", "", "Profile"])
def test_an_unknown_parameter_lists_all_that_there_are(name):
    with pytest.raises(PoisonkitError) as caught:
        with_options(Outer(), {name: "1"})
    known = str(caught.value).split("known: ")[1].split(", ")
    assert known == list(options_of(Outer))
    assert "inner.epochs" in known
    assert "inner" not in known


def test_a_configuration_as_json_survives_the_way_through_a_file():
    config = with_options(Outer(), {"position": "(3, 4)", "inner.marks": "(0.1, 0.2)"})
    settings = as_json(config)
    assert json.loads(json.dumps(settings)) == settings
    flat = {k: v for k, v in settings.items() if k != "inner" and v is not None}
    flat |= {f"inner.{name}": value for name, value in settings["inner"].items()}
    assert with_options(Outer(), flat) == config
