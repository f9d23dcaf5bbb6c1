"""Preconditioners of EDM files: the classifier's errors are those of the published formulas, written out in float64.

The oracle is Karras et al., arXiv 2206.00364, eq. 7 and table 1: D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), and
the recursion of appendix C.3.4 for the levels of iDDPM. Only the network, in float64, and the noise are fastdc's.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastdc.bundle.format import version_of_format
from fastdc.diffusion import (
    DiscreteSchedule,
    EDMSchedule,
    Parameterization,
    TableSchedule,
    VPSchedule,
    parameterization_from_dict,
    schedule_from_dict,
)
from fastdc.support import BundleError
from fastdc.support.optional import installed

pytest.importorskip("torch")

import torch

from fastdc.backends import NetworkOptions, TorchNetwork
from fastdc.classifier import DiffusionClassifier
from fastdc.sources import Source, open_source
from fastdc.testing import edm_files, reference

Floats = npt.NDArray[np.float64]

DRAWS = 5
M = 1000
CASES = [("EDMPrecond", "ncsnpp"), ("VPPrecond", "ddpmpp"), ("VEPrecond", "ncsnpp"), ("iDDPMPrecond", "adm")]
CASES += [("iDDPMPrecond", "skips"), ("VPPrecond", "adm")]


def levels_of_iddpm() -> Floats:
    """u_0 > ... > u_M = 0."""
    bars = [math.sin(math.pi / 2 * j / (M * 1.008)) ** 2 for j in range(M + 1)]
    u = [0.0]
    for j in range(M, 0, -1):
        u.insert(0, math.sqrt((u[0] ** 2 + 1) / max(bars[j - 1] / bars[j], 0.001) - 1))
    return np.array(u)


def coefficients(kind: str, sigma: float) -> tuple[float, float, float, float]:
    """c_skip, c_out, c_in and c_noise of table 1."""
    if kind == "VPPrecond":
        t = (math.sqrt(0.1**2 + 2 * 19.9 * math.log(1 + sigma**2)) - 0.1) / 19.9
        return 1, -sigma, 1 / math.sqrt(sigma**2 + 1), (M - 1) * t
    if kind == "VEPrecond":
        return 1, sigma, 1, math.log(sigma / 2)
    if kind == "iDDPMPrecond":
        step = M - 1 - int(np.abs(levels_of_iddpm() - sigma).argmin())
        return 1, -sigma, 1 / math.sqrt(sigma**2 + 1), step
    root = math.sqrt(sigma**2 + 0.25)
    return 0.25 / root**2, 0.5 * sigma / root, 1 / root, math.log(sigma) / 4


def opened(tmp_path: Path, kind: str, variant: str, **more: Any) -> Source:
    return open_source(edm_files.write_edm(tmp_path / "m.pkl", variant, preconditioner=kind, **more))


@pytest.mark.parametrize(("kind", "variant"), CASES)
def test_errors_are_those_of_the_published_preconditioning(tmp_path: Path, kind: str, variant: str) -> None:
    source = opened(tmp_path, kind, variant, channel_mult=[1, 2], protocol=2 if variant == "adm" else 4)
    images = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
    network = TorchNetwork(source.denoiser, source.model.sample_shape, NetworkOptions(batch=7, threads=1))
    table = DiffusionClassifier(source.model, network).errors(images, draws=DRAWS, seed=11)

    outputs = 6 if kind == "iDDPMPrecond" else 3
    oracle = edm_files.network(variant, channel_mult=[1, 2], out_channels=outputs).double()
    expected = np.empty((2, 4, DRAWS))
    for i, j in np.ndindex(2, DRAWS):
        sigma = float(table.sigma[j])
        c_skip, c_out, c_in, c_noise = coefficients(kind, sigma)
        x0 = torch.from_numpy(2 * images[i].astype(np.float64) - 1)[None]
        noise = reference.normal(table.seed, int(table.streams[i]), j, x0.numel())
        x = x0 + sigma * torch.from_numpy(noise).reshape(x0.shape)
        for k in range(4):
            f = oracle(c_in * x, torch.tensor([c_noise], dtype=torch.float64), torch.tensor([k]))[:, :3]
            denoised = c_skip * x + c_out * f
            expected[i, k, j] = float(((denoised - x0) / sigma).square().mean())  # the error of the noise
    assert len(set(table.sigma.tolist())) == DRAWS
    # c_noise, up to 999, is float32 in fastdc: its rounding, 3e-5, is an angle in the network's features.
    np.testing.assert_allclose(table.errors, expected, rtol=1e-3 if kind == "VPPrecond" else 1e-4)
    assert float(np.ptp(expected, axis=1).min()) > 1e-2 * float(expected.min())  # the classes differ by more


def test_the_schedules_are_those_of_table_1(tmp_path: Path) -> None:
    vp = opened(tmp_path, "VPPrecond", "ddpmpp").model
    assert vp.schedule == VPSchedule(19.9, 0.1, 1e-5, 999.0)
    assert vp.parameterization == Parameterization("epsilon")
    ve = opened(tmp_path, "VEPrecond", "ddpmpp").model
    assert ve.schedule == EDMSchedule(0.02, 100.0, 1.0, -math.log(2))
    assert ve.parameterization == Parameterization("score")
    iddpm = opened(tmp_path, "iDDPMPrecond", "adm").model
    assert isinstance(iddpm.schedule, TableSchedule)
    cosine = DiscreteSchedule("squaredcos_cap_v2").alphas_cumprod  # Nichol & Dhariwal's, at C_1 = 0.001 and C_2 = 0.008
    np.testing.assert_allclose(iddpm.schedule.alphas_cumprod, cosine, rtol=1e-9)
    np.testing.assert_allclose(iddpm.schedule.levels([0.0, 1.0]).ratio, levels_of_iddpm()[[M - 1, 0]], rtol=1e-6)
    for model in (vp, ve, iddpm):
        assert model.value_range == (-1.0, 1.0)
        schedule, parameterization = model.schedule.to_dict(), model.parameterization.to_dict()
        assert schedule_from_dict(json.loads(json.dumps(schedule))) == model.schedule
        assert parameterization_from_dict(json.loads(json.dumps(parameterization))) == model.parameterization
        assert version_of_format({"schedule": schedule, "parameterization": parameterization}) == 2
    assert version_of_format({"schedule": EDMSchedule().to_dict(), "parameterization": {"kind": "score"}}) == 2
    assert version_of_format({"schedule": ve.schedule.to_dict(), "parameterization": {"kind": "epsilon"}}) == 2
    assert version_of_format({"schedule": EDMSchedule().to_dict(), "parameterization": {"kind": "epsilon"}}) == 1


def test_constants_come_from_the_file(tmp_path: Path) -> None:
    for kind, changes, schedule in (
        ("VPPrecond", {"beta_d": 10, "beta_min": np.float64(0.5), "M": 500}, VPSchedule(10.0, 0.5, 1e-5, 499.0)),
        ("VEPrecond", {"sigma_min": 0.1, "sigma_max": 50}, EDMSchedule(0.1, 50.0, 1.0, -math.log(2))),
    ):
        made = edm_files.precond("adm", preconditioner=kind)
        made.__dict__.update(changes)
        (tmp_path / "m.pkl").write_bytes(edm_files.dumped({"ema": made}))
        assert open_source(tmp_path / "m.pkl").model.schedule == schedule


@pytest.mark.parametrize(
    ("kind", "changes", "match"),
    [
        ("VPPrecond", {"beta_min": 0}, "VPPrecond: beta_min must be"),
        ("VPPrecond", {"beta_d": 1e6}, "exponent of vp levels"),
        ("VPPrecond", {"epsilon_t": 1}, "epsilon_t must lie strictly between 0 and 1"),
        ("VPPrecond", {"M": 0.5}, "M must be a whole number"),
        ("VPPrecond", {"M": float("inf")}, "M must be a whole number"),
        ("VPPrecond", {"M": "many"}, "M must be a number of at least 0, got 'many'"),
        ("VEPrecond", {"sigma_max": float("inf")}, "0 < min < max"),
        ("VEPrecond", {"sigma_min": float("nan")}, "sigma_min must be a number of at least 0, got nan"),
        ("iDDPMPrecond", {"M": 10_001}, "M must be a whole number from 1 to 10000, got 10001"),
        ("iDDPMPrecond", {"M": 999}, "levels u of an iDDPMPrecond must be those of its M, C_1 and C_2"),
        ("iDDPMPrecond", {"C_2": 0.1}, "levels u of an iDDPMPrecond must be those of its M, C_1 and C_2"),
        ("iDDPMPrecond", {"C_2": 7}, "C_2 must be a number in"),
        ("iDDPMPrecond", {"C_1": 0}, "C_1 must lie strictly between 0 and 1"),
        ("iDDPMPrecond", {"C_1": 1e-320}, "alphas_cumprod must fall"),
    ],
)
def test_constants_that_cannot_be_used_are_refused(
    tmp_path: Path, kind: str, changes: dict[str, Any], match: str
) -> None:
    made = edm_files.precond("adm", preconditioner=kind)
    made.__dict__.update(changes)
    (tmp_path / "m.pkl").write_bytes(edm_files.dumped({"ema": made}))
    with pytest.raises(BundleError, match=match) as caught:
        open_source(tmp_path / "m.pkl")
    assert "\n" not in str(caught.value)


def test_networks_and_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="network of VPPrecond must have 3 outputs for 3 channels, got 6"):
        opened(tmp_path, "VPPrecond", "adm", out_channels=6)
    with pytest.raises(BundleError, match="network of iDDPMPrecond must have 6 outputs for 3 channels, got 3"):
        opened(tmp_path, "iDDPMPrecond", "adm", out_channels=3)
    made = edm_files.precond("adm", preconditioner="VPPrecond")
    made.register_buffer("u", torch.zeros(1001))
    (tmp_path / "m.pkl").write_bytes(edm_files.dumped({"ema": made}))
    with pytest.raises(BundleError, match="a VPPrecond must hold no tensor 'u'"):
        open_source(tmp_path / "m.pkl")


@pytest.mark.slow
@pytest.mark.skipif(
    not all(installed(name) for name in ("onnxscript", "onnxruntime")),
    reason="needs the export extra",
)
def test_a_bundle_has_the_errors_of_torch(tmp_path: Path) -> None:
    from fastdc.export import compare_errors, export_source

    source = opened(tmp_path, "iDDPMPrecond", "adm", channel_mult=[1], attn_resolutions=[])
    bundle = export_source(source, tmp_path / "bundle")
    assert bundle.model.schedule == source.model.schedule
    found = compare_errors(source, bundle, np.random.default_rng(1).random((3, 3, 8, 8), dtype=np.float32))
    assert 0 < found.relative < 1e-4
    assert found.differing == 0
