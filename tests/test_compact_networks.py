"""VGG as published but for its classifier, and the compact network made for a CPU."""

import pytest
import torch
from torch import nn

from poisonkit.errors import PoisonkitError
from poisonkit.experiments import EXPERIMENTS
from poisonkit.experiments.networks import Context
from poisonkit.experiments.spectral_signatures.steps import check_request, poisoned_data
from poisonkit.models import create, features

REMOVAL = EXPERIMENTS["spectral_signatures/removal"]

#: Simonyan and Zisserman (2015), Table 1, columns A, B, D and E: the channels of each stage.
PUBLISHED = {
    "vgg11": [[64], [128], [256, 256], [512, 512], [512, 512]],
    "vgg13": [[64, 64], [128, 128], [256, 256], [512, 512], [512, 512]],
    "vgg16": [[64, 64], [128, 128], [256] * 3, [512] * 3, [512] * 3],
    "vgg19": [[64, 64], [128, 128], [256] * 4, [512] * 4, [512] * 4],
}
#: The size of the convolutional part that is usually quoted, with one bias a channel.
QUOTED = {"vgg11": 9_220_480, "vgg13": 9_404_992, "vgg16": 14_714_688, "vgg19": 20_024_384}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def shapes(model, images) -> dict[str, tuple[int, ...]]:
    """The shape of one image's features at every convolution that can be read."""
    found = {}

    def note(name):
        return lambda module, inputs, output: found.update({name: tuple(output.shape[1:])})

    for tap in model.taps:
        if tap.startswith("stage"):
            model.module_at(tap).register_forward_hook(note(tap))
    model.eval()(images.x[:2] / 255.0)
    return found


# VGG ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count"), [("vgg11", 8), ("vgg13", 10), ("vgg16", 13)])
def test_vgg_has_the_published_number_of_convolutions(name, count, make_images):
    model = create(name, like=make_images(size=(32, 32)), seed=0)
    assert len(convolutions(model)) == count


@pytest.mark.parametrize("name", PUBLISHED)
def test_vggs_convolutions_have_the_published_channels_and_parameters(name, make_images):
    model = create(name, like=make_images(classes=7, size=(32, 32)), seed=0)
    channels = [count for stage in PUBLISHED[name] for count in stage]
    found = convolutions(model)
    assert [layer.out_channels for layer in found] == channels
    assert {layer.kernel_size for layer in found} == {(3, 3)}
    weights = sum(
        9 * before * after for before, after in zip([3, *channels], channels, strict=False)
    )
    assert sum(parameters(layer) for layer in found) == weights
    assert weights + sum(channels) == QUOTED[name]
    # Batch normalisation has a scale and a shift for each channel; one linear layer follows.
    assert parameters(model) == weights + 2 * sum(channels) + 7 * 512 + 7


@pytest.mark.parametrize("width", [1, 8, 16, 24, 128])
def test_a_width_scales_the_channels_of_every_stage_alike(width, make_images):
    model = create("vgg11", like=make_images(size=(32, 32)), seed=0, width=width)
    published = [count for stage in PUBLISHED["vgg11"] for count in stage]
    assert [64 * layer.out_channels for layer in convolutions(model)] == [
        width * count for count in published
    ]


