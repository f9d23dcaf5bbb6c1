"""Self-tests of engines, with ONNX Runtime in place of the engine: exact, and with faults that engines have had."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastdc import BackendError, Bundle, load_bundle
from fastdc.backends.tensorrt.graph import read_graph, tolerance
from fastdc.backends.tensorrt.selftest import Runner, cpu_reference, fixed_cells, self_test
from fastdc.bundle import DENOISER, find_model
from fastdc.testing import reference

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

Array = npt.NDArray[Any]
MLP = load_bundle(find_model("digits-mlp"))
UNET = load_bundle(find_model("digits"))


def check(engine: Runner, batches: tuple[int, ...] = (1, 8, 40), bundle: Bundle = MLP, **more: Any) -> Any:
    return self_test(bundle, read_graph(bundle.read(DENOISER)), engine, batches, **more)


def runner_of(model: Any) -> Runner:
    """Runs a changed graph in ONNX Runtime."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def run(sample: Array, timestep: Array, class_labels: Array) -> Array:
        feeds = {"sample": sample, "timestep": timestep, "class_labels": class_labels}
        output: Array = session.run(None, feeds)[0]
        return output

    return run


def changed(bundle: Bundle, operator: str, change: Callable[[Any, Any], None]) -> Runner:
    """Runs a bundle's graph in which the first node of a kind is changed."""
    model = onnx.load_from_string(bundle.read(DENOISER))
    change(model, next(node for node in model.graph.node if node.op_type == operator))
    return runner_of(model)


def test_the_graph_itself_passes() -> None:
    """Not to the bit, because ONNX Runtime sums in another order at other batches, as engines do."""
    found = check(cpu_reference(MLP))
    assert [one.batch for one in found.checks] == [1, 8, 40]
    assert found.allowed == tolerance(read_graph(MLP.read(DENOISER)), "float32")
    for one in found.checks:
        assert one.relative <= found.allowed / 10
        assert one.decision < 1e-3
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["checks"][2]["batch"] == 40


def test_every_row_of_every_step_is_compared() -> None:
    """A fault in any row is found, also in steps that are not a multiple of the cells."""
    run = cpu_reference(MLP)
    cells = len(fixed_cells(MLP, "float32").table)
    assert cells == 32
    seen = []

    def off_at(batch: int, row: int) -> Runner:
        def engine(sample: Array, timestep: Array, class_labels: Array) -> Array:
            output = run(sample, timestep, class_labels)
            if len(sample) == batch:
                seen.append(row)
                output[row, 0, 0, 0] += 0.01
            return output

        return engine

    for batch in (1, 5, 33, 64, 70):
        for row in {0, batch // 2, batch - 1}:
            with pytest.raises(BackendError, match=rf"differs from the CPU by .* at batch {batch}, .* it is refused"):
                check(off_at(batch, row), (1, batch))
    assert len(set(seen)) > 5


def test_a_norm_over_the_wrong_axes_is_refused() -> None:
    """A parser made this of GroupNorm with one group: statistics over other axes, here including the batch."""

    def change(model: Any, node: Any) -> None:
        node.op_type = "MeanVarianceNormalization"
        del node.input[1:], node.attribute[:]
        node.attribute.append(onnx.helper.make_attribute("axes", [0, 2]))

    with pytest.raises(BackendError, match=r"the engine differs from the CPU by .* at batch 8"):
        check(changed(UNET, "InstanceNormalization", change), (8,), UNET)


def test_a_norm_with_another_epsilon_is_refused() -> None:
    def change(model: Any, node: Any) -> None:
        next(one for one in node.attribute if one.name == "epsilon").f = 1e-3

    with pytest.raises(BackendError, match=r"the engine differs from the CPU by .* at batch 1,"):
        check(changed(UNET, "InstanceNormalization", change), (1, 8), UNET)


def test_an_overflow_in_float16_is_refused() -> None:
    """A layer's output goes through float16, as in a fused layer: values above 65504 become infinite."""

    def change(model: Any, node: Any) -> None:
        name = node.output[0]
        node.output[0] = name + ".wide"
        place = list(model.graph.node).index(node) + 1
        kind = onnx.TensorProto
        scale = onnx.helper.make_node("Constant", [], [name + ".scale"], value_float=60_000.0)
        steps = [
            scale,
            onnx.helper.make_node("Mul", [name + ".wide", name + ".scale"], [name + ".big"]),
            onnx.helper.make_node("Cast", [name + ".big"], [name + ".half"], to=kind.FLOAT16),
            onnx.helper.make_node("Cast", [name + ".half"], [name + ".back"], to=kind.FLOAT),
            onnx.helper.make_node("Div", [name + ".back", name + ".scale"], [name]),
        ]
        for offset, step in enumerate(steps):
            model.graph.node.insert(place + offset, step)

    with pytest.raises(BackendError, match="values that are not finite at batch 1, the CPU does not"):
        check(changed(MLP, "Gemm", change))


def test_rounding_to_half_precision_is_refused_in_float32_and_allowed_in_tf32() -> None:
    def change(model: Any, node: Any) -> None:
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                values = onnx.numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
                tensor.raw_data = values.tobytes()

    engine = changed(MLP, "Gemm", change)
    with pytest.raises(BackendError, match="the engine differs"):
        check(engine)
    found = check(engine, tf32=True)
    assert found.allowed == tolerance(read_graph(MLP.read(DENOISER)), "float16")
    assert max(one.relative for one in found.checks) > found.allowed / 100


def test_the_decision_agrees_with_a_plain_loop() -> None:
    """Errors recomputed cell by cell in float64 from the papers' formulas."""
    run = cpu_reference(MLP)

    def engine(sample: Array, timestep: Array, class_labels: Array) -> Array:
        output = run(sample, timestep, class_labels)
        moved: Array = output + np.float32(1e-5) * class_labels[:, None, None, None].astype(np.float32)
        return moved

    found = check(engine, (32,)).checks[0]
    cells = fixed_cells(MLP, "float32")
    size = math.prod(MLP.model.sample_shape)
    x = cells.images.reshape(-1).astype(np.float64)
    outputs = {name: one(cells.sample, cells.timestep, cells.class_labels) for name, one in (("r", run), ("e", engine))}
    errors: dict[str, dict[int, float]] = {"r": {}, "e": {}}
    for name, output in outputs.items():
        for place, (_, label, draw) in enumerate(cells.table.tolist()):
            row = cells.plan.rows[draw].astype(np.float64)
            noise = reference.normal(20_240_601, 0, draw, size)
            assert np.allclose(cells.sample[place].reshape(-1), reference.noisy_image(x, row, noise), atol=1e-5)
            r = reference.residual(output[place].reshape(-1).astype(np.float64), x, row, noise)
            one = row[6] * reference.rho(r, "l2").mean() / 4
            errors[name][label] = errors[name].get(label, 0.0) + one
    first, second = sorted(errors["r"].values())[:2]
    moved = max(abs(errors["e"][label] - errors["r"][label]) for label in errors["r"])
    assert found.decision == pytest.approx(moved / (second - first), rel=0.02)
    assert found.decision > 1e-5
    assert found.difference == pytest.approx(1e-4, rel=0.1), "1e-5 times the null class, 10"


def test_inputs_are_fixed_and_include_the_first_and_the_last_condition() -> None:
    first, second = fixed_cells(MLP, "float32"), fixed_cells(MLP, "float32")
    assert first.sample.tobytes() == second.sample.tobytes()
    assert {0, 10} <= set(first.class_labels.tolist()), "10 is the null class"
    assert len(set(first.timestep.tolist())) == 4
    assert len({(label, draw) for _, label, draw in first.table.tolist()}) == len(first.table) == 32
    assert -1 <= first.images.min() < -0.5
    assert 0.5 < first.images.max() <= 1
    assert 0.4 < first.images.std() < 0.55, "a quarter of the range, before it is clipped"
    assert np.array_equal(first.table[:, 1], first.class_labels)
    half = fixed_cells(MLP, "float16")
    assert half.sample.dtype == np.float16
    assert np.abs(half.sample.astype(np.float32) - first.sample).max() < 2.0**-9


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5, 6, 7, 8, 9, 100])
def test_every_condition_is_tested_under_every_draw(classes: int) -> None:
    names = tuple(map(str, range(classes)))
    model = replace(MLP.model, class_names=names, null_class=None, calibration=None, noised_calibrations=())
    table = fixed_cells(replace(MLP, model=model), "float32").table
    conditions = {label for _, label, _ in table.tolist()}
    assert len(conditions) == min(classes, 8)
    assert {0, classes - 1} <= conditions
    assert sorted((label, draw) for _, label, draw in table.tolist()) == sorted(product(conditions, range(4)))


