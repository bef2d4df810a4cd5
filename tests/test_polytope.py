"""Poisons surround their targets in feature space, and keep every promise they make."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from poisonkit.attacks import surrounding
from poisonkit.attacks.polytope import craft, poisons_of
from poisonkit.attacks.surrounding import (
    Aims,
    Procedure,
    Substitute,
    backward,
    distances,
    features_at,
    objective,
    objective_in,
    ready_to_craft,
)
from poisonkit.errors import PoisonkitError
from poisonkit.models import Classifier
from poisonkit.simplex import convex_coefficients

SHORT = Procedure(iterations=15, dropout=False, tolerance=1e-12)


def network(seed, *, width=6, dropout=0.0):
    """A smooth little network with a spatial and a pooled layer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = nn.Sequential()
        body.add_module("stage", nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.Tanh()))
        body.add_module("drop", nn.Dropout(dropout))
        body.add_module("hidden", nn.Sequential(nn.Flatten(), nn.Linear(9 * width, 12), nn.Tanh()))
        body.add_module("linear", nn.Linear(12, 3))
    return Classifier(body, mean=torch.zeros(3), deviation=torch.ones(3)).eval()


def substitutes(*taps, count=2, dropout=0.0):
    names = taps or ("hidden",)
    return [
        Substitute(network=network(seed, width=4 + seed, dropout=dropout), taps=names)
        for seed in range(count)
    ]


@pytest.fixture
def scene(make_images):
    """Training images, five bases of class 0, and three targets of other classes."""
    train = make_images(40, classes=3, seed=1)
    targets = make_images(12, classes=3, seed=2)
    targets = targets.select(targets.y != 0).select(torch.arange(3))
    return train, train.indices_of(0)[:5].tolist(), targets


def crafted(scene, procedure=SHORT, nets=None, **options):
    train, rows, targets = scene
    return craft(
        train, nets or substitutes(), targets, rows=rows, procedure=procedure, seed=0, **options
    )


def test_crafting_on_a_cpu_leaves_the_random_numbers_of_gpus_alone(scene, monkeypatch):
    def reseeded(seed: int) -> None:
        raise AssertionError("a GPU was seeded")

    nets = substitutes(dropout=0.2)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded)
    crafted(scene, replace(SHORT, iterations=2, dropout=True), nets=nets)


# The objective ------------------------------------------------------------------------------


def random_features(seed=0, targets=4, poisons=5, size=7):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(targets, poisons, size, generator=generator, dtype=torch.float64)
    return values, torch.randn(targets, size, generator=generator, dtype=torch.float64)


def test_each_objective_is_its_formula():
    values, aim = random_features()
    c = convex_coefficients(values, aim)
    found = {
        name: objective(values, aim, c, replace(SHORT, objective=name), pooled=False)
        for name in ("polytope", "collision", "bullseye")
    }
    for number in range(4):
        p, t, w = values[number], aim[number], c[number]
        size = t @ t
        mixed = sum(w[j] * p[j] for j in range(5))
        assert found["polytope"][number] == pytest.approx(
            float(((t - mixed) ** 2).sum() / size / 2)
        )
        each = sum(((t - p[j]) ** 2).sum() for j in range(5))
        assert found["collision"][number] == pytest.approx(float(each / size))
        centre = p.sum(0) / 5
        assert found["bullseye"][number] == pytest.approx(
            float(((t - centre) ** 2).sum() / size / 2)
        )


def test_a_polytope_asks_less_than_its_centre_and_that_less_than_collision():
    values, aim = random_features(1)
    c = convex_coefficients(values, aim)
    polytope, centre, collision = (
        objective(values, aim, c, replace(SHORT, objective=name), pooled=False)
        for name in ("polytope", "bullseye", "collision")
    )
    assert (polytope <= centre).all()
    assert (centre <= collision / 2 / 5).all()


