"""The classifier as a torch module: the engine's numbers, true gradients, bounded memory, and what is refused."""

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastdc
from fastdc import BackendError, DiffusionClassifier, InputError
from fastdc.backends import NetworkOptions, TorchNetwork
from fastdc.data import digits_test
from fastdc.diffusion import LOSSES, DiscreteSchedule, FlowSchedule, kernels, make_plan
from fastdc.inference import plan_config, streams_of, to_model_range
from fastdc.support import Float64
from fastdc.testing import reference
from helpers.worlds import SHAPE, classifier, fails_with, gaussian, unit_images

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from fastdc.robust import LikelihoodMaximization, ReleasedMaximization, as_module, maximize_likelihood
from fastdc.robust.likelihood import maximize_tensor
from helpers.torch_worlds import Counting, GaussianDenoiser, gaussian_on_torch, on_torch, tiny_mlp, tiny_model


def tensor(images: Any, *, grad: bool = False) -> "torch.Tensor":
    return torch.from_numpy(np.array(images)).requires_grad_(grad)


def tiny(**options: Any) -> DiffusionClassifier:
    return on_torch(tiny_model(**options), tiny_mlp())


def mean_errors(clf: DiffusionClassifier, images: Any, **options: Any) -> Float64:
    """The engine's mean errors, float64 (n, K)."""
    return np.asarray(clf.errors(images, **options).errors.astype(np.float64).mean(axis=2))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("kind", "schedule"),
    [
        ("edm", None),
        ("sample", None),
        ("epsilon", DiscreteSchedule()),
        ("v_prediction", DiscreteSchedule(beta_schedule="squaredcos_cap_v2")),
        ("flow", FlowSchedule()),
    ],
)
def test_logits_of_every_parameterisation_are_the_engines_errors(kind: str, schedule: Any, loss: str) -> None:
    options = {} if schedule is None else {"schedule": schedule}
    clf = tiny(kind=kind, **options)
    images = unit_images(4)
    logits = as_module(clf, loss=loss, draws=7, seed=3)(tensor(images))
    want = -mean_errors(clf, images, loss=loss, draws=7, seed=3) / 0.5
    # The batch may change some ten float32 roundings of the network, and these some five of the residual.
    np.testing.assert_allclose(logits, want, rtol=2e-6, atol=2e-6 * np.abs(want).max())


@given(
    n=st.integers(1, 5),
    draws=st.integers(1, 9),
    chunk=st.integers(1, 40),
    seed=st.integers(0, 2**64 - 1),
    stream=st.none() | st.integers(0, 2**56 - 1),
    antithetic=st.booleans(),
    loss=st.sampled_from(LOSSES),
    method=st.sampled_from(["dc", "epndc"]),
)
def test_logits_are_the_engines_to_the_bit(
    n: int, draws: int, chunk: int, seed: int, stream: int | None, antithetic: bool, loss: str, method: str
) -> None:
    """For any batch, with a network whose output for a cell does not depend on the batch."""
    _, clf = gaussian_on_torch(batch=16)
    images = unit_images(n)
    antithetic = antithetic and draws > 1  # one draw is no pair
    plan: Any = {"draws": draws, "antithetic": antithetic, "loss": loss, "method": method}
    if method == "epndc":
        plan |= {"sigma": 0.1}
    logits = as_module(clf, seed=seed, stream=stream, chunk=chunk, **plan)(tensor(images))
    streams = None if stream is None else [stream] * n
    want = -mean_errors(clf, images, seed=seed, streams=streams, **plan)
    np.testing.assert_array_equal(logits, want.astype(np.float32))


def test_the_shipped_model_gives_the_probabilities_of_the_full_run() -> None:
    clf = fastdc.load("digits-mlp", backend="torch")
    images = digits_test().images[:12]
    logits = as_module(clf)(tensor(images / np.float32(255)))
    result = clf.classify(images, rule="full")
    np.testing.assert_array_equal(logits.argmax(1), result.labels)
    np.testing.assert_allclose(logits.softmax(1), result.probabilities, atol=2e-5)


