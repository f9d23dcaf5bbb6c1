"""The diffusion classifier as a matcher: every image is denoised under candidate texts of its own, all in one run.

The different texts of all trials are the conditions of one model, each encoded once, and an image is a request that
competes under its candidates (``fastdc.engine``). Steps are filled across images, whatever their texts, so thousands
of images with a few candidates each cost what they would under one list of texts. Of an image nothing is kept but what
its candidates need.

Two texts that the text encoder reads as the same tokens, such as words that differ in case, are one condition. As
candidates of one image they would tie, and are refused.
"""

import os
import time
from collections.abc import Collection, Generator, Sequence
from contextlib import closing
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Unpack, cast

import numpy as np

from fastdc.backends import with_prompts
from fastdc.bundle import TEXT, Bundle, Model, Prompts, find_model, load_bundle
from fastdc.calibration import calibrate_errors, check_level
from fastdc.classifier import DiffusionClassifier
from fastdc.inference import (
    CALIBRATION_DRAWS,
    Classification,
    ErrorTable,
    Images,
    Options,
    PlanChoice,
    Progress,
    RunOptions,
    Settings,
    check_choosable,
    choose_plan_of,
    merged,
    wide_band,
    wide_of_tables,
)
from fastdc.loading import load
from fastdc.matching.collecting import unbroken
from fastdc.matching.matched import Matched, OnFinished, OnMatched, last_best
from fastdc.matching.place_tables import joined_places, table_of_places
from fastdc.matching.run_facts import run_facts
from fastdc.matching.text_conditions import (
    NO_TEXT,
    different_texts,
    distinct_conditions,
    named_conditions,
    of_conditions,
    own_rules,
    with_no_text,
)
from fastdc.matching.trials import Trials
from fastdc.rules import Calibration
from fastdc.support import InputError, Int32, Interrupted, checks

_CALIBRATED: RunOptions = {"rule": "calibrated", "rule_options": None, "self_calibrate": None}
_CHUNK = 16  # images whose results are held before they are cut to the image's candidates


@dataclass(frozen=True, eq=False)
class _Asked:
    """A classifier of the texts of some trials.

    Attributes:
        texts: The texts.
        classifier: Its conditions are the texts that differ to it.
        conditions: int32 (P,), the condition of each text.
    """

    texts: tuple[str, ...]
    classifier: DiffusionClassifier
    conditions: Int32