def test_the_released_codes_polytope_at_the_pooled_tap_is_a_sum_of_collisions():
    """Its broadcasting weights every poison by the sum of the coefficients."""
    values, aim = random_features(2)
    c = convex_coefficients(values, aim)
    released = replace(SHORT, pooled="released")
    # As that code has it: coefficients [P, 1, 1, 1] times features [P, D].
    expected = []
    for p, t, w in zip(values, aim, c, strict=True):
        mixed = (w.view(-1, 1, 1, 1) * p).sum(0)
        expected.append(0.5 * ((t - mixed) ** 2).sum() / (t @ t))
    found = objective(values, aim, c, released, pooled=True)
    assert torch.allclose(found, torch.stack(expected))
    collision = objective(values, aim, c, replace(SHORT, objective="collision"), pooled=True)
    assert torch.allclose(found, collision / 2)
    as_written = objective(values, aim, c, released, pooled=False)
    assert torch.allclose(as_written, objective(values, aim, c, SHORT, pooled=True))


@pytest.mark.parametrize("name", ["polytope", "collision", "bullseye"])
@pytest.mark.parametrize("taps", [("hidden",), ("stage", "hidden")])
def test_the_slope_is_that_of_the_objective_with_the_best_coefficients(scene, name, taps):
    """By the envelope theorem the coefficients' own change does not count."""
    _, _, targets = scene
    nets = [Substitute(network=one.network.double(), taps=taps) for one in substitutes()]
    procedure = replace(SHORT, objective=name, tolerance=1e-14)
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(3, 5, 3, 8, 8, generator=generator, dtype=torch.float64)

    def value(images):
        total = torch.zeros(3, dtype=torch.float64)
        with torch.no_grad():
            for net in nets:
                aims = features_at(net, targets.x.double() / 255)
                for values, aim in zip(features_at(net, images.flatten(0, 1)), aims, strict=True):
                    values, aim = values.reshape(3, 5, -1), aim.flatten(1)
                    c = convex_coefficients(values, aim, tolerance=1e-14)
                    total += objective(values, aim, c, procedure, pooled=False)
        return total / len(nets)

    images = x.clone().requires_grad_()
    coefficients = torch.full((len(nets) * len(taps), 3, 5), 0.2, dtype=torch.float64)
    with ready_to_craft(nets, procedure):
        aims = Aims(nets, targets, procedure, 0)
        aims._kept = [features_at(net, targets.x.double() / 255) for net in nets]
        found = backward(images, coefficients, nets, aims, procedure, stream=False)
    assert torch.allclose(found.double(), value(x), rtol=1e-5)
    for _ in range(3):
        direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        step = 1e-5
        slope = float((value(x + step * direction) - value(x - step * direction)).sum()) / 2 / step
        assert float((images.grad * direction).sum()) == pytest.approx(slope, rel=1e-4)


# The crafting -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["polytope", "collision", "bullseye"])
def test_crafting_lowers_the_objective_of_every_target(scene, name):
    losses = crafted(scene, replace(SHORT, objective=name, iterations=30)).losses
    assert losses.shape == (30, 3)
    assert (losses[-1] < 0.9 * losses[0]).all()


def test_poisons_keep_their_bound_their_labels_and_their_range_after_rounding(scene):
    train, rows, targets = scene
    for epsilon in (0.1, 0.01):
        for poison in crafted(scene, replace(SHORT, epsilon=epsilon)).poisons:
            measured = poison.verify(train, targets=targets.x)
            assert 0 < int(measured.max()) <= 255 * epsilon
            assert poison.rows.tolist() == rows
            assert torch.equal(poison.labels, train.y[rows])


def test_targets_crafted_together_get_what_they_get_alone(scene):
    train, rows, targets = scene
    together = crafted(scene)
    for number in range(3):
        alone = crafted((train, rows, targets.select(torch.tensor([number]))))
        assert torch.allclose(alone.losses[:, 0], together.losses[:, number], rtol=1e-4)
        difference = alone.poisons[0].images.int() - together.poisons[number].images.int()
        assert difference.abs().max() <= 1


