"""Whole steps on a device: device arrays, captured steps against the same steps launched one by one, and the backends.

bench/gpu/gpu.sh runs what is marked `cuda`; where there is no device, the same tests run on what stands in for one
(tests/cuda_sides.py).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastdc import DiffusionClassifier
from fastdc.diffusion import kernels
from fastdc.diffusion.plan import make_plan
from fastdc.engine import Pool
from fastdc.engine.step import Step
from fastdc.inference import plan_config
from fastdc.inference.images import streams_of, to_model_range
from helpers.cuda_cases import N_CLASSES, SEED, error_tolerance, make_case
from helpers.cuda_sides import (
    BACKENDS,
    BATCH,
    DEVICES,
    IMAGES,
    ON_DEVICE,
    RTOL,
    Open,
    Side,
    StandInArrays,
    on_cpu,
    opened,
    sides,
)

__all__ = ["opened"]

TORCH = Side("torch", on_device=True)

# --- device arrays ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=DEVICES)
def arrays(request: pytest.FixtureRequest) -> Any:
    if request.param == "cpu":
        return StandInArrays()
    pytest.importorskip("cuda.core", exc_type=ImportError)
    from fastdc.backends.cuda_arrays import DeviceArrays

    return DeviceArrays(0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int32", "int64"])
def test_what_is_placed_is_read_back(arrays: Any, dtype: str) -> None:
    kind = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
    rows = 11 if isinstance(arrays, StandInArrays) else 5_000_011  # in several pieces
    values = (np.arange(rows * 2) % 60_000).reshape(-1, 2).astype(kind)
    made = arrays.place(values)
    assert made.pointer % 256 == 0
    np.testing.assert_array_equal(arrays.read(made, len(values)), values)
    arrays.write(made, values[::-1][:7])
    np.testing.assert_array_equal(arrays.read(made, 7), values[::-1][:7])


def test_kernels_on_device_arrays_are_captured_and_replayed(arrays: Any) -> None:
    """Noise with the CPU's bits, on the arrays' own stream, for whatever cells the table holds."""
    cases = [make_case(3072, layout, limit=24) for layout in ("runs", "distinct")]
    first = cases[0]
    images, rows, streams = map(arrays.place, (first.images, first.rows, first.streams))
    cells, u, errors = arrays.place(first.cells), arrays.empty((24, 3072), "float32"), arrays.empty((24,), "float32")
    views = [kernels.view(array) for array in (images, cells, rows, streams, u, errors)]
    common: dict[str, Any] = {"seed": SEED, "n_classes": N_CLASSES, "stream": arrays.stream}

    def launch() -> None:
        kernels.add_noise(*views[:4], out=views[4], **common)
        kernels.denoising_error(views[4], *views[:4], out=views[5], **common)

    launch()
    arrays.synchronize()
    replay = arrays.capture(launch)
    for case in cases:
        arrays.write(cells, case.cells)
        replay()
        want = kernels.add_noise(first.images, case.cells, first.rows, first.streams, seed=SEED, n_classes=N_CLASSES)
        np.testing.assert_array_equal(arrays.read(u, 24), want)
        on_host = kernels.denoising_error(want, first.images, case.cells, first.rows, first.streams, seed=SEED)
        np.testing.assert_allclose(arrays.read(errors, 24), on_host, rtol=error_tolerance(3072))


def test_a_device_array_is_shared_with_torch(arrays: Any) -> None:
    torch = pytest.importorskip("torch")
    made = arrays.place(np.arange(6, dtype=np.float32).reshape(2, 3))
    kind = "cpu" if made.__dlpack_device__()[0] == 1 else "cuda"
    if kind == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch has no CUDA")
    tensor = torch.from_dlpack(made)
    assert (tensor.device.type, tensor.data_ptr()) == (kind, made.pointer)
    assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]


# --- captured steps --------------------------------------------------------------------------------------------------


def bound(clf: DiffusionClassifier, *, draws: int = 4) -> list[Step]:
    """The steps of a classifier's slots, bound to a run with all images in place."""
    model, network = clf.model, clf.network
    plan = make_plan(model.schedule, model.parameterization, plan_config(model, {"draws": draws}))
    pool = Pool.of(network, model.sample_shape, plan, seed=3, n_classes=model.num_classes, capacity=len(IMAGES))
    x = to_model_range(IMAGES, model)
    for place, (image, stream) in enumerate(zip(x, streams_of(x), strict=True)):
        pool.put(place, image, int(stream))
    return [Step(network, slot, pool, int) for slot in network.slots]


def replayed(step: Step) -> list[int]:
    """The sizes that a slot replays: what is launched again as it was is no replay."""
    own = {key[1]: launch for key, launch in step._pool.arrays.steps.items() if key[0] == step._index}
    return sorted(size for size, launch in own.items() if launch not in (None, step._launch(size)))


