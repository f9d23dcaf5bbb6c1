"""The noise: words against published answers, normals against the oracle, the layout against a golden file."""

import itertools
import os
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdc import InputError
from fastdc.diffusion import kernels
from fastdc.support.checks import MAX_SEED
from fastdc.testing import reference
from helpers.oracle import NORMAL_FLOOR, NORMAL_TOLERANCE
from helpers.paths import GOLDEN

ISAS = kernels.build_config()["cpu_isas"].split(", ")
SIZES = (0, 1, 3, 4, 63, 64, 65, 1023, 1024, 1025, 3072, 5000)
STREAMS = np.array([0, 1, 2**32 - 1, 2**32, 2**40 + 17, kernels.MAX_STREAM], np.int64)
DRAWS = np.array([0, 2**31 - 1, 3, 4, 5, 6], np.int32)

word = st.integers(0, 2**32 - 1)


def golden_lines(name: str) -> list[list[str]]:
    lines = (GOLDEN / name).read_text(encoding="ascii").splitlines()
    return [line.split() for line in lines if not line.startswith("#")]


def normals(stream: int, draw: int, size: int, *, seed: int = 1, purpose: int = 0) -> npt.NDArray[np.float32]:
    made = kernels.philox_normal(
        np.array([stream], np.int64), np.array([draw], np.int32), size, seed=seed, purpose=purpose
    )
    return np.asarray(made[0])


