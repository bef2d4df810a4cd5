"""What cannot be done is said in a sentence, before any training, and leaves the data alone."""

import pytest

from poisonkit.errors import PoisonkitError
from poisonkit.experiments import EXPERIMENTS, run

NAMES = ("subpopulations", "architectures", "limits", "switches", "signature")
TINY = {"trials": 1, "recipe.epochs": 1, "images_per_class": 40}


@pytest.fixture
def refused(store, no_training, untouched):
    """Assert that an experiment at the quick profile refuses some options, and why."""

    def refused(name: str, told: str, **options: object) -> None:
        experiment = EXPERIMENTS[f"spectral_signatures/{name}"]
        config = experiment.configure(profile="quick", **{**TINY, **options})
        with pytest.raises(PoisonkitError, match=told):
            run(experiment, config, store=store, device="cpu")
        assert untouched, "the data were not even loaded"
        assert not list(store.cache.rglob("*.json"))

    return refused


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.5, 0.0, -0.1, 1.0])
def test_a_poison_share_outside_0_to_a_half(name, share, refused):
    refused(name, rf"poison share must lie in \(0, 1/2\), not {share}", shares=(share,))


@pytest.mark.parametrize("name", NAMES)
def test_a_label_with_fewer_than_three_images(name, refused):
    refused(name, r"label \d hold 2 images; at least three", images_per_class=2, shares=(0.4,))


@pytest.mark.parametrize("name", NAMES)
def test_more_removals_than_a_label_has_images(name, refused):
    told = r"\d+ images of label \d are to be removed, but it has \d+"
    refused(name, told, shares=(0.4,), factor=4.0)


@pytest.mark.parametrize("name", ["subpopulations", "switches", "signature"])
@pytest.mark.parametrize("tap", ["group3.3", "", "block3.9"])
def test_a_layer_that_does_not_exist(name, tap, refused):
    refused(name, rf"unknown layer '{tap}'; known: block1, .*block3.*hidden.*linear", tap=tap)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"merged": ("4", "pets")}, "unknown class of .*digits.* 'pets'; known: 0, 1, 2.*9"),
        ({"merged": ("4",)}, r"merging takes at least two classes, not \['4'\]"),
        ({"merged": ("4", "4")}, "merging takes at least two classes"),
        ({"merged_into": "8"}, "there is a class '8' already"),
        ({"pairs": (("1", "7"),)}, "unknown class of .* '7'; known: 0, 1, 2, 3, 4 or 7, 5, 6, 8"),
        ({"pairs": (("4 or 7", "4 or 7"),)}, "source and target are both '4 or 7'"),
        ({"merged": ("4", "1")}, "unknown class of .*digits.* '1'; known: 0, 4 or 7, 2, 3, 5"),
    ],
)
def test_classes_that_cannot_be_merged_or_attacked(options, told, refused):
    refused("subpopulations", told, **options)


def test_a_source_with_too_few_images_for_its_share_of_a_merged_target(refused):
    told = "a share of 0.4 of class 'round' is 36 images; class '1' can give 1 to 30"
    options = {"merged": ("0", "6", "8"), "merged_into": "round", "pairs": (("1", "round"),)}
    refused("subpopulations", told, images_per_class=30, shares=(0.4,), **options)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("switches", {"other_tap": "nonsense"}, "unknown layer 'nonsense'; known: block1"),
        ("limits", {"patterns": ("X", "Y")}, "'Y'"),
        ("architectures", {"networks": ("vgg11, width 8", "vgg16"), "image_size": 16}, "vgg16"),
        ("removal", {"shares": (0.1, 0.6)}, "share must lie"),
        ("removal", {"pairs": (("4", "9"), ("4", "ten"))}, "unknown class of .* 'ten'"),
    ],
)
def test_a_mistake_that_only_a_later_trial_would_meet(name, options, told, refused):
    refused(name, told, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("switches", {"switches": ("paper", "paper")}),
        ("architectures", {"networks": ("vgg11, width 8",) * 2}),
        ("limits", {"patterns": ("X", "X")}),
        ("removal", {"shares": (0.1, 0.1)}),
        ("lemma", {"epsilons": (0.1, 0.1)}),
        ("lemma", {"gaps": (6.0, 6.0)}),
    ],
)
def test_trials_that_would_count_twice(name, options, store, no_training):
    experiment = EXPERIMENTS[f"spectral_signatures/{name}"]
    config = experiment.configure(profile="quick", **options)
    with pytest.raises(PoisonkitError, match=f"{next(iter(options))} names something twice"):
        run(experiment, config, store=store, device="cpu")


@pytest.mark.parametrize("width", [0, -4])
def test_a_network_without_channels(width, store, no_training):
    experiment = EXPERIMENTS["spectral_signatures/removal"]
    config = experiment.configure(profile="quick", width=width)
    with pytest.raises(PoisonkitError, match=f"at least 1 channel wide, not {width}"):
        run(experiment, config, store=store, device="cpu")


@pytest.mark.parametrize("pairs", [(), (("0", "1"), ("2", "3"))])
def test_pairs_that_one_figure_could_not_tell_apart(pairs, store, no_training):
    experiment = EXPERIMENTS["spectral_signatures/limits"]
    config = experiment.configure(profile="quick", pairs=pairs)
    with pytest.raises(PoisonkitError, match=f"one pair, not {len(pairs)}"):
        run(experiment, config, store=store, device="cpu")
