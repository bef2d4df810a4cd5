"""MetaPoison's look ahead beside its parts, other exact formulas, and several surrogates at once.

    python benchmarks/metapoison.py [--device cuda] [--model resnet20] [--surrogates 24]

The images are random, of CIFAR-10's size; a tenth of them are poisons unless stated. Measured
are, on one device:

* an epoch of one surrogate with the look ahead at every batch, everything that it does
  included, beside the sum of its parts, each alone: the training steps, and for each batch K
  steps of gradient descent with their second derivatives and the target's loss;
* an epoch without poisons beside plain training steps;
* the look ahead by double backward, with torch's batch normalisation and with the package's,
  by recomputing each step on the way back, and by forward-over-reverse, with the largest
  difference relative to the largest value;
* the peak memory of a look ahead for several K, kept and recomputed, each in a process of its
  own;
* the look ahead of M surrogates one by one, and at once by ``torch.func.vmap`` over their
  weights.

What is compared alternates in one run; printed are medians.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import measure
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from poisonkit.attacks.batch_statistics import use_batch_statistics
from poisonkit.attacks.convolutions import use_asked_derivatives
from poisonkit.attacks.look_ahead import look_ahead
from poisonkit.attacks.meta_procedure import Procedure
from poisonkit.attacks.surrogates import Surrogates
from poisonkit.attacks.unrolled import (
    Parameters,
    descend,
    prepare,
    target_losses,
    target_slope,
)
from poisonkit.devices import choose_device, peak_memory_mib, repeatable_kernels
from poisonkit.images import ImageSet
from poisonkit.models import Classifier, create

Batches = list[tuple[Tensor, Tensor]]
Formula = Callable[[nn.Module, Parameters, Batches, Tensor, Tensor], Tensor]


class Setting:
    """Random images, a target, and networks of one kind."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        self.args, self.device = args, device
        count = args.batches * args.batch
        x = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        y = torch.randint(0, 10, (count,), generator=generator)
        names = tuple(str(label) for label in range(10))
        self.images = ImageSet(x=x.to(device), y=y.to(device), class_names=names, name="random")
        self.clean = self._laid_out(self.images.x.float() / 255)
        target = torch.rand((1, 3, 32, 32), generator=generator)
        self.target = self._laid_out(target.to(device))
        self.wanted = torch.tensor([3], device=device)

    def _laid_out(self, x: Tensor) -> Tensor:
        fast = self.device.type == "cpu"
        return x.contiguous(memory_format=torch.channels_last) if fast else x

    def network(self, seed: int = 0) -> Classifier:
        return create(self.args.model, like=self.images, seed=seed)

    def procedure(self, **options: object) -> Procedure:
        given = {"surrogates": 1, "batch_size": self.args.batch, "unroll": self.args.unroll}
        return Procedure(**{**given, **options})  # type: ignore[arg-type]

    def batches(self, steps: int) -> Batches:
        size = self.args.batch
        return [
            (self.clean[k * size : (k + 1) * size], self.images.y[k * size : (k + 1) * size])
            for k in range(steps)
        ]


