"""MetaPoison's gradient is that of the whole unrolled training, and its surrogates age."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from poisonkit.attacks import metapoison
from poisonkit.attacks.batch_statistics import use_batch_statistics
from poisonkit.attacks.colour import Recolouring
from poisonkit.attacks.meta_procedure import OBJECTIVES, Procedure, margin
from poisonkit.attacks.metapoison import craft
from poisonkit.attacks.surrogates import Surrogates
from poisonkit.attacks.unrolled import target_losses, target_slope
from poisonkit.errors import PoisonkitError
from poisonkit.models import Classifier, create

SHORT = Procedure(
    epsilon=16 / 255,
    steps=3,
    surrogates=2,
    batch_size=10,
    surrogate_rate=0.05,
    learning_rate=0.05,
    warmup_epochs=2,
)


def network(seed: int, *, normalised: bool = True) -> Classifier:
    """A smooth little network, normalised over the batch."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        norm = nn.BatchNorm2d(3) if normalised else nn.Identity()
        body = nn.Sequential(
            nn.Conv2d(3, 3, 3, stride=2), norm, nn.Tanh(), nn.Flatten(), nn.Linear(27, 3)
        )
    return Classifier(body, mean=torch.zeros(3), deviation=torch.ones(3))


@pytest.fixture
def scene(make_images):
    train = make_images(40, classes=3, seed=1)
    targets = make_images(12, classes=3, seed=2)
    targets = targets.select(targets.y == 1).select(torch.arange(2))
    return train, targets, train.indices_of(0)[:6].tolist()


def crafted(scene, procedure=SHORT, **options):
    train, targets, rows = scene
    return craft(
        train,
        targets,
        [0] * len(targets),
        rows=rows,
        surrogate=network,
        procedure=procedure,
        seed=3,
        keep_every=2,
        **options,
    )


# The gradient -------------------------------------------------------------------------------


def unrolled_problem(normalised=True, steps=2):
    model = network(0, normalised=normalised).double()
    use_batch_statistics(model)
    generator = torch.Generator().manual_seed(5)

    def images(count):
        return torch.rand(count, 3, 8, 8, generator=generator, dtype=torch.float64)

    batches = [
        (images(7), torch.randint(0, 3, (7,), generator=generator)) for _ in range(steps + 1)
    ]
    theta = {name: value.detach().clone() for name, value in model.named_parameters()}
    return model, theta, batches, images(2), torch.tensor([2, 0])


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_losses_are_those_of_a_plain_loop_of_gradient_descent(normalised, steps):
    model, theta, batches, targets, wanted = unrolled_problem(normalised, steps)
    found = target_losses(model, theta, batches, targets, wanted, rate=0.3).detach()
    current = {name: value.clone() for name, value in theta.items()}
    for number, (x, y) in enumerate(batches):
        leaves = {name: value.clone().requires_grad_() for name, value in current.items()}
        logits = functional_call(model, leaves, (torch.cat([x, targets]),))
        assert float(found[number]) == pytest.approx(
            float(F.cross_entropy(logits[len(x) :], wanted).detach()), rel=1e-12
        )
        slopes = torch.autograd.grad(F.cross_entropy(logits[: len(x)], y), list(leaves.values()))
        current = {
            name: value - 0.3 * slope
            for (name, value), slope in zip(current.items(), slopes, strict=True)
        }


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("counted", ["last", "all"])
def test_the_gradient_by_pixels_is_that_of_finite_differences(
    normalised, steps, objective, counted
):
    model, theta, batches, targets, wanted = unrolled_problem(normalised, steps)
    (first, y), *later = batches

    def loss(x):
        losses = target_losses(
            model, theta, [(x, y), *later], targets, wanted, rate=0.3, objective=objective
        )
        return losses[-1] if counted == "last" else losses.sum()

    x = first.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(x), x)
    generator = torch.Generator().manual_seed(6)
    for _ in range(4):
        direction = torch.randn(first.shape, generator=generator, dtype=torch.float64)
        step = 1e-5
        with torch.enable_grad():
            rise = (loss(first + step * direction) - loss(first - step * direction)) / (2 * step)
        assert float((slope * direction).sum()) == pytest.approx(float(rise.detach()), rel=1e-6)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("weights", [(0.0, 1.0), (0.0, 0.5, 0.5), (0.2, 0.0, 0.3, 1.5)])
