"""The plain PyTorch loop for any network and device: the side that bench/gpu_networks.py compares with.

As bench/plain.py, and as public code runs algorithm 1 of Li et al. (arXiv 2303.16203): image by image, draw by draw,
one batch of all classes through the eager network, error by mse_loss, one answer an image read back. The noise is
fastdc's, made and on the device before the time starts, so that the errors are the same. With a row of the plan

    x_t = gx x0 + ge e,    r = a F(x_t) + b x0 + c e,    error = weight mean r^2

which is as much work as the formulas of EDM or of an epsilon network written out.

Four ways to run it, by what users set: "float32", no TF32 anywhere; "default", torch as it comes, TF32 in convolutions;
"tf32", in products of matrices as well; "bfloat16", ``torch.autocast``.
"""

import time
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
from gpu_models import Case

from fastdc import ops
from fastdc.extras import require
from fastdc.images import streams_of, to_model_range
from fastdc.job import PlanOptions, plan_config
from fastdc.plan import make_plan

PRECISIONS = ("float32", "default", "tf32", "bfloat16")


def set_tf32(precision: str) -> None:
    """Sets torch's global flags of TF32 for one of :data:`PRECISIONS`."""
    torch = require("torch", extra="cuda")
    torch.backends.cudnn.allow_tf32 = precision != "float32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


class PlainLoop:
    """The loop over a network's images.

    Args:
        case: The network.
        module: It, on the device, called as (sample, timestep, class_labels).
        precision: One of :data:`PRECISIONS`.
        device: Of torch.
    """

    def __init__(self, case: Case, module: Any, precision: str, device: str) -> None:
        self._torch = require("torch", extra="cuda")
        self._case, self._module, self._device = case, module, device
        self._autocast = precision == "bfloat16"
        self._labels = self._torch.arange(case.source.model.num_classes, device=device)

    def __call__(
        self, images: npt.NDArray[np.uint8], options: PlanOptions
    ) -> tuple[npt.NDArray[np.float64], list[float]]:
        """Mean errors (n, K), and the seconds of each image."""
        torch, model = self._torch, self._case.source.model
        plan = make_plan(model.schedule, model.parameterization, plan_config(model, options))
        x = to_model_range(images, model)
        streams = streams_of(x)  # of the pixels, also where the network works on latents
        x0 = torch.from_numpy(x if self._case.encoder is None else self._case.encoder.encode(x)).to(self._device)
        shape = (1, *model.sample_shape)
        timesteps = torch.from_numpy(np.ascontiguousarray(plan.rows[:, 7])).to(self._device)
        rows = plan.rows.tolist()
        result, seconds = np.zeros((len(x), model.num_classes)), []
        for i, stream in enumerate(streams):
            drawn = np.arange(len(rows), dtype=np.int32)
            made = ops.philox_normal(np.full(len(rows), stream, np.int64), drawn, int(np.prod(shape)), seed=0)
            noise = torch.from_numpy(made.reshape(-1, *shape)).to(self._device)
            self._synchronize()
            start = time.perf_counter()
            with torch.inference_mode():
                result[i] = self._image(x0[i : i + 1], noise, rows, timesteps).cpu().numpy()
            seconds.append(time.perf_counter() - start)
        return result, seconds

    def _image(self, x0: Any, noise: Any, rows: list[list[float]], timesteps: Any) -> Any:
        """Mean errors (K,) of one image, on the device."""
        torch, count = self._torch, len(self._labels)
        total = torch.zeros(count, device=self._device)
        kind = self._device.partition(":")[0]
        for j, (gx, ge, a, b, c, _, weight, _) in enumerate(rows):
            x_t = gx * x0 + ge * noise[j]
            with torch.autocast(kind, dtype=torch.bfloat16) if self._autocast else nullcontext():
                raw = self._module(x_t.expand(count, -1, -1, -1), timesteps[j].expand(count), self._labels)
            wanted = (-(b * x0 + c * noise[j]) / a).expand(count, -1, -1, -1)
            error = torch.nn.functional.mse_loss(raw.float(), wanted, reduction="none")
            total += weight * a * a * error.mean(dim=(1, 2, 3))
        return total / len(rows)

    def _synchronize(self) -> None:
        if self._device.startswith("cuda"):
            self._torch.cuda.synchronize(self._device)
