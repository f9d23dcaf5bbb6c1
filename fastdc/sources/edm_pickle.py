"""Reads the network of an NVlabs EDM pickle (``network-snapshot-*.pkl``) without executing any of it.

The file is a pickled dictionary, whose entry "ema" is the network to use. A module is an object of
``torch_utils.persistence``: the call ``_reconstruct_persistent_obj(meta)`` with meta = {type: "class", version: 6,
module_src: source text, class_name, state}. The original executes the source text. fastdc never looks at it: the state
gives the options that the module was built with (``_init_kwargs``), its plain attributes, and its parameters and
buffers by name. The layers themselves are ours (:mod:`fastdc.sources.edm_networks`).

A tensor is ``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)``, and its storage is
``torch.storage._load_from_bytes(bytes)``. These bytes are a file of ``torch.save`` in its old format: five pickles
(magic number, version, system, a persistent id that names the storage's type and length, the list of keys), the length
and the raw values. The machine of :mod:`fastdc.sources.edm_inert` reads all of it; torch's own loaders take no part. A
tensor must lie inside its storage and have no more values than that, and all tensors together may not be larger than
the file. Records may be shared, so everything that is visited counts, however often.

Not tested on a file of NVlabs: the format is taken from its public description (github.com/NVlabs/edm) and from the
files that torch writes.
"""

import math
import mmap
import struct
import warnings
from collections.abc import Iterator, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

from fastdc.sources.edm_inert import MAX_OPCODES, PERSISTENT_ID, Global, Made, read_inert
from fastdc.support import BundleError, InputError, require, shown

require("torch", extra="export")

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"] | Made
"""An option: plain data, or the record of another object."""

MAX_FILE_BYTES = 16 * 2**30
_MAX_MODULES = 20_000
_MAX_TENSORS = 10_000
_MAX_DEPTH = 16
_MAX_ENTRIES = MAX_OPCODES  # entries visited; files of torch share none, and each took an instruction
_NETWORK = "ema"  # key of the network in the file's dictionary
_STORAGE_OPCODES = 64  # limit for each pickle in a storage; torch writes at most 45
_STORAGE_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGE_VERSION = 1001
_PERSISTENCE_VERSION = 6

_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
_NUMPY_SCALARS = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "b1": "<?"}

_PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
_PARAMETER = "torch._utils._rebuild_parameter"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_STORAGE = "torch.storage._load_from_bytes"
_CONTAINERS = tuple(f"torch.nn.modules.container.{name}" for name in ("ModuleDict", "ModuleList", "Sequential"))
_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
ALLOWED = frozenset(
    (
        _PERSISTENT,
        _PARAMETER,
        _TENSOR,
        _STORAGE,
        *_CONTAINERS,
        *_SCALARS,
        "dnnlib.util.EasyDict",
        "collections.OrderedDict",
        "copyreg._reconstructor",
        "builtins.object",
        "builtins.dict",
        "builtins.set",
        "_codecs.encode",
        "numpy.dtype",
        "numpy.ndarray",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
    )
)
"""The globals that an EDM pickle may name; none of them is imported or called."""


