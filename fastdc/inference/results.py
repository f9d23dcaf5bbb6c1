"""Results of classification, and the progress of a run."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from fastdc.inference.decide import Decision, VotesOf, by_class, decide_table
from fastdc.inference.error_table import ErrorTable
from fastdc.inference.result_file import members_of, read_result
from fastdc.support import (
    SHOWN_ROWS,
    Float64,
    Int64,
    chosen_ids,
    chosen_rows,
    data_frame,
    html_table,
    plain,
    save_table,
    shown,
)


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        finished: Number of images decided.
        images: Number of all images.
        evaluations: Network evaluations so far.
        at_most: Upper bound on the evaluations of the whole run; it falls as classes are dropped.
    """

    finished: int
    images: int
    evaluations: int
    at_most: int

    def begins_after(self, last: "Progress") -> bool:
        """Whether this is of the next of several consecutive runs: less is done, or the run before was complete.

        Args:
            last: The progress that came before.

        Example:
            >>> fastdc.Progress(0, 3, 900, 900).begins_after(fastdc.Progress(3, 3, 24, 24))
            True
        """
        complete = last.finished == last.images > 0
        return complete or self.evaluations <= last.evaluations or self.finished < last.finished


OnProgress = Callable[[Progress], None]


def class_keys(names: tuple[str, ...]) -> tuple[str, ...]:
    """One key per class: its name, with the index if several classes share it (ImageNet has two of "crane").

    Args:
        names: Name of each class.

    Example:
        >>> from fastdc.inference import class_keys
        >>> class_keys(("crane", "dog", "crane"))
        ('crane [0]', 'dog', 'crane [2]')
    """
    counts = Counter(names)
    keys = tuple(f"{name} [{k}]" if counts[name] > 1 else name for k, name in enumerate(names))
    return keys if len(set(keys)) == len(keys) else tuple(f"{name} [{k}]" for k, name in enumerate(names))


