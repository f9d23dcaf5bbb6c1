"""An explanation as one HTML page: the answer, the race, the errors and the maps of each image."""

from collections.abc import Iterable, Sequence, Sized

import numpy as np
import numpy.typing as npt

from fastdc.explanation.arrays import LATENTS, WAVELET, ExplanationArrays, ImageExplanation
from fastdc.explanation.counterfactual_result import ImageCounterfactual
from fastdc.explanation.error_maps import BANDS
from fastdc.explanation.level_curves import curves_svg
from fastdc.explanation.map_pictures import (
    brightness_picture,
    overlay_picture,
    scale_of,
    signed_picture,
    width_picture,
)
from fastdc.support import Floats, InputError
from fastdc.support import html_pages as page

MOST_IMAGES = 100
"""Most images of a page."""

MOST_PIXELS = 2**22
"""Most pixels of them together; each takes up to 25 bytes, as there are seven pictures of it."""

_MOST_CLASSES = 8
_CONTROLLED = {
    "fdr": "on average, at most {alpha:.3g} % of the marked pixels of an image have no evidence (Benjamini-Yekutieli)",
    "fwer": "with probability at most {alpha:.3g} %, any marked pixel of an image has no evidence (Holm)",
}


def explanation_page(
    explanation: ExplanationArrays, counterfactuals: Sequence[ImageCounterfactual] | None = None
) -> str:
    """The whole page.

    Args:
        explanation: The explanation.
        counterfactuals: Counterfactual of each image; None: there are none.

    Raises:
        InputError: There is not one counterfactual for each image.
    """
    if counterfactuals is not None and len(counterfactuals) != len(explanation):
        raise InputError(
            f"counterfactuals must be one for each of {len(explanation)} images, got {len(counterfactuals)}"
        )
    n = len(explanation)
    model = explanation.provenance.get("model", "a model")
    fitting = max(1, MOST_PIXELS // int(np.prod(explanation.maps.shape[1:])))
    shown = explanation[: min(n, MOST_IMAGES, fitting)]
    low, high = shown.interval()
    halves = (high - low) / 2
    parts = [_reading(explanation)]
    if n > len(shown):
        parts.append(page.remark(f"The first {len(shown)} of {n} images."))
    if len(shown) > 1:
        parts += ["<h2>Images</h2>", page.table(_overview(shown))]
    for row, one in enumerate(shown):
        other = None if counterfactuals is None else counterfactuals[row]
        parts.append(_section(one, explanation=shown, row=row, width=halves[row], other=other))
    parts += ["<section><h2>What reproduces it</h2>", page.facts(list(_facts(explanation))), "</section>"]
    count = f"{n} answers" if n != 1 else "an answer"
    return page.html_page(f"Explanation of {count} of {model}", "\n".join(parts))


def _reading(explanation: ExplanationArrays) -> str:
    test = explanation.test
    promised = _CONTROLLED[test["control"]].format(alpha=100 * test["alpha"])
    loss = explanation.provenance["plan"]["loss"]
    rotated = explanation.space == WAVELET and loss != "l2"  # only squares survive a rotation
    mean = f"not the difference of errors for the loss {loss}" if rotated else "the difference of the two mean errors"
    text = (
        "A diffusion classifier denoises the image under each class; the class with the smallest error wins. Maps "
        "show where: blue pixels are denoised better under the class that is explained, orange ones under the class "
        f"against it, both under the same noise, over {_draws(explanation.ratio.size)}. The mean of a map is {mean}. "
        f"Marked pixels are significant: {promised}. That holds for an answer and its runner-up, and for classes that "
        "other noise chose. A map shows what this model compares; whether that is what a person would look at is "
        "another question."
    )
    where = {
        LATENTS: "The network works on latents: each value of a map covers a block of pixels, and the "
        "encoder may have looked beyond it.",
        WAVELET: "The network works on Haar coefficients; its residuals were brought back to pixels.",
    }
    return page.remark(text) + page.remark(where.get(explanation.space, ""))


def _overview(explanation: ExplanationArrays) -> list[list[str]]:
    rows = [["image", "answer", "probability", "against", "undecided", "share for", "share against"]]
    for one in explanation:
        shares = [f"{100 * part.share:.1f} %" for part in (one.region_for, one.region_against)]
        undecided = "?" if one.undecided is None else "yes" if one.undecided else ""
        rows.append([_name(one), one.name, f"{one.probability:.3f}", one.names[1], undecided, *shares])
    return rows


def _name(one: ImageExplanation) -> str:
    """The name of its file; the folder would fill the page of a phone."""
    return f"image {one.index}" if one.image is None else one.image.replace("\\", "/").rsplit("/", 1)[-1] or one.image


def _section(
    one: ImageExplanation,
    *,
    explanation: ExplanationArrays,
    row: int,
    width: Floats,
    other: ImageCounterfactual | None,
) -> str:
    answer = (
        f'<p><span class="big">{page.escaped(one.name)}</span> with probability {one.probability:.3f}, explained as '
        f'<strong class="blue-text">{page.escaped(one.names[0])}</strong> against '
        f'<strong class="orange-text">{page.escaped(one.names[1])}</strong></p>'
    )
    notes = []
    if one.undecided:
        notes.append(f"Undecided: {one.names[0]} and {one.names[1]} differ by no more than the noise of the draws.")
    if one.turned:
        notes.append(f"It is of the class that was named against it, so {one.names[1]}, its runner-up, took the place.")
    lists = "".join(
        f"<div><h3>{title}</h3>{made}</div>"
        for title, made in (("Probabilities", _probabilities(one)), ("Errors", _errors(one)), ("The race", _race(one)))
    )
    curves = page.figure(
        curves_svg(explanation.ratio, one.pair_errors, one.names),
        f"Error by noise level: {one.names[0]} (solid, dots) and {one.names[1]} (dashed, squares), means of "
        "neighbouring draws.",
    )
    return "\n".join(
        [
            f'<section id="image-{one.index}"><h2>{page.escaped(_name(one))}</h2>',
            answer,
            *map(page.remark, notes),
            page.facts(list(_told(one, explanation, row))),
            _maps(one, explanation.images[row], width),
            "" if other is None else _counterfactual(other),
            f'<div class="pictures wide">{lists}<div><h3>Noise levels</h3>{curves}</div></div>',
            "</section>",
        ]
    )


def _told(one: ImageExplanation, explanation: ExplanationArrays, row: int) -> Iterable[tuple[str, str]]:
    if one.image is not None and one.image != _name(one):
        yield "file", one.image
    if one.undecided is not None:
        difference = (one.pair_errors[1].astype(np.float64) - one.pair_errors[0]).mean()
        known = f"{difference:.4g} ± {one.gap_half_width:.2g} (95 %, over the noise)"
        yield "difference of errors", known + (": undecided" if one.undecided else "")
    yield f"pixels for {one.names[0]}", str(one.region_for)
    yield f"pixels for {one.names[1]}", str(one.region_against)
    votes = explanation.answers.votes[row]
    yield "draws won by the answer", f"{votes[one.label]} of {votes.sum()} that the last classes share"
    if explanation.answers.promises is not None:
        yield "promise", explanation.answers.promises[row]
    yield "cost", f"{one.evaluations:,} network evaluations, {explanation.ratio.size * 2:,} of them for the map"


def _maps(one: ImageExplanation, image: npt.NDArray[np.generic], width: Floats) -> str:
    scale = scale_of(one.map)
    fine = scale_of(one.bands)
    share = f"{100 * one.region_for.share:.3g} % of pixels for, {100 * one.region_against.share:.3g} % against"
    pictures = [
        page.figure(page.image(page.picture(image), f"The image {_name(one)}"), "The image, as the model gets it."),
        page.figure(
            page.image(overlay_picture(image, one.map, one.significant, scale), f"Significant pixels: {share}"),
            f"Significant pixels over the image: {share}.",
        ),
        page.figure(
            page.image(signed_picture(one.map, scale), "The map of all pixels"),
            f"The map, significant or not; full colour at ±{scale:.2g}.",
        ),
        page.figure(
            page.image(width_picture(width, scale), "Half widths of the intervals of all pixels"),
            f"Half width of each pixel's 95 % interval: white 0, black {scale:.2g}; the median is "
            f"{np.median(width):.2g}."
            if np.isfinite(width).all()
            else "Half width of each pixel's 95 % interval: not known of a single observation.",
        ),
    ]
    bands = [
        page.figure(
            page.image(signed_picture(part, fine), f"Part of the map from {name} noise levels"),
            f"{name}: {part.mean():+.2g}",
        )
        for name, part in zip(BANDS, one.bands, strict=False)
    ]
    return (
        f'<div class="pictures">{"".join(pictures)}</div><h3>Which noise levels speak</h3>'
        f'<div class="pictures small">{"".join(bands)}</div>'
        + page.remark(
            f"Parts of the map from low (fine), medium and high (coarse) noise levels; full colour at ±{fine:.2g}. "
            "They sum to the map, and the numbers to its mean."
        )
    )


def _counterfactual(other: ImageCounterfactual) -> str:
    change = (other.counterfactual - other.factual).mean(axis=0)
    scale = scale_of(change)
    if other.own == other.target:
        followed = f"{other.target} is the image's own class: nothing can flip"
    else:
        followed = f"The model takes the counterfactual for {other.target}: {'yes' if other.flipped else 'no'}"
    answers = (
        f"{followed}; the factual reconstruction for {other.own}: {'yes' if other.kept else 'no'}. The factual "
        "reconstruction is the same edit towards the image's own class: what both pictures share is the work of the "
        "edit, and what differs between them is the class."
    )
    pictures = (
        (page.picture(other.factual), f"Factual reconstruction, as {other.own}."),
        (page.picture(other.counterfactual), f"Counterfactual, as {other.target}."),
        (
            brightness_picture(change, scale),
            f"Counterfactual minus factual: green brighter, purple darker, full colour at ±{scale:.2g}.",
        ),
    )
    made = "".join(page.figure(page.image(pixels, text), text) for pixels, text in pictures)
    return f'<h3>What would change the answer</h3><div class="pictures">{made}</div>{page.remark(answers)}'


def _probabilities(one: ImageExplanation) -> str:
    order = sorted(one.probabilities.items(), key=lambda item: -item[1])
    rows = [(name, p, f"{p:.3f}", _colour(one, name)) for name, p in _kept(order, one)]
    return page.bars(rows, names=("class", "probability")) + _left_out(rows, one.probabilities)


def _errors(one: ImageExplanation) -> str:
    known = sorted((item for item in one.errors.items() if np.isfinite(item[1])), key=lambda item: item[1])
    best = known[0][1] if known else 0.0
    kept = list(_kept(known, one))
    most = max([value - best for _, value in kept] + [one.smallest_difference])
    rows = [(name, (value - best) / most, f"{value:.4g}", _colour(one, name)) for name, value in kept]
    said = "At the draws of the race; bars: above the smallest error."
    return page.bars(rows, names=("class", "mean error")) + _left_out(rows, known) + page.remark(said)


def _race(one: ImageExplanation) -> str:
    order = sorted(one.race.items(), key=lambda item: (-item[1], one.errors[item[0]]))
    most = max(one.race.values())
    rows = [
        (name, draws / most, _draws(draws) if draws == most else f"left after {draws}", _colour(one, name))
        for name, draws in _kept(order, one)
    ]
    lost = sum(draws < most for draws in one.race.values())
    said = f"{lost} of {len(one.race)} classes left before the end, after {_draws(most)}."
    return page.bars(rows, names=("class", "evaluated")) + _left_out(rows, one.race) + page.remark(said)


def _left_out(shown: Sized, known: Sized) -> str:
    """How many classes a list leaves out."""
    more = len(known) - len(shown)
    return page.remark(f"{more} more class{'es' if more > 1 else ''}.") if more else ""


def _draws(count: float) -> str:
    return f"{count} draw{'s'[: count != 1]}"


def _kept(order: Sequence[tuple[str, float]], one: ImageExplanation) -> Iterable[tuple[str, float]]:
    """The first classes, and the two that are compared."""
    return (item for rank, item in enumerate(order) if rank < _MOST_CLASSES or item[0] in one.names)


def _colour(one: ImageExplanation, name: str) -> str:
    return "blue" if name == one.names[0] else "orange" if name == one.names[1] else ""


def _facts(explanation: ExplanationArrays) -> Iterable[tuple[str, str]]:
    for name, value in explanation.provenance.items():
        items = value.items() if isinstance(value, dict) else None
        text = str(value) if items is None else ", ".join(f"{key} {one}" for key, one in items if one is not None)
        yield name, text
