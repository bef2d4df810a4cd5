"""The networks that the Deep Confuse experiments take: torchvision's, and the paper's own."""

import itertools

import pytest
import timm
import torch
import torchvision
from timm.models.dpn import DualPathBlock
from torch import nn
from torchvision.models.googlenet import Inception

from poisonkit.errors import PoisonkitError
from poisonkit.models import create, features, tapped

EIGHT = (
    "resnet18",
    "resnet50",
    "senet18",
    "resnext29_2x64d",
    "dpn92",
    "mobilenet_v2",
    "googlenet",
    "densenet121",
)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def rest(network: nn.Module) -> int:
    """Return the parameters of all but the first convolution and the last linear layer."""
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return parameters(network) - parameters(layers[0]) - parameters(layers[-1])


# Published ones -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2", "densenet121"])
def test_all_but_the_first_and_the_last_layer_is_torchvisions(name, make_images):
    network = create(name, like=make_images(20, classes=10, size=(32, 32)), seed=0)
    published = torchvision.models.get_model(name, weights=None)
    assert rest(network) == rest(published)
    kernels = [tuple(p.shape) for p in network.parameters() if p.ndim == 4]
    assert set(kernels[1:]) <= {tuple(p.shape) for p in published.parameters()}


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "densenet121"])
def test_of_large_images_they_are_torchvisions_networks(name, make_images):
    """Its stem halves them twice before the first stage."""
    images = make_images(3, classes=3, size=(65, 72))
    network = create(name, like=images, seed=0).eval()
    published = torchvision.models.get_model(name, weights=None, num_classes=3)
    kernels, expected = (
        sorted(tuple(p.shape) for p in model.parameters() if p.ndim > 1)
        for model in (network, published)
    )
    assert kernels == expected
    assert parameters(network) == parameters(published)
    with tapped(network, "stem") as outputs, torch.no_grad():
        network(images.x / 255)
    assert outputs[0].shape == (3, 64, 17, 18)


@pytest.mark.parametrize(("name", "timms"), [("senet18", "seresnet18"), ("dpn92", "dpn92")])
def test_all_but_the_first_and_the_last_layer_is_timms(name, timms, make_images):
    network = create(name, like=make_images(20, classes=10, size=(32, 32)), seed=0)
    published = timm.create_model(timms, pretrained=False)
    # timm's last layer of a dual path network is a convolution with 1,000 channels.
    kernels = sorted(tuple(p.shape) for p in network.parameters() if p.ndim == 4)
    expected = sorted(
        tuple(p.shape)
        for p in published.parameters()
        if p.ndim == 4 and p.shape[0] != 1000 and p.shape[-1] != 7
    )
    kernels.remove((64, 3, 3, 3))
    assert kernels == expected


def test_dual_paths_that_come_as_a_pair_are_joined(make_images, monkeypatch):
    """As timm's earlier versions return them."""
    images = make_images(4, classes=3, size=(32, 32))
    x = images.x.float() / 255
    usual = create("dpn92", like=images, seed=0, width=8).eval()(x)
    joined = DualPathBlock.forward

    def split(unit, x):
        found = joined(unit, x)
        return found[:, : unit.num_1x1_c], found[:, unit.num_1x1_c :]

    monkeypatch.setattr(DualPathBlock, "forward", split)
    assert torch.equal(create("dpn92", like=images, seed=0, width=8).eval()(x), usual)


def test_the_inception_units_are_torchvisions(make_images):
    network = create("googlenet", like=make_images(20, classes=10, size=(32, 32)), seed=0)
    published = torchvision.models.googlenet(
        weights=None, aux_logits=False, init_weights=False, transform_input=False
    )
    ours, theirs = (
        [parameters(m) for m in one.modules() if isinstance(m, Inception)]
        for one in (network, published)
    )
    assert ours == theirs
    assert len(ours) == 9


