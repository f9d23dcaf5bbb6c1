"""Fits the polynomials of csrc/philox.h: ln on [sqrt(1/2), sqrt(2)), sin and cos on [-pi/4, pi/4].

The first terms of each are exact, and only a short tail is fitted:

    ln m  = 2 s + s z P(z),      s = (m - 1) / (m + 1), z = s^2
    sin x = x + x z S(z),        z = x^2
    cos x = 1 - z / 2 + z^2 C(z)

The tails are interpolated at Chebyshev nodes (close to minimax on such short intervals) in 40-digit arithmetic and
rounded to float32. The script prints them as C literals, with the largest error of the rounded polynomial.

Run: python tools/fit_polynomials.py      (needs mpmath: pip install mpmath)
"""

from collections.abc import Callable

import mpmath as mp
import numpy as np

mp.mp.dps = 40


def chebyshev_fit(tail: Callable[[mp.mpf], mp.mpf], upper: mp.mpf, terms: int) -> list[float]:
    """Coefficients (lowest power first) of the polynomial through `tail` at the Chebyshev nodes of [0, upper]."""
    nodes = [upper / 2 * (1 - mp.cos(mp.pi * (2 * i + 1) / (2 * terms))) for i in range(terms)]
    matrix = mp.matrix(terms, terms)
    for row, node in enumerate(nodes):
        for power in range(terms):
            matrix[row, power] = node**power
    solution = mp.lu_solve(matrix, mp.matrix([tail(node) for node in nodes]))
    return [float(np.float32(float(value))) for value in solution]


def report(name: str, tail: Callable[[mp.mpf], mp.mpf], upper: mp.mpf, terms: int) -> None:
    coefficients = chebyshev_fit(tail, upper, terms)
    points = [upper * (i + 1) / 2000 for i in range(2000)]
    worst = max(abs(sum(mp.mpf(c) * z**k for k, c in enumerate(coefficients)) - tail(z)) for z in points)
    print(f"{name}: {', '.join(f'{c:.9g}f' for c in coefficients)}   largest error of the tail {mp.nstr(worst, 3)}")


def main() -> None:
    s_max = (mp.sqrt(2) - 1) / (mp.sqrt(2) + 1)
    report("ln  P", lambda z: (2 * mp.atanh(mp.sqrt(z)) - 2 * mp.sqrt(z)) / mp.sqrt(z) / z, s_max**2, 4)
    report("sin S", lambda z: (mp.sin(mp.sqrt(z)) - mp.sqrt(z)) / mp.sqrt(z) / z, (mp.pi / 4) ** 2, 3)
    report("cos C", lambda z: (mp.cos(mp.sqrt(z)) - 1 + z / 2) / z**2, (mp.pi / 4) ** 2, 3)


if __name__ == "__main__":
    main()
