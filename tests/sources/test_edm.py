"""EDM models: the paper's denoiser D, the file's schedule and classes, the export, and refusals of anything else."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdc.diffusion import EDMSchedule
from fastdc.diffusion.parameterization import Parameterization
from fastdc.support.exceptions import BundleError, InputError
from fastdc.support.optional import installed

pytest.importorskip("torch")

import torch

from fastdc.sources import Source
from fastdc.sources.edm import open_edm
from fastdc.testing import edm_files


def _inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    sample = torch.randn(batch, 3, 8, 8, generator=generator)
    return sample, torch.randn(batch, generator=generator), torch.arange(batch) % 5


@pytest.mark.parametrize("variant", list(edm_files.TINY))
def test_a_file_opens_with_its_network_and_model(tmp_path: Path, variant: str) -> None:
    source = open_edm(edm_files.write_edm(tmp_path / "net.pkl", variant, label_dropout=0.1))
    assert source.family == "edm"
    model = source.model
    assert (model.name, model.image_shape, model.latent_shape) == ("net", (3, 8, 8), None)
    assert model.class_names == ("class 0", "class 1", "class 2", "class 3")
    assert model.null_class == 4
    assert model.value_range == (-1.0, 1.0)
    assert model.schedule == EDMSchedule(0.002, 80.0, 0.25)
    assert model.parameterization == Parameterization("edm", sigma_data=0.5)
    assert source.provenance["network"] == edm_files.kind_of(variant)
    assert not source.tables
    assert source.encoder is None
    assert not source.denoiser.training
    assert not any(p.requires_grad for p in source.denoiser.parameters())
    got = source.denoiser(*_inputs(5))
    with torch.no_grad():
        wanted = edm_files.network(variant, label_dropout=0.1)(*_inputs(5))
    assert torch.equal(got, wanted)


def test_rows_give_the_denoiser_of_the_paper(tmp_path: Path) -> None:
    """D - x from the schedule, the coefficient rows and F, against eq. 7 and table 1 written out."""
    source = open_edm(edm_files.write_edm(tmp_path / "net.pkl", "ddpmpp"))
    levels = source.model.schedule.levels([0.1, 0.5, 0.9])
    rows = source.model.parameterization.rows(levels, np.ones(3))
    rng = np.random.default_rng(0)
    image = np.tanh(rng.standard_normal((3, 8, 8)))
    noise = rng.standard_normal((3, 8, 8))
    network = edm_files.network("ddpmpp")
    for j in range(3):
        gx, ge, a, b, c = rows[j, :5]
        sigma = levels.sigma[j]
        timestep = torch.tensor([levels.timestep[j]], dtype=torch.float32)
        sample = torch.tensor((gx * image + ge * noise)[None], dtype=torch.float32)
        f = source.denoiser(sample, timestep, torch.tensor([2]))[0].double().numpy()
        got = a * f + b * image + c * noise

        noisy = image + sigma * noise
        c_skip = 0.5**2 / (sigma**2 + 0.5**2)
        c_out = sigma * 0.5 / math.sqrt(sigma**2 + 0.5**2)
        scaled = torch.tensor((noisy / math.sqrt(sigma**2 + 0.5**2))[None], dtype=torch.float32)
        with torch.no_grad():
            raw = network(scaled, torch.tensor([math.log(sigma) / 4], dtype=torch.float32), torch.tensor([2]))
        wanted = c_skip * noisy + c_out * raw[0].double().numpy() - image
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * max(1.0, np.abs(wanted).max()))


def test_classes_null_class_and_names(tmp_path: Path) -> None:
    never = open_edm(edm_files.write_edm(tmp_path / "a.pkl", "adm"), class_names=("a", "b", "c", "d"))
    assert never.model.class_names == ("a", "b", "c", "d")
    assert never.model.null_class is None  # labels were never dropped
    none = open_edm(edm_files.write_edm(tmp_path / "b.pkl", "adm", label_dim=0))
    assert none.model.class_names == ("image",)
    assert none.model.null_class is None
    assert "denoising only" in str(none.provenance["use"])
    sample, timestep, labels = _inputs(3)
    assert torch.equal(none.denoiser(sample, timestep, labels), none.denoiser(sample, timestep, labels * 0))
    with pytest.raises(InputError, match=r"the class names \(--classes\) must hold 4 names, got 2"):
        open_edm(tmp_path / "a.pkl", class_names=("a", "b"))


def test_bounds_of_sigma_come_from_the_file(tmp_path: Path) -> None:
    made = edm_files.precond("adm")
    made.__dict__.update(sigma_min=0.01, sigma_max=50, sigma_data=np.float64(0.25))
    (tmp_path / "m.pkl").write_bytes(edm_files.dumped({"ema": made}))
    model = open_edm(tmp_path / "m.pkl").model
    assert model.schedule == EDMSchedule(0.01, 50.0, 0.25)
    assert model.parameterization.sigma_data == 0.25


def _changed(tmp_path: Path, change: Any, variant: str = "adm") -> Path:
    made = edm_files.precond(variant)
    change(made)
    path = tmp_path / "m.pkl"
    path.write_bytes(edm_files.dumped({"ema": made}))
    return path


def test_other_preconditioners_are_refused(tmp_path: Path) -> None:
    path = _changed(tmp_path, lambda made: made.__dict__.update(meta_class="Precond"))
    wanted = "expected one of EDMPrecond, VPPrecond, VEPrecond, iDDPMPrecond around a SongUNet or DhariwalUNet"
    with pytest.raises(BundleError, match=f"{wanted}, got 'Precond'"):
        open_edm(path)


def test_networks_that_do_not_fit_their_options_are_refused(tmp_path: Path) -> None:
    def inner(change: Any) -> Any:
        return lambda made: change(made._modules["model"])

    def option(**more: Any) -> Any:
        return inner(lambda model: model._init_kwargs.update(more))

    for change, match in (
        (option(num_blocks=2), "is missing"),
        (option(channel_mult=[1, 3]), r"must be of floats"),
        (option(model_channels=8192, channel_mult=[64, 64]), "must be of floats|is not expected|is missing"),
        (option(img_resolution=10**9), "img_resolution"),
        (option(encoder_type="skip"), "no option"),
        (option(in_channels=4), "must have 4 outputs"),
        (inner(lambda model: model._parameters.update(more=torch.zeros(3))), "more is not expected"),
        (inner(lambda model: model._modules.pop("out_conv")), "out_conv.weight is missing"),
        (inner(lambda model: model.__dict__.update(meta_class="UNet")), "one of SongUNet"),
        (lambda made: made._modules.pop("model"), "must hold one network"),
        (lambda made: made.__dict__.update(sigma_data=-1.0), "sigma_data must be"),
        (lambda made: made.__dict__.update(sigma_data=0.0), "positive sigma_data"),
        (lambda made: made.__dict__.update(sigma_min="low"), "sigma_min must be"),
        (lambda made: made.__dict__.update(sigma_min=90.0), "0 < min < max"),
        (
            inner(lambda model: model._modules["out_norm"]._parameters.update(weight=torch.zeros(64).int())),
            "must be of floats",
        ),
    ):
        with pytest.raises(BundleError, match=match) as caught:
            open_edm(_changed(tmp_path, change))
        assert "\n" not in str(caught.value)


def _assert_same(source: Source, graph: bytes | Path) -> None:
    """A graph has the inputs of a source's network and computes the same, at batches that nothing was traced with."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = ["sample", "timestep", "class_labels"]
    assert [entry.name for entry in session.get_inputs()] == names
    for batch in (1, 3, 65):
        inputs = _inputs(batch)
        (got,) = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
        wanted = source.denoiser(*inputs).numpy()
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


