"""Requests to the MetaPoison experiments that cannot be met."""

import pytest
from metapoison_laboratory import OWN, configure, forbid_making

from poisonkit.errors import PoisonkitError
from poisonkit.experiments import EXPERIMENTS, run


@pytest.fixture
def nothing_made(no_training, monkeypatch) -> None:
    """Make every training and every crafting a failure of the test."""
    forbid_making(monkeypatch)


ALL = tuple(OWN)
WITHOUT_A_NUMBER_OF_THEIR_OWN = tuple(name for name in OWN if name not in ("budget",))
ONE_TARGET = tuple(name for name in OWN if name not in ("targets", "scenarios"))
REFUSED: list[tuple[tuple[str, ...], dict[str, object], str]] = [
    (ALL, {"target_class": "3"}, "poisons and targets are both of class '3'"),
    (("victims", "targets"), {"poison_class": "cat"}, "unknown class .*'cat'; known: 0, 1"),
    (("victims", "mechanism"), {"target_class": "cat"}, "unknown class .*'cat'; known: 0, 1"),
    (("victims", "limits"), {"wanted_class": "cat"}, "unknown class .*'cat'; known: 0, 1"),
    (
        WITHOUT_A_NUMBER_OF_THEIR_OWN,
        {"poisons": 13},
        "13 poisons are asked for, but class '3' has 12 training images",
    ),
    (("budget",), {"budgets": (3, 13)}, "13 poisons are asked for, but class '3' has 12"),
    (("crafting", "limits"), {"poisons": 0}, "poisons must be at least 1, not 0"),
    (("budget",), {"budgets": (3, 0)}, "poisons must be at least 1, not 0"),
    (("budget",), {"budgets": ()}, "no trials"),
    (("budget",), {"budgets": (3, 3)}, "budgets names something twice"),
    (ALL, {"wanted_class": "9"}, "target 0 is of class '9', the label that it is to be given"),
    (ONE_TARGET, {"target": 36}, "target 36 is not one of the 36 test images of class '9'"),
    (
        ("crafting", "mechanism"),
        {"target": -1},
        "target -1 is not one of the 36 test images of class '9'",
    ),
    (("scenarios",), {"target": 1}, "with one target chosen, targets must be 1, not 2"),
    (("victims", "limits"), {"targets": 2, "target": 1}, "targets must be 1, not 2"),
    (("victims", "mechanism"), {"targets": 37}, "37 targets .* class '9' has 36 test images"),
    (("scenarios",), {"several": 37}, "37 targets .* class '9' has 36 test images"),
    (("scenarios",), {"several": 1}, "several must be at least 2, not 1"),
    (("victims", "switches"), {"targets": 0}, "targets must be at least 1, not 0"),
    (("targets",), {"tried": 37}, "target 36 is not one of the 36 test images"),
    (("targets",), {"tried": 0}, "tried must be at least 1"),
    (("targets",), {"pairs": 2}, "pairs 1"),
    (("victims",), {"pairs": 0}, "pairs must be at least 1, not 0"),
    (("crafting", "limits", "mechanism", "training"), {"pairs": 0}, "no trials"),
    (("crafting", "limits", "victims", "budget"), {"victims": 0}, "no trials"),
    (("mechanism",), {"victims": -1}, "no trials"),
    (
        ("crafting", "victims", "mechanism"),
        {"kept_every": 0},
        "kept_every must be at least 1, not 0",
    ),
    (("budget", "targets"), {"tested_per_class": 0}, "tested_per_class must be at least 1, not 0"),
    (("victims",), {"tested_per_class": 36}, "has 35 images, not the 0 . 36 asked for"),
    (("victims",), {"images_per_class": 500}, "not the 0 . 500 asked for"),
    (
        ("victims", "limits", "mechanism"),
        {"model": "lenet"},
        "unknown model 'lenet'; known: .*small_cnn",
    ),
    (
        ("victims", "training", "switches"),
        {"surrogate": "lenet"},
        "unknown model 'lenet'; known: .*small_cnn",
    ),
    (ALL, {"model": "compact_cnn"}, r"compact_cnn cannot take images of \(8, 8\) pixels"),
    (
        ("crafting", "scenarios", "targets"),
        {"surrogate": "compact_cnn"},
        r"compact_cnn cannot take images of \(8, 8\) pixels",
    ),
    (
        ("training",),
        {"networks": ("resnet8", "compact_cnn")},
        r"compact_cnn cannot take images of \(8, 8\) pixels",
    ),
    (("crafting", "training", "limits"), {"width": 0}, "at least 1 channel wide, not 0"),
    (ALL, {"procedure.colour": 0.04}, "recolouring needs 3 channels, not .*1"),
    (
        ("switches",),
        {"switches": ("paper", "smaller change, and of colours")},
        "recolouring needs 3 channels, not .*1",
    ),
    (("switches",), {"switches": ("paper", "slow")}, "unknown switch 'slow'; known: paper, margin"),
    (("switches",), {"switches": ("paper", "paper")}, "switches names something twice"),
    (("training",), {"changes": ("tired",)}, "unknown change 'tired'; known: as expected, batches"),
    (("training",), {"changes": ("momentum",) * 2}, "changes names something twice"),
    (("training",), {"networks": ("resnet8",) * 2}, "networks names something twice"),
    (("training",), {"networks": ("lenet",)}, "unknown model 'lenet'"),
    (("training",), {"changes": ("resnet8",)}, "changes_and_networks names something twice"),
    (("limits",), {"measures": ("blurred",)}, "unknown measure 'blurred'; known: rounded, not"),
    (("limits",), {"measures": ("rounded",) * 2}, "measures names something twice"),
    (("limits",), {"recipe.crop_padding": 1}, "not rounded go without crops and flips"),
    (("victims",), {"rounded": False, "recipe.flip": True}, "not rounded go without crops"),
    (("crafting", "mechanism", "limits"), {"rounded": False}, "here poisons are images"),
    (("victims", "switches"), {"procedure.update": "step"}, "one of epoch, batch, not 'step'"),
    (("limits",), {"recipe.flip": True}, "not rounded go without crops and flips"),
    (("victims", "mechanism"), {"recipe.crop_padding": 8}, "crop_padding of 8 pixels is too much"),
    (("training",), {"padding": 8}, "crop_padding of 8 pixels is too much"),
    (("mechanism",), {"arrows": 0}, "arrows, collided and iterations must be at least 1"),
    (("mechanism",), {"collided": 0}, "arrows, collided and iterations must be at least 1"),
    (("mechanism",), {"iterations": 0}, "arrows, collided and iterations must be at least 1"),
    (("victims", "targets"), {"dataset": "digit"}, "known: digits, mnist"),
]


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        pytest.param(name, options, told, id=f"{name}-{options}")
        for names, options, told in REFUSED
        for name in names
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_what_cannot_be_done_is_refused_before_anything_is_trained_or_crafted(
    name, options, told, store, nothing_made, untouched
):
    # A target of the class's own would hide what else is wrong.
    own = {"target": None} if name == "crafting" and "target" not in options else {}

    def attempt():
        config = configure(name, **own, **options)
        run(EXPERIMENTS[f"metapoison/{name}"], config, store=store, device="cpu")

    with pytest.raises(PoisonkitError, match=f"(?s){told}"):
        attempt()
    assert not list(store.cache.rglob("*.json"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"procedure.epsilon": 0.0}, "epsilon must lie in"),
        ({"procedure.steps": 0}, "steps must be at least 1"),
        ({"procedure.objective": "hinge"}, "one of cross-entropy, margin|known: cross-entropy"),
        ({"recipe.epochs": 0}, "epochs must be at least 1"),
        ({"standardise": "words"}, "one of data, none, bytes"),
    ],
)
def test_what_no_configuration_can_be_is_refused_with_what_it_can(options, told):
    with pytest.raises(PoisonkitError, match=told):
        configure("victims", **options)
