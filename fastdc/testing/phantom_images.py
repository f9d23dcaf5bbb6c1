"""Phantoms: rendered X-ray-like images whose lesions are known to the pixel, for methods that explain a classification.

An image is a sum of soft-edged ellipses, in coordinates from -1 to 1: the thorax, two darker lungs, the heart, the
spine and the ribs, each with a random place, size and brightness of its own. Over it lies a random texture whose
amplitude falls as 1/f^1.5, as that of the anatomical background of mammograms does (a power spectrum of 1/f^3: Burgess,
Jacobson & Judy, Med. Phys. 28, 2001), and white noise. An image of the class "lesion" has one more ellipse, a soft
bright blob that lies within a lung. Its mask holds the pixels where the blob has at least half of its height. Scanner
"a" gives more contrast and less noise than scanner "b".

    image = gain_s (anatomy + texture + contrast blob) + offset_s + noise_s e,   rounded to 8 bits

The seed, the split and the index of an image determine its random numbers. Each image is also rendered without its
lesion and otherwise equal, down to the noise: the exact answer to "what would it look like if it were healthy?".
"""

from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fastdc.data import Phantoms
from fastdc.support import Float64, Mask, checks

UInt8: TypeAlias = npt.NDArray[np.uint8]

SIDE = 32  # pixels
SPLITS = ("train", "val", "test")


class _Scanner(NamedTuple):
    gain: float
    offset: float
    noise: float


_SCANNERS = {"a": _Scanner(1.0, 0.0, 0.015), "b": _Scanner(0.75, 0.1, 0.028)}
_RADII = (2.0, 3.4)  # semi-axes of a lesion, pixels
_CONTRAST = (0.07, 0.21)  # of a lesion's middle, as a share of the range of pixels
_TEXTURE = 0.04  # standard deviation of the texture
_EDGE = 0.6  # half width of the edges of organs, pixels


def phantoms(count: int, split: str = "test", *, seed: int = 0, positive: float = 0.15) -> Phantoms:
    """Renders phantoms; the first images of a split stay the same when more are asked for.

    Args:
        count: Number of images.
        split: "train", "val" or "test": independent images each.
        seed: Seed of the images.
        positive: Share of images with a lesion, in [0, 1]; each image has one with this probability.

    Raises:
        InputError: An argument is out of range.

    Example:
        >>> from fastdc.testing import phantoms
        >>> world = phantoms(40)
        >>> world.images.shape, int(world.labels.sum())
        ((40, 1, 32, 32), 11)
    """
    count, seed = checks.whole("count", count, low=1), checks.whole("seed", seed, low=0)
    split, positive = checks.one_of("split", split, SPLITS), checks.number("positive", positive, low=0.0, high=1.0)
    stream = SPLITS.index(split)
    rows = [_render(np.random.default_rng((seed, stream, index)), positive) for index in range(count)]
    images, healthy, masks, labels, groups = (np.array(column) for column in zip(*rows, strict=True))
    return Phantoms(images[:, None], labels.astype(np.int64), masks, groups, healthy[:, None])


class _Phantom(NamedTuple):
    image: UInt8
    healthy: UInt8
    mask: Mask
    label: int
    group: str


