"""Values of more than 8 bits, and what they mean: which value is black and which is white.

    unit = (value - low) / (high - low),  clipped to [0, 1]

The user may give the window (low, high), a term of radiology. If not, the model may have one, which its training images
were read through, see :class:`fastdc.support.UsualWindow`. Without one, black is 0, and white is what the file
states: 65535 for 16 bits, 1 for floats. Cameras and scanners often store 10, 12 or 14 bits in 16, which would read as
nearly black pictures. So the values of a whole input are looked at: if they stay below 2^12, the input is refused, and
below 2^14 a note says so; both name the window that would help.

Results are float32 and keep the precision of 16 bits.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastdc.data.notes import Notes
from fastdc.support import Float32, InputError, UsualWindow, checks, full_scale, shown

Window: TypeAlias = tuple[float, float]

WHITE = 65535.0  # white of 16-bit levels

_REFUSED, _NOTED = 2**12, 2**14
_SPREAD = 16  # times the range of the values that a file can hold is too much
_WINDOWED = math.inf  # in place of a white: the images that were read through the window
_BAND = 2**18  # values that are converted at a time, in float64


class _Found(NamedTuple):
    """Pictures that share a white: their number, how many are dark, the values' range, and the one with the largest."""

    images: int
    dark: int
    low: float
    high: float
    name: str


_Key: TypeAlias = float | tuple[float, float]


