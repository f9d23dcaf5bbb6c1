"""Small graphs of single operators, and edits of their whole numbers."""

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from fastdc import FastdcError
from fastdc.backends.onnx.shapes import SHAPE_OF
from fuzzing.mutations import change_protobuf

OPSET = 23
LARGEST_SEED = 20_000  # bytes
NUMBERS = (0, 0, 0, 0, -1, -1, 1, 2, 3, 7, 2**31, 2**31 - 1, -(2**31), 2**53 + 1, 2**62, 2**63 - 1, -(2**63))


def seeds_of_operators(read: Callable[[bytes], Any]) -> list[bytes]:
    """ONNX's smallest test case of each operator that `read` takes, with its inputs in the graph.

    Raises:
        RuntimeError: There is none for most operators.
    """
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = collect_testcases(None)
    candidates: dict[str, list[bytes]] = {name: [] for name in SHAPE_OF}
    for case in cases:
        model = case.model
        if model is None or len(model.graph.node) != 1 or model.graph.node[0].op_type not in candidates:
            continue
        given = case.data_sets[0][0]
        if model.functions or not all(isinstance(one, np.ndarray | np.generic) for one in given):
            continue
        made = onnx.ModelProto()
        made.CopyFrom(model)
        made.ir_version, made.opset_import[0].version = 10, min(OPSET, model.opset_import[0].version)
        for value, array in zip(model.graph.input, given, strict=True):
            made.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), value.name))
        del made.graph.input[:]
        candidates[model.graph.node[0].op_type].append(made.SerializeToString())
    seeds = [seed for several in candidates.values() for seed in _first_read(several, read)]
    if len(seeds) < len(SHAPE_OF) * 3 // 4:
        raise RuntimeError(f"only {len(seeds)} of {len(SHAPE_OF)} operators have a seed")
    return seeds


def _first_read(candidates: list[bytes], read: Callable[[bytes], Any]) -> list[bytes]:
    for seed in sorted(candidates, key=len):
        if len(seed) > LARGEST_SEED:
            break
        try:
            read(seed)
        except FastdcError:
            continue
        return [seed]
    return []


def change_operator(data: bytes, rng: random.Random) -> bytes:
    """Another number in a node's attributes or in its inputs, or another edit of the message."""
    import onnx

    if rng.random() < 0.2:
        return change_protobuf(data, rng)
    model = onnx.load_from_string(data)
    (node,) = model.graph.node
    for _ in range(rng.choice((1, 1, 2, 3))):
        whole = [one for one in model.graph.initializer if one.data_type in (6, 7) and one.raw_data]
        if whole and rng.random() < 0.5:
            _change_tensor(rng.choice(whole), rng)
        else:
            _change_attribute(node, rng)
    return bytes(model.SerializeToString())


def _change_tensor(tensor: Any, rng: random.Random) -> None:
    kind: Any = np.int64 if tensor.data_type == 7 else np.int32
    numbers = np.frombuffer(tensor.raw_data, kind).copy()
    number = rng.choice([number for number in NUMBERS if np.iinfo(kind).min <= number <= np.iinfo(kind).max])
    numbers[rng.randrange(len(numbers))] = number
    tensor.raw_data = numbers.tobytes()


def _change_attribute(node: Any, rng: random.Random) -> None:
    """Any attribute of whole numbers that the operator has by its schema."""
    import onnx

    schema = onnx.defs.get_schema(node.op_type, OPSET)
    kinds = (onnx.defs.OpSchema.AttrType.INT, onnx.defs.OpSchema.AttrType.INTS)
    wanted = (onnx.AttributeProto.INT, onnx.AttributeProto.INTS)
    names = sorted(name for name, one in schema.attributes.items() if one.type in kinds)
    if not names:
        return
    name = rng.choice(names)
    kind = schema.attributes[name].type
    present = [one for one in node.attribute if one.name == name]
    if kind == kinds[0]:
        value: Any = rng.choice(NUMBERS)
    else:
        value = list(present[0].ints) if present else [1] * rng.choice((1, 2, 4))
        if value:
            value[rng.randrange(len(value))] = rng.choice(NUMBERS)
    for one in present:
        node.attribute.remove(one)
    node.attribute.append(onnx.helper.make_attribute(name, value, attr_type=wanted[kinds.index(kind)]))
