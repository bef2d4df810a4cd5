"""A step that is recorded on a GPU and replayed does what the step itself does."""

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from poisonkit.attacks import deep_confuse
from poisonkit.attacks.deep_confuse import Learner, Procedure, fit_generator
from poisonkit.graphs import WARM_UP, Recorded
from poisonkit.models.generators import create_generator


def test_on_a_cpu_every_call_runs_the_step_and_returns_what_it_returns():
    seen, returned = [], []

    def work(*inputs: Tensor) -> tuple[Tensor, ...]:
        seen.append(inputs)
        returned.append((sum(inputs), inputs[0].clone()))
        return returned[-1]

    recorded = Recorded(work)
    for number in range(WARM_UP + 3):
        given = torch.full((4,), float(number)), torch.ones(4)
        found = recorded(*given)
        assert len(seen) == number + 1
        assert all(one is other for one, other in zip(seen[-1], given, strict=True))
        assert all(one is other for one, other in zip(found, returned[-1], strict=True))


def test_on_a_cpu_an_error_of_the_step_reaches_the_caller():
    def work(x: Tensor) -> tuple[Tensor, ...]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Recorded(work)(torch.zeros(1))


@pytest.mark.gpu
def test_on_a_gpu_the_state_changes_once_a_call_and_results_are_the_callers_own():
    """Also in the call that records, and for inputs of two shapes that take turns."""
    state = torch.zeros(3, device="cuda")

    def work(x: Tensor) -> tuple[Tensor, ...]:
        state.add_(x.sum(0))
        return 2 * state, x.square()

    recorded = Recorded(work)
    total, results, expected = torch.zeros(3), [], []
    generator = torch.Generator().manual_seed(0)
    for number in range(2 * (WARM_UP + 4)):
        x = torch.randint(0, 9, (4 + number % 2, 3), generator=generator).float()
        given = x.cuda()
        results.append(recorded(given))
        total += x.sum(0)
        expected.append((2 * total, x.square()))
        assert torch.equal(given.cpu(), x)
    assert torch.equal(state.cpu(), total)
    # Looked at only now: no later call has written into an earlier one's results.
    for found, wanted in zip(results, expected, strict=True):
        assert all(torch.equal(f.cpu(), w) for f, w in zip(found, wanted, strict=True))
    pointers = {tensor.data_ptr() for found in results for tensor in found}
    assert len(pointers) == 2 * len(results)


@pytest.mark.gpu
def test_on_a_gpu_the_layout_of_the_inputs_may_change_between_calls():
    recorded = Recorded(lambda x: (x.flatten(1).cumsum(1),))
    x = torch.randn(2, 3, 4, 5, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    for _ in range(WARM_UP + 3):
        for given in (x, x.to(memory_format=torch.channels_last)):
            assert torch.equal(recorded(given)[0], x.flatten(1).cumsum(1))


def test_a_learner_goes_with_its_last_user_and_so_do_its_recordings(make_images):
    """Without waiting for Python's collector, to whom a full GPU says nothing."""
    images = make_images(20, size=(16, 16), classes=3)
    generator = create_generator("autoencoder", like=images, epsilon=0.2, seed=3, width=2)
    make, procedure = _surrogate(images), Procedure(batch_size=10)
    learner = Learner(generator, make(0), procedure)
    learner.trial(make(1), images, seed=0, number=0)
    gone = weakref.ref(learner)
    gc.disable()
    try:
        del learner
        assert gone() is None
    finally:
        gc.enable()


def _surrogate(images):
    """Normalised, with kernels that repeat to the last bit on a GPU."""

    def make(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            side = images.image_size[0] // 4
            return nn.Sequential(
                nn.Conv2d(images.channels, 4, 3, stride=4, padding=1),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(4 * side * side, images.classes),
            )

    return make


@pytest.mark.gpu
@pytest.mark.parametrize("algorithm", ["memory_efficient", "stored"])
@pytest.mark.parametrize("label_map", [None, (1, 2, 0)])
def test_a_generator_learned_by_replays_is_the_one_learned_step_by_step(
    algorithm, label_map, make_images, monkeypatch
):
    images = make_images(70, size=(16, 16), classes=3).to("cuda")
    # Batches of 18, 18, 17 and 17: two shapes, two recordings, in each of 4 passes.
    procedure = Procedure(
        algorithm=algorithm,
        trials=2,
        epochs_per_trial=2,
        batch_size=20,
        generator_rate=1e-3,
        label_map=label_map,
    )
    replayed: list[object] = []
    replay = torch.cuda.CUDAGraph.replay

    def counted(graph):
        replayed.append(graph)
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)

    def learned():
        generator = create_generator("autoencoder", like=images, epsilon=0.2, seed=3, width=2)
        start = {name: value.clone() for name, value in generator.state_dict().items()}
        found = fit_generator(generator, images, procedure, surrogate=_surrogate(images), seed=4)
        return start, generator.state_dict(), [trial.loss for trial in found.history]

    start, recorded, losses = learned()
    calls = 4 * 4 * (2 if algorithm == "stored" else 1)
    warming = 2 * WARM_UP * (2 if algorithm == "stored" else 1)
    assert len(replayed) == calls - warming
    monkeypatch.setattr(deep_confuse, "Recorded", lambda work: work)
    _, eager, expected = learned()
    assert len(replayed) == calls - warming
    assert losses == pytest.approx(expected, rel=1e-4)
    # Normalisation cancels a bias before it: its slope is rounding, which Adam, dividing by
    # the slope's size, makes steps of. Each of this generator's convolutions has one.
    like = create_generator("autoencoder", like=images, epsilon=0.2, seed=3, width=2)
    convolutions = nn.Conv2d | nn.ConvTranspose2d
    cancelled = {f"{n}.bias" for n, part in like.named_modules() if isinstance(part, convolutions)}
    moved = 0
    for name, value in eager.items():
        if name in cancelled or name.endswith("running_mean"):
            continue
        assert torch.allclose(recorded[name].double(), value.double(), rtol=1e-3, atol=1e-4), name
        moved += not torch.allclose(value.double(), start[name].double(), rtol=1e-3, atol=1e-3)
    assert moved > 5