class _Ellipse(NamedTuple):
    """Its middle, semi-axes and angle, in coordinates from -1 to 1 (y downwards)."""

    x: float
    y: float
    a: float
    b: float
    angle: float = 0.0

    def distance(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Float64:
        """1 on the ellipse, 0 in its middle."""
        u, v = np.asarray(x) - self.x, np.asarray(y) - self.y
        cosine, sine = np.cos(self.angle), np.sin(self.angle)
        found: Float64 = np.hypot((cosine * u + sine * v) / self.a, (cosine * v - sine * u) / self.b)
        return found

    def soft(self, x: Float64, y: Float64) -> Float64:
        """1 inside, 0 outside, with an edge of a few pixels."""
        width = _EDGE * 2 / SIDE / min(self.a, self.b)
        return np.asarray(1 / (1 + np.exp(np.clip((self.distance(x, y) - 1) / (width / 2), -60, 60))))


def _render(rng: np.random.Generator, positive: float) -> _Phantom:
    ticks = (np.arange(SIDE) + 0.5) * 2 / SIDE - 1
    y, x = np.meshgrid(ticks, ticks, indexing="ij")
    ill, group = bool(rng.uniform() < positive), str(rng.choice(list(_SCANNERS)))
    anatomy, lungs, heart = _anatomy(rng, x, y)
    background = texture(rng)[:SIDE, :SIDE]  # a quarter, so that opposite edges differ
    lesion = _lesion(rng, lungs, heart)
    blob = np.exp(-np.log(2.0) * lesion.distance(x, y) ** 4)  # half of its height on the ellipse
    contrast = rng.uniform(*_CONTRAST)
    gain, offset, noise = _SCANNERS[group]
    grain = noise * rng.standard_normal((SIDE, SIDE))
    healthy = gain * (anatomy + background) + offset + grain
    image = healthy + ill * gain * contrast * blob
    mask = (lesion.distance(x, y) <= 1) & ill
    return _Phantom(_levels(image), _levels(healthy), mask, int(ill), group)


def _levels(pixels: Float64) -> UInt8:
    return np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8)


def _anatomy(rng: np.random.Generator, x: Float64, y: Float64) -> tuple[Float64, list[_Ellipse], _Ellipse]:
    """The brightness of a thorax, with its lungs and its heart."""

    def near(middle: float, by: float) -> float:
        return float(middle + by * rng.uniform(-1, 1))

    thorax = _Ellipse(near(0, 0.04), near(0.05, 0.05), near(0.88, 0.05), near(0.98, 0.05))
    lungs = [
        _Ellipse(thorax.x + side * near(0.4, 0.03), near(-0.02, 0.05), near(0.29, 0.03), near(0.6, 0.05), side * -0.12)
        for side in (-1, 1)
    ]
    heart = _Ellipse(thorax.x + near(0.1, 0.04), near(0.32, 0.05), near(0.27, 0.04), near(0.25, 0.04), near(0.4, 0.2))
    inside = thorax.soft(x, y)
    air = np.maximum(*(lung.soft(x, y) for lung in lungs)) * (1 - 0.9 * heart.soft(x, y))
    spine = np.exp(-(((x - thorax.x) / 0.1) ** 2))
    arcs = np.cos(2 * np.pi * (y + 0.35 * (x - thorax.x) ** 2 + near(0, 0.2)) / near(0.36, 0.03))
    ribs = 0.03 * np.maximum(arcs, 0) * inside
    pixels = 0.06 + inside * near(0.52, 0.05) - air * near(0.3, 0.04) + 0.12 * spine * inside + ribs
    return pixels, lungs, heart


def texture(rng: np.random.Generator) -> Float64:
    """A periodic random field (64, 64) with amplitudes that fall as 1/f^1.5, of mean 0 and deviation _TEXTURE."""
    side = 2 * SIDE
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = np.inf
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side, side))) / frequency**1.5)
    return np.asarray(_TEXTURE * field / field.std())


def _lesion(rng: np.random.Generator, lungs: list[_Ellipse], heart: _Ellipse) -> _Ellipse:
    """An ellipse that lies within one of the lungs and does not touch the heart."""
    lung = lungs[rng.integers(2)]
    a, b = rng.uniform(*_RADII, 2) * 2 / SIDE
    angle = rng.uniform(0, np.pi)
    margin = max(a, b)
    while True:
        radius, turn = np.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi)
        u, v = (lung.a - margin) * radius * np.cos(turn), (lung.b - margin) * radius * np.sin(turn)
        cosine, sine = np.cos(lung.angle), np.sin(lung.angle)
        found = _Ellipse(lung.x + cosine * u - sine * v, lung.y + sine * u + cosine * v, a, b, angle)
        clear = _Ellipse(heart.x, heart.y, heart.a + margin, heart.b + margin, heart.angle)
        if clear.distance(found.x, found.y) > 1:
            return found