EXPORTED: dict[str, tuple[str, dict[str, Any]]] = {
    "ncsnpp": ("ncsnpp", {"channel_mult": [1, 2]}),
    "skips": ("skips", {"channel_mult": [1, 2]}),
    "adm": ("adm", {}),
    "no classes": ("adm", {"channel_mult": [1], "attn_resolutions": [], "label_dim": 0}),
}
NEEDS_EXPORT = pytest.mark.skipif(
    not all(installed(name) for name in ("onnxscript", "onnxruntime", "diffusers", "transformers")),
    reason="needs the export extra",
)


@pytest.mark.slow
@NEEDS_EXPORT
@pytest.mark.parametrize("name", EXPORTED)
def test_the_exported_graph_computes_the_same_at_any_batch(tmp_path: Path, name: str) -> None:
    from fastdc.export import export_graph

    variant, more = EXPORTED[name]
    source = open_edm(edm_files.write_edm(tmp_path / "m.pkl", variant, **more))
    example = dict(zip(("sample", "timestep", "class_labels"), _inputs(2), strict=True))
    graph = export_graph(source.denoiser, example, ("output",), leading=dict.fromkeys(example, "batch"))
    _assert_same(source, graph.SerializeToString())


@pytest.mark.slow
@NEEDS_EXPORT
def test_the_bundle_of_ddpmpp_computes_the_same_at_any_batch(tmp_path_factory: pytest.TempPathFactory) -> None:
    from fastdc.bundle import DENOISER
    from helpers.exported import exported, shared_folder

    source, bundle = exported("edm", shared_folder(tmp_path_factory))
    _assert_same(source, bundle.path / DENOISER)
