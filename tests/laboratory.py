"""What the tests of all chapters' experiments work with: one store, and the least of settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from poisonkit.experiments import EXPERIMENTS, run
from poisonkit.experiments.networks import Context
from poisonkit.images import ImageSet
from poisonkit.store import Record, Store

Options = dict[str, object]


@dataclass(frozen=True)
class Laboratory:
    """One store for the experiments of a chapter: what two of them share is made once."""

    #: What the names of its experiments begin with.
    chapter: ClassVar[str]
    #: Settings that make all of them as quick as can be.
    tiny: ClassVar[Options]
    #: Each experiment's own, by its name.
    own: ClassVar[dict[str, Options]]

    store: Store

    @classmethod
    def below(cls, caches: Path) -> Self:
        """The laboratory in the chapter's own folder of a session's caches."""
        return cls(Store(frozen=None, cache=caches / cls.chapter))

    @classmethod
    def configure(cls, name: str, **options: object) -> Any:
        given = {**cls.tiny, **cls.own[name], **options}
        return EXPERIMENTS[f"{cls.chapter}/{name}"].configure(profile="quick", **given)

    @property
    def context(self) -> Context:
        return Context(store=self.store, device="cpu")

    def record(self, name: str, **options: object) -> Record:
        return self.record_of(name, self.configure(name, **options))

    def record_of(self, name: str, config: Any) -> Record:
        return run(EXPERIMENTS[f"{self.chapter}/{name}"], config, store=self.store, device="cpu")

    def count(self, kind: str) -> int:
        return len(list(self.store.cache.glob(f"{kind}/*.json")))


def stand_in_for_cifar10(per_class: int, *, seed: int) -> ImageSet:
    """Random images of CIFAR-10's size and classes."""
    generator = torch.Generator().manual_seed(seed)
    count = 10 * per_class
    x = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    return ImageSet(x=x, y=torch.arange(count) % 10, class_names=tuple(names), name="stand-in")