def assert_same_bits(actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    assert actual.shape == expected.shape
    assert actual.tobytes() == expected.tobytes()


@pytest.mark.parametrize("line", golden_lines("philox4x32_10.txt"), ids=" ".join)
def test_known_answers(line: list[str]) -> None:
    c0, c1, c2, c3, k0, k1, *expected = (int(text, 16) for text in line)
    assert kernels.philox_words((c0, c1, c2, c3), (k0, k1)) == tuple(expected)
    oracle = reference.philox_words(np.array([[c0], [c1], [c2], [c3]], np.uint64), (k0, k1))
    assert [int(value[0]) for value in oracle] == expected


def test_the_published_vectors_are_all_there() -> None:
    assert len(golden_lines("philox4x32_10.txt")) == 3


@given(st.tuples(word, word, word, word), st.tuples(word, word))
def test_words_are_those_of_the_oracle(counter: tuple[int, int, int, int], key: tuple[int, int]) -> None:
    oracle = reference.philox_words(np.array(counter, np.uint64)[:, None], key)
    assert kernels.philox_words(counter, key) == tuple(int(value[0]) for value in oracle)


@pytest.mark.parametrize("isa", ISAS)
def test_the_layout_never_changes(isa: str) -> None:
    kernels.set_cpu_isa(isa)
    lines = golden_lines("normals.txt")
    assert len(lines) > 200
    for seed, stream, draw, purpose, element, bits in lines:
        place = int(stream, 16), int(draw), int(element) + 1
        made = normals(*place, seed=int(seed, 16), purpose=int(purpose))[-1]
        assert f"{made.view(np.uint32):08x}" == bits, (seed, stream, draw, purpose, element)
        expected = reference.normal(int(seed, 16), *place, int(purpose))[-1]
        assert abs(float(made) - expected) <= NORMAL_TOLERANCE * abs(expected) + NORMAL_FLOOR
        assert abs(made) < 6.67


def test_the_golden_places_reach_both_ends_of_the_radius() -> None:
    values = np.array([int(line[5], 16) for line in golden_lines("normals.txt")], np.uint32).view(np.float32)
    assert np.abs(values).max() == pytest.approx(np.sqrt(64 * np.log(2)), rel=1e-6)  # u = 2^-32
    assert (values == 0).any()  # u = 1


@given(
    seed=st.integers(0, MAX_SEED),
    stream=st.integers(0, kernels.MAX_STREAM),
    draw=st.integers(0, 2**31 - 1),
    purpose=st.integers(0, 255),
    size=st.integers(0, 200),
)
def test_normals_are_those_of_the_oracle(seed: int, stream: int, draw: int, purpose: int, size: int) -> None:
    made = normals(stream, draw, size, seed=seed, purpose=purpose)
    expected = reference.normal(seed, stream, draw, size, purpose)
    np.testing.assert_allclose(made, expected, rtol=NORMAL_TOLERANCE, atol=NORMAL_FLOOR)


def test_a_million_normals_are_those_of_the_oracle() -> None:
    made = normals(5, 6, 1 << 20, seed=2**63 + 9)
    np.testing.assert_allclose(
        made, reference.normal(2**63 + 9, 5, 6, 1 << 20), rtol=NORMAL_TOLERANCE, atol=NORMAL_FLOOR
    )


def test_every_instruction_set_and_thread_count_gives_the_same_bits() -> None:
    for size in SIZES:
        results = []
        for isa, threads in itertools.product(ISAS, (1, 2, 3, 8)):
            kernels.set_cpu_isa(isa)
            kernels.set_num_threads(threads)
            results.append(kernels.philox_normal(STREAMS, DRAWS, size, seed=12345, purpose=1))
        for other in results[1:]:
            assert_same_bits(other, results[0])


def test_many_rows_on_many_threads_give_the_same_bits() -> None:
    streams, draws = np.arange(500, dtype=np.int64), np.arange(500, dtype=np.int32)
    kernels.set_num_threads(1)
    alone = kernels.philox_normal(streams, draws, 1500, seed=3)
    kernels.set_num_threads(8)
    assert_same_bits(kernels.philox_normal(streams, draws, 1500, seed=3), alone)


@pytest.mark.parametrize("isa", ISAS)
def test_the_environment_chooses_the_instruction_set(isa: str) -> None:
    code = (
        "import numpy as np; from fastdc.diffusion import kernels;"
        "assert kernels.cpu_isa() == kernels.build_config()['cpu_isa'];"
        "made = kernels.philox_normal(np.array([9]), np.array([8], np.int32), 100, seed=7);"
        "print(kernels.cpu_isa(), made.tobytes().hex())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "FASTDC_ISA": isa}, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == [isa, normals(9, 8, 100, seed=7).tobytes().hex()]


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(InputError, match=r'^isa must be one of .*baseline, got "sse9"$'):
        kernels.set_cpu_isa("sse9")
    code = (
        "from fastdc.diffusion import kernels\ntry: kernels.cpu_isa()\nexcept kernels.InputError as error: print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "FASTDC_ISA": "sse9"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.startswith('FASTDC_ISA is "sse9": expected one of ')


def test_a_row_does_not_depend_on_its_length() -> None:
    longest = normals(11, 12, 5000)
    for size in SIZES:
        assert_same_bits(normals(11, 12, size), longest[:size])


def test_a_row_does_not_depend_on_the_batch_around_it() -> None:
    together = kernels.philox_normal(STREAMS, DRAWS, 777, seed=1)
    for i, (stream, draw) in enumerate(zip(STREAMS.tolist(), DRAWS.tolist(), strict=True)):
        assert_same_bits(normals(stream, draw, 777), together[i])
    order = np.array([3, 0, 3, 5, 1])
    assert_same_bits(kernels.philox_normal(STREAMS[order], DRAWS[order], 777, seed=1), together[order])


def test_every_bit_of_the_name_matters() -> None:
    base = {"seed": 0, "stream": 0, "draw": 0, "purpose": 0}
    names = [base]
    for field, bits in {"seed": 64, "stream": 56, "draw": 31, "purpose": 8}.items():
        names += [{**base, field: 1 << bit} for bit in range(bits)]
    made = {normals(n["stream"], n["draw"], 8, seed=n["seed"], purpose=n["purpose"]).tobytes() for n in names}
    assert len(made) == len(names)


def test_every_element_is_its_own() -> None:
    made = normals(0, 0, 1 << 16)
    assert len(np.unique(made)) > 0.99 * len(made)  # chance repeats a few dozen float32 values


def test_rows_are_filled_in_place_and_nowhere_else() -> None:
    buffer = np.full(2 * 100 + 70, -9.0, np.float32)
    out = buffer[35:-35].reshape(2, 100)
    assert kernels.philox_normal(STREAMS[:2], DRAWS[:2], 100, seed=1, out=out) is out
    assert_same_bits(out, kernels.philox_normal(STREAMS[:2], DRAWS[:2], 100, seed=1))
    assert (buffer[:35] == -9).all()
    assert (buffer[-35:] == -9).all()


def test_no_rows_at_all() -> None:
    assert kernels.philox_normal(np.empty(0, np.int64), np.empty(0, np.int32), 8, seed=0).shape == (0, 8)


S, D = STREAMS, DRAWS
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "streams of int32": ({"streams": S.astype(np.int32)}, "^streams must be int64, got int32"),
    "streams of float64": ({"streams": S.astype(np.float64)}, "^streams: unsupported element type"),
    "streams too big": ({"streams": S + 1}, r"^streams\[5\] must be in \[0, 2\^56\), got 72057594037927936"),
    "streams negative": ({"streams": S - 1}, r"^streams\[0\] must be in .*, got -1"),
    "streams of two dimensions": ({"streams": S[None]}, r"^streams must have shape \(n,\)"),
    "streams of no dimension": ({"streams": S[0]}, "^streams: expected an array that speaks DLPack|^streams must have"),
    "streams a list": ({"streams": [1, 2, 3, 4, 5, 6]}, "^streams: expected an array that speaks DLPack"),
    "draws of int64": ({"draws": D.astype(np.int64)}, "^draws must be int32, got int64"),
    "draws negative": ({"draws": D - 1}, r"^draws\[0\] must not be negative, got -1"),
    "draws too few": ({"draws": D[:5]}, r"^draws must have shape \(m,\) = \(6\), got \(5,\)"),
    "draws big-endian": ({"draws": D.astype(">i4")}, "^draws: "),
    "size negative": ({"size": -1}, "^size must be a whole number"),
    "size not whole": ({"size": 1.5}, "^size must be a whole number"),
    "size too big": ({"size": 2**33}, "^size must be a whole number"),
    "seed negative": ({"seed": -1}, "^seed must be a whole number"),
    "seed too big": ({"seed": 2**64}, "^seed must be a whole number"),
    "seed not whole": ({"seed": 0.5}, "^seed must be a whole number"),
    "seed a bool": ({"seed": True}, "^seed must be a whole number"),
    "purpose negative": ({"purpose": -1}, "^purpose must be"),
    "purpose too big": ({"purpose": 256}, "^purpose must be"),
    "stream negative": ({"stream": -1}, "^stream must be"),
    "out of float64": ({"out": np.empty((6, 8))}, "^out: unsupported element type"),
    "out of float16": ({"out": np.empty((6, 8), np.float16)}, "^out must be float32, got float16"),
    "out too small": ({"out": np.empty((6, 7), np.float32)}, r"^out must have shape \(m, 8\), got \(6, 7\)"),
    "out of too few rows": ({"out": np.empty((5, 8), np.float32)}, r"^out must have shape \(m, 8\), got \(5, 8\)"),
    "out not contiguous": ({"out": np.empty((8, 6), np.float32).T}, r"^out: array of shape .* is not contiguous"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    changed, message = BAD[name]
    arguments = {"streams": S, "draws": D, "size": 8, "seed": 1, **changed}
    with pytest.raises(InputError, match=message) as caught:
        kernels.philox_normal(**arguments)
    assert "\n" not in str(caught.value)


def test_read_only_output_is_refused_and_left_alone() -> None:
    out = np.zeros((6, 8), np.float32)
    out.flags.writeable = False
    with pytest.raises(InputError, match=r"^out is read-only"):
        kernels.philox_normal(S, D, 8, seed=1, out=out)
    assert (out == 0).all()
