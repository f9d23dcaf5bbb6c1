"""Writes the shapes data sets: rendered solids of 8 colours and 4 shapes; training misses some of the 32 pairs.

    python models/make_shapes.py OUTDIR   ->  OUTDIR/shapes-{train,val,test}.npz, shapes-prompts.csv, shapes-split.csv

An image shows one sphere, cube, cylinder or cone on a grey ground, 32x32 RGB, at a random place, size, tilt, light and
grey level, with sensor noise. A class is a pair of colour and shape, with the prompt "a photo of a {colour} {shape}".
Eight of the 32 pairs, one per colour and two per shape, appear only in val and test. A model sees every word but never
these pairs, so its accuracy on them measures whether it composes what it has learnt (the single-object task of Pearson
et al., arXiv 2508.20783, whose images are ray traced and larger).

Solids are drawn by formula. In a shape's own frame, with x to the right, y down and radius 1, a function says which
points the shape covers and how much light they return. A pixel averages 3x3 points, which smooths the edges.
"""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Surface = tuple[npt.NDArray[np.bool_], Floats]  # covered points, and the share of the colour that each returns

SIZE = 32  # pixels per side
SUPERSAMPLING = 3  # points per pixel and side
RADIUS = (7.0, 12.0)  # radius of an object, in pixels
COUNTS = {"train": 250, "val": 10, "test": 20}  # images per class
COLOURS = {
    "red": (0.85, 0.12, 0.12),
    "yellow": (0.90, 0.82, 0.10),
    "green": (0.15, 0.65, 0.20),
    "cyan": (0.15, 0.80, 0.82),
    "blue": (0.15, 0.25, 0.85),
    "purple": (0.50, 0.15, 0.72),
    "pink": (0.97, 0.50, 0.75),
    "brown": (0.45, 0.27, 0.10),
}


def _sphere(x: Floats, y: Floats, light: float) -> Surface:
    """Lambert's law on a ball of radius 0.95, lit from above and from `light` in -1 (left) ... 1 (right)."""
    height = np.sqrt(np.maximum(0.95**2 - x**2 - y**2, 0.0))
    direction = np.array([0.45 * light, -0.6, 0.66])
    cosine = (x * direction[0] + y * direction[1] + height * direction[2]) / (0.95 * np.linalg.norm(direction))
    return x**2 + y**2 <= 0.95**2, 0.45 + 0.6 * np.maximum(cosine, 0.0)


def _cube(x: Floats, y: Floats, light: float) -> Surface:
    """A square front, with receding top and side; the side is on the left or right, away from the light."""
    x = x * (1.0 if light < 0 else -1.0)
    depth = np.clip(np.minimum((x - 0.45) / 0.4, 1.0), 0.0, None)  # depth of a point of the side
    top_depth = (-0.45 - y) / 0.4
    front = (x >= -0.85) & (x <= 0.45) & (y >= -0.45) & (y <= 0.85)
    side = (x > 0.45) & (x <= 0.85) & (y >= -0.45 - 0.4 * depth) & (y <= 0.85 - 0.4 * depth)
    top = (y < -0.45) & (y >= -0.85) & (x >= -0.85 + 0.4 * top_depth) & (x <= 0.45 + 0.4 * top_depth)
    return front | side | top, np.select([front, top, side], [0.85, 1.05, 0.55], 0.0)


def _cylinder(x: Floats, y: Floats, light: float) -> Surface:
    """An upright cylinder of half width 0.62, seen from slightly above."""
    across = np.clip(x / 0.62, -1.0, 1.0)
    lid = (x / 0.62) ** 2 + ((y + 0.7) / 0.22) ** 2 <= 1.0
    foot = (x / 0.62) ** 2 + ((y - 0.7) / 0.22) ** 2 <= 1.0
    barrel = (np.abs(x) <= 0.62) & (np.abs(y) <= 0.7)
    return lid | foot | barrel, np.where(lid, 1.05, _round(across, light))


def _cone(x: Floats, y: Floats, light: float) -> Surface:
    """A cone with its tip up and a foot of half width 0.8, seen from slightly above."""
    width = np.maximum(0.8 * (y + 0.95) / 1.6, 1e-9)
    flank = (y >= -0.95) & (y <= 0.65) & (np.abs(x) <= width)
    foot = (x / 0.8) ** 2 + ((y - 0.65) / 0.24) ** 2 <= 1.0
    return flank | foot, _round(np.clip(x / np.where(y <= 0.65, width, 0.8), -1.0, 1.0), light)


def _round(across: Floats, light: float) -> Floats:
    """Light that a round wall returns at the position `across` in [-1, 1] of its width."""
    cosine = 0.6 * light * across + 0.8 * np.sqrt(1.0 - across**2)
    return np.asarray(0.45 + 0.5 * np.maximum(cosine, 0.0))