def test_steps_taken_once_more_on_the_way_back_give_the_same_gradient(normalised, weights):
    model, theta, batches, targets, wanted = unrolled_problem(normalised, len(weights) - 1)
    (first, y), *later = batches
    x = first.clone().requires_grad_()
    expected = target_losses(model, theta, [(x, y), *later], targets, wanted, rate=0.3)
    total = (expected * torch.tensor(weights, dtype=torch.float64)).sum()
    losses, slope = target_slope(model, theta, batches, targets, wanted, rate=0.3, weights=weights)
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(slope, torch.autograd.grad(total, x)[0])
    assert not any(value.requires_grad for value in theta.values())


def averages_of(model):
    """Averages as a training may have left them."""
    generator = torch.Generator().manual_seed(8)
    shape = (2, 3)
    mean, variance = torch.rand(shape, generator=generator, dtype=torch.float64)
    return {"body.1": (mean, 0.5 + variance)}


@pytest.mark.parametrize("steps", [1, 2])
def test_a_target_apart_is_normalised_by_averages_and_the_batches_by_themselves(steps):
    """As by torch's own batch normalisation, in training mode for batches, in eval mode for it."""
    model, theta, batches, targets, wanted = unrolled_problem(True, steps)
    averages = averages_of(model)
    found = target_losses(model, theta, batches, targets, wanted, rate=0.3, averages=averages)
    own = network(0).double()
    own.body[1].running_mean, own.body[1].running_var = averages["body.1"]
    current = {name: value.clone() for name, value in theta.items()}
    for number, (x, y) in enumerate(batches):
        with torch.no_grad():
            answers = functional_call(own.eval(), current, (targets,))
        assert float(found[number].detach()) == pytest.approx(
            float(F.cross_entropy(answers, wanted)), rel=1e-12
        )
        leaves = {name: value.clone().requires_grad_() for name, value in current.items()}
        # Statistics of the batch alone, and averages that are not to be moved.
        stays = {f"body.1.running_{kind}": torch.zeros(3).double() for kind in ("mean", "var")}
        loss = F.cross_entropy(functional_call(own.train(), leaves | stays, (x,)), y)
        slopes = torch.autograd.grad(loss, list(leaves.values()))
        current = {
            name: value - 0.3 * slope
            for (name, value), slope in zip(current.items(), slopes, strict=True)
        }


def test_the_gradient_for_a_target_apart_is_that_of_finite_differences_either_way():
    model, theta, batches, targets, wanted = unrolled_problem(True, 2)
    averages, (first, y), later = averages_of(model), batches[0], batches[1:]
    options = {"rate": 0.3, "averages": averages}

    def loss(x):
        return target_losses(model, theta, [(x, y), *later], targets, wanted, **options)[-1]

    x = first.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(x), x)
    _, again = target_slope(
        model, theta, batches, targets, wanted, weights=(0.0, 0.0, 1.0), **options
    )
    torch.testing.assert_close(again, slope)
    generator = torch.Generator().manual_seed(6)
    for _ in range(4):
        direction = torch.randn(first.shape, generator=generator, dtype=torch.float64)
        rise = (loss(first + 1e-5 * direction) - loss(first - 1e-5 * direction)) / 2e-5
        assert float((slope * direction).sum()) == pytest.approx(float(rise.detach()), rel=1e-6)


