"""The triggers of the Spectral Signatures paper, pixel by pixel, and the poisons made with them."""

import contextlib
from collections import Counter

import numpy as np
import pytest
import torch

from poisonkit.attacks.backdoor import PATTERNS, Trigger, craft, random_trigger
from poisonkit.errors import PoisonkitError

#: Rows and columns from the position, as the released code's three functions write them.
SHAPES = {
    "pixel": [(0, 0)],
    "X": [(0, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)],
    "L": [(0, 0), (1, 0), (0, 1)],
}
COLOUR = (101, 0, 25)


def stamped_by_hand(x: np.ndarray, pattern: str, position, colour, *, border: str) -> np.ndarray:
    """Overwrite pixels of [N, C, H, W] one by one; ``wrap`` leaves negatives to numpy."""
    x = x.copy()
    for down, right in SHAPES[pattern]:
        row, column = position[0] + down, position[1] + right
        if border == "clip" and not (0 <= row < x.shape[2] and 0 <= column < x.shape[3]):
            continue
        row -= x.shape[2] * (row >= x.shape[2])
        column -= x.shape[3] * (column >= x.shape[3])
        for channel, value in enumerate(colour):
            x[:, channel, row, column] = value
    return x


# Triggers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", SHAPES)
@pytest.mark.parametrize("colour", [COLOUR, (255,)])
def test_a_trigger_overwrites_the_pixels_of_its_shape_and_no_other(pattern, colour, make_images):
    images = make_images(5, channels=len(colour), size=(7, 9)).x
    before = images.clone()
    stamped = Trigger(pattern=pattern, position=(3, 4), colour=colour).stamp(images)
    expected = stamped_by_hand(before.numpy(), pattern, (3, 4), colour, border="error")
    assert np.array_equal(stamped.numpy(), expected)
    assert torch.equal(images, before)


@pytest.mark.parametrize("pattern", SHAPES)
@pytest.mark.parametrize("border", ["clip", "wrap"])
def test_at_every_position_borders_clip_or_wrap_as_asked(pattern, border, make_images):
    images = make_images(3, size=(4, 5)).x
    for row in range(4):
        for column in range(5):
            trigger = Trigger(pattern=pattern, position=(row, column), colour=COLOUR, border=border)
            expected = stamped_by_hand(
                images.numpy(), pattern, (row, column), COLOUR, border=border
            )
            assert np.array_equal(trigger.stamp(images).numpy(), expected)


def test_a_trigger_that_does_not_fit_names_the_pixel_outside(make_images):
    images = make_images(3, size=(4, 5)).x
    fitting = Counter()
    for pattern in SHAPES:
        for row in range(4):
            for column in range(5):
                with contextlib.suppress(PoisonkitError):
                    Trigger(pattern=pattern, position=(row, column)).stamp(images)
                    fitting[pattern] += 1
    assert fitting == {"pixel": 4 * 5, "X": 2 * 3, "L": 3 * 4}
    with pytest.raises(PoisonkitError, match=r"needs pixel \(-1, 1\), outside images of 4 x 5"):
        Trigger(pattern="X", position=(0, 2)).stamp(images)


def test_triggers_that_make_no_sense_are_refused(make_images):
    images = make_images(3, size=(4, 5)).x
    for position in ((4, 0), (0, 5), (-1, 0)):
        for border in ("error", "clip", "wrap"):
            with pytest.raises(PoisonkitError, match="lies outside images of 4 x 5"):
                Trigger(position=position, border=border).stamp(images)
    with pytest.raises(PoisonkitError, match="has 1 values, the images have 3 channels"):
        Trigger(position=(1, 1), colour=(9,)).stamp(images)
    with pytest.raises(PoisonkitError, match=r"not within 0\.\.255"):
        Trigger(position=(1, 1), colour=(0, 256, 0)).stamp(images)
    with pytest.raises(PoisonkitError, match="known: pixel, X, L"):
        Trigger(pattern="O", position=(1, 1)).stamp(images)
    with pytest.raises(PoisonkitError, match="known: error, clip, wrap"):
        Trigger(pattern="X", position=(0, 0), border="mirror").stamp(images)


