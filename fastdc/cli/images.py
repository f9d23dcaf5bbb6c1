"""Images for a command: the options that every command has that reads images, and the notes that all of them print."""

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import click
from click.core import ParameterSource

from fastdc.cli.noise import note
from fastdc.cli.options import Command
from fastdc.cli.sources import STDIN, expanded, on_disk

if TYPE_CHECKING:
    from fastdc.data import ImageSet, LabelledImages

_WINDOW = click.option(
    "--window",
    type=(float, float),
    metavar="LOW HIGH",
    help="Values that are black and white in images of more than 8 bits, such as 0 4095 for 12 bits; values outside "
    "are clipped.  [default: those that the model was trained with, else 0 65535 for 16 bits, 0 1 for floats]",
)
_FIT = click.option(
    "--fit",
    type=click.Choice(["crop", "stretch"]),
    help="How a picture comes to the model's height and width: crop (resized to cover them, the centre cropped) or "
    "stretch (resized without keeping its aspect ratio).  [default: as in training, usually crop]",
)
_MAX_PIXELS = click.option(
    "--max-pixels",
    type=int,
    metavar="N",
    help="Most pixels of one image file. All images together may have 4096 times as many, and take 1024 times as many "
    "bytes when converted.  [default: 67108864, and so 64 GiB]",
)

_SKIP_BAD = click.option(
    "--skip-bad",
    is_flag=True,
    default=None,
    help="Leave out image files that cannot be read, and note each with the reason. Without it, one error names them.",
)

_OF_IMAGES = re.compile(r"[0-9]+ images? ")  # the notes of what was done to images


class Limits(TypedDict):
    """What the options of a command say about images."""

    window: tuple[float, float] | None
    fit: str | None
    max_pixels: int | None
    skip_bad: bool
    split: str | None


def image_options(natural: str = "test", prefix: str = "") -> Callable[[Command], Command]:
    """Adds --window, --fit, --max-pixels, --skip-bad and --split; `natural` is the split taken by default.

    A `prefix` makes another name of --split, where that has another meaning: --calibrate-split for "calibrate-".
    """
    split = click.option(
        f"--{prefix}split",
        metavar="NAME",
        help=f"Split to take of data that have several, such as the folders train, val and test.  [default: {natural}]",
    )
    return lambda command: _WINDOW(_FIT(_MAX_PIXELS(_SKIP_BAD(split(command)))))


def take_limits(options: dict[str, Any], prefix: str = "") -> Limits:
    """Removes the options of :func:`image_options` from a command's options, and returns them.

    Args:
        options: The options; those of images are removed.
        prefix: That of :func:`image_options`.

    Raises:
        InputError: An option is out of range.
    """
    from fastdc.data import DEFAULT_MAX_PIXELS, check_window
    from fastdc.support import checks

    if options["window"] is not None:
        check_window(options["window"])
    checks.whole_or("max_pixels", options["max_pixels"], DEFAULT_MAX_PIXELS)
    return {
        "window": options.pop("window"),
        "fit": options.pop("fit"),
        "max_pixels": options.pop("max_pixels"),
        "skip_bad": bool(options.pop("skip_bad")),
        "split": options.pop(f"{prefix}split".replace("-", "_")),
    }


class Read(Protocol):
    """How images were read: a model, or the recipe that it was trained with."""

    @property
    def window(self) -> tuple[float, float] | None:
        """Black and white, see ``fastdc.bundle.Model``."""

    @property
    def fit(self) -> str | None:
        """How images come to a height and width."""


def seen_through(limits: Limits, model: Read) -> Limits:
    """The limits with the window and the fit of a model, unless --window and --fit give others.

    Args:
        limits: What the options say.
        model: The model, or its recipe.
    """
    from fastdc.support import UsualWindow

    if limits["fit"] is None:
        limits = {**limits, "fit": model.fit}
    if model.window is None or limits["window"] is not None:
        return limits
    return {**limits, "window": UsualWindow(*model.window)}