def test_the_network_and_its_weights_are_left_as_they_are():
    model, theta, batches, targets, wanted = unrolled_problem()
    before = {name: value.clone() for name, value in theta.items()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    target_losses(model, theta, batches, targets, wanted, rate=0.3)
    target_slope(model, theta, batches, targets, wanted, rate=0.3, weights=(0.0, 0.0, 1.0))
    assert all(torch.equal(theta[name], before[name]) for name in before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_margin_is_negative_once_the_wanted_label_wins():
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 4.0, 1.0], [0.0, 0.0, 500.0]])
    expected = ((1.0 - 3.0) + (4.0 - 1.0) + -100.0) / 3
    assert float(margin(logits, torch.tensor([0, 2, 2]))) == pytest.approx(expected)


# Surrogates ---------------------------------------------------------------------------------


def test_surrogates_begin_at_ages_that_are_staggered(make_images):
    train = make_images(20, seed=1)
    procedure = replace(SHORT, surrogates=3, stagger=2)
    population = Surrogates(network, procedure, 0)
    population.stagger(train.x.float() / 255, train.y)
    assert population.ages.tolist() == [0, 2, 4]
    fresh = dict(network(1).named_parameters())
    assert all(torch.equal(population.at(0).parameters[name], fresh[name]) for name in fresh)
    assert any(
        not torch.equal(population.at(1).parameters[name], value)
        for name, value in network(2).named_parameters()
    )


def test_a_surrogate_that_has_reached_its_last_epoch_begins_anew_from_other_weights(make_images):
    train = make_images(20, seed=1)
    procedure = replace(SHORT, surrogates=2, momentum=0.9)
    population = Surrogates(network, procedure, 0)
    x = train.x.float() / 255
    population.stagger(x, train.y)
    oldest = population.at(1)
    order = oldest.order(20)
    oldest.descend(x[order[0]], train.y[order[0]])
    assert oldest.age == 1
    oldest.finish_epoch()
    assert population.ages.tolist() == [0, 0]
    assert population.lives.tolist() == [0, 1]
    again = dict(network(population.seed_of(1)).named_parameters())
    first = dict(network(2).named_parameters())
    reborn = population.at(1).parameters
    assert all(torch.equal(reborn[name], again[name]) for name in again)
    assert any(not torch.equal(reborn[name], first[name]) for name in first)
    speeds = [value[1] for name, value in population.state_dict().items() if "speed" in name]
    assert speeds
    assert all(float(speed.abs().max()) == 0 for speed in speeds)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_surrogate_is_trained_as_torchs_own_optimizer_would(momentum, make_images):
    train = make_images(30, seed=1)
    x = train.x.float() / 255
    population = Surrogates(network, replace(SHORT, momentum=momentum, warmup_epochs=1), 0)
    own = network(1)
    use_batch_statistics(own)
    optimizer = torch.optim.SGD(own.parameters(), lr=SHORT.surrogate_rate, momentum=momentum)
    surrogate = population.at(0)
    seen = []
    for rows in surrogate.order(30):
        seen += rows.tolist()
        surrogate.descend(x[rows], train.y[rows])
        optimizer.zero_grad()
        F.cross_entropy(own(x[rows]), train.y[rows]).backward()
        optimizer.step()
    assert sorted(seen) == list(range(30))
    for name, value in own.named_parameters():
        assert torch.allclose(surrogate.parameters[name], value, atol=1e-6)


def test_a_surrogates_averages_are_those_that_torch_would_keep(make_images):
    train = make_images(30, seed=1)
    x = train.x.float() / 255
    procedure = replace(SHORT, surrogates=2, warmup_epochs=1, normalised_with="averages")
    population = Surrogates(network, procedure, 0)
    own = network(1).train()
    optimizer = torch.optim.SGD(own.parameters(), lr=SHORT.surrogate_rate)
    surrogate = population.at(0)
    for rows in surrogate.order(30):
        surrogate.descend(x[rows], train.y[rows])
        optimizer.zero_grad()
        F.cross_entropy(own(x[rows]), train.y[rows]).backward()
        optimizer.step()
    norm = own.body[1]
    [(mean, variance)] = surrogate.averages.values()
    torch.testing.assert_close(mean, norm.running_mean)
    torch.testing.assert_close(variance, norm.running_var)
    assert float(mean.abs().max()) > 1e-3
    [(other_mean, other_variance)] = population.at(1).averages.values()
    assert torch.equal(other_mean, torch.zeros(3))
    assert torch.equal(other_variance, torch.ones(3))
    # At the end of its life they begin anew, too.
    for _ in range(procedure.lifetime):
        surrogate.finish_epoch()
    assert torch.equal(mean, torch.zeros(3))
    assert torch.equal(variance, torch.ones(3))
    assert Surrogates(network, SHORT, 0).at(0).averages is None


