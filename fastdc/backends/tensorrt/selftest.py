"""The self-test of an engine: it runs on fixed inputs, and its outputs are compared with ONNX Runtime on the CPU.

Engines are known to be wrong silently: a GroupNorm with one group taken over the wrong axes, a minimum and a maximum
fused away, float16 that overflows inside a fused layer, kernels that are right only at the batch that they were tuned
for. Every engine is therefore run once when it is built, at batch 1 and at the least, usual and largest size of each
profile. Two things are compared:

* Outputs: each may differ from the CPU's by as much as rounding explains (``graph.tolerance``), relative to the largest
  output.
* Decisions: with err_k the mean error of class k over the draws, the largest |delta err_k| relative to the gap between
  the two best classes. From 1/2 on a decision could change. This number is recorded but not judged: the images here are
  noise, and their classes may lie arbitrarily close together.

The inputs are Philox noise and always the same: one noise image at four levels of the model's own band, under up to
eight conditions that include the first and the last. There are as many conditions as 5 TFLOP allow, and at least two,
because the CPU takes seconds for each evaluation of a large network. A batch with more rows repeats the cells, so every
row of every batch is compared while the CPU evaluates at most 32 cells.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.backends.condition_tables import condition_rows, condition_tables
from fastdc.backends.host import usable_cpus
from fastdc.backends.onnx.graphs import evaluate, open_graph
from fastdc.backends.onnx.widen import widened_session
from fastdc.backends.tensorrt.graph import GraphFacts, tolerance
from fastdc.bundle import DENOISER, Bundle
from fastdc.diffusion import Plan, PlanConfig, kernels, make_plan
from fastdc.support import BackendError, Float32, Float64

Array = npt.NDArray[Any]
Runner = Callable[[Array, Array, Array], Array]
"""(sample (b, c, h, w) in the graph's type, timestep float32 (b,), class_labels int64 (b,)) -> output (b, c, h, w)."""

_DRAWS, _CONDITIONS = 4, 8
_FLOPS = 5e12  # of all cells together: seconds on the CPU
_SEED = 20_240_601  # arbitrary but fixed, so that an engine always gets the same inputs
_CPU_BATCH = 4  # at this batch the activations of large networks fit into memory
_EXACT = 2.0**-22  # smallest tolerance: even a network without weights rounds its output


@dataclass(frozen=True)
class BatchCheck:
    """Results at one batch.

    Attributes:
        batch: Number of rows.
        difference: Largest absolute difference of an output.
        relative: The same, relative to the CPU's largest output.
        decision: Largest |delta err_k| relative to the gap between the two best classes; infinite if these tie.
    """

    batch: int
    difference: float
    relative: float
    decision: float


@dataclass(frozen=True)
class SelfTest:
    """Results of a self-test that was passed.

    Attributes:
        allowed: Largest value that ``relative`` may have.
        checks: Results at each batch.
    """

    allowed: float
    checks: tuple[BatchCheck, ...]

    def to_dict(self) -> dict[str, Any]:
        """The results as JSON values; null stands for infinity."""
        checks = [asdict(one) for one in self.checks]
        for one in checks:
            one["decision"] = one["decision"] if np.isfinite(one["decision"]) else None
        return {"allowed": self.allowed, "checks": checks}


@dataclass(frozen=True, eq=False)
class Cells:
    """The fixed inputs of a self-test, and the arrays that turn outputs into errors.

    Attributes:
        sample: Network inputs, (cells, c, h, w) in the graph's type.
        timestep: Network timesteps, float32 (cells,).
        class_labels: Conditions, int64 (cells,).
        images: The noise image, float32 (1, c, h, w).
        table: Cell table as in ``kernels``, int32 (cells, 3): each condition under each draw.
        plan: The draws.
    """

    sample: Array
    timestep: Array
    class_labels: Array
    images: Float32
    table: Array
    plan: Plan

    def errors(self, output: Array) -> Float64:
        """Mean error of each condition over the draws, (conditions,), given the outputs of all cells."""
        config = self.plan.config
        errors = kernels.denoising_error(
            np.ascontiguousarray(output),
            self.images,
            self.table,
            self.plan.rows,
            np.zeros(1, np.int64),
            seed=_SEED,
            loss=config.loss,
            delta=config.delta,
        )
        _, condition = np.unique(self.table[:, 1], return_inverse=True)
        return np.bincount(condition, np.asarray(errors, np.float64)) / _DRAWS


def fixed_cells(bundle: Bundle, dtype: str) -> Cells:
    """The fixed inputs of a bundle's self-test.

    Args:
        bundle: The bundle.
        dtype: Element type of the graph's sample.
    """
    model = bundle.model
    rows = condition_rows(model)
    affordable = int(_FLOPS / ((bundle.flops or 1.0) * _DRAWS))
    labels = np.unique(np.linspace(0, rows - 1, min(rows, _CONDITIONS, max(2, affordable))).astype(np.int32))
    defaults = model.defaults
    config = PlanConfig(
        draws=_DRAWS, levels=defaults.levels, weighting=defaults.weighting, loss=defaults.loss, first=()
    )
    plan = make_plan(model.schedule, model.parameterization, config)
    table = np.zeros((_DRAWS * len(labels), 3), np.int32)
    cell = np.arange(len(table))
    # Neighbours differ in condition and draw, so small steps also show a leak between rows, such as a batch norm.
    table[:, 1] = labels[(cell // _DRAWS + cell % _DRAWS) % len(labels)]
    table[:, 2] = cell % _DRAWS
    stream = np.zeros(1, np.int64)
    noise = kernels.philox_normal(
        stream, np.zeros(1, np.int32), int(np.prod(model.sample_shape)), seed=_SEED, purpose=kernels.PURPOSE_SELECTION
    )
    images = np.asarray(noise, np.float32).reshape(1, *(model.latent_shape or model.image_shape))
    if model.latent_shape is None:
        low, high = model.value_range
        images = model.samples(np.clip((high + low) / 2 + (high - low) / 4 * images, low, high).astype(np.float32))
    timestep, class_labels = np.zeros(len(table), np.float32), np.zeros(len(table), np.int64)
    sample = kernels.add_noise(
        images, table, plan.rows, stream, seed=_SEED, dtype=dtype, timestep=timestep, labels=class_labels
    )
    return Cells(sample, timestep, class_labels, images, table, plan)


def self_test(
    bundle: Bundle,
    facts: GraphFacts,
    engine: Runner,
    batches: Iterable[int],
    *,
    dtype: str = "float32",
    tf32: bool = False,
    reference: Runner | None = None,
) -> SelfTest:
    """Compares an engine with the CPU.

    Args:
        bundle: Bundle that the engine was built from.
        facts: Facts of the bundle's graph.
        engine: Runs the engine.
        batches: Numbers of rows to run the engine at.
        dtype: Element type of sample and output.
        tf32: Whether the engine was built with TF32.
        reference: Runs the graph; default :func:`cpu_reference`.

    Raises:
        BackendError: The engine differs by more than rounding explains, or an output is not finite.
    """
    cells = fixed_cells(bundle, dtype)
    want = _run(reference or cpu_reference(bundle), cells, _CPU_BATCH)[0]
    if not np.all(np.isfinite(want)):
        raise BackendError(f"the graph of {bundle.name} itself gives values that are not finite, in {dtype} on the CPU")
    precision = str(bundle.manifest.get("precision", "float32"))
    allowed = max(_EXACT, tolerance(facts, precision, tf32=tf32))
    scale = float(np.abs(want).max()) or 1.0
    best = np.sort(errors := cells.errors(want))[:2]
    gap = float(best[-1] - best[0]) if len(best) > 1 else 0.0
    checks = []
    for batch in batches:
        difference = decision = 0.0
        for got in _run(engine, cells, batch):
            if not np.all(np.isfinite(got)):
                raise BackendError(f"the engine gives values that are not finite at batch {batch}, the CPU does not")
            difference = max(difference, float(np.abs(got.astype(np.float64) - want).max()))
            moved = float(np.abs(cells.errors(got) - errors).max())
            decision = max(decision, moved / gap if gap > 0 else (float("inf") if moved else 0.0))
        if not difference <= allowed * scale:
            raise BackendError(
                f"the engine differs from the CPU by {difference / scale:.2g} of the largest output at batch {batch}, "
                f"allowed is {allowed:.2g}: it is refused"
            )
        checks.append(BatchCheck(batch, difference, difference / scale, decision))
    return SelfTest(allowed, tuple(checks))


def _run(runner: Runner, cells: Cells, batch: int) -> list[Array]:
    """Outputs of all cells, float32, once for each time that steps of `batch` rows repeat them; no row is left out."""
    count = len(cells.table)
    steps = -(-count // batch)
    rows = []
    for step in range(steps):
        index = np.arange(step * batch, (step + 1) * batch) % count
        output = runner(cells.sample[index], cells.timestep[index], cells.class_labels[index])
        if output.shape != (batch, *cells.sample.shape[1:]):
            raise BackendError(f"the engine returns shape {output.shape} at batch {batch}")
        rows.append(output.astype(np.float32))
    flat = np.concatenate(rows)
    filled = [flat[start : start + count] for start in range(0, len(flat) - count + 1, count)]
    left = len(flat) % count
    if left:  # the last rows, completed with outputs that were compared already
        filled.append(np.concatenate([flat[-left:], flat[left:count]]))
    return filled


def cpu_reference(bundle: Bundle) -> Runner:
    """Runs a bundle's graph in ONNX Runtime on the CPU; a bfloat16 graph runs in float32 with the same rounded weights.

    Raises:
        MissingDependencyError: onnxruntime is not installed, or onnx, which a bfloat16 graph needs.
        BundleError: The graph is corrupt.
    """
    wide = bundle.manifest.get("precision") == "bfloat16"
    session = (widened_session if wide else open_graph)(bundle, DENOISER, threads=usable_cpus())
    tables: Mapping[str, Float32] = condition_tables(bundle)

    def run(sample: Array, timestep: Array, class_labels: Array) -> Array:
        cast = sample.astype(np.float32) if wide else sample
        feeds = {"sample": cast, "timestep": timestep, "class_labels": class_labels, **tables}
        output: Array = evaluate(session, feeds, DENOISER)[0]
        return output

    return run
