"""What Deep Confuse's victims are trained on: noise and its pictures, or labels at random."""

import numpy as np
import pytest
import torch
from deep_confuse_laboratory import ATTACKS, DeepConfuseLaboratory, configure
from torch import Tensor

from poisonkit.attacks.generated_noise import craft
from poisonkit.data import load
from poisonkit.evaluation import evaluate
from poisonkit.experiments import EXPERIMENTS
from poisonkit.experiments.deep_confuse import steps
from poisonkit.experiments.deep_confuse.data import begin
from poisonkit.experiments.deep_confuse.learning import learned_generator
from poisonkit.experiments.deep_confuse.steps import (
    accuracy_on_noise,
    float_noise,
    noise_images,
    some_of_each_class,
    train_on,
    train_perturbed,
)
from poisonkit.experiments.deep_confuse.strength import random_labels
from poisonkit.models import create
from poisonkit.models.generators import create_generator
from poisonkit.training import fit


@pytest.fixture(scope="module")
def laboratory(caches) -> DeepConfuseLaboratory:
    return DeepConfuseLaboratory.below(caches)


# Noise ----------------------------------------------------------------------------------------


def loud(images, epsilon: float, scale: float = 1e5):
    """A generator whose noise reaches both ends of its range."""
    generator = create_generator("autoencoder", like=images, epsilon=epsilon, seed=1, width=2)
    for module in generator.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        generator(images.x.float() / 255)  # as if it had been learned on these images
        for parameter in generator.body.decoder[-1].parameters():
            parameter.mul_(scale)
    return generator.eval()


@pytest.mark.parametrize("epsilon", [0.032, 0.3, 8 / 255])
@pytest.mark.parametrize("scale", [1.0, 1e5])
def test_unrounded_noise_is_the_rounded_one_up_to_the_rounding(make_images, epsilon, scale):
    images = make_images(20, size=(16, 16))
    generator = loud(images, epsilon, scale)
    noisy, _ = craft(images, generator).apply(images)
    transform = float_noise(generator, checksum=noisy.checksum)
    clean = images.x.float() / 255
    unrounded = transform.apply(torch.nn.Identity(), clean, images.y)
    assert torch.equal(unrounded, (clean + generator(clean).detach()).clamp(0, 1))
    apart = (unrounded * 255 - noisy.x.float()).abs()
    assert 0 < apart.max() < 1
    # More than half a level only where rounding would have left the ball.
    inside = (noisy.x.int() - images.x.int()).abs() < int(255 * epsilon + 1e-9)
    assert apart[inside].max() <= 0.5 + 1e-3
    assert not unrounded.requires_grad


def test_rounding_is_all_that_unrounded_noise_changes_of_a_training(laboratory):
    """The network on unrounded noise standardises by what it sees, as the rounded one's does."""
    record = laboratory.record("mnist")
    config, context = configure("mnist"), laboratory.context
    data, cost = begin(config, context)
    learned = learned_generator(config, data, 0, context, cost)
    noisy, _ = craft(data.train, learned.generator).apply(data.train)
    networks = laboratory.count("networks")
    transform = float_noise(learned.generator, checksum=noisy.checksum)
    network, _ = train_on(config, data.train, 0, context, cost, "", transform=transform, like=noisy)
    assert laboratory.count("networks") == networks, "the record's own network is in the cache"
    seen = noisy.x.double() / 255
    assert float(network.mean) == pytest.approx(float(seen.mean()), rel=1e-4)
    assert float(network.deviation) == pytest.approx(float(seen.std()), rel=1e-3)
    found = record.metrics["trials"][0]["unrounded"]["accuracy"]
    assert found == evaluate(network, data.test)


def test_noise_that_is_made_anew_is_unrounded_noise_where_no_image_is_mirrored(laboratory):
    once, anew = laboratory.record("mnist"), laboratory.record("mnist", noise="anew")
    for before, found in zip(once.metrics["trials"], anew.metrics["trials"], strict=True):
        assert found["perturbed"]["accuracy"] == before["unrounded"]["accuracy"]
        assert found["unrounded"] == before["unrounded"]
        assert found["clean"] == before["clean"]
    for name in ("transfer_cifar10", "label_map", "switches", "epsilon"):
        assert laboratory.record(name, noise="anew").digest != laboratory.record(name).digest