def test_averages_need_a_normalisation_that_keeps_them():
    def bare(seed):
        model = network(seed)
        model.body[1] = nn.BatchNorm2d(3, affine=False)
        return model

    Surrogates(bare, SHORT, 0)
    with pytest.raises(PoisonkitError, match=r"weight and bias, unlike body\.1"):
        Surrogates(bare, replace(SHORT, normalised_with="averages"), 0)


def test_the_rate_of_a_surrogate_rises_over_its_first_epochs(make_images):
    population = Surrogates(network, replace(SHORT, surrogates=8, warmup_epochs=4), 0)
    rates = []
    for _ in range(6):
        rates.append(population.at(0).rate / SHORT.surrogate_rate)
        population.at(0).finish_epoch()
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


# Crafting -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ways",
    [
        {"trajectory": "clean"},
        {"trajectory": "poisoned"},
        {"later": "first"},
        {"later": "first", "batch_size": 15},  # 14, 13 and 13 images
        {"later": "first", "recompute": True, "unroll": 1},
        {"update": "batch"},
        {"normalised_with": "averages"},
        {"update": "batch", "trajectory": "poisoned"},
        {"update": "batch", "batch_size": 3, "later": "first"},  # most hold no poison
    ],
    ids=str,
)
def test_the_steps_are_along_the_mean_gradient_of_batches_with_poisons(scene, ways, monkeypatch):
    """Once more, by a loop that unrolls each batch of each surrogate with torch's autograd."""
    train, targets, rows = scene
    procedure = replace(SHORT, steps=1, optimizer="sign", **ways)
    slopes, starts = [], []
    original = metapoison.look_ahead

    def watched(images, *others, **options):
        starts.append(images.clone())
        result = original(images, *others, **options)
        slopes.append(result.slope.clone())
        return result

    monkeypatch.setattr(metapoison, "look_ahead", watched)
    crafted(scene, procedure)
    model = network(4)
    use_batch_statistics(model)
    clean, aims = train.x.float() / 255, targets.x.float() / 255
    population = Surrogates(network, procedure, 3)
    population.stagger(clean, train.y)
    both = [population.at(number) for number in range(2)]
    weights = [{name: value.clone() for name, value in one.parameters.items()} for one in both]
    orders = [one.order(len(train)) for one in both]
    averages = [one.averages for one in both]
    count = len(orders[0])
    changes = [range(count)]
    if procedure.update == "batch":
        changes = [range(number, number + 1) for number in range(count)]
    assert len(slopes) == len(changes)
    for start, found, batches in zip(starts, slopes, changes, strict=True):
        expected = torch.zeros(6, 3, 8, 8)
        poisoned = clean.clone()
        poisoned[rows] = start
        assert float((poisoned - clean).abs().max()) > 0.01
        for theta_of, (surrogate, theta, order) in enumerate(
            zip(both, weights, orders, strict=True)
        ):
            for first in batches:
                chosen, rate = order[first], surrogate.rate
                whole = poisoned.clone().requires_grad_()
                own = [row for row in chosen.tolist() if row in rows]
                unrolled = [(whole[chosen], train.y[chosen])]
                for ahead in range(1, procedure.unroll + 1):
                    r = order[(first + ahead) % count]
                    x, y = poisoned[r], train.y[r]
                    if procedure.later == "first":
                        x = torch.cat([poisoned[own], clean[r[len(own) :]]])
                        y = torch.cat([train.y[own], train.y[r[len(own) :]]])
                    unrolled.append((x, y))
                wanted = torch.tensor([0, 0])
                losses = target_losses(
                    model, theta, unrolled, aims, wanted, rate=rate, averages=averages[theta_of]
                )
                (slope,) = torch.autograd.grad(losses[-1], whole)
                expected += slope[rows] / 2
                leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
                if averages[theta_of]:
                    [(mean, variance)] = averages[theta_of].values()
                    first_layer = (theta["body.0.weight"], theta["body.0.bias"])
                    values = F.conv2d(clean[chosen], *first_layer, stride=2)
                    mean.lerp_(values.mean((0, 2, 3)), 0.1)
                    variance.lerp_(values.transpose(0, 1).flatten(1).var(1), 0.1)
                x = (poisoned if procedure.trajectory == "poisoned" else clean)[chosen]
                loss = F.cross_entropy(functional_call(model, leaves, (x,)), train.y[chosen])
                for (name, value), part in zip(
                    theta.items(), torch.autograd.grad(loss, list(leaves.values())), strict=True
                ):
                    theta[name] = value - rate * part
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_changes_after_every_batch_share_the_rate_of_a_step(scene):
    train, _, rows = scene
    procedure = replace(SHORT, steps=1, optimizer="sign", start="zero", epsilon=0.5)
    bases = train.x[rows].float() / 255
    inside = (bases > 0.1) & (bases < 0.9)
    rate = procedure.rate_at(0)
    once = (crafted(scene, procedure).images - bases)[inside].abs()
    moved = once > 0  # the networks do not look at the last row and column
    assert torch.allclose(once[moved], torch.full_like(once[moved], rate), atol=1e-6)
    often = (crafted(scene, replace(procedure, update="batch")).images - bases)[inside].abs()
    # A poison takes part in one change with each of two surrogates: where they agree, it goes
    # as far as at once, where they do not, it comes back, and both at a time are one change.
    halves = 2 * often[moved] / rate
    assert torch.allclose(halves, halves.round(), atol=1e-3)
    assert set(halves.round().tolist()) == {0.0, 1.0, 2.0}