class Levels:
    """Maps values of more than 8 bits to [0, 1], and remembers the range that it saw."""

    def __init__(self, window: Window | None = None) -> None:
        self.window = None if window is None else check_window(window)
        self.usual = window if isinstance(window, UsualWindow) else None
        # By the white of pictures, negative if not to be judged, or by the range of DICOM, of which each file may have
        # one of its own: changed in place, or the cost of many files would grow with their square.
        self._state: dict[_Key, _Found] = {}
        self._before: dict[_Key, _Found | None] = {}  # what the picture that is read has changed
        self._counting = True

    def unit(
        self,
        values: NDArray[Any],
        white: float,
        name: str,
        *,
        count: int = 1,
        judge: bool = True,
        floats: bool = False,
    ) -> Float32:
        """Maps the values of one picture, or of a part of an array.

        Args:
            values: Integers or floats of any shape.
            white: The value that becomes 1 if there is no window.
            name: Name of the picture.
            count: Number of images that these values begin.
            judge: Whether a low maximum is suspicious; not so if the file states how many bits its values have.
            floats: Whether these are floats, which mean themselves in [0, 1] unless the user gives a window.

        Raises:
            InputError: There is no window and values are outside [0, white], or values are not finite.
        """
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):  # min and max propagate NaN
            raise InputError(f"{name}: values must be finite, found NaN or infinity")
        window = None if floats and self.usual is not None and self.usual.leaves(low, high) else self.window
        if window is None and not 0 <= low <= high <= white:
            raise InputError(f"{name}: values must be in [0, {white:g}], found {low:g} to {high:g}{way_out(low, high)}")
        key = (white if judge else -white) if window is None else _WINDOWED
        old = self._state.get(key, _Found(0, 0, math.inf, -math.inf, name))
        largest = name if high > old.high else old.name
        dark = old.dark + (count if 0 < high < _REFUSED else 0)
        self._set(key, _Found(old.images + count, dark, min(old.low, low), max(old.high, high), largest))
        return _mapped(values, *(window or (0.0, white)))

    def see(self, values: NDArray[Any], least: float, most: float, name: str) -> None:
        """Remembers the values of a picture whose file can hold values from `least` to `most`, and states no window."""
        old = self._state.get((least, most), _Found(0, 0, math.inf, -math.inf, name))
        low, high = min(old.low, float(values.min())), max(old.high, float(values.max()))
        self._set((least, most), _Found(old.images + 1, 0, low, high, old.name))

    def begin(self) -> None:
        """Begins a picture, so that :meth:`forget` can undo it."""
        self._before.clear()

    def forget(self) -> None:
        """Undoes what was remembered since :meth:`begin`, of a picture that cannot be used."""
        for key, old in self._before.items():
            if old is None:
                del self._state[key]
            else:
                self._state[key] = old
        self._before.clear()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Remembers nothing within: what is mapped there has been counted."""
        self._counting = False
        try:
            yield
        finally:
            self._counting = True

    def _set(self, key: _Key, found: _Found) -> None:
        if not self._counting:
            return
        self._before.setdefault(key, self._state.get(key))
        self._state[key] = found

    def report(self, notes: Notes) -> None:
        """Notes what was mapped, after all images have been read.

        Raises:
            InputError: Values use so little of their range that the pictures would be nearly black, or of one grey.
        """
        if self.window is not None:
            self._report_window(notes)
        ranges = {key: found for key, found in self._state.items() if isinstance(key, tuple)}
        if ranges:
            _report_ranges(ranges, notes)
        for key, found in self._state.items():
            if isinstance(key, tuple) or key == _WINDOWED:
                continue
            text = f"of {_kind(abs(key))} read with {abs(key):g} as white, values {found.low:g} to {found.high:g}"
            if key == WHITE and 0 < found.high < _REFUSED:
                white = f"{full_scale(found.high):g}"
                raise InputError(
                    f"{found.name}: the 16-bit values of this input are {found.low:g} to {found.high:g} of 65535, "
                    f"nearly black: give --window 0 {white} (window=(0, {white})) if {white} is white, or "
                    f"--window 0 65535"
                )
            if key == WHITE and 0 < found.high < _NOTED:
                text += f"; dark, unless --window 0 {full_scale(found.high):g} gives their white"
            elif key == WHITE and found.dark:
                stays = "stays below {}: is its" if found.dark == 1 else "stay below {}: is their"
                text += f"; {found.dark} of them {stays.format(_REFUSED)} white less (--window)?"
            notes.add(text, count=found.images)

    def _report_window(self, notes: Notes) -> None:
        low, high = self.window or (0.0, 1.0)
        found = self._state.get(_WINDOWED)
        if found is None:
            if self.usual is None:
                notes.add(f"window {low:g} to {high:g} not used: no image has more than 8 bits", noun="")
            return
        whose = "window" if self.usual is None else "model's window"
        text = f"read through the {whose} {low:g} to {high:g}, values {found.low:g} to {found.high:g}"
        if found.low < low or found.high > high:
            text += ", those outside clipped"
        notes.add(text + " (--window gives another)" * (self.usual is not None), count=found.images)


def _report_ranges(ranges: Mapping[tuple[float, float], _Found], notes: Notes) -> None:
    """Notes DICOM without a window, by the ranges that the files can store: several, if they are rescaled one by one.

    Raises:
        InputError: Not even the picture that uses most of its range uses enough of it.
    """

    def used(ends: tuple[float, float]) -> float:
        return (ranges[ends].high - ranges[ends].low) / (ends[1] - ends[0])

    ends = max(ranges, key=used)
    (least, most), found = ends, ranges[ends]
    if 0 < used(ends) < 1 / _SPREAD:
        raise InputError(
            f"{found.name}: states no window, and the values of this input are {found.low:g} to {found.high:g} of "
            f"{least:g} to {most:g}, nearly one grey: give --window {found.low:g} {found.high:g} "
            f"(window=({found.low:g}, {found.high:g})) if these are black and white, or --window {least:g} {most:g}"
        )
    low, high = min(one.low for one in ranges.values()), max(one.high for one in ranges.values())
    which = f"with {least:g} as black and {most:g} as white"
    if len(ranges) > 1:
        which = f"each from the least to the most that it can hold, {len(ranges)} different ranges (--window gives one)"
    notes.add(
        f"without a window read {which}, values {low:g} to {high:g}", count=sum(one.images for one in ranges.values())
    )


def way_out(low: float, high: float) -> str:
    """What to do about images with values from `low` to `high` that are neither uint8 nor in [0, 1], for a message."""
    if -1 <= low < 0 <= high <= 1:
        return ": map [-1, 1] by (x + 1) / 2"
    black = min(0, math.floor(low))
    white = max(high, black + 1.0) if low < 0 or high < 16 else full_scale(high)
    return f": give the black and the white value, such as --window {black:g} {white:g} (window=({black:g}, {white:g}))"


def _kind(white: float) -> str:
    return "float values" if white == 1 else f"{round(math.log2(white + 1))} bits"


def check_window(window: object) -> Window:
    """A window as two floats: the values that are black and white.

    Raises:
        InputError: It is something else, or the first is not the smaller one.

    Example:
        >>> from fastdc.data import check_window
        >>> check_window([0, 4095])
        (0.0, 4095.0)
    """
    if not isinstance(window, list | tuple) or len(window) != 2:
        raise InputError(f"window must be two numbers, black and white, got {shown(window)}")
    low, high = (checks.number("window", value, low=-1e30, high=1e30) for value in window)
    if not low < high:
        raise InputError(f"window must begin with its smaller value, got {low:g} and {high:g}")
    return low, high


def _mapped(values: NDArray[Any], low: float, high: float) -> Float32:
    flat = np.ascontiguousarray(values).reshape(-1)
    unit = np.empty(flat.shape, np.float32)
    for start in range(0, len(flat), _BAND):
        part = flat[start : start + _BAND].astype(np.float64)
        part -= low
        part /= high - low
        unit[start : start + _BAND] = np.clip(part, 0, 1, out=part)
    return unit.reshape(values.shape)
