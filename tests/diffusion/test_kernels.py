"""The kernels against a float64 oracle, and their guarantee: the bits of a cell depend only on the cell."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdc.diffusion import kernels
from helpers import oracle
from helpers.oracle import DTYPES, LAYOUTS, SIZES, Case, make_case

ISAS = kernels.build_config()["cpu_isas"].split(", ")
CLASSES = 5
DELTA = 0.7
GUARD = 37


def assert_same_bits(actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert actual.tobytes() == expected.tobytes()


def assert_within(actual: npt.NDArray[Any], expected: tuple[npt.NDArray[Any], npt.NDArray[Any]]) -> None:
    value, slack = expected
    off = np.abs(actual.astype(np.float64) - value)
    assert actual.shape == value.shape
    assert (off <= slack).all(), f"{(off / slack).max():.2f} tolerances off"


def guarded(shape: tuple[int, ...], dtype: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """An output and the buffer around it, which is 0xA5 everywhere."""
    count = int(np.prod(shape))
    buffer = np.full((count + 2 * GUARD) * np.dtype(dtype).itemsize, 0xA5, np.uint8).view(dtype)
    return buffer[GUARD : GUARD + count].reshape(shape), buffer


def assert_guards(buffer: npt.NDArray[Any]) -> None:
    for part in (buffer[:GUARD], buffer[-GUARD:]):
        assert (part.view(np.uint8) == 0xA5).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_add_noise_against_the_oracle(size: int, layout: str) -> None:
    case = make_case(size, layout)
    u = case.add_noise()
    assert_within(u, oracle.noisy(case))
    for name, dtype in DTYPES.items():
        out, buffer = guarded(u.shape, dtype)
        assert case.add_noise(out=out) is out
        assert_same_bits(out, u.astype(dtype))  # NumPy and ml_dtypes round to nearest even too
        assert_guards(buffer)
        assert_same_bits(case.add_noise(dtype=name), out)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_timesteps_and_labels(layout: str) -> None:
    case = make_case(65, layout)
    timestep, t_buffer = guarded((len(case.cells),), np.float32)
    labels, l_buffer = guarded((len(case.cells),), np.int64)
    u = case.add_noise(timestep=timestep, labels=labels)
    assert_same_bits(timestep, case.rows[case.cells[:, 2], 7])
    assert_same_bits(labels, case.cells[:, 1].astype(np.int64))
    assert_guards(t_buffer)
    assert_guards(l_buffer)
    assert_same_bits(u, case.add_noise())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", [False, True])
def test_denoising_error_against_the_oracle(size: int, layout: str, target: bool) -> None:
    index = SIZES.index(size) + LAYOUTS.index(layout)
    case = make_case(size, layout, list(DTYPES)[index % 3], target=target)
    loss = kernels.LOSSES[index // 3 % 3]
    out, buffer = guarded((len(case.cells),), np.float32)
    assert case.denoising_error(loss=loss, delta=DELTA, out=out) is out
    assert_within(out, oracle.errors(case, loss, DELTA))
    assert_guards(buffer)
    assert_same_bits(case.denoising_error(loss=loss, delta=DELTA), out)


@pytest.mark.parametrize("loss", kernels.LOSSES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("delta", [0.01, 1.0, 50.0])
def test_every_loss_and_dtype(loss: str, dtype: str, delta: float) -> None:
    case = make_case(200, "class runs", dtype, target=True)
    assert_within(case.denoising_error(loss=loss, delta=delta), oracle.errors(case, loss, delta))
    maps = np.zeros((3, CLASSES, 200), np.float32)
    assert_within(case.error_map(maps, loss=loss, delta=delta), oracle.maps(case, CLASSES, loss, delta))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_error_map_against_the_oracle(size: int, layout: str) -> None:
    index = SIZES.index(size) + LAYOUTS.index(layout)
    case = make_case(size, layout, list(DTYPES)[index % 3], target=index % 2 == 0)
    maps, buffer = guarded((3, CLASSES, size), np.float32)
    maps[...] = 0
    loss = kernels.MAP_LOSSES[index % 4]
    assert case.error_map(maps, loss=loss, delta=DELTA) is maps
    assert_within(maps, oracle.maps(case, CLASSES, loss, DELTA))
    assert_guards(buffer)
    visited = {(int(image), int(label)) for image, label, _ in case.cells}
    for image, label in itertools.product(range(3), range(CLASSES)):
        assert (image, label) in visited or (maps[image, label] == 0).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_antithetic_pairs_against_the_oracle(size: int, layout: str, isa: str) -> None:
    """All three kernels. A run ends where the draw changes, although the next draw's noise is the same."""
    kernels.set_cpu_isa(isa)
    index = SIZES.index(size) + LAYOUTS.index(layout)
    dtype, loss = list(DTYPES)[index % 3], kernels.LOSSES[index // 3 % 3]
    case = make_case(size, layout, dtype, target=index % 2 == 0, antithetic=True)
    u = case.add_noise()
    assert_within(u, oracle.noisy(case))
    assert_same_bits(case.add_noise(dtype=dtype), u.astype(DTYPES[dtype]))
    assert_within(case.denoising_error(loss=loss, delta=DELTA), oracle.errors(case, loss, DELTA))
    maps = case.error_map(np.zeros((3, CLASSES, size), np.float32), loss=loss, delta=DELTA)
    assert_within(maps, oracle.maps(case, CLASSES, loss, DELTA))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pair_sees_a_noise_and_its_negative(dtype: str) -> None:
    """The inputs of an image of zeros are u and -u; with F and -F and no target, the errors are equal."""
    case = make_case(783, dtype=dtype, antithetic=True)
    first, second = (np.flatnonzero(case.cells[:, 2] == draw) for draw in (0, 1))
    output = case.output.copy()
    output[second] = -output[first]
    case = replace(case, images=np.zeros_like(case.images), output=output)
    u = case.add_noise(dtype=dtype).astype(np.float32)
    np.testing.assert_array_equal(u[second], -u[first])
    assert np.count_nonzero(u[first]) > 0.99 * u[first].size
    for loss in kernels.LOSSES:
        errors = case.denoising_error(loss=loss, delta=DELTA)
        assert_same_bits(errors[second], errors[first])
    alone = replace(case, antithetic=False).add_noise(dtype=dtype)
    assert_same_bits(alone[first], case.add_noise(dtype=dtype)[first])
    assert not (np.abs(alone[second].astype(np.float32)) == np.abs(u[second])).all()


def test_pair_number_i_has_noise_number_i() -> None:
    cells = np.stack([np.zeros(40), np.zeros(40), np.arange(40)], axis=1).astype(np.int32)
    rows = np.tile(np.array([[0, 1, 0, 0, 0, 0, 1, 0]], np.float32), (40, 1))
    streams = np.array([kernels.MAX_STREAM])
    u = kernels.add_noise(np.zeros((1, 30), np.float32), cells, rows, streams, seed=9, antithetic=True)
    e = kernels.philox_normal(streams.repeat(20), np.arange(20, dtype=np.int32), 30, seed=9)
    np.testing.assert_array_equal(u, e.repeat(2, axis=0))


def test_error_map_adds_to_what_is_there() -> None:
    case = make_case(100, "repeated")
    first, second = case.take(slice(0, 11)), case.take(slice(11, None))
    maps = np.full((3, CLASSES, 100), 0.25, np.float32)
    together = case.error_map(maps.copy())
    assert_same_bits(second.error_map(first.error_map(maps)), together)


@pytest.mark.parametrize("loss", kernels.LOSSES)
def test_maps_and_errors_agree(loss: str) -> None:
    """The summed pixel means of the maps are the sum of the errors; both are within their own tolerances."""
    case = make_case(783, "shuffled", target=True)
    maps = case.error_map(np.zeros((3, CLASSES, 783), np.float32), loss=loss, delta=DELTA).astype(np.float64)
    of_maps, of_errors = maps.mean(axis=2).sum(), case.denoising_error(loss=loss, delta=DELTA).astype(np.float64).sum()
    slack = oracle.maps(case, CLASSES, loss, DELTA)[1].mean(axis=2).sum() + oracle.errors(case, loss, DELTA)[1].sum()
    assert abs(of_maps - of_errors) <= slack


def test_the_noise_of_all_three_is_philox_normal() -> None:
    case = make_case(300, "shuffled")
    rows = np.zeros_like(case.rows)
    rows[:, 1] = rows[:, 4] = rows[:, 6] = 1.0  # u = e, r = e
    case = replace(case, rows=rows, output=np.zeros_like(case.output))
    e = kernels.philox_normal(case.streams[case.cells[:, 0]], case.cells[:, 2].copy(), 300, seed=case.seed, purpose=3)
    np.testing.assert_array_equal(case.add_noise(), e)  # 0 x + e: -0 may become +0
    alone = case.take(slice(4, 5))
    maps = alone.error_map(np.zeros((3, CLASSES, 300), np.float32), loss="l1")
    np.testing.assert_array_equal(maps[tuple(alone.cells[0, :2])], np.abs(e[4]))


def test_huber_at_the_threshold() -> None:
    """delta = 0.5, and residuals on both sides of it and exactly on it, where the two branches meet."""
    below, above = np.nextafter(np.float32(0.5), np.array([0, 1], np.float32))
    output = np.array([[0.5], [-0.5], [below], [above], [-above], [0.0], [3.0], [np.inf], [np.nan]], np.float32)
    cells = np.zeros((len(output), 3), np.int32)
    rows = np.array([[0, 0, 1, 0, 0, 0, 1, 0]], np.float32)
    x, streams = np.zeros((1, 1), np.float32), np.zeros(1, np.int64)
    errors = kernels.denoising_error(output, x, cells, rows, streams, seed=0, loss="huber", delta=0.5)
    assert errors[:2].tolist() == [0.125, 0.125]
    assert errors[5:8].tolist() == [0.0, 0.5 * (3.0 - 0.25), np.inf]
    assert errors[3] == errors[4] >= 0.125 >= errors[2]
    np.testing.assert_allclose(errors[2:5], 0.125, rtol=1e-6)
    assert np.isnan(errors[8])


def lane_sum(rho: npt.NDArray[np.float32]) -> float:
    """The order of kernels_cpu.cpp: 16 float32 lanes over 1024 pixels, folded in float64, chunk after chunk."""
    total = 0.0
    for start in range(0, len(rho), 1024):
        chunk = rho[start : start + 1024]
        lanes = np.zeros(16, np.float32)
        for at in range(0, len(chunk), 16):
            part = chunk[at : at + 16]
            lanes[: len(part)] += part
        sums = lanes.astype(np.float64)
        while len(sums) > 1:
            sums = sums[: len(sums) // 2] + sums[len(sums) // 2 :]
        total += float(sums[0])
    return total


@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize("size", [1, 15, 17, 65, 783, 1024, 1025, 3072])
def test_the_bits_follow_from_the_documented_order(size: int, target: bool) -> None:
    """Every operation and sum again in NumPy's float32, because later versions replay saved results."""
    case = make_case(size, "shuffled", "float16", target=target)
    u, maps = case.add_noise(), np.zeros((3, CLASSES, size), np.float32)
    expected = {loss: np.empty(len(case.cells), np.float32) for loss in kernels.LOSSES}
    for b, (i, k, j) in enumerate(case.cells.tolist()):
        gx, ge, a, cb, cc, cd, weight, _ = case.rows[j]
        x, f = case.images[i], case.output[b].astype(np.float32)
        e = kernels.philox_normal(case.streams[i : i + 1], np.array([j], np.int32), size, seed=case.seed, purpose=3)[0]
        assert_same_bits(u[b], gx * x + ge * e)
        r = a * f + (cb * x + (cc * e if case.target is None else cc * e + cd * case.target[i]))
        size_of_r, delta = np.abs(r), np.float32(DELTA)
        huber = np.where(
            size_of_r <= delta, np.float32(0.5) * r * r, delta * (size_of_r - np.float32(0.5) * delta)
        ).astype(np.float32)
        for loss, rho in {"l2": r * r, "l1": size_of_r, "huber": huber}.items():
            expected[loss][b] = np.float32(float(weight) * (lane_sum(rho) / size))
        maps[i, k] += weight * huber
    for loss in kernels.LOSSES:
        assert_same_bits(case.denoising_error(loss=loss, delta=DELTA), expected[loss])
    assert_same_bits(case.error_map(np.zeros_like(maps), loss="huber", delta=DELTA), maps)


def results_of(case: Case) -> list[npt.NDArray[Any]]:
    maps = np.full((len(case.images), CLASSES, case.images.shape[1]), 0.25, np.float32)
    timestep, labels = np.empty(len(case.cells), np.float32), np.empty(len(case.cells), np.int64)
    return [
        case.add_noise(timestep=timestep, labels=labels, dtype="float16"),
        timestep,
        labels,
        *(case.denoising_error(loss=loss, delta=DELTA) for loss in kernels.LOSSES),
        case.error_map(maps, loss="l1"),
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 65, 1025, 3072])
def test_instruction_sets_and_threads_give_the_same_bits(size: int, layout: str) -> None:
    case = make_case(size, layout, "bfloat16", target=size == 65, antithetic=size == 1025)
    kernels.set_cpu_isa(ISAS[0])
    kernels.set_num_threads(1)
    expected = results_of(case)
    for isa, threads in itertools.product(ISAS, (1, 2, 3, 8)):
        kernels.set_cpu_isa(isa)
        kernels.set_num_threads(threads)
        for actual, wanted in zip(results_of(case), expected, strict=True):
            assert_same_bits(actual, wanted)


def test_many_small_cells_on_many_threads() -> None:
    rng = np.random.default_rng(1)
    case = make_case(7)
    cells = rng.integers(0, [3, 5, 3], size=(20_000, 3)).astype(np.int32)
    cells[5000:15_000] = cells[5000:15_000][np.lexsort(cells[5000:15_000].T)]  # runs far longer than a piece
    case = replace(case, cells=cells, output=rng.standard_normal((len(cells), 7)).astype(np.float32))
    kernels.set_num_threads(1)
    expected = results_of(case)
    kernels.set_num_threads(5)
    for actual, wanted in zip(results_of(case), expected, strict=True):
        assert_same_bits(actual, wanted)


@pytest.mark.parametrize("size", [3, 64, 1025])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cell_does_not_depend_on_its_batch(size: int, layout: str) -> None:
    case = make_case(size, layout, target=True, antithetic=size == 64)
    u, errors = case.add_noise(), case.denoising_error()
    order = np.random.default_rng(5).permutation(len(case.cells))
    assert_same_bits(case.take(order).add_noise(), u[order])
    assert_same_bits(case.take(order).denoising_error(), errors[order])
    for b in range(len(case.cells)):
        alone = case.take(slice(b, b + 1))
        assert_same_bits(alone.add_noise(), u[b : b + 1])
        assert_same_bits(alone.denoising_error(), errors[b : b + 1])


@given(st.lists(st.integers(0, 44), max_size=60), st.integers(1, 70))
def test_any_selection_of_cells_in_any_batches(which: list[int], batch: int) -> None:
    case = make_case(10)
    chosen = case.take(np.array(which, np.int64))
    parts = [chosen.take(slice(at, at + batch)).denoising_error() for at in range(0, len(which), batch)]
    expected = case.denoising_error()[np.array(which, np.int64)]
    assert_same_bits(np.concatenate([np.empty(0, np.float32), *parts]), expected)


def test_images_of_one_stream_see_one_noise_and_classes_do_too() -> None:
    case = make_case(64)
    case = replace(case, streams=np.full(3, 5), images=np.zeros_like(case.images))
    u = case.add_noise()
    for draw in range(3):
        assert len({row.tobytes() for row in u[case.cells[:, 2] == draw]}) == 1
    assert len({row.tobytes() for row in u}) == 3
    assert not (replace(case, seed=case.seed + 1).add_noise() == u).any()
    assert not (replace(case, purpose=4).add_noise() == u).any()


def test_no_cells_at_all() -> None:
    case = make_case(7).take(slice(0, 0))
    assert case.add_noise().shape == (0, 7)
    assert case.denoising_error().shape == (0,)
    assert (case.error_map(np.ones((3, CLASSES, 7), np.float32)) == 1).all()
    empty = replace(case, images=case.images[:0], streams=case.streams[:0], target=None)
    assert empty.add_noise().shape == (0, 7)
    assert empty.denoising_error().shape == (0,)


def test_arrays_of_any_layout_give_the_same_bits() -> None:
    case = make_case(60, "shuffled", "float16", target=True)
    expected = results_of(case)

    def awkward(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The same values: a transposed, strided or unaligned view, read-only."""
        if array.ndim == 1:
            packed = np.zeros(array.nbytes + 1, np.uint8)
            view = packed[1:].view(array.dtype)
        elif array.shape[1] % 2:
            view = np.repeat(np.zeros_like(array), 2, axis=0)[::2]
        else:
            view = np.asfortranarray(np.zeros_like(array))
        view[...] = array
        view.flags.writeable = False
        return view

    assert case.target is not None
    odd = Case(
        awkward(case.images), awkward(case.cells), awkward(case.rows), awkward(case.streams), awkward(case.output),
        awkward(case.target),
    )  # fmt: skip
    assert not odd.images.flags.c_contiguous
    assert not odd.streams.flags.aligned
    for actual, wanted in zip(results_of(odd), expected, strict=True):
        assert_same_bits(actual, wanted)


def test_images_may_have_any_shape() -> None:
    case = make_case(60, target=True)
    shaped = replace(case, images=case.images.reshape(3, 3, 4, 5), output=case.output.reshape(-1, 3, 4, 5))
    assert shaped.add_noise().shape == (45, 3, 4, 5)
    assert_same_bits(shaped.add_noise().reshape(45, 60), case.add_noise())
    assert_same_bits(shaped.denoising_error(), case.denoising_error())
    maps = shaped.error_map(np.zeros((3, CLASSES, 3, 4, 5), np.float32))
    assert_same_bits(maps.reshape(3, CLASSES, 60), case.error_map(np.zeros((3, CLASSES, 60), np.float32)))