@pytest.mark.parametrize("update", ["epoch", "batch"])
def test_the_changes_of_a_step_share_the_weight_of_its_smoothness(scene, update, monkeypatch):
    """Roughness is all that there is to follow where the meta-gradient is nothing.

    The mean over all poisons counts once for each batch that holds any.
    """
    pulls, held = [], []

    def watch(state, seen, optimizer, rate):
        state.recolouring.offsets.data.normal_(generator=torch.Generator().manual_seed(4))
        optimizer.zero_grad()
        change(state, replace(seen, slope=torch.zeros_like(seen.slope)), optimizer, rate)
        pulls.append(state.recolouring.offsets.grad.clone())
        held.append(seen.batches)

    change = metapoison._State.change_by
    monkeypatch.setattr(metapoison._State, "change_by", watch)
    crafted(scene, replace(SHORT, steps=1, colour=0.1, smoothness=3.0, update=update))
    assert len(pulls) == (1 if update == "epoch" else 4)
    alone = Recolouring(6, bound=0.1)
    alone.offsets.data.normal_(generator=torch.Generator().manual_seed(4))
    # Two surrogates: the mean of the numbers of their batches.
    (3 * sum(held) / 2 * alone.roughness().mean()).backward()
    torch.testing.assert_close(sum(pulls), alone.offsets.grad)


def test_poisons_need_not_keep_to_the_range_of_pixels_but_images_of_them_do(scene):
    train, targets, rows = scene
    found = crafted(scene, replace(SHORT, clipped=False, learning_rate=5.0, epsilon=0.2))
    change = found.images - train.x[rows].float() / 255
    assert float(found.images.min()) < -0.05
    assert float(found.images.max()) > 1.05
    assert float(change.abs().max()) == pytest.approx(0.2)
    assert torch.equal(found.poison.images, (found.images.clamp(0, 1) * 255).round().byte())
    assert int(found.poison.verify(train, targets=targets.x).max()) <= 51


