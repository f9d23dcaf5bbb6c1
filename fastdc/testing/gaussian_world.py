"""A world with known answers: K classes of Gaussian images, whose optimal denoiser is a formula.

If images of class k are distributed as N(mu_k, s^2 I), the best denoiser of x_t = x + sigma e is

    D(x_t; sigma, k) = (s^2 x_t + sigma^2 mu_k) / (s^2 + sigma^2)

and its error at an image x is, with d pixels and over the noise e ~ N(0, I),

    E ||D(x + sigma e; sigma, k) - x||^2 = (s^4 sigma^2 d + sigma^4 ||mu_k - x||^2) / (s^2 + sigma^2)^2 .

The class with the nearest mean therefore has the smallest expected error at every level, and every difference between
classes is Gaussian with known moments. Tests compare classifiers, races and certificates with these exact answers. The
world needs no weights, and it can be written as a bundle that runs on every backend.
"""

import json
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastdc.backends import AbstractNetwork, FunctionNetwork, NetworkOptions
from fastdc.bundle import DENOISER, Bundle, Defaults, Model, write_bundle
from fastdc.diffusion import EDMSchedule, Parameterization
from fastdc.support import Float32, Float64, InputError, Int64, require


@dataclass(frozen=True, eq=False)
class GaussianWorld:
    """K Gaussian classes and their optimal denoiser, predicting x directly ("sample").

    Attributes:
        means: Means mu_k of the classes, float64 (K, c, h, w), in the model's value range [-1, 1].
        spread: Standard deviation s within a class; positive.
        schedule: Schedule of the noise levels.

    Raises:
        InputError: The means have another shape or are not finite, or the spread is not positive.
    """

    means: Float64 = field(repr=False)
    spread: float = 0.25
    schedule: EDMSchedule = field(default_factory=lambda: EDMSchedule(sigma_min=0.05, sigma_max=5.0))

    def __post_init__(self) -> None:
        if self.means.ndim != 4 or len(self.means) == 0:
            raise InputError(f"means must have shape (K, c, h, w), got {self.means.shape}")
        if not np.all(np.isfinite(self.means)):
            raise InputError("means must be finite")
        if not 0 < self.spread < np.inf:
            raise InputError(f"spread must be positive, got {self.spread}")

    @classmethod
    def random(
        cls, classes: int, shape: tuple[int, int, int] = (1, 4, 4), *, scale: float = 0.5, seed: int = 0
    ) -> "GaussianWorld":
        """A world whose means are drawn uniformly from [-scale, scale]; the seed determines them."""
        means = np.random.default_rng(seed).uniform(-scale, scale, (classes, *shape))
        return cls(means=means)

    @property
    def model(self) -> Model:
        """The world's model, for a classifier."""
        return Model(
            name="gaussian",
            image_shape=(self.means.shape[1], self.means.shape[2], self.means.shape[3]),
            class_names=tuple(f"class {k}" for k in range(len(self.means))),
            schedule=self.schedule,
            parameterization=Parameterization("sample"),
            defaults=Defaults(draws=32, weighting="edm"),
        )

    def network(self, options: NetworkOptions | None = None) -> AbstractNetwork:
        """The denoiser as a network that calls a Python function."""
        return FunctionNetwork(self._evaluate, self.model.image_shape, options)

    def denoise(self, x_t: Float64, sigma: Float64, labels: Int64) -> Float64:
        """D(x_t; sigma, label), float64 (b, c, h, w), for noisy images x_t (b, c, h, w), sigma (b,) and labels (b,)."""
        variance = (sigma**2)[:, None, None, None]
        inside = self.spread**2
        return np.asarray((inside * x_t + variance * self.means[labels]) / (inside + variance))

    def expected_error(self, x: Float64, sigma: float) -> Float64:
        """E ||D(x + sigma e; sigma, k) - x||^2 / d, float64 (n, K), for images x (n, c, h, w) in [-1, 1]."""
        inside, pixels = self.spread**2, x[0].size
        distance = ((self.means[None] - x[:, None]) ** 2).sum(axis=(2, 3, 4))
        total = inside**2 * sigma**2 * pixels + sigma**4 * distance
        return np.asarray(total / (inside + sigma**2) ** 2 / pixels)

    def nearest(self, x: Float64) -> Int64:
        """The class with the nearest mean, which has the smallest expected error, int64 (n,)."""
        distance = ((self.means[None] - x[:, None]) ** 2).sum(axis=(2, 3, 4))
        return np.asarray(distance.argmin(axis=1), dtype=np.int64)

    def sample(self, labels: Int64, *, seed: int = 0) -> Float64:
        """Images of the classes, float64 (n, c, h, w), clipped to [-1, 1]."""
        noise = np.random.default_rng(seed).standard_normal((len(labels), *self.means.shape[1:]))
        return np.asarray(np.clip(self.means[labels] + self.spread * noise, -1, 1))

    def write(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Bundle:
        """Writes the world as a bundle; this needs the package onnx.

        Args:
            path: The folder to make.
            overwrite: Replace an existing bundle.

        Raises:
            MissingDependencyError: onnx is not installed.
            BundleError: The folder exists and may not be replaced.
        """
        model = self.model
        manifest: dict[str, Any] = {
            "name": model.name,
            "description": f"{len(self.means)} Gaussian classes with known answers",
            "image": {"shape": list(model.image_shape), "range": list(model.value_range)},
            "classes": list(model.class_names),
            "null_class": None,
            "schedule": model.schedule.to_dict(),
            "parameterization": model.parameterization.to_dict(),
            "defaults": {"draws": model.defaults.draws, "weighting": model.defaults.weighting},
            "network": None,
            "provenance": {"spread": self.spread},
        }
        return write_bundle(path, json.loads(json.dumps(manifest)), {DENOISER: self._graph()}, overwrite=overwrite)

    def _evaluate(self, sample: Float32, timestep: Float32, labels: Int64) -> Float64:
        sigma = np.exp(timestep.astype(np.float64) / self.schedule.timestep_scale)
        return self.denoise(sample.astype(np.float64), sigma, labels)

    def _graph(self) -> bytes:
        """The formula of the denoiser as an ONNX graph, with sigma^2 = exp(2 timestep / scale)."""
        onnx = require("onnx", extra="export")
        helper, kinds = onnx.helper, onnx.TensorProto
        shape = self.means.shape[1:]

        def constant(name: str, value: Any, dtype: Any = np.float32) -> Any:
            return onnx.numpy_helper.from_array(np.asarray(value, dtype=dtype), name)

        nodes = [
            helper.make_node("Mul", ["timestep", "rate"], ["log_variance"]),
            helper.make_node("Exp", ["log_variance"], ["flat_variance"]),
            helper.make_node("Reshape", ["flat_variance", "column"], ["variance"]),
            helper.make_node("Gather", ["means", "class_labels"], ["mean"], axis=0),
            helper.make_node("Mul", ["sample", "inside"], ["kept"]),
            helper.make_node("Mul", ["mean", "variance"], ["pulled"]),
            helper.make_node("Add", ["kept", "pulled"], ["numerator"]),
            helper.make_node("Add", ["variance", "inside"], ["denominator"]),
            helper.make_node("Div", ["numerator", "denominator"], ["output"]),
        ]
        graph = helper.make_graph(
            nodes,
            "gaussian",
            [
                helper.make_tensor_value_info("sample", kinds.FLOAT, ["batch", *shape]),
                helper.make_tensor_value_info("timestep", kinds.FLOAT, ["batch"]),
                helper.make_tensor_value_info("class_labels", kinds.INT64, ["batch"]),
            ],
            [helper.make_tensor_value_info("output", kinds.FLOAT, ["batch", *shape])],
            [
                constant("rate", 2 / self.schedule.timestep_scale),
                constant("inside", self.spread**2),
                constant("column", [-1, 1, 1, 1], np.int64),
                constant("means", self.means),
            ],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
        onnx.checker.check_model(proto, full_check=True)
        content: bytes = proto.SerializeToString(deterministic=True)
        return content
