"""Content-addressed results: look up, else compute, write once, resume after a kill.

There are two kinds. A *record* is the result of an experiment: one JSON file with
its configuration, metrics and provenance and, where a figure needs arrays, one
safetensors file. An *artefact* is a finished step on the way (a trained network,
one trial); steps that ask for the same thing share it, and a run that was killed
finds those it had finished. Files appear whole or not at all, by renaming.
"""

import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from poisonkit.data import cache_root
from poisonkit.errors import PoisonkitError
from poisonkit.files import whole_file
from poisonkit.provenance import checkout, describe

try:
    import fcntl
except ImportError:  # on Windows, where processes that share a cache may repeat each other's work
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
#: What reading a damaged JSON file raises.
NOT_WHOLE = (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError)
Json = dict[str, Any]


def canonical(value: object) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def key_of(*parts: object) -> str:
    """Return 16 hexadecimal digits that stand for the parts' content."""
    return hashlib.sha256(canonical(parts).encode()).hexdigest()[:16]


def digest_of(metrics: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a result's numbers, which two equal runs share."""
    digest = hashlib.sha256(canonical(metrics).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Record:
    """The result of one experiment at one configuration.

    Attributes
    ----------
    experiment, version : what was run.
    config : every parameter, including profile, variant and seed.
    metrics : the numbers.
    provenance : versions, machine, seconds, peak memory, checksum of the data.
    digest : SHA-256 of metrics and arrays; equal for equal runs on one device.
    path : the JSON file it was read from or written to.
    """

    experiment: str
    version: int
    config: Json
    metrics: Json
    provenance: Json
    digest: str
    path: Path = field(compare=False)

    @property
    def profile(self) -> str:
        return str(self.config["profile"])

    @cached_property
    def arrays(self) -> dict[str, Tensor]:
        """The arrays behind the figures, verified against the digest."""
        file = self.path.with_suffix(".safetensors")
        try:
            tensors = load_file(file) if file.exists() else {}
        except SafetensorError as error:
            raise PoisonkitError(f"{file} cannot be read ({error})") from error
        if digest_of(self.metrics, tensors) != self.digest:
            raise PoisonkitError(f"{self.path} and its arrays do not match the record's digest")
        return tensors


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """A finished step: its numbers, its tensors, the seconds it took, and what made it."""

    key: str
    metrics: Json
    tensors: dict[str, Tensor]
    seconds: float
    origin: Json


@dataclass(frozen=True, kw_only=True)
class Store:
    """Where results are kept.

    Attributes
    ----------
    frozen : records that came with the checkout (``results/``), never written to
        unless :meth:`Store.save` is told to; None where there is no checkout.
    cache : the user's own records and artefacts.
    """

    frozen: Path | None
    cache: Path

    def find(self, experiment: str, version: int, config: Json) -> Record | None:
        """Return the record of that configuration, frozen ones first, or None."""
        name = _file_name(experiment, version, config)
        for folder in (self.frozen, self.cache / "records"):
            if folder is not None and (folder / name).exists():
                record = read_record(folder / name)
                if (record.experiment, record.version, record.config) != (
                    experiment,
                    version,
                    config,
                ):
                    raise PoisonkitError(f"{record.path} is not the record that its name says")
                record.arrays  # noqa: B018  (reading them checks the digest)
                return record
        return None

    def records(self, experiment: str | None = None) -> Iterator[Record]:
        """Yield all records, frozen ones first, sorted by name."""
        for folder in (self.frozen, self.cache / "records"):
            if folder is None or not folder.is_dir():
                continue
            for path in sorted(folder.rglob("*.json")):
                record = read_record(path)
                if experiment in (None, record.experiment):
                    yield record

    def save(
        self,
        *,
        experiment: str,
        version: int,
        config: Json,
        metrics: Json,
        arrays: Mapping[str, Tensor],
        provenance: Json,
        freeze: bool = False,
    ) -> Record:
        """Write a record (arrays first, so that a JSON file is never without them)."""
        if freeze and self.frozen is None:
            raise PoisonkitError("there is no results/ folder to freeze a record in")
        folder = self.frozen if freeze and self.frozen else self.cache / "records"
        path = folder / _file_name(experiment, version, config)
        content = {
            "format": FORMAT,
            "experiment": experiment,
            "version": version,
            "config": config,
            "metrics": metrics,
            "digest": digest_of(metrics, arrays),
            "provenance": provenance,
        }
        if arrays:
            _write_tensors(path.with_suffix(".safetensors"), arrays)
        _write_json(path, content)
        return read_record(path)

    def artefact(
        self,
        kind: str,
        spec: Json,
        compute: Callable[[Path], tuple[Json, dict[str, Tensor]]],
    ) -> Artefact:
        """Return the artefact of that kind and specification, computing it if need be.

        Parameters
        ----------
        spec : everything that the result depends on.
        compute : takes a scratch folder, which survives a kill (put checkpoints
            there) and is removed at the end; returns numbers and tensors. Numbers
            may say under ``seconds`` how long it took, interruptions included.
        """
        path = self.cache / kind / f"{key_of(kind, spec)}.json"
        if not path.exists():
            # Before the work, after which the checkout may have gone on to another commit.
            describe()
            with _alone(path.with_suffix(".lock")):
                # Another process may have finished it in the meantime.
                if not path.exists():
                    _make_artefact(path, spec, compute)
        # Read back, so that a first run sees exactly what a later one will.
        return _read_artefact(path)

    def freeze(self, record: Record) -> Record:
        """Copy a record of the cache, its provenance included, to the frozen ones."""
        if self.frozen is not None and record.path.is_relative_to(self.frozen):
            return record
        return self.save(
            experiment=record.experiment,
            version=record.version,
            config=record.config,
            metrics=record.metrics,
            arrays=record.arrays,
            provenance=record.provenance,
            freeze=True,
        )


def default_store() -> Store:
    """Return the store of this checkout (its ``results/``) and this user (the cache)."""
    root = checkout()
    return Store(frozen=root / "results" if root else None, cache=cache_root())


def read_record(path: str | Path) -> Record:
    """Read a record's JSON file; a broken one is an error that names it."""
    path = Path(path)
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise PoisonkitError(f"{path} has format {content['format']}; known: {FORMAT}")
        for name in ("config", "metrics", "provenance"):
            if not isinstance(content[name], dict):
                raise PoisonkitError(f"{path}: {name} is not an object")
        names = ("experiment", "version", "config", "metrics", "provenance", "digest")
        return Record(path=path, **{name: content[name] for name in names})
    except (*NOT_WHOLE, OSError) as error:
        raise PoisonkitError(f"{path} is not a whole record ({error})") from error


def _make_artefact(
    path: Path, spec: Json, compute: Callable[[Path], tuple[Json, dict[str, Tensor]]]
) -> None:
    scratch = path.with_suffix(".work")
    scratch.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    metrics, tensors = compute(scratch)
    if odd := _not_finite(metrics):
        raise PoisonkitError(f"{path.stem} of {path.parent.name}: {odd} is not a finite number")
    seconds = float(metrics.pop("seconds", time.perf_counter() - start))
    _write_tensors(path.with_suffix(".safetensors"), tensors)
    content = {"spec": spec, "metrics": metrics, "seconds": seconds, "origin": describe()}
    _write_json(path, content)
    shutil.rmtree(scratch, ignore_errors=True)


def _not_finite(value: object, name: str = "") -> str | None:
    """Return the path to the first NaN or infinity below a JSON value, which has neither."""
    if isinstance(value, float) and not math.isfinite(value):
        return name
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    entries = value.items() if isinstance(value, dict) else ()
    found = (_not_finite(entry, f"{name}.{key}".lstrip(".")) for key, entry in entries)
    return next((place for place in found if place), None)


def _read_artefact(path: Path) -> Artefact:
    try:
        content = json.loads(path.read_text())
        return Artefact(
            key=path.stem,
            metrics=content["metrics"],
            tensors=load_file(path.with_suffix(".safetensors")),
            seconds=content["seconds"],
            origin=content["origin"],
        )
    except (*NOT_WHOLE, FileNotFoundError, SafetensorError) as error:
        raise PoisonkitError(
            f"{path} and its tensors are damaged ({error}); remove {path} to compute them again"
        ) from error


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Let one process at a time pass; the lock falls when the process ends, however it ends."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another process that holds {lock}", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
    # On Windows another process that waits for it may have it open.
    with suppress(PermissionError):
        lock.unlink(missing_ok=True)


def _file_name(experiment: str, version: int, config: Json) -> str:
    return f"{experiment}-{config['profile']}-{key_of(experiment, version, config)}.json"


def _write_json(path: Path, content: Json) -> None:
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with whole_file(path) as partial:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, partial)
