"""Linear layers trained at a time are those that would be trained one by one."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poisonkit.errors import PoisonkitError
from poisonkit.fine_tuning import classify, fit_linear
from poisonkit.models import create
from poisonkit.training import Recipe, fit, mixed

RECIPE = Recipe(
    optimizer="adam",
    learning_rate=0.05,
    schedule="steps",
    milestones=(0.5, 0.75),
    weight_decay=0.0,
    batch_size=16,
    epochs=4,
    crop_padding=0,
    flip=False,
)


def scene(variants=3, poisons=4, size=6, count=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, size, generator=generator)
    labels = torch.randint(0, 3, (count,), generator=generator)
    replaced = torch.randn(variants, poisons, size, generator=generator)
    rows = torch.randperm(count, generator=generator)[:poisons]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = nn.Linear(size, 3)
    return features, labels, layer, replaced, rows


def one_alone(features, labels, layer, recipe, seed):
    """The same training, written down for a single layer with torch's own parts."""
    own = nn.Linear(layer.in_features, layer.out_features)
    own.load_state_dict(layer.state_dict())
    optimizer = (
        torch.optim.Adam(own.parameters(), lr=1)
        if recipe.optimizer == "adam"
        else torch.optim.SGD(own.parameters(), lr=1, momentum=recipe.momentum)
    )
    steps = math.ceil(len(features) / recipe.batch_size)
    total = steps * recipe.epochs
    number = 0
    for epoch in range(recipe.epochs):
        generator = torch.Generator().manual_seed(mixed(seed, epoch))
        for rows in torch.randperm(len(features), generator=generator).tensor_split(steps):
            optimizer.param_groups[0]["lr"] = (
                0.05 if number < total / 2 else 0.005 if number < 0.75 * total else 0.0005
            )
            loss = F.cross_entropy(own(features[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            number += 1
    return own


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_each_layer_is_the_one_trained_alone_on_its_own_images(optimizer):
    features, labels, layer, replaced, rows = scene()
    recipe = replace(RECIPE, optimizer=optimizer)
    before = layer.weight.detach().clone()
    weight, bias = fit_linear(features, labels, layer, recipe, seed=5, replaced=replaced, rows=rows)
    for number in range(len(replaced)):
        own = features.clone()
        own[rows] = replaced[number]
        alone = one_alone(own, labels, layer, recipe, seed=5)
        assert torch.allclose(weight[number], alone.weight, atol=1e-5)
        assert torch.allclose(bias[number], alone.bias, atol=1e-5)
    assert torch.equal(layer.weight, before)
    assert not torch.allclose(weight[0], weight[1], atol=1e-3)


def test_without_replaced_rows_there_is_one_layer_for_the_images_as_they_are():
    features, labels, layer, _, _ = scene()
    weight, bias = fit_linear(features, labels, layer, RECIPE, seed=1)
    alone = one_alone(features, labels, layer, RECIPE, seed=1)
    assert weight.shape == (1, 3, 6)
    assert torch.allclose(weight[0], alone.weight, atol=1e-5)
    assert torch.allclose(bias[0], alone.bias, atol=1e-5)


@pytest.mark.gpu
def test_on_a_gpu_layers_are_those_of_the_cpu():
    found = []
    for device in ("cpu", "cuda"):
        features, labels, layer, replaced, rows = scene()
        arguments = (part.to(device) for part in (features, labels))
        options = {"replaced": replaced.to(device), "rows": rows.to(device)}
        found.append(fit_linear(*arguments, layer.to(device), RECIPE, seed=5, **options))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other.cpu(), atol=1e-4, rtol=1e-4)


def test_it_takes_the_same_steps_as_training_the_layer_as_a_network(make_images):
    images = make_images(40, size=(4, 4))
    network = create("small_cnn", like=images, seed=0, standardise="none", width=2)
    layer = nn.Linear(48, 3)
    network.body = nn.Sequential(nn.Flatten(), layer)
    features = images.x.float().flatten(1) / 255
    weight, bias = fit_linear(features, images.y, layer, RECIPE, seed=9)
    fit(network, images, RECIPE, seed=9)
    assert torch.allclose(weight[0], layer.weight, atol=1e-5)
    assert torch.allclose(bias[0], layer.bias, atol=1e-5)


def test_images_that_are_left_out_do_not_matter():
    features, labels, layer, replaced, rows = scene()
    kept = torch.ones(len(replaced), len(features), dtype=torch.bool)
    kept[0, rows] = False
    options = {"rows": rows, "kept": kept}
    found = fit_linear(features, labels, layer, RECIPE, seed=2, replaced=replaced, **options)
    replaced[0] += 100
    again = fit_linear(features, labels, layer, RECIPE, seed=2, replaced=replaced, **options)
    assert torch.equal(found[0][0], again[0][0])
    plain = fit_linear(features, labels, layer, RECIPE, seed=2, replaced=replaced, rows=rows)
    assert torch.allclose(found[0][1], plain[0][1], atol=1e-6)
    assert not torch.allclose(found[0][0], plain[0][0], atol=1e-2)


def test_weight_decay_shrinks_the_weights_and_not_the_biases():
    features, labels, layer, _, _ = scene()
    recipe = replace(RECIPE, optimizer="sgd", learning_rate=1e-6, epochs=1, batch_size=50)
    plain, decayed = (
        fit_linear(features, labels, layer, replace(recipe, weight_decay=w), seed=0)
        for w in (0.0, 1000.0)
    )
    assert torch.allclose(plain[0] - decayed[0], 1e-3 * layer.weight[None], atol=1e-7)
    assert torch.equal(plain[1], decayed[1])


@pytest.mark.parametrize("same", [True, False])
def test_classify_is_each_layers_largest_logit(same):
    features, labels, layer, replaced, rows = scene()
    weight, bias = fit_linear(features, labels, layer, RECIPE, seed=5, replaced=replaced, rows=rows)
    asked = features if same else torch.stack([features + k for k in range(3)])
    found = classify(weight, bias, asked)
    for number in range(3):
        x = asked if same else asked[number]
        expected = (x @ weight[number].T + bias[number]).argmax(1)
        assert torch.equal(found[number], expected)


def test_what_does_not_fit_together_is_refused():
    features, labels, layer, replaced, _ = scene()
    with pytest.raises(PoisonkitError, match="50 rows of features, but 49 labels"):
        fit_linear(features, labels[:-1], layer, RECIPE, seed=0)
    with pytest.raises(PoisonkitError, match="both the rows and what replaces them"):
        fit_linear(features, labels, layer, RECIPE, seed=0, replaced=replaced)


def test_fine_tuning_by_running_averages_leaves_them_and_dropout_alone(make_images):
    images = make_images(60, size=(16, 16))
    network = create("resnet8", like=images, seed=0, dropout=0.5, width=4)
    fit(network, images, replace(RECIPE, epochs=1), seed=0)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    modes = []
    network.body.linear.register_forward_hook(
        lambda *_: modes.append([m.training for m in network.modules()])
    )
    fit(network, images, replace(RECIPE, epochs=1), seed=1, statistics="running")
    after = network.state_dict()
    averages = [name for name in after if "running" in name or "num_batches" in name]
    assert averages
    assert all(torch.equal(after[name], before[name]) for name in averages)
    assert not any(any(mode) for mode in modes)
    weights = [name for name in after if name.endswith("weight")]
    assert all(not torch.equal(after[name], before[name]) for name in weights)


def test_other_statistics_are_refused(make_images):
    images = make_images(20)
    network = create("small_cnn", like=images, seed=0)
    with pytest.raises(PoisonkitError, match="known: batch, running"):
        fit(network, images, RECIPE, seed=0, statistics="none")