def cells_of(size: int, seed: int) -> npt.NDArray[np.int32]:
    """Any cells, classes fastest for the most part."""
    rng = np.random.default_rng([size, seed])
    order = np.sort(rng.choice(len(IMAGES) * 4 * 10, size, replace=False))
    image, rest = np.divmod(order, 40)
    return np.ascontiguousarray(np.stack([image, rest % 10, rest // 10], axis=1).astype(np.int32))


def batches(*several: int) -> list[Any]:
    """Sides and batches: engines are built for one batch only."""
    quick = [(*side.values, batch, side.marks, side.id) for side in sides("torch", "onnx") for batch in several]
    built = [(*side.values, BATCH, side.marks, side.id) for side in sides("onnx-tensorrt", "tensorrt")]
    return [pytest.param(side, batch, marks=marks, id=f"{name}-{batch}") for side, batch, marks, name in quick + built]


@pytest.mark.parametrize(("side", "batch"), batches(1, BATCH, 100, 512))
def test_captured_steps_equal_those_launched_one_by_one(opened: Open, side: Side, batch: int) -> None:
    """The same kernels on the same numbers: to the bit, for every size, on every slot, in any order of sizes.

    Cells change from step to step, so that no number can be one that an earlier step left. ONNX Runtime's steps are
    launched each time: two of its sessions are compared, and those of its TensorRT provider may have other engines.
    """
    captured, plain = (opened(side, batch=batch, graphs=graphs) for graphs in (True, False))
    sizes = captured.network.sizes or (1, batch)
    many, others = bound(captured), bound(plain)
    tolerance = side.rtol if side.backend == "onnx-tensorrt" else 0
    for mine, theirs in zip(many, others, strict=True):
        for size in (*sizes, *sizes[::-1]):
            for seed in range(3):  # as it is, captured, replayed; then replayed
                cells = cells_of(size, seed)
                want = theirs.evaluate(cells)
                np.testing.assert_allclose(mine.evaluate(cells), want, rtol=tolerance)
        if captured.network.sizes is not None and side.backend in ("torch", "tensorrt"):
            assert replayed(mine) == sorted(sizes)
            assert replayed(theirs) == []


@pytest.mark.parametrize("side", sides(*BACKENDS))
def test_padded_steps_equal_whole_ones(opened: Open, side: Side) -> None:
    """A cell's error does not depend on what fills the step beside it; to the bit, as the size stays the same."""
    step, cells = bound(opened(side, batch=BATCH))[0], cells_of(BATCH, 0)
    whole = [step.evaluate(cells) for _ in range(3)][-1]
    for count in (BATCH - 1, BATCH // 2 + 1):
        np.testing.assert_allclose(step.evaluate(cells[:count]), whole[:count], rtol=0 if side.on_device else 1e-5)


@pytest.mark.parametrize("side", sides(*BACKENDS))
def test_two_slots_capture_while_the_other_one_runs(opened: Open, side: Side) -> None:
    clf = opened(side, batch=BATCH)
    want = on_cpu().errors(IMAGES, draws=5).errors
    for _ in range(3):
        np.testing.assert_allclose(clf.errors(IMAGES, draws=5).errors, want, rtol=side.rtol)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=ON_DEVICE)])
def test_replays_allocate_nothing(opened: Open, device: str) -> None:
    """1600 cells are 50 full steps, whatever the slots' timing."""
    torch = pytest.importorskip("torch")
    clf = opened(TORCH, device=device, batch=32)
    for _ in range(3):
        clf.errors(IMAGES, draws=4)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    clf.errors(IMAGES, draws=4)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


# --- backends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "model"),
    [
        pytest.param(*side.values, model, marks=side.marks, id=f"{side.id}-{model}")
        for model, backends in (("digits-mlp", BACKENDS), ("digits", ("torch", "onnx")))
        for side in sides(*backends)
    ],
)
def test_errors_and_labels_are_the_cpus(opened: Open, side: Side, model: str) -> None:
    images, draws = (IMAGES, 16) if model == "digits-mlp" else (IMAGES[:5], 4)
    got = opened(side, model, batch=BATCH).classify(images, rule="full", draws=draws)
    want = on_cpu(model).classify(images, rule="full", draws=draws)
    np.testing.assert_allclose(got.table.errors, want.table.errors, rtol=side.rtol)
    np.testing.assert_array_equal(got.labels, want.labels)


@pytest.mark.parametrize("side", sides("torch", "onnx", "tensorrt"))
@pytest.mark.parametrize("method", ["denoised", "apndc-x"])
def test_methods_that_denoise_first(opened: Open, side: Side, method: str) -> None:
    options: dict[str, Any] = {"draws": 4, "method": method, "sigma": 0.1, "levels": (0.3, 2.0)}
    got = opened(side, batch=BATCH).errors(IMAGES[:9], **options)
    want = on_cpu().errors(IMAGES[:9], **options)
    np.testing.assert_allclose(got.errors, want.errors, rtol=RTOL)


@pytest.mark.parametrize("side", sides("torch"))
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision(opened: Open, side: Side, precision: str) -> None:
    got = opened(side, batch=64, precision=precision).classify(IMAGES, rule="full", draws=8)
    want = on_cpu().classify(IMAGES, rule="full", draws=8)
    assert np.mean(got.labels == want.labels) > 0.9
    np.testing.assert_allclose(got.errors, want.errors, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("side", [pytest.param(TORCH, marks=ON_DEVICE)], ids=["torch-cuda"])
def test_compiled_steps_are_captured_too(opened: Open, side: Side) -> None:
    """320 cells are 10 full steps: one size is compiled. On the CPU tests/backends/torch compiles."""
    got = opened(side, batch=32, compile=True).errors(IMAGES[:8], draws=4)
    np.testing.assert_allclose(got.errors, on_cpu().errors(IMAGES[:8], draws=4).errors, rtol=RTOL)


@pytest.mark.parametrize("side", sides("torch", "onnx", "tensorrt"))
def test_a_second_device_gives_the_same_numbers(opened: Open, side: Side) -> None:
    """1200 cells are 50 full steps of 24, whatever the slots' timing: to the bit on devices of one kind."""
    if side.on_device and kernels.cuda_device_count() < 2:
        pytest.skip("needs two devices")
    one, other = (
        opened(side, batch=BATCH, device=device).errors(IMAGES[:30], draws=4) for device in ("cuda:0", "cuda:1")
    )
    np.testing.assert_array_equal(one.errors, other.errors)