def test_random_triggers_always_fit_and_cover_all_shapes_places_and_colours(make_images):
    images = make_images(3, size=(5, 4)).x
    drawn = [random_trigger(image_size=(5, 4), channels=3, seed=seed) for seed in range(3000)]
    for trigger in drawn:
        trigger.stamp(images)
    patterns = Counter(trigger.pattern for trigger in drawn)
    assert patterns.keys() == PATTERNS.keys()
    assert all(abs(count - 1000) < 6 * 1000**0.5 for count in patterns.values())
    # Every place at which a shape fits is taken, none of them much more often than another.
    for pattern, fitting in {"pixel": 20, "X": 6, "L": 12}.items():
        places = Counter(t.position for t in drawn if t.pattern == pattern)
        expected = patterns[pattern] / fitting
        assert len(places) == fitting
        assert all(abs(count - expected) < 6 * expected**0.5 for count in places.values())
    values = np.array([trigger.colour for trigger in drawn])
    assert values.shape == (3000, 3)
    assert values.min() == 0
    assert values.max() == 255
    assert np.abs(values.mean(0) - 127.5).max() < 6 * 74 / 3000**0.5


def test_a_random_trigger_follows_from_its_seed_and_its_shape_can_be_fixed():
    size = {"image_size": (32, 32), "channels": 3}
    assert random_trigger(seed=8, **size) == random_trigger(seed=8, **size)
    assert random_trigger(seed=8, **size) != random_trigger(seed=9, **size)
    assert {random_trigger(seed=k, pattern="L", **size).pattern for k in range(20)} == {"L"}
    with pytest.raises(PoisonkitError, match="known: pixel, X, L, random"):
        random_trigger(seed=0, pattern="O", **size)


# The attack ---------------------------------------------------------------------------------

TRIGGER = Trigger(pattern="X", position=(3, 4), colour=COLOUR)


@pytest.mark.parametrize("share", [0.05, 0.10, 0.2])
def test_the_number_of_poisons_is_a_share_of_the_target_class(share, make_images):
    train = make_images(900)
    poison = craft(train, trigger=TRIGGER, source="class 2", target="class 0", share=share)
    assert len(poison) == round(share * int((train.y == 0).sum()))
    assert poison.labels.tolist() == [0] * len(poison)
    assert set(train.y[poison.rows].tolist()) == {2}
    assert len(set(poison.rows.tolist())) == len(poison)
    expected = stamped_by_hand(train.x[poison.rows].numpy(), "X", (3, 4), COLOUR, border="error")
    assert np.array_equal(poison.images.numpy(), expected)
    assert int(poison.verify(train).max()) <= 5


def test_added_poisons_leave_the_source_class_and_replaced_ones_take_from_it(make_images):
    train = make_images(300)
    before = train.y.bincount().tolist()
    for placement in ("added", "replaced"):
        poison = craft(train, trigger=TRIGGER, source=1, target=2, share=0.1, placement=placement)
        poisoned, mask = poison.apply(train)
        count, taken = len(poison), len(poison) if placement == "replaced" else 0
        assert poisoned.y.bincount().tolist() == [before[0], before[1] - taken, before[2] + count]
        assert int(mask.sum()) == count
    with pytest.raises(PoisonkitError, match="known: added, replaced"):
        craft(train, trigger=TRIGGER, source=1, target=2, placement="appended")


def test_the_seed_chooses_the_stamped_images(make_images):
    train = make_images(600)
    chosen = [
        craft(train, trigger=TRIGGER, source=0, target=1, seed=seed).rows for seed in (1, 1, 2)
    ]
    assert torch.equal(chosen[0], chosen[1])
    assert not torch.equal(chosen[0], chosen[2])
    # Over many seeds every image of the source class has its turn.
    seen = {
        row
        for seed in range(100)
        for row in craft(train, trigger=TRIGGER, source=0, target=1, seed=seed).rows.tolist()
    }
    assert seen == set(train.indices_of(0).tolist())


def test_an_attack_that_cannot_be_made_is_refused_and_leaves_the_data(make_images):
    train = make_images(60, classes=2)
    train = train.select(torch.cat([train.indices_of(0), train.indices_of(1)[:3]]))
    before = train.x.clone()
    large = len(train.indices_of(0))
    for options, told in (
        ({"source": 0, "target": "class 0"}, "source and target are both 'class 0'"),
        ({"source": 0, "target": 1, "share": 0.5}, r"must lie in \(0, 1/2\), not 0.5"),
        ({"source": 0, "target": 1, "share": 0.0}, r"must lie in \(0, 1/2\), not 0.0"),
        ({"source": 0, "target": 1, "share": 0.1}, rf"is 0 images; .* can give 1 to {large}"),
        ({"source": 1, "target": 0, "share": 0.4}, "'class 1' can give 1 to 3"),
        ({"source": "ship", "target": 0}, "known: class 0, class 1"),
    ):
        with pytest.raises(PoisonkitError, match=told):
            craft(train, trigger=TRIGGER, **options)
    assert torch.equal(train.x, before)