def float64_logits(clf: DiffusionClassifier, network: Any, unit: Float64, *, streams: Any, **plan: Any) -> Float64:
    """Logits from plain loops and the reference's formulas, in float64 with a float64 network."""
    model = clf.model
    made = make_plan(model.schedule, model.parameterization, plan_config(model, plan))  # type: ignore[arg-type]
    low, high = model.value_range
    logits = np.zeros((len(unit), model.num_classes))
    for i, image in enumerate(unit * (high - low) + low):
        for j, row in enumerate(made.rows.astype(np.float64)):
            e = reference.normal(0, int(streams[i]), j, image.size)
            u = torch.from_numpy(reference.noisy_image(image.ravel(), row, e)).reshape(1, *image.shape)
            for k in range(model.num_classes):
                output = network(u, torch.tensor(row[7:]), torch.tensor([k])).detach().numpy().ravel()
                r = reference.residual(output, image.ravel(), row, e)
                logits[i, k] -= row[6] * reference.rho(r, made.config.loss).mean() / made.draws
    return logits / model.defaults.temperature


@pytest.mark.parametrize(("loss", "value_range"), [("l2", (-1.0, 1.0)), ("huber", (0.0, 1.0))])
def test_gradients_are_those_of_central_differences_in_float64(loss: str, value_range: tuple[float, float]) -> None:
    clf = tiny(value_range=value_range)
    exact = tiny_mlp().double().eval()
    images = unit_images(2, seed=4)
    streams = [9, 9]  # fixed: the default, the hash of the image, changes along with it
    module = as_module(clf, loss=loss, draws=3, stream=9)
    slope = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    x = tensor(images, grad=True)
    module(x).backward(torch.from_numpy(slope))
    assert x.grad is not None
    for seed in range(4):
        direction = np.random.default_rng(seed).standard_normal(images.shape)
        step = 1e-5 * direction
        ends = [
            float64_logits(clf, exact, images + side * step, streams=streams, loss=loss, draws=3) for side in (-1, 1)
        ]
        want = (slope * (ends[1] - ends[0]) / 2e-5).sum()
        scale = float(np.abs(x.grad.numpy() * direction).sum())
        assert abs((x.grad.numpy() * direction).sum() - want) < 1e-5 * scale


def test_pixels_outside_the_range_are_computed_as_they_are() -> None:
    """Attacks with momentum, and those without clipping, ask there."""
    clf, exact = tiny(), tiny_mlp().double().eval()
    images = np.random.default_rng(3).uniform(-0.4, 1.4, (3, *SHAPE)).astype(np.float32)
    x = tensor(images, grad=True)
    logits = as_module(clf, draws=3, stream=9)(x)
    want = float64_logits(clf, exact, images.astype(np.float64), streams=[9] * 3, draws=3)
    np.testing.assert_allclose(logits.detach().numpy(), want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    logits.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert x.grad.any()


def test_no_images_have_no_logits() -> None:
    x = torch.zeros((0, *SHAPE), requires_grad=True)
    logits = as_module(tiny())(x)
    assert logits.shape == (0, 3)
    logits.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_gradients_are_the_gaussian_worlds() -> None:
    """r = (s^2 sigma e + sigma^2 (mu - x)) / (s^2 + sigma^2) has the slope -sigma^2 / (s^2 + sigma^2) in x."""
    world, clf = gaussian_on_torch()
    images = unit_images(2)
    x = to_model_range(images, clf.model)
    options: Any = {"draws": 4, "weighting": "edm"}
    module = as_module(clf, **options)
    jacobian: Any = torch.autograd.functional.jacobian(module, tensor(images))  # type: ignore[no-untyped-call]
    plan = make_plan(clf.model.schedule, clf.model.parameterization, plan_config(clf.model, options))
    for i, stream in enumerate(streams_of(x).tolist()):
        for k, mean in enumerate(world.means):
            want = np.zeros(SHAPE)
            for j, sigma in enumerate(plan.levels.sigma):
                inside, variance = world.spread**2, sigma**2
                e = reference.normal(0, stream, j, 16).reshape(SHAPE)
                r = (inside * sigma * e + variance * (mean - x[i])) / (inside + variance)
                want += plan.rows[j, 6] * 2 * r * variance / (inside + variance) / 16 / plan.draws
            # logits are minus errors, and a [0, 1] pixel is half a model's: -(-want) * 2
            np.testing.assert_allclose(jacobian[i, k, i].numpy(), 2 * want, rtol=2e-4, atol=2e-6)
            assert not jacobian[i, k, 1 - i].any(), "the logits of an image must not depend on another image"


@contextmanager
def saved_bytes() -> Iterator[dict[str, int]]:
    """Bytes of the tensors that graphs hold for their backward pass (now and at most), and how often one was saved."""
    state = {"now": 0, "peak": 0, "saved": 0}

    class Held:
        def __init__(self, value: Any) -> None:
            self.value = value

    def release(size: int) -> None:
        state["now"] -= size

    def pack(value: Any) -> Held:
        held, size = Held(value), value.numel() * value.element_size()
        weakref.finalize(held, release, size)
        state["now"] += size
        state["saved"] += 1
        state["peak"] = max(state["peak"], state["now"])
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.value):
        yield state


