"""The released procedure of noised diffusion classifiers, as its own users run it: the slow side of ``certify.py``.

For every noisy copy it takes one denoising step. Then, for every class, it sends one batch of all levels through the
eager network and sums the weighted mean squared errors over the levels. The noise is made again from the same seed for
each class, so that classes share it. (Chen et al., arXiv 2402.02316, section 3, and the structure of its public code.)
Copies are classified one after another: N (K T' + 1) network evaluations per image.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastdc
from fastdc.bundle import Model, build_network
from fastdc.diffusion import ROW_FIELDS, make_plan
from fastdc.inference import plan_config, released_plan
from fastdc.support import Float32, Int64, require


@dataclass(frozen=True, eq=False)
class ReleasedLoop:
    """APNDC on eager torch.

    Attributes:
        network: Module F(sample, timestep, class_labels).
        model: Model of the network.
        tau: Standard deviation of the copies' noise, in the model's range.
        sigmas: Noise levels, float32 tensor (T',).
        timesteps: Time input of each level, float32 tensor (T',).
        weights: Weight of each level, float32 tensor (T',).
    """

    network: Any
    model: Model
    tau: float
    sigmas: Any
    timesteps: Any
    weights: Any

    @classmethod
    def of(cls, bundle: fastdc.Bundle, sigma: float) -> "ReleasedLoop":
        """Makes the loop for a bundle with PyTorch weights; `sigma` is in pixels in [0, 1]."""
        torch = require("torch", extra="export")
        import safetensors.torch

        network = build_network(bundle.manifest["network"]["kind"], bundle.manifest["network"]["config"])
        network.load_state_dict(safetensors.torch.load(bundle.read("weights.safetensors")))
        model = bundle.model
        plan = make_plan(
            model.schedule, model.parameterization, plan_config(model, released_plan(model, "apndc", sigma))
        )
        return cls(
            network=network.eval(),
            model=model,
            tau=model.noise_ratio(sigma),
            sigmas=torch.tensor(plan.levels.sigma, dtype=torch.float32),
            timesteps=torch.tensor(plan.levels.timestep, dtype=torch.float32),
            weights=torch.tensor(plan.rows[:, ROW_FIELDS.index("weight")]),
        )

    @property
    def evaluations(self) -> int:
        """Network evaluations per copy."""
        return self.model.num_classes * len(self.sigmas) + 1

    def __call__(self, copies: Float32) -> tuple[Int64, float]:
        """Classifies copies (m, c, h, w) in the model's range; returns labels (m,) and seconds."""
        torch = require("torch", extra="export")
        labels = []
        start = time.perf_counter()
        with torch.inference_mode():
            for index, copy in enumerate(torch.from_numpy(copies)):
                labels.append(int(self._logits(torch, copy[None], index).argmax()))
        return np.array(labels, np.int64), time.perf_counter() - start

    def _logits(self, torch: Any, copy: Any, seed: int) -> Any:
        null = torch.tensor([self.model.null_class])
        tau = torch.tensor([self.tau])
        levels = self.model.schedule.levels([self.model.schedule.position_of(self.tau)])
        denoised = self.denoise(copy, tau, torch.tensor(levels.timestep, dtype=torch.float32), null)
        count = len(self.sigmas)
        logits = []
        for label in range(self.model.num_classes):
            generator = torch.Generator().manual_seed(seed)
            noise = torch.randn(count, *copy.shape[1:], generator=generator)
            x_t = denoised + self.sigmas[:, None, None, None] * noise
            answer = self.denoise(x_t, self.sigmas, self.timesteps, torch.full((count,), label))
            error = ((answer - denoised) ** 2).mean(dim=(1, 2, 3))
            logits.append(-(self.weights * error).sum())
        return torch.stack(logits)

    def denoise(self, x_t: Any, sigma: Any, timestep: Any, labels: Any) -> Any:
        """Denoises tensors x_t (m, c, h, w), given tensors sigma, timestep and labels (m,)."""
        data = float(self.model.parameterization.sigma_data or 0)
        scale = (sigma**2 + data**2).sqrt()[:, None, None, None]
        raw = self.network(x_t / scale, timestep, labels)
        return (data / scale) ** 2 * x_t + sigma[:, None, None, None] * data / scale * raw
