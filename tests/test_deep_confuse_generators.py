"""Deep Confuse's generators: what they learn from, and which of a learning is taken."""

from dataclasses import replace

import pytest
import torch
from deep_confuse_laboratory import DeepConfuseLaboratory, configure

from poisonkit.attacks.generated_noise import craft
from poisonkit.errors import PoisonkitError
from poisonkit.experiments.deep_confuse import learning
from poisonkit.experiments.deep_confuse.data import begin, load_data
from poisonkit.experiments.deep_confuse.learning import learned_generator
from poisonkit.experiments.networks import Context
from poisonkit.models import create
from poisonkit.training import fit


@pytest.fixture(scope="module")
def laboratory(caches) -> DeepConfuseLaboratory:
    return DeepConfuseLaboratory.below(caches)


# Splits ---------------------------------------------------------------------------------------


@pytest.fixture
def distinct(make_images, monkeypatch):
    """A data set in which no two images are the same, in the place of digits."""
    images = make_images(400, classes=4, channels=1, size=(16, 16))
    assert len({image.numpy().tobytes() for image in images.x}) == 400
    test = make_images(80, classes=4, channels=1, size=(16, 16), seed=1)
    sets = {"train": images, "test": test}
    monkeypatch.setattr(Context, "load", lambda self, name, split, **_: sets[split])
    return images


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("share", [0.1, 0.4])
def test_held_out_images_are_in_nothing_that_the_generator_learns_from(
    share, seed, distinct, store
):
    config = configure(
        "mnist", validation=share, seed=seed, images_per_class=60, learning_images_per_class=20
    )
    data = load_data(config, Context(store=store, device="cpu"))

    def names(images):
        return [image.numpy().tobytes() for image in images.x]

    train, part, held_out, learning = (
        names(getattr(data, name)) for name in ("train", "part", "held_out", "learning")
    )
    assert train == names(distinct.first_per_class(60))
    assert not set(held_out) & set(part)
    assert not set(held_out) & set(learning)
    assert sorted(held_out + part) == sorted(train)
    assert set(learning) <= set(part)
    assert data.held_out.y.bincount().tolist() == [round(share * 60)] * 4
    assert data.learning.y.bincount().tolist() == [20] * 4
    for label in range(4):
        own = [k for k in range(len(part)) if data.part.y[k] == label]
        assert set(names(data.learning)) >= {part[k] for k in own[:20]}
    labels = dict(zip(train, data.train.y.tolist(), strict=True))
    for images in (data.part, data.held_out, data.learning):
        assert [labels[image] for image in names(images)] == images.y.tolist()


