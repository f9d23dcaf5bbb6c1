"""The kernels against the torch expressions that a user would write, and against memcpy.

    python bench/ops.py [--threads 1 2] [--rounds 15]

A case has B cells of one image shape. In "distinct", every cell has its own (image, draw): the worst case for fastdc,
which then makes every normal twice. In "classes", groups of 8 classes share (image, draw), as in a diffusion
classifier. The torch side gathers images and noise by index, as the public implementations do. It is timed with
torch.randn, and without it (the noise is made before and kept in memory); fastdc always makes its noise inside. GB/s
counts the bytes that the operation must move: inputs and outputs once, noise not at all.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from common import Timing, parser, print_table, ratio, save, time_sides
from fastdc.diffusion import kernels
from fastdc.support import require

SHAPES = ((256, 3, 32, 32), (64, 4, 64, 64))
CLASSES = 8
SEED = 7


class Case:
    """Arrays of one shape for both sides; `classes` cells share the noise of an (image, draw)."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        torch = require("torch", extra="export")
        rng = np.random.default_rng(0)
        self.shape = shape
        self.batch = shape[0]
        groups = self.batch // classes
        self.images = rng.uniform(-1, 1, (groups, *shape[1:])).astype(np.float32)
        self.output = rng.standard_normal(shape, dtype=np.float32)
        self.u = np.empty_like(self.output)
        self.errors = np.empty(self.batch, np.float32)
        self.maps = np.zeros((groups, classes, *shape[1:]), np.float32)
        group = np.arange(self.batch) // classes
        self.cells = np.stack([group, np.arange(self.batch) % classes, group % 16], axis=1).astype(np.int32)
        self.rows = np.zeros((16, 8), np.float32)
        alpha = np.linspace(0.9, 0.3, 16)
        self.rows[:, 0], self.rows[:, 1] = alpha, np.sqrt(1 - alpha**2)
        self.rows[:, 2], self.rows[:, 4], self.rows[:, 6] = 1, -1, 1
        self.streams = np.arange(groups, dtype=np.int64)
        views = [kernels.view(array) for array in (self.images, self.cells, self.rows, self.streams)]
        self.v_images, self.v_cells, self.v_rows, self.v_streams = views
        self.v_output, self.v_u, self.v_errors = map(kernels.view, (self.output, self.u, self.errors))
        self.v_maps = kernels.view(self.maps)
        self.torch = torch
        self.t_images, self.t_output = torch.from_numpy(self.images), torch.from_numpy(self.output)
        self.t_group = torch.from_numpy(group)
        self.t_alpha = torch.from_numpy(self.rows[group % 16, 0])[:, None, None, None]
        self.t_sigma = torch.from_numpy(self.rows[group % 16, 1])[:, None, None, None]
        self.t_noise = torch.randn(groups, *shape[1:])
        self.groups = groups

    def ours_noise(self) -> None:
        kernels.add_noise(self.v_images, self.v_cells, self.v_rows, self.v_streams, seed=SEED, out=self.v_u)

    def ours_error(self) -> None:
        kernels.denoising_error(
            self.v_output, self.v_images, self.v_cells, self.v_rows, self.v_streams, seed=SEED, out=self.v_errors
        )

    def ours_map(self) -> None:
        kernels.error_map(
            self.v_output, self.v_images, self.v_cells, self.v_rows, self.v_streams, self.v_maps, seed=SEED
        )

    def ours_pair(self) -> None:
        self.ours_noise()
        self.ours_error()

    def torch_randn(self) -> Any:
        return self.torch.randn(self.groups, *self.shape[1:])

    def torch_noise(self, noise: Any = None) -> Any:
        e = (self.t_noise if noise is None else noise)[self.t_group]
        return self.t_alpha * self.t_images[self.t_group] + self.t_sigma * e

    def torch_error(self, noise: Any = None) -> Any:
        e = (self.t_noise if noise is None else noise)[self.t_group]
        return self.torch.nn.functional.mse_loss(self.t_output, e, reduction="none").mean(dim=(1, 2, 3))

    def torch_pair(self) -> None:
        self.torch_noise()
        self.torch_error()

    def torch_pair_with_randn(self) -> None:
        noise = self.torch_randn()
        self.torch_noise(noise)
        self.torch_error(noise)

    def memcpy(self) -> None:
        np.copyto(self.u, self.output)


