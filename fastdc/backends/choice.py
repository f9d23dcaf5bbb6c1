"""Choices of ``fastdc bench --write``: which backend, precision and batch ran one model fastest on one machine.

A choice is a small JSON file in ``$FASTDC_CACHE/choices`` or ``~/.cache/fastdc/choices``. Its name has hashes of the
model and the machine. It holds both in full, and the versions that were measured: a choice for another model, machine
or version is not used. A file may come from anywhere, so it is read like one: a small plain file, every field of which
is checked. It can name a backend, a device, a precision and a batch, and nothing else.

A choice is one measured combination. It is used as a whole, where a user leaves backend, precision and batch open.
"""

import dataclasses
import hashlib
import json
import logging
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from fastdc.backends.machine import backend_versions, machine_facts
from fastdc.backends.options import MAX_BATCH, PRECISIONS, NetworkOptions
from fastdc.backends.protocol import AbstractNetwork
from fastdc.backends.registry import BACKENDS, open_network
from fastdc.backends.reopening import Reopened
from fastdc.bundle import Bundle
from fastdc.diffusion import kernels
from fastdc.support import BundleError, InputError, cache_folder, checks, strict_json, write_whole

LOGGER = logging.getLogger("fastdc")
"""Says which choice is used (INFO; WARNING if it is not float32), and which file is ignored (WARNING)."""

_FORMAT, _VERSION = "fastdc-choice", 1
_MAX_BYTES = 65_536
_DEVICE = re.compile(r"cpu|cuda:[0-9]{1,3}")
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")

_chosen: "WeakKeyDictionary[AbstractNetwork, Choice]" = WeakKeyDictionary()


@dataclass(frozen=True)
class Choice:
    """A combination that was measured.

    Attributes:
        backend: One of :data:`fastdc.backends.BACKENDS`.
        device: "cpu" or "cuda:N".
        precision: One of :data:`fastdc.backends.PRECISIONS`.
        batch: Largest number of network evaluations in a step.
        date: Day of the measurement, such as "2026-11-30".
        images_per_second: What was measured.
        images: Number of images whose answers were compared with float32; all of them agreed.
    """

    backend: str
    device: str
    precision: str
    batch: int
    date: str
    images_per_second: float
    images: int

    def __post_init__(self) -> None:
        checks.one_of("backend", self.backend, BACKENDS)
        checks.one_of("precision", self.precision, PRECISIONS)
        if not isinstance(self.device, str) or not _DEVICE.fullmatch(self.device):
            raise InputError("device must be cpu or cuda:N")
        checks.whole("batch", self.batch, high=MAX_BATCH)
        checks.whole("images", self.images)
        checks.positive("images_per_second", self.images_per_second)
        if not isinstance(self.date, str) or not _DAY.fullmatch(self.date):
            raise InputError("date must be a day such as 2026-11-30")

    def __str__(self) -> str:
        return f"{self.backend} in {self.precision}, batch {self.batch}, on {self.device}"

    @property
    def origin(self) -> str:
        """Where the choice comes from, for results."""
        return f"fastdc bench, {self.date}"

    def options(self, given: NetworkOptions) -> NetworkOptions:
        """A user's options with this choice."""
        return dataclasses.replace(given, device=self.device, precision=self.precision, batch=self.batch)


def keep_choice(bundle: Bundle, choice: Choice, *, threads: int | None = None) -> Path:
    """Writes a choice for this machine, in place of an earlier one.

    Args:
        bundle: The model.
        choice: The choice.
        threads: Number of CPU threads that was measured; None: the default.

    Returns:
        The file.

    Raises:
        InputError: The file cannot be written.

    Example:
        >>> from fastdc.backends import Choice, find_choice, forget_choices, keep_choice
        >>> bundle = fastdc.load_bundle(fastdc.bundle.find_model("digits-mlp"))
        >>> _ = keep_choice(bundle, Choice("onnx", "cpu", "float32", 64, "2026-11-30", 900.0, 400))
        >>> find_choice(bundle)[0].batch, len(forget_choices(bundle))
        (64, 1)
    """
    path = _path(bundle, threads)
    entry = {
        **{"format": _FORMAT, "version": _VERSION},
        **{"model": bundle.model.identity, "machine": machine_facts(threads)},
        **{"versions": backend_versions(choice.backend), "choice": dataclasses.asdict(choice)},
    }
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, json.dumps(entry, indent=1, allow_nan=False).encode() + b"\n")
    except OSError as error:
        raise InputError(f"the choice cannot be kept in {path.parent}: {error.strerror}") from None
    return path


def find_choice(bundle: Bundle, *, threads: int | None = None) -> tuple[Choice | None, str]:
    """The choice for a model on this machine, and why there is none.

    Args:
        bundle: The model.
        threads: Number of CPU threads; None: the default.

    Returns:
        The choice and "", or None and the reason why the file that is there is ignored: "" if there is no file.

    Example:
        >>> from fastdc.backends import find_choice
        >>> find_choice(fastdc.load_bundle(fastdc.bundle.find_model("digits-mlp")))
        (None, '')
    """
    try:
        path = _path(bundle, threads)
        content = _content(path)
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    except InputError as error:
        return None, str(error)
    except OSError as error:
        return None, f"the choice of fastdc bench cannot be read: {error.filename or 'its file'}: {error.strerror}"
    try:
        return _parsed(content, path, bundle, threads), ""
    except (BundleError, InputError) as error:
        return None, f"{path} is ignored: {error}"


