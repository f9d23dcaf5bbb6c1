"""The CUDA kernels on a device against the CPU kernels: same bits where promised, else the derived tolerance.

The file is skipped without torch, a build with CUDA, or a device. bench/gpu/gpu.sh builds for the device and runs it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastdc import InputError
from fastdc.diffusion import kernels
from helpers.cuda_cases import DELTA, DTYPES, LAYOUTS, N_CLASSES, SEED, SIZES, Case, error_tolerance, make_case

torch = pytest.importorskip("torch", reason="needs torch to hold arrays on a device")
if not kernels.build_config()["cuda"]:
    pytest.skip("fastdc was built without CUDA", allow_module_level=True)
if kernels.cuda_device_count() == 0 or not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

pytestmark = pytest.mark.cuda

BIG_BYTES = 12 * 2**30  # device memory that the test of 64-bit offsets wants free


def to_device(array: npt.NDArray[Any]) -> Any:
    if array.dtype == DTYPES["bfloat16"]:
        return torch.from_numpy(array.view(np.int16)).cuda().view(torch.bfloat16)
    return torch.from_numpy(array).cuda()


def to_host(tensor: Any) -> npt.NDArray[Any]:
    torch.cuda.synchronize()
    if tensor.dtype == torch.bfloat16:
        bits: npt.NDArray[Any] = tensor.view(torch.int16).cpu().numpy()
        return bits.view(DTYPES["bfloat16"])
    array: npt.NDArray[Any] = tensor.cpu().numpy()
    return array


def inputs(case: Case, *, device: bool) -> tuple[Any, Any, Any, Any]:
    place = to_device if device else np.asarray
    return place(case.images), place(case.cells), place(case.rows), place(case.streams)


def noised(case: Case, dtype: str, *, device: bool, **options: Any) -> tuple[npt.NDArray[Any], ...]:
    count = len(case.cells)
    out = np.empty((count, case.images.shape[1]), DTYPES[dtype])
    outputs: tuple[Any, ...] = (out, np.empty(count, np.float32), np.empty(count, np.int64))
    if device:
        outputs = tuple(to_device(output) for output in outputs)
    kernels.add_noise(
        *inputs(case, device=device), seed=SEED, n_classes=N_CLASSES,
        out=outputs[0], timestep=outputs[1], labels=outputs[2], **options,
    )  # fmt: skip
    return tuple(to_host(output) for output in outputs) if device else outputs


def errors(case: Case, loss: str, *, device: bool, target: bool = False, **options: Any) -> npt.NDArray[np.float32]:
    place = to_device if device else np.asarray
    result = kernels.denoising_error(
        place(case.output), *inputs(case, device=device), seed=SEED, loss=loss, delta=DELTA, n_classes=N_CLASSES,
        target=place(case.target) if target else None, **options,
    )  # fmt: skip
    array: npt.NDArray[np.float32] = to_host(result) if device else result
    return array


def maps(case: Case, loss: str, *, device: bool, target: bool, **options: Any) -> npt.NDArray[np.float32]:
    place = to_device if device else np.asarray
    result = place(np.full((len(case.images), N_CLASSES, case.images.shape[1]), 0.25, np.float32))
    kernels.error_map(
        place(case.output), *inputs(case, device=device), result, seed=SEED, loss=loss, delta=DELTA,
        target=place(case.target) if target else None, **options,
    )  # fmt: skip
    array: npt.NDArray[np.float32] = to_host(result) if device else result
    return array


def assert_same_bits(actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert actual.tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", SIZES)
def test_philox_normal_has_the_cpu_bits(size: int) -> None:
    streams = np.array([0, 1, 2**40 + 17, kernels.MAX_STREAM, 5], np.int64)
    draws = np.array([0, 2**31 - 1, 3, 4, 5], np.int32)
    expected = kernels.philox_normal(streams, draws, size, seed=SEED)
    assert_same_bits(to_host(kernels.philox_normal(to_device(streams), to_device(draws), size, seed=SEED)), expected)


def test_philox_normal_over_more_rows_than_a_grid_has_blocks() -> None:
    rows = 65_535 * 8 + 11
    streams, draws = np.arange(rows, dtype=np.int64), np.zeros(rows, np.int32)
    actual = to_host(kernels.philox_normal(to_device(streams), to_device(draws), 1, seed=SEED))
    assert_same_bits(actual, kernels.philox_normal(streams, draws, 1, seed=SEED))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_add_noise_has_the_cpu_bits(size: int, layout: str, dtype: str) -> None:
    case = make_case(size, layout, dtype, limit=40)
    on_device, on_host = noised(case, dtype, device=True), noised(case, dtype, device=False)
    for actual, expected in zip(on_device, on_host, strict=True):
        assert_same_bits(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_denoising_error_is_the_cpu_error_up_to_the_order_of_the_sum(size: int, layout: str, dtype: str) -> None:
    case = make_case(size, layout, dtype, limit=40)
    for loss in kernels.LOSSES:
        for target in (False, True):
            actual = errors(case, loss, device=True, target=target)
            expected = errors(case, loss, device=False, target=target)
            np.testing.assert_allclose(actual, expected, rtol=error_tolerance(size), atol=0)


@pytest.mark.parametrize("size", [65, 3072, 16384])
def test_an_error_depends_on_nothing_but_its_cell(size: int) -> None:
    case = make_case(size, "mixed")
    together = errors(case, "l2", device=True)
    assert_same_bits(errors(case, "l2", device=True), together)
    for b in range(0, len(case.cells), 7):
        alone = Case(case.images, case.cells[b : b + 1], case.rows, case.streams, case.output[b : b + 1], case.target)
        assert_same_bits(errors(alone, "l2", device=True), together[b : b + 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 3, 64, 783, 3072])
def test_error_map_has_the_cpu_bits(size: int, layout: str, dtype: str) -> None:
    case = make_case(size, layout, dtype)
    for loss in kernels.MAP_LOSSES:
        for target in (False, True):
            actual = maps(case, loss, device=True, target=target)
            assert_same_bits(actual, maps(case, loss, device=False, target=target))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [3, 64, 783, 3072])
def test_antithetic_pairs_share_the_noise_of_the_cpu(size: int, layout: str) -> None:
    case = make_case(size, layout, "float16")
    on_device, on_host = (noised(case, "float16", device=device, antithetic=True) for device in (True, False))
    for actual, expected in zip(on_device, on_host, strict=True):
        assert_same_bits(actual, expected)
    actual, expected = (errors(case, "l1", device=device, antithetic=True) for device in (True, False))
    np.testing.assert_allclose(actual, expected, rtol=error_tolerance(size), atol=0)
    actual, expected = (maps(case, "l2", device=device, target=True, antithetic=True) for device in (True, False))
    assert_same_bits(actual, expected)


@pytest.mark.parametrize("offset", [1, 2, 4])
def test_misaligned_arrays_give_the_same_bits(offset: int) -> None:
    case = make_case(64, "runs", "float16")
    count = case.output.size
    buffer = torch.zeros(count + offset, dtype=torch.float16, device="cuda")
    u = buffer[offset:].view(len(case.cells), 64)
    kernels.add_noise(*inputs(case, device=True), seed=SEED, n_classes=N_CLASSES, out=u)
    assert_same_bits(to_host(u), noised(case, "float16", device=False)[0])
    u.copy_(to_device(case.output))
    result = kernels.denoising_error(u, *inputs(case, device=True), seed=SEED, n_classes=N_CLASSES, loss="l1")
    assert_same_bits(to_host(result), errors(case, "l1", device=True))


@pytest.mark.parametrize("column", [0, 1, 2])
@pytest.mark.parametrize("value", [-1, 100])
def test_cells_outside_the_tables_become_nan_and_touch_nothing_else(column: int, value: int) -> None:
    good = make_case(64, "runs", limit=20)
    cells = good.cells.copy()
    bad = [3, 4, 9]
    cells[bad, column] = value
    case = Case(good.images, cells, good.rows, good.streams, good.output, good.target)
    keep = np.setdiff1d(np.arange(20), bad)
    u, timestep, labels = noised(case, "float32", device=True)
    assert np.isnan(u[bad]).all()
    assert np.isnan(timestep[bad]).all()
    assert (labels[bad] == 0).all()
    expected = noised(good, "float32", device=False)
    for actual, wanted in zip((u, timestep, labels), expected, strict=True):
        assert_same_bits(actual[keep], wanted[keep])
    result = errors(case, "l2", device=True)
    assert np.isnan(result[bad]).all()
    assert_same_bits(result[keep], errors(good, "l2", device=True)[keep])
    kept = Case(
        good.images, np.ascontiguousarray(good.cells[keep]), good.rows, good.streams,
        np.ascontiguousarray(good.output[keep]), good.target,
    )  # fmt: skip
    assert_same_bits(maps(case, "l2", device=True, target=False), maps(kept, "l2", device=False, target=False))


def test_empty_tables_launch_nothing() -> None:
    case = make_case(64, "runs", limit=0)
    assert noised(case, "float32", device=True)[0].shape == (0, 64)
    assert errors(case, "l2", device=True).shape == (0,)
    assert (maps(case, "l2", device=True, target=False) == 0.25).all()
    none = torch.empty(0, dtype=torch.int64, device="cuda")
    assert kernels.philox_normal(none, none.int(), 8, seed=0).shape == (0, 8)


@pytest.mark.parametrize("explicit", [False, True])
def test_work_is_enqueued_on_the_stream_without_waiting(explicit: bool) -> None:
    case = make_case(3072, "runs")
    expected = noised(case, "float32", device=False)[0]
    noised(case, "float32", device=True)  # the first launch of a kernel loads it, which may wait for the device
    arrays = inputs(case, device=True)
    out = torch.zeros(expected.shape, device="cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # cycles: about a tenth of a second before the kernel may start
    if explicit:
        kernels.add_noise(*arrays, seed=SEED, out=out, stream=stream.cuda_stream)
    else:
        with torch.cuda.stream(stream):
            kernels.add_noise(*arrays, seed=SEED, out=out)
    assert not stream.query()  # the call came back while the stream was still asleep
    stream.synchronize()
    assert_same_bits(to_host(out), expected)


def test_a_step_is_captured_into_a_graph() -> None:
    """add_noise, a substitute for the network, denoising_error: captured once, replayed on other cells."""
    cases = [make_case(3072, layout, limit=24) for layout in ("runs", "distinct")]
    images, cells, rows, streams = inputs(cases[0], device=True)
    u, output = torch.empty(24, 3072, device="cuda"), torch.empty(24, 3072, device="cuda")
    result = torch.empty(24, device="cuda")

    def step() -> None:
        kernels.add_noise(images, cells, rows, streams, seed=SEED, n_classes=N_CLASSES, out=u)
        torch.mul(u, 0.5, out=output)
        kernels.denoising_error(output, images, cells, rows, streams, seed=SEED, n_classes=N_CLASSES, out=result)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for case in cases:
        new = Case(cases[0].images, case.cells, cases[0].rows, cases[0].streams, cases[0].output, cases[0].target)
        cells.copy_(to_device(new.cells))
        result.zero_()
        graph.replay()
        expected_u = noised(new, "float32", device=False)[0]
        assert_same_bits(to_host(u), expected_u)
        halved = Case(new.images, new.cells, new.rows, new.streams, expected_u * np.float32(0.5), new.target)
        expected = errors(halved, "l2", device=False)
        np.testing.assert_allclose(to_host(result), expected, rtol=error_tolerance(3072), atol=0)


def test_offsets_beyond_two_to_the_31() -> None:
    if torch.cuda.mem_get_info()[0] < BIG_BYTES:
        pytest.skip("needs 12 GiB of free device memory")
    size, count = 2**20, 2**11 + 8
    rng = np.random.default_rng(0)
    cells = np.zeros((count, 3), np.int32)
    cells[:, 1] = np.arange(count) % N_CLASSES
    cells[:, 2] = np.arange(count) // N_CLASSES % 4
    base = make_case(4, "runs")
    images = rng.uniform(-1, 1, (1, size)).astype(np.float32)
    case = Case(images, cells, base.rows, base.streams[2:], np.empty((0, size), np.float16), images)
    u = torch.empty((count, size), dtype=torch.float16, device="cuda")
    kernels.add_noise(*inputs(case, device=True), seed=SEED, out=u)
    result = to_host(kernels.denoising_error(u, *inputs(case, device=True), seed=SEED))
    for b in (0, count // 2, count - 1):
        row = Case(images, cells[b : b + 1], case.rows, case.streams, to_host(u[b : b + 1]), images)
        assert_same_bits(row.output, noised(row, "float16", device=False)[0])
        expected = errors(row, "l2", device=False)
        np.testing.assert_allclose(result[b : b + 1], expected, rtol=error_tolerance(size), atol=0)


def test_a_second_device_is_found_from_the_array() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    with torch.cuda.device(1):
        out = torch.empty(2, 64, device="cuda")
        views = [
            kernels.view(a) for a in (torch.arange(2, device="cuda"), torch.zeros(2, dtype=torch.int32, device="cuda"))
        ]
        view = kernels.view(out)
        torch.cuda.synchronize()
    kernels.philox_normal(views[0], views[1], 64, seed=SEED, out=view)
    torch.cuda.synchronize(1)
    expected = kernels.philox_normal(np.arange(2), np.zeros(2, np.int32), 64, seed=SEED)
    assert_same_bits(to_host(out), expected)
    assert torch.cuda.current_device() == 0


def test_arrays_on_two_devices_are_refused() -> None:
    case = make_case(64, "runs")
    images, cells, rows, streams = inputs(case, device=True)
    with pytest.raises(InputError, match="another device"):
        kernels.add_noise(images, case.cells, rows, streams, seed=SEED, out=torch.empty(len(cells), 64, device="cuda"))