def test_all_poisons_begin_within_the_range_of_pixels(scene, monkeypatch):
    train, _, rows = scene
    begun = []
    original = metapoison._State.keep

    def keep(state, step):
        begun.append(state.images().detach().clone())
        original(state, step)

    monkeypatch.setattr(metapoison._State, "keep", keep)
    for clipped in (True, False):
        crafted(scene, replace(SHORT, steps=1, epsilon=0.3, clipped=clipped))
    first, _, again, _ = begun
    assert torch.equal(first, again)
    assert 0 == float(first.min()) < float(first.max()) == 1
    assert float((first - train.x[rows].float() / 255).abs().max()) <= 0.3 + 1e-6


@pytest.mark.parametrize("losses", ["last", "all"])
def test_the_poisons_are_the_same_with_the_memory_of_one_step(scene, losses):
    procedure = replace(SHORT, steps=1, losses=losses, optimizer="sign")
    stored = crafted(scene, procedure)
    recomputed = crafted(scene, replace(procedure, recompute=True))
    torch.testing.assert_close(recomputed.unrolled, stored.unrolled)
    # A slope of nearly zero may change its sign.
    same = (recomputed.images - stored.images).abs() < 1e-5
    assert float(same.double().mean()) > 0.999


def test_unrolling_on_the_poisons_lowers_the_targets_loss(scene):
    procedure = replace(SHORT, steps=12, epsilon=0.3, unroll=1, surrogate_rate=0.3)
    found = crafted(scene, procedure)
    gained = found.unaffected - found.unrolled
    assert float(gained[-3:].mean()) > float(gained[:1].mean())


def test_poisons_keep_the_bound_their_labels_and_their_places(scene):
    train, targets, rows = scene
    found = crafted(scene, replace(SHORT, learning_rate=5.0))
    measured = found.poison.verify(train, targets=targets.x)
    assert int(measured.max()) == 16
    assert found.poison.rows.tolist() == rows
    assert float((found.images - train.x[rows].float() / 255).abs().max()) <= 16 / 255 + 1e-6
    assert 0 <= float(found.images.min()) <= float(found.images.max()) <= 1


def test_a_change_of_colours_adds_to_the_bound_and_is_crafted_too(scene):
    train, targets, _ = scene
    plain = crafted(scene)
    found = crafted(scene, replace(SHORT, colour=0.04))
    assert not torch.equal(found.images, plain.images)
    measured = found.poison.verify(train, targets=targets.x)
    # Blue moves most: by Y once, and by U 2.032 times.
    assert found.poison.bound.value == int(255 * (16 / 255 + 0.04 * (1 + 2.03211)))
    assert 16 < int(measured.max()) <= found.poison.bound.value
    assert 0 <= float(found.images.min()) <= float(found.images.max()) <= 1


def test_a_rougher_change_of_colours_is_made_smoother_by_its_weight(scene):
    roughness = {}
    for weight in (0.0, 1000.0):
        kept = []
        procedure = replace(SHORT, colour=0.1, smoothness=weight, steps=6, optimizer="sign")
        original = metapoison._State.keep

        def watch(state, step, kept=kept, original=original):
            kept[:] = [float(state.recolouring.roughness().detach().sum())]
            original(state, step)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(metapoison._State, "keep", watch)
            crafted(scene, procedure)
        [roughness[weight]] = kept
    assert roughness[1000.0] < roughness[0.0]


