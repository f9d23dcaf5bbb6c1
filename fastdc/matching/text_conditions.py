"""Texts as the conditions of a classifier, and the rule that fits candidates of each image's own."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastdc.backends import firsts_of_texts
from fastdc.bundle import TEXT, Bundle, Model
from fastdc.classifier import DiffusionClassifier
from fastdc.inference import Options
from fastdc.matching.trials import Trials
from fastdc.rules import OWN, AbstractRule, Calibrated, Paired
from fastdc.support import InputError, Int32, Int64, shown

NO_TEXT = "(no text)"
"""The name of the model's "no class" where it stands beside texts."""


def different_texts(bundle: Bundle, texts: Sequence[str]) -> tuple[tuple[str, ...], Int32]:
    """The texts that differ to a bundle's text encoders, as its conditions, and the condition of each text, int32 (P,).

    Their order is that of their hashes. Where errors are equal, as of a network that does not heed its text, rules drop
    the later conditions and votes go to the first one: in the order of the lists, that would be the first text of a
    list, which often is the right one.
    """
    firsts, conditions = np.unique(firsts_of_texts(bundle, texts), return_inverse=True)
    hashes = [hashlib.blake2b(texts[i].encode(errors="surrogatepass")).digest() for i in firsts.tolist()]
    order = sorted(range(len(hashes)), key=hashes.__getitem__)
    return tuple(texts[firsts[i]] for i in order), np.argsort(order)[conditions].astype(np.int32)


def named_conditions(texts: Sequence[str], model: Model) -> Int32:
    """The condition of each text of a model without a text encoder, int32 (P,)."""
    places = {name: at for at, name in enumerate(model.conditions)}
    other = next((text for text in texts if text not in places), None)
    if other is not None:
        raise InputError(
            f"model {model.name} has no text encoder: expected texts that are its prompts or classes, such as "
            f"{shown(model.conditions[0], 60)}, got {shown(other, 60)}"
        )
    if not model.prompts and len(places) < len(model.conditions):  # of prompts, the same text is the same condition
        count = Counter(model.conditions)
        twice = next((text for text in texts if count[text] > 1), None)
        if twice is not None:
            raise InputError(f"model {model.name} has {count[twice]} classes with the name {shown(twice, 60)}")
    return np.array([places[text] for text in texts], np.int32)


def distinct_conditions(trials: Trials, conditions: Int32) -> list[Int32]:
    """The candidate conditions of each image, int32 in the order of the trials.

    Raises:
        InputError: Two candidates of an image are one condition.
    """
    own = [conditions[candidates] for candidates in trials.candidates]
    for i, one in enumerate(own):
        if len(np.unique(one)) < len(one):
            first: dict[int, str] = {}
            for text, condition in zip(trials.texts_of(i), one.tolist(), strict=True):
                if condition in first:
                    both = f"{shown(first[condition], 60)} and {shown(text, 60)}"
                    raise InputError(
                        f"{trials.ids[i]}: the texts {both} are the same to the text encoder: expected candidates that "
                        "it can tell apart"
                    )
                first[condition] = text
    return own


def check_texts(model: Bundle | DiffusionClassifier, trials: Trials) -> None:
    """Refuses texts that a diffusion model cannot be asked about; no network is opened.

    Args:
        model: The model.
        trials: Images and their candidate texts.

    Example:
        >>> from fastdc.matching import Trials, check_texts
        >>> check_texts(clf, Trials.of(images[:1], [["7", "1"]]))

    Raises:
        InputError: Two candidates of an image are the same to the model, or it does not know a text.
    """
    if isinstance(model, DiffusionClassifier) or TEXT not in model.files:
        distinct_conditions(trials, named_conditions(trials.texts, model.model))
    else:
        distinct_conditions(trials, firsts_of_texts(model, trials.texts).astype(np.int32))


def with_no_text(clf: DiffusionClassifier) -> DiffusionClassifier:
    """The classifier with its "no class" as one more condition, the last."""
    model = clf.model
    if model.null_class is None or model.null_class != len(model.conditions):
        raise InputError(f"model {model.name} has no null class after its classes: the error without a text needs one")
    more: dict[str, Any] = {"class_names": (*model.class_names, NO_TEXT), "class_counts": None}
    if model.prompts:
        more |= {"prompts": (*model.prompts, NO_TEXT), "class_of": (*model.class_of, model.num_classes)}
    return replace(clf, model=replace(model, **more))


def of_conditions(model: Model) -> Model:
    """The model whose classes are its conditions: of several prompts of a class, each is asked about alone."""
    if model.class_of in ((), tuple(range(model.num_classes))):
        return model
    return replace(model, class_names=model.prompts, prompts=(), class_of=(), class_counts=None, calibration=None)


def own_rules(
    options: Options, clf: DiffusionClassifier, own: Sequence[Int32], *, calibrated: bool
) -> list[tuple[Int64, Options]]:
    """Images, int64, and the options with a rule that fits candidates of their own: one part, or two with other rules.

    Its error is divided over the candidates of an image, and not over all texts. A calibration of the model's classes
    holds where all of them compete, and says nothing about some of them: two of them may be as hard to tell apart as
    no pair was among all. So it is chosen for each image by its own candidates, and not by those of others.

    Args:
        options: The options.
        clf: The classifier of all texts.
        own: The candidate conditions of each image.
        calibrated: Whether the model's calibration was made for such candidates.

    Raises:
        InputError: Rule "calibrated" is asked for without a limit, and there is no calibration for such candidates.
    """
    rule, given = clf.settings(options).job.rule, options.rule
    whole = np.array([len(one) == len(clf.model.conditions) for one in own])
    limited = calibrated or "limit" in (options.rule_options or {})
    if not isinstance(rule, Calibrated) or not isinstance(given, str) or limited or whole.all():
        return [(np.arange(len(own)), _own_rivals(options, rule))]
    if given == Calibrated.name:
        raise InputError(
            f"the calibration of {clf.model.name} is for images among all of its classes: calibrate the race on "
            "candidates like these, or take rule race"
        )
    tests = options.but(rule=Paired.name)
    parts = ((whole, options, rule), (~whole, tests, clf.settings(tests).job.rule))
    return [(np.flatnonzero(rows), _own_rivals(chosen, its)) for rows, chosen, its in parts if rows.any()]


def _own_rivals(options: Options, rule: AbstractRule) -> Options:
    """The options with a rule that divides its error over the candidates of an image."""
    given, more = options.rule, options.rule_options or {}
    if isinstance(given, AbstractRule):
        made: Any = given
        return options.but(rule=replace(made, rivals=OWN)) if getattr(made, "rivals", 0) is None else options
    return options.but(rule_options={"rivals": OWN, **more}) if hasattr(rule, "rivals") else options