@pytest.mark.parametrize("name", ["polytope", "collision"])
def test_networks_passed_through_one_by_one_give_the_same(scene, name):
    procedure = replace(SHORT, objective=name)
    nets = substitutes("stage", "hidden")
    whole = crafted(scene, procedure, nets)
    streamed = crafted(scene, procedure, nets, stream=True)
    assert torch.allclose(whole.losses, streamed.losses, rtol=1e-4)
    for one, other in zip(whole.poisons, streamed.poisons, strict=True):
        assert (one.images.int() - other.images.int()).abs().max() <= 1


def test_coefficients_are_those_of_the_last_step_and_convex(scene):
    found = crafted(scene, nets=substitutes("stage", "hidden")).coefficients
    assert found.shape == (4, 3, 5)
    assert found.min() >= 0
    assert torch.allclose(found.sum(-1), torch.ones(4, 3, dtype=torch.float64))


def test_a_step_in_units_of_the_deviation_is_that_much_shorter(scene):
    """Adam's first step is the learning rate, whatever the slope; the bound is far off here."""
    train, rows, _ = scene
    one = replace(SHORT, iterations=1, epsilon=1.0)
    in_pixels = crafted(scene, replace(one, unit="pixels")).poisons[0]
    change = (in_pixels.images.int() - train.x[rows].int()).abs().float()
    assert change.max() == pytest.approx(255 * 0.04, abs=1)
    in_deviations = crafted(scene, one).poisons[0]
    change = (in_deviations.images.int() - train.x[rows].int()).abs().float()
    deviation = (train.x.float() / 255).transpose(0, 1).flatten(1).std(1, correction=0)
    assert change.max() == pytest.approx(255 * 0.04 * float(deviation.max()), abs=1)


def test_dropout_is_on_while_crafting_and_repeats_by_seed(scene):
    nets = substitutes(dropout=0.3)
    dropped = replace(SHORT, dropout=True)
    first, second = (crafted(scene, dropped, nets) for _ in range(2))
    assert torch.equal(first.losses, second.losses)
    assert not torch.equal(first.losses, crafted(scene, SHORT, nets).losses)


def test_the_targets_features_are_drawn_once_every_time_or_without_dropout(scene, monkeypatch):
    _, _, targets = scene
    nets = substitutes(count=1, dropout=0.5)
    for mask, same in (("once", True), ("every", False), ("without", True)):
        procedure = replace(SHORT, dropout=True, target_mask=mask)
        with torch.random.fork_rng(), ready_to_craft(nets, procedure):
            aims = Aims(nets, targets, procedure, 0)
            [first], [second] = aims.of(0, nets[0]), aims.of(0, nets[0])
        assert torch.equal(first, second) is same
        [plain] = features_at(nets[0], targets.x.float() / 255)
        assert torch.equal(first, plain) is (mask == "without")


def test_networks_are_left_as_they_were(scene):
    nets = substitutes(dropout=0.3)
    nets[0].network.train()
    before = [
        ([m.training for m in one.network.modules()], one.network.state_dict()) for one in nets
    ]
    before = [(modes, {k: v.clone() for k, v in state.items()}) for modes, state in before]
    crafted(scene, replace(SHORT, dropout=True, iterations=2), nets)
    for one, (modes, state) in zip(nets, before, strict=True):
        assert [m.training for m in one.network.modules()] == modes
        assert all(p.requires_grad and p.grad is None for p in one.network.parameters())
        assert all(torch.equal(v, state[k]) for k, v in one.network.state_dict().items())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_crafting_that_was_stopped_goes_on_where_it_was(
    scene, device, stream, tmp_path, monkeypatch
):
    train, rows, targets = scene
    scene = train.to(device), rows, targets.to(device)
    nets = substitutes(dropout=0.3)
    for one in nets:
        one.network.to(device)
    procedure = replace(SHORT, dropout=True)
    unbroken = crafted(scene, procedure, nets, stream=stream)
    checkpoint = tmp_path / "state.safetensors"
    options = {"checkpoint": checkpoint, "checkpoint_every": 4, "stream": stream}
    calls = []

    def stop(*arguments, **named):
        calls.append(1)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return backward(*arguments, **named)

    monkeypatch.setattr("poisonkit.attacks.polytope.backward", stop)
    with pytest.raises(KeyboardInterrupt):
        crafted(scene, procedure, nets, **options)
    resumed = crafted(scene, procedure, nets, **options)
    # Nine steps were taken before the stop, of which eight were kept.
    assert len(calls) == 10 + 7
    assert torch.allclose(resumed.losses, unbroken.losses)
    for one, other in zip(unbroken.poisons, resumed.poisons, strict=True):
        assert torch.equal(one.images, other.images)