def test_the_course_begins_with_the_start_and_ends_with_the_result(scene):
    train, _, rows = scene
    found = crafted(scene, replace(SHORT, start="zero"))
    assert len(found.course) == 3  # before steps 0 and 2, and after the last one
    assert torch.equal(found.course[0].images, train.x[rows])
    assert torch.equal(found.course[-1].images, found.poison.images)
    assert not torch.equal(found.course[1].images, found.course[2].images)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"optimizer": "sign"},
        {"colour": 0.04},
        {"update": "batch"},
        {"normalised_with": "averages"},
    ],
    ids=["plain", "momentum", "sign", "colour", "every batch", "averages"],
)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_stopped_crafting_goes_on_to_the_same_poisons(
    scene, options, device, tmp_path: Path, monkeypatch
):
    if device == "cuda" and "colour" in options:
        pytest.skip("on CUDA its backward pass sums in no fixed order")
    train, targets, rows = scene
    scene = train.to(device), targets.to(device), rows
    procedure = replace(SHORT, steps=5, **options)
    unbroken = crafted(scene, procedure)
    original, calls = metapoison.look_ahead, []
    changes = 4 if procedure.update == "batch" else 1
    # In the fourth step, and in the midst of it where that has several changes.
    broken = 3 * changes + (changes + 1) // 2

    def breaking(*arguments, **options):
        calls.append(1)
        if len(calls) == broken:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(metapoison, "look_ahead", breaking)
    with pytest.raises(KeyboardInterrupt):
        crafted(scene, procedure, checkpoint=tmp_path / "state.safetensors")
    resumed = crafted(scene, procedure, checkpoint=tmp_path / "state.safetensors")
    assert len(calls) == broken + 2 * changes
    assert torch.equal(resumed.images, unbroken.images)
    assert torch.equal(resumed.unrolled, unbroken.unrolled)
    assert all(
        torch.equal(a.images, b.images)
        for a, b in zip(resumed.course, unbroken.course, strict=True)
    )


def test_surrogates_that_were_trained_to_their_ages_are_not_trained_to_them_again(
    scene, tmp_path: Path, monkeypatch
):
    unbroken = crafted(scene)
    checkpoint = tmp_path / "state.safetensors"

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as before_the_first_step:
        before_the_first_step.setattr(metapoison, "look_ahead", stopped)
        with pytest.raises(KeyboardInterrupt):
            crafted(scene, checkpoint=checkpoint)
    monkeypatch.setattr(Surrogates, "stagger", stopped)
    resumed = crafted(scene, checkpoint=checkpoint)
    assert torch.equal(resumed.images, unbroken.images)


def test_networks_of_the_package_can_be_surrogates_and_any_label_can_be_wanted(make_images):
    train = make_images(30, classes=3, size=(16, 16), seed=1)
    targets = make_images(12, classes=3, size=(16, 16), seed=2)
    targets = targets.select(targets.y == 1).select(torch.arange(1))
    found = craft(
        train,
        targets,
        [2],  # neither the poisons' class nor the target's own
        rows=train.indices_of(0)[:4].tolist(),
        surrogate=lambda seed: create("small_cnn", like=train, seed=seed, width=4),
        procedure=replace(SHORT, steps=1),
        seed=0,
    )
    assert set(found.poison.labels.tolist()) == {0}
    assert torch.isfinite(found.unrolled).all()


# Refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"unroll": 0}, "unroll must be at least 1, not 0"),
        ({"epsilon": 0.0}, r"epsilon must lie in \(0, 1\], not 0.0"),
        ({"epsilon": 1.5}, r"epsilon must lie in \(0, 1\]"),
        ({"epsilon": 0.0039}, "less than 1/255, one level of a pixel"),
        ({"surrogates": 0}, "surrogates must be at least 1"),
        ({"objective": "hinge"}, "known: cross-entropy, margin"),
        ({"trajectory": "mixed"}, "known: clean, poisoned"),
        ({"update": "step"}, "known: epoch, batch"),
        ({"later": "none"}, "known: own, first"),
        ({"normalised_with": "all"}, "known: batch, averages"),
        ({"learning_rate": 0.0}, "must be positive"),
        ({"colour": -0.1}, "colour must lie in"),
    ],
)
def test_a_procedure_that_makes_no_sense_is_refused(options, told):
    with pytest.raises(PoisonkitError, match=told):
        replace(SHORT, **options)