@pytest.mark.parametrize(("flops", "conditions"), [(None, 8), (1e9, 8), (4.2e11, 2), (2e11, 6), (1e15, 2)])
def test_large_networks_get_fewer_conditions(flops: float | None, conditions: int) -> None:
    """The CPU has to evaluate every cell, and 32 cells of Stable Diffusion take minutes."""
    cost = {} if flops is None else {"cost": {"flops": flops}}
    manifest = {name: value for name, value in MLP.manifest.items() if name != "cost"} | cost
    cells = fixed_cells(replace(MLP, manifest=manifest), "float32")
    assert len(cells.table) == 4 * conditions
    assert {0, 10} <= set(cells.class_labels.tolist())
    assert cells.errors(cells.sample).shape == (conditions,)


def test_the_reference_uses_all_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastdc.backends.tensorrt import selftest

    asked: list[dict[str, int]] = []
    monkeypatch.setattr(selftest, "usable_cpus", lambda: 3)
    monkeypatch.setattr(selftest, "open_graph", lambda *_, **more: asked.append(more))
    cpu_reference(MLP)
    assert asked == [{"threads": 3}]


def test_an_overflow_of_the_graph_itself_is_told_apart() -> None:
    def broken(sample: Array, timestep: Array, class_labels: Array) -> Array:
        return np.full_like(sample, np.nan)

    with pytest.raises(BackendError, match="the graph of digits-mlp itself gives values that are not finite"):
        check(broken, reference=broken)
    with pytest.raises(BackendError, match=r"the engine returns shape \(8, 1, 4, 4\) at batch 8"):
        check(lambda sample, timestep, labels: sample[..., :4, :4], (8,))


def test_a_tie_between_classes_makes_the_decision_infinite() -> None:
    def blind(sample: Array, timestep: Array, class_labels: Array) -> Array:
        return sample.copy()

    found = check(blind, (4,), reference=blind).checks[0]
    assert (found.difference, found.decision) == (0.0, 0.0)
    near = check(lambda x, t, c: x * np.float32(1 + 2.0**-22) if c[0] else x, (4,), reference=blind)
    assert near.checks[0].decision == math.inf
    assert near.to_dict()["checks"][0]["decision"] is None