def forget_choices(bundle: Bundle) -> tuple[Path, ...]:
    """Removes the choices for a model on this machine, for every number of threads.

    Args:
        bundle: The model.

    Returns:
        The files that were removed.

    Raises:
        InputError: A file cannot be removed.

    Example:
        >>> from fastdc.backends import forget_choices
        >>> forget_choices(fastdc.load_bundle(fastdc.bundle.find_model("digits-mlp")))
        ()
    """
    path = _path(bundle, None)
    found = sorted(path.parent.glob(f"{path.stem.rpartition('-')[0]}-*.json"))
    try:
        for file in found:
            file.unlink()
    except OSError as error:
        raise InputError(f"{error.filename} cannot be removed: {error.strerror}") from None
    return tuple(found)


def usable_choice(bundle: Bundle, backend: str, options: NetworkOptions) -> Choice | None:
    """The choice that applies where a user leaves the options of the network open; says so on :data:`LOGGER`.

    Args:
        bundle: The model.
        backend: The backend that the user named, or "auto".
        options: The options that the user gave.

    Returns:
        The choice; None if backend, precision, batch or an option of one backend were given, if the device is another
        one or absent, if the classes are not the bundle's own, or if there is no choice.

    Example:
        >>> from fastdc.backends import NetworkOptions, usable_choice
        >>> usable_choice(fastdc.load_bundle(fastdc.bundle.find_model("digits")), "onnx", NetworkOptions()) is None
        True
    """
    left_open = NetworkOptions(device=options.device, threads=options.threads)
    if backend != "auto" or options != left_open or bundle.tables is not None:
        return None
    choice, ignored = find_choice(bundle, threads=options.threads)
    if ignored:
        LOGGER.warning("%s", ignored)
    if choice is None:
        return None
    wanted = "cuda:0" if options.device == "cuda" else options.device
    if wanted not in ("auto", choice.device):
        return None
    number = choice.device.partition(":")[2]
    if number and int(number) >= kernels.cuda_device_count():
        LOGGER.warning("the choice %s is ignored: there is no such device", choice)
        return None
    over = "backend, precision or batch override it"  # a command spells them as its options
    # Another precision rounds otherwise: without a handler, Python prints warnings, and nothing below them.
    level = logging.INFO if choice.precision == "float32" else logging.WARNING
    LOGGER.log(level, "%s runs on %s: the choice of %s; %s", bundle.name, choice, choice.origin, over)
    return choice


def open_chosen(bundle: Bundle, choice: Choice, options: NetworkOptions) -> AbstractNetwork:
    """The network of a choice, which remembers it, also in pickles and copies.

    Args:
        bundle: The model.
        choice: The choice.
        options: What the user gave; the choice decides about device, precision and batch.

    Raises:
        FastdcError: As :func:`fastdc.backends.open_network`.

    Example:
        >>> from fastdc.backends import Choice, NetworkOptions, chosen_by, open_chosen
        >>> bundle = fastdc.load_bundle(fastdc.bundle.find_model("digits-mlp"))
        >>> choice = Choice("onnx", "cpu", "float32", 64, "2026-11-30", 900.0, 400)
        >>> str(chosen_by(open_chosen(bundle, choice, NetworkOptions(threads=1))))
        'onnx in float32, batch 64, on cpu'
    """
    if options.threads is not None:
        kernels.set_num_threads(options.threads)
    network = open_network(bundle, choice.backend, choice.options(options))
    assert isinstance(network, Reopened)
    network.again = (open_chosen, (bundle, choice, options))
    _chosen[network] = choice
    return network


def chosen_by(network: AbstractNetwork) -> Choice | None:
    """The choice that a network was opened by; None if options or the defaults decided.

    Example:
        >>> from fastdc.backends import chosen_by
        >>> chosen_by(clf.network) is None
        True
    """
    return _chosen.get(network)


def _path(bundle: Bundle, threads: int | None) -> Path:
    facts = machine_facts(threads)
    count = facts.pop("threads")
    machine = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    try:
        folder = cache_folder("choices")
    except RuntimeError as error:  # no home
        raise InputError(f"there is no folder for choices: {error}") from None
    return folder / f"{bundle.model.identity[:32]}-{machine[:16]}-{count}.json"


def _content(path: Path) -> bytes:
    """The bytes of a choice.

    Raises:
        InputError: It is not a small plain file.
        OSError: It cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for a writer
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_BYTES:
            raise InputError(f"{path} is ignored: it is not a plain file of at most {_MAX_BYTES} bytes")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(_MAX_BYTES)
    finally:
        os.close(descriptor)


def _parsed(content: bytes, path: Path, bundle: Bundle, threads: int | None) -> Choice:
    """A choice, checked field by field, for this model, machine and versions.

    Raises:
        BundleError: The content is not JSON.
        InputError: A field is not valid, or the choice is for something else.
    """
    entry = strict_json(content, path)
    if not isinstance(entry, dict) or entry.get("format") != _FORMAT or entry.get("version") != _VERSION:
        raise InputError(f"it is not a choice of fastdc bench in version {_VERSION}")
    if entry.get("model") != bundle.model.identity or entry.get("machine") != machine_facts(threads):
        raise InputError("it is for another model or machine")
    fields: Any = entry.get("choice")
    names = {field.name for field in dataclasses.fields(Choice)}
    if not isinstance(fields, dict) or set(fields) != names:
        raise InputError(f"it must state {', '.join(sorted(names))}")
    choice = Choice(**fields)
    measured, now = entry.get("versions"), backend_versions(choice.backend)
    if measured != now:
        others = ", ".join(f"{name} {version}" for name, version in now.items())
        raise InputError(f"it was measured with other versions than {others}: run fastdc bench again")
    return choice