def test_a_request_that_makes_no_sense_is_refused_before_any_training(scene, monkeypatch):
    train, targets, rows = scene
    monkeypatch.setattr(Surrogates, "stagger", lambda *_: pytest.fail("trained"))

    def attempt(told, *, targets=targets, wanted=(0, 0), rows=rows):
        with pytest.raises(PoisonkitError, match=told):
            craft(train, targets, wanted, rows=rows, surrogate=network, procedure=SHORT, seed=0)

    inside = train.select(train.indices_of(1)[:2])
    attempt(r"target 0 is training image \d+", targets=inside)
    attempt("the label that it is to be given", wanted=(0, 1))
    attempt("label 3 is not one of the 3 classes", wanted=(0, 3))
    attempt("1 labels are wanted for 2 targets", wanted=(0,))
    attempt("must be of one class", rows=[*rows, train.indices_of(1)[0].item()])
    attempt("at least one, and different", rows=[rows[0], rows[0]])
    attempt("at least one", rows=[])
    attempt("row 40 is not one of the 40 training images", rows=[40])
    attempt("row -1 is not one of the 40 training images", rows=[rows[0], -1])
    with pytest.raises(PoisonkitError, match="keep_every must be at least 1, not 0"):
        craft(
            train,
            targets,
            (0, 0),
            rows=rows,
            surrogate=network,
            procedure=SHORT,
            seed=0,
            keep_every=0,
        )


def test_rows_and_labels_may_be_given_in_any_way(scene):
    train, targets, rows = scene
    one_step = replace(SHORT, steps=1)
    options = {"surrogate": network, "procedure": one_step, "seed": 3}
    expected = craft(train, targets, [0, 0], rows=rows, **options).images
    found = craft(train, targets, torch.tensor([0, 0]), rows=np.array(rows), **options).images
    assert torch.equal(found, expected)
    one = targets.select(0)
    alone = craft(train, one, 0, rows=torch.tensor(rows), **options).images
    assert torch.equal(alone, craft(train, one, [0], rows=rows, **options).images)
    for wrong in (torch.tensor([0.5]), torch.tensor([True])):
        with pytest.raises(PoisonkitError, match="rows and labels are whole numbers"):
            craft(train, targets, [0, 0], rows=wrong, **options)
    with pytest.raises(PoisonkitError, match=r"ImageSet, images with their labels .* not Tensor"):
        craft(train, targets.x, [0, 0], rows=rows, **options)


def test_a_network_that_the_factory_returns_is_left_as_it_is(scene):
    train, targets, rows = scene
    own = network(0)
    before = {name: value.clone() for name, value in own.state_dict().items()}
    parts = [type(part) for part in own.modules()]
    one_step = replace(SHORT, steps=1)
    craft(train, targets, [0, 0], rows=rows, surrogate=lambda _: own, procedure=one_step, seed=3)
    assert [type(part) for part in own.modules()] == parts
    assert own.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())


def test_what_is_no_factory_of_networks_to_train_is_refused(scene):
    train, targets, rows = scene

    def half_fixed(seed):
        made = network(seed)
        made.body[4].bias.requires_grad_(False)
        return made

    for factory, told in (
        (network(0), "surrogate is a network, but should make one from a seed"),
        (lambda seed: seed, "surrogate should make a network, not int"),
        (half_fixed, "requires_grad is off for body.4.bias"),
    ):
        with pytest.raises(PoisonkitError, match=told):
            craft(train, targets, [0, 0], rows=rows, surrogate=factory, procedure=SHORT, seed=3)


def test_a_loss_that_is_not_finite_stops_the_crafting(scene):
    train, targets, rows = scene
    wild = replace(SHORT, surrogate_rate=1e30)

    def unbounded(seed):
        return create("two_layer_cnn", like=train, seed=seed)

    with pytest.raises(PoisonkitError, match=r"loss became nan in crafting step 0 .*below 1e\+30"):
        craft(train, targets, (0, 0), rows=rows, surrogate=unbounded, procedure=wild, seed=0)
