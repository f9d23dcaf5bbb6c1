"""The torch backend on the CPU: modules from Python and from bundles, compiled modules, and devices it cannot use."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import fastdc
from fastdc import BackendError, BundleError, DiffusionClassifier
from fastdc.backends import NetworkOptions, TorchNetwork
from fastdc.bundle import DENOISER, WEIGHTS, write_bundle
from fastdc.data import digits_test
from fastdc.diffusion import kernels
from helpers.paths import SHIPPED
from helpers.worlds import SHAPE, fails_with, gaussian, unit_images

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from fastdc.bundle import build_network
from helpers.torch_cuda_double import Convolution
from helpers.torch_worlds import GaussianDenoiser

# torch imports its own deprecated torch.jit when it first compiles.
ignores_torch_jit = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")

WORLD = gaussian(3)


# --- modules ----------------------------------------------------------------------------------------------------------


def test_a_torch_module_from_python() -> None:
    class Denoiser(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.means = torch.nn.Parameter(torch.tensor(WORLD.means, dtype=torch.float32))

        def forward(self, sample: Any, timestep: Any, class_labels: Any) -> Any:
            variance = torch.exp(2 * timestep / WORLD.schedule.timestep_scale)[:, None, None, None]
            inside = WORLD.spread**2
            return (inside * sample + variance * self.means[class_labels]) / (inside + variance)

    module = Denoiser()
    images = unit_images(4)
    network = TorchNetwork(module, SHAPE, NetworkOptions(batch=10))
    got = DiffusionClassifier(WORLD.model, network).classify(torch.from_numpy(images), draws=6)
    want = DiffusionClassifier(WORLD.model, WORLD.network()).classify(images, draws=6)
    np.testing.assert_array_equal(got.labels, want.labels)
    np.testing.assert_allclose(got.errors, want.errors, rtol=1e-5)
    assert module.means.requires_grad, "the user's module must not be frozen"

    class Cropping(Denoiser):
        def forward(self, sample: Any, timestep: Any, class_labels: Any) -> Any:
            return sample[:, :, 1:]

    cropping = DiffusionClassifier(WORLD.model, TorchNetwork(Cropping(), SHAPE))
    fails_with(lambda: cropping.classify(images, draws=1), "(12, 1, 3, 4)", "(12, 1, 4, 4)", kind=BackendError)


def test_torch_refuses_weights_that_do_not_fit(tmp_path: Path) -> None:
    from safetensors.torch import save

    bundle = fastdc.load_bundle(SHIPPED / "digits-mlp")
    manifest = {key: bundle.manifest[key] for key in bundle.manifest if key not in ("format", "version", "files")}
    entry = manifest["network"]
    weights = build_network(entry["kind"], entry["config"]).state_dict()
    for name, content in (
        ("garbage", b"\xff" * 100),
        ("empty", b""),
        ("foreign", save({"weight": torch.zeros(3)})),
        ("truncated", bundle.read(WEIGHTS)[:-1000]),
        ("shapes", save({key: torch.zeros(1) for key in weights})),
    ):
        bad = write_bundle(tmp_path / name, manifest, {DENOISER: b"", WEIGHTS: content})
        fails_with(lambda bad=bad: TorchNetwork.from_bundle(bad), WEIGHTS, "does not fit")  # type: ignore[misc]
    for kind, config in (("resnet", entry["config"]), ("mlp", {}), ("mlp", {**entry["config"], "width": 10**9})):
        changed = {**manifest, "network": {"kind": kind, "config": config}}
        files = {DENOISER: b"", WEIGHTS: bundle.read(WEIGHTS)}
        bad = write_bundle(tmp_path / "garbage", changed, files, overwrite=True)
        fails_with(lambda bad=bad: TorchNetwork.from_bundle(bad), kind=BundleError)  # type: ignore[misc]


# --- torch.compile ---------------------------------------------------------------------------------------------------


@ignores_torch_jit
def test_compiled_for_each_size_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the traced graph without generating code, which takes long and is torch's own work."""
    compiled: list[int] = []
    compile_ = torch.compile

    def count(graph: Any, inputs: Any) -> Any:
        compiled.append(int(next(len(value) for value in inputs if value.dtype == torch.int64)))
        return graph.forward

    @functools.wraps(compile_)
    def without_code(*given: Any, **more: Any) -> Any:
        return compile_(*given, backend=count, **more)

    monkeypatch.setattr(torch, "compile", without_code)
    images = unit_images(3)
    network = TorchNetwork(Convolution(), SHAPE, NetworkOptions(batch=4, compile=True, device="cpu"))
    assert network.sizes == (1, 2, 4)
    clf = DiffusionClassifier(WORLD.model, network)
    got = [clf.errors(images[:n], draws=n).errors for n in (3, 1, 3)]  # 27 cells and 3
    assert sorted(compiled) == [4]
    network.slots[0].run(2)
    network.slots[0].run(2)
    assert sorted(compiled) == [2, 4]
    plain = DiffusionClassifier(WORLD.model, TorchNetwork(Convolution(), SHAPE)).errors(images, draws=3).errors
    np.testing.assert_array_equal(got[0], got[-1])
    np.testing.assert_allclose(got[0], plain, rtol=1e-6)


@pytest.mark.slow
@ignores_torch_jit
def test_compiled_code_gives_the_numbers_of_the_module() -> None:
    images = digits_test().images[:4]
    plain = fastdc.load("digits-mlp", backend="torch", batch=16)
    path = SHIPPED / "digits-mlp"
    options = NetworkOptions(batch=16, compile=True, device="cpu")
    compiled = DiffusionClassifier(plain.model, TorchNetwork.from_bundle(fastdc.load_bundle(path), options))
    one, other = (clf.classify(images, draws=2, rule="full") for clf in (compiled, plain))
    np.testing.assert_allclose(one.errors, other.errors, rtol=1e-4)
    np.testing.assert_array_equal(one.labels, other.labels)


def test_a_device_that_fastdc_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch sees a device, but fastdc's kernels were built without CUDA."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(kernels, "cuda_device_count", lambda: 0)
    monkeypatch.setattr(kernels, "build_config", lambda: {"cuda": False})
    network = GaussianDenoiser(WORLD)
    options = NetworkOptions(device="cuda")
    fails_with(lambda: TorchNetwork(network, SHAPE, options), "docs/building.md", kind=BackendError)
    assert TorchNetwork(network, SHAPE).device == "cpu"
