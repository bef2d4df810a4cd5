"""The recipe's arithmetic, and batches: every image once an epoch, cropped and mirrored."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from poisonkit.errors import PoisonkitError
from poisonkit.training import Recipe, Sampler

PLAIN = Recipe(batch_size=16, crop_padding=0, flip=False)


# The recipe -------------------------------------------------------------------------------


def test_each_schedule_gives_the_rates_worked_out_by_hand():
    steps = Recipe(learning_rate=0.1)
    # The paper: 0.1, from step 30,000 of 80,000 on 0.01, from 60,000 on 0.001.
    table = {0: 0.1, 29_999: 0.1, 30_000: 0.01, 59_999: 0.01, 60_000: 0.001, 79_999: 0.001}
    for step, rate in table.items():
        assert steps.rate_at(step / 80_000) == pytest.approx(rate)
    assert Recipe(schedule="constant", learning_rate=0.3).rate_at(0.99) == 0.3
    cosine = Recipe(schedule="cosine", learning_rate=0.4)
    for progress, rate in {0: 0.4, 1 / 3: 0.3, 0.5: 0.2, 2 / 3: 0.1, 1: 0.0}.items():
        assert cosine.rate_at(progress) == pytest.approx(rate, abs=1e-12)


@pytest.mark.parametrize("schedule", ["constant", "steps", "cosine"])
def test_a_warm_up_rises_linearly_from_zero_to_the_full_rate(schedule):
    recipe = Recipe(schedule=schedule, learning_rate=0.2, warmup=0.1)
    for progress, rate in {0: 0.0, 0.025: 0.05, 0.05: 0.1, 0.1: 0.2}.items():
        assert recipe.rate_at(progress) == pytest.approx(rate)
    rest = Recipe(schedule="cosine", learning_rate=0.2, warmup=0.1)
    assert rest.rate_at(0.55) == pytest.approx(0.1)  # half-way down what follows the warm-up


@pytest.mark.parametrize(
    "wrong",
    [
        {"optimizer": "sdg"},
        {"schedule": "linear"},
        {"precision": "half"},
        {"epochs": 0},
        {"batch_size": 0},
        {"crop_padding": -1},
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(PoisonkitError, match=name):
        Recipe(**wrong)


# Batches ------------------------------------------------------------------------------------


def epoch_of(images, recipe, *, seed=0, number=0):
    parts = list(Sampler(images, recipe, seed=seed).epoch(number))
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def as_bytes(x: torch.Tensor) -> list[bytes]:
    whole = (x * 255).round().to(torch.uint8)
    return [image.contiguous().numpy().tobytes() for image in whole]


def windows(image: np.ndarray, margin: int):
    """All crops of a zero-padded image [C, H, W] by (down, right, mirrored)."""
    channels, height, width = image.shape
    padded = np.zeros((channels, height + 2 * margin, width + 2 * margin), np.uint8)
    padded[:, margin : margin + height, margin : margin + width] = image
    for down in range(2 * margin + 1):
        for right in range(2 * margin + 1):
            crop = padded[:, down : down + height, right : right + width]
            yield (down, right, False), crop
            yield (down, right, True), crop[:, :, ::-1]


def test_without_augmentation_an_epoch_is_a_permutation_of_the_images(make_images):
    images = make_images(75)
    x, y = epoch_of(images, PLAIN)
    assert x.dtype == torch.float32
    assert sorted(as_bytes(x)) == sorted(image.numpy().tobytes() for image in images.x)
    label_of = {
        image.numpy().tobytes(): int(label) for image, label in zip(images.x, images.y, strict=True)
    }
    assert [label_of[image] for image in as_bytes(x)] == y.tolist()
    assert not torch.equal(y, images.y)


def test_an_epoch_is_cut_into_batches_of_nearly_equal_size(make_images):
    for count, size, steps in ((75, 16, 5), (64, 16, 4), (65, 16, 5), (10, 128, 1)):
        sampler = Sampler(make_images(count), replace(PLAIN, batch_size=size), seed=0)
        sizes = [len(y) for _, y in sampler.epoch(0)]
        assert len(sizes) == sampler.steps == steps
        assert sum(sizes) == count
        assert max(sizes) <= size
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("margin", [0, 1, 2])
@pytest.mark.parametrize("flip", [False, True])
def test_each_image_is_a_window_of_its_padded_self_and_all_windows_are_equally_likely(
    margin, flip, make_images
):
    images = make_images(40, channels=2, size=(6, 5))
    origin = {}
    for row, image in enumerate(images.x.numpy()):
        for window, crop in windows(image, margin):
            origin[crop.tobytes()] = (row, *window)
    assert len(origin) == 40 * (2 * margin + 1) ** 2 * 2  # no window is ambiguous
    recipe, seen = replace(PLAIN, crop_padding=margin, flip=flip), Counter()
    epochs = 50
    for number in range(epochs):
        x, y = epoch_of(images, recipe, number=number)
        found = [origin[image] for image in as_bytes(x)]
        rows = [row for row, *_ in found]
        assert sorted(rows) == list(range(40))
        assert torch.equal(y, images.y[rows])
        seen.update(window for _, *rest in found for window in [tuple(rest)])
    possible = (2 * margin + 1) ** 2 * (2 if flip else 1)
    expected = 40 * epochs / possible
    assert len(seen) == possible
    assert all(window[2] <= flip for window in seen)
    assert all(abs(count - expected) < 6 * expected**0.5 for count in seen.values())


def test_the_epochs_number_and_the_seed_decide_a_batch_and_nothing_else_does(make_images):
    images, recipe = make_images(40), replace(PLAIN, crop_padding=2, flip=True)
    first = epoch_of(images, recipe, seed=3, number=5)[0]
    torch.manual_seed(1)
    untouched = torch.get_rng_state()
    assert torch.equal(epoch_of(images, recipe, seed=3, number=5)[0], first)
    assert torch.equal(torch.get_rng_state(), untouched)
    others = [epoch_of(images, recipe, seed=s, number=n)[0] for s, n in ((3, 4), (4, 5), (5, 3))]
    assert not any(torch.equal(other, first) for other in others)


def test_a_sampler_leaves_the_images_as_they_are(make_images):
    images = make_images(40)
    before = images.x.clone()
    epoch_of(images, replace(PLAIN, crop_padding=2, flip=True))
    assert torch.equal(images.x, before)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive, not 0.0"),
        ({"learning_rate": -1.0}, "learning_rate must be positive, not -1.0"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), not 1.0"),
        ({"warmup": -0.1}, r"warmup must lie in \[0, 1\), not -0.1"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, not -0.1"),
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
    ],
)
def test_a_recipe_that_cannot_train_is_refused(option, message):
    with pytest.raises(PoisonkitError, match=message):
        Recipe(**option)
