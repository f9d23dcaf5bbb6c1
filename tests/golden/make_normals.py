"""Writes normals.txt: the bits of the noise, so that they can never change unnoticed. Run: python make_normals.py

Two kinds of lines. The first are ordinary places: every field of the counter and both halves of the seed at small and
at extreme values. The second are places whose four Philox words are extreme (smallest and largest radius, the borders
of the quadrants), where the formulas would break first. Such places are found by running the bijection backwards from
the wanted words under random seeds until the counter names an element that exists: block below 2^12, draw below 2^31.

The file must only be written again when the layout of csrc/philox.h changes, which a major version allows.
"""

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastdc.diffusion import kernels
from fastdc.support import checks
from fastdc.testing import reference

HEADER = """\
# Bits of the normals of csrc/philox.h: seed stream draw purpose element bits (seed, stream and bits hexadecimal).
#
# Origin: tests/golden/make_normals.py, from the native kernels, each line within the tolerance of tests/oracle.py of
# the float64 oracle fastdc/reference.py. The second part holds places whose Philox words are extreme.
"""

_MASK = np.uint64(0xFFFFFFFF)
_BLOCKS = 1 << 12

# (radius word, angle word) pairs: u at its ends and at the borders of rounding, angles at the borders of quadrants.
RADII = (0x00000000, 0xFFFFFFFF, 0x00000002, 0xFFFFFF00, 0x7FFFFFFF, 0x80000000)
ANGLES = (0x00000000, 0xFFFFFFFF, 0x3FFFFFFF, 0x40000000, 0x1FFFFFFF, 0x20000000, 0x7FFFFFFF, 0x80000000, 0xDFFFFFFF)


def counters_of(words: tuple[int, int, int, int], keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The counters (4, m) that Philox4x32-10 turns into `words` under the keys (2, m)."""
    inverse = [np.uint64(pow(m, -1, 2**32)) for m in (0xD2511F53, 0xCD9E8D57)]
    multiplier = [np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)]
    c = [np.full(keys.shape[1], word, np.uint64) for word in words]
    for step in range(9, -1, -1):
        k0 = (keys[0] + np.uint64(step * 0x9E3779B9 & 0xFFFFFFFF)) & _MASK
        k1 = (keys[1] + np.uint64(step * 0xBB67AE85 & 0xFFFFFFFF)) & _MASK
        c0, c2 = c[3] * inverse[0] & _MASK, c[1] * inverse[1] & _MASK
        c = [
            c0,
            c[0] ^ (c2 * multiplier[1] >> np.uint64(32)) ^ k0,
            c2,
            c[2] ^ (c0 * multiplier[0] >> np.uint64(32)) ^ k1,
        ]
    return np.stack(c)


def place_of(words: tuple[int, int, int, int], rng: np.random.Generator) -> tuple[int, int, int, int, int]:
    """(seed, stream, draw, purpose, block) whose words are these."""
    while True:
        keys = rng.integers(0, 2**32, size=(2, 1 << 18), dtype=np.uint64)
        counters = counters_of(words, keys)
        for m in np.flatnonzero((counters[0] < _BLOCKS) & (counters[1] < 2**31)):
            block, draw, low, high = (int(word) for word in counters[:, m])
            made = reference.philox_words(counters[:, m : m + 1], (int(keys[0, m]), int(keys[1, m])))
            assert tuple(int(word[0]) for word in made) == words
            return int(keys[0, m]) | int(keys[1, m]) << 32, low | high >> 8 << 32, draw, high & 0xFF, block


def main() -> None:
    places = [
        (seed, stream, draw, purpose, element)
        for seed, stream, draw, purpose in [
            *itertools.product((0, checks.MAX_SEED), (0, kernels.MAX_STREAM), (0, 2**31 - 1), (0, 255)),
            (1, 2, 3, kernels.PURPOSE_SELECTION), (2**32, 2**32, 1, kernels.PURPOSE_ESTIMATION),
            (20260722, 0x00123456789ABCDE, 1000, 17),
        ]
        for element in (0, 1, 2, 3, 4, 63, 64, 1023, 1024, 3071)
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    angles = itertools.cycle(ANGLES)
    for first, second in zip(RADII * 2, RADII[1:] + RADII[:1] + RADII, strict=True):
        seed, stream, draw, purpose, block = place_of((first, next(angles), second, next(angles)), rng)
        places += [(seed, stream, draw, purpose, 4 * block + part) for part in range(4)]
    lines = []
    for seed, stream, draw, purpose, element in places:
        made = kernels.philox_normal(
            np.array([stream], np.int64), np.array([draw], np.int32), element + 1, seed=seed, purpose=purpose
        )[0, element]
        expected = reference.normal(seed, stream, draw, element + 1, purpose)[element]
        assert abs(float(made) - expected) <= 13 * 2.0**-24 * abs(expected) + 2.0**-48, (seed, stream, draw, purpose)
        lines.append(f"{seed:016x} {stream:014x} {draw} {purpose} {element} {int(made.view(np.uint32)):08x}\n")
    Path(__file__).with_name("normals.txt").write_text(HEADER + "".join(lines))


if __name__ == "__main__":
    main()
