"""A step of Deep Confuse beside its parts, other exact formulas and a plain implementation.

    python benchmarks/deep_confuse.py [--device cuda]

The networks are the paper's for MNIST, the images random. Measured are, on one device:

* a bilevel step of the package's learner, everything that a trial does included, beside
  the sum of its parts, each alone: the meta-gradient, the generator's forward and backward
  pass and step of Adam, the frozen generator's forward pass and the surrogate's step;
* the meta-gradient by double backward, as the package has it, beside reverse-over-forward
  and forward-over-reverse, each by ``torch.func`` and by ``torch.autograd.forward_ad``, with
  torch's batch normalisation, one written out, and the package's own, and with the largest
  difference relative to the largest value. The tangent of torch's own batch
  normalisation cannot be differentiated by the images (it takes their mean and variance for
  constants), so reverse-over-forward is wrong with it and right with one written out;
* a trial beside a plain implementation: a new module for each batch's pseudo-update, its
  outer loss differentiated by every parameter there is, batches from a ``DataLoader``;
* on CUDA, a trial of steps recorded as graphs beside one without, and how far apart the
  two generators are after the same steps; and beside one recorded in TF32.

What is compared alternates in one run; printed are medians.
"""

import argparse
import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from timing import measure
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp
from torch.utils.data import DataLoader, TensorDataset

from poisonkit.attacks.batch_statistics import use_batch_statistics
from poisonkit.attacks.convolutions import use_asked_derivatives
from poisonkit.attacks.deep_confuse import Learner, Procedure, add_noise
from poisonkit.attacks.unrolled import Parameters, descend, meta_gradient, prepare
from poisonkit.devices import choose_device, repeatable_kernels
from poisonkit.images import ImageSet
from poisonkit.models import create
from poisonkit.models.generators import NoiseGenerator, create_generator
from poisonkit.training import Recipe, Sampler

EPSILON = 0.3
RATE = Procedure().surrogate_rate
Formula = Callable[[nn.Module, Parameters, Tensor, Tensor, Tensor], Tensor]


def repeated(work: Callable[[], object], count: int) -> Callable[[], None]:
    def all_of_them() -> None:
        for _ in range(count):
            work()

    return all_of_them


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The sizes that were asked for, and what is made from them."""

    images: ImageSet
    batch: int
    width: int
    generator_width: int
    steps: int
    rounds: int

    @property
    def device(self) -> torch.device:
        return self.images.device

    def surrogate(self, name: str = "two_layer_cnn_bn", seed: int = 0) -> nn.Module:
        return create(
            name, like=self.images, seed=seed, standardise="none", width=self.width
        ).train()

    def generator(self) -> NoiseGenerator:
        return create_generator(
            "autoencoder",
            like=self.images,
            epsilon=EPSILON,
            seed=1,
            width=self.generator_width,
        )

    def learner(self, *, recorded: bool = True) -> Learner:
        procedure = Procedure(batch_size=self.batch)
        learner = Learner(self.generator(), self.surrogate(), procedure)
        if not recorded:
            learner._both = learner._one_of_both  # type: ignore[assignment]
        return learner

    def first_batch(self) -> tuple[Tensor, Tensor]:
        recipe = Recipe(batch_size=self.batch, crop_padding=0, flip=False)
        return next(Sampler(self.images, recipe, seed=0).epoch(0))

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Those of a trial of number 0."""
        recipe = Recipe(batch_size=self.batch, crop_padding=0, flip=False)
        return list(Sampler(self.images, recipe, seed=0).epoch(0))


# A step and its parts -------------------------------------------------------------------------


def step_and_parts(setting: Setting) -> None:
    learner, fresh = setting.learner(recorded=False), setting.surrogate(seed=1)
    x, y = setting.first_batch()
    surrogate, generator, frozen = setting.surrogate(), setting.generator(), setting.generator()
    prepare(surrogate)
    frozen.eval().requires_grad_(False)
    theta = {name: p.detach().clone() for name, p in surrogate.named_parameters()}
    with torch.no_grad():
        noisy = add_noise(x, frozen(x))
    arriving = torch.randn_like(x)
    parameters = list(generator.parameters())
    optimizer = torch.optim.Adam(
        parameters, lr=Procedure().generator_rate, capturable=setting.device.type == "cuda"
    )

    def step_of_the_generator() -> None:
        slopes = torch.autograd.grad(add_noise(x, generator(x)), parameters, arriving)
        for parameter, slope in zip(parameters, slopes, strict=True):
            parameter.grad = slope
        optimizer.step()

    def step_of_the_surrogate() -> None:
        with torch.no_grad():
            followed = add_noise(x, frozen(x))
        descend(surrogate, theta, followed, y, rate=RATE)

    parts = {
        "meta-gradient": lambda: meta_gradient(surrogate, theta, noisy, y, x, y, rate=RATE),
        "generator's step": step_of_the_generator,
        "surrogate's step": step_of_the_surrogate,
    }
    ways: dict[str, Callable[[], object]] = {
        name: repeated(part, setting.steps) for name, part in parts.items()
    }
    whole = "bilevel step"
    ways[whole] = lambda: learner.trial(fresh, setting.images, seed=0, number=0)
    medians = measure(ways, rounds=setting.rounds, device=setting.device)
    for name, spent in medians.items():
        print(f"{name:30}{1e3 * spent / setting.steps:10.2f} ms")
    ratio = medians[whole] / sum(medians[name] for name in parts)
    print(f"step over sum of parts        {ratio:10.2f}      (goal: at most 1.3)")


