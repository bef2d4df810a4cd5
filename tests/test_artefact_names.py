"""What is in users' caches is found again: names of artefacts change only when they must.

One that is pinned here may change when the same request would give something else, which is
what the ``VERSION`` numbers are for, and never because an option was added.
"""

import pytest
from deep_confuse_laboratory import configure as confuse
from metapoison_laboratory import MetaPoisonLaboratory

from poisonkit.experiments.deep_confuse.data import begin
from poisonkit.experiments.deep_confuse.learning import learned_generator
from poisonkit.experiments.deep_confuse.steps import train_on
from poisonkit.experiments.metapoison.pairs import begin as begin_pair
from poisonkit.experiments.metapoison.steps import crafted
from poisonkit.experiments.networks import Context, Cost
from poisonkit.store import Store, key_of


class Asked(Exception):
    """Instead of anything being made."""


@pytest.fixture
def context(store, monkeypatch) -> Context:
    def artefact(self, kind, spec, compute):
        raise Asked(key_of(kind, spec))

    monkeypatch.setattr(Store, "artefact", artefact)
    return Context(store=store, device="cpu")


def asked(make) -> str:
    with pytest.raises(Asked) as found:
        make()
    return str(found.value)


def test_of_a_generator(context):
    config = confuse("mnist", model="two_layer_cnn_bn")
    data, cost = begin(config, context)
    found = asked(lambda: learned_generator(config, data, 0, context, cost))
    assert found == "9dbe4d77d2357c9f"


def test_of_a_network(context):
    config = confuse("mnist", model="two_layer_cnn_bn")
    data, cost = begin(config, context)
    found = asked(lambda: train_on(config, data.train, 0, context, cost, "", test=data.test))
    assert found == "d981f2ffd58c2189"


def test_of_crafted_poisons(context):
    config = MetaPoisonLaboratory.configure("victims")
    data, pair, _ = begin_pair(config, 0, context)
    found = asked(lambda: crafted(config, data, pair, context, Cost()))
    assert found == "0d800f0cf90adf58"