@dataclass(frozen=True, eq=False, repr=False)
class ImageResult:
    """The result of one image.

    Attributes:
        index: Index of the image among the images given.
        label: The predicted class.
        name: Its name.
        probability: Its probability.
        evaluations: Network evaluations spent on the image (NFE).
        keys: The K class names, each with its index if several classes share it.
        uncertainty: How uncertain the answer is, as in :class:`Classification`.
        arrays: probabilities, errors and votes of the classes, (K,) each, as in :class:`Classification`.
        image: Its name, such as the path of its file; None for an image in memory.
        promise: What is promised about it, as in :class:`Classification`; None unless the run calibrated itself.
    """

    index: int
    label: int
    name: str
    probability: float
    evaluations: int
    uncertainty: float
    keys: tuple[str, ...]
    arrays: tuple[Float64, Float64, Int64]
    image: str | None = None
    promise: str | None = None

    @property
    def probabilities(self) -> dict[str, float]:
        """The probability of each class, by name."""
        return dict(zip(self.keys, self.arrays[0].tolist(), strict=True))

    @property
    def errors(self) -> dict[str, float]:
        """The mean denoising error of each class, by name; NaN if it was never evaluated."""
        return dict(zip(self.keys, self.arrays[1].tolist(), strict=True))

    @property
    def votes(self) -> dict[str, int]:
        """The draws won by each class, by name."""
        return dict(zip(self.keys, self.arrays[2].tolist(), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values; an error that is not known is None. An image without name or promise has none."""
        names = ("index", "image", "label", "name", "probability", "uncertainty", "evaluations", "promise")
        known = [name for name in names if getattr(self, name) is not None]
        return {name: plain(getattr(self, name)) for name in (*known, "probabilities", "errors", "votes")}

    def __repr__(self) -> str:
        return (
            f"ImageResult(index={self.index}, {'' if self.image is None else f'image={shown(self.image)}, '}"
            f"label={self.label}, name={shown(self.name)}, "
            f"probability={self.probability:.3g}, evaluations={self.evaluations})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Classification:
    """The result of classifying m images; a sequence of one :class:`ImageResult` per image.

    ``result[3]`` is the result of one image, and ``result[:10]``, ``result[rows]`` or ``result[mask]`` is a
    Classification of several.

    Attributes:
        indices: int64 (m,), index of each row's image among the images given: 0 ... n - 1 unless the run was
            interrupted.
        labels: int64 (m,), the predicted class.
        probabilities: float64 (m, K), the temperature-scaled posterior, or shares of votes with ``decision="vote"``.
        errors: float64 (m, K), mean weighted denoising error of each class; without a prior, the smallest wins. A class
            that was dropped early is placed by its paired differences to the best one
            (``inference.Decision.mean_errors``).
        evaluations: int64 (m,), network evaluations spent on each image (NFE).
        votes: int64 (m, K), draws at which each class had the smallest error, among those shared by the classes that
            were never dropped.
        class_names: K names.
        seconds: Wall time of the run so far.
        provenance: Everything that reproduces the result: seed, plan, method, rule, decision, model, its sha256,
            backend, version.
        table: Every error, to replay decisions or to save. If prompts describe the classes, its classes are prompts.
        ids: m names of the images, those that the command line prints: the path of each image file, or
            ``file.npy[3]``; None unless all images came from files.
        promises: What is promised about each image if the run calibrated itself (option self_calibrate): "full", the
            full run itself, or "race, delta=..., calibrated on ... images of this run", whose answer differs from the
            full run's with probability at most delta. None for other runs.
    """

    indices: Int64
    labels: Int64
    probabilities: Float64
    errors: Float64
    evaluations: Int64
    votes: Int64
    class_names: tuple[str, ...]
    seconds: float
    provenance: dict[str, Any]
    table: ErrorTable
    ids: tuple[str, ...] | None = None
    promises: tuple[str, ...] | None = None

    @cached_property
    def uncertainties(self) -> Float64:
        """How uncertain each answer is, float64 (m,), of its probability p: 1 - p, and p (1 - p) with decision "vote".

        The latter, of Favero et al. (arXiv 2502.03687), is the variance of one draw's vote for the answer, at most
        0.25. With three classes or more it falls again where the answer has less than half of the votes.

        Example:
            >>> clf.classify(images, decision="vote", rule="full", draws=16).uncertainties.max() <= 0.25
            np.True_
        """
        p = self.probabilities[np.arange(len(self)), self.labels]
        return np.asarray(p * (1 - p) if self.provenance.get("decision") == "vote" else 1 - p)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the predicted classes."""
        return tuple(self.class_names[label] for label in self.labels)

    def __len__(self) -> int:
        """m, the number of images."""
        return len(self.labels)

    def __iter__(self) -> Iterator[ImageResult]:
        return (self._image(row) for row in range(len(self)))

    @overload
    def __getitem__(self, key: int) -> ImageResult: ...
    @overload
    def __getitem__(self, key: slice | npt.ArrayLike) -> "Classification": ...
    def __getitem__(self, key: Any) -> "ImageResult | Classification":
        rows = chosen_rows(key, len(self))
        if isinstance(rows, int):
            return self._image(rows)
        arrays = ("indices", "labels", "probabilities", "errors", "evaluations", "votes")
        parts = {name: getattr(self, name)[rows] for name in arrays}
        ids, promises = (chosen_ids(each, rows) for each in (self.ids, self.promises))
        return replace(self, **parts, table=self.table.take(rows), ids=ids, promises=promises)

    @cached_property
    def _keys(self) -> tuple[str, ...]:
        return class_keys(self.class_names)

    def _image(self, row: int) -> ImageResult:
        label = int(self.labels[row])
        return ImageResult(
            index=int(self.indices[row]),
            label=label,
            name=self.class_names[label],
            probability=float(self.probabilities[row, label]),
            evaluations=int(self.evaluations[row]),
            uncertainty=float(self.uncertainties[row]),
            keys=self._keys,
            arrays=(self.probabilities[row], self.errors[row], self.votes[row]),
            image=None if self.ids is None else self.ids[row],
            promise=None if self.promises is None else self.promises[row],
        )

    def _columns(self, classes: bool) -> dict[str, Any]:
        top = self.probabilities[np.arange(len(self)), self.labels]
        columns = {
            "index": self.indices,
            **({} if self.ids is None else {"image": self.ids}),
            "label": self.labels,
            "name": self.names,
            "probability": top,
            "evaluations": self.evaluations,
            **({} if self.promises is None else {"promise": self.promises}),
        }
        if classes:
            columns |= {f"p({name})": self.probabilities[:, k] for k, name in enumerate(self._keys)}
        return columns

    def to_pandas(self, *, classes: bool = False) -> Any:
        """A ``pandas.DataFrame`` with a row per image: index, image (its name, if known), label, name, probability,
        evaluations, and promise (if the run calibrated itself).

        Args:
            classes: Whether to add a column p(NAME) with the probability of each class.

        Example:
            >>> clf.classify(images).to_pandas(classes=True).shape
            (20, 15)

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        return data_frame(self._columns(classes))

    def to_dicts(self) -> list[dict[str, Any]]:
        """A dictionary of JSON values per image, with probabilities, errors and votes by class name.

        Example:
            >>> clf.classify(images).to_dicts()[0]["name"]
            '7'
        """
        return [image.to_dict() for image in self]

    def to_dict(self) -> dict[str, Any]:
        """Everything except the table of errors as JSON values: images, class names, seconds and provenance.

        Example:
            >>> list(clf.classify(images).to_dict())
            ['images', 'class_names', 'seconds', 'provenance']
        """
        rest = {name: plain(getattr(self, name)) for name in ("class_names", "seconds", "provenance")}
        return {"images": self.to_dicts(), **rest}

    def save(self, path: str | os.PathLike[str], *, classes: bool = False) -> None:
        """Writes the result to a file, all of it or nothing, in the format that its name asks for.

        Args:
            path: A name that ends in .csv (the table of :meth:`to_pandas`), .jsonl (:meth:`to_dicts`, one per line),
                .json (:meth:`to_dict`), or .npz: everything, which :meth:`load` reads back and of which
                ``fastdc.ErrorTable.load`` reads the errors.
            classes: Whether a .csv gets a column with the probability of each class.

        Example:
            >>> clf.classify(images).save(folder / "result.csv")
            >>> (folder / "result.csv").read_text().splitlines()[0]
            'index,label,name,probability,evaluations'

        Raises:
            InputError: The name has another end, or the file cannot be written.
        """
        save_table(
            path,
            columns=self._columns(classes),
            entries=lambda: (image.to_dict() for image in self),  # a thousand classes make large dictionaries
            whole=self.to_dict,
            arrays=self._arrays,
        )

    def _arrays(self) -> dict[str, Any]:
        arrays = {name: getattr(self, name) for name in ("indices", "labels", "probabilities", "evaluations", "votes")}
        rest = {
            name: plain(getattr(self, name)) for name in ("class_names", "seconds", "provenance", "ids", "promises")
        }
        return members_of({**arrays, "mean_errors": self.errors}, rest, self.table)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Classification":
        """Reads an .npz that :meth:`save` wrote.

        Example:
            >>> clf.classify(images).save(folder / "result.npz")
            >>> bool((fastdc.Classification.load(folder / "result.npz").labels == labels).all())
            True

        Raises:
            InputError: The file is not a result, or is corrupt.
        """
        return cls(**read_result(path))

    def __repr__(self) -> str:
        n = len(self)
        if n <= 3:
            told = [f"{shown(one.name, 40)} {one.probability:.3g}" for one in self]
        else:
            counts = Counter(self.labels.tolist()).most_common()
            told = [f"{count} x {shown(self.class_names[label], 40)}" for label, count in counts[:4]]
            told += [f"{len(counts) - 4} other classes"] if len(counts) > 4 else []
        cost = f"{self.evaluations.mean():.1f} evaluations per image, " if n else ""
        return f"Classification({n} image{'s'[: n != 1]}: {', '.join(told) or 'none'}; {cost}{self.seconds:.2f} s)"

    def _repr_html_(self) -> str:
        """The first images and their three likeliest classes, for notebooks."""
        order = np.argsort(-self.probabilities[:SHOWN_ROWS], axis=1, kind="stable")[:, 1:3]
        others = [
            ", ".join(f"{self.class_names[k]} {self.probabilities[row, k]:.3g}" for k in classes)
            for row, classes in enumerate(order)
        ]
        columns = {name: column[:SHOWN_ROWS] for name, column in self._columns(False).items()}
        return html_table(repr(self), {**columns, "next": others}, rows=len(self))

    @classmethod
    def of_table(
        cls,
        table: ErrorTable,
        indices: Int64,
        *,
        decision: str,
        temperature: float,
        seconds: float,
        provenance: dict[str, Any],
        class_names: tuple[str, ...] = (),
        class_of: tuple[int, ...] = (),
        denoising: int = 0,
        prior: npt.ArrayLike | None = None,
        votes_of: VotesOf | None = None,
        ids: tuple[str, ...] | None = None,
        promises: tuple[str, ...] | None = None,
    ) -> "Classification":
        """Decides every image of a table.

        Args:
            table: Errors of classes, or of prompts.
            indices: int64 (m,), index of each row's image.
            decision: One of ``inference.DECISIONS``.
            temperature: Temperature of the posterior, positive.
            seconds: Wall time.
            provenance: Everything that reproduces the result.
            class_names: The K names, if the table's classes are prompts.
            class_of: Class of each prompt, if the table's classes are prompts.
            denoising: Evaluations per image that are not in the table.
            prior: Weights (K,) of the classes, with decision "mean"; None: equal ones.
            votes_of: Counts votes as the run's rule does (``AbstractRule.votes_of``); None: as :func:`decide`.
            ids: m names of the images; None: they have none.
            promises: What is promised about each image; None: the rule's promise.

        Example:
            >>> table = clf.errors(images, draws=16)
            >>> made = fastdc.Classification.of_table(
            ...     table, np.arange(20), decision="vote", temperature=1.0, seconds=0.0, provenance={})
            >>> bool((made.labels == labels).all())
            True

        Raises:
            InputError: See ``decide.decide_table``.
        """
        how: dict[str, Any] = {"decision": decision, "temperature": temperature}
        decided = _decided(table, class_of, len(class_names), prior, votes_of, **how)
        return cls(
            indices=indices,
            labels=decided.labels,
            probabilities=decided.probabilities,
            errors=decided.mean_errors,
            evaluations=table.evaluations + denoising,
            votes=decided.votes,
            class_names=class_names or table.class_names,
            seconds=seconds,
            provenance=provenance,
            table=table,
            ids=ids,
            promises=promises,
        )


def _decided(
    table: ErrorTable,
    class_of: tuple[int, ...],
    n_classes: int,
    prior: npt.ArrayLike | None,
    votes_of: VotesOf | None,
    **how: Any,
) -> Decision:
    """The decision about the classes of a table, or about those that its prompts describe."""
    if not class_of:
        return decide_table(table, prior=prior, votes_of=votes_of, **how)
    of_prompts = None if prior is None else np.asarray(prior)[list(class_of)]
    of_all = decide_table(table, prior=of_prompts, votes_of=votes_of, **how)
    return by_class(of_all, class_of, n_classes=n_classes, prior=prior, **how)