def test_noise_that_is_made_anew_is_that_of_the_mirrored_image(laboratory, monkeypatch):
    config = configure("mnist", noise="anew", **{"recipe.flip": True, "recipe.epochs": 1})
    data, cost = begin(config, laboratory.context)
    generator = learned_generator(config, data, 0, laboratory.context, cost).generator
    seen = []
    original = steps._add_generated

    def spy(generator, network, x, y):
        seen.append((x.clone(), original(generator, network, x, y)))
        return seen[-1][1]

    monkeypatch.setattr(steps, "_add_generated", spy)
    noisy, _ = craft(data.train, generator).apply(data.train)
    train_perturbed(config, data.train, noisy, generator, 7, laboratory.context, cost, "")
    before, after = (torch.cat(batches) for batches in zip(*seen, strict=True))
    with torch.no_grad():
        assert torch.allclose(after, (before + generator(before)).clamp(0, 1), atol=1e-6)
    # Before the noise there are images and their mirror images, about as many of each.
    images = data.train.x.float() / 255
    kinds = [{x.numpy().tobytes() for x in side} for side in (images, images.flip(3))]
    keys = [x.contiguous().numpy().tobytes() for x in before]
    counts = [sum(key in kind for key in keys) for kind in kinds]
    assert len(keys) == len(images) <= sum(counts)
    assert min(counts) > 0.3 * len(images)


def test_unrounded_noise_of_another_generator_is_another_training(make_images):
    images = make_images(4, size=(16, 16))
    generator = loud(images, 0.3)
    first, second = (float_noise(generator, checksum=text).about for text in ("abc", "def"))
    assert first != second


def test_a_network_is_shown_the_noise_as_it_is_and_in_eval_mode(make_images):
    """Computed once more, image by image, with values below zero and nothing scaled."""
    images = make_images(24, size=(16, 16))
    generator = loud(images, 0.3, scale=1.0)
    network = create("two_layer_cnn_bn", like=images, seed=3)
    recipe = EXPERIMENTS["deep_confuse/mnist"].configure(profile="quick").recipe
    fit(network, images, recipe, seed=0)
    right = 0
    with torch.no_grad():
        network.eval()
        for x, y in zip(images.x, images.y, strict=True):
            noise = generator(x[None].float() / 255)
            assert noise.min() < 0
            right += int(network(noise).argmax() == y)
    network.train()
    assert 0 < right < 24
    assert accuracy_on_noise(network, generator, images) == right / 24
    assert network.training


def test_noise_alone_is_black_at_minus_epsilon_and_white_at_epsilon(make_images):
    images = make_images(20, size=(16, 16))
    generator = loud(images, 0.2)
    shown = noise_images(generator, images)
    assert shown.x.dtype == torch.uint8
    assert torch.equal(shown.y, images.y)
    with torch.no_grad():
        noise = generator(images.x.float() / 255)
    assert (shown.x.min(), shown.x.max()) == (0, 255)
    assert (noise[shown.x == 0] < -0.199).all()
    assert (noise[shown.x == 255] > 0.199).all()
    quiet = loud(images, 0.2, scale=1.0)
    with torch.no_grad():
        noise = quiet(images.x.float() / 255)
    back = (noise_images(quiet, images).x.double() / 127.5 - 1) * 0.2
    assert (back - noise).abs().max() <= 0.2 / 255 + 1e-6  # half a level
    silent = loud(images, 0.2, scale=0.0)
    assert set(noise_images(silent, images).x.unique().tolist()) <= {127, 128}


