"""The options of a run: which draws, which rule, which decision; documented once for every method that takes them."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

from fastdc.diffusion import LevelWeights
from fastdc.inference.denoisers import AbstractDenoiser
from fastdc.rules import AbstractRule
from fastdc.support import InputError, did_you_mean, shown

_T = TypeVar("_T")


class ImageOptions(TypedDict, total=False):
    """The keywords that say how images are read. Omitted ones, and None, are the defaults. See :class:`Options`."""

    window: tuple[float, float] | None
    fit: str | None
    layout: str | None
    max_pixels: int | None
    skip_bad: bool
    split: str | None


class PlanOptions(TypedDict, total=False):
    """The keywords that select the draws. Omitted ones, and None, use the model's defaults. See :class:`Options`."""

    draws: int | None
    levels: tuple[float, float] | str | None
    weighting: str | None
    loss: str | None
    first: Sequence[float] | None
    order: str | None
    order_seed: int
    antithetic: bool
    level_weights: LevelWeights | None
    method: str
    sigma: float
    denoiser: AbstractDenoiser | str | None


class TableOptions(PlanOptions, ImageOptions, total=False):
    """The keywords of a run that evaluates every class: its images and its draws. See :class:`Options`."""


class RunOptions(TableOptions, total=False):
    """The keywords of a run: those of its plan, and how it is decided. See :class:`Options`."""

    rule: str | AbstractRule
    rule_options: dict[str, Any] | None
    decision: str
    seed: int
    temperature: float | None
    prior: Any
    self_calibrate: int | None


def _with_checked_names(kind: type[_T]) -> type[_T]:
    """Makes a class of options refuse a wrong name with fastdc's error, which suggests a right one."""
    made = kind.__init__

    @functools.wraps(made)
    def checked(self: _T, *others: Any, **keywords: Any) -> None:
        _check_names(keywords)
        made(self, *others, **keywords)

    kind.__init__ = checked  # type: ignore[method-assign, assignment]
    return kind


