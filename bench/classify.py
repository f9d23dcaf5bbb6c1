"""Classify against the plain PyTorch loop that a user would write from the paper: same weights, draws and threads.

    python bench/classify.py [--model digits] [--images 400] [--draws 16] [--threads 1 2]

The loop is the paper's algorithm 1 as the public code runs it: image by image, draw by draw, one batch of all classes
through the eager network, error by mse_loss. It is given the very noise of fastdc, made beforehand and not timed, so
that both sides compute the same errors (the largest difference is reported). Two more sides separate where the speed
comes from: the torch backend inside the engine (packed batches, fused kernels, eager network) and ONNX Runtime with
its threads inside each step instead of across steps. No early stopping anywhere.
"""

import time
from typing import Any

import numpy as np
import numpy.typing as npt
from common import parser, print_table, save

import fastdc
from fastdc import ops
from fastdc.backends import NetworkOptions
from fastdc.backends.onnx import OnnxNetwork
from fastdc.classifier import DiffusionClassifier, find_model
from fastdc.data import digits_test
from fastdc.extras import require
from fastdc.images import streams_of, to_model_range
from fastdc.networks import build_network
from fastdc.plan import PlanConfig, make_plan


def torch_loop(
    bundle: fastdc.Bundle, images: npt.NDArray[np.uint8], draws: int
) -> tuple[npt.NDArray[np.float64], float]:
    """Errors (n, K) and seconds of the loop from the paper, written for EDM-preconditioned networks."""
    torch = require("torch", extra="export")
    import safetensors.torch

    network = build_network(bundle.manifest["network"]["kind"], bundle.manifest["network"]["config"])
    network.load_state_dict(safetensors.torch.load(bundle.read("weights.safetensors")))
    network.eval()
    model = bundle.model
    defaults = model.defaults
    config = PlanConfig(draws=draws, levels=defaults.levels, weighting=defaults.weighting)
    plan = make_plan(model.schedule, model.parameterization, config)
    x = to_model_range(images, model)
    streams = np.repeat(streams_of(x), draws)
    drawn = np.tile(np.arange(draws, dtype=np.int32), len(x))
    flat = ops.philox_normal(streams, drawn, int(np.prod(model.image_shape)), seed=0)
    noise = torch.from_numpy(flat.reshape(len(x), draws, 1, *model.image_shape))
    x0 = torch.from_numpy(x)
    labels = torch.arange(model.num_classes)
    sigmas = [float(s) for s in plan.levels.sigma]
    timesteps = torch.tensor(plan.levels.timestep, dtype=torch.float32)
    data = float(model.parameterization.sigma_data or 0)
    weights = [float(w) for w in plan.rows[:, 6]]
    result = np.zeros((len(x), model.num_classes))
    start = time.perf_counter()
    with torch.inference_mode():
        for i in range(len(x)):
            total = torch.zeros(model.num_classes)
            for j in range(draws):
                sigma = sigmas[j]
                scale = (sigma**2 + data**2) ** 0.5
                x_t = (x0[i] + sigma * noise[i, j]).expand(model.num_classes, -1, -1, -1)
                raw = network(x_t / scale, timesteps[j].expand(model.num_classes), labels)
                denoised = (data / scale) ** 2 * x_t + sigma * data / scale * raw
                error = torch.nn.functional.mse_loss(denoised, x0[i].expand_as(denoised), reduction="none")
                total += weights[j] * error.mean(dim=(1, 2, 3))
            result[i] = (total / draws).numpy()
    return result, time.perf_counter() - start


def run(classifier: DiffusionClassifier, images: Any, draws: int) -> tuple[npt.NDArray[np.float64], float]:
    """Errors (n, K) and seconds of fastdc, after a short warm-up."""
    classifier.classify(images[:8], draws=draws)
    result = classifier.classify(images, draws=draws)
    return result.errors, result.seconds


def main() -> None:
    made = parser(__doc__, "classify")
    made.add_argument("--model", default="digits")
    made.add_argument("--images", type=int, default=400)
    made.add_argument("--draws", type=int, default=16)
    made.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = made.parse_args()
    torch = require("torch", extra="export")
    test = digits_test()
    images, truth = test.images[: arguments.images], test.labels[: arguments.images]
    bundle = fastdc.load_bundle(find_model(arguments.model))
    records: list[dict[str, Any]] = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        ops.set_num_threads(threads)
        base, base_seconds = torch_loop(bundle, images, arguments.draws)
        options = NetworkOptions(threads=threads)
        sides = {
            "fastdc, onnx": fastdc.load(bundle, backend="onnx", threads=threads),
            "fastdc, onnx, threads inside a step": DiffusionClassifier(
                bundle.model, OnnxNetwork(bundle, options, intra_op_threads=threads)
            ),
            "fastdc, torch eager": fastdc.load(bundle, backend="torch", threads=threads),
        }
        measured = {"plain PyTorch loop": (base, base_seconds)}
        measured |= {name: run(classifier, images, arguments.draws) for name, classifier in sides.items()}
        rows = []
        for name, (errors, seconds) in measured.items():
            record = {
                "threads": threads,
                "side": name,
                "accuracy": float(np.mean(errors.argmin(axis=1) == truth)),
                "images_per_second": len(images) / seconds,
                "milliseconds_per_evaluation": 1e3 * seconds / errors.size / arguments.draws,
                "times_faster": base_seconds / seconds,
                "largest_difference": float(np.abs(errors - base).max()),
            }
            records.append(record)
            rows.append(
                [
                    name,
                    f"{100 * record['accuracy']:.2f} %",
                    f"{record['images_per_second']:.1f}",
                    f"{record['milliseconds_per_evaluation']:.3f}",
                    f"{record['times_faster']:.2f}x",
                    f"{record['largest_difference']:.1e}",
                ]
            )
        title = f"{bundle.name}, {len(images)} images, {arguments.draws} draws, {threads} thread(s)"
        columns = ["side", "accuracy", "images/s", "ms/evaluation", "faster", "max error difference"]
        print_table(title, columns, rows)
    settings = {"model": bundle.name, "images": len(images), "draws": arguments.draws}
    save(arguments.out, {"question": "classify against the plain PyTorch loop", **settings, "records": records})


if __name__ == "__main__":
    main()
