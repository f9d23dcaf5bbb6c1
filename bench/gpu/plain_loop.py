"""The plain PyTorch loop for any network and device: the side that bench/gpu/networks.py compares with.

It follows the code of Li et al. for algorithm 1 (arXiv 2303.16203, with batches of 32, float16 and cudnn.benchmark).
Images go through the eager network one by one, in batches of up to 32 evaluations (all classes of as many draws as
fit), cuDNN searches for its fastest algorithms, and mse_loss gives the error. The loop is faster than that code in two
ways: it reads the errors back once per image, and it gets fastdc's noise, which is on the device before the clock
starts, so that the errors are the same. With a row of the plan

    x_t = gx x0 + ge e,    r = a F(x_t) + b x0 + c e,    error = weight mean r^2

which is as much work as the formulas of EDM or of an epsilon network.

There are five precisions, by the settings that users choose: "float32", without TF32; "default", torch's own settings,
with TF32 in convolutions; "tf32", with TF32 in matrix products as well; "bfloat16", ``torch.autocast``; and "float16",
the module in half precision.
"""

import time
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.diffusion import kernels, make_plan
from fastdc.inference import PlanOptions, plan_config, streams_of, to_model_range
from fastdc.support import require
from gpu.models import Case

PRECISIONS = ("float32", "default", "tf32", "bfloat16", "float16")
ROWS = 32
"""Evaluations of a batch, as in the public code; more if there are more classes."""


def set_flags(precision: str, *, plain: bool) -> None:
    """Sets torch's global flags for a precision: TF32 and, for the plain loop, cuDNN's search."""
    torch = require("torch", extra="cuda")
    torch.backends.cudnn.allow_tf32 = precision != "float32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = plain


class PlainLoop:
    """The loop over a network's images.

    Args:
        case: The network and its work.
        module: The network on the device, called as (sample, timestep, class_labels).
        precision: One of :data:`PRECISIONS`.
        device: torch's name of the device.
    """

    def __init__(self, case: Case, module: Any, precision: str, device: str) -> None:
        self._torch = require("torch", extra="cuda")
        self._case, self._module, self._device = case, module, device
        self._autocast = precision == "bfloat16"
        self._dtype = self._torch.float16 if precision == "float16" else self._torch.float32
        self._labels = self._torch.arange(case.source.model.num_classes, device=device)
        self._draws = max(1, ROWS // len(self._labels))

    def warm_up(self, draws: int) -> None:
        """Runs both batch sizes of an image with `draws` draws, so that cuDNN has searched for them."""
        few = min(draws, self._draws + draws % self._draws)
        self(self._case.images[:1], {"draws": few})

    def __call__(
        self, images: npt.NDArray[np.uint8], options: PlanOptions
    ) -> tuple[npt.NDArray[np.float64], list[float]]:
        """Mean errors (n, K) of images uint8 (n, c, h, w), and the time of each image in seconds."""
        torch, model = self._torch, self._case.source.model
        plan = make_plan(model.schedule, model.parameterization, plan_config(model, options))
        x = to_model_range(images, model)
        streams = streams_of(x)  # of the pixels, even if the network works on latents
        x0 = torch.from_numpy(x if self._case.encoder is None else self._case.encoder.encode(x)).to(self._device)
        rows = torch.from_numpy(np.ascontiguousarray(plan.rows)).to(self._device)
        result, seconds = np.zeros((len(x), model.num_classes)), []
        for i, stream in enumerate(streams):
            drawn = np.arange(len(rows), dtype=np.int32)
            size = int(np.prod(model.sample_shape))
            made = kernels.philox_normal(np.full(len(rows), stream, np.int64), drawn, size, seed=0)
            noise = torch.from_numpy(made.reshape(-1, *model.sample_shape)).to(self._device)
            self._synchronize()
            start = time.perf_counter()
            with torch.inference_mode():
                result[i] = self._image(x0[i : i + 1], noise, rows).cpu().numpy()
            seconds.append(time.perf_counter() - start)
        return result, seconds

    def _image(self, x0: Any, noise: Any, rows: Any) -> Any:
        """Mean errors (K,) of one image (1, c, h, w) under noise (J, c, h, w), on the device."""
        torch, count = self._torch, len(self._labels)
        total = torch.zeros(count, device=self._device)
        kind = self._device.partition(":")[0]
        for first in range(0, len(rows), self._draws):
            e, some = noise[first : first + self._draws], rows[first : first + self._draws]
            gx, ge, a, b, c = (some[:, column, None, None, None] for column in range(5))
            x_t = (gx * x0 + ge * e).repeat_interleave(count, dim=0).to(self._dtype)
            timesteps, labels = some[:, 7].repeat_interleave(count), self._labels.repeat(len(some))
            with torch.autocast(kind, dtype=torch.bfloat16) if self._autocast else nullcontext():
                raw = self._module(x_t, timesteps, labels)
            wanted = (-(b * x0 + c * e) / a).repeat_interleave(count, dim=0)
            error = torch.nn.functional.mse_loss(raw.float(), wanted, reduction="none").mean(dim=(1, 2, 3))
            total += (some[:, 6] * some[:, 2] ** 2) @ error.reshape(-1, count)
        return total / len(rows)

    def _synchronize(self) -> None:
        if self._device.startswith("cuda"):
            self._torch.cuda.synchronize(self._device)
