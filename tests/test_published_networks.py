"""The networks that the Deep Confuse experiments take: torchvision's, and the paper's own."""

import itertools

import pytest
import torch
from torch import nn

from poisonkit.errors import PoisonkitError
from poisonkit.models import create, features

#: torchvision's parameters for 1,000 classes and the values that enter the last layer.
AS_PUBLISHED = {
    "resnet18": (11_689_512, 512),
    "resnet50": (25_557_032, 2048),
    "densenet121": (7_978_856, 1024),
}


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# torchvision's --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AS_PUBLISHED)
def test_all_but_the_first_and_the_last_layer_is_as_published(name, make_images):
    network = create(name, like=make_images(20, classes=10, size=(32, 32)), seed=0)
    total, last = AS_PUBLISHED[name]
    without_last = total - (1000 * last + 1000)
    first = 3 * 64 * (7 * 7 - 3 * 3)
    assert parameters(network) == without_last - first + (10 * last + 10)


@pytest.mark.parametrize(
    ("name", "depth"),
    [("resnet18", 18), ("resnet50", 50), ("densenet22", 22), ("densenet121", 121)],
)
def test_a_networks_name_counts_its_layers(name, depth, make_images):
    network = create(name, like=make_images(4, size=(32, 32)), seed=0)
    layers = [
        part
        for part, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "downsample" not in part
    ]
    assert len(layers) == depth


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "last", "shape"),
    [
        ("resnet18", "layer4", (512, 4, 4)),
        ("resnet50", "layer4", (2048, 4, 4)),
        # Three halvings between four blocks, two between three.
        ("densenet121", "features", (1024, 4, 4)),
        ("densenet22", "features", (184, 8, 8)),
    ],
)
def test_images_of_32_pixels_are_a_map_and_not_a_pixel_before_the_pooling(
    name, last, shape, channels, make_images
):
    images = make_images(4, classes=3, channels=channels, size=(32, 32))
    network = create(name, like=images, seed=0).eval()
    seen = []
    network.module_at(last).register_forward_hook(lambda *found: seen.append(found[2].shape))
    with torch.no_grad():
        assert network(images.x[:2] / 255).shape == (2, 3)
    assert seen == [(2, *shape)]


@pytest.mark.parametrize("name", ["resnet18", "densenet22"])
def test_the_first_stage_keeps_every_pixel(name, make_images):
    images = make_images(3, size=(24, 20))
    network = create(name, like=images, seed=0).eval()
    pooled = "maxpool" if name.startswith("resnet") else "features.pool0"
    found = features(network, images.x, pooled)
    assert found.shape == (3, 64 * 24 * 20)


@pytest.mark.parametrize("name", ["densenet22", "densenet121"])
@pytest.mark.parametrize("width", [8, 16])
def test_a_densenets_width_scales_all_of_its_layers(name, width, make_images):
    images = make_images(4, size=(16, 16))
    narrow, full = (create(name, like=images, seed=0, width=w) for w in (width, 64))
    pairs = list(zip(narrow.body.modules(), full.body.modules(), strict=True))
    convolutions = [(a, b) for a, b in pairs if isinstance(a, nn.Conv2d)]
    assert convolutions[0][0].in_channels == 3
    for number, (one, other) in enumerate(convolutions):
        assert one.out_channels * 64 == other.out_channels * width
        if number:
            assert one.in_channels * 64 == other.in_channels * width
    growth = narrow.body.features.denseblock1.denselayer1.conv2.out_channels
    assert growth == width // 2
    assert features(narrow, images.x, "features", pool="mean").shape[1] == (
        width * {"densenet22": 23 / 8, "densenet121": 16}[name]
    )


@pytest.mark.parametrize(
    ("name", "taps"),
    [
        ("resnet18", ("conv1", "layer1", "layer2.0", "layer3.1", "layer4", "avgpool", "fc")),
        ("densenet22", ("features.conv0", "features.denseblock3.denselayer3", "classifier")),
    ],
)
def test_their_parts_can_be_tapped_by_torchvisions_names(name, taps, make_images):
    images = make_images(5, size=(16, 16))
    network = create(name, like=images, seed=0)
    assert set(taps) <= set(network.taps)
    for tap in taps:
        assert len(features(network, images.x, tap)) == 5
    # The last part's features are the logits.
    with torch.no_grad():
        logits = network.eval()(images.x / 255)
    assert torch.allclose(features(network, images.x, taps[-1]), logits, atol=1e-5)
    with pytest.raises(PoisonkitError, match=f"unknown layer 'block1'; known: .*{taps[0]}"):
        network.module_at("block1")