def test_a_resnexts_groups_have_64_channels_each_in_its_first_stage(make_images):
    network = create("resnext29_2x64d", like=make_images(12, classes=10, size=(32, 32)), seed=0)
    grouped = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert {m.groups for m in grouped} == {2}
    assert [m.in_channels // m.groups for m in grouped] == [64] * 3 + [128] * 3 + [256] * 3
    # Xie et al. (2017), table 1: three stages of three units, four times as wide in the end.
    assert features(network, torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "pool").shape[1] == 1024


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("resnet18", 18),
        ("resnet50", 50),
        ("resnext29_2x64d", 29),
        ("dpn92", 92),
        ("densenet22", 22),
        ("densenet121", 121),
    ],
)
def test_a_networks_name_counts_its_layers(name, depth, make_images):
    network = create(name, like=make_images(4, size=(32, 32)), seed=0)
    layers = [
        part
        for part, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        and not {"downsample", "c1x1_w_s1", "c1x1_w_s2"} & set(part.split("."))
    ]
    assert len(layers) == depth


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "last", "shape"),
    [
        ("resnet18", "stage4", (512, 4, 4)),
        ("resnet50", "stage4", (2048, 4, 4)),
        ("senet18", "stage4", (512, 4, 4)),
        ("dpn92", "stage4", (2688, 4, 4)),
        ("mobilenet_v2", "stage4", (1280, 4, 4)),
        # Three halvings between four blocks, two between three.
        ("densenet121", "stage4", (1024, 4, 4)),
        ("densenet22", "stage3", (184, 8, 8)),
        ("resnext29_2x64d", "stage3", (1024, 8, 8)),
        ("googlenet", "stage3", (1024, 8, 8)),
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


@pytest.mark.parametrize("name", [*EIGHT, "densenet22"])
def test_the_stem_and_the_first_stage_keep_every_pixel(name, make_images):
    images = make_images(3, size=(24, 20))
    network = create(name, like=images, seed=0, width=8).eval()
    for tap in ("stem", "stage1"):
        found = features(network, images.x, tap)
        assert found.shape[1] % (24 * 20) == 0
        assert found.shape[1] >= 3 * 24 * 20


@pytest.mark.parametrize("name", [*EIGHT, "densenet22"])
@pytest.mark.parametrize("width", [8, 32])
def test_the_width_scales_all_channels(name, width, make_images):
    images = make_images(4, size=(16, 16))
    narrow, full = (create(name, like=images, seed=0, width=w) for w in (width, 64))
    convolutions = [
        [m for m in one.body.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        for one in (narrow, full)
    ]
    for one, other in zip(*convolutions, strict=True):
        assert one.out_channels == other.out_channels * width // 64


@pytest.mark.parametrize("name", [*EIGHT, "densenet22"])
def test_all_have_parts_of_the_same_names(name, make_images):
    images = make_images(5, size=(16, 16))
    network = create(name, like=images, seed=0, width=8).eval()
    parts = [part for part, _ in network.body.named_children()]
    stages = [f"stage{number}" for number in range(1, len(parts) - 2)]
    assert parts == ["stem", *stages, "pool", "linear"]
    with torch.no_grad():
        logits = network(images.x / 255)
        last = features(network, images.x, "pool")
        assert torch.allclose(network.body.linear(last), logits, atol=1e-5)
    assert torch.allclose(features(network, images.x, "linear"), logits, atol=1e-5)
    with pytest.raises(PoisonkitError, match=r"unknown layer 'block1'; known: .*stage1"):
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
        ("two_layer_cnn_bn_5x5", [20, 50, 500, 0]),
        ("two_layer_cnn_bn_average", [20, 50, 500, 0]),
        ("two_layer_cnn_bn_logits", [20, 50, 500, 10]),
        ("two_layer_cnn_bn_average_logits", [20, 50, 500, 10]),
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


def test_three_changes_make_the_released_network_of_the_texts(mnist_like):
    """Each of them by itself changes one of: kernels, pooling, what is normalised.

    Pooling and logits are what the text is silent about; the kernels it names.
    """

    def form(name: str) -> tuple[object, ...]:
        modules = [*create(name, like=mnist_like, seed=0).modules()]
        first = next(module for module in modules if isinstance(module, nn.Conv2d))
        pooling = {type(module) for module in modules} & {nn.MaxPool2d, nn.AvgPool2d}
        return (first.kernel_size, first.padding), pooling, isinstance(modules[-1], nn.BatchNorm1d)

    before, after = form("two_layer_cnn_bn"), form("released_two_layer_cnn")
    assert before == (((3, 3), (1, 1)), {nn.MaxPool2d}, False)
    assert after == (((5, 5), (0, 0)), {nn.AvgPool2d}, True)
    for place, name in enumerate(("5x5", "average", "logits")):
        expected = [*before]
        expected[place] = after[place]
        assert form(f"two_layer_cnn_bn_{name}") == tuple(expected)
    assert form("two_layer_cnn_bn_average_logits") == (before[0], *after[1:])


@pytest.mark.parametrize(
    ("name", "standardised"),
    [
        ("two_layer_cnn", False),
        ("two_layer_cnn_bn", False),
        ("two_layer_cnn_bn_logits", True),
        ("released_two_layer_cnn", True),
    ],
)
def test_only_logits_that_are_normalised_have_mean_0_and_deviation_1(
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