def read_images(
    sources: Sequence[str],
    shape: tuple[int, int, int],
    limits: Limits,
    *,
    quiet: bool,
    classes: Sequence[str] | None = None,
    strict: bool = True,
    digits: bool = False,
    used: slice | None = None,
    natural: str = "test",
) -> "ImageSet":
    """The images of a command, as :func:`fastdc.data.load_images`; prints the notes unless `quiet`.

    Of sources that have splits, `natural` is taken unless --split names another. Patterns are expanded, and "-" is
    standard input. If `digits`, pictures of anything but white digits on black are refused. The notes are of the images
    `used`; default: all.
    """
    from fastdc.cli.digit_pictures import SmallDigits, refuse_bright
    from fastdc.data import load_images

    look = SmallDigits(min(shape[1:])) if digits else None
    with on_disk(expanded(sources), _most_pixels(limits)) as (paths, stdin):
        loaded = load_images(paths, shape, classes=classes, strict=strict, look=look, natural=natural, **limits)
    if stdin is not None:
        loaded = _without_path(loaded, stdin)
    if look is not None:
        refuse_bright(loaded.ids, loaded.images)
        loaded = replace(loaded, notes=(*loaded.notes, *look.notes()))
    if not quiet:
        print_notes(loaded.notes if used is None else _notes_of(loaded, used, shape, limits), quiet=False)
    return loaded


def _without_path(loaded: "ImageSet", stdin: str) -> "ImageSet":
    """The same images, whose names begin with "-" in place of the path of the temporary file."""

    def told(name: str) -> str:
        return STDIN + name.removeprefix(stdin) if name.startswith(stdin) else name

    return replace(
        loaded,
        ids=tuple(map(told, loaded.ids)),
        notes=tuple(line.replace(stdin, STDIN) for line in loaded.notes),
        left_out=tuple((told(name), why) for name, why in loaded.left_out),
    )


def _notes_of(loaded: "ImageSet", used: slice, shape: tuple[int, int, int], limits: Limits) -> Iterable[str]:
    """The notes of some of the images that were loaded. What was done to files is found by reading those again."""
    from fastdc.data import load_images
    from fastdc.support import InputError

    names, other = loaded.ids[used], [line for line in loaded.notes if not _OF_IMAGES.match(line)]
    if len(names) == len(loaded) or len(other) == len(loaded.notes):
        return loaded.notes
    if all(Path(name).is_file() for name in names):
        with suppress(InputError):  # 16-bit files can be too dark without the others
            more: dict[str, Any] = {
                "window": limits["window"],
                "fit": limits["fit"],
                "max_pixels": limits["max_pixels"],
            }
            again = load_images(names, shape, **more).notes
            return [*other, *filter(_OF_IMAGES.match, again)]
    return [f"{len(names)} of {len(loaded)} images are used, but all were converted", *loaded.notes]


def read_labelled(
    source: str,
    shape: tuple[int, int, int],
    limits: Limits,
    *,
    quiet: bool,
    classes: Sequence[str],
    natural: str = "val",
) -> "LabelledImages":
    """Labelled images of a model's classes, as :func:`fastdc.data.load_labelled`; prints the notes unless `quiet`.

    Of a source that has splits, `natural` is taken unless --split names another.
    """
    from fastdc.data import load_labelled

    with on_disk([source], _most_pixels(limits)) as ((path,), _):
        loaded = load_labelled(path, shape, classes=classes, natural=natural, **limits)
    print_notes(loaded.notes, quiet=quiet)
    return loaded


def read_with_labels(
    sources: Sequence[str], shape: tuple[int, int, int], limits: Limits, *, classes: Sequence[str]
) -> "ImageSet":
    """Images with the classes that their files state, as :func:`fastdc.data.load_with_labels`, which logs the notes.

    Patterns are expanded, and "-" is standard input.
    """
    from fastdc.data import load_with_labels

    with on_disk(expanded(sources), _most_pixels(limits)) as (paths, _):
        return load_with_labels(paths, shape, classes=classes, **limits)[0]


def _most_pixels(limits: Limits) -> int:
    from fastdc.data import DEFAULT_MAX_PIXELS

    return DEFAULT_MAX_PIXELS if limits["max_pixels"] is None else limits["max_pixels"]


def digits_only() -> bool:
    """Whether the command runs with the default model, which knows digits only, and none was given."""
    return click.get_current_context().get_parameter_source("model") is ParameterSource.DEFAULT


def print_notes(notes: Iterable[str], *, quiet: bool) -> None:
    """Prints notes on stderr, one per line, unless `quiet`."""
    for line in () if quiet else notes:
        note(line)