@pytest.mark.parametrize("name", PUBLISHED)
def test_vggs_taps_are_the_convolutions_of_five_stages_read_after_their_relu(name, make_images):
    images = make_images(size=(32, 32))
    model = create(name, like=images, seed=0, width=8)
    expected = {
        f"stage{stage}.{place}": (count // 8, 64 >> stage, 64 >> stage)
        for stage, counts in enumerate(PUBLISHED[name], start=1)
        for place, count in enumerate(counts)
    }
    found = shapes(model, images)
    assert {tap: shape for tap, shape in found.items() if tap in expected} == expected
    last = max(expected)
    assert features(model, images.x, last).min() == 0
    assert features(model, images.x, f"{last}.1").min() < 0  # before the ReLU
    for further in ("pool", "linear"):
        assert further in model.taps


def test_32_pixels_are_a_single_one_after_the_fifth_pooling(make_images):
    images = make_images(size=(32, 32))
    model = create("vgg16", like=images, seed=0, width=8).eval()
    seen = []
    model.body.pool.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model(images.x[:2] / 255.0)
    assert seen[0].shape == (2, 64, 1, 1)
    last = model.module_at("stage5.2")
    last.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(images.x[:2] / 255.0)
    assert torch.equal(seen[1].amax((2, 3), keepdim=True), seen[2])


def test_larger_images_are_averaged_before_the_linear_layer(make_images):
    images = make_images(6, size=(64, 96))
    model = create("vgg11", like=images, seed=0, width=8)
    pooled = features(model, images.x, "pool")
    linear = model.body.linear
    assert pooled.shape == (6, 64)
    expected = pooled @ linear.weight.T + linear.bias
    assert torch.allclose(features(model, images.x, "linear"), expected, atol=1e-5)


# The compact network ------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "size", "width"), [(3, 32, 32), (1, 16, 8), (3, 48, 4)])
def test_the_compact_network_halves_and_doubles_from_stage_to_stage(
    channels, size, width, make_images
):
    images = make_images(channels=channels, size=(size, size))
    model = create("compact_cnn", like=images, seed=0, width=width)
    found = shapes(model, images)
    assert {tap: found[tap] for tap in found if tap.count(".") == 1} == {
        f"stage{stage}.{place}": (width << (stage - 1), size >> stage, size >> stage)
        for stage in (1, 2, 3)
        for place in (0, 1)
    }
    assert features(model, images.x, "hidden").shape == (60, 4 * width)
    assert features(model, images.x, "linear").shape == (60, 3)
    for tap in ("stage2.1", "hidden"):
        assert features(model, images.x, tap).min() == 0  # after the ReLU


def test_the_compact_network_has_every_parameter_that_its_description_asks_for(make_images):
    # 2 x 2 pixels of 3 colours are 12 channels; widths 32, 64, 128; 4 x 4 -> 2 x 2 pixels left.
    kernels = 9 * (12 * 32 + 32 * 32 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128)
    norms = 2 * 2 * (32 + 64 + 128)
    hidden, linear = 4 * 128 * 128 + 128, 10 * 128 + 10
    model = create("compact_cnn", like=make_images(classes=10, size=(32, 32)), seed=0)
    assert len(convolutions(model)) == 6
    assert parameters(model) == kernels + norms + hidden + linear


@pytest.mark.parametrize(("side", "left"), [(32, 1), (64, 2), (16, 1), (8, 1)])
def test_five_blocks_have_the_released_widths_and_pool_down_to_one_pixel(side, left, make_images):
    images = make_images(20, classes=10, channels=3, size=(side, side))
    model = create("five_block_cnn", like=images, seed=0)
    assert [layer.out_channels for layer in convolutions(model)] == [16, 32, 32, 64, 64]
    sides = [features(model, images.x, f"block{k}").shape[1] for k in range(1, 6)]
    expected, pixels = [], side
    for channels in (16, 32, 32, 64, 64):
        expected.append(channels * pixels**2)
        pixels = max(1, pixels // 2)
    assert sides == expected
    assert features(model, images.x, "pool").shape == (20, 64 * left**2)
    assert model.module_at("linear").in_features == 64 * left**2


def test_the_compact_network_sees_every_pixel_of_an_image(make_images):
    images = make_images(3, size=(16, 16))
    model = create("compact_cnn", like=images, seed=0, width=4).eval()
    x = (images.x[:1] / 255.0).requires_grad_()
    first = model.body.stage1[0][0]  # the first convolution alone, before any ReLU or pooling
    first(nn.functional.pixel_unshuffle(x, 2)).square().sum().backward()
    assert (x.grad != 0).all()


# What they cannot take ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "size", "tap"),
    [
        ("vgg16", 16, "stage5.1"),
        ("vgg11", 31, "stage4.0"),
        ("compact_cnn", 31, "stage3.1"),
        ("compact_cnn", 17, "stage3.1"),
    ],
)
def test_images_that_do_not_fit_a_network_are_refused_before_any_training(
    model, size, tap, store, no_training
):
    options = {"model": model, "tap": tap, "image_size": size, "images_per_class": 20}
    config = REMOVAL.configure(profile="quick", **options)
    unit = REMOVAL.units(config)[0]
    context = Context(store=store, device="cpu")
    told = rf"{model} cannot take images of \({size}, {size}\) pixels .*; set image_size"
    with pytest.raises(PoisonkitError, match=told):
        check_request(config, poisoned_data(config, unit, context))
    with pytest.raises(PoisonkitError, match=told):
        REMOVAL.trial(config, unit, context)


@pytest.mark.parametrize(("model", "tap"), [("vgg11", "stage4.0"), ("compact_cnn", "stage3.1")])
def test_a_size_that_fits_is_taken(model, tap, store):
    config = REMOVAL.configure(profile="quick", model=model, tap=tap, image_size=32, width=4)
    context = Context(store=store, device="cpu")
    check_request(config, poisoned_data(config, REMOVAL.units(config)[0], context))
