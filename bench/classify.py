"""Speed of classify against the plain PyTorch loop that a user would write: same weights, draws and threads.

    python bench/classify.py [--model digits] [--images 400] [--draws 16] [--threads 1 2]

The loop is algorithm 1 of the paper as the public code runs it (``torch_loop.py``). It gets fastdc's noise, so that
both sides compute the same errors; the table shows their largest difference. Two more sides show where the speed comes
from: the torch backend inside the engine (full batches, fused kernels, eager network), and ONNX Runtime with its
threads inside each step instead of across steps. No side stops early.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

import fastdc
from common import parser, print_table, save
from fastdc.backends import NetworkOptions, OnnxNetwork
from fastdc.bundle import find_model
from fastdc.classifier import DiffusionClassifier
from fastdc.data import digits_test
from fastdc.diffusion import kernels
from fastdc.support import require
from torch_loop import torch_loop


def run(classifier: DiffusionClassifier, images: Any, draws: int) -> tuple[npt.NDArray[np.float64], float]:
    """Mean errors (n, K) and seconds of fastdc, after a short warm-up."""
    classifier.classify(images[:8], rule="full", draws=draws)
    result = classifier.classify(images, rule="full", draws=draws)
    return result.errors, result.seconds


def main() -> None:
    made = parser(__doc__, "classify")
    made.add_argument("--model", default="digits", help="shipped model [%(default)s]")
    made.add_argument("--images", type=int, default=400, help="number of test images [%(default)s]")
    made.add_argument("--draws", type=int, default=16, help="draws per class [%(default)s]")
    made.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads [%(default)s]")
    arguments = made.parse_args()
    torch = require("torch", extra="export")
    test = digits_test()
    images, truth = test.images[: arguments.images], test.labels[: arguments.images]
    bundle = fastdc.load_bundle(find_model(arguments.model))
    records: list[dict[str, Any]] = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        kernels.set_num_threads(threads)
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