def without_averages(network: nn.Module) -> nn.Module:
    """Let a network normalise by torch's own batch statistics, and write nothing."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
    return network


# An epoch and its parts -----------------------------------------------------------------------


def epoch_and_parts(setting: Setting, rounds: int) -> None:
    procedure = setting.procedure()
    surrogates = Surrogates(setting.network, procedure, 0)
    count = len(setting.images)
    chosen = torch.arange(0, count, 10, device=setting.device)
    images = setting.clean[chosen]

    def epoch(rows: Tensor) -> Callable[[], object]:
        place = torch.full((count,), -1, device=setting.device)
        place[rows] = torch.arange(len(rows), device=setting.device)
        own, y = setting.clean[rows], setting.images.y
        return lambda: look_ahead(
            own,
            surrogates,
            setting.clean,
            y,
            place,
            setting.target,
            setting.wanted,
            procedure,
            orders=surrogates.orders(count),
            batches=range(-(-count // procedure.batch_size)),
        )

    network, theta = prepared(setting)
    batches = setting.batches(procedure.unroll + 1)
    every = setting.batches(setting.args.batches)
    few = min(len(images), setting.args.batch // 10)

    def train() -> None:
        for x, y in every:
            descend(network, theta, x, y, rate=0.0)

    def one_step() -> None:
        """Take a step of gradient descent, and its second derivative by weights and images."""
        x, y = batches[0]
        own = x[:few].clone().requires_grad_()
        leaves = {name: value.detach().requires_grad_() for name, value in theta.items()}
        x = torch.cat([own, x[few:], setting.target])
        inner = F.cross_entropy(functional_call(network, leaves, (x,))[: len(y)], y)
        slopes = torch.autograd.grad(inner, list(leaves.values()), create_graph=True)
        torch.autograd.grad(slopes, [own, *leaves.values()], [s.detach() for s in slopes])

    def end() -> None:
        x, _ = batches[-1]
        leaves = {name: value.detach().requires_grad_() for name, value in theta.items()}
        logits = functional_call(network, leaves, (torch.cat([x, setting.target]),))[len(x) :]
        torch.autograd.grad(F.cross_entropy(logits, setting.wanted), list(leaves.values()))

    none = torch.empty(0, dtype=torch.int64, device=setting.device)
    taken = measure(
        {
            "epoch": epoch(chosen),
            "without": epoch(none),
            "train": train,
            "step": one_step,
            "end": end,
        },
        rounds=rounds,
        device=setting.device,
    )
    parts = taken["train"] + setting.args.batches * (
        procedure.unroll * taken["step"] + taken["end"]
    )
    each = 1000 / setting.args.batches
    print(f"an epoch of one surrogate, {setting.args.batches} batches, K = {procedure.unroll}:")
    print(f"  training step           {each * taken['train']:9.2f} ms")
    print(f"  unrolled step           {1000 * taken['step']:9.2f} ms")
    print(f"  target's loss           {1000 * taken['end']:9.2f} ms")
    print(f"  batch, look ahead       {each * taken['epoch']:9.2f} ms")
    print(f"  over the sum of parts   {taken['epoch'] / parts:9.2f}       (goal: at most 1.3)")
    ratio = taken["without"] / taken["train"]
    print(
        f"  batch without poisons   {each * taken['without']:9.2f} ms, {ratio:.2f} training steps"
    )


def prepared(setting: Setting) -> tuple[nn.Module, Parameters]:
    network = setting.network()
    theta = {name: value.detach().clone() for name, value in network.named_parameters()}
    prepare(network)
    return network, theta


# Formulas -------------------------------------------------------------------------------------


def by_double_backward(
    network: nn.Module, theta: Parameters, batches: Batches, target: Tensor, wanted: Tensor
) -> Tensor:
    (x, y), *later = batches
    x = x.detach().requires_grad_()
    losses = target_losses(network, theta, [(x, y), *later], target, wanted, rate=0.1)
    return torch.autograd.grad(losses[-1], x)[0]


def by_recomputing(
    network: nn.Module, theta: Parameters, batches: Batches, target: Tensor, wanted: Tensor
) -> Tensor:
    weights = [0.0] * (len(batches) - 1) + [1.0]
    return target_slope(network, theta, batches, target, wanted, rate=0.1, weights=weights)[1]


def by_forward_over_reverse(
    network: nn.Module, theta: Parameters, batches: Batches, target: Tensor, wanted: Tensor
) -> Tensor:
    """Go back through the steps by products of the second derivative with one direction."""

    def inner(weights: Parameters, x: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(network, weights, (torch.cat([x, target]),))
        return F.cross_entropy(logits[: len(x)], y)

    def outer(weights: Parameters, x: Tensor) -> Tensor:
        logits = functional_call(network, weights, (torch.cat([x, target]),))
        return F.cross_entropy(logits[len(x) :], wanted)

    path = [{name: value.detach() for name, value in theta.items()}]
    for x, y in batches[:-1]:
        slopes = grad(inner)(path[-1], x, y)
        path.append({name: value - 0.1 * slopes[name] for name, value in path[-1].items()})
    flow = grad(outer)(path.pop(), batches[-1][0])
    for number in reversed(range(len(batches) - 1)):
        x, y = batches[number]
        which = 1 if number == 0 else 0

        def slope(weights: Parameters, x: Tensor = x, y: Tensor = y, which: int = which) -> object:
            return grad(inner, argnums=which)(weights, x, y)

        _, moved = jvp(slope, (path.pop(),), (flow,))
        if number == 0:
            return -0.1 * moved
        flow = {name: value - 0.1 * moved[name] for name, value in flow.items()}
    raise AssertionError("there is at least one step")


def formulas(setting: Setting, rounds: int) -> None:
    _, theta = prepared(setting)
    plain = without_averages(setting.network())
    network, asked = setting.network(), setting.network()
    for own in (network, asked):
        use_batch_statistics(own)
    use_asked_derivatives(asked)
    for steps in sorted({1, setting.args.unroll}):
        batches = setting.batches(steps + 1)
        found: dict[str, Tensor] = {}

        def once(
            name: str,
            way: Formula,
            own: nn.Module,
            batches: Batches = batches,
            found: dict[str, Tensor] = found,
        ) -> Callable[[], None]:
            def work() -> None:
                found[name] = way(own, theta, batches, setting.target, setting.wanted)

            return work

        ways = {
            name: once(name, way, own)
            for name, way, own in (
                ("double backward", by_double_backward, network),
                ("double backward, torch's normalisation", by_double_backward, plain),
                ("double backward, only what is asked for", by_double_backward, asked),
                ("steps recomputed", by_recomputing, network),
                ("forward over reverse, torch's normalisation", by_forward_over_reverse, plain),
            )
        }
        taken = measure(ways, rounds=rounds, device=setting.device)
        expected = found["double backward"]
        print(f"look ahead, K = {steps}: time, relative difference")
        for name, spent in taken.items():
            apart = float((found[name] - expected).abs().max() / expected.abs().max())
            print(f"  {name:45s} {1000 * spent:9.1f} ms {apart:9.1e}")


# Memory ---------------------------------------------------------------------------------------


def peak(setting: Setting, way: str, steps: int) -> None:
    network, theta = prepared(setting)
    chosen = {"kept": by_double_backward, "recomputed": by_recomputing}
    if way in chosen:
        batches = setting.batches(steps + 1)
        chosen[way](network, theta, batches, setting.target, setting.wanted)
    print(peak_memory_mib(setting.device))


def memory(args: argparse.Namespace) -> None:
    def asked(way: str, steps: int) -> float:
        command = [sys.executable, str(Path(__file__)), "--peak", way, "--unroll", str(steps)]
        for name in ("device", "model", "batch", "batches"):
            command += [f"--{name}", str(getattr(args, name))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout.split()[-1])

    base = asked("none", 1)
    print("peak memory above that of the images and networks:")
    for way in ("kept", "recomputed"):
        found = [f"K = {steps}: {asked(way, steps) - base:.0f} MiB" for steps in (1, 2, 4, 8)]
        print(f"  {way:12s} {', '.join(found)}")


# Several surrogates ---------------------------------------------------------------------------


def several(setting: Setting, rounds: int) -> None:
    count, steps = setting.args.surrogates, setting.args.unroll
    plain = without_averages(setting.network())
    network, _ = prepared(setting)
    each = [dict(setting.network(seed).named_parameters()) for seed in range(count)]
    each = [{name: value.detach() for name, value in theta.items()} for theta in each]
    stacked = {name: torch.stack([theta[name] for theta in each]) for name in each[0]}
    # On CUDA, torch's vmap refuses to normalise what lies in memory channels-last.
    batches = [(x.contiguous(), y) for x, y in setting.batches(steps + 1)]
    later = batches[1:]
    y = batches[0][1]

    def loss(x: Tensor, theta: Parameters) -> Tensor:
        for number in range(steps):

            def inner(weights: Parameters, number: int = number) -> Tensor:
                own, labels = (x, y) if number == 0 else batches[number]
                logits = functional_call(plain, weights, (torch.cat([own, setting.target]),))
                return F.cross_entropy(logits[: len(own)], labels)

            slopes = grad(inner)(theta)
            theta = {name: value - 0.1 * slopes[name] for name, value in theta.items()}
        own = later[-1][0]
        logits = functional_call(plain, theta, (torch.cat([own, setting.target]),))
        return F.cross_entropy(logits[len(own) :], setting.wanted)

    found: dict[str, Tensor] = {}

    def one_by_one() -> None:
        found["one by one"] = torch.stack(
            [
                by_double_backward(network, theta, batches, setting.target, setting.wanted)
                for theta in each
            ]
        )

    def at_once() -> None:
        found["at once"] = vmap(grad(loss), in_dims=(None, 0))(batches[0][0], stacked)

    ways: dict[str, Callable[[], object]] = {"one by one": one_by_one, "at once": at_once}
    taken = measure(ways, rounds=rounds, device=setting.device)
    one, together = found["one by one"], found["at once"]
    apart = float((one - together).abs().max() / one.abs().max())
    ratio = taken["one by one"] / taken["at once"]
    print(f"{count} surrogates, one batch each, K = {steps}:")
    print(f"  one by one    {1000 * taken['one by one']:9.1f} ms")
    print(f"  at once       {1000 * taken['at once']:9.1f} ms, {ratio:.2f} times faster")
    print(f"  relative difference {apart:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="five_block_cnn")
    parser.add_argument("--batch", type=int, default=125)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--unroll", type=int, default=2, help="K")
    parser.add_argument("--surrogates", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = choose_device(args.device)
    setting = Setting(args, device)
    if args.peak:
        peak(setting, args.peak, args.unroll)
        return
    print(f"{args.model}, {args.batch} images a batch, {device}, {torch.get_num_threads()} threads")
    if not args.no_memory:
        memory(args)
    with repeatable_kernels():
        epoch_and_parts(setting, args.rounds)
        formulas(setting, args.rounds)
        several(setting, args.rounds)


if __name__ == "__main__":
    main()
