"""Deep Confuse learns by exact meta-gradients, the same way in both of its algorithms."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from poisonkit.attacks.deep_confuse import (
    Learner,
    Procedure,
    add_noise,
    check_label_map,
    fit_generator,
)
from poisonkit.attacks.unrolled import descend, meta_gradient
from poisonkit.errors import PoisonkitError
from poisonkit.models import create
from poisonkit.models.generators import create_generator


def smooth_surrogate(seed: int, *, normalised: bool = False) -> nn.Module:
    """A small classifier without kinks, so that finite differences are meaningful."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        norm = [nn.BatchNorm2d(4, track_running_stats=False)] if normalised else []
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), *norm, nn.Tanh(), nn.Flatten(), nn.Linear(4 * 64, 3)
        )


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(5)
    clean = torch.rand(6, 3, 8, 8, generator=generator, dtype=torch.float64)
    noise = 0.1 * torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (6,), generator=generator)
    return clean, add_noise(clean, noise), y, (y + 1) % 3


def loss_after_update(model, parameters, noisy, y, clean, wanted, rate):
    """The outer loss, written out: gradient of the inner loss, one step, loss on clean images."""
    theta = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    inner = F.cross_entropy(functional_call(model, theta, (noisy,)), y)
    slopes = torch.autograd.grad(inner, list(theta.values()))
    moved = {n: v.detach() - rate * s for (n, v), s in zip(theta.items(), slopes, strict=True)}
    return F.cross_entropy(functional_call(model, moved, (clean,)), wanted)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("label_specific", [False, True])
def test_the_meta_gradient_is_the_slope_of_the_loss_after_the_pseudo_update(
    batch, normalised, label_specific
):
    clean, noisy, y, other = batch
    wanted = other if label_specific else y
    model = smooth_surrogate(1, normalised=normalised).double()
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    rate = 0.5
    loss, gradient = meta_gradient(model, parameters, noisy, y, clean, wanted, rate=rate)
    assert loss == pytest.approx(
        float(loss_after_update(model, parameters, noisy, y, clean, wanted, rate))
    )
    directions = torch.randn(5, *noisy.shape, generator=torch.Generator().manual_seed(6)).double()
    for direction in directions:
        step = 1e-5
        ahead, behind = (
            loss_after_update(
                model, parameters, noisy + sign * step * direction, y, clean, wanted, rate
            )
            for sign in (1, -1)
        )
        slope = float(ahead - behind) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5)


def test_the_generator_climbs_the_slope_of_the_loss_after_the_pseudo_update(make_images):
    """By its own weights, through noise, clamping and surrogate: line 10 of Algorithm 2."""
    images = make_images(6, size=(8, 8))
    clean, y = images.x.double() / 255, images.y
    generator = create_generator("autoencoder", like=images, epsilon=0.2, seed=3, width=2).double()
    surrogate = smooth_surrogate(4, normalised=True).double()
    rate = 0.5
    learner = Learner(generator, surrogate, Procedure(surrogate_rate=rate))
    before = copy.deepcopy(generator)
    learner._one_learn(clean, y)

    def outer(shift, name):
        shifted = {n: p + shift if n == name else p for n, p in before.named_parameters()}
        with torch.no_grad():
            noise = functional_call(copy.deepcopy(before), shifted, (clean,))
        noisy = (clean + noise).clamp(0, 1)
        model = smooth_surrogate(4, normalised=True).double()
        theta = {n: p.detach() for n, p in model.named_parameters()}
        return float(loss_after_update(model, theta, noisy, y, clean, y, rate).detach())

    random = torch.Generator().manual_seed(7)
    checked = 0
    for name, parameter in generator.named_parameters():
        direction = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
        step = 1e-8  # so small that hardly a kink of the generator lies between
        slope = (outer(step * direction, name) - outer(-step * direction, name)) / (2 * step)
        if abs(slope) > 1e-6:  # a bias before batch normalisation has none
            # Adam minimises, so what it is given is the slope's negative.
            found = -float((parameter.grad * direction).sum())
            assert found == pytest.approx(slope, rel=1e-3, abs=1e-7), name
            checked += 1
    assert checked >= 16


def test_without_a_pseudo_update_the_noise_has_no_influence(batch):
    clean, noisy, y, _ = batch
    model = smooth_surrogate(1).double()
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    _, gradient = meta_gradient(model, parameters, noisy, y, clean, y, rate=0.0)
    assert gradient.abs().max() == 0


