"""Training that is watched on other images, or that changes its batches as it goes."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from poisonkit.augmentation import add_gaussian_noise, attack_linf
from poisonkit.experiments import networks
from poisonkit.experiments.networks import Context, Cost, Transform, trained_network, training_of
from poisonkit.images import ImageSet
from poisonkit.training import Recipe, Sampler, fit

SHORT = Recipe(epochs=4, batch_size=16, learning_rate=0.05, crop_padding=1, precision="float32")


def small_net(images: ImageSet, *, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        height, width = images.image_size
        return nn.Sequential(
            nn.Conv2d(images.channels, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(6 * height * width, images.classes),
        )


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


class Killed(Exception):
    """Stands for whatever ends a process."""


# Watching -------------------------------------------------------------------------------------


def test_what_is_watched_is_the_accuracy_in_eval_mode_after_each_epoch(make_images):
    images = make_images(50)
    watch = {"one": make_images(40, seed=1), "two": make_images(30, seed=2)}
    model, expected = small_net(images), []

    def by_hand(number, epoch):
        model.eval()
        with torch.no_grad():
            expected.append(
                {
                    name: float((model(other.x / 255).argmax(1) == other.y).double().mean())
                    for name, other in watch.items()
                }
            )
        model.train()

    history = fit(model, images, SHORT, seed=1, watch=watch, on_epoch=by_hand)
    assert [epoch.watched for epoch in history] == expected
    assert len({tuple(found.values()) for found in expected}) > 1, "the accuracies never moved"


def test_watching_changes_nothing_of_what_is_trained(make_images):
    images = make_images(50)
    alone, watched = small_net(images), small_net(images)
    first = fit(alone, images, SHORT, seed=1)
    second = fit(watched, images, SHORT, seed=1, watch={"test": make_images(40, seed=1)})
    assert same(weights(alone), weights(watched))
    assert [epoch.loss for epoch in first] == [epoch.loss for epoch in second]
    assert [epoch.accuracy for epoch in first] == [epoch.accuracy for epoch in second]
    assert all(epoch.watched == {} for epoch in first)
    assert all(list(epoch.watched) == ["test"] for epoch in second)


@pytest.mark.parametrize("every", [1, 2])
def test_the_course_of_a_watched_training_survives_a_resume(every, make_images, tmp_path):
    images, watch = make_images(50), {"test": make_images(40, seed=1)}
    unbroken = small_net(images)
    history = fit(unbroken, images, SHORT, seed=2, watch=watch)

    def stop(number, epoch):
        if number == 2:
            raise Killed

    options = {
        "seed": 2,
        "watch": watch,
        "checkpoint": tmp_path / "state.safetensors",
        "checkpoint_every": every,
    }
    with pytest.raises(Killed):
        fit(small_net(images), images, SHORT, on_epoch=stop, **options)
    resumed = small_net(images, seed=77)
    found = fit(resumed, images, SHORT, **options)
    assert [replace(e, seconds=0) for e in found] == [replace(e, seconds=0) for e in history]
    assert same(weights(resumed), weights(unbroken))


# Transforms -----------------------------------------------------------------------------------


class Seen(nn.Module):
    """Keeps what it is given."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.inputs = body, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.inputs.append(x.clone())
        return self.body(x)


def test_a_transform_sees_every_batch_after_crops_and_flips_and_the_network_what_it_makes(
    make_images,
):
    images = make_images(50)
    model, given = Seen(small_net(images)), []

    def halved(network, x, y):
        given.append((x.clone(), y.clone(), network is model, network.training))
        return x / 2

    fit(model, images, SHORT, seed=3, transform=halved)
    sampler = Sampler(images, SHORT, seed=3)
    batches = [batch for number in range(SHORT.epochs) for batch in sampler.epoch(number)]
    assert len(given) == len(model.inputs) == len(batches) == 16
    for (x, y), (seen, labels, own, training), trained_on in zip(
        batches, given, model.inputs, strict=True
    ):
        assert torch.equal(seen, x)
        assert torch.equal(labels, y)
        assert torch.equal(trained_on, x / 2)
        assert own
        assert training
    untouched = {image.numpy().tobytes() for image in images.x}
    cropped = [(x * 255).round().byte() for x, *_ in given]
    assert any(image.numpy().tobytes() not in untouched for image in torch.cat(cropped))


