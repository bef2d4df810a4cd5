"""Table 2's procedure on other networks: each comes with its own options, and nothing else."""

import math

import pytest

from poisonkit.data import load
from poisonkit.errors import PoisonkitError
from poisonkit.experiments import EXPERIMENTS, run
from poisonkit.experiments.settings import as_json
from poisonkit.experiments.spectral_signatures import related
from poisonkit.experiments.spectral_signatures.related import NETWORKS
from poisonkit.models import create, features

ARCHITECTURES = EXPERIMENTS["spectral_signatures/architectures"]
TINY = {"trials": 1, "recipe.epochs": 1, "images_per_class": 30}


def flat(config) -> dict:
    """A configuration's options by the names that a user gives them."""
    settings = as_json(config)
    recipe = settings.pop("recipe")
    return settings | {f"recipe.{name}": value for name, value in recipe.items()}


@pytest.mark.parametrize("profile", ["quick", "small", "paper"])
@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_comes_with_its_options_and_no_other_changes(name, profile, monkeypatch):
    monkeypatch.setattr(related, "removal_trial", lambda config, *_: config)
    config = ARCHITECTURES.configure(profile=profile, networks=(name,))
    expected = flat(config)
    assert set(NETWORKS[name]) <= set(expected)
    expected |= NETWORKS[name]
    for unit in ARCHITECTURES.units(config):
        assert flat(ARCHITECTURES.trial(config, unit, None)) == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_each_networks_layer_exists_and_gives_one_representation_an_image(name, make_images):
    images = make_images(4, size=(32, 32))
    options = NETWORKS[name]
    width = {key: value for key, value in options.items() if key == "width"}
    model = create(options["model"], like=images, seed=0, **width)
    found = features(model, images.x, options["tap"])
    assert found.shape[0] == 4
    assert found.unique(dim=0).shape == found.shape


def test_every_network_is_tried_on_every_attack():
    config = ARCHITECTURES.configure(profile="quick", networks=tuple(NETWORKS), trials=3)
    units = ARCHITECTURES.units(config)
    assert [unit["network"] for unit in units] == [name for name in NETWORKS for _ in range(3)]
    assert [unit["seed"] for unit in units] == [0, 1, 2] * len(NETWORKS)


def test_table_5_is_about_a_vgg_at_the_papers_scale():
    config = ARCHITECTURES.configure()
    assert config.networks == ("vgg16",)
    assert "width" not in NETWORKS["vgg16"]


def test_rows_come_network_by_network(store):
    config = ARCHITECTURES.configure(profile="quick", **{**TINY, "images_per_class": 30})
    record = run(ARCHITECTURES, config, store=store, device="cpu")
    (row,) = record.metrics["rows"]
    assert (row["network"], row["source"], row["target"]) == ("vgg11, width 8", "4", "9")
    (trial,) = record.metrics["trials"]
    assert trial["removed"] == 10 * math.ceil(1.5 * 3)
    assert trial["triggered_images"] == len(load("digits", split="test").indices_of(4))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"networks": ("vgg15",)}, "network 'vgg15'; known: vgg16, vgg11, width 16"),
        ({"networks": ()}, "no trials"),
        ({"networks": ("vgg16",)}, r"vgg16 cannot take images of \(16, 16\) .*; set image_size"),
        ({"image_size": 32, "width": 4, "shares": (0.5,)}, r"must lie in \(0, 1/2\), not 0.5"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_training(
    options, told, store, no_training, untouched
):
    config = ARCHITECTURES.configure(profile="quick", **{**TINY, **options})
    with pytest.raises(PoisonkitError, match=told):
        run(ARCHITECTURES, config, store=store, device="cpu")