def test_a_checkpoint_of_another_crafting_is_refused(scene, tmp_path):
    train, rows, targets = scene
    options = {"checkpoint": tmp_path / "state.safetensors", "checkpoint_every": 1}
    short = replace(SHORT, iterations=1)
    crafted(scene, short, **options)
    others = (
        ((train, rows[:4], targets), substitutes()),
        ((train, rows, targets.select(torch.tensor([0, 1, 1]))), substitutes()),
        (scene, substitutes("stage")),
    )
    for other, nets in others:
        with pytest.raises(PoisonkitError, match="checkpoint of another"):
            crafted(other, short, nets, **options)


def test_a_target_that_the_poisons_already_surround_costs_nothing(scene):
    train, rows, _ = scene
    nets = substitutes(count=1)
    state = train.x[rows].float() / 255
    values = features_at(nets[0], state)[0].detach()
    inside = values.mean(0)
    c = convex_coefficients(values[None], inside[None])
    found = objective(values[None], inside[None], c, SHORT, pooled=False)
    assert float(found) < 1e-6


# Looking on ---------------------------------------------------------------------------------


def hidden(net: nn.Module, x: Tensor) -> np.ndarray:
    """The little network's last layer but one, a part at a time; its dropout does nothing."""
    body = net.body.eval()
    with torch.no_grad():
        return body.hidden(body.stage(x)).double().numpy()


def nearest_combination(vertices: np.ndarray, target: np.ndarray) -> np.ndarray:
    """By non-negative least squares, with a heavy row that makes the weights sum to 1."""
    heavy = 1e5
    rows = np.vstack([vertices.T, np.full(len(vertices), heavy)])
    return nnls(rows, np.append(target, heavy))[0] @ vertices


@pytest.fixture
def watched_scene(scene):
    """A network with dropout that nobody crafted with, some poisons, and their targets."""
    _, _, targets = scene
    generator = torch.Generator().manual_seed(8)
    images = torch.rand(3, 5, 3, 8, 8, generator=generator)
    net = Substitute(network=network(21, width=5, dropout=0.5), taps=("hidden",))
    return net, images, targets.x.float() / 255


def test_distances_are_to_the_nearest_combination_and_to_a_poison_on_average(watched_scene):
    net, images, targets = watched_scene
    to_polytope, to_poison = distances(net, images, targets)
    for number in range(3):
        p, t = (
            hidden(net.network, images[number]),
            hidden(net.network, targets[number : number + 1]),
        )
        size = float((t**2).sum())
        apart = ((nearest_combination(p, t[0]) - t[0]) ** 2).sum() / size
        assert float(to_polytope[number]) == pytest.approx(apart, rel=1e-3)
        each = ((p - t) ** 2).sum(1) / size
        assert float(to_poison[number]) == pytest.approx(each.mean(), rel=1e-5)
        assert apart <= each.min()


