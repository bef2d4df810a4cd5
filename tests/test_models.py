"""The networks are those of the papers, and their features are what the network computes."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poisonkit.attacks.backdoor import Trigger
from poisonkit.errors import DataError, PoisonkitError
from poisonkit.evaluation import predict
from poisonkit.models import (
    MODELS,
    Classifier,
    channel_statistics,
    create,
    features,
    must_take,
    tapped,
    wrap,
)


def trained_a_little(name, images, **options) -> Classifier:
    """A network whose running statistics and normalisation weights are not those of a new one."""
    model = create(name, like=images, seed=3, **options)
    generator = torch.Generator().manual_seed(4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.uniform_(module.bias, -0.5, 0.5, generator=generator)
    model.train()
    for batch in images.x.float().div(255).split(20):
        model(batch)
    return model


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(model: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


# Input --------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_the_standardised_training_images_have_mean_0_and_variance_1(channels, make_images):
    images = make_images(1100, channels=channels)
    images.x[:, 0] //= 3  # the channels differ
    model = create("small_cnn", like=images, seed=0)
    model.body = nn.Identity()
    seen = model(images.x.double() / 255)
    assert torch.allclose(seen.mean((0, 2, 3)), torch.zeros(channels).double(), atol=1e-5)
    assert torch.allclose(seen.var((0, 2, 3), correction=0), torch.ones(channels).double())


def test_standardising_to_bytes_feeds_the_network_the_raw_values(make_images):
    images = make_images()
    model = create("small_cnn", like=images, seed=0, standardise="bytes")
    model.body = nn.Identity()
    assert torch.allclose(model(images.x.float() / 255), images.x.float(), rtol=1e-6)


def test_a_channel_without_variation_does_not_divide_by_zero(make_images):
    images = make_images()
    images.x[:, 1] = 7
    mean, deviation = channel_statistics(images.x)
    assert mean[1].item() == pytest.approx(7 / 255)
    model = create("resnet8", like=images, seed=0)
    assert torch.isfinite(model(images.x.float() / 255)).all()
    assert deviation[1] > 0


# Architecture -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["resnet", "preact_resnet"])
@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46)])
def test_the_resnets_have_the_published_depth_and_number_of_parameters(
    form, depth, millions, make_images
):
    model = create(f"{form}{depth}", like=make_images(classes=10), seed=0)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


def test_resnet20_has_every_parameter_that_its_table_asks_for(make_images):
    """He et al., section 4.2: widths 16, 32, 64, three units each, shortcuts without parameters."""
    kernels = 9 * (3 * 16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64)
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    model = create("resnet20", like=make_images(classes=10), seed=0)
    assert sum(p.numel() for p in model.parameters()) == kernels + norms + 64 * 10 + 10


def test_the_released_resnet20_projects_where_others_append_zeros(make_images):
    """MetaPoison's code; computed once more from the weights, in eval mode."""
    images = make_images(10, classes=10)
    plain = create("resnet20", like=images, seed=0)
    model = create("released_resnet20", like=images, seed=0)
    more = 16 * 32 + 32 * 64 + 2 * (32 + 64)
    counts = [sum(p.numel() for p in net.parameters()) for net in (model, plain)]
    assert counts[0] - counts[1] == more
    for name, value in model.named_parameters():
        if value.ndim > 1:
            pixels = value[0, 0].numel()
            bound = (6 / (pixels * (value.shape[0] + value.shape[1]))) ** 0.5
            assert 0.9 * bound < float(value.detach().abs().max()) <= bound, name
    with torch.no_grad():
        model.train()(images.x.float() / 255)  # moves the running averages
    state = state_of(model.eval())
    x = (images.x.float() / 255 - model.mean) / model.deviation
    x = normalise(F.conv2d(x, state["body.stem.weight"], padding=1), state, "body.stem_norm").relu()
    for group in (1, 2, 3):
        for unit in range(3):
            at = f"body.group{group}.{unit}"
            stride = 2 if group > 1 and unit == 0 else 1
            out = F.conv2d(x, state[f"{at}.conv1.weight"], stride=stride, padding=1)
            out = normalise(out, state, f"{at}.norm1").relu()
            out = normalise(
                F.conv2d(out, state[f"{at}.conv2.weight"], padding=1), state, f"{at}.norm2"
            )
            if stride == 2:
                x = F.conv2d(x, state[f"{at}.shortcut.0.weight"], stride=2)
                x = normalise(x, state, f"{at}.shortcut.1")
            x = (x + out).relu()
    expected = x.mean((2, 3)) @ state["body.linear.weight"].T + state["body.linear.bias"]
    with torch.no_grad():
        torch.testing.assert_close(model(images.x.float() / 255), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("channels", "size"), [(1, (16, 16)), (3, (32, 32))])
