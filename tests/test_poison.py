"""A poison keeps what it promises, or says which promise it broke; and it travels as PNG files."""

import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from poisonkit.bounds import Bound
from poisonkit.errors import DataError, PoisonError, PoisonkitError
from poisonkit.poison import MANIFEST, Poison, load_poison

ROWS = torch.tensor([4, 11, 30])


@pytest.fixture
def train(make_images):
    return make_images(40, size=(6, 5))


def poison_of(train, *, moved=8, kind="linf", value=8, **options) -> Poison:
    """Three images whose first channel moves by ``moved`` at one pixel, clipped to 0..255."""
    images = train.x[ROWS].clone()
    pixel = images[:, 0, 2, 3].int()
    images[:, 0, 2, 3] = torch.where(pixel < 128, pixel + moved, pixel - moved).to(torch.uint8)
    promise = {
        "labels": train.y[ROWS], "rows": ROWS, "placement": "replaced",
        "bound": Bound(kind=kind, value=value), "clean_label": True, "source": train.checksum,
    }  # fmt: skip
    return Poison(images=images, **{**promise, **options})


# Promises -----------------------------------------------------------------------------------


def test_bounds_measure_what_numpy_measures(make_images):
    images, bases = make_images(30, seed=1).x, make_images(30, seed=2).x
    bases[:10, :, 3:] = images[:10, :, 3:]
    moved = np.abs(images.numpy().astype(int) - bases.numpy().astype(int))
    linf = Bound(kind="linf", value=8).measure(images, bases)
    pixels = Bound(kind="pixels", value=8).measure(images, bases)
    assert linf.tolist() == moved.max((1, 2, 3)).tolist()
    assert linf.max() > 127  # where a difference of bytes would wrap around
    assert pixels.tolist() == (moved > 0).any(1).sum((1, 2)).tolist()
    assert pixels[:10].max() <= 24


def test_a_poison_at_its_bound_is_verified_and_measured(train):
    assert poison_of(train).verify(train).tolist() == [8, 8, 8]
    assert poison_of(train, kind="pixels", value=1).verify(train).tolist() == [1, 1, 1]


@pytest.mark.parametrize(("kind", "name"), [("linf", "linf"), ("pixels", "pixels")])
def test_a_bound_exceeded_by_one_is_named_with_the_image_and_the_numbers(kind, name, train):
    poison = poison_of(train, kind=kind, value=8 if kind == "linf" else 1)
    base = int(train.x[ROWS[1], 0, 2, 3])
    if kind == "linf":
        poison.images[1, 0, 2, 3] = base + 9 if base < 128 else base - 9
    else:
        poison.images[1, 2, 0, 0] ^= 1
    limit, found = (8, 9) if kind == "linf" else (1, 2)
    with pytest.raises(PoisonError, match=rf"the {name} bound is {limit}, .* image 1 has {found} "):
        poison.apply(train)


def test_a_changed_label_breaks_a_clean_label_promise_only(train):
    labels = train.y[ROWS].clone()
    labels[2] = (labels[2] + 1) % 3
    names = [f"'class {int(label)}'" for label in (train.y[ROWS[2]], labels[2])]
    with pytest.raises(PoisonError, match=rf"image 2 of class {names[0]} is labelled {names[1]}"):
        poison_of(train, labels=labels).verify(train)
    poisoned, _ = poison_of(train, labels=labels, clean_label=False).apply(train)
    assert torch.equal(poisoned.y[ROWS], labels)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_image_needs_a_label_of_its_own(count, train):
    labels = train.y[:count]
    for placement in ("added", "replaced"):
        with pytest.raises(PoisonError, match=f"3 poisoned images have {count} labels"):
            poison_of(train, labels=labels, placement=placement, clean_label=False).apply(train)


def test_rows_that_do_not_exist_or_collide_are_refused(train):
    for row in (40, -1):
        rows = torch.tensor([4, 11, row])
        with pytest.raises(PoisonError, match=rf"row {row} .*40 images"):
            poison_of(train, rows=rows).verify(train)
    twice = torch.tensor([4, 4, 30])
    options = {"rows": twice, "labels": train.y[twice], "images": train.x[twice]}
    with pytest.raises(PoisonError, match="replace the same training image"):
        replace(poison_of(train), **options).verify(train)
    assert len(replace(poison_of(train), placement="added", **options).verify(train)) == 3


def test_a_poison_made_for_another_training_set_is_refused(train, make_images):
    other = make_images(40, size=(6, 5), seed=9)
    with pytest.raises(PoisonError, match="made for a training set with checksum"):
        poison_of(train).verify(other)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda images: images.float() / 255,
        lambda images: images[:, :1],
        lambda images: images[:, :, :1],
        lambda images: images[:2],
    ],
)
def test_images_of_another_type_or_shape_are_refused(wrong, train):
    poison = poison_of(train)
    with pytest.raises(PoisonError, match="uint8 of shape"):
        replace(poison, images=wrong(poison.images)).apply(train)


def test_unknown_kinds_and_placements_list_the_known_ones(train):
    with pytest.raises(PoisonkitError, match="known: linf, pixels"):
        Bound(kind="l2", value=8)
    with pytest.raises(PoisonkitError, match="known: added, replaced"):
        poison_of(train, placement="appended")