def peak(clf: DiffusionClassifier, **options: Any) -> int:
    module = as_module(clf, **options)
    x = tensor(unit_images(2), grad=True)
    with saved_bytes() as state:
        module(x).square().sum().backward()
    return state["peak"]


def test_memory_does_not_grow_with_draws_or_classes() -> None:
    few = peak(tiny(), chunk=12, draws=4)  # a chunk of either run holds cells of one image
    assert few == peak(tiny(), chunk=12, draws=80)
    # The square that follows the module saves logits: 4 bytes per image and class, in and out.
    more = peak(on_torch(tiny_model(12), tiny_mlp(12)), chunk=12, draws=2)
    assert more <= few + 3 * 2 * 4 * (12 - 3)
    assert few > 4 * 12 * 12, "a chunk's graph must hold the hidden layers"
    assert peak(tiny(), chunk=120, draws=40) > 5 * few, "a larger chunk must hold more"


def test_without_gradient_no_graph_is_built() -> None:
    module = as_module(tiny())
    with saved_bytes() as state:
        logits = module(tensor(unit_images(3)))
    assert state["saved"] == 0
    assert logits.grad_fn is None
    assert all(not parameter.requires_grad for parameter in module.parameters())


def test_classes_without_slope_are_not_evaluated_again() -> None:
    network = Counting(tiny_mlp())
    module = as_module(on_torch(tiny_model(), network), draws=5, chunk=4)
    x = tensor(unit_images(2), grad=True)
    logits = module(x)
    assert sorted(network.calls.flat) == [k for k in range(3) for _ in range(2 * 5)]
    network.calls.labels.clear()
    (logits[0, 2] - logits[1, 0]).backward()
    assert sorted(network.calls.flat) == [0] * 5 + [2] * 5
    assert max(map(len, network.calls.labels)) == 4
    assert x.grad is not None
    assert x.grad.flatten(1).abs().sum(1).min() > 0
    network.calls.labels.clear()
    (module(x) * 0).sum().backward()
    assert len(network.calls.flat) == 2 * 3 * 5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_images_may_be_of_any_float_type(dtype: str) -> None:
    module = as_module(tiny(), draws=3)
    x = tensor(unit_images(2)).to(getattr(torch, dtype)).requires_grad_()
    logits = module(x)
    assert logits.dtype == x.dtype
    logits.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == x.dtype
    same = x.detach().float().requires_grad_()
    module(same).sum().backward()
    assert same.grad is not None
    tolerance = 1e-2 if dtype == "bfloat16" else 2e-3
    torch.testing.assert_close(logits.float(), module(same), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(x.grad.float(), same.grad, rtol=tolerance, atol=tolerance)


def test_training_mode_changes_nothing() -> None:
    module = as_module(tiny(), draws=3)
    images = tensor(unit_images(2))
    before = module(images)
    assert module.train() is module
    assert module.training
    assert torch.equal(module(images), before), "dropout must stay off"


def test_a_half_precision_network_is_near_and_its_gradient_too() -> None:
    gradients: list[torch.Tensor] = []
    for precision in ("float32", "bfloat16"):
        clf = on_torch(tiny_model(), tiny_mlp(), precision=precision)
        x = tensor(unit_images(2), grad=True)
        as_module(clf, draws=8)(x)[:, 0].sum().backward()
        assert x.grad is not None
        gradients.append(x.grad.flatten())
    assert torch.nn.functional.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.99


def test_a_module_in_float64_runs_its_network_there() -> None:
    x = tensor(unit_images(2), grad=True)
    single, double = as_module(tiny(), draws=3), as_module(tiny(), draws=3).double()
    torch.testing.assert_close(double(x), single(x), rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(module(x).sum(), x)[0] for module in (single, double)]
    assert not torch.equal(*gradients)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


def test_a_network_that_overflows_is_an_error() -> None:
    class Broken(GaussianDenoiser):
        def forward(self, *arguments: Any) -> "torch.Tensor":
            return super().forward(*arguments) / 0

    world = gaussian()
    module = as_module(on_torch(world.model, Broken(world)), draws=1)
    fails_with(lambda: module(tensor(unit_images(1))), "not finite", kind=BackendError)


@pytest.mark.cuda
@pytest.mark.skipif(
    not torch.cuda.is_available() or kernels.cuda_device_count() == 0, reason="no CUDA device, or built without CUDA"
)
@pytest.mark.parametrize("how", [None, "paper"])
def test_a_device_gives_the_same_logits_and_gradients(how: str | None) -> None:
    results = []
    for device in ("cpu", "cuda:0"):
        network = TorchNetwork(tiny_mlp(), SHAPE, NetworkOptions(device=device))
        module = as_module(DiffusionClassifier(tiny_model(), network), draws=4, likelihood_maximization=how)
        for place in ("cpu", device):
            x = tensor(unit_images(3)).to(place).requires_grad_()
            logits = module(x)
            logits[:, 1].sum().backward()
            assert x.grad is not None
            assert logits.device == x.grad.device == x.device
            results.append((logits.detach().cpu(), x.grad.cpu()))
    for logits, gradient in results[1:]:
        torch.testing.assert_close(logits, results[0][0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("images", "parts"),
    [
        (np.zeros((2, 1, 4, 5), np.float32), ["(2, 1, 4, 5)", "(n, 1, 4, 4)"]),
        (np.zeros(SHAPE, np.float32), ["(1, 4, 4)", "one image is images[None]"]),
        (np.zeros((0, 1, 4, 5), np.float32), ["(0, 1, 4, 5)", "(n, 1, 4, 4)"]),
        (np.full((1, *SHAPE), math.nan, np.float32), ["finite"]),
        (np.full((1, *SHAPE), -math.inf, np.float32), ["finite"]),
        (np.full((1, *SHAPE), 1e300), ["float32", "1e+300"]),
        (np.zeros((1, *SHAPE), np.uint8), ["floating-point", "uint8"]),
    ],
)
def test_unusable_images_are_refused(images: Any, parts: list[str]) -> None:
    module = as_module(tiny())
    fails_with(lambda: module(tensor(images)), *parts, kind=InputError)
    fails_with(lambda: module(images), "tensor", "ndarray", kind=InputError)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"seed": -1}, ["seed", "-1"]),
        ({"seed": True}, ["seed", "True"]),
        ({"stream": 2**56}, ["2^56"]),
        ({"temperature": 0}, ["temperature", "0"]),
        ({"temperature": math.nan}, ["temperature", "nan"]),
        ({"chunk": 0}, ["chunk", "0"]),
        ({"draws": 0}, ["draws", "0"]),
        ({"wieghting": "edm"}, ["wieghting"]),
        ({"likelihood_maximization": "exact"}, ["paper", "rdc", "exact"]),
        ({"likelihood_maximization": "rdc", "likelihood_gradient": "bpda"}, ["identity", "exact", "bpda"]),
        ({"method": "apndc", "sigma": 0.05}, ["apndc"]),
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any], parts: list[str]) -> None:
    clf = tiny()
    fails_with(lambda: as_module(clf, **options), *parts, kind=InputError)