class DiffusionMatcher:
    """A diffusion model that says which of its candidate texts describes an image.

    Args:
        model: A shipped model's name, a bundle folder or a bundle: if it has a text encoder, texts are whatever anyone
            writes, otherwise the names of its classes. Or a classifier, whose texts are its prompts or classes.
        options: Options of the run, such as rule and draws; a prior, of classes, is refused.
        name: Name in tables; None: the model's.
        calibration: Calibration of the race for such trials, see :meth:`calibrated`; None: the model's own for images
            whose candidates are all of its classes, and paired t-tests for others.
        backend: "auto", "onnx", "torch" or "tensorrt", see :func:`fastdc.load`. Of a classifier the network is open,
            and this and the following options say nothing.
        device: "auto", "cpu", "cuda", "cuda:N"; "cuda:N,M" shares images out among devices.
        precision: "auto", "float32", "float16" or "bfloat16".
        batch: Largest number of evaluations in a step.
        threads: Number of CPU threads.
        compile: Whether to compile the network (torch on a CUDA device).
        **keywords: Options by name, see :class:`fastdc.Options`; they win over `options`.

    Raises:
        InputError: An option cannot be used.
        BundleError: No such model, or a bundle that is corrupt.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Bundle | DiffusionClassifier,
        options: Options | None = None,
        *,
        name: str | None = None,
        calibration: Calibration | None = None,
        backend: str = "auto",
        device: str = "auto",
        precision: str = "auto",
        batch: int | None = None,
        threads: int | None = None,
        compile: bool = False,  # noqa: A002 - torch's word
        **keywords: Unpack[RunOptions],
    ) -> None:
        self._options = merged(options, keywords)
        if self._options.prior is not None:
            raise InputError("a prior weighs classes, and each image has texts of its own: expected none")
        self._network: dict[str, Any] = {"backend": backend, "device": device, "precision": precision}
        self._network |= {"batch": batch, "threads": threads, "compile": compile}
        given = isinstance(model, Bundle | DiffusionClassifier)
        self._source: Bundle | DiffusionClassifier = model if given else load_bundle(find_model(model))  # type: ignore[assignment, arg-type]
        self._calibration, self._last = calibration, cast("_Asked | None", None)
        self._name = self._source.model.name if name is None else name
        Settings.of(self._raced(self._source.model), (), self._options)

    @property
    def name(self) -> str:
        """Its name in tables."""
        return self._name

    @property
    def identity(self) -> str:
        """The sha256 of the model's bundle as fastdc info has it; empty if it was made by hand."""
        return self._source.model.identity

    @property
    def calibration(self) -> Calibration | None:
        """The calibration of the race that it was given."""
        return self._calibration

    @property
    def facts(self) -> dict[str, Any]:
        """What reproduces its answers, as JSON values."""
        return run_facts(self._source.model, self._options, self._network, self._calibration)

    def match(self, trials: Trials, progress: OnMatched | None = None, keep: OnFinished | None = None) -> Matched:
        """Scores the candidates of every image in one run.

        The score of a text is its negative mean error. With decision "mean", the answer is the text with the largest
        score; with "vote", that with the most votes, and among these the largest score.

        Args:
            trials: Images and their candidate texts.
            progress: Called with the number of images that are done, and of all, after every step.
            keep: Called with what gives the answers so far, after every 16 consecutive images.

        Example:
            >>> from fastdc.matching import DiffusionMatcher, Trials
            >>> trials = Trials.of(images[:2], [["7", "1"], ["9", "3", "8"]], truth=-1)
            >>> DiffusionMatcher(clf).match(trials).answers
            array([0, 1])

        Raises:
            InputError: Images or texts cannot be used; raised before any work starts.
            Interrupted: Ctrl-C; its ``result`` holds the images that were finished.
        """
        wanted = Settings.of(self._raced(self._source.model), (), self._options)
        facts: dict[str, Any] = {"texts": len(trials.texts), "bundle": self.identity}
        if self._calibration is not None and wanted.promised is not None:
            facts["delta"] = self._calibration.delta
        done = _Done(self._name, self._options.decision, facts)
        try:
            with closing(self._results(trials, self._options, progress)) as results:
                for own, result in results:
                    done.add(own, result)
                    if keep is not None:
                        keep(done.matched)
        except KeyboardInterrupt as stop:
            raise _interrupted(stop, len(done), len(trials), done.matched() if len(done) else None) from None
        return done.matched()

    def errors(
        self,
        trials: Trials,
        *,
        null: bool = False,
        seed: int | None = None,
        streams: Any = None,
        progress: OnMatched | None = None,
    ) -> ErrorTable:
        """The errors of a full run: every candidate at every draw.

        Args:
            trials: n images and their candidate texts.
            null: Whether each image is also denoised under "no class", at the same draws, in a last column.
            seed: Seed of the noise; None: the matcher's.
            streams: Noise stream of each image, whole numbers in [0, 2^56): images of one stream see the same noise.
                None: from the image's pixels.
            progress: Called with the number of images that are done, and of all, after every step.

        Returns:
            A table whose class a is the a-th candidate of each image, in the order of the trials; candidates that an
            image does not have were not evaluated.

        Example:
            >>> from fastdc.matching import DiffusionMatcher, Trials
            >>> trials = Trials.of(images[:2], [["7", "1"], ["9", "3", "8"]], truth=-1)
            >>> DiffusionMatcher(clf, draws=4).errors(trials).counts.tolist()
            [[4, 4, 0], [4, 4, 4]]

        Raises:
            InputError: Images or texts cannot be used, or there is no null class; raised before any work starts.
            Interrupted: Ctrl-C; its ``result`` is the table of the first images, those before the first unfinished one.
        """
        width = max(map(len, trials.candidates), default=0)
        names = [f"candidate {a}" for a in range(width)] + [NO_TEXT] * null
        parts: list[ErrorTable] = []
        try:
            with closing(self._results(trials, self._full(seed), progress, null=null, streams=streams)) as results:
                for own, result in results:
                    next_ones = int((result.indices == np.arange(len(own)) + sum(map(len, parts))).sum())
                    if next_ones:
                        parts.append(table_of_places(result.table.rows(0, next_ones), own[:next_ones]))
        except KeyboardInterrupt as stop:
            known = joined_places(parts, names, null=null) if parts else None
            raise _interrupted(stop, sum(map(len, parts)), len(trials), known) from None
        return joined_places(parts, names, null=null)

    def planned(
        self,
        trials: Trials,
        *,
        draws: int = 256,
        seeds: int = 2,
        searched: Collection[str] = ("levels", "weighting", "first"),
        progress: OnMatched | None = None,
    ) -> "tuple[DiffusionMatcher, PlanChoice]":
        """The matcher with the plan that suits such trials best, by their right texts.

        Bands of noise levels, weightings and a first draw are replayed from one table of full runs over a wide band
        (:func:`fastdc.inference.choose_plan_of`): the most accurate plan, and among equals that of the cheapest race.
        Calibrate on other trials: the promise then holds whatever was chosen here.

        Args:
            trials: Validation images with their candidates. Where a right text is not known, only the first draw is
                chosen, by agreement with the full run.
            draws: Draws of the table.
            seeds: Number of noise seeds; images x candidates x draws x seeds is the number of evaluations.
            searched: What to choose: "levels", "weighting", "first".
            progress: Called with the number of images that are done, and of all, in each of the runs.

        Returns:
            The matcher, and what was tried.

        Example:
            >>> from fastdc.matching import DiffusionMatcher, Trials
            >>> trials = Trials.of(images, [[str(k), str((k + 1) % 10)] for k in labels.tolist()])
            >>> made, choice = DiffusionMatcher(clf, draws=8).planned(trials, draws=64, seeds=1)
            >>> choice.images
            20

        Raises:
            InputError: Images or texts cannot be used, there are fewer than 2, they are noisy, or votes decide.
        """
        checks.whole("seeds", seeds)
        model, config = self._source.model, Settings.of(self._source.model, (), self._full(None)).job.plan.config
        check_choosable(config, self._options.decision)
        band = wide_band(model, config.levels) if "levels" in searched else config.levels
        wide = self._with(self._options.but(draws=draws, levels="all" if band is None else band, first=()), None)
        tables = [wide.errors(trials, seed=seed, progress=progress).errors for seed in range(seeds)]
        errors = wide_of_tables(
            model,
            Settings.of(model, (), wide._full(None)).job.plan.config,
            [np.where(np.isnan(table), np.float32(np.inf), table) for table in tables],
        )
        labels = trials.truth if (trials.truth >= 0).all() else None
        choice = choose_plan_of(errors, labels, model=model, config=config, searched=searched)
        return self._with(self._options.but(**choice.options), None), choice

    def calibrated(
        self, trials: Trials, *, delta: float = 0.01, seeds: int = 8, progress: OnMatched | None = None
    ) -> "DiffusionMatcher":
        """The matcher with a race that is calibrated on trials of validation images with candidates of their own.

        Promise (conformal risk control, see :mod:`fastdc.calibration.race`): if a new image *and its list of
        candidates* are exchangeable with the n pairs of an image and its list given here, the race loses the text that
        the full run would answer with probability at most delta, on average over images and noise. A list may depend on
        its image, such as one with the negatives that are hard for it, if all lists are made in the same way. Other
        images, other kinds of lists, and more candidates than before are not covered: calibrate once per task.

        Args:
            trials: n validation images, neither trained on nor used for results. The right texts are not needed.
            delta: Probability with which the race may lose the answer of the full run, at least 1 / (n + 1).
            seeds: Number of noise seeds per image.
            progress: Called with the number of images that are done, and of all, in each of the runs.

        Returns:
            A matcher of the same network and plan, of as many draws as were calibrated: the option draws, or 128.

        Example:
            >>> from fastdc.matching import DiffusionMatcher, Trials
            >>> trials = Trials.of(images, [["7", "1"], ["9", "3"]] * 10, truth=-1)
            >>> DiffusionMatcher(clf, draws=8).calibrated(trials, delta=0.05, seeds=1).calibration.images
            20

        Raises:
            InputError: Images or texts cannot be used, or there are too few images for delta.
        """
        checks.whole("seeds", seeds)
        check_level(delta, len(trials))
        if self._options.decision != "mean":
            raise InputError(f"races are calibrated on means: expected decision mean, got {self._options.decision}")
        draws = CALIBRATION_DRAWS if self._options.draws is None else self._options.draws
        made = self._with(self._options.but(**_CALIBRATED, draws=draws), None)
        config = Settings.of(self._source.model, (), made._full(None)).job.plan.config
        runs = (made.errors(trials, seed=seed, progress=progress).errors for seed in range(seeds))
        return made._with(made._options, calibrate_errors(runs, config, delta=delta))

    def raced(self, calibration: Calibration) -> "DiffusionMatcher":
        """The matcher with a calibration that :meth:`calibrated` has made before.

        Args:
            calibration: Its calibration.
        """
        return self._with(self._options.but(**_CALIBRATED, draws=calibration.draws), calibration)

    def _with(self, options: Options, calibration: Calibration | None) -> "DiffusionMatcher":
        """This matcher, and its open network, with other options."""
        other = copy(self)
        other._options, other._calibration = options, calibration
        return other

    def _full(self, seed: int | None) -> Options:
        """The options of a full run."""
        options = self._options.but(rule="full", rule_options=None, self_calibrate=None, decision="mean")
        return options if seed is None else options.but(seed=seed)

    def _results(
        self, trials: Trials, options: Options, progress: OnMatched | None, *, null: bool = False, streams: Any = None
    ) -> "Generator[tuple[Sequence[Int32], Classification], None, None]":
        """The candidate conditions, in the order of the trials, and the results of consecutive images."""
        if not len(trials):
            raise InputError("there is no image to match: expected at least one")
        source, conditions = self._described(trials.texts)
        own = distinct_conditions(trials, conditions)
        images = self._images(trials, options, streams)
        clf = self._opened(trials.texts, source, conditions)
        if null:
            clf = with_no_text(clf)
            own = [np.append(one, np.int32(len(clf.model.conditions) - 1)) for one in own]

        def told(state: Progress) -> None:
            if progress is not None:
                progress(done + state.finished, len(trials))

        done = 0
        for rows, chosen in own_rules(options, clf, own, calibrated=self._calibration is not None):
            some = images if len(rows) == len(images) else images.take(rows)
            theirs = [own[i] for i in rows.tolist()]
            stream = clf.stream(some, chosen, chunk=_CHUNK, candidates=theirs, progress=told)
            with closing(unbroken(stream)) as results:
                for result in results:
                    yield [theirs[i] for i in result.indices], replace(result, indices=rows[result.indices])
            done += len(rows)

    def _images(self, trials: Trials, options: Options, streams: Any) -> Images:
        """The images of trials, checked: those of files are read once, into a temporary file if they are many."""
        given = list(trials.images) if isinstance(trials.images, tuple) else trials.images
        images = Images.of(given, self._source.model, streams, **options.reading)
        if len(images) != len(trials):
            raise InputError(f"expected one image for each of {len(trials)} trials, got {len(images)}")
        return images

    def _described(self, texts: tuple[str, ...]) -> tuple[Bundle | DiffusionClassifier, Int32]:
        """The model whose conditions are the texts that differ to it, and the condition of each text, int32 (P,)."""
        source, last = self._source, self._last
        if last is not None and last.texts == texts:
            return last.classifier, last.conditions
        if isinstance(source, DiffusionClassifier) or TEXT not in source.files:
            return source, named_conditions(texts, source.model)
        once, conditions = different_texts(source, texts)
        return with_prompts(source, Prompts(once, tuple(range(len(once))), once)), conditions

    def _opened(
        self, texts: tuple[str, ...], source: Bundle | DiffusionClassifier, conditions: Int32
    ) -> DiffusionClassifier:
        """The classifier of the texts, which stays open for further runs over such trials."""
        if self._last is None or self._last.texts != texts:
            clf = source if isinstance(source, DiffusionClassifier) else load(source, **self._network)
            self._last = _Asked(texts, replace(clf, model=of_conditions(clf.model)), conditions)
        return replace(self._last.classifier, model=self._raced(self._last.classifier.model))

    def _raced(self, model: Model) -> Model:
        """The model with the matcher's calibration."""
        return model if self._calibration is None else model.raced(self._calibration)