# The meta-gradient by other formulas ----------------------------------------------------------


def inner_loss(model: nn.Module, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(functional_call(model, theta, (x,)), y)


def outer_slopes(
    model: nn.Module, theta: Parameters, noisy: Tensor, y: Tensor, clean: Tensor
) -> Parameters:
    """Return the slopes of the outer loss by the weights after the pseudo-update.

    The gradient by the images is ``-rate`` times the mixed second derivative of the inner
    loss along them.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in theta.items()}
    slopes = torch.autograd.grad(inner_loss(model, leaves, noisy, y), list(leaves.values()))
    moved = {
        name: (value.detach() - RATE * slope).requires_grad_()
        for (name, value), slope in zip(leaves.items(), slopes, strict=True)
    }
    outer = torch.autograd.grad(inner_loss(model, moved, clean, y), list(moved.values()))
    return dict(zip(moved, outer, strict=True))


def double_backward(
    model: nn.Module, theta: Parameters, noisy: Tensor, y: Tensor, clean: Tensor
) -> Tensor:
    return meta_gradient(model, theta, noisy, y, clean, y, rate=RATE)[1]


def reverse_over_forward_func(
    model: nn.Module, theta: Parameters, noisy: Tensor, y: Tensor, clean: Tensor
) -> Tensor:
    along = outer_slopes(model, theta, noisy, y, clean)
    images = noisy.detach().requires_grad_()
    slope = jvp(lambda weights: inner_loss(model, weights, images, y), (theta,), (along,))[1]
    return -RATE * torch.autograd.grad(slope, images)[0]


def reverse_over_forward_dual(
    model: nn.Module, theta: Parameters, noisy: Tensor, y: Tensor, clean: Tensor
) -> Tensor:
    along = outer_slopes(model, theta, noisy, y, clean)
    images = noisy.detach().requires_grad_()
    with forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(value, along[name]) for name, value in theta.items()}
        logits = functional_call(model, duals, (images,))
        # Not F.cross_entropy, whose tangent writes over what its gradient needs.
        loss = (logits.exp().sum(1).log() - logits.gather(1, y[:, None])[:, 0]).mean()
        slope = forward_ad.unpack_dual(loss).tangent
        assert slope is not None
        return -RATE * torch.autograd.grad(slope, images)[0]


def forward_over_reverse_func(
    model: nn.Module, theta: Parameters, noisy: Tensor, y: Tensor, clean: Tensor
) -> Tensor:
    along = outer_slopes(model, theta, noisy, y, clean)

    def by_images(weights: Parameters) -> Tensor:
        return grad(lambda images: inner_loss(model, weights, images, y))(noisy)

    return -RATE * jvp(by_images, (theta,), (along,))[1]


def forward_over_reverse_dual(
    model: nn.Module, theta: Parameters, noisy: Tensor, y: Tensor, clean: Tensor
) -> Tensor:
    along = outer_slopes(model, theta, noisy, y, clean)
    images = noisy.detach().requires_grad_()
    with forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(value, along[name]) for name, value in theta.items()}
        (slope,) = torch.autograd.grad(inner_loss(model, duals, images, y), images)
        found = forward_ad.unpack_dual(slope).tangent
        assert found is not None
        return -RATE * found


FORMULAS: dict[str, Formula] = {
    "double backward": double_backward,
    "reverse over forward, func": reverse_over_forward_func,
    "reverse over forward, dual": reverse_over_forward_dual,
    "forward over reverse, func": forward_over_reverse_func,
    "forward over reverse, dual": forward_over_reverse_dual,
}


class WrittenOut(nn.Module):
    """Batch normalisation by the batch's own mean and variance, in elementary operations."""

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        over = [0, *range(2, x.ndim)]
        centred = x - x.mean(over, keepdim=True)
        unit = centred * (centred.square().mean(over, keepdim=True) + self.eps).rsqrt()
        shape = (-1, *(1 for _ in over[1:]))
        return unit * self.weight.view(shape) + self.bias.view(shape)


def written_out(network: nn.Module) -> nn.Module:
    """Return a copy of a network whose normalisations are :class:`WrittenOut`."""
    network = copy.deepcopy(network)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            network.set_submodule(name, WrittenOut(module))
    return network


def without_averages(network: nn.Module) -> nn.Module:
    """Return a copy of a network whose normalisations are torch's, and write nothing."""
    network = copy.deepcopy(network).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.track_running_stats = False
    return network


def formulas(setting: Setting, name: str) -> None:
    surrogate = setting.surrogate(name)
    networks = {"": without_averages(surrogate)}
    ways_of = dict.fromkeys(networks, FORMULAS)
    if any(isinstance(module, nn.BatchNorm2d) for module in surrogate.modules()):
        networks[", BN written out"] = written_out(surrogate)
        ways_of[", BN written out"] = FORMULAS
        networks[", BN in closed form"] = surrogate
        ways_of[", BN in closed form"] = {"double backward": double_backward}
    use_batch_statistics(surrogate)
    asked = copy.deepcopy(surrogate)
    use_asked_derivatives(asked)
    networks[", as asked"], ways_of[", as asked"] = asked, {"double backward": double_backward}
    theta = {name: p.detach().clone() for name, p in surrogate.named_parameters()}
    x, y = setting.first_batch()
    with torch.no_grad():
        noisy = add_noise(x, EPSILON * torch.randn_like(x).sign())
    expected = double_backward(surrogate, theta, noisy, y, x)
    found: dict[str, Tensor] = {}

    def once(called: str, formula: Formula, network: nn.Module) -> Callable[[], None]:
        def keep() -> None:
            found[called] = formula(network, theta, noisy, y, x)

        return keep

    ways = {
        f"{called}{how}": repeated(once(f"{called}{how}", formula, network), setting.steps)
        for how, network in networks.items()
        for called, formula in ways_of[how].items()
    }
    medians = measure(ways, rounds=setting.rounds, device=setting.device)
    for called, spent in medians.items():
        apart = float((found[called] - expected).abs().max() / expected.abs().max())
        print(f"{called:46}{1e3 * spent / setting.steps:10.2f} ms {apart:10.1e}")


# A plain implementation -----------------------------------------------------------------------


def replaced(template: nn.Module, parameters: Mapping[str, Tensor]) -> nn.Module:
    """Return a new module whose parameters are tensors that a gradient can flow through."""
    module = copy.deepcopy(template)
    for name, value in parameters.items():
        owner, _, last = name.rpartition(".")
        part = module.get_submodule(owner)
        del part._parameters[last]
        setattr(part, last, value)
    return module


def plain_trial(
    generator: NoiseGenerator,
    optimizer: torch.optim.Optimizer,
    surrogate: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
) -> None:
    """Take Algorithm 2's steps as one would write them down."""
    frozen = copy.deepcopy(generator).eval()
    surrogate.train()
    sgd = torch.optim.SGD(surrogate.parameters(), lr=RATE)
    device = next(surrogate.parameters()).device
    generator.train()
    for x, y in batches:
        x, y = x.to(device), y.to(device)
        weights = dict(surrogate.named_parameters())
        inner = F.cross_entropy(surrogate((x + generator(x)).clamp(0, 1)), y)
        slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
        updated = {
            name: weight - RATE * slope
            for (name, weight), slope in zip(weights.items(), slopes, strict=True)
        }
        optimizer.zero_grad()
        (-F.cross_entropy(replaced(surrogate, updated)(x), y)).backward()
        optimizer.step()
        with torch.no_grad():
            noisy = (x + frozen(x)).clamp(0, 1)
        sgd.zero_grad()
        F.cross_entropy(surrogate(noisy), y).backward()
        sgd.step()


def apart(setting: Setting, one: NoiseGenerator, other: NoiseGenerator) -> tuple[float, float]:
    """Return the largest differences of noise, relative to its bound, and of kernels.

    Biases are left out: where normalisation cancels one, its slope is rounding, which Adam
    makes whole steps of.
    """
    x, _ = setting.first_batch()
    with torch.no_grad():
        # In training mode, by copies: the running averages hold those biases, too.
        first, second = (copy.deepcopy(g).train()(x) for g in (one, other))
        pairs = list(zip(one.parameters(), other.parameters(), strict=True))
        kernels = max(float((a - b).abs().max()) for a, b in pairs if a.ndim > 1)
    return float((first - second).abs().max()) / EPSILON, kernels


def plain_beside_package(setting: Setting) -> None:
    batches = setting.batches()

    def plain() -> tuple[NoiseGenerator, torch.optim.Optimizer]:
        generator = setting.generator()
        return generator, torch.optim.Adam(generator.parameters(), lr=Procedure().generator_rate)

    # The same batches, once, to see that both do the same.
    learner = setting.learner(recorded=False)
    learner.trial(setting.surrogate(seed=1), setting.images, seed=0, number=0)
    generator, optimizer = plain()
    plain_trial(generator, optimizer, setting.surrogate(seed=1), batches)
    noise, kernels = apart(setting, learner.generator, generator)

    learner, fresh = setting.learner(), setting.surrogate(seed=1)
    generator, optimizer = plain()
    floats = setting.images.x.cpu().float() / 255
    loader = DataLoader(
        TensorDataset(floats, setting.images.y.cpu()), batch_size=setting.batch, shuffle=True
    )
    trials: dict[str, Callable[[], object]] = {
        "package": lambda: learner.trial(fresh, setting.images, seed=0, number=0),
        "plain": lambda: plain_trial(generator, optimizer, copy.deepcopy(fresh), loader),
    }
    medians = measure(trials, rounds=setting.rounds, device=setting.device)
    for name, spent in medians.items():
        print(f"{name:30}{1e3 * spent / setting.steps:10.2f} ms a step")
    print(f"ratio                         {medians['plain'] / medians['package']:10.2f}")
    print(f"noise apart                   {noise:10.1e} of epsilon, after {setting.steps} steps")
    print(f"kernels apart                 {kernels:10.1e}")


# Graphs ---------------------------------------------------------------------------------------


def replay_beside_eager(setting: Setting) -> None:
    learners = {
        "graph": setting.learner(),
        "eager": setting.learner(recorded=False),
    }
    fresh = setting.surrogate(seed=1)

    def trial(learner: Learner) -> Callable[[], object]:
        return lambda: learner.trial(fresh, setting.images, seed=0, number=0)

    ways = {name: trial(learner) for name, learner in learners.items()}
    shorter = trial(setting.learner())

    def in_tf32() -> None:
        with repeatable_kernels(tf32=True):
            shorter()

    ways["graph, TF32"] = in_tf32
    # The first round, which is not counted, warms up and records; both take as many steps.
    medians = measure(ways, rounds=setting.rounds, device=setting.device)
    for name, spent in medians.items():
        print(f"{name:30}{1e3 * spent / setting.steps:10.3f} ms a step")
    noise, kernels = apart(setting, learners["graph"].generator, learners["eager"].generator)
    ratio = medians["eager"] / medians["graph"]
    print(f"ratio                         {ratio:10.2f}      (goal: at least 4)")
    total = setting.steps * (setting.rounds + 1)
    print(f"noise apart                   {noise:10.1e} of epsilon, after {total} steps")
    print(f"kernels apart                 {kernels:10.1e}")
    faster = medians["graph"] / medians["graph, TF32"]
    print(f"TF32                          {faster:10.2f} times faster")


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=28, help="side of the images in pixels")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--width", type=int, default=20, help="of the classifier")
    parser.add_argument("--generator-width", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5, help="that are timed together")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    device = choose_device(arguments.device)

    numbers = torch.Generator().manual_seed(0)
    count, side = arguments.batch * arguments.steps, arguments.size
    shape = (count, arguments.channels, side, side)
    images = ImageSet(
        x=torch.randint(0, 256, shape, generator=numbers, dtype=torch.uint8),
        y=torch.randint(0, 10, (count,), generator=numbers),
        class_names=tuple("0123456789"),
        name="noise",
    ).to(device)
    setting = Setting(
        images=images,
        batch=arguments.batch,
        width=arguments.width,
        generator_width=arguments.generator_width,
        steps=arguments.steps,
        rounds=arguments.rounds,
    )
    print(f"{arguments.batch} x {list(shape[1:])}, {device}, {torch.get_num_threads()} threads")
    with repeatable_kernels():
        print("\nOne step")
        step_and_parts(setting)
        for name in ("two_layer_cnn", "two_layer_cnn_bn"):
            print(f"\nMeta-gradient, {name}: time, relative difference")
            formulas(setting, name)
        print("\nA trial")
        plain_beside_package(setting)
        print("\nGraphs")
        if device.type == "cuda":
            replay_beside_eager(setting)
        else:
            print("are for CUDA only")


if __name__ == "__main__":
    main()
