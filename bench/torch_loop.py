"""The plain PyTorch loop that a user would write from the paper: the side that benchmarks compare with.

It is algorithm 1 of Li et al. (arXiv 2303.16203) as public code runs it: image by image and draw by draw, one batch of
all remaining classes goes through the eager network, and mse_loss gives the error. The loop gets fastdc's noise, made
beforehand and not timed, so it computes the same errors. With a staged rule it drops classes as algorithm 2 does.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import fastdc
from fastdc.bundle import build_network
from fastdc.diffusion import kernels, make_plan
from fastdc.inference import PlanOptions, plan_config, streams_of, to_model_range
from fastdc.rules import Staged
from fastdc.support import require


@dataclass(frozen=True, eq=False)
class _Prepared:
    """Inputs of the loop, made before the clock starts.

    Attributes:
        network: Eager module.
        mse_loss: torch's mse_loss.
        x0: Images, tensor (n, c, h, w) in the model's value range.
        noise: Noise, tensor (n, J, 1, c, h, w).
        sigmas: Noise levels of the J draws.
        timesteps: Network timesteps of the J draws, tensor (J,).
        weights: Weights of the J draws.
        n_classes: Number of classes K.
        sigma_data: sigma_data of the EDM preconditioning.
    """

    network: Any
    mse_loss: Any
    x0: Any
    noise: Any
    sigmas: list[float]
    timesteps: Any
    weights: list[float]
    n_classes: int
    sigma_data: float


def _prepare(bundle: fastdc.Bundle, images: npt.NDArray[np.uint8], draws: int, options: PlanOptions) -> _Prepared:
    torch = require("torch", extra="export")
    import safetensors.torch

    network = build_network(bundle.manifest["network"]["kind"], bundle.manifest["network"]["config"])
    network.load_state_dict(safetensors.torch.load(bundle.read("weights.safetensors")))
    network.eval()
    model = bundle.model
    wanted: PlanOptions = {**options, "draws": draws}
    x = to_model_range(images, model)
    streams = np.repeat(streams_of(x), draws)
    drawn = np.tile(np.arange(draws, dtype=np.int32), len(x))
    noise = kernels.philox_normal(streams, drawn, int(np.prod(model.image_shape)), seed=0)
    plan = make_plan(model.schedule, model.parameterization, plan_config(model, wanted))
    return _Prepared(
        network=network,
        mse_loss=torch.nn.functional.mse_loss,
        x0=torch.from_numpy(x),
        noise=torch.from_numpy(noise.reshape(len(x), draws, 1, *model.image_shape)),
        sigmas=plan.levels.sigma.tolist(),
        timesteps=torch.tensor(plan.levels.timestep, dtype=torch.float32),
        weights=plan.rows[:, kernels.ROW_FIELDS.index("weight")].tolist(),
        n_classes=model.num_classes,
        sigma_data=float(model.parameterization.sigma_data or 0),
    )


def _errors(given: _Prepared, image: int, draw: int, labels: Any) -> Any:
    """Weighted errors (A,) of classes `labels` (A,) at one draw of one image."""
    sigma, data = given.sigmas[draw], given.sigma_data
    scale = (sigma**2 + data**2) ** 0.5
    x_t = (given.x0[image] + sigma * given.noise[image, draw]).expand(len(labels), -1, -1, -1)
    raw = given.network(x_t / scale, given.timesteps[draw].expand(len(labels)), labels)
    denoised = (data / scale) ** 2 * x_t + sigma * data / scale * raw
    error = given.mse_loss(denoised, given.x0[image].expand_as(denoised), reduction="none")
    return given.weights[draw] * error.mean(dim=(1, 2, 3))


def _stages(draws: int, n_classes: int, staged: Staged | None) -> Iterator[tuple[int, int]]:
    """For each stage, the number of draws at its end and the number of classes that remain."""
    if staged is None:
        yield draws, n_classes
        return
    yield from zip(staged.n_samples, staged.to_keep, strict=True)


def torch_loop(
    bundle: fastdc.Bundle,
    images: npt.NDArray[np.uint8],
    draws: int,
    *,
    options: PlanOptions | None = None,
    staged: Staged | None = None,
) -> tuple[npt.NDArray[np.float64], float]:
    """Runs the loop on an EDM-preconditioned network.

    Args:
        bundle: Model with its PyTorch weights.
        images: Images uint8 (n, c, h, w).
        draws: Number of draws J.
        options: Options of the plan; None for the model's defaults.
        staged: Rule that drops classes; None to evaluate every class at every draw.

    Returns:
        Mean errors (n, K), NaN for dropped classes, and the time of the loop in seconds.
    """
    torch = require("torch", extra="export")
    given = _prepare(bundle, images, draws, options or {})
    result = np.full((len(images), given.n_classes), np.nan)
    start = time.perf_counter()
    with torch.inference_mode():
        for i in range(len(images)):
            labels = torch.arange(given.n_classes)
            total = torch.zeros(given.n_classes)
            done = 0
            for end, keep in _stages(draws, given.n_classes, staged):
                for draw in range(done, end):
                    total += _errors(given, i, draw, labels)
                done = end
                if staged is not None:
                    stay = total.argsort(stable=True)[:keep].sort().values
                    labels, total = labels[stay], total[stay]
                if len(labels) == 1:
                    break
            result[i, labels.numpy()] = (total / done).numpy()
    return result, time.perf_counter() - start