def test_every_network_gives_one_logit_a_class_at_any_width(name, channels, size, make_images):
    if "vgg" in name or name.startswith("five"):  # halves an image five times
        size = (max(size[0], 32), max(size[1], 32))
    images = make_images(4, classes=4, channels=channels, size=size)
    counts = []
    for options in ({}, {"width": 4}):
        model = create(name, like=images, seed=0, **options)
        assert model(images.x / 255).shape == (4, 4)
        counts.append(sum(p.numel() for p in model.parameters()))
    assert counts[-1] < counts[0] / 4


def test_unknown_models_and_options_list_the_known_ones(make_images):
    images = make_images()
    with pytest.raises(
        PoisonkitError,
        match=r"known: small_cnn, compact_cnn, five.*resnet8.*preact_resnet32.*vgg16",
    ):
        create("vgg", like=images, seed=0)
    with pytest.raises(PoisonkitError, match="known: data, none, bytes"):
        create("resnet8", like=images, seed=0, standardise="mean")
    with pytest.raises(PoisonkitError, match="resnet18 does not have the option depth"):
        create("resnet18", like=images, seed=0, depth=4)


def test_initial_weights_follow_from_the_seed_and_leave_the_callers_random_state(make_images):
    images = make_images()
    torch.manual_seed(99)
    untouched = torch.get_rng_state()
    first = create("preact_resnet8", like=images, seed=1)
    assert torch.equal(torch.get_rng_state(), untouched)
    torch.manual_seed(7)
    again, other = (create("preact_resnet8", like=images, seed=seed) for seed in (1, 2))
    assert same_state(again, state_of(first))
    assert not torch.equal(other.body.stem.weight, first.body.stem.weight)


# Features -----------------------------------------------------------------------------------


