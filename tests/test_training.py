"""Training: the recipe's arithmetic, what a batch is, determinism, resuming and evaluation."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from poisonkit import graphs, training
from poisonkit.checkpoint import restore, save
from poisonkit.data import load
from poisonkit.errors import PoisonkitError
from poisonkit.evaluation import evaluate, predict, shuffled
from poisonkit.images import ImageSet
from poisonkit.models import create
from poisonkit.training import Recipe, fit

SHORT = Recipe(epochs=4, batch_size=16, learning_rate=0.05, crop_padding=1)


def small_net(images: ImageSet, *, seed: int = 0, dropout: float = 0.5) -> nn.Module:
    """A network with all that has a state of its own: normalisation and dropout."""
    torch.manual_seed(seed)
    height, width = images.image_size
    network = nn.Sequential(
        nn.Conv2d(images.channels, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(6 * height * width, images.classes),
    )
    return network.to(images.device)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def results(history) -> list[tuple[float, float]]:
    return [(epoch.loss, epoch.accuracy) for epoch in history]


# One step ---------------------------------------------------------------------------------


def hand_trained(model: nn.Module, images: ImageSet, rates: list[float], decay: float):
    """Full-batch gradient descent with momentum 0.9 on the cross-entropy, as the formulas say."""
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for rate in rates:
        logits = model(images.x / 255)
        log_sum = logits.exp().sum(1).log()
        chosen = logits[torch.arange(len(images)), images.y]
        slopes = torch.autograd.grad((log_sum - chosen).mean(), list(model.parameters()))
        with torch.no_grad():
            for (name, weight), slope in zip(model.named_parameters(), slopes, strict=True):
                penalised = weight.ndim > 1  # kernels only
                velocity[name] = 0.9 * velocity[name] + slope + penalised * decay * weight
                weight -= rate * velocity[name]
    return model


def test_training_steps_equal_momentum_descent_written_by_hand(make_images):
    images = make_images(30)
    recipe = Recipe(
        epochs=4, batch_size=30, learning_rate=0.1, weight_decay=0.05,
        milestones=(0.25, 0.75), crop_padding=0, flip=False,
    )  # fmt: skip
    model, copy = (small_net(images, dropout=0.0) for _ in range(2))
    start = weights(model)
    fit(model, images, recipe, seed=1)
    hand_trained(copy, images, [0.1, 0.01, 0.01, 0.001], decay=0.05)
    for name, tensor in model.state_dict().items():
        moved = (tensor - start[name]).abs().max()
        assert moved > 0
        assert torch.allclose(tensor, copy.state_dict()[name], atol=float(2e-3 * moved)), name


# Determinism --------------------------------------------------------------------------------


def test_the_seed_decides_everything_and_the_callers_random_state_is_left_alone(make_images):
    images = make_images(50)
    found = []
    for seed in (5, 5, 6):
        model = small_net(images)
        torch.manual_seed(len(found))
        untouched = torch.get_rng_state()
        history = fit(model, images, SHORT, seed=seed)
        assert torch.equal(torch.get_rng_state(), untouched)
        found.append((weights(model), results(history)))
    assert same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert not same(found[0][0], found[2][0])


class Killed(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("every", [1, 2])
def test_a_run_broken_off_after_an_epoch_ends_where_the_unbroken_one_does(
    device, optimizer, every, make_images, tmp_path
):
    # Two batch sizes; on a GPU most steps of both are replays.
    images = make_images(150).to(device)
    recipe = replace(SHORT, optimizer=optimizer, schedule="cosine", precision="float32")
    unbroken = small_net(images)
    history = fit(unbroken, images, recipe, seed=2)

    def stop(number, epoch):
        if number == 2:
            raise Killed

    file, broken = tmp_path / "state.safetensors", small_net(images)
    torch.manual_seed(1)
    untouched = torch.get_rng_state()
    options = {"seed": 2, "checkpoint": file, "checkpoint_every": every}
    with pytest.raises(Killed):
        fit(broken, images, recipe, on_epoch=stop, **options)
    assert torch.equal(torch.get_rng_state(), untouched)
    resumed, seen = small_net(images, seed=77), []
    found = fit(resumed, images, recipe, on_epoch=lambda k, _: seen.append(k), **options)
    assert seen == ([3] if every == 1 else [2, 3])
    assert results(found) == results(history)
    assert same(weights(resumed), weights(unbroken))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_what_an_optimiser_remembers_comes_back_in_the_layout_of_the_weights(kind, tmp_path):
    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        return model, kind(model.parameters(), lr=0.1, **options)

    model, optimizer = made()
    model(torch.ones(1, 3, 4, 4)).square().sum().backward()
    optimizer.step()
    save(tmp_path / "state.safetensors", model, optimizer, [], "run")
    again, restored = made()
    assert restore(tmp_path / "state.safetensors", again, restored, "run") == []
    before, after = (one.state[net.weight] for one, net in ((optimizer, model), (restored, again)))
    assert before.keys() == after.keys() != set()
    for name, value in before.items():
        assert torch.equal(after[name], value)
        assert after[name].stride() == value.stride()
    assert again.weight.stride() != torch.empty(5, 3, 3, 3).stride()


class Breaks(nn.Module):
    """A network that does something at its n-th forward pass, counted from 0."""

    def __init__(self, body: nn.Module, at: int, act) -> None:
        super().__init__()
        self.body, self.at, self.act, self.calls = body, at, act, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.act(self.body(x)) if self.calls == self.at + 1 else self.body(x)


def test_a_run_broken_off_inside_an_epoch_repeats_that_epoch(make_images, tmp_path):
    def die(logits):
        raise Killed

    images = make_images(50)
    unbroken = Breaks(small_net(images), at=-1, act=None)
    history = fit(unbroken, images, SHORT, seed=2)
    options = {"seed": 2, "checkpoint": tmp_path / "state.safetensors"}
    with pytest.raises(Killed):
        fit(Breaks(small_net(images), at=9, act=die), images, SHORT, **options)
    resumed = Breaks(small_net(images, seed=77), at=-1, act=None)
    found = fit(resumed, images, SHORT, **options)
    assert resumed.calls == 8  # two epochs of four steps were left
    assert results(found) == results(history)
    assert same(weights(resumed), weights(unbroken))


def test_a_look_between_two_steps_changes_nothing_and_sees_the_weights_there(make_images, tmp_path):
    def die(logits):
        raise Killed

    def norm(network: nn.Module) -> float:
        return float(network.body[0].weight.detach().norm())

    def stop(number, epoch):
        if number == 2:
            raise Killed

    images = make_images(50)  # four steps an epoch
    plain, watched, stopped = (Breaks(small_net(images), at=-1, act=None) for _ in range(3))
    stopped.at, stopped.act = 6, die
    fit(plain, images, SHORT, seed=2)
    with pytest.raises(Killed):
        fit(stopped, images, SHORT, seed=2)
    options = {
        "seed": 2,
        "watch": {"norm": norm, "right": images},
        "watch_after": (1, 6, 8, 9, 99),
        "checkpoint": tmp_path / "state.safetensors",
    }
    with pytest.raises(Killed):
        fit(Breaks(small_net(images), at=-1, act=None), images, SHORT, on_epoch=stop, **options)
    history = fit(watched, images, SHORT, **options)
    assert same(weights(watched), weights(plain))
    looks = [epoch.between for epoch in history]
    assert [[look["step"] for look in own] for own in looks] == [[1], [6, 8], [9], []]
    assert looks[1][0]["norm"] == norm(stopped) != looks[1][1]["norm"]
    assert looks[1][1] == {"step": 8, **history[1].watched}
    assert history[1].watched.keys() == {"norm", "right"}


@pytest.mark.parametrize("step", [0, 52, 71, 100])
def test_a_loss_that_turns_nan_stops_the_training_and_names_the_step(step, make_images):
    images = make_images(72)
    model = Breaks(small_net(images), at=step, act=lambda logits: logits * math.nan)
    recipe = replace(SHORT, epochs=2, batch_size=1, learning_rate=1e-4)  # 72 steps an epoch
    with pytest.raises(PoisonkitError, match=rf"became nan at step {step};"):
        fit(model, images, recipe, seed=0)


def test_a_rate_far_too_high_is_named_in_the_error(make_images):
    images = make_images(50)
    with pytest.raises(PoisonkitError, match=r"at step \d+; try a learning rate below 1e\+30"):
        fit(small_net(images), images, replace(SHORT, learning_rate=1e30), seed=0)


# Requests that cannot be met ----------------------------------------------------------------


def test_a_checkpoint_after_every_zero_epochs_is_refused_before_the_training(make_images):
    images = make_images(50)
    model = small_net(images)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(PoisonkitError, match="checkpoint_every must be at least 1, not 0"):
        fit(model, images, Recipe(epochs=1), seed=0, checkpoint_every=0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_empty_sets_and_other_devices_are_errors(make_images):
    images = make_images(50)
    model, none = small_net(images), images.select(torch.arange(0))
    with pytest.raises(PoisonkitError, match="at least two images, not 0"):
        fit(model, none, SHORT, seed=0)
    with pytest.raises(PoisonkitError, match="no images to evaluate on"):
        evaluate(model, none)
    assert predict(model, none.x).shape == (0,)
    with pytest.raises(PoisonkitError, match="model is on meta, the images are on cpu"):
        fit(small_net(images).to("meta"), images, SHORT, seed=0)


# What training is for -----------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_small_network_learns_digits(precision):
    train, test = load("digits"), load("digits", split="test")
    recipe = Recipe(
        epochs=4, batch_size=64, learning_rate=0.05, schedule="cosine",
        crop_padding=1, flip=False, precision=precision,
    )  # fmt: skip
    model = create("small_cnn", like=train, seed=0, width=8)
    history = fit(model, train, recipe, seed=0)
    assert evaluate(model, test) > 0.9
    assert history[-1].loss < history[0].loss / 2
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert not model.training


def test_batch_statistics_normalise_each_batch_by_itself_and_leave_the_averages(make_images):
    images = make_images(50)
    model = small_net(images)
    fit(model, images, replace(SHORT, epochs=2), seed=0)
    conv, norm, linear, before = model[0], model[1], model[5], weights(model)
    by_hand = []
    for batch in images.x.double().div(255).tensor_split(4):  # of 13 and 12, none of 2
        maps = torch.conv2d(batch, conv.weight.double(), conv.bias.double(), padding=1)
        centred = maps - maps.mean((0, 2, 3), keepdim=True)
        unit = centred / (centred.square().mean((0, 2, 3), keepdim=True) + norm.eps).sqrt()
        active = (unit * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp_min(0)
        by_hand.append((active.flatten(1) @ linear.weight.T.double() + linear.bias).argmax(1))
    expected = torch.cat(by_hand)
    model.train()
    modes = [module.training for module in model.modules()]
    found = predict(model, images.x, batch_statistics=True, batch_size=16)
    share = evaluate(model, images, batch_statistics=True, batch_size=16)
    assert torch.equal(found, expected)
    assert share == (expected == images.y).double().mean()
    assert same(weights(model), before)
    assert [module.training for module in model.modules()] == modes
    assert not torch.equal(predict(model, images.x, batch_size=16), expected)


def test_images_that_lie_class_by_class_are_shuffled_before_batches_are_normalised(make_images):
    images = make_images(60, classes=3)
    sorted_images = images.select(images.y.argsort(stable=True))
    again = shuffled(sorted_images, batch_size=20)
    assert all(len(set(part)) == 3 for part in again.y.view(3, 20).tolist())
    pairs = [{(x.numpy().tobytes(), int(y)) for x, y in zip(s.x, s.y, strict=True)}
             for s in (images, again)]  # fmt: skip
    assert pairs[0] == pairs[1]
    for other, size in ((images, 20), (sorted_images, 60)):
        assert shuffled(other, batch_size=size) is other
    model = small_net(images)
    found = evaluate(model, sorted_images, batch_statistics=True, batch_size=20)
    assert found == evaluate(model, again, batch_statistics=True, batch_size=20)


def test_no_image_is_normalised_by_itself(make_images):
    images = make_images(33)
    model = small_net(images).append(nn.BatchNorm1d(images.classes))
    # 33 in batches of 16 would leave one, of which batch normalisation has no variance.
    assert len(predict(model, images.x, batch_statistics=True, batch_size=16)) == 33
    with pytest.raises(PoisonkitError, match="one image alone"):
        predict(model, images.x[:1], batch_statistics=True)


def test_training_on_a_cpu_leaves_the_random_numbers_of_gpus_alone(make_images, monkeypatch):
    def reseeded(seed: int) -> None:
        raise AssertionError("a GPU was seeded")

    images = make_images(40)
    model = small_net(images)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded)
    with pytest.raises(AssertionError, match="a GPU was seeded"):
        torch.manual_seed(0)
    fit(model, images, SHORT, seed=0)


@pytest.mark.gpu
def test_on_a_gpu_the_precision_is_bfloat16_where_it_has_that(make_images):
    images = make_images(64).to("cuda")
    found = {}
    for precision in ("auto", "bfloat16", "float32"):
        model = create("small_cnn", like=images, seed=0)
        fit(model, images, replace(SHORT, precision=precision), seed=0)
        found[precision] = weights(model)
    capable = torch.cuda.get_device_capability() >= (8, 0)
    assert same(found["auto"], found["bfloat16" if capable else "float32"])
    assert not same(found["bfloat16"], found["float32"])


@pytest.mark.gpu
def test_training_on_a_gpu_is_repeatable_and_learns_digits(tmp_path):
    train, test = (load("digits", split=split, device="cuda") for split in ("train", "test"))
    recipe = replace(SHORT, batch_size=64, flip=False, precision="float32")
    found = []
    for _ in range(2):
        model = create("small_cnn", like=train, seed=0)
        fit(model, train, recipe, seed=0)
        found.append(weights(model))
    assert same(*found)
    assert evaluate(model, test) > 0.9


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_on_a_gpu_a_training_by_replays_is_the_one_step_by_step(
    optimizer, precision, make_images, monkeypatch
):
    """Dropout, normalisation's averages, a rate that falls, and batches of two sizes included."""
    images = make_images(150, size=(16, 16)).to("cuda")
    recipe = replace(
        SHORT,
        optimizer=optimizer,
        learning_rate=0.01,
        batch_size=20,
        epochs=4,
        precision=precision,
        schedule="steps",
        milestones=(0.5,),
    )

    def trained():
        model = create("resnet18", like=images, seed=0, width=4, dropout=0.2)
        history = fit(model, images, recipe, seed=1)
        return weights(model), [epoch.loss for epoch in history]

    replayed = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(
        torch.cuda.CUDAGraph, "replay", lambda graph: (replayed.append(graph), replay(graph))
    )
    found, losses = trained()
    assert len(replayed) == 4 * 8 - 2 * graphs.WARM_UP
    monkeypatch.setattr(training, "Recorded", lambda work: work)
    expected, in_steps = trained()
    assert same(found, expected)
    assert losses == in_steps
