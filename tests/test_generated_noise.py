"""Generators keep the bound they promise, after rounding too, and survive being saved."""

from pathlib import Path

import pytest
import torch

from poisonkit.attacks.generated_noise import (
    craft,
    levels,
    load_generator,
    noise_of,
    perturb,
    save_generator,
)
from poisonkit.errors import PoisonkitError
from poisonkit.models.generators import GENERATORS, create_generator


def saturated(images, epsilon):
    """A generator whose tanh is at its ends almost everywhere."""
    generator = create_generator("autoencoder", like=images, epsilon=epsilon, seed=1, width=2)
    with torch.no_grad():
        for parameter in generator.body.decoder[-1].parameters():
            parameter.mul_(1e5)
    return generator.eval()


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("autoencoder", 1, (28, 28)),
        ("autoencoder", 3, (64, 48)),
        ("unet", 3, (32, 32)),
        ("released_mnist", 1, (28, 28)),
    ],
)
def test_noise_has_the_images_shape_and_stays_within_epsilon(make_images, name, channels, size):
    images = make_images(4, channels=channels, size=size)
    generator = create_generator(name, like=images, epsilon=0.1, seed=0, width=4)
    noise = noise_of(generator, images.x)
    assert noise.shape == images.x.shape
    assert 0 < noise.abs().max() <= 0.1


@pytest.mark.parametrize("epsilon", [0.032, 0.1, 0.3, 8 / 255, 1.0])
def test_rounded_images_keep_the_bound_exactly(make_images, epsilon):
    images = make_images(20, size=(16, 16))
    generator = saturated(images, epsilon)
    change = (perturb(generator, images.x).int() - images.x.int()).abs()
    assert change.max() <= 255 * epsilon + 1e-9
    assert change.max() == levels(epsilon)


def test_rounding_moves_no_value_by_more_than_one_level(make_images):
    images = make_images(10, size=(16, 16))
    generator = saturated(images, 0.3)
    exact = (images.x.float() / 255 + noise_of(generator, images.x)).clamp(0, 1) * 255
    assert (perturb(generator, images.x).float() - exact).abs().max() < 1


def test_the_poison_replaces_a_share_of_the_images_and_keeps_their_labels(make_images):
    images = make_images(50, size=(16, 16))
    poison = craft(images, saturated(images, 0.2), share=0.3, seed=1)
    poisoned, mask = poison.apply(images)
    assert int(mask.sum()) == len(poison) == 15
    assert torch.equal(poisoned.y, images.y)
    assert torch.equal(poisoned.x[~mask], images.x[~mask])
    assert (poisoned.x[mask] != images.x[mask]).any()
    other = craft(images, saturated(images, 0.2), share=0.3, seed=2)
    assert not torch.equal(poison.rows, other.rows)


def test_an_image_gets_the_same_noise_alone_and_in_company(make_images):
    images = make_images(9, size=(16, 16))
    generator = create_generator("autoencoder", like=images, epsilon=0.3, seed=1, width=2)
    assert torch.equal(perturb(generator, images.x)[4:5], perturb(generator, images.x[4:5]))
    assert generator.training, "what was in training mode comes back in it"


@pytest.mark.parametrize("name", ["autoencoder", "unet"])
def test_a_saved_generator_makes_the_same_noise(make_images, tmp_path, name):
    images = make_images(5, size=(16, 16))
    generator = create_generator(name, like=images, epsilon=0.1, seed=1, width=4)
    generator(images.x.float() / 255)  # moves the running averages
    path = tmp_path / "generator.safetensors"
    save_generator(path, generator, name=name, channels=3, width=4)
    again = load_generator(path)
    assert torch.equal(noise_of(again, images.x), noise_of(generator, images.x))
    assert again.epsilon == 0.1


@pytest.mark.parametrize("epsilon", [0.0, -0.1, 1.01, float("nan")])
def test_epsilon_must_lie_in_0_to_1(make_images, epsilon):
    with pytest.raises(PoisonkitError, match=r"epsilon must lie in \(0, 1\]"):
        create_generator("autoencoder", like=make_images(3), epsilon=epsilon, seed=0)


def test_a_generator_that_does_not_fit_names_both_sides(make_images):
    with pytest.raises(PoisonkitError, match=r"\(3, 28, 28\), the images are \(3, 32, 32\)"):
        create_generator("released_mnist", like=make_images(3, size=(32, 32)), epsilon=0.1, seed=0)
    generator = create_generator(
        "autoencoder", like=make_images(3, channels=1, size=(16, 16)), epsilon=0.1, seed=0
    )
    with pytest.raises(PoisonkitError, match="takes images of 1 channels, these have 3"):
        perturb(generator, make_images(3, size=(16, 16)).x)


def test_images_outside_the_data_range_are_refused(make_images):
    images = make_images(3, size=(16, 16))
    generator = create_generator("autoencoder", like=images, epsilon=0.1, seed=0)
    with pytest.raises(PoisonkitError, match=r"must be uint8 .* not torch.float32"):
        perturb(generator, images.x.float())


def test_unknown_generators_are_answered_with_those_that_exist(make_images):
    with pytest.raises(PoisonkitError, match="autoencoder"):
        create_generator("gan", like=make_images(3), epsilon=0.1, seed=0)
    assert set(GENERATORS) == {"autoencoder", "unet", "released_mnist"}


def test_a_file_that_is_no_generator_is_named(tmp_path: Path):
    path = tmp_path / "generator.safetensors"
    with pytest.raises(PoisonkitError, match="does not exist"):
        load_generator(path)
    path.write_bytes(b"something else entirely")
    with pytest.raises(PoisonkitError, match="not a generator's file"):
        load_generator(path)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_the_share_must_lie_in_0_to_1(make_images, share):
    images = make_images(5, size=(16, 16))
    with pytest.raises(PoisonkitError, match="share"):
        craft(images, saturated(images, 0.1), share=share)
