"""Certificates of several images, as a sequence that can be summarized, saved and shown."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, BinaryIO, overload

import numpy as np
import numpy.typing as npt

from fastdc.certification.certificate import ABSTAIN, Certificate
from fastdc.certification.records import HEADER, UNKNOWN, record_line, records_of
from fastdc.certification.smoothing import CertificateStream
from fastdc.certification.summary import Summary, default_radii, summarize
from fastdc.support import (
    SHOWN_ROWS,
    Float64,
    InputError,
    Int64,
    chosen_ids,
    chosen_rows,
    data_frame,
    html_table,
    plain,
    save_table,
    shown,
)

_FIELDS = tuple(field.name for field in fields(Certificate) if not field.kw_only)


@dataclass(frozen=True, eq=False, repr=False)
class Certificates(Sequence[Certificate]):
    """The certificates of m images.

    ``made[3]`` is the certificate of one image, with its index and names, and ``made[:10]``, ``made[rows]`` or
    ``made[mask]`` are Certificates of several.

    Attributes:
        certificates: Certificate of each image.
        indices: int64 (m,), index of each image among the images given.
        class_names: The K class names; empty if the base classifier has others.
        provenance: Everything that reproduces the certificates: sigma, alpha, n0, seeds, model, its sha256, version.
        ids: m names of the images, such as the path of each image's file; None unless all images came from files.
    """

    certificates: tuple[Certificate, ...]
    indices: Int64
    class_names: tuple[str, ...]
    provenance: dict[str, Any]
    ids: tuple[str, ...] | None = None

    @classmethod
    def of(cls, stream: CertificateStream, class_names: tuple[str, ...]) -> "Certificates":
        """All certificates of a stream.

        Args:
            stream: The stream, of which nothing was read.
            class_names: Names of the model's classes.
        """
        found = tuple(certificate for _, certificate in stream)
        names = class_names if stream.n_classes == len(class_names) else ()
        return cls(found, np.arange(len(found), dtype=np.int64), names, stream.provenance, stream.ids)

    @property
    def labels(self) -> Int64:
        """int64 (m,), the certified class, or -1 for an abstention."""
        return np.array([one.label for one in self.certificates], np.int64)

    @property
    def radii(self) -> Float64:
        """float64 (m,), certified L2 distance in pixels in [0, 1]; 0 for an abstention."""
        return np.array([one.radius for one in self.certificates], np.float64)

    @property
    def names(self) -> tuple[str | None, ...]:
        """The names of the certified classes; None for an abstention."""
        return tuple(self._name(one.label) for one in self.certificates)

    def _name(self, label: int) -> str | None:
        if label == ABSTAIN:
            return None
        return self.class_names[label] if label < len(self.class_names) else str(label)

    def __len__(self) -> int:
        """m, the number of images."""
        return len(self.certificates)

    def __iter__(self) -> Iterator[Certificate]:
        return (self._image(row) for row in range(len(self)))

    @overload
    def __getitem__(self, key: int) -> Certificate: ...
    @overload
    def __getitem__(self, key: slice | npt.ArrayLike) -> "Certificates": ...
    def __getitem__(self, key: Any) -> "Certificate | Certificates":
        rows = chosen_rows(key, len(self))
        if isinstance(rows, int):
            return self._image(rows)
        parts = tuple(self.certificates[row] for row in rows)
        return replace(self, certificates=parts, indices=self.indices[rows], ids=chosen_ids(self.ids, rows))

    def _image(self, row: int) -> Certificate:
        one, image = self.certificates[row], None if self.ids is None else self.ids[row]
        return replace(one, index=int(self.indices[row]), name=self._name(one.label), image=image)

    def summary(self, labels: npt.ArrayLike | None = None, radii: Sequence[float] | None = None) -> Summary:
        """Certified accuracy at radii, average certified radius, abstentions and cost; ``print`` shows a table.

        Args:
            labels: Integers (m,), true classes; without them, only abstentions and cost are known.
            radii: Radii, L2 distances of pixels in [0, 1]; default: round steps up to the largest one.

        Example:
            >>> from fastdc.certification import Fixed
            >>> made = clf.certify(images[:4], Fixed(0.25, n=100, alpha=0.01), n0=8)
            >>> made.summary(labels[:4], radii=[0, 0.1]).certified[0].value
            1.0

        Raises:
            InputError: There is no certificate, or labels or radii do not fit.
        """
        records = records_of(self.certificates, labels)
        return summarize(records, default_radii([records]) if radii is None else radii)

    def _columns(self) -> dict[str, Any]:
        named = {} if self.ids is None else {"image": self.ids}
        columns: dict[str, Any] = {"index": self.indices, **named, "label": self.labels, "name": self.names}
        for name in _FIELDS[1:]:
            values = [getattr(one, name) for one in self.certificates]
            columns[name] = np.array(values, np.float64 if name in ("radius", "p_lower", "seconds") else np.int64)
        return columns

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a row per image: index, image (its name, if known), label, name, radius, and
        what is behind the radius.

        Example:
            >>> from fastdc.certification import Fixed
            >>> clf.certify(images[:2], Fixed(0.25, n=20, alpha=0.01), n0=8).to_pandas().shape
            (2, 10)

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        return data_frame(self._columns())

    def to_dicts(self) -> list[dict[str, Any]]:
        """A dictionary of JSON values per image."""
        known = ("index", *(() if self.ids is None else ("image",)), "name", *_FIELDS)
        return [{name: plain(getattr(one, name)) for name in known} for one in self]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values: images, class names and provenance."""
        rest = {name: plain(getattr(self, name)) for name in ("class_names", "provenance")}
        return {"images": self.to_dicts(), **rest}

    def save(self, path: str | os.PathLike[str], labels: npt.ArrayLike | None = None) -> None:
        """Writes the certificates to a file, all of it or nothing, in the format that its name asks for.

        Args:
            path: A name that ends in .csv (the table of :meth:`to_pandas`), .jsonl (:meth:`to_dicts`, one per line),
                .json, .npz (the columns as arrays), or .tsv, which ``fastdc evaluate`` and
                ``certification.read_records`` read.
            labels: Integers (m,), true classes for a .tsv; default: unknown.

        Example:
            >>> from fastdc.certification import Fixed, read_records
            >>> made = clf.certify(images[:2], Fixed(0.25, n=20, alpha=0.01), n0=8)
            >>> made.save(folder / "made.tsv", labels[:2])
            >>> len(read_records(folder / "made.tsv"))
            2

        Raises:
            InputError: The name has another end, labels do not fit, or the file cannot be written.
        """
        columns = self._columns()
        texts = {name: columns[name] for name in ("image", "name") if name in columns}
        arrays = columns | {name: np.array([one or "" for one in of], str) for name, of in texts.items()}
        true = [UNKNOWN] * len(self) if labels is None else records_of(self.certificates, labels).label.tolist()
        if labels is not None and not str(path).lower().endswith(".tsv"):
            raise InputError(f"true classes are written to a .tsv only, got the path {shown(path)}")

        def write(file: BinaryIO) -> None:
            file.write(HEADER)
            for row in zip(self.indices.tolist(), true, self.certificates, strict=True):
                file.write(record_line(*row))

        save_table(
            path,
            columns=columns,
            entries=self.to_dicts,
            whole=self.to_dict,
            arrays=lambda: arrays,
            more={".tsv": write},
        )

    def __repr__(self) -> str:
        n, radii = len(self), self.radii
        if not n:
            return "Certificates(0 images)"
        if n <= 3:
            names = [None if name is None else shown(name, 40) for name in self.names]
            each = zip(names, radii, strict=True)
            told = ", ".join("abstains" if name is None else f"{name} within {radius:.3g}" for name, radius in each)
        else:
            median, most, abstained = np.median(radii), radii.max(), int((self.labels == ABSTAIN).sum())
            told = f"radius {median:.3g} at the median, {most:.3g} at most; {abstained} abstain{'s'[: abstained == 1]}"
        cost = np.mean([one.evaluations for one in self.certificates])
        return f"Certificates({n} image{'s'[: n != 1]}: {told}; {cost:,.0f} evaluations per image)"

    def _repr_html_(self) -> str:
        """The first images, for notebooks."""
        shown_columns = {name: column[:SHOWN_ROWS] for name, column in self._columns().items()}
        return html_table(repr(self), shown_columns, rows=len(self))