def test_the_configurations_seed_decides_who_is_held_out(distinct, store):
    context = Context(store=store, device="cpu")
    first, again, other = (
        load_data(configure("mnist", seed=seed, images_per_class=60), context).held_out.checksum
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_without_held_out_images_all_are_learned_from(distinct, store):
    context = Context(store=store, device="cpu")
    config = configure("mnist", validation=0.0, selection="test", images_per_class=60)
    data = load_data(config, context)
    assert data.part.checksum == data.learning.checksum == data.train.checksum
    assert len(data.part) == 240
    assert len(data.held_out) == 0
    with pytest.raises(PoisonkitError, match="selection='validation' needs images held out"):
        load_data(replace(config, selection="validation"), context)


def test_classifiers_may_be_trained_on_a_share_of_the_images_in_the_end(distinct, store):
    context = Context(store=store, device="cpu")
    options = {"images_per_class": 60, "validation": 0.25}
    whole, some, most = (
        load_data(configure("mnist", trained_share=share, **options), context)
        for share in (1.0, 0.75, 0.9)
    )
    assert [len(data.train) for data in (whole, some, most)] == [240, 180, 216]
    assert most.train.y.bincount().tolist() == [54] * 4
    # With as many left out as are held out, they are the same ones.
    assert some.train.checksum == some.part.checksum
    for data in (some, most):
        assert data.part.checksum == whole.part.checksum
        assert data.held_out.checksum == whole.held_out.checksum
    with pytest.raises(PoisonkitError, match=r"1 - trained_share=0.001 of 240 images leaves a cl"):
        load_data(configure("mnist", trained_share=0.999, **options), context)


# Selection ------------------------------------------------------------------------------------


def select(laboratory: DeepConfuseLaboratory, selection: str, **options: object):
    config = configure("mnist", selection=selection, **options)
    data, cost = begin(config, laboratory.context)
    return config, data, learned_generator(config, data, 0, laboratory.context, cost)


def test_three_ways_of_selection_share_one_learning_and_take_another_generator_of_it(
    store, monkeypatch
):
    """Scores as if the first trial were best by held-out images, the second by the test's."""
    courses = {"validation": [0.3, 0.5, 0.4], "test": [0.6, 0.2, 0.4]}
    scores = iter(pair[number] for number in range(3) for pair in courses.values())
    with monkeypatch.context() as patched:
        patched.setattr(learning, "_score", lambda *_, **__: next(scores))
        patched.setattr(learning, "fit", lambda *_, **__: None)
        found = {
            name: select(DeepConfuseLaboratory(store), name, **{"procedure.trials": 3})[2]
            for name in ("validation", "test", "last")
        }
    assert len(list(store.cache.glob("generators/*.json"))) == 1
    for learned in found.values():
        assert learned.course["checks"] == [
            {"trial": number + 1, **{name: course[number] for name, course in courses.items()}}
            for number in range(3)
        ]
    for trials, name in ((1, "validation"), (2, "test"), (3, "last")):
        # The first trials of a longer learning are a shorter one.
        _, _, shorter = select(DeepConfuseLaboratory(store), "last", **{"procedure.trials": trials})
        expected = shorter.generator.state_dict()
        state = found[name].generator.state_dict()
        assert all(torch.equal(state[key], value) for key, value in expected.items()), name
    assert len(list(store.cache.glob("generators/*.json"))) == 3


@pytest.mark.parametrize("label_map", [None, (1, 2, 3, 4, 5, 6, 7, 8, 9, 0)])
def test_the_selected_generator_is_one_with_the_lowest_score_of_the_course(label_map, laboratory):
    """Training on the images of ``part`` with its noise, once more, gives the score again."""
    for selection in ("validation", "test", "last"):
        options = {"procedure.label_map": label_map} if label_map else {}
        config, data, learned = select(laboratory, selection, **options)
        checks = learned.course["checks"]
        scores = [check["validation" if selection == "last" else selection] for check in checks]
        noisy, _ = craft(data.part, learned.generator).apply(data.part)
        network = create(config.model, like=data.part, seed=0, width=4)
        fit(network, noisy, replace(config.recipe, epochs=2), seed=0)
        images = data.test if selection == "test" else data.held_out
        with torch.no_grad():
            found = network(images.x / 255).argmax(1)
        if label_map:
            score = float((found != torch.tensor(label_map)[images.y]).double().mean())
        else:
            score = float((found == images.y).double().mean())
        assert score == pytest.approx(scores[-1] if selection == "last" else min(scores))


def test_a_generator_may_be_scored_as_the_released_code_does(laboratory):
    """By a network trained as surrogates are, and read by the statistics of the test batch."""
    config, data, learned = select(
        laboratory,
        "test",
        scored_by="surrogate",
        validation=0.0,
        surrogate="two_layer_cnn_bn",
        surrogate_width=3,
        **{"procedure.epochs_per_trial": 3},
    )
    checks = learned.course["checks"]
    assert all(set(check) == {"trial", "test"} for check in checks)
    noisy, _ = craft(data.part, learned.generator).apply(data.part)
    network = create("two_layer_cnn_bn", like=data.part, seed=0, width=3)
    plain = replace(
        config.recipe,
        optimizer="sgd",
        momentum=0.0,
        learning_rate=config.procedure.surrogate_rate,
        schedule="constant",
        warmup=0.0,
        batch_size=config.procedure.batch_size,
        epochs=3,
    )
    fit(network, noisy, plain, seed=0)
    scores = []
    for mode in (network.train, network.eval):
        mode()
        with torch.no_grad():
            found = network(data.test.x / 255).argmax(1)
        scores.append(float((found == data.test.y).double().mean()))
    assert scores[0] != scores[1]
    assert scores[0] == pytest.approx(min(check["test"] for check in checks))


def test_whatever_changes_the_learning_is_another_generator_and_nothing_else_is(store, monkeypatch):
    monkeypatch.setattr(learning, "fit", lambda *_, **__: None)
    settings: tuple[dict[str, object], ...] = (
        {},
        {"procedure.surrogate_rate": 0.05},
        {"epsilon": 0.2},
        {"validation": 0.2},
        {"surrogate": "two_layer_cnn"},
        {"generator_width": 2},
        {"select_epochs": 3},
        {"recipe.learning_rate": 2e-2},  # what candidates are judged by, too
        {"images_per_class": 29},
        {"standardise": "none"},
        {"select_every": 2},
        {"scored_by": "surrogate"},
        {"validation": 0.0},
        {"procedure.crops": "random"},
        {"procedure.precision": "tf32"},
    )
    for number, options in enumerate(settings, start=1):
        select(DeepConfuseLaboratory(store), "last", **{"procedure.trials": 1, **options})
        assert len(list(store.cache.glob("generators/*.json"))) == number, options
    for options in (
        {"repeats": 5},
        {"recipe.epochs": 9},
        {"selection": "test"},
        {"trained_share": 0.5},
        {"noise": "anew"},
    ):
        select(
            DeepConfuseLaboratory(store), **{"selection": "last", "procedure.trials": 1, **options}
        )
        assert len(list(store.cache.glob("generators/*.json"))) == len(settings), options