class _Done:
    """What is kept of images that are finished: all or nothing of each chunk, whenever Ctrl-C comes."""

    def __init__(self, name: str, decision: str, facts: dict[str, Any]) -> None:
        self._name, self._vote, self._facts = name, decision == "vote", facts
        self._start = time.perf_counter()
        self._parts: list[Matched] = []

    def __len__(self) -> int:
        """Number of images."""
        return sum(map(len, self._parts))

    def add(self, own: Sequence[Int32], result: Classification) -> None:
        """Takes the results of images with these candidates, by class."""
        scores, answers = [], []
        for row, classes in enumerate(own):
            one = -result.errors[row, classes]
            one[np.isnan(one)] = -np.inf  # never evaluated, so worse than what was
            votes = result.votes[row, classes]
            scores.append(one)
            answers.append(last_best(np.where(votes == votes.max(), one, -np.inf) if self._vote else one))
        facts = {**result.provenance, **self._facts}
        found = np.array(answers, np.int64)
        self._parts.append(Matched(self._name, result.indices, tuple(scores), found, result.evaluations, 0.0, facts))

    def matched(self) -> Matched:
        """All of it, in the order of the images."""
        parts = self._parts
        rules: list[Any] = [parts[0].facts["rule"], parts[-1].facts["rule"]]
        facts = parts[0].facts if rules[0] == rules[1] else {**parts[0].facts, "rule": rules}
        found = Matched(
            name=self._name,
            rows=np.concatenate([part.rows for part in parts]),
            scores=tuple(one for part in parts for one in part.scores),
            answers=np.concatenate([part.answers for part in parts]),
            evaluations=np.concatenate([part.evaluations for part in parts]),
            seconds=time.perf_counter() - self._start,
            facts=facts,
        )
        return found.take(np.argsort(found.rows))


def _interrupted(stop: KeyboardInterrupt, done: int, count: int, result: Any) -> Interrupted:
    """The interruption of a run, also where Ctrl-C came between its steps."""
    return Interrupted(str(stop) or f"interrupted: {done} of {count} images finished", result)
