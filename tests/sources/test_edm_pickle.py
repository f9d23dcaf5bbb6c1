"""EDM pickles: every option and tensor comes back; hostile files are refused, and nothing is executed."""

import contextlib
import io
import os
import pickle
import random
import resource
import time
from pathlib import Path
from typing import Any

import pytest

from fastdc.support.exceptions import BundleError, InputError

pytest.importorskip("torch")

import torch
from torch import nn

from fastdc.sources.edm_pickle import PickledModule, read_edm_pickle
from fastdc.testing import edm_files


def _write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "model.pkl"
    path.write_bytes(data)
    return path


def _refused(tmp_path: Path, data: bytes, match: str) -> None:
    with pytest.raises(BundleError, match=match) as caught:
        read_edm_pickle(_write(tmp_path, data))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("variant", list(edm_files.TINY))
def test_options_and_tensors_come_back(tmp_path: Path, variant: str, protocol: int) -> None:
    found = read_edm_pickle(edm_files.write_edm(tmp_path / "m.pkl", variant, protocol=protocol, label_dropout=0.1))
    assert found.class_name == "EDMPrecond"
    assert found.attributes["sigma_max"] == float("inf")
    assert found.attributes["use_fp16"] is True
    assert found.init_kwargs["label_dim"] == 4
    inner = found.modules["model"]
    assert inner.class_name == edm_files.kind_of(variant)
    assert inner.init_kwargs == edm_files.options(variant, label_dropout=0.1)
    wanted = edm_files.network(variant, label_dropout=0.1).state_dict()
    got = inner.state_dict()
    assert set(got) == set(wanted)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    block = inner.modules["dec"].modules["8x8_block0"]
    assert block.attributes["skip_scale"] == 0.5**0.5
    assert block.init_kwargs["init"] == {"init_weight": 0.2**0.5}


def test_source_text_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = edm_files.write_edm(tmp_path / "m.pkl", "adm")
    assert edm_files.MODULE_SOURCE.encode() in path.read_bytes()
    read_edm_pickle(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.pkl"]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).reshape(2, 3),
        torch.arange(12.0).reshape(3, 4).t(),
        torch.arange(12.0)[5:9],
        torch.arange(6).reshape(2, 3),
        torch.arange(4).half(),
        torch.arange(4).bfloat16(),
        torch.arange(4).double(),
        torch.tensor([True, False]),
        torch.tensor(3.5),
        nn.Parameter(torch.arange(3.0)),
    ],
)
def test_tensors_of_every_layout_and_dtype(tmp_path: Path, tensor: torch.Tensor) -> None:
    found = read_edm_pickle(_write(tmp_path, edm_files.with_tensor(tensor)))
    got = found.tensors["weight"]
    assert got.dtype == tensor.dtype
    assert torch.equal(got, tensor)
    assert got.is_contiguous()