def test_what_cannot_be_had_is_said() -> None:
    world = gaussian()
    fails_with(lambda: as_module(classifier(world)), "torch", kind=BackendError)
    without = on_torch(world.model, GaussianDenoiser(world))
    fails_with(lambda: as_module(without, likelihood_maximization="rdc"), "null class", kind=InputError)


@pytest.mark.parametrize("how", ["paper", "rdc", LikelihoodMaximization(steps=2, eta=0.2, seed=5)])
def test_likelihood_is_maximised_first_and_its_gradient_is_the_identity(how: Any) -> None:
    clf = tiny()
    images = unit_images(5)
    moved = maximize_likelihood(clf, images, method=how)
    assert np.abs(moved - images).max() > 0.01
    streams = streams_of(to_model_range(images, clf.model))
    x = tensor(images, grad=True)
    logits = as_module(clf, draws=4, chunk=3, likelihood_maximization=how)(x)
    want = -mean_errors(clf, moved, streams=streams, draws=4) / 0.5
    np.testing.assert_allclose(logits.detach(), want, rtol=1e-4)
    slope = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    logits.backward(slope)
    assert x.grad is not None
    for i, stream in enumerate(streams.tolist()):
        y = tensor(moved[i : i + 1], grad=True)
        as_module(clf, draws=4, stream=stream)(y).backward(slope[i : i + 1])
        torch.testing.assert_close(x.grad[i : i + 1], y.grad, rtol=1e-3, atol=1e-5)