def test_a_target_inside_the_training_set_is_refused(train):
    targets = train.x[[17, 23]].clone()
    targets[0, 0, 0, 0] ^= 1  # one bit away from image 17: not the same image
    with pytest.raises(PoisonError, match="target 1 is training image 23"):
        poison_of(train).apply(train, targets=targets)
    assert len(poison_of(train).verify(train, targets=targets[:1])) == 3


# How it enters a training set ---------------------------------------------------------------


@pytest.mark.parametrize("placement", ["added", "replaced"])
def test_a_poison_enters_as_it_says_and_the_original_stays(placement, train):
    x, y = train.x.clone(), train.y.clone()
    poison = poison_of(train, placement=placement)
    poisoned, mask = poison.apply(train)
    assert torch.equal(poisoned.x[mask], poison.images)
    assert torch.equal(poisoned.y[mask], poison.labels)
    if placement == "added":
        assert torch.equal(mask, torch.arange(43) >= 40)
        assert torch.equal(poisoned.x[~mask], x)
        assert torch.equal(poisoned.y[~mask], y)
    else:
        others = [row for row in range(40) if row not in ROWS.tolist()]
        assert mask.nonzero().flatten().tolist() == ROWS.tolist()
        assert torch.equal(poisoned.x[others], x[others])
        assert torch.equal(poisoned.y, y)
    poisoned.x.zero_()
    assert torch.equal(train.x, x)
    assert torch.equal(train.y, y)


def test_a_label_beyond_the_classes_is_refused(train):
    labels = torch.tensor([0, 1, 3])
    with pytest.raises(DataError, match="labels run from 0 to 3"):
        poison_of(train, labels=labels, clean_label=False).apply(train)


# As PNG files -------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_a_poison_read_back_is_the_one_exported_byte_for_byte(channels, make_images, tmp_path):
    train = make_images(40, channels=channels, size=(6, 5))
    poison = poison_of(train, placement="added")
    manifest = poison.export(tmp_path / "new" / "poison")
    assert manifest.name == MANIFEST
    for index, image in enumerate(poison.images):
        with Image.open(manifest.parent / f"{index:05d}.png") as opened:
            seen = np.asarray(opened).reshape(6, 5, channels)
        assert np.array_equal(seen, image.permute(1, 2, 0).numpy())
    back = load_poison(manifest.parent)
    for name in ("images", "labels", "rows"):
        assert torch.equal(getattr(back, name), getattr(poison, name))
        assert getattr(back, name).dtype == getattr(poison, name).dtype
    for name in ("placement", "bound", "clean_label", "source"):
        assert getattr(back, name) == getattr(poison, name)
    assert back.verify(train).tolist() == poison.verify(train).tolist()


def test_damage_to_any_byte_of_an_image_file_is_noticed(train, tmp_path):
    poison = poison_of(train)
    poison.export(tmp_path)
    path = tmp_path / "00001.png"
    data = path.read_bytes()
    refused = 0
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        found = None
        with contextlib.suppress(PoisonError):
            found = load_poison(tmp_path).images
        refused += found is None
        # Some bits carry nothing, such as those of the last chunk's sum.
        assert found is None or torch.equal(found, poison.images)
    assert refused > 0.6 * len(data)
    path.write_bytes((tmp_path / "00002.png").read_bytes())
    with pytest.raises(PoisonError, match=r"00001\.png is not the image that the manifest"):
        load_poison(tmp_path)
    path.write_bytes(data[:-30])
    with pytest.raises(PoisonError, match=r"00001\.png"):
        load_poison(tmp_path)
    path.unlink()
    with pytest.raises(PoisonError, match=r"00001\.png cannot be read"):
        load_poison(tmp_path)


def test_a_manifest_that_is_missing_damaged_or_of_another_format_is_named(train, tmp_path):
    with pytest.raises(PoisonError, match=rf"{MANIFEST} does not exist"):
        load_poison(tmp_path)
    path = poison_of(train).export(tmp_path)
    content = json.loads(path.read_text())
    for changed, told in (
        (path.read_text()[:-40], "not a whole manifest"),
        (json.dumps({"format": content["format"]}), "not a whole manifest"),
        (json.dumps({**content, "format": 99}), "has format 99"),
        (json.dumps({**content, "images": []}), "lists no images"),
    ):
        path.write_text(changed)
        with pytest.raises(PoisonError, match=told):
            load_poison(tmp_path)


def test_a_folder_with_something_in_it_is_not_exported_to(train, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(PoisonError, match="is not empty"):
        poison_of(train).export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_file_names_in_a_manifest_cannot_lead_out_of_its_folder(train, tmp_path):
    manifest = poison_of(train).export(tmp_path / "poison")
    outside = tmp_path / "outside.png"
    (manifest.parent / "00000.png").rename(outside)
    content = json.loads(manifest.read_text())
    for name in ("../outside.png", str(outside)):
        content["images"][0]["file"] = name
        manifest.write_text(json.dumps(content))
        with pytest.raises(PoisonError, match=r"poison/outside\.png cannot be read"):
            load_poison(manifest.parent)