def test_a_transform_that_changes_nothing_trains_the_same_network(make_images):
    images = make_images(50)
    plain, transformed = small_net(images), small_net(images)
    fit(plain, images, SHORT, seed=1)
    fit(transformed, images, SHORT, seed=1, transform=lambda network, x, y: x)
    assert same(weights(plain), weights(transformed))


@pytest.mark.parametrize(
    "transform",
    [
        partial(add_gaussian_noise, deviation=0.1),
        partial(attack_linf, epsilon=0.1, steps=2, rate=0.05),
    ],
    ids=["noise", "attack"],
)
def test_a_transforms_randomness_resumes_bit_by_bit(transform, make_images, tmp_path):
    images = make_images(50)
    plain, unbroken = small_net(images), small_net(images)
    fit(plain, images, SHORT, seed=2)
    torch.manual_seed(1)
    caller = torch.get_rng_state()
    fit(unbroken, images, SHORT, seed=2, transform=transform)
    assert torch.equal(torch.get_rng_state(), caller)
    assert not same(weights(plain), weights(unbroken))

    def stop(number, epoch):
        if number == 1:
            raise Killed

    options = {"seed": 2, "transform": transform, "checkpoint": tmp_path / "state.safetensors"}
    with pytest.raises(Killed):
        fit(small_net(images), images, SHORT, on_epoch=stop, **options)
    torch.manual_seed(99)  # another process
    resumed = small_net(images, seed=77)
    fit(resumed, images, SHORT, **options)
    assert same(weights(resumed), weights(unbroken))


# Artefacts ------------------------------------------------------------------------------------


@pytest.fixture
def ask(store, make_images, monkeypatch):
    """Ask for a network; return its weights, its course, and the number of trainings so far."""
    images, trainings = make_images(30), []

    def counted(*arguments, **options):
        trainings.append(options["label"])
        return fit(*arguments, **options)

    monkeypatch.setattr(networks, "fit", counted)
    context = Context(store=store, device="cpu")

    def ask(**options):
        model, course = training_of(
            context,
            images,
            replace(SHORT, epochs=2),
            model="small_cnn",
            seed=0,
            label="a network",
            cost=Cost(),
            options={"width": 2},
            **options,
        )
        assert not model.training
        return weights(model), course, len(trainings)

    return ask


def noise(deviation: float) -> Transform:
    return Transform(
        about={"gaussian": deviation}, apply=partial(add_gaussian_noise, deviation=deviation)
    )


def test_a_training_with_the_same_transform_is_shared_and_another_is_not(ask):
    plain, _, count = ask()
    assert count == 1
    some, course, count = ask(transform=noise(0.1))
    assert count == 2
    again, recalled, count = ask(transform=noise(0.1))
    assert count == 2
    assert same(some, again)
    assert course == recalled
    more, _, count = ask(transform=noise(0.2))
    assert count == 3
    assert not same(plain, some)
    assert not same(some, more)


def test_what_a_transform_says_of_itself_decides_not_the_function(ask):
    _, _, count = ask(transform=noise(0.1))
    other = Transform(about={"gaussian": 0.1}, apply=lambda network, x, y: x)
    assert ask(transform=other)[2] == count
    assert ask(transform=replace(other, about={"gaussian": 0.1, "clipped": False}))[2] == count + 1


def test_a_training_watched_on_the_same_images_is_shared_and_on_others_is_not(ask, make_images):
    plain, course, _ = ask()
    assert set(course) == {"loss", "accuracy"}
    watched, course, count = ask(watch={"test": make_images(20, seed=1)})
    assert count == 2
    assert same(plain, watched)
    assert {name: len(values) for name, values in course.items()} == {
        "loss": 2,
        "accuracy": 2,
        "test": 2,
    }
    assert ask(watch={"test": make_images(20, seed=1)})[1:] == (course, 2)
    assert ask(watch={"test": make_images(20, seed=2)})[2] == 3
    assert ask(watch={"others": make_images(20, seed=1)})[2] == 4
    assert ask(watch={}, transform=None)[2] == 4, "nothing to watch is not watching"


def test_a_network_asked_for_in_either_way_is_one_artefact(store, make_images):
    context, images = Context(store=store, device="cpu"), make_images(30)
    recipe = replace(SHORT, epochs=1)
    options = {"model": "small_cnn", "seed": 0, "label": "a network", "cost": Cost()}
    first = trained_network(context, images, recipe, width=2, **options)
    second, _ = training_of(context, images, recipe, options={"width": 2}, **options)
    assert same(weights(first), weights(second))
    assert len(list(store.cache.rglob("networks/*.json"))) == 1