SHAPES: dict[str, Callable[[Floats, Floats, float], Surface]] = {
    "sphere": _sphere,
    "cube": _cube,
    "cylinder": _cylinder,
    "cone": _cone,
}
CLASS_NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
HELD_OUT = tuple(len(SHAPES) * colour + (colour + colour // 4) % len(SHAPES) for colour in range(len(COLOURS)))
"""Classes that training never sees: one shape per colour, two colours per shape."""


def prompt(name: str) -> str:
    """The text that describes a class."""
    return f"a photo of a {name}"


def ground(rng: np.random.Generator) -> Floats:
    """A grey ground that is slightly darker on one side: (points, points, 3) in [0, 1]."""
    y, x = _points()
    slope = rng.uniform(-0.1, 0.1, 2)
    grey = rng.uniform(0.3, 0.8) + slope[0] * (x / SIZE - 0.5) + slope[1] * (y / SIZE - 0.5)
    return np.repeat(grey[:, :, None], 3, axis=2)


def place(canvas: Floats, colour: str, shape: str, rng: np.random.Generator, columns: tuple[float, float]) -> None:
    """Draws one object of random size, tilt, light and place on a canvas of :func:`ground`.

    Args:
        canvas: Canvas to draw on, in place.
        colour: Colour of the object, one of :data:`COLOURS`.
        shape: Shape of the object, one of :data:`SHAPES`.
        rng: Generator of the random choices.
        columns: Left and right limit of the object, in pixels.
    """
    left, right = columns
    radius = rng.uniform(RADIUS[0], min(RADIUS[1], (right - left) / 2))
    cx, cy = rng.uniform(left + radius, right - radius), rng.uniform(radius, SIZE - radius)
    tilt, light, brightness = rng.uniform(-0.15, 0.15), rng.uniform(-1.0, 1.0), rng.uniform(0.85, 1.05)
    y, x = _points()
    u, v = (x - cx) / radius, (y - cy) / radius
    covered, returned = SHAPES[shape](
        np.cos(tilt) * u + np.sin(tilt) * v, np.cos(tilt) * v - np.sin(tilt) * u, float(light)
    )
    paint = brightness * returned[:, :, None] * np.array(COLOURS[colour])
    canvas[covered] = np.minimum(paint, 1.0)[covered]


def develop(canvas: Floats, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The image (3, SIZE, SIZE) of a canvas: the mean of each pixel's points, with noise, in 0 ... 255."""
    pixels = canvas.reshape(SIZE, SUPERSAMPLING, SIZE, SUPERSAMPLING, 3).mean(axis=(1, 3))
    noisy = pixels + rng.normal(0.0, 0.015, pixels.shape)
    image: npt.NDArray[np.uint8] = np.round(255.0 * np.clip(noisy, 0.0, 1.0)).astype(np.uint8).transpose(2, 0, 1)
    return image


def _points() -> tuple[Floats, Floats]:
    """Coordinates (y, x) of all points of a canvas, in pixels from the top left corner."""
    ticks = (np.arange(SIZE * SUPERSAMPLING) + 0.5) / SUPERSAMPLING
    y, x = np.meshgrid(ticks, ticks, indexing="ij")
    return y, x


def render(label: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """One image of a class, uint8 (3, SIZE, SIZE)."""
    colour, shape = CLASS_NAMES[label].split()
    canvas = ground(rng)
    place(canvas, colour, shape, rng, (0.0, float(SIZE)))
    return develop(canvas, rng)


def make_set(split: str, per_class: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images (n, 3, SIZE, SIZE) and labels (n,) of a split, with the classes in turns; train lacks :data:`HELD_OUT`.

    The split and the index of an image determine its stream of random numbers.
    """
    classes = [label for label in range(len(CLASS_NAMES)) if split != "train" or label not in HELD_OUT]
    labels = np.tile(np.array(classes, dtype=np.int64), per_class)
    stream = tuple(COUNTS).index(split)
    images = [render(int(label), np.random.default_rng((stream, index))) for index, label in enumerate(labels)]
    return np.stack(images), labels


def write_tables(out: Path) -> None:
    """Writes the prompts, in the columns that diffusion classifiers use, and the split of the classes."""
    with (out / "shapes-prompts.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("prompt", "classname", "classidx"))
        rows.writerows((prompt(name), name, index) for index, name in enumerate(CLASS_NAMES))
    with (out / "shapes-split.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("classidx", "classname", "split"))
        split = ("seen", "held-out")
        rows.writerows((index, name, split[index in HELD_OUT]) for index, name in enumerate(CLASS_NAMES))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the shapes train, val and test sets as .npz files.")
    parser.add_argument("out", type=Path, help="folder for the files; it is made if it does not exist")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for split, per_class in COUNTS.items():
        images, labels = make_set(split, per_class)
        path = out / f"shapes-{split}.npz"
        np.savez_compressed(path, images=images, labels=labels, class_names=np.array(CLASS_NAMES))
        print(f"{path}: {len(labels)} images of {len(np.unique(labels))} classes")
    write_tables(out)
    print(f"held out of training: {', '.join(CLASS_NAMES[label] for label in HELD_OUT)}")


if __name__ == "__main__":
    main()