class Attention(torch.nn.Module):
    """A denoiser with torch's fused attention over the rows of an image, or with the formula that it computes."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.fused, self.scale = fused, torch.nn.Parameter(torch.tensor(0.7))

    def forward(self, sample: Any, timestep: Any, class_labels: Any) -> Any:
        shift = (0.1 * class_labels)[:, None, None, None] * self.scale
        q, k, v = sample + shift, self.scale * sample, torch.tanh(sample) + shift
        if self.fused:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v


@pytest.mark.parametrize("how", ["paper", "rdc"])
def test_the_exact_gradient_goes_through_fused_attention(how: str) -> None:
    """Which has no second derivative in torch, as the shipped UNet's."""
    gradients = []
    for fused in (True, False):
        x = tensor(unit_images(2), grad=True)
        options: Any = {"likelihood_maximization": how, "likelihood_gradient": "exact", "stream": 3}
        as_module(on_torch(tiny_model(), Attention(fused=fused)), draws=2, **options)(x)[:, 1].sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("how", [ReleasedMaximization(), LikelihoodMaximization(gamma=0.02)])
def test_the_exact_gradient_goes_through_the_steps(how: Any) -> None:
    """Against the chain rule: the gradient at the moved image, times the Jacobian of the steps."""
    clf = tiny()
    images = unit_images(3)
    streams = torch.full((3,), 5)
    network: Any = clf.network
    unit = tensor(images, grad=True)
    moved = maximize_tensor(how, network.module, clf.model, unit, streams, differentiable=True)
    at_moved = moved.detach().requires_grad_()
    as_module(clf, draws=4, stream=5)(at_moved)[:, 1].sum().backward()
    moved.backward(at_moved.grad)  # type: ignore[no-untyped-call]
    gradients = {}
    for kind in ("identity", "exact"):
        x = tensor(images, grad=True)
        options: Any = {"likelihood_maximization": how, "likelihood_gradient": kind, "chunk": 2}
        as_module(clf, draws=4, stream=5, **options)(x)[:, 1].sum().backward()
        gradients[kind] = x.grad
    torch.testing.assert_close(gradients["exact"], unit.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(gradients["identity"], at_moved.grad, rtol=1e-3, atol=1e-4)
    assert unit.grad is not None
    assert at_moved.grad is not None
    assert (unit.grad - at_moved.grad).abs().max() > 0.01