@pytest.mark.parametrize("name", ["resnet18", "densenet22"])
def test_the_seed_decides_the_weights(name, make_images):
    images = make_images(4, size=(8, 8))
    first, second, other = (create(name, like=images, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert any(not torch.equal(value, other[key]) for key, value in first.items())


# The paper's own ------------------------------------------------------------------------------


@pytest.fixture
def mnist_like(make_images):
    return make_images(20, classes=10, channels=1, size=(28, 28))


def test_the_plain_two_layer_networks_parameters_are_those_counted_by_hand(mnist_like):
    first = 20 * 1 * 9 + 20
    second = 50 * 20 * 9 + 50
    hidden = 500 * (50 * 7 * 7) + 500  # 28 pixels, halved twice
    last = 10 * 500 + 10
    network = create("two_layer_cnn", like=mnist_like, seed=0)
    assert parameters(network) == first + second + hidden + last == 1_239_760


@pytest.mark.parametrize(("width", "others"), [(10, (25, 250)), (20, (50, 500)), (40, (100, 1000))])
def test_its_width_scales_all_of_its_layers(width, others, mnist_like):
    body = create("two_layer_cnn", like=mnist_like, seed=0, width=width).body
    sizes = [m.weight.shape[0] for m in body.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sizes == [width, *others, 10]


def normalised_after(network: nn.Module) -> list[int]:
    """Features of the normalisation after each convolution and linear layer, 0 without one."""
    found: list[int] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            found.append(0)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            found[-1] = module.num_features
    return found


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("two_layer_cnn", [0, 0, 0, 0]),
        ("two_layer_cnn_bn", [20, 50, 500, 0]),
        ("released_two_layer_cnn", [20, 50, 500, 10]),
    ],
)
def test_where_a_two_layer_network_is_normalised(name, expected, mnist_like):
    network = create(name, like=mnist_like, seed=0)
    assert normalised_after(network.body) == expected
    assert network(mnist_like.x / 255).shape == (20, 10)


def test_normalisation_adds_two_parameters_for_each_unit_and_nothing_else(mnist_like):
    plain, normalised = (
        parameters(create(name, like=mnist_like, seed=0))
        for name in ("two_layer_cnn", "two_layer_cnn_bn")
    )
    assert normalised - plain == 2 * (20 + 50 + 500)


def test_the_released_two_layer_network_is_the_codes(mnist_like):
    network = create("released_two_layer_cnn", like=mnist_like, seed=0)
    first = 20 * 1 * 25 + 20
    second = 50 * 20 * 25 + 50
    hidden = 500 * (50 * 4 * 4) + 500  # 28 pixels to 24, 12, 8 and 4
    norms = 2 * (20 + 50 + 500 + 10)
    assert parameters(network) == first + second + hidden + 10 * 500 + 10 + norms
    kinds = [type(module) for module in network.modules()]
    assert kinds.count(nn.AvgPool2d) == 2
    assert nn.MaxPool2d not in kinds


@pytest.mark.parametrize(
    ("name", "standardised"),
    [("two_layer_cnn", False), ("two_layer_cnn_bn", False), ("released_two_layer_cnn", True)],
)
def test_only_the_released_networks_logits_have_mean_0_and_deviation_1(
    name, standardised, mnist_like
):
    logits = create(name, like=mnist_like, seed=0).train()(mnist_like.x / 255)
    standard = logits.std(0, correction=0)
    centred = bool(logits.mean(0).abs().max() < 1e-4)
    assert centred == standardised
    # A variance of logits that hardly differ is small beside the 1e-5 that is added to it.
    assert bool(standard.max() <= 1 + 1e-4 and standard.min() > 0.9) == standardised


@pytest.mark.parametrize("name", ["two_layer_cnn", "two_layer_cnn_bn", "released_two_layer_cnn"])
@pytest.mark.parametrize(("channels", "size"), [(1, (16, 16)), (3, (32, 24))])
def test_they_take_images_of_other_sizes_and_channels(name, channels, size, make_images):
    images = make_images(6, channels=channels, size=size)
    network = create(name, like=images, seed=0, width=4)
    # To measure the image's map shall neither leave it in eval mode nor move its averages.
    assert all(module.training for module in network.modules())
    averages = {k: value for k, value in network.state_dict().items() if "running_mean" in k}
    assert all(value.abs().max() == 0 for value in averages.values())
    assert len(averages) == {"two_layer_cnn": 0, "two_layer_cnn_bn": 3}.get(name, 4)
    assert network.eval()(images.x / 255).shape == (6, 3)
    assert features(network, images.x, "hidden").shape == (6, 100)
    assert features(network, images.x, "hidden").min() >= 0


def test_the_five_layer_networks_parameters_are_those_counted_by_hand(make_images):
    images = make_images(20, classes=10, size=(32, 32))
    widths = [3, 32, 64, 128, 128, 128]
    kernels = sum(9 * a * b + b for a, b in itertools.pairwise(widths))
    plain = create("five_layer_cnn", like=images, seed=0)
    normalised = create("five_layer_cnn_bn", like=images, seed=0)
    assert parameters(plain) == kernels + 10 * 128 + 10
    assert parameters(normalised) - parameters(plain) == 2 * sum(widths[1:])
    assert normalised_after(normalised.body) == [*widths[1:], 0]
    assert features(plain, images.x, "pool").shape == (20, 128)


@pytest.mark.parametrize("name", ["bottleneck_vgg11", "bottleneck_vgg19"])
def test_the_released_surrogate_goes_through_two_numbers(name, make_images):
    images = make_images(6, size=(32, 32))
    network = create(name, like=images, seed=0, width=4).eval()
    squeezed = features(network, images.x, "pool")
    assert squeezed.shape == (6, 2)
    with torch.no_grad():
        logits = network(images.x / 255)
        assert torch.allclose(network.body.linear(squeezed), logits, atol=1e-6)
