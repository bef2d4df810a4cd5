"""Generators keep the bound they promise, after rounding too, and survive being saved."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from poisonkit.attacks.deep_confuse import Procedure, fit_generator
from poisonkit.attacks.generated_noise import (
    craft,
    load_generator,
    noise_of,
    perturb,
    perturb_folder,
    save_generator,
)
from poisonkit.bounds import levels
from poisonkit.errors import PoisonkitError
from poisonkit.models.generators import GENERATORS, NoiseGenerator, create_generator


def saturated(images, epsilon):
    """A generator whose tanh is at its ends almost everywhere."""
    generator = create_generator("autoencoder", like=images, epsilon=epsilon, seed=1, width=2)
    with torch.no_grad():
        for parameter in generator.body.decoder[-1].parameters():
            parameter.mul_(1e5)
    return generator.eval()


def learn(generator, images):
    """Begin to learn it, which must fail before any surrogate is made."""

    def surrogate(seed):
        raise AssertionError("work has begun")

    fit_generator(generator, images, Procedure(trials=1), surrogate=surrogate, seed=0)


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("autoencoder", 1, (28, 28)),
        ("autoencoder", 3, (64, 48)),
        ("unet", 3, (32, 32)),
        ("released_mnist", 1, (28, 28)),
        ("released_imagenet", 3, (224, 224)),
        ("released_imagenet", 3, (64, 48)),
    ],
)
def test_noise_has_the_images_shape_and_stays_within_epsilon(make_images, name, channels, size):
    images = make_images(4, channels=channels, size=size)
    generator = create_generator(name, like=images, epsilon=0.1, seed=0, width=4)
    noise = noise_of(generator, images.x)
    assert noise.shape == images.x.shape
    assert 0 < noise.abs().max() <= 0.1


@pytest.mark.parametrize(("name", "normalised"), [("autoencoder", 1), ("released_imagenet", 0)])
def test_the_released_imagenet_generator_does_not_normalise_its_noise(
    make_images, name, normalised
):
    """Without weights in its last layer a constant is left, unless its mean is taken away."""
    images = make_images(4, size=(32, 32))
    generator = create_generator(name, like=images, epsilon=0.1, seed=0, width=4)
    last = generator.body.decoder[-1 - normalised]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(0.5)
        noise = generator.train()(images.x.float() / 255)
    constant = 0.0 if normalised else 0.1 * math.tanh(0.5)
    torch.testing.assert_close(noise, torch.full_like(noise, constant))


@pytest.mark.parametrize("name", ["autoencoder", "unet", "plain_autoencoder", "plain_unet"])
def test_only_a_normalised_generators_noise_depends_on_the_batch_while_it_learns(make_images, name):
    images = make_images(6, size=(32, 32))
    generator = create_generator(name, like=images, epsilon=0.1, seed=0, width=4).train()
    x = images.x.float() / 255
    with torch.no_grad():
        together, alone = generator(x)[:2], generator(x[:2])
    assert together.shape == alone.shape == (2, 3, 32, 32)
    apart = float((together - alone).abs().max())
    assert (apart < 1e-6) == name.startswith("plain")
    assert float(alone.std()) > 1e-4


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


@pytest.mark.parametrize("name", ["autoencoder", "unet", "released_imagenet"])
def test_a_saved_generator_makes_the_same_noise(make_images, tmp_path, name):
    images = make_images(5, size=(16, 16))
    generator = create_generator(name, like=images, epsilon=0.1, seed=1, width=4)
    generator(images.x.float() / 255)  # moves the running averages
    path = tmp_path / "generator.safetensors"
    save_generator(path, generator, name=name, channels=3, width=4)
    again = load_generator(path)
    assert torch.equal(noise_of(again, images.x), noise_of(generator, images.x))
    assert again.epsilon == 0.1


def test_a_generator_is_not_saved_as_what_it_is_not(make_images, tmp_path):
    """Hours of learning would be lost with a file that cannot be read back."""
    images = make_images(5, size=(16, 16))
    generator = create_generator("autoencoder", like=images, epsilon=0.1, seed=1, width=4)
    path = tmp_path / "generator.safetensors"
    for name, channels, options in (
        ("autoencoder", 3, {}),
        ("autoencoder", 1, {"width": 4}),
        ("unet", 3, {"width": 4}),
    ):
        with pytest.raises(PoisonkitError, match=f"not those of a generator '{name}' for"):
            save_generator(path, generator, name=name, channels=channels, **options)
    assert not path.exists()


@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_of_a_folder_is_perturbed_within_the_bound(make_images, tmp_path, channels):
    images = make_images(5, channels=channels, size=(16, 16))
    generator = saturated(images, 0.1)
    sizes = {"a.png": (16, 16), "cats/b.png": (20, 33), "cats/old/c.PNG": (7, 9)}
    for name, (height, width) in sizes.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        other = make_images(3, channels=3, size=(height, width), seed=height)
        Image.fromarray(other.x[0].permute(1, 2, 0).numpy()).save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    assert perturb_folder(generator, tmp_path / "in", tmp_path / "out") == 3
    found = sorted(p for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert len(found) == 3
    mode = "L" if channels == 1 else "RGB"
    for name, (height, width) in sizes.items():
        before = np.asarray(Image.open(tmp_path / "in" / name).convert(mode)).astype(int)
        place = (tmp_path / "out" / name).with_suffix(".png")
        after = np.asarray(Image.open(place)).astype(int)
        assert after.shape[:2] == (height, width)
        assert np.abs(after - before).max() == levels(0.1)
    again = torch.from_numpy(before).to(torch.uint8).reshape(7, 9, -1).permute(2, 0, 1)
    alone = perturb(generator, again[None])[0].permute(1, 2, 0)
    assert np.array_equal(after.reshape(7, 9, -1), alone.numpy()), "as the image by itself"


def test_noise_is_made_once_an_image_and_once_more_to_check_each_size(make_images, tmp_path):
    generator = saturated(make_images(3, size=(16, 16)), 0.1)
    shapes = []
    generator.register_forward_hook(lambda module, inputs, noise: shapes.append(noise.shape[2:]))
    (tmp_path / "in").mkdir()
    for number, size in enumerate([(16, 16), (8, 24), (16, 16), (16, 16)]):
        image = make_images(3, size=size, seed=number).x[0].permute(1, 2, 0).numpy()
        Image.fromarray(image).save(tmp_path / "in" / f"{number}.png")
    assert perturb_folder(generator, tmp_path / "in", tmp_path / "out") == 4
    assert sorted(shapes) == [(8, 24)] * 2 + [(16, 16)] * 4
    shapes.clear()
    perturb(generator, make_images(7, size=(16, 16)).x, batch_size=2)
    assert len(shapes) == 1 + 4


def test_a_folder_that_cannot_be_perturbed_is_said_before_anything_is_written(
    make_images, tmp_path
):
    images = make_images(3, size=(16, 16))
    generator = saturated(images, 0.1)
    source, out = tmp_path / "in", tmp_path / "out"
    with pytest.raises(PoisonkitError, match="no images in"):
        perturb_folder(generator, source, out)
    source.mkdir()
    picture = Image.fromarray(images.x[0].permute(1, 2, 0).numpy())
    picture.save(source / "a.png")
    picture.save(source / "a.bmp")
    with pytest.raises(PoisonkitError, match=r"several images would become .*a\.png"):
        perturb_folder(generator, source, out)
    assert not out.exists()
    with pytest.raises(PoisonkitError, match="is not empty"):
        perturb_folder(generator, source, source)


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
    coloured = make_images(3, size=(16, 16))
    for use in (lambda: perturb(generator, coloured.x), lambda: learn(generator, coloured)):
        with pytest.raises(PoisonkitError, match="takes images of 1 channels, these have 3"):
            use()
    generator = create_generator(
        "released_mnist", like=make_images(3, channels=1, size=(28, 28)), epsilon=0.1, seed=0
    )
    larger = make_images(3, channels=1, size=(32, 32))
    for use in (lambda: perturb(generator, larger.x), lambda: learn(generator, larger)):
        with pytest.raises(PoisonkitError, match=r"\(1, 28, 28\), the images are \(1, 32, 32\)"):
            use()


def test_images_outside_the_data_range_are_refused(make_images):
    images = make_images(3, size=(16, 16))
    generator = create_generator("autoencoder", like=images, epsilon=0.1, seed=0)
    with pytest.raises(PoisonkitError, match=r"must be uint8 .* not torch.float32"):
        perturb(generator, images.x.float())


def test_unknown_generators_are_answered_with_those_that_exist(make_images):
    with pytest.raises(PoisonkitError, match="autoencoder"):
        create_generator("gan", like=make_images(3), epsilon=0.1, seed=0)
    assert set(GENERATORS) == {
        "autoencoder",
        "unet",
        "released_mnist",
        "released_imagenet",
        "plain_autoencoder",
        "plain_unet",
    }


def test_a_file_that_is_no_generator_is_named(tmp_path: Path):
    path = tmp_path / "generator.safetensors"
    with pytest.raises(PoisonkitError, match="does not exist"):
        load_generator(path)
    path.write_bytes(b"something else entirely")
    with pytest.raises(PoisonkitError, match="not a generator's file"):
        load_generator(path)


def test_a_file_that_lacks_what_the_generator_is_names_it(make_images, tmp_path):
    images = make_images(5, size=(16, 16))
    path = tmp_path / "generator.safetensors"
    save_file(
        saturated(images, 0.1).state_dict(),
        path,
        metadata={"poisonkit": json.dumps({"format": 1, "generator": "unet", "options": {}})},
    )
    with pytest.raises(PoisonkitError, match="does not say its channels, epsilon"):
        load_generator(path)


def test_an_option_that_a_generator_does_not_have_is_named(make_images, tmp_path):
    images = make_images(3, size=(16, 16))
    with pytest.raises(PoisonkitError, match="'unet' does not have the option depth"):
        create_generator("unet", like=images, epsilon=0.1, seed=0, depth=3)
    generator = create_generator("unet", like=images, epsilon=0.1, seed=0)
    with pytest.raises(PoisonkitError, match="'unet' does not have the option depth"):
        save_generator(tmp_path / "unet", generator, name="unet", channels=3, depth=3)


@pytest.mark.parametrize("epsilon", [0.0, -0.1, 5.0, float("nan")])
def test_no_generator_has_another_bound_than_0_to_1(epsilon):
    with pytest.raises(PoisonkitError, match=r"epsilon must lie in \(0, 1\]"):
        NoiseGenerator(nn.Identity(), epsilon=epsilon)


def test_building_and_reading_a_generator_leaves_the_callers_random_state(make_images, tmp_path):
    images = make_images(3, size=(16, 16))
    path = tmp_path / "generator.safetensors"
    before = torch.random.get_rng_state()
    generator = create_generator("unet", like=images, epsilon=0.1, seed=0, width=4)
    save_generator(path, generator, name="unet", channels=3, width=4)
    load_generator(path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_share_is_at_least_one_image(make_images):
    images = make_images(5, size=(16, 16))
    assert len(craft(images, saturated(images, 0.1), share=0.15).rows) == 1
    with pytest.raises(PoisonkitError, match="of 5 images is none of them"):
        craft(images, saturated(images, 0.1), share=0.05)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_the_share_must_lie_in_0_to_1(make_images, share):
    images = make_images(5, size=(16, 16))
    with pytest.raises(PoisonkitError, match="share"):
        craft(images, saturated(images, 0.1), share=share)


def test_an_image_that_cannot_be_read_leaves_nothing_behind_and_can_be_mended(
    make_images, tmp_path
):
    images = make_images(3, size=(16, 16))
    generator = saturated(images, 0.1)
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for number, pixels in enumerate(images.x):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(source / f"{number}.png")
    whole = (source / "2.png").read_bytes()
    (source / "2.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PoisonkitError, match=r"2\.png cannot be read"):
        perturb_folder(generator, source, out)
    assert not out.exists()
    (source / "2.png").write_bytes(whole)
    assert perturb_folder(generator, source, out) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}