def test_a_target_among_its_own_poisons_is_at_no_distance(watched_scene):
    net, images, targets = watched_scene
    images = images.clone()
    images[:, 2] = targets
    to_polytope, to_poison = distances(net, images, targets)
    assert to_polytope.abs().max() < 1e-6
    assert to_poison.min() > 1e-3
    alone = images[:, 2:3]
    assert all(found.abs().max() < 1e-6 for found in distances(net, alone, targets))


def test_the_objective_in_a_network_is_its_formula_there(watched_scene):
    net, images, targets = watched_scene
    found = {
        name: objective_in(net, images, targets, replace(SHORT, objective=name))
        for name in ("polytope", "collision", "bullseye")
    }
    for number in range(3):
        p, t = (
            hidden(net.network, images[number]),
            hidden(net.network, targets[number : number + 1]),
        )
        size = float((t**2).sum())
        expected = {
            "polytope": ((nearest_combination(p, t[0]) - t[0]) ** 2).sum() / size / 2,
            "collision": ((p - t) ** 2).sum() / size,
            "bullseye": ((p.mean(0) - t[0]) ** 2).sum() / size / 2,
        }
        for name, value in expected.items():
            assert float(found[name][number]) == pytest.approx(value, rel=1e-3), name


def test_a_look_uses_no_dropout_and_leaves_network_and_random_state_as_they_were(watched_scene):
    net, images, targets = watched_scene
    net.network.train()
    modes = [module.training for module in net.network.modules()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    procedure = replace(SHORT, dropout=True)
    first, second = (objective_in(net, images, targets, procedure) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in net.network.modules()] == modes
    assert not first.requires_grad
    plain = Substitute(network=network(21, width=5), taps=("hidden",))
    assert torch.allclose(first, objective_in(plain, images, targets, procedure))


def test_a_request_is_checked_without_moving_the_random_state(scene):
    """The check passes images through the networks, whose dropout is on while crafting."""
    nets = substitutes(dropout=0.5)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    crafted(scene, replace(SHORT, dropout=True, iterations=1), nets)
    assert torch.equal(torch.get_rng_state(), state)


def watching(count=2):
    """Networks that the poisons are not crafted with, of other weights and with dropout."""
    return [
        Substitute(network=network(30 + seed, width=5, dropout=0.5), taps=("hidden",))
        for seed in range(count)
    ]


def same_crafting(one, other) -> bool:
    parts = ("images", "losses", "coefficients")
    return all(torch.equal(getattr(one, part), getattr(other, part)) for part in parts)


@pytest.mark.parametrize("mask", ["once", "every"])
def test_watching_does_not_change_what_is_crafted(scene, mask):
    nets = substitutes(dropout=0.4)
    procedure = replace(SHORT, dropout=True, target_mask=mask)
    alone = crafted(scene, procedure, nets)
    assert alone.watched.numel() == 0
    assert same_crafting(alone, crafted(scene, procedure, nets, watch=watching(), watch_every=2))
    # Not even a look at the substitutes themselves.
    assert same_crafting(alone, crafted(scene, procedure, nets, watch=nets, watch_every=1))


@pytest.mark.parametrize(("iterations", "every", "looks"), [(7, 3, 4), (6, 3, 3), (4, 50, 2)])
def test_there_is_a_look_before_every_so_many_steps_and_after_the_last(
    scene, iterations, every, looks
):
    train, rows, targets = scene
    procedure = replace(SHORT, iterations=iterations, dropout=True)
    nets, watch = substitutes(dropout=0.3), watching()
    found = crafted(scene, procedure, nets, watch=watch, watch_every=every)
    assert found.watched.shape == (looks, 2, 3)
    # A look after n steps sees what a crafting of n steps ends with.
    for place in range(1, looks):
        steps = min(place * every, iterations)
        shorter = crafted(scene, replace(procedure, iterations=steps), nets).images
        expected = [objective_in(one, shorter, targets.x.float() / 255, procedure) for one in watch]
        assert torch.allclose(found.watched[place], torch.stack(expected), rtol=1e-5)
    bases = (train.x[rows].float() / 255).expand(3, -1, -1, -1, -1)
    expected = [objective_in(one, bases, targets.x.float() / 255, procedure) for one in watch]
    assert torch.allclose(found.watched[0], torch.stack(expected))


@pytest.mark.parametrize("stopped_in", [2, 7, 10, 15])
def test_what_was_watched_before_and_after_a_stop_is_what_an_unbroken_run_saw(
    scene, tmp_path, monkeypatch, stopped_in
):
    nets, procedure = substitutes(dropout=0.3), replace(SHORT, dropout=True)
    looks = {"watch": watching(), "watch_every": 3}
    unbroken = crafted(scene, procedure, nets, **looks)
    options = {**looks, "checkpoint": tmp_path / "state.safetensors", "checkpoint_every": 4}
    calls = []

    def stop(*arguments, **named):
        calls.append(1)
        if len(calls) == stopped_in:
            raise KeyboardInterrupt
        return backward(*arguments, **named)

    monkeypatch.setattr("poisonkit.attacks.polytope.backward", stop)
    with pytest.raises(KeyboardInterrupt):
        crafted(scene, procedure, nets, **options)
    resumed = crafted(scene, procedure, nets, **options)
    kept = (stopped_in - 1) // 4 * 4
    assert len(calls) == stopped_in + 15 - kept
    assert torch.equal(resumed.watched, unbroken.watched)
    assert same_crafting(resumed, unbroken)
    assert 0 < resumed.seconds < 1000
    with pytest.raises(PoisonkitError, match="checkpoint of another"):
        crafted(scene, procedure, nets, **{**options, "watch_every": 2})


# Rounding -----------------------------------------------------------------------------------


def test_the_images_before_rounding_are_half_a_level_from_those_after(scene):
    train, rows, _ = scene
    found = crafted(scene, replace(SHORT, epsilon=0.05, iterations=25))
    assert found.images.shape == (3, 5, *train.x.shape[1:])
    assert not found.images.requires_grad
    bases = train.x[rows].float() / 255
    assert (found.images - bases).abs().max() <= 0.05 + 1e-6
    assert 0 <= found.images.min() <= found.images.max() <= 1
    for images, poison in zip(found.images, found.poisons, strict=True):
        apart = (255 * images - poison.images).abs()
        # 0.05 is 12.75 levels: at the bound rounding would lead to 13.
        within = (255 * (images - bases)).abs() < 12.5
        assert apart[within].max() <= 0.5 + 1e-3
        assert apart.max() <= 0.75 + 1e-3


@pytest.mark.parametrize("epsilon", [0.1, 0.05, 8 / 255, 1 / 255, 1.0])
def test_poisons_keep_their_bound_after_rounding_whatever_they_are_made_of(scene, epsilon):
    """Also of images that come from elsewhere, on the bound, beyond it or beyond all pixels."""
    train, rows, targets = scene
    bases = train.x[rows].float() / 255
    generator = torch.Generator().manual_seed(9)
    change = torch.rand(3, *bases.shape, generator=generator) * 2 - 1
    for scale in (epsilon, 3 * epsilon):
        for direction in (change, change.sign()):
            images = (bases + scale * direction).clamp(0, 1)
            for found, poison in zip(
                images, poisons_of(images, train, rows=rows, epsilon=epsilon), strict=True
            ):
                measured = poison.verify(train, targets=targets.x)
                allowed = int(255 * epsilon + 1e-9)
                assert int(measured.max()) <= allowed == poison.bound.value
                assert poison.rows.tolist() == rows
                assert torch.equal(poison.labels, train.y[rows])
                if scale == epsilon:
                    assert (255 * found - poison.images).abs().max() < 1
    same = poisons_of(bases[None], train, rows=rows, epsilon=epsilon)
    assert torch.equal(same[0].images, train.x[rows])


# Bad input ----------------------------------------------------------------------------------


def refused(scene, message, **changed):
    train, rows, targets = scene
    given = {"rows": rows, "targets": targets, "nets": substitutes(), "procedure": SHORT} | changed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surrounding, "solve", None)
        patch.setattr("poisonkit.attacks.polytope.backward", None)
        with pytest.raises(PoisonkitError, match=message):
            craft(train, given.pop("nets"), given.pop("targets"), seed=0, **given)