def test_the_meta_gradient_in_float32_agrees_with_that_in_float64(batch):
    clean, noisy, y, _ = batch
    model = smooth_surrogate(1)
    found = {}
    for dtype in (torch.float32, torch.float64):
        parameters = {n: v.detach().to(dtype) for n, v in model.named_parameters()}
        _, found[dtype] = meta_gradient(
            model, parameters, noisy.to(dtype), y, clean.to(dtype), y, rate=0.1
        )
    difference = (found[torch.float32].double() - found[torch.float64]).abs().max()
    assert difference < 1e-5 * found[torch.float64].abs().max()


def test_a_descent_step_is_that_of_plain_sgd(batch):
    clean, _, y, _ = batch
    model = smooth_surrogate(2).double()
    parameters = {name: value.detach().clone() for name, value in model.named_parameters()}
    loss = descend(model, parameters, clean, y, rate=0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    expected = F.cross_entropy(model(clean), y)
    expected.backward()
    optimizer.step()
    assert loss == pytest.approx(expected.item())
    for name, value in model.named_parameters():
        assert torch.allclose(parameters[name], value)


@pytest.mark.parametrize("normalised", [False, True])
def test_both_algorithms_take_the_same_steps(make_images, normalised):
    images = make_images(30, size=(16, 16), classes=3)
    states = {}
    for algorithm in ("memory_efficient", "stored"):
        generator = create_generator("autoencoder", like=images, epsilon=0.2, seed=3, width=2)
        procedure = Procedure(
            algorithm=algorithm, trials=2, batch_size=10, epochs_per_trial=2, generator_rate=1e-3
        )
        surrogate = _small(images, normalised=normalised)
        fit_generator(generator, images, procedure, surrogate=surrogate, seed=4)
        states[algorithm] = generator.state_dict()
    for name, value in states["stored"].items():
        assert torch.allclose(value.double(), states["memory_efficient"][name].double(), atol=1e-5)


def _small(images, *, normalised=True):
    def make(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            side = images.image_size[0] // 4
            return nn.Sequential(
                nn.Conv2d(images.channels, 4, 3, stride=4, padding=1),
                nn.BatchNorm2d(4) if normalised else nn.Identity(),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(4 * side * side, images.classes),
            )

    return make


def test_a_checkpoint_of_other_images_or_another_bound_is_refused(make_images, tmp_path):
    path, procedure = tmp_path / "checkpoint.safetensors", Procedure(trials=1, batch_size=10)

    def learn(images, epsilon):
        generator = create_generator("autoencoder", like=images, epsilon=epsilon, seed=3, width=2)
        fit_generator(
            generator, images, procedure, surrogate=_small(images), seed=4, checkpoint=path
        )

    images = make_images(30, size=(16, 16), classes=3)
    learn(images, 0.2)
    learn(images, 0.2)
    for other, epsilon in ((images, 0.1), (make_images(30, size=(16, 16), classes=3, seed=8), 0.2)):
        with pytest.raises(PoisonkitError, match="a checkpoint of another run"):
            learn(other, epsilon)


def test_a_learning_that_was_stopped_goes_on_where_it_was(make_images, tmp_path):
    images = make_images(30, size=(16, 16), classes=3)
    ends = []
    for stop in (None, 2):
        generator = create_generator("autoencoder", like=images, epsilon=0.2, seed=3, width=2)
        file = tmp_path / f"{stop}.safetensors"
        whole = Procedure(trials=4, batch_size=10)
        calls = []

        def score(found, calls=calls, stop=stop):
            calls.append(1)
            if stop and len(calls) == stop + 1:
                raise KeyboardInterrupt
            total = float(next(found.parameters()).detach().sum())
            return {"low": total, "high": -total}

        options = {
            "surrogate": _small(images),
            "seed": 4,
            "checkpoint": file,
            "scores": ("low", "high"),
            "score": score,
        }
        if stop:
            with pytest.raises(KeyboardInterrupt):
                fit_generator(generator, images, whole, **options)
            generator = create_generator("autoencoder", like=images, epsilon=0.2, seed=9, width=2)
        learned = fit_generator(generator, images, whole, **options)
        assert len(learned.history) == 4
        ends.append([g.state_dict() for g in (generator, *learned.best.values())])
    for unbroken, resumed in zip(*ends, strict=True):
        for name, value in unbroken.items():
            assert torch.equal(value, resumed[name]), name


def test_a_learning_goes_on_for_more_trials_and_never_back_to_fewer(make_images, tmp_path):
    images = make_images(30, size=(16, 16), classes=3)

    def learned(trials, file):
        generator = create_generator("autoencoder", like=images, epsilon=0.2, seed=3, width=2)
        options = {"surrogate": _small(images), "seed": 4, "checkpoint": str(file)}
        procedure = Procedure(trials=trials, batch_size=10)
        course = fit_generator(generator, images, procedure, **options).history
        return generator.state_dict(), [trial.loss for trial in course]

    at_once, losses = learned(3, tmp_path / "once")
    learned(1, tmp_path / "more")
    further, same = learned(3, tmp_path / "more")
    assert same == losses
    assert all(torch.equal(value, further[name]) for name, value in at_once.items())
    with pytest.raises(PoisonkitError, match="has learned for 3 trials, more than 2"):
        learned(2, tmp_path / "more")


def test_the_surrogates_of_a_learning_are_left_as_they_are(make_images):
    images = make_images(20, size=(16, 16), classes=2)
    generator = create_generator("autoencoder", like=images, epsilon=0.2, seed=3, width=2)
    own = _small(images)(0)
    before = {name: value.clone() for name, value in own.state_dict().items()}
    parts = [type(part) for part in own]
    procedure = Procedure(trials=1, batch_size=10)
    fit_generator(generator, images, procedure, surrogate=lambda _: own, seed=4)
    assert [type(part) for part in own] == parts
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())


def test_of_each_score_the_generator_with_the_lowest_is_kept(make_images):
    images = make_images(20, size=(16, 16), classes=2)
    generator = create_generator("autoencoder", like=images, epsilon=0.2, seed=3, width=2)
    scores = iter([(0.5, 1.0), (0.2, 1.0), (0.9, 3.0)])
    seen = []

    def score(found):
        seen.append({name: value.clone() for name, value in found.state_dict().items()})
        return dict(zip(("first", "second"), next(scores), strict=True))

    learned = fit_generator(
        generator,
        images,
        Procedure(trials=5, batch_size=10),
        surrogate=_small(images),
        seed=0,
        scores=("first", "second"),
        score=score,
        score_every=2,
    )
    # After trials 2 and 4, and after the last; of equal scores the later generator counts.
    assert [t.scores.get("first") for t in learned.history] == [None, 0.5, None, 0.2, 0.9]
    for name, number in (("first", 1), ("second", 1)):
        kept = learned.best[name].state_dict()
        assert all(torch.equal(value, seen[number][key]) for key, value in kept.items())
    last = generator.state_dict()
    assert all(torch.equal(value, seen[2][key]) for key, value in last.items())


@pytest.mark.parametrize(
    ("scores", "score", "told"),
    [
        (("first",), None, "together"),
        ((), lambda _: {"first": 0.5}, "together"),
        (("first", "second"), lambda _: {"first": 0.5}, "not judged by 'second'"),
    ],
)
def test_what_shall_be_judged_needs_a_judge(scores, score, told, make_images):
    images = make_images(20, size=(16, 16), classes=2)
    generator = create_generator("autoencoder", like=images, epsilon=0.2, seed=3, width=2)
    options = {"surrogate": _small(images), "seed": 0, "scores": scores, "score": score}
    with pytest.raises(PoisonkitError, match=told):
        fit_generator(generator, images, Procedure(trials=1, batch_size=10), **options)


def test_the_surrogate_is_trained_on_images_of_the_frozen_generator(make_images):
    """Within a trial the surrogate's path depends on the generator as it was at its start."""
    images = make_images(20, size=(16, 16), classes=2)
    generator = create_generator("autoencoder", like=images, epsilon=0.2, seed=3, width=2)
    procedure = Procedure(batch_size=10, generator_rate=1.0)
    learner = Learner(generator, _small(images)(0), procedure)
    before = {name: value.clone() for name, value in learner.frozen.state_dict().items()}
    seen = []
    original = learner.frozen.forward

    def spy(x):
        state = learner.frozen.state_dict()
        seen.append(all(torch.equal(state[name], value) for name, value in before.items()))
        return original(x)

    learner.frozen.forward = spy
    learner.trial(_small(images)(0), images, seed=0, number=0)
    assert seen == [True, True]
    after = learner.frozen.state_dict()
    assert all(torch.equal(after[n], v) for n, v in generator.state_dict().items())
    assert any(not torch.equal(after[name], value) for name, value in before.items())


def test_generator_and_surrogate_see_the_same_random_part_of_each_image(make_images, monkeypatch):
    images = make_images(20, size=(16, 16), classes=2)
    generator = create_generator("autoencoder", like=images, epsilon=0.2, seed=3, width=2)
    seen = {}
    for crops in ("none", "random"):
        procedure = Procedure(batch_size=10, crops=crops, epochs_per_trial=2)
        learner = Learner(generator, _small(images)(0), procedure)
        batches = seen[crops] = []
        for name in ("_one_learn", "_one_follow"):
            step = getattr(learner, name)

            def spy(x, y, step=step, batches=batches):
                batches.append((x.clone(), y.clone()))
                return step(x, y)

            monkeypatch.setattr(learner, name, spy)
        learner.trial(_small(images)(0), images, seed=0, number=0)
        assert len(batches) == 8
        for (x, y), (again, labels) in zip(batches[::2], batches[1::2], strict=True):
            assert torch.equal(x, again)
            assert torch.equal(y, labels)
    crops = [x for x, _ in seen["random"][::2]]
    whole = [x for x, _ in seen["none"][::2]]
    assert all(torch.equal(a[1], b[1]) for a, b in zip(*seen.values(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(crops, whole, strict=True))
    # In the second epoch an image is cut otherwise than in the first: no pixel sums agree.
    sums = torch.cat(crops).sum((1, 2, 3))
    assert len(sums.unique()) == 40


def test_a_learning_asks_for_full_float32_or_tf32_and_a_cpu_has_one_of_them(make_images):
    images = make_images(20, size=(16, 16), classes=2)
    learned, asked = {}, {}
    before = _precisions()
    for precision in ("float32", "tf32"):
        generator = create_generator("autoencoder", like=images, epsilon=0.2, seed=3, width=2)
        procedure = Procedure(trials=1, batch_size=10, precision=precision)

        def scored(generator, precision=precision):
            asked[precision] = _precisions()
            return {"test": 0.0}

        fit_generator(
            generator,
            images,
            procedure,
            surrogate=_small(images),
            seed=0,
            scores=("test",),
            score=scored,
        )
        learned[precision] = generator.state_dict()
        assert _precisions() == before
    assert asked == {"float32": ("ieee", "ieee"), "tf32": ("tf32", "tf32")}
    pairs = zip(learned["float32"].values(), learned["tf32"].values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def _precisions() -> tuple[str, str]:
    """What matrix products and what convolutions are computed in."""
    backends = torch.backends
    return backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision


@pytest.mark.gpu
def test_on_a_gpu_a_learning_in_tf32_goes_nearly_the_way_of_one_in_float32(make_images):
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no TF32")
    images = make_images(200, size=(28, 28), channels=1, classes=2).to("cuda")
    losses = []

    def surrogate(seed: int) -> nn.Module:
        return create("two_layer_cnn_bn", like=images, seed=seed)

    for precision in ("float32", "tf32"):
        generator = create_generator("autoencoder", like=images, epsilon=0.2, seed=3)
        procedure = Procedure(trials=1, precision=precision)
        found = fit_generator(generator, images, procedure, surrogate=surrogate, seed=0)
        losses.append(found.history[0].loss)
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize("label_specific", [False, True])
def test_learning_raises_the_loss_that_it_shall_raise_and_lowers_the_other(
    make_images, label_specific
):
    """On separable images the outer loss moves in the direction that the attacker wants."""
    images = make_images(60, size=(16, 16), classes=3)
    x = images.x.clone()
    for label in range(3):
        x[images.y == label, label] = 255
    images = replace(images, x=x)
    generator = create_generator("autoencoder", like=images, epsilon=0.5, seed=3, width=4)
    procedure = Procedure(
        trials=15,
        batch_size=20,
        surrogate_rate=0.1,
        generator_rate=1e-2,
        epochs_per_trial=2,
        label_map=(1, 2, 0) if label_specific else None,
    )
    learned = fit_generator(generator, images, procedure, surrogate=_small(images), seed=0)
    history = learned.history
    early = sum(epoch.loss for epoch in history[:3])
    late = sum(epoch.loss for epoch in history[-3:])
    assert (late < early) if label_specific else (late > early)


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        ((1, 0), "needs 3 entries, not 2"),
        ((1, 2, 3), "class 2 to 3"),
        ((0, 1, 2), "every class to itself"),
    ],
)
def test_a_label_map_must_be_one_on_the_classes(make_images, label_map, message):
    images = make_images(6, classes=3)
    with pytest.raises(PoisonkitError, match=message):
        check_label_map(label_map, images)


@pytest.mark.parametrize("wrong", [{"trials": 0}, {"batch_size": 0}, {"generator_rate": 0.0}])
def test_a_procedure_that_cannot_be_run_is_refused(wrong):
    with pytest.raises(PoisonkitError, match=next(iter(wrong))):
        Procedure(**wrong)
