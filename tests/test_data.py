"""The data sets: what is loaded, in which order, and what is refused rather than replaced."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from poisonkit.data import NAMES, data_root, load
from poisonkit.devices import choose_device
from poisonkit.errors import DataError, PoisonkitError
from poisonkit.images import ImageSet


def write_tree(folder: Path, classes: dict[str, int], *, seed=0, size=(7, 5), mode="RGB"):
    """Write so many PNG files of each class and return their arrays in sorted order."""
    rng, arrays = np.random.default_rng(seed), []
    for name, count in sorted(classes.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            shape = (*size, 3) if mode == "RGB" else size
            arrays.append(rng.integers(0, 256, shape, dtype=np.uint8))
            Image.fromarray(arrays[-1]).save(folder / name / f"{index:03d}.png")
    return arrays


def as_array(images: ImageSet) -> np.ndarray:
    return images.x.permute(0, 2, 3, 1).numpy()


# Digits -------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_first_four_fifths_and_last_fifth_of_each_class():
    from sklearn.datasets import load_digits

    bundled = load_digits()
    rows = {"train": [], "test": []}
    for digit in range(10):
        own = np.flatnonzero(bundled.target == digit)
        rows["train"] += own[: int(0.8 * len(own))].tolist()
        rows["test"] += own[int(0.8 * len(own)) :].tolist()
    assert len(rows["train"]) + len(rows["test"]) == 1797
    for split, chosen in rows.items():
        images = load("digits", split=split, image_size=8)
        expected = np.rint(bundled.images[sorted(chosen)] * 255 / 16)
        assert np.array_equal(images.x[:, 0].numpy(), expected)
        assert np.array_equal(images.y.numpy(), bundled.target[sorted(chosen)])


def test_digits_come_as_16_pixel_squares_interpolated_linearly():
    small, large = load("digits", image_size=8), load("digits")
    assert large.x.dtype == torch.uint8
    assert large.y.dtype == torch.int64
    assert large.x.shape == (len(small), 1, 16, 16)
    for index in range(0, len(small), 97):
        resized = Image.fromarray(small.x[index, 0].numpy()).resize((16, 16), Image.BILINEAR)
        assert np.abs(np.asarray(resized, int) - large.x[index, 0].numpy()).max() <= 1


def test_loading_twice_gives_the_same_data():
    assert load("digits").checksum == load("digits").checksum
    assert load("digits").checksum != load("digits", split="test").checksum


# Selections ---------------------------------------------------------------------------------


def test_the_first_n_of_each_class_are_taken_in_the_data_sets_order(make_images):
    images = make_images(200, classes=4)
    seen, expected = Counter(), []
    for row, label in enumerate(images.y.tolist()):
        seen[label] += 1
        if 5 < seen[label] <= 5 + 20:
            expected.append(row)
    chosen = images.first_per_class(20, skip=5)
    assert torch.equal(chosen.x, images.x[expected])
    assert torch.equal(chosen.y, images.y[expected])


def test_asking_for_more_than_a_class_has_names_the_class_and_its_size(make_images):
    images = make_images(40, classes=2)
    images = images.select(torch.cat([images.indices_of(0), images.indices_of(1)[:7]]))
    with pytest.raises(DataError, match=r"'class 1' has 7 images, not the 3 \+ 5"):
        images.first_per_class(5, skip=3)


def test_a_split_takes_its_share_of_every_class_and_loses_no_image(make_images):
    images = make_images(300, classes=3)
    rest, held_out = images.split(0.3, seed=1)
    for label in range(3):
        assert len(held_out.indices_of(label)) == round(0.3 * len(images.indices_of(label)))
    everything = sorted(x.numpy().tobytes() for x in images.x)
    assert sorted(x.numpy().tobytes() for x in torch.cat([rest.x, held_out.x])) == everything
    assert images.split(0.3, seed=1)[1].checksum == held_out.checksum
    assert images.split(0.3, seed=2)[1].checksum != held_out.checksum
    with pytest.raises(DataError, match="between 0 and 1"):
        images.split(1.0, seed=0)


def test_the_checksum_sees_every_pixel_label_name_order_and_shape(make_images):
    images = make_images(20, size=(4, 6))
    assert images.checksum == replace(images, x=images.x.clone(), name="elsewhere").checksum
    pixel, label, order = images.x.clone(), images.y.clone(), torch.arange(20)
    pixel[7, 1, 2, 3] ^= 1
    label[-1] = (label[-1] + 1) % 3
    order[[3, 4]] = order[[4, 3]]
    others = [
        replace(images, x=pixel),
        replace(images, y=label),
        images.select(order),
        replace(images, x=images.x.reshape(20, 3, 6, 4)),
        replace(images, class_names=("a", "b", "c")),
    ]
    assert len({images.checksum, *(other.checksum for other in others)}) == 6


def test_images_of_the_wrong_type_and_labels_beyond_the_classes_are_refused(make_images):
    images = make_images(10)
    with pytest.raises(DataError, match="uint8 of shape"):
        replace(images, x=images.x.float())
    with pytest.raises(DataError, match=r"int64 of shape \[10\]"):
        replace(images, y=images.y[:-1])
    with pytest.raises(DataError, match="labels must be a torch tensor, not ndarray"):
        replace(images, y=images.y.numpy())
    with pytest.raises(DataError, match=r"channels last; give x\.permute\(0, 3, 1, 2\)"):
        replace(images, x=images.x.permute(0, 2, 3, 1))
    with pytest.raises(DataError, match="labels run from 0 to 2, but there are 2 classes"):
        replace(images, class_names=("a", "b"))
    with pytest.raises(PoisonkitError, match="known: class 0, class 1, class 2"):
        images.label_of("ship")
    assert images.label_of("class 2") == images.label_of(2) == 2


def test_rows_are_chosen_by_whatever_numbers_or_by_a_mask(make_images):
    images = make_images(10)
    for rows in (torch.tensor([7]), [7], np.array([7]), 7, torch.tensor(7), torch.arange(10) == 7):
        found = images.select(rows)
        assert torch.equal(found.x, images.x[7:8])
        assert torch.equal(found.y, images.y[7:8])


# What is missing or unknown -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_missing_data_name_the_folder_and_the_command_that_fetches_them(name, tmp_path):
    with pytest.raises(DataError) as caught:
        load(name, root=tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert f"poisonkit data --download {name} --root {tmp_path}" in str(caught.value)


def test_a_missing_imagenet_class_names_its_folder_and_those_that_are_there(tmp_path):
    write_tree(tmp_path / "train", {"n01": 2, "n02": 2})
    with pytest.raises(DataError) as caught:
        load("imagenet2", root=tmp_path, classes=("n01", "n03"))
    for told in (str(tmp_path), "train/n03", "n01, n02", "POISONKIT_DATA"):
        assert told in str(caught.value)
    with pytest.raises(DataError, match="two different classes"):
        load("imagenet2", root=tmp_path, classes=("n01", "n01"))


def test_unknown_names_list_the_known_ones(tmp_path):
    with pytest.raises(PoisonkitError) as caught:
        load("cifar100", root=tmp_path)
    assert all(name in str(caught.value) for name in NAMES)
    with pytest.raises(PoisonkitError, match="known: train, test"):
        load("digits", split="validation")
    with pytest.raises(PoisonkitError, match="known: auto, cpu, cuda"):
        choose_device("graphics")


def test_the_root_argument_beats_the_variable_and_the_variable_the_cache(tmp_path, monkeypatch):
    for name, seed in (("argument", 1), ("variable", 2), ("cache/data", 3)):
        write_tree(tmp_path / name / "train", {"n01": 1, "n02": 1}, seed=seed)
    monkeypatch.setenv("POISONKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("POISONKIT_DATA", str(tmp_path / "variable"))
    wanted = {"root": tmp_path / "argument", "classes": ("n01", "n02")}
    given, variable = load("imagenet2", **wanted), load("imagenet2", classes=("n01", "n02"))
    monkeypatch.delenv("POISONKIT_DATA")
    cached = load("imagenet2", classes=("n01", "n02"))
    assert data_root() == tmp_path / "cache/data"
    for images, name in ((given, "argument"), (variable, "variable"), (cached, "cache/data")):
        first = np.asarray(Image.open(tmp_path / name / "train/n01/000.png"))
        assert np.array_equal(as_array(images)[0], first)


# A user's own folder ------------------------------------------------------------------------


def test_a_folder_with_train_and_test_is_read_as_it_is(tmp_path):
    train = write_tree(tmp_path / "train", {"owl": 3, "asp": 2}, seed=1)
    test = write_tree(tmp_path / "test", {"owl": 1, "asp": 4}, seed=2)
    images = load(f"folder:{tmp_path}")
    assert images.class_names == ("asp", "owl")
    assert images.y.tolist() == [0, 0, 1, 1, 1]
    assert np.array_equal(as_array(images), train)
    assert np.array_equal(as_array(load(f"folder:{tmp_path}", split="test")), test)


def test_a_folder_without_a_test_part_gives_a_fifth_of_each_class_to_the_test(tmp_path):
    arrays = write_tree(tmp_path, {"asp": 10, "owl": 20})
    parts = [load(f"folder:{tmp_path}", split=split) for split in ("train", "test")]
    assert [Counter(part.y.tolist()) for part in parts] == [{0: 8, 1: 16}, {0: 2, 1: 4}]
    found = np.concatenate([as_array(part) for part in parts])
    assert sorted(a.tobytes() for a in found) == sorted(a.tobytes() for a in arrays)


def test_a_folder_with_train_only_is_refused_rather_than_taken_for_one_class(tmp_path):
    write_tree(tmp_path / "train", {"asp": 3, "owl": 3})
    with pytest.raises(DataError, match=r"test"):
        load(f"folder:{tmp_path}")


def test_a_class_that_only_the_test_images_have_is_named(tmp_path):
    write_tree(tmp_path / "train", {"asp": 3, "owl": 3})
    write_tree(tmp_path / "test", {"asp": 3, "emu": 1, "owl": 3})
    with pytest.raises(DataError, match="test/ has emu, train/ has not"):
        load(f"folder:{tmp_path}")


def test_hidden_folders_such_as_jupyters_are_no_classes(tmp_path):
    write_tree(tmp_path, {"asp": 5, "owl": 5})
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    assert load(f"folder:{tmp_path}").class_names == ("asp", "owl")


def test_options_that_mean_nothing_for_the_data_are_refused(tmp_path):
    with pytest.raises(DataError, match="classes are for imagenet2 alone, not for digits"):
        load("digits", classes=("1", "2"))
    with pytest.raises(DataError, match="cannot be fetched"):
        load("digits", download=True)


def test_the_device_may_be_left_to_the_machine():
    assert load("digits", device="auto").device.type == choose_device("auto").type
    with pytest.raises(PoisonkitError, match="unknown device 'tpu'"):
        load("digits", device="tpu")


def test_grey_images_become_three_equal_channels(tmp_path):
    arrays = write_tree(tmp_path / "train", {"asp": 2, "owl": 1}, mode="L")
    write_tree(tmp_path / "val", {"asp": 1, "owl": 1}, mode="L")
    images = load(f"folder:{tmp_path}")
    for channel in range(3):
        assert np.array_equal(images.x[:, channel].numpy(), arrays)


def test_grey_images_may_keep_their_one_channel_and_a_path_is_a_folder(tmp_path):
    arrays = write_tree(tmp_path / "train", {"asp": 2, "owl": 1}, mode="L")
    write_tree(tmp_path / "val", {"asp": 1, "owl": 1}, mode="L")
    images = load(tmp_path, grey=True)
    assert images.name == f"folder:{tmp_path}"
    assert images.channels == 1
    assert np.array_equal(images.x[:, 0].numpy(), arrays)
    with pytest.raises(DataError, match="grey is for a folder of your own images, not for digits"):
        load("digits", grey=True)


def test_mixed_sizes_are_refused_unless_a_size_is_given(tmp_path):
    write_tree(tmp_path, {"asp": 10})
    write_tree(tmp_path, {"owl": 10}, size=(6, 9))
    with pytest.raises(DataError, match=r"owl.*is 9 x 6 pixels, others are 5 x 7; give image_size"):
        load(f"folder:{tmp_path}")
    assert load(f"folder:{tmp_path}", image_size=4).x.shape[1:] == (3, 4, 4)


@pytest.mark.parametrize("damage", ["cut", "header", "length", "chunk", "text"])
def test_an_unreadable_image_is_named(damage, tmp_path):
    write_tree(tmp_path, {"asp": 10, "owl": 10})
    path = tmp_path / "owl/004.png"
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage != "text":
        data[{"header": 20, "length": 11, "chunk": 36}[damage]] ^= 8 if damage == "chunk" else 1
    path.write_bytes(b"not an image" if damage == "text" else data)
    with pytest.raises(DataError, match=r"owl/004\.png cannot be read as an image"):
        load(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        (np.arange(35, dtype=np.uint16).reshape(7, 5) * 1800, "more than 8 bits"),
        (np.full((7, 5, 4), 120, dtype=np.uint8), "transparent in parts"),
    ],
)
def test_an_image_that_would_change_when_read_is_refused(pixels, told, tmp_path):
    """Of 16 bits all but the darkest pixels would be white, what is transparent would be black."""
    write_tree(tmp_path, {"asp": 10, "owl": 10})
    Image.fromarray(pixels).save(tmp_path / "owl/004.png")
    with pytest.raises(DataError, match=rf"owl/004\.png .*{told}"):
        load(f"folder:{tmp_path}")


def test_a_channel_that_says_that_nothing_is_transparent_changes_nothing(tmp_path):
    arrays = write_tree(tmp_path / "train", {"asp": 1, "owl": 1})
    write_tree(tmp_path / "test", {"asp": 1, "owl": 1})
    for name, pixels in zip(("asp", "owl"), arrays, strict=True):
        opaque = np.dstack([pixels, np.full(pixels.shape[:2], 255, dtype=np.uint8)])
        Image.fromarray(opaque).save(tmp_path / "train" / name / "000.png")
    assert np.array_equal(as_array(load(f"folder:{tmp_path}")), arrays)


@pytest.mark.parametrize("count", [1, 2])
def test_a_class_too_small_to_have_a_test_image_is_named(count, tmp_path):
    write_tree(tmp_path, {"asp": 3, "owl": count})
    with pytest.raises(DataError, match=f"'owl' has {count} image"):
        load(f"folder:{tmp_path}", split="test")


def test_folders_that_hold_no_classes_or_no_images_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        load(f"folder:{tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match="no class folders"):
        load(f"folder:{tmp_path}")
    (tmp_path / "asp").mkdir()
    with pytest.raises(DataError, match=r"no images in .*asp"):
        load(f"folder:{tmp_path}")
