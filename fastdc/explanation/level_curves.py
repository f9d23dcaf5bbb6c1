"""Errors of two classes over the noise level: numbers for figures, and a picture for pages."""

from collections.abc import Sequence

import numpy as np

from fastdc.support import Float32, Float64, html_pages

_MOST_POINTS = 16
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 440, 250, 62, 46, 12


def level_curves(ratio: Float64, pair_errors: Float32) -> tuple[Float64, Float64]:
    """Mean errors of neighbouring draws.

    Args:
        ratio: float64 (J,), noise-to-signal ratio of each draw.
        pair_errors: float32 (2, J), errors of two classes.

    Returns:
        float64 (m,), the geometric mean of the ratios, and (2, m), the mean errors, from low to high noise; m is at
        most 16.

    Example:
        >>> from fastdc.explanation import level_curves
        >>> level_curves(np.array([4.0, 1.0]), np.array([[2.0, 1.0], [3.0, 1.0]]))[1]
        array([[1., 2.],
               [1., 3.]])
    """
    order = np.argsort(ratio, kind="stable")
    order = order[np.isfinite(ratio[order])]
    groups = np.array_split(order, min(_MOST_POINTS, max(1, len(order))))
    ratios = np.array([np.exp(np.log(ratio[group]).mean()) for group in groups if len(group)])
    means = [pair_errors[:, group].mean(axis=1, dtype=np.float64) for group in groups if len(group)]
    return ratios, np.stack(means, axis=1) if means else np.zeros((2, 0))


def curves_svg(ratio: Float64, pair_errors: Float32, names: Sequence[str]) -> str:
    """The curves of both classes: the first in blue with dots, the other one in orange, dashed, with squares.

    Args:
        ratio: float64 (J,).
        pair_errors: float32 (2, J).
        names: Names of the two classes.
    """
    ratios, means = level_curves(ratio, pair_errors)
    label = f"Mean error of {names[0]} and of {names[1]} by noise level"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{html_pages.escaped(label)}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12" fill="currentColor">'
    ]
    if len(ratios) == 0:
        return "".join([*parts, "</svg>"])
    top = float(means.max()) * 1.05 or 1.0
    low, high = np.log(ratios[0]), np.log(ratios[-1])
    across, up = _WIDTH - _LEFT - 14, _HEIGHT - _BOTTOM - _TOP
    xs = _LEFT + (np.log(ratios) - low) / max(high - low, 1e-9) * across
    for tick in np.linspace(0, top, 5):
        y = _TOP + up * (1 - tick / top)
        parts.append(f'<path d="M{_LEFT} {y:.1f}h{across}" stroke="currentColor" stroke-opacity="0.18"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.2g}</text>')
    for number in sorted({0, len(ratios) // 2, len(ratios) - 1}):
        anchor = "start" if number == 0 else "end" if number == len(ratios) - 1 else "middle"
        at = f'x="{xs[number]:.1f}" y="{_HEIGHT - _BOTTOM + 18}"'
        parts.append(f'<text {at} text-anchor="{anchor}">{ratios[number]:.3g}</text>')
    middle = _LEFT + across / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">noise level (sigma / alpha)</text>')
    parts.append(f'<text x="14" y="{_TOP + up / 2}" text-anchor="middle" transform="rotate(-90 14 {_TOP + up / 2})">')
    parts.append("mean error</text>")
    for row, (colour, dash) in enumerate((("--blue,#0072b2", ""), ("--orange,#b84f00", "stroke-dasharray:6 4;"))):
        ys = _TOP + up * (1 - means[row] / top)
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
        parts.append(f'<polyline points="{line}" style="fill:none;stroke-width:2;{dash}stroke:var({colour})"/>')
        for x, y in zip(xs, ys, strict=True):
            box = f'x="{x - 3.2:.1f}" y="{y - 3.2:.1f}" width="6.4" height="6.4" rx="{0 if row else 3.2}"'
            parts.append(f'<rect {box} style="fill:var({colour})"/>')
    return "".join([*parts, "</svg>"])