def measure(case: Case, rounds: int) -> dict[str, Timing]:
    """Times all sides of a case in turns."""
    normals = np.empty((case.groups, case.output[0].size), np.float32)
    v_normals, draws = kernels.view(normals), kernels.view(np.zeros(case.groups, np.int32))
    sides: dict[str, Callable[[], Any]] = {
        "memcpy": case.memcpy,
        "philox_normal": lambda: kernels.philox_normal(
            case.v_streams, draws, normals.shape[1], seed=SEED, out=v_normals
        ),
        "torch.randn": case.torch_randn,
        "numpy standard_normal": lambda: np.random.default_rng(0).standard_normal(normals.shape, np.float32),
        "add_noise": case.ours_noise,
        "torch noising": case.torch_noise,
        "denoising_error": case.ours_error,
        "torch error": case.torch_error,
        "error_map": case.ours_map,
        "pair": case.ours_pair,
        "torch pair, randn not counted": case.torch_pair,
        "torch pair, randn counted": case.torch_pair_with_randn,
    }
    with case.torch.inference_mode():
        return time_sides(sides, rounds=rounds)


def bytes_moved(case: Case) -> dict[str, int]:
    """The least bytes that each operation must move."""
    cells, images = case.output.nbytes, case.images.nbytes
    return {
        "memcpy": 2 * cells,
        "philox_normal": images,
        "torch.randn": images,
        "numpy standard_normal": images,
        "add_noise": images + cells,
        "torch noising": images + cells,
        "denoising_error": images + cells,
        "torch error": images + cells,
        "error_map": images + cells + 2 * case.maps.nbytes,
        "pair": 2 * images + 2 * cells,
        "torch pair, randn not counted": 2 * images + 2 * cells,
        "torch pair, randn counted": 2 * images + 2 * cells,
    }


def main() -> None:
    made = parser(__doc__, "ops")
    made.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads [%(default)s]")
    made.add_argument("--rounds", type=int, default=15, help="timed rounds [%(default)s]")
    arguments = made.parse_args()
    torch = require("torch", extra="export")
    records = []
    for threads in arguments.threads:
        kernels.set_num_threads(threads)
        torch.set_num_threads(threads)
        for shape in SHAPES:
            for label, classes in (("distinct", 1), ("classes", CLASSES)):
                case = Case(shape, classes)
                timings, floor = measure(case, arguments.rounds), bytes_moved(case)
                record = {
                    "threads": threads,
                    "shape": list(shape),
                    "cells": label,
                    "microseconds": {name: round(1e6 * t.median, 1) for name, t in timings.items()},
                    "spread": {name: round(t.spread, 3) for name, t in timings.items()},
                    "pair_ratio_randn_counted": ratio(timings["torch pair, randn counted"], timings["pair"]),
                    "pair_ratio_randn_not_counted": ratio(timings["torch pair, randn not counted"], timings["pair"]),
                }
                records.append(record)
                rows = [
                    [name, f"{1e6 * t.median:.0f}", f"{floor[name] / t.median / 1e9:.2f}", f"{100 * t.spread:.0f} %"]
                    for name, t in timings.items()
                ]
                size = "x".join(map(str, shape))
                print_table(f"{size}, {label}, {threads} thread(s)", ["operation", "us", "GB/s", "spread"], rows)
    rows = [
        [
            f"{'x'.join(map(str, r['shape']))}, {r['cells']}, {r['threads']} thread(s)",
            f"{r['pair_ratio_randn_counted']:.2f}x",
            f"{r['pair_ratio_randn_not_counted']:.2f}x",
        ]
        for r in records
    ]
    title = "fused pair (add_noise + denoising_error) against the torch pair: times faster"
    print_table(title, ["case", "randn counted", "randn not counted"], rows)
    save(arguments.out, {"question": "kernels against torch and memcpy", "records": records})


if __name__ == "__main__":
    main()