# Pictures and components ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
def test_the_pictures_are_one_image_of_each_class_its_noise_and_their_sum(name, laboratory):
    arrays = laboratory.record(name).arrays
    train = load("digits").first_per_class(30)
    assert arrays["0.images.labels"].tolist() == list(range(10))
    clean = arrays["0.images.clean"]
    for label, image in enumerate(clean):
        assert torch.equal(image, train.x[train.indices_of(label)[0]])
    perturbed = arrays["0.images.perturbed"].double()
    noise = (arrays["0.images.noise"].double() / 127.5 - 1) * 0.3 * 255
    # Half a level by each of three roundings: to whole values, of the noise, at the bound.
    expected = (clean + noise).clamp(0, 255)
    assert (perturbed - expected).abs().max() <= 0.5 + 0.3 + 0.5
    assert (perturbed - clean).abs().max() > 2
    assert not any(key.startswith("1.") for key in arrays)


def last_hidden(network, x: Tensor) -> np.ndarray:
    """The 500 units before the logits, a layer at a time."""
    body = network.body.eval()
    with torch.no_grad():
        maps = body.convolutions((x.float() / 255 - network.mean) / network.deviation)
        return body.hidden(maps.flatten(1)).double().numpy()


def test_components_are_projections_onto_the_training_features_singular_vectors(laboratory):
    arrays = laboratory.record("mnist").arrays
    config, context = configure("mnist"), laboratory.context
    data, cost = begin(config, context)
    learned = learned_generator(config, data, 0, context, cost)
    noisy, _ = craft(data.train, learned.generator).apply(data.train)
    networks = laboratory.count("networks")
    network, _ = train_on(config, noisy, 0, context, cost, "", test=data.test)
    assert laboratory.count("networks") == networks, "the record's own network is in the cache"
    rows = {}
    for kind, images in (("train", noisy), ("test", data.test)):
        order = sorted(range(len(images)), key=lambda row, images=images: int(images.y[row]))
        rows[kind] = (last_hidden(network, images.x[order]), images.y[order])
        assert torch.equal(arrays[f"0.components.{kind}_labels"], rows[kind][1])
    centre = rows["train"][0].mean(0)
    _, values, vectors = np.linalg.svd(rows["train"][0] - centre, full_matrices=False)
    for kind, (found, _) in rows.items():
        expected = (found - centre) @ vectors[:2].T
        shown = arrays[f"0.components.{kind}"].double().numpy()
        signs = np.sign((shown * expected).sum(0))
        assert np.allclose(shown, signs * expected, atol=1e-4 * values[0])
    # The spread along them is the singular values', the first the larger.
    spread = np.linalg.norm(arrays["0.components.train"].double().numpy(), axis=0)
    assert spread == pytest.approx(values[:2], rel=1e-4)


def test_some_of_each_class_are_its_first_images_or_all_there_are(make_images):
    images = make_images(40, classes=3)
    counts = images.y.bincount().tolist()
    rows = some_of_each_class(images, max(counts) - 1)
    expected = [
        row
        for label in range(3)
        for row in [k for k in range(40) if images.y[k] == label][: max(counts) - 1]
    ]
    assert rows.tolist() == expected
    assert len(rows) < 40


# Random labels --------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("share", [0.1, 0.6, 1.0])
def test_random_labels_change_as_many_labels_as_chance_has_it(share, classes, make_images):
    images = make_images(6000, classes=classes, channels=1, size=(2, 2))
    changed = random_labels(images, share, seed=3)
    assert torch.equal(changed.x, images.x)
    drawn = round(share * 6000)
    other = 1 - 1 / classes  # a drawn label is the image's own once in as many as there are
    moved = changed.y != images.y
    assert int(moved.sum()) == pytest.approx(
        drawn * other, abs=4 * (drawn * other * (1 - other)) ** 0.5
    )
    # The new labels are drawn evenly.
    counts = changed.y[moved].bincount(minlength=classes)
    expected = int(moved.sum()) / classes
    assert (counts - expected).abs().max() < 5 * expected**0.5


def test_random_labels_of_no_images_change_nothing_and_repeat_by_seed(make_images):
    images = make_images(200, classes=5, channels=1, size=(2, 2))
    assert torch.equal(random_labels(images, 0.0, seed=1).y, images.y)
    before = images.y.clone()
    first, second, other = (random_labels(images, 0.5, seed=seed).y for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(images.y, before)