@dataclass(frozen=True, eq=False)
class PickledModule:
    """A module of the file.

    Attributes:
        class_name: Name of the module's class, such as "EDMPrecond"; "" for a container of modules.
        init_kwargs: Options that the module was built with.
        attributes: Attributes that are None, numbers or text.
        tensors: The module's own parameters and buffers, in the file's dtypes.
        modules: Submodules by name.
    """

    class_name: str
    init_kwargs: dict[str, Plain]
    attributes: dict[str, Plain]
    tensors: dict[str, Tensor] = field(repr=False)
    modules: dict[str, "PickledModule"] = field(repr=False)

    def state_dict(self) -> dict[str, Tensor]:
        """All parameters and buffers by their dotted names."""
        return dict(self._named(""))

    def _named(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.tensors.items():
            yield prefix + name, tensor
        for name, module in self.modules.items():
            yield from module._named(f"{prefix}{name}.")


def read_edm_pickle(path: str | Path) -> PickledModule:
    """Reads the network of an EDM pickle; executes and imports nothing of the file.

    Raises:
        InputError: The file cannot be opened.
        BundleError: The file is not an EDM pickle, is corrupt, or asks for anything but tensors and plain options.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if not 0 < size <= MAX_FILE_BYTES:
            raise BundleError(f"{path.name} must have 1 to {MAX_FILE_BYTES} bytes, got {size}")
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    if bytes(data[:2]) == b"PK":
        raise BundleError(f"{path.name} is a zip archive: expected the pickle of an EDM network")
    try:
        content, _ = read_inert(data, ALLOWED)
        found = _entries(content).get(_NETWORK)
        if not isinstance(found, Made):
            raise BundleError(f"pickle: expected a dictionary with a network under {_NETWORK!r}, got {_keys(content)}")
        return _Walk(len(data)).module(found, _NETWORK, 0)
    except BundleError as error:
        raise BundleError(f"{path.name}: {error}") from None


class _Walk:
    """Turns records into a tree of modules and counts its visits: records may be shared or contain themselves."""

    def __init__(self, file_bytes: int) -> None:
        self.bytes_left = file_bytes
        self.modules_left = _MAX_MODULES
        self.tensors_left = _MAX_TENSORS
        self.entries_left = _MAX_ENTRIES
        self.storages: dict[int, Tensor] = {}

    def count(self, entries: Sized) -> None:
        """Counts entries before they are visited."""
        self.entries_left -= 1 + len(entries)
        if self.entries_left < 0:
            raise BundleError(f"pickle: modules and options must have at most {_MAX_ENTRIES} entries in all")

    def module(self, record: object, where: str, depth: int) -> PickledModule:
        """The module of a record."""
        self.modules_left -= 1
        if depth > _MAX_DEPTH or self.modules_left < 0:
            raise BundleError(f"pickle: modules must be at most {_MAX_DEPTH} deep and {_MAX_MODULES} in number")
        class_name, state = _module_state(record, where)
        self.count(state)
        if state.get("_init_args") not in (None, ()):  # only the source text would name such options
            raise BundleError(f"pickle: {where} must have been built from named options")
        tensors = {}
        for kind in ("_parameters", "_buffers"):
            for name, value in self.named(state, kind, where):
                if value is not None:
                    tensors[name] = self.tensor(value, f"{where}.{name}")
        modules = {
            name: self.module(value, f"{where}.{name}"[:200], depth + 1)
            for name, value in self.named(state, "_modules", where)
            if value is not None
        }
        attributes: dict[str, Plain] = {}
        for key, value in state.items():
            if isinstance(key, str) and not key.startswith("_"):
                plain = _scalar(value)
                if plain is None or isinstance(plain, (bool, int, float, str)):
                    attributes[key] = plain
        options = _dictionary(state.get("_init_kwargs"), f"the options of {where}")
        self.count(options)
        kwargs = {str(key): self.plain(value, 0) for key, value in options.items()}
        return PickledModule(class_name, kwargs, attributes, tensors, modules)

    def named(self, state: dict[object, object], kind: str, where: str) -> Iterator[tuple[str, object]]:
        """The entries of a dictionary in a module's state, which must have plain names."""
        entries = _dictionary(state.get(kind), f"{kind} of {where}")
        self.count(entries)
        for name, value in entries.items():
            if not isinstance(name, str) or not 0 < len(name) <= 100 or "." in name:
                raise BundleError(f"pickle: {kind} of {where} must have plain names, got {shown(name)}")
            yield name, value

    def plain(self, value: object, depth: int) -> Plain:
        """An option, with tuples as lists."""
        if depth > _MAX_DEPTH:
            raise BundleError(f"pickle: options must be at most {_MAX_DEPTH} deep")
        if isinstance(value, (list, tuple)):
            self.count(value)
            return [self.plain(item, depth + 1) for item in value]
        entries = _entries(value)
        if entries or isinstance(value, dict):
            self.count(entries)
            return {str(key): self.plain(item, depth + 1) for key, item in entries.items()}
        return _scalar(value)

    def tensor(self, record: object, where: str) -> Tensor:
        """The tensor of a record: a contiguous copy, after its sizes were checked against the storage and the file."""
        self.tensors_left -= 1
        if self.tensors_left < 0:
            raise BundleError(f"pickle: must hold at most {_MAX_TENSORS} tensors, but holds more")
        if isinstance(record, Made) and record.name == _PARAMETER and record.args:
            record = record.args[0]
        if not isinstance(record, Made) or record.name != _TENSOR or len(record.args) < 4:
            raise BundleError(f"pickle: {where} must be a tensor, got {shown(record)}")
        storage, offset, size, stride = record.args[:4]
        values = self.storage(storage, where)
        shape, strides = _counts(size), _counts(stride)
        if shape is None or strides is None or len(shape) != len(strides) or not _is_count(offset):
            raise BundleError(f"pickle: {where} must have sizes and strides of one length, got {shown(size)}")
        count = math.prod(shape)
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if count == 0:
            raise BundleError(f"pickle: {where} must have values, its shape is {shape}")
        if last >= len(values) or count > len(values):
            raise BundleError(
                f"pickle: {where} of shape {shape} needs {max(count, last + 1)} values, its storage has {len(values)}"
            )
        self.bytes_left -= count * values.element_size()
        if self.bytes_left < 0:
            raise BundleError(f"pickle: the tensors up to {where} are larger than the file")
        return values.as_strided(shape, strides, offset).clone(memory_format=torch.contiguous_format)

    def storage(self, record: object, where: str) -> Tensor:
        """The values (n,) of a storage, a view of the file."""
        if not isinstance(record, Made) or record.name != _STORAGE or len(record.args) != 1:
            raise BundleError(f"pickle: {where} must have a storage, got {shown(record)}")
        data = record.args[0]
        if not isinstance(data, memoryview):
            raise BundleError(f"pickle: the storage of {where} must be bytes, got {shown(data)}")
        if id(data) not in self.storages:
            self.storages[id(data)] = _storage_values(data, where)
        return self.storages[id(data)]


def _storage_values(data: memoryview, where: str) -> Tensor:
    """The values of a storage in the old format of ``torch.save``, as in the module's docstring."""
    if bytes(data[:2]) == b"PK":
        raise BundleError(f"pickle: the storage of {where} must be in torch's old format, got a zip archive")
    parts = []
    for _ in range(5):
        part, used = read_inert(data, _DTYPES, max_opcodes=_STORAGE_OPCODES)
        parts.append(part)
        data = data[used:]
    magic, version, system, handle, keys = parts
    if magic != _STORAGE_MAGIC or version != _STORAGE_VERSION or not isinstance(system, dict):
        raise BundleError(f"pickle: the storage of {where} is not in torch's format {_STORAGE_VERSION}")
    if system.get("little_endian") is not True:
        raise BundleError(f"pickle: the storage of {where} must be little endian")
    named = handle.args[0] if isinstance(handle, Made) and handle.name == PERSISTENT_ID else None
    if not isinstance(named, tuple) or len(named) != 6 or named[0] != "storage" or named[5] is not None:
        raise BundleError(f"pickle: the storage of {where} must be named by one persistent id, got {shown(handle)}")
    kind, key, count = named[1], named[2], named[4]
    if not isinstance(kind, Global) or not _is_count(count) or not isinstance(key, str) or keys != [key]:
        raise BundleError(f"pickle: the storage of {where} has no type, key or length")
    dtype = _DTYPES[kind.name]
    expected = 8 + count * dtype.itemsize
    if len(data) != expected or int.from_bytes(data[:8], "little") != count:
        raise BundleError(f"pickle: the storage of {where} must have {expected} bytes, got {len(data)}")
    return _view(data[8:], dtype)


def _view(data: memoryview, dtype: torch.dtype) -> Tensor:
    """The bytes as a tensor (n,), without a copy."""
    if not len(data):
        return torch.empty(0, dtype=dtype)
    # torch warns about a tensor on memory that must not be written to. Nothing here writes, so no copy is needed.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(data, dtype=dtype)


def _module_state(record: object, where: str) -> tuple[str, dict[object, object]]:
    """The class name and the state of a persistent object or of one of torch's containers."""
    if isinstance(record, Made) and record.name == _PERSISTENT and len(record.args) == 1:
        meta = _dictionary(record.args[0], f"the description of {where}")
        if meta.get("type") != "class" or meta.get("version") != _PERSISTENCE_VERSION:
            raise BundleError(
                f"pickle: {where} must be a persistent class of version {_PERSISTENCE_VERSION}, "
                f"got {shown(meta.get('type'), 40)} of version {shown(meta.get('version'), 40)}"
            )
        name = meta.get("class_name")
        if not isinstance(name, str) or not name.isidentifier():
            raise BundleError(f"pickle: {where} must have the name of a class, got {shown(name)}")
        return name, _dictionary(meta.get("state"), f"the state of {where}")
    if isinstance(record, Made) and (record.name in _CONTAINERS or record.name == "copyreg._reconstructor"):
        return "", _dictionary(record.state, f"the state of {where}")
    raise BundleError(f"pickle: {where} must be a module, got {shown(record)}")


def _entries(value: object) -> dict[object, object]:
    """The entries of a dictionary of any kind; {} for anything else."""
    if isinstance(value, Made):
        return value.entries
    return value if isinstance(value, dict) else {}


def _dictionary(value: object, what: str) -> dict[object, object]:
    """The entries of a dictionary of any kind, {} for None."""
    if not (value is None or isinstance(value, (dict, Made))):
        raise BundleError(f"pickle: {what} must be a dictionary, got {shown(value)}")
    return _entries(value)


def _scalar(value: object) -> Plain:
    """A number, text or None unchanged, a NumPy scalar as a number, anything else as a record."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Made) and value.name in _SCALARS and len(value.args) == 2:
        kind, raw = value.args
        code = kind.args[0] if isinstance(kind, Made) and kind.name == "numpy.dtype" and kind.args else None
        layout = _NUMPY_SCALARS.get(code) if isinstance(code, str) else None
        if layout is not None and isinstance(raw, memoryview) and len(raw) == struct.calcsize(layout):
            number: bool | int | float = struct.unpack(layout, raw)[0]
            return number
    return value if isinstance(value, Made) else Made(type(value).__name__, ())


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48


def _counts(value: object) -> tuple[int, ...] | None:
    """The value if it is a tuple of at most 8 counts, otherwise None."""
    if not isinstance(value, tuple) or len(value) > 8:
        return None
    counts = tuple(n for n in value if _is_count(n))
    return counts if len(counts) == len(value) else None


def _keys(content: object) -> str:
    """The content's keys or type, for a message."""
    names = [str(key)[:40] for key in list(_entries(content))[:8]]
    return f"the keys {', '.join(names)}" if names else f"{type(content).__name__}"
