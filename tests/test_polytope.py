"""Poisons surround their targets in feature space, and keep every promise they make."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from poisonkit.attacks import surrounding
from poisonkit.attacks.polytope import craft
from poisonkit.attacks.surrounding import (
    Aims,
    Procedure,
    Substitute,
    backward,
    features_at,
    objective,
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


def test_a_crafting_that_was_stopped_goes_on_where_it_was(scene, tmp_path, monkeypatch):
    nets = substitutes(dropout=0.3)
    procedure = replace(SHORT, dropout=True)
    unbroken = crafted(scene, procedure, nets)
    options = {"checkpoint": tmp_path / "state.safetensors", "checkpoint_every": 4}
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


# Bad input ----------------------------------------------------------------------------------


def refused(scene, message, **changed):
    train, rows, targets = scene
    given = {"rows": rows, "targets": targets, "nets": substitutes(), "procedure": SHORT} | changed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surrounding, "solve", None)
        patch.setattr("poisonkit.attacks.polytope.backward", None)
        with pytest.raises(PoisonkitError, match=message):
            craft(
                train,
                given["nets"],
                given["targets"],
                rows=given["rows"],
                procedure=given["procedure"],
                seed=0,
            )


def test_what_cannot_be_crafted_is_refused_before_any_crafting(scene, make_images):
    train, rows, _ = scene
    same = train.indices_of(0)[5:6]
    refused(scene, "target 0 is of class 'class 0', as the bases", targets=train.select(same))
    known = train.select(train.indices_of(1)[:1])
    refused(scene, "target 0 is one of the training images", targets=known)
    refused(scene, "must be of one class", rows=[*rows[:2], int(train.indices_of(1)[0])])
    refused(scene, "at least 2 different poisons", rows=rows[:1])
    refused(scene, "at least 2 different poisons", rows=[rows[0], rows[0]])
    other_size = make_images(3, size=(10, 10)).select(torch.tensor([1, 2]))
    refused(
        scene, r"targets are \[3, 10, 10\], the training images \[3, 8, 8\]", targets=other_size
    )
    refused(scene, "unknown layer 'nowhere'; known: stage", nets=substitutes("nowhere"))
    refused(scene, "at least one substitute", nets=())
    refused(scene, "at least one tap", nets=[replace(substitutes()[0], taps=())])
    narrow = Classifier(
        nn.Sequential(nn.Conv2d(1, 2, 3)), mean=torch.zeros(1), deviation=torch.ones(1)
    )
    wrong = Substitute(network=narrow, taps=("0",))
    refused(scene, "cannot take images", nets=[wrong])


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