def test_what_cannot_be_crafted_is_refused_before_any_crafting(scene, make_images):
    train, rows, _ = scene
    same = train.indices_of(0)[5:6]
    refused(scene, "target 0 is of class 'class 0', as the bases", targets=train.select(same))
    known = train.select(train.indices_of(1)[:1])
    refused(scene, r"target 0 is training image \d+", targets=known)
    refused(scene, "must be of one class", rows=[*rows[:2], int(train.indices_of(1)[0])])
    refused(scene, "at least 2 different poisons", rows=rows[:1])
    refused(scene, "at least 2 different poisons", rows=[rows[0], rows[0]])
    other_size = make_images(3, size=(10, 10)).select(torch.tensor([1, 2]))
    refused(
        scene, r"targets are \[3, 10, 10\], the training images \[3, 8, 8\]", targets=other_size
    )
    for row in (-1, len(train)):
        told = f"row {row} is not one of the {len(train)} training images"
        refused(scene, told, rows=[*rows[:2], row])
    refused(scene, "unknown layer 'nowhere'; known: stage", nets=substitutes("nowhere"))
    refused(scene, "at least one substitute", nets=())
    refused(scene, "at least one tap", nets=[replace(substitutes()[0], taps=())])
    narrow = Classifier(
        nn.Sequential(nn.Conv2d(1, 2, 3)), mean=torch.zeros(1), deviation=torch.ones(1)
    )
    wrong = Substitute(network=narrow, taps=("0",))
    refused(scene, "takes images of 1 channels, these have 3", nets=[wrong])
    large = Classifier(
        nn.Sequential(nn.Conv2d(3, 2, 9)), mean=torch.zeros(3), deviation=torch.ones(3)
    )
    refused(scene, "cannot take images", nets=[Substitute(network=large, taps=("0",))])
    refused(
        scene,
        "tuple of at least one tap, not 'stage'",
        nets=[replace(substitutes()[0], taps="stage")],
    )
    refused(scene, "ImageSet, images with their labels .*, not Tensor", targets=train.x[:1])
    bare = Substitute(network=narrow.body, taps=("0",))
    refused(scene, r"not Sequential; make it one by .*wrap", nets=[bare])
    refused(scene, "watch_every must be at least 1, not 0", watch_every=0)
    refused(scene, "checkpoint_every must be at least 1, not 0", checkpoint_every=0)
    refused(scene, "watched has one tap", watch=substitutes("stage", "hidden"))


def test_a_target_without_features_is_named_when_its_objective_is_none(scene):
    """All three objectives divide by the length of the target's features."""
    dead = substitutes(count=1)
    with torch.no_grad():
        for parameter in dead[0].network.module_at("hidden").parameters():
            parameter.zero_()
    for name in ("polytope", "collision", "bullseye"):
        with pytest.raises(PoisonkitError, match="objective of target 0 became nan in iteration 0"):
            crafted(scene, replace(SHORT, objective=name), dead)


def test_one_poison_is_enough_for_a_collision(scene):
    train, rows, targets = scene
    procedure = replace(SHORT, objective="collision", iterations=2)
    found = craft(train, substitutes(), targets, rows=rows[:1], procedure=procedure, seed=0)
    assert len(found.poisons) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"objective": "square"},
        {"epsilon": 0.0},
        {"epsilon": 1.5},
        {"iterations": 0},
        {"learning_rate": 0.0},
        {"unit": "metre"},
        {"target_mask": "never"},
        {"pooled": "no"},
    ],
)
def test_a_procedure_that_cannot_be_run_is_refused(wrong):
    with pytest.raises(PoisonkitError):
        Procedure(**wrong)