@_with_checked_names
@dataclass(frozen=True, kw_only=True, eq=False)
class Options:
    """How images are evaluated and decided.

    Pass one object to several calls, or the same names as keywords; keywords win:

        options = fastdc.Options(rule="paired", draws=64)
        clf.classify(images, options)
        clf.classify(images, options, seed=1)

    Attributes:
        rule: Rule that stops the evaluation of a class: a name of ``rules.RULES`` or a rule made by hand. "race" is the
            model's calibrated race, or the race of paired tests if there is no calibration for the plan; "full"
            evaluates every class at every draw. Some rules bring their own number of draws.
        rule_options: Options of the rule, such as {"alpha": 0.01}.
        decision: "mean" (smallest mean error) or "vote" (most draws won among the classes never dropped).
        seed: Seed of the noise, in [0, 2^64).
        temperature: Temperature of the posterior, positive; None: the model's, fitted on validation images if it was
            calibrated.
        prior: How often each class occurs: "uniform", "data" (as in the training data, if the model knows), a mapping
            of class names to weights, or K weights in the order of the classes. They need not sum to 1; a class of
            weight 0 is not evaluated and never wins. It needs a fitted temperature and decision "mean". Rule "race"
            then uses paired tests, or the race of self_calibrate. None: uniform.
        self_calibrate: Number of images to run in full, from which the race of all others is calibrated, in place of
            validation images: their answers differ from the full run's with probability at most delta. It is 0.01 for
            99 images or more, and at most 0.05, for which it takes 19; rule_options={"delta": 0.1} sets another.
            ``fastdc/inference/self_calibration.py`` states the promise. None: no calibration.
        draws: Draws per class, J.
        levels: Band of noise-to-signal ratios sigma / alpha (low, high), in units of the model's pixel values, or
            "all".
        weighting: "uniform", "edm", "vlb", "exp", "min_snr" or "velocity".
        loss: "l2", "l1" or "huber".
        first: Noise-to-signal ratios of the first draws, evaluated before the band.
        order: "van_der_corput" or "random", see ``diffusion.PlanConfig``.
        order_seed: Seed of order "random", in [0, 2^64).
        antithetic: Whether draws come in pairs of opposite noise.
        level_weights: Fitted curve that multiplies the weights, such as ``model.level_weights``.
        method: Diffusion classifier of noisy images, one of ``diffusion.METHODS``; "dc" takes images for clean ones.
        sigma: Standard deviation of the images' own noise, in pixels in [0, 1].
        denoiser: What denoises an image for the methods that need that without a class: another classifier, whose model
            is unconditional or has a null class, or "mean" for the mean over all classes; None: the model itself,
            which then needs a null class.
        window: Values that are black and white in images that are neither uint8 nor in [0, 1], such as (0, 4095);
            those outside are clipped. None: the model's own, if its training images were read through one.
        fit: How pictures and files come to the model's height and width: "crop" (resized to cover it, and the centre
            cropped) or "stretch" (resized, whatever their aspect ratio). None: as the training images did.
        layout: Axes of arrays whose shape can be read in two ways: "NCHW", "NHWC", "NHW", "CHW", "HWC" or "HW".
        max_pixels: Most pixels of one picture, a 4096th of those of all; None: 2^26. See :func:`fastdc.data.prepare`.
        skip_bad: Whether image files that cannot be read are left out, with a note in the log; the ``ids`` of a result
            tell which are there.
        split: Split to take of folders and files that have several, such as "val"; None: "test".
    """

    rule: str | AbstractRule = "race"
    rule_options: dict[str, Any] | None = None
    decision: str = "mean"
    seed: int = 0
    temperature: float | None = None
    prior: Any = None
    self_calibrate: int | None = None
    draws: int | None = None
    levels: tuple[float, float] | str | None = None
    weighting: str | None = None
    loss: str | None = None
    first: Sequence[float] | None = None
    order: str | None = None
    order_seed: int | None = None
    antithetic: bool | None = None
    level_weights: LevelWeights | None = None
    method: str | None = None
    sigma: float | None = None
    denoiser: AbstractDenoiser | str | None = None
    window: tuple[float, float] | None = None
    fit: str | None = None
    layout: str | None = None
    max_pixels: int | None = None
    skip_bad: bool = False
    split: str | None = None

    @property
    def reading(self) -> ImageOptions:
        """The options of the images."""
        return {
            "window": self.window,
            "fit": self.fit,
            "layout": self.layout,
            "max_pixels": self.max_pixels,
            "skip_bad": self.skip_bad,
            "split": self.split,
        }

    @property
    def plan(self) -> PlanOptions:
        """The options of the plan that were given."""
        names = PlanOptions.__annotations__
        return {name: value for name in names if (value := getattr(self, name)) is not None}  # type: ignore[return-value]

    def but(self, **changes: Any) -> "Options":
        """These options with some of them changed.

        Example:
            >>> fastdc.Options(rule="paired").but(draws=64).draws
            64

        Raises:
            InputError: There is no such option.
        """
        _check_names(changes)
        return dataclasses.replace(self, **changes)


def merged(options: Options | None, keywords: Any, call: Callable[..., Any] | None = None) -> Options:
    """The options of a call: an object, keywords, or both; keywords win.

    Args:
        options: Options; None: the defaults.
        keywords: Options by name.
        call: What was called; a message about a wrong name may suggest one of its own keywords.

    Example:
        >>> from fastdc.inference import Options, merged
        >>> merged(Options(draws=64), {"seed": 3}).seed
        3

    Raises:
        InputError: `options` is something else, or a keyword is no option.
    """
    if options is not None and not isinstance(options, Options):
        raise InputError(f"options must be fastdc.Options or keywords, got {shown(options)}")
    _check_names(keywords, call)
    return (Options() if options is None else options).but(**keywords)


# What some calls name otherwise, with the names that it has elsewhere.
_OF_CLASSES = ("classes", "to")
_MEANT = {
    **dict.fromkeys(("label", "labels", "class_", "class_name", "target", "targets"), _OF_CLASSES),
    **dict.fromkeys(("against", "to_", "to_class"), ("to", "against")),
    **dict.fromkeys(("to", "other", "versus"), ("against",)),
    **dict.fromkeys(("source", "from_class"), ("from_",)),
    "classes": ("to", "candidates"),
}


def _check_names(keywords: Iterable[str], call: Callable[..., Any] | None = None) -> None:
    """Refuses a name that is no option; suggests one, or a keyword of `call`."""
    known = [field.name for field in dataclasses.fields(Options)]
    unknown = min(set(keywords) - set(known), default=None)
    if unknown is None:
        return
    if call is not None:
        parameters = inspect.signature(call).parameters.values()
        known += [each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
    meant = next((name for name in _MEANT.get(unknown, ()) if name in known), None)
    hint = did_you_mean(unknown, known) if meant is None else f"; did you mean {meant!r}?"
    raise InputError(f"there is no option {shown(unknown)}{hint}")