def normalise(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    def column(part: str) -> Tensor:
        return state[f"{name}.{part}"][:, None, None]

    scale = column("weight") / (column("running_var") + 1e-5).sqrt()
    return (x - column("running_mean")) * scale + column("bias")


def preactivation_stream(model: Classifier, x: Tensor) -> dict[str, Tensor]:
    """The residual stream after each unit, from the weights alone.

    Released code: leaky ReLU 0.1; the very first unit's shortcut starts after its
    activation; a shortcut that halves the image averages 2 x 2 pixels and gets
    zero channels, half of them before and half after its own.
    """
    state = dict(model.body.state_dict())
    stream = F.conv2d((x - model.mean) / model.deviation, state["stem.weight"], padding=1)
    found = {}
    for name in [n for n, m in model.body.named_modules() if hasattr(m, "conv2")]:
        first_of_group = name.endswith(".0")
        stride = 2 if first_of_group and name != "group1.0" else 1
        active = F.leaky_relu(normalise(stream, state, f"{name}.norm1"), 0.1)
        shortcut = active if name == "group1.0" else stream
        out = F.conv2d(active, state[f"{name}.conv1.weight"], stride=stride, padding=1)
        out = F.leaky_relu(normalise(out, state, f"{name}.norm2"), 0.1)
        out = F.conv2d(out, state[f"{name}.conv2.weight"], padding=1)
        if stride == 2:
            shortcut = (
                shortcut[:, :, ::2, ::2]
                + shortcut[:, :, 1::2, ::2]
                + shortcut[:, :, ::2, 1::2]
                + shortcut[:, :, 1::2, 1::2]
            ) / 4
            half = torch.zeros_like(shortcut)[:, : shortcut.shape[1] // 2]
            shortcut = torch.cat([half, shortcut, half], dim=1)
        stream = found[name] = out + shortcut
    last = F.leaky_relu(normalise(stream, state, "last_norm"), 0.1).mean((2, 3))
    found["linear"] = last @ state["linear.weight"].T + state["linear.bias"]
    return found


def test_preactivation_features_equal_those_worked_out_from_the_weights(make_images):
    images = make_images(70, size=(16, 16))
    model = trained_a_little("preact_resnet20", images, width=8)
    expected = preactivation_stream(model, images.x.float() / 255)
    assert len(expected) == 10
    for tap, stream in expected.items():
        found = features(model, images.x, tap, batch_size=32)
        assert found.dtype == torch.float32
        assert torch.allclose(found, stream.flatten(1), atol=1e-4), tap
    assert found.shape == (70, 3)
    assert features(model, images.x, "group3.1").shape == (70, 32 * 4 * 4)


def test_residual_units_add_a_subsampled_and_widened_shortcut(make_images):
    images = make_images(20, size=(16, 16))
    model = trained_a_little("resnet8", images).eval()
    x = model.body.group1(F.relu(model.body.stem_norm(model.body.stem(images.x / 255.0))))
    unit = model.body.group2[0]
    inner = unit.norm2(unit.conv2(F.relu(unit.norm1(unit.conv1(x)))))
    wide = torch.cat([x[:, :, ::2, ::2], torch.zeros_like(x[:, :, ::2, ::2])], dim=1)
    assert torch.allclose(unit(x), F.relu(inner + wide), atol=1e-5)


def test_features_are_copied_before_a_later_activation_overwrites_them(make_images):
    images = make_images()
    for name, tap in (("resnet8", "stem_norm"), ("resnet8", "group2.0.norm1")):
        model = trained_a_little(name, images)
        found = features(model, images.x, tap)
        assert (found < 0).any(), f"{tap} was overwritten by its ReLU"
        assert torch.equal(features(model, images.x, tap), found)


def test_features_are_those_of_eval_mode_and_change_nothing_in_the_model(make_images):
    images = make_images(90)
    model = trained_a_little("small_cnn", images)
    state, generator = state_of(model), torch.get_rng_state()
    model.train()
    model.body.block2.eval()  # a frozen part
    modes = [module.training for module in model.modules()]
    found = features(model, images.x, "linear", batch_size=40)
    assert [module.training for module in model.modules()] == modes
    assert same_state(model, state)
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(module._forward_hooks for module in model.modules())
    expected = model.eval()(images.x / 255.0)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not found.requires_grad


def test_pooling_by_the_mean_averages_each_channel_over_its_pixels(make_images):
    images = make_images(30, size=(16, 12))
    model = trained_a_little("preact_resnet8", images)
    flat, pooled = (features(model, images.x, "group2.0", pool=p) for p in ("flatten", "mean"))
    assert flat.shape == (30, 32 * 8 * 6)
    assert torch.allclose(pooled, flat.view(30, 32, -1).mean(2), atol=1e-6)
    logits = features(model, images.x, "linear")
    assert torch.equal(features(model, images.x, "linear", pool="mean"), logits)


def test_taps_are_the_names_of_all_parts_and_an_unknown_one_lists_them(make_images):
    images = make_images()
    model = create("preact_resnet8", like=images, seed=0)
    for tap in ("stem", "group1.0", "group2.0.conv1", "group3.0", "last_norm", "pool", "linear"):
        assert tap in model.taps
    for tap in ("group3.9", "", "body"):
        with pytest.raises(PoisonkitError, match=r"unknown layer.*known: .*group3\.0.*linear"):
            features(model, images.x, tap)
    with pytest.raises(PoisonkitError, match="known: flatten, mean"):
        features(model, images.x, "stem", pool="max")


@pytest.mark.parametrize("standardise", ["data", "none", "bytes"])
def test_a_network_of_your_own_is_wrapped_as_the_packages_are(standardise, make_images):
    images = make_images()
    made = create("small_cnn", like=images, seed=3, standardise=standardise)
    own = wrap(copy.deepcopy(made.body), like=images, standardise=standardise)
    x = images.x.float() / 255
    assert torch.equal(own.eval()(x), made.eval()(x))
    assert torch.equal(features(own, images.x, "hidden"), features(made, images.x, "hidden"))
    with pytest.raises(PoisonkitError, match="known: data, none, bytes"):
        wrap(made.body, like=images, standardise="mean")


def test_what_would_be_misread_is_refused(make_images):
    """Floats would be divided by 255 once more, and one grey channel be taken for three."""
    images = make_images()
    model = create("small_cnn", like=images, seed=0)
    for read in (partial(predict, model), partial(features, model, tap="hidden"), Trigger().stamp):
        with pytest.raises(DataError, match=r"must be uint8.* not torch\.float32"):
            read(x=images.x.float() / 255)
    with pytest.raises(PoisonkitError, match="takes images of 3 channels, these have 1"):
        model(images.x[:, :1].float() / 255)
    with pytest.raises(PoisonkitError, match=r"not SmallConvNet; make it one by .*wrap"):
        features(model.body, images.x, "hidden")


def test_a_network_that_fails_on_images_is_refused_and_full_memory_remains_what_it_is():
    told = r"^this one cannot take images of \(4, 5\) pixels \(too small\); try more$"
    with (
        pytest.raises(PoisonkitError, match=told),
        must_take("this one", (4, 5), advice="; try more"),
    ):
        raise RuntimeError("too small")
    for full in (
        torch.OutOfMemoryError("full"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    ):
        with pytest.raises(type(full), match=str(full)), must_take("this one", (4, 5)):
            raise full


def test_a_tap_is_taken_off_again_when_the_model_fails(make_images):
    model = create("small_cnn", like=make_images(), seed=0)
    with pytest.raises(RuntimeError), tapped(model, "block1"):
        model(torch.zeros(2, 3, 5, 5))
    assert not any(module._forward_hooks for module in model.modules())