def test_shared_storage_is_read(tmp_path: Path) -> None:
    values = torch.arange(6.0)
    made = edm_files.Persistent("EDMPrecond", {})
    made.__dict__["_parameters"] = {"a": values[:3], "b": values[3:], "c": None}
    found = read_edm_pickle(_write(tmp_path, edm_files.dumped({"ema": made})))
    assert torch.equal(found.tensors["a"], values[:3])
    assert torch.equal(found.tensors["b"], values[3:])
    assert set(found.tensors) == {"a", "b"}


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (2**20, 2**20), (0, 0)),  # 4 TiB from one value
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (0, (2,), (4,)),
        (0, (2, 2), (3, 1)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2**62, 2**62), (1, 1)),
        (2**62, (1,), (1,)),
        (0, (0,), (1,)),
        (0, (2,), (1, 1)),
        (0, (1,) * 9, (1,) * 9),
    ],
)
def test_tensors_stay_inside_their_storage(
    tmp_path: Path, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    tensor = edm_files.rebuilt(torch.arange(4.0), offset, size, stride)
    _refused(tmp_path, edm_files.with_tensor(tensor), "weight")


def test_all_tensors_together_are_no_larger_than_the_file(tmp_path: Path) -> None:
    values = torch.zeros(10_000)
    made = edm_files.Persistent("EDMPrecond", {})
    made.__dict__["_parameters"] = {f"w{i}": values for i in range(100)}
    _refused(tmp_path, edm_files.dumped({"ema": made}), "larger than the file")


def _storage_bytes(values: torch.Tensor) -> bytes:
    bytes_of: bytes = edm_files.storage_of(values).__reduce__()[1][0]
    return bytes_of


class _Storage:
    """Pickles as a storage of given bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> Any:
        return torch.storage._load_from_bytes, (self.data,)


def _with_storage(data: bytes) -> bytes:
    from torch._utils import _rebuild_tensor_v2

    return edm_files.with_tensor(edm_files.Call(_rebuild_tensor_v2, _Storage(data), 0, (4,), (1,), False, {}))


def test_a_storage_is_read_as_torch_writes_it(tmp_path: Path) -> None:
    good = _storage_bytes(torch.arange(4.0))
    found = read_edm_pickle(_write(tmp_path, _with_storage(good)))
    assert torch.equal(found.tensors["weight"], torch.arange(4.0))


def test_hostile_storages_are_refused(tmp_path: Path) -> None:
    good = _storage_bytes(torch.arange(4.0))
    target = tmp_path / "executed"
    hostile = pickle.dumps(edm_files.Call(os.system, f"touch {target}"), protocol=2)
    first = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    second = pickle.dumps(1001, protocol=2)
    zipped = io.BytesIO()
    torch.save(torch.arange(4.0), zipped)
    # The file states the length twice: in the persistent id (K 4) and before the values.
    assert good.count(b"K\x04Nt") == 1
    huge = good.replace(b"K\x04Nt", b"\x8a\x06" + (2**40).to_bytes(6, "little") + b"Nt")
    for data, match in (
        (hostile, "system"),
        (first + hostile, "system"),
        (first + second + pickle.dumps({"little_endian": True}, protocol=2) + hostile, "system"),
        (good.replace(b"ctorch\nFloatStorage", b"cos\nsystem"), "os.system"),
        (good.replace(b"\x0d\x00\x00\x00little_endianq\x02\x88", b"\x0d\x00\x00\x00little_endianq\x02\x89"), "little"),
        (good[:-1], "must have"),
        (good + b"x", "must have"),
        (good[:20], "truncated"),
        (b"", "truncated"),
        (huge, "must have"),
        (zipped.getvalue(), "zip"),
        (second + good, "1001"),
    ):
        assert data != good
        _refused(tmp_path, _with_storage(data), match)
    assert not target.exists()


def test_hostile_files_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    system = edm_files.Call(os.system, f"touch {target}")
    code = edm_files.Call(eval, f"open({str(target)!r}, 'w')")
    good = edm_files.write_edm(tmp_path / "good.pkl", "adm").read_bytes()
    for content, match in (
        ({"ema": system}, "system"),
        ({"ema": code}, "builtins.eval"),
        ({"ema": edm_files.precond("adm"), "loss_fn": code}, "builtins.eval"),  # beside the network
        ({"ema": edm_files.Call(__import__, "os")}, "builtins.__import__"),
        ({"net": edm_files.precond("adm")}, "'ema'"),
        ([1, 2], "list"),
        (None, "NoneType"),
        ({"ema": {1: 2}}, "'ema'"),
    ):
        _refused(tmp_path, edm_files.dumped(content), match)
    for data, match in (
        (good[: len(good) // 2], "truncated"),
        (b"", "bytes"),
        (b"PK\x03\x04" + good, "zip"),
        (b"\x80\x04\x8e" + (100 * 2**30).to_bytes(8, "little") + b"x.", "truncated"),
        (good.replace(b"dnnlib.util", b"dnnlib_util"), "dnnlib_util"),
    ):
        _refused(tmp_path, data, match)
    assert not target.exists()
    with pytest.raises(InputError, match="cannot read"):
        read_edm_pickle(tmp_path / "absent.pkl")
    with pytest.raises(InputError, match="cannot read"):
        read_edm_pickle(tmp_path)


def test_modules_that_hold_themselves_end(tmp_path: Path) -> None:
    made = edm_files.Persistent("EDMPrecond", {})
    inner = nn.ModuleDict()
    for i in range(10):
        inner._modules[f"m{i}"] = inner  # a tree of 10^16 modules for a walk
    made.__dict__["_modules"] = {"model": inner}
    _refused(tmp_path, edm_files.dumped({"ema": made}), "deep")
    options: list[Any] = []
    options.extend([options, options, options])
    made = edm_files.Persistent("EDMPrecond", {"bomb": options})
    _refused(tmp_path, edm_files.dumped({"ema": made}), "deep")


def _bomb(path: Path, place: str, bomb: bytes) -> None:
    """Writes a module with the bomb, instructions that make one object, in a place."""
    from torch._utils import _rebuild_tensor_v2

    hole = "0123456789"
    tensor = [_Storage(_storage_bytes(torch.arange(4.0))), 0, (4,), (1,), False, {}]
    state: dict[Any, Any] = {"_init_args": (), "_init_kwargs": {"a": 1}, "_parameters": {}, "_modules": {}}
    meta: dict[Any, Any] = {"type": "class", "version": 6, "class_name": "EDMPrecond", "state": state}
    if place in ("type", "version", "class_name", "state"):
        meta[place] = hole
    elif place in ("_init_args", "_init_kwargs", "_parameters", "_buffers", "_modules", "attribute"):
        state[place] = hole
    elif place in ("option", "parameter", "module"):
        state[{"option": "_init_kwargs", "parameter": "_parameters", "module": "_modules"}[place]] = {"a": hole}
    elif place == "nn.Parameter":
        state["_parameters"] = {"a": edm_files.Call(torch._utils._rebuild_parameter, hole, True, {})}
    elif place == "bytes":
        tensor[0] = edm_files.Call(torch.storage._load_from_bytes, hole)
    elif place in ("storage", "offset", "size", "stride"):
        tensor[["storage", "offset", "size", "stride"].index(place)] = hole
    if place in ("bytes", "storage", "offset", "size", "stride"):
        state["_parameters"] = {"a": edm_files.Call(_rebuild_tensor_v2, *tensor)}
    content: Any = {"ema": edm_files.Call(edm_files._reconstruct_persistent_obj, meta)}
    if place in ("ema", "file", "meta"):
        call = edm_files.Call(edm_files._reconstruct_persistent_obj, hole)
        content = {"ema": {"ema": hole}, "file": hole, "meta": {"ema": call}}[place]
    data = edm_files.dumped(content)
    text = b"\x8c\x0a" + hole.encode()
    assert data.count(text) == 1
    path.write_bytes(data.replace(text, bomb))


_PLACES = (
    *("file", "ema", "meta", "type", "version", "class_name", "state", "_init_args", "_init_kwargs", "_parameters"),
    *("_buffers", "_modules", "attribute", "option", "parameter", "module", "nn.Parameter", "bytes", "storage"),
    *("offset", "size", "stride"),
)


@pytest.mark.parametrize("place", _PLACES)
@pytest.mark.parametrize(
    "bomb", [b")" + b"2\x86" * 60, b")" + b"\x85" * 200_000, b"]\x8a\x10" + b"\x7f" * 16 + b"a", b"]2a" + b"N0" * 5]
)
def test_no_object_in_place_of_another_takes_long(tmp_path: Path, place: str, bomb: bytes) -> None:
    """Tuples with 2^60 entries, 200 000 levels of tuples, a huge number, and a list that holds itself."""
    _bomb(tmp_path / "m.pkl", place, bomb)
    said = ""
    start = time.perf_counter()
    try:
        read_edm_pickle(tmp_path / "m.pkl")
    except BundleError as error:
        said = str(error)
    assert time.perf_counter() - start < 5
    assert "\n" not in said
    assert len(said) < 300
    # Attributes that are no numbers are ignored; an option may be a list with a number.
    assert (said == "") == (place == "attribute" or (place == "option" and b"\x7f" in bomb))


def test_shared_entries_count_at_every_visit(tmp_path: Path) -> None:
    """Ten thousand modules that share one state of a thousand attributes, or one dictionary of absent parameters."""
    for state in (
        {f"a{i}": 1 for i in range(1000)},
        {"_parameters": {f"a{i}": None for i in range(1000)}},
        {"_init_kwargs": {f"a{i}": None for i in range(1000)}},
    ):
        meta = {"type": "class", "version": 6, "class_name": "A", "state": state}
        made = edm_files.Persistent("EDMPrecond", {})
        inner = edm_files.Call(edm_files._reconstruct_persistent_obj, meta)
        made.__dict__["_modules"] = {f"m{i}": inner for i in range(10_000)}
        _refused(tmp_path, edm_files.dumped({"ema": made}), "at most 1000000 entries")


def test_other_versions_names_and_arguments_are_refused(tmp_path: Path) -> None:
    def with_meta(**changes: Any) -> bytes:
        meta = {"type": "class", "version": 6, "module_src": "", "class_name": "EDMPrecond", "state": {}, **changes}
        return edm_files.with_meta(meta)

    assert isinstance(read_edm_pickle(_write(tmp_path, with_meta())), PickledModule)
    _refused(tmp_path, with_meta(version=5), "version 6")
    _refused(tmp_path, with_meta(type="function"), "class")
    _refused(tmp_path, with_meta(class_name="a b"), "name of a class")
    _refused(tmp_path, with_meta(state={"_init_args": (64, 3)}), "named options")
    _refused(tmp_path, with_meta(state={"_parameters": {"a.b": None}}), "plain names")
    _refused(tmp_path, with_meta(state={"_parameters": {"w": [1.0]}}), "must be a tensor")
    _refused(tmp_path, with_meta(state={"_modules": {"model": 3}}), "must be a module")


def test_damaged_files_raise_nothing_else_and_take_no_memory(tmp_path: Path) -> None:
    rng = random.Random(1)
    data = edm_files.dumped({"ema": edm_files.stored(edm_files.network("adm", model_channels=4))})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(150):
        hurt = bytearray(data)
        for _ in range(rng.randrange(1, 5)):
            hurt[rng.randrange(len(hurt))] = rng.randrange(256)
        with contextlib.suppress(BundleError):  # damage in the values goes unnoticed
            read_edm_pickle(_write(tmp_path, bytes(hurt)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KiB
