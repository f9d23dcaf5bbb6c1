"""Baselines of ``fastdc score``: classifiers trained on labelled images, and scored beside the model.

:mod:`fastdc.train` trains them, :mod:`fastdc.scoring` compares.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from fastdc.bundle import Bundle, fingerprints
from fastdc.cli.images import Limits, read_labelled
from fastdc.cli.options import Advance, progress_bar
from fastdc.scoring import Rival, rival_of, score
from fastdc.support import Float64, InputError, Int64, shown

if TYPE_CHECKING:
    from fastdc.data import LabelledImages
    from fastdc.train import Baseline

_HELD_OUT = 0.2  # of the training images, to validate, if there are no others
_SEED = 0


@dataclass(frozen=True, eq=False)
class TrainingImages:
    """Images that baselines are trained on, and those that choose their epoch and temperature."""

    images: NDArray[np.uint8]
    labels: Int64
    val_images: NDArray[np.uint8]
    val_labels: Int64
    class_names: tuple[str, ...]


@dataclass(eq=False)
class Baselines:
    """The baselines that a user asked for.

    Attributes:
        names: Their names.
        train: Source of their training images; None if there are no baselines.
        val: Source of their validation images; None: a part of the training images.
        quiet: Whether nothing is told on stderr.
        threads: Number of CPU threads; None: as many as torch takes.
        given: The images, once they are prepared.
    """

    names: tuple[str, ...]
    train: str | None
    val: str | None
    quiet: bool
    threads: int | None
    given: TrainingImages | None = None

    @classmethod
    def taken(cls, options: dict[str, Any]) -> "Baselines":
        """Removes the options of baselines from a command's options.

        Raises:
            InputError: There are baselines without training images, or training images without baselines, or no such
                baseline.
            MissingDependencyError: A package of a baseline is not installed.
        """
        names, train, val = tuple(options.pop("baseline")), options.pop("train"), options.pop("val")
        if names and train is None:
            raise InputError("--baseline needs the images to train it on: expected --train DATA")
        for option, value in (("--train", train), ("--val", val)):
            if value is not None and not names:
                raise InputError(f"{option} is for --baseline, which is missing")
        if len(set(names)) < len(names):
            raise InputError(f"two baselines have one name: expected different ones, got {', '.join(names)}")
        if names:
            from fastdc.train import check_baseline

            for name in names:
                check_baseline(name)
        return cls(names, train, val, options["quiet"], options.get("threads"))

    def prepare(self, bundle: Bundle, limits: Limits, tested: NDArray[Any]) -> tuple[str, ...]:
        """Reads the training images in the model's own preparation; returns what a reader should know of them.

        Validation images are those of --val, or the split val of the training images, or else a fifth of these.

        Args:
            bundle: The model.
            limits: How images are read.
            tested: The images that are scored.

        Raises:
            InputError: They cannot be used, or are those that are scored.
        """
        if self.train is None:
            return ()
        from fastdc.data import find_splits, plain_split
        from fastdc.train import held_out

        plain: Limits = {**limits, "split": None}

        def read(source: str, natural: str) -> "LabelledImages":
            classes = bundle.class_names
            given = read_labelled(source, bundle.image_shape, plain, quiet=self.quiet, classes=classes, natural=natural)
            return given.with_classes(classes)

        data, val = read(self.train, "train"), self.val
        seen = int(np.isin(fingerprints(tested), fingerprints(data.images)).sum())
        if seen == len(tested):
            raise InputError(f"--train {shown(self.train)} holds the images that are scored: expected others")
        if val is None and "val" in map(plain_split, find_splits(self.train, limits["max_pixels"])):
            val = self.train
        if val is None:
            kept = held_out(data.labels, _HELD_OUT, _SEED)
            parts = (data.images[~kept], data.labels[~kept], data.images[kept], data.labels[kept])
        else:
            chosen = read(val, "val")
            parts = (data.images, data.labels, chosen.images, chosen.labels)
        self.given = TrainingImages(*parts, bundle.class_names)
        own = "" if val is not None else " of the same source"
        first = f"baselines: trained on {len(parts[0])} images; epoch and temperature chosen on {len(parts[2])}{own}"
        return (first, *_overlaps(tested, seen, None if val is None else parts))

    def rivals(
        self, images: NDArray[Any], labels: Int64, scored: tuple[Int64, Float64], asked: Mapping[str, Any]
    ) -> tuple[Rival, ...]:
        """Trains the baselines, and compares them with answers and probabilities on the same images.

        Args:
            images: (n, c, h, w).
            labels: int64 (n,), true classes.
            scored: Answers int64 (n,) and probabilities float64 (n, K) of the model.
            asked: What is asked of a positive class.
        """
        given = self.given
        assert given is not None
        made = []
        for name in self.names:
            trained = self._trained(name, given)
            p = trained.probabilities(images)
            rival = p.argmax(axis=1), p
            own = score(labels, p, given.class_names, predicted=rival[0], **asked)
            made.append(rival_of(name, labels, scored, rival, own, trained.describe()))
        return tuple(made)

    def _trained(self, name: str, given: TrainingImages) -> "Baseline":
        from fastdc.train import train_baseline

        if not self.quiet:
            click.echo(f"training     {name} on {len(given.images)} images", err=True)
        with ExitStack() as stack:
            advance: Advance | None = None

            def progress(epoch: int, epochs: int) -> None:
                nonlocal advance
                if advance is None:
                    bar = progress_bar(epochs, quiet=self.quiet, description=f"baseline {name}", unit="epoch")
                    advance = stack.enter_context(bar)
                advance(1, "")

            made = train_baseline(
                name,
                given.images,
                given.labels,
                val_images=given.val_images,
                val_labels=given.val_labels,
                n_classes=len(given.class_names),
                seed=_SEED,
                threads=self.threads,
                progress=progress,
            )
        if not self.quiet:
            click.echo(f"trained      {name}, epoch {made.epoch} of {made.epochs}", err=True)
        return made


def _overlaps(tested: NDArray[Any], trained: int, parts: tuple[NDArray[Any], ...] | None) -> list[str]:
    """What is the same among the images that train, choose and are scored.

    Args:
        tested: The images that are scored.
        trained: How many of them train.
        parts: Training images, their labels and validation images; None: these are a part of the training images.
    """
    notes, of = [], f"of these {len(tested)} images"
    if trained:
        notes.append(f"{trained} {of} trained the baselines, which are too good on them")
    if parts is not None:
        train, _, val, *_ = parts
        chose = int(np.isin(fingerprints(tested), fingerprints(val)).sum())
        if chose:
            notes.append(f"{chose} {of} chose epoch and temperature of the baselines, which are too good on them")
        both = int(np.isin(fingerprints(val), fingerprints(train)).sum())
        if both:
            notes.append(
                f"{both} of the {len(val)} images that chose epoch and temperature of the baselines also trained them"
            )
    return notes
