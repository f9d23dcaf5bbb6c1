"""A split network equals the whole, computes every node once, and saves what the count of operations says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastdc.support import BackendError, InputError

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import onnx
from onnx import TensorProto, numpy_helper, parser

from fastdc.export import split as split_module
from fastdc.export.flops import input_shapes, measure_flops
from fastdc.export.split import Split, SplitReport, check_split, split_graph
from fastdc.export.storage import external
from fastdc.export.verify import tolerance
from helpers import exported, tiny_graphs

# Tiny layers have fewer operations per byte than any real network, so rows are cheap to fetch here.
CHEAP = 0.5

# Tolerances are relative to the largest output; that of each tiny network is below this.
LARGEST = 8


def parts_of(split: Split) -> Iterator[tuple[str, onnx.ModelProto]]:
    for name, part in (("prefix", split.prefix), ("classes", split.classes), ("rest", split.rest)):
        if part is not None:
            yield name, part


def behind(model: onnx.ModelProto) -> dict[str, frozenset[str]]:
    """For each named node, the inputs of the graph that its numbers depend on: a walk that stops at ``Shape``."""
    seen: dict[str, frozenset[str]] = {value.name: frozenset([value.name]) for value in model.graph.input}
    nodes = {}
    for node in model.graph.node:
        of = frozenset().union(*(seen.get(name, frozenset()) for name in node.input))
        of = frozenset() if node.op_type == "Shape" else of
        seen.update(dict.fromkeys(node.output, of))
        nodes[node.name] = of
    return nodes


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return input_shapes(model, batch=1, pairs=1, conditions=1)


def check_structure(model: onnx.ModelProto, split: Split) -> None:
    """Each node that depends on data is in exactly one part, and that part has its inputs."""
    whole = behind(model)
    places: dict[str, list[str]] = {}
    for name, part in parts_of(split):
        onnx.checker.check_model(part, full_check=True)
        for node in part.graph.node:
            places.setdefault(node.name, []).append(name)
    image = {"sample", "timestep"}
    for node, inputs in whole.items():
        if not inputs:
            continue
        (place,) = places[node]
        if place == "prefix":
            assert inputs <= image, node
        elif place == "classes":
            assert not inputs & image, node
    measured = {name: measure_flops(part, shapes_of(part)).per_row for name, part in parts_of(split)}
    for name, part in parts_of(split):
        # Copies of nodes that depend on no data are in no part's count.
        assert measured[name] == pytest.approx(getattr(split.report, name), rel=0.01, abs=200), part.graph.name
    report = split.report
    assert report.prefix + report.classes + report.rest == report.total


def test_the_mlp_equals_its_parts() -> None:
    check_equal(tiny_graphs.denoiser("mlp"), tiny_graphs.graph("mlp"), class_part=False)


@pytest.mark.slow
@pytest.mark.parametrize("family", exported.PUBLISHED)
def test_every_family_equals_its_parts(family: str, shared: Path) -> None:
    made, model = exported.denoiser_of(family, shared), exported.graph_of(family, shared)
    check_equal(made, model, class_part=family.startswith("stable"))


def check_equal(made: tiny_graphs.Denoiser, model: onnx.ModelProto, *, class_part: bool) -> None:
    """Outputs of shuffled cells, several classes per pair; types, structure and counts of the parts."""
    split = split_graph(model, flops_per_byte=CHEAP)
    assert split is not None
    check_structure(model, split)
    assert check_split(model, split, made.feeds(3)) <= LARGEST * tolerance(made.module)
    assert (split.classes is not None) == class_part
    inputs = {name: [value.name for value in part.graph.input] for name, part in parts_of(split)}
    assert inputs["prefix"] == ["sample", "timestep"]
    assert inputs["rest"][:2] == ["pair", "class_labels"]
    assert all(name.startswith(("pair.", "class.")) for name in inputs["rest"][2:])
    given = [value.name for name, part in parts_of(split) if name != "rest" for value in part.graph.output]
    assert inputs["rest"][2:] == given


@pytest.mark.parametrize("opset", [20, 23])
def test_other_opsets(opset: int) -> None:
    """20 has no GroupNormalization, 23 has one operator for attention."""
    made = tiny_graphs.denoiser("attending")
    model = tiny_graphs.graph("attending", opset=opset)
    kinds = {node.op_type for node in model.graph.node}
    assert ("Attention" in kinds, "GroupNormalization" in kinds) == (opset == 23, opset == 23)
    split = split_graph(model, flops_per_byte=CHEAP)
    assert split is not None
    check_structure(model, split)
    assert check_split(model, split, made.feeds(2)) <= LARGEST * tolerance(made.module)
    other = split_graph(tiny_graphs.graph("attending"), flops_per_byte=CHEAP)
    assert other is not None
    assert split.report.saving(10) == pytest.approx(other.report.saving(10), rel=0.1)


def test_half_precision() -> None:
    """Parts hand on values in the type in which they compute; ``timestep`` stays float32."""
    model = tiny_graphs.graph("mlp", precision="float16")
    split = split_graph(model, flops_per_byte=CHEAP)
    assert split is not None
    assert split.prefix is not None
    half = TensorProto.FLOAT16
    assert {value.type.tensor_type.elem_type for value in split.prefix.graph.output} == {half}
    feeds = tiny_graphs.denoiser("mlp").feeds(3)
    feeds["sample"] = feeds["sample"].astype(np.float16)
    assert check_split(model, split, feeds) <= 2.0**-11 * 64  # roundings of a hundred products of numbers of size one


def test_external_weights_stay_where_they_are(tmp_path: Path) -> None:
    """The parts refer to the places of the whole graph, and hold no large weights themselves."""
    model = tiny_graphs.graph("mlp")
    external(model, tmp_path / "denoiser.data")
    split = split_graph(model, flops_per_byte=CHEAP)
    assert split is not None
    places = {tensor.name: [entry.value for entry in tensor.external_data] for tensor in model.graph.initializer}
    used = [tensor for _, part in parts_of(split) for tensor in part.graph.initializer if tensor.external_data]
    assert len(used) > 3
    assert all([entry.value for entry in tensor.external_data] == places[tensor.name] for tensor in used)
    assert sum(part.ByteSize() for _, part in parts_of(split)) < (tmp_path / "denoiser.data").stat().st_size / 2
    made = tiny_graphs.denoiser("mlp")
    assert check_split(model, split, made.feeds(3), folder=tmp_path) <= LARGEST * tolerance(made.module)


def test_the_same_graph_gives_the_same_bytes() -> None:
    first, second = (split_graph(tiny_graphs.graph("mlp"), flops_per_byte=CHEAP) for _ in range(2))
    assert first is not None
    assert second is not None
    pairs = zip(parts_of(first), parts_of(second), strict=True)
    assert all(a.SerializeToString() == b.SerializeToString() for (_, a), (_, b) in pairs)


# Graphs by hand; WEIGHTS holds the shapes of their weights.
HEAD = "(float[batch,4,8,8] sample, float[batch] timestep, int64[batch] class_labels"
CODES = """
    code = Gather(classes, class_labels)
    said = Unsqueeze(code, sides)
    level = Unsqueeze(timestep, last)
    heard = MatMul(level, frequencies)
    when = Unsqueeze(heard, sides)
"""
WEIGHTS = {"classes": (5, 16), "frequencies": (1, 16), "w_in": (16, 4, 3, 3), "w_mid": (16, 16, 3, 3)}
WEIGHTS |= {"w_deep": (16, 16, 3, 3), "w_out": (4, 16, 3, 3), "w_text": (12, 16), "one_hot": (5, 4)}


def by_hand(body: str, *, more_inputs: str = "", codes: str = CODES) -> onnx.ModelProto:
    """A graph with 3 x 3 convolutions of fixed random weights; "conv" is a convolution that keeps the sides."""
    body = (codes + body).replace("conv(", "Conv<pads=[1,1,1,1]>(")
    text = (
        f'<ir_version: 10, opset_import: ["" : 20]> g {HEAD}{more_inputs}) => (float[batch,4,8,8] output) {{ {body} }}'
    )
    model = parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in WEIGHTS.items():
        scale = np.prod(shape[1:]) ** -0.5
        values = rng.normal(scale=scale, size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    for name, axes in {"sides": [2, 3], "last": [1]}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(axes), name))
    return model


def feeds_by_hand(**tables: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(1)
    return {
        "sample": rng.standard_normal((3, 4, 8, 8), dtype=np.float32),
        "timestep": rng.standard_normal(3, dtype=np.float32),
        "class_labels": np.arange(5),
        **tables,
    }


BLOCK = """
    h = conv(sample, w_in)
    a = Sigmoid(h)
    b = conv(a, w_mid)
    c = Add(b, when)
    d = Add(c, said)
    e = conv(d, w_deep)
    f = Add(e, h)
    output = conv(f, w_out)
"""


def test_shares_by_hand() -> None:
    """A residual block: everything before the sum with the class runs ahead, and the skip connection is fetched too."""
    split = split_graph(by_hand(BLOCK))
    assert split is not None
    grid = 16 * 8 * 8
    narrow, wide = 2 * grid * 4 * 9, 2 * grid * 16 * 9
    prefix = narrow + grid + wide + grid + 2 * 16  # w_in, Sigmoid, w_mid, the sum with the level; the level's features
    rest = grid + wide + grid + 2 * (4 * 64) * 16 * 9
    assert split.report == SplitReport(prefix + rest, prefix, 0, rest, 2 * 4 * grid, 0)
    assert split.prefix is not None
    assert len(split.prefix.graph.output) == 2
    assert split.report.cell(4) == rest + prefix / 4
    assert split.report.saving(1) == 0
    assert split.report.saving(10) == pytest.approx(0.9 * prefix / (prefix + rest))
    assert check_split(by_hand(BLOCK), split, feeds_by_hand()) < 1e-5


def test_an_elementwise_function_is_not_worth_a_fetch() -> None:
    """h and Sigmoid(h) are both read with the class: one of them is fetched, the other made again."""
    body = """
        h = conv(sample, w_in)
        a = Sigmoid(h)
        b = Add(h, said)
        c = Mul(a, b)
        d = Add(c, when)
        output = conv(d, w_out)
    """
    split = split_graph(by_hand(body))
    assert split is not None
    assert split.prefix is not None
    assert len(split.prefix.graph.output) == 2  # h, and the level's features
    assert "Sigmoid" in [node.op_type for node in split.rest.graph.node]
    free = split_graph(by_hand(body), flops_per_byte=0.0)
    assert free is not None
    assert "Sigmoid" not in [node.op_type for node in free.rest.graph.node]


def test_no_split_if_the_class_enters_first() -> None:
    body = """
        g = Gather(one_hot, class_labels)
        plane = Unsqueeze(g, sides)
        x = Add(sample, plane)
        h = conv(x, w_in)
        hh = Add(h, when)
        output = conv(hh, w_out)
    """
    assert split_graph(by_hand(body)) is None


def test_no_split_if_the_class_does_not_matter() -> None:
    assert split_graph(by_hand("h = conv(sample, w_in) hh = Add(h, when) output = conv(hh, w_out)")) is None


def test_no_split_if_fetching_costs_more() -> None:
    assert split_graph(by_hand(BLOCK), flops_per_byte=1e6) is None


TEXT = """
    text = Gather(table, class_labels)
    key = MatMul(text, w_text)
    lines = ReduceSum<keepdims=0>(key, last)
    said = Unsqueeze(lines, sides)
    level = Unsqueeze(timestep, last)
    heard = MatMul(level, frequencies)
    when = Unsqueeze(heard, sides)
"""


def test_the_limit_of_the_bytes_of_a_condition() -> None:
    """A text of a thousand lines: the sums of its lines are stored; with no bytes to spare, nothing is."""
    model = by_hand(BLOCK, codes=TEXT, more_inputs=", float[conditions,1000,12] table")
    split = split_graph(model)
    assert split is not None
    assert split.classes is not None
    assert split.report.classes == 2 * 1000 * 12 * 16 + 1000 * 16
    assert split.report.class_bytes == 16 * 4
    table = np.random.default_rng(2).standard_normal((5, 1000, 12)).astype(np.float32)
    assert check_split(model, split, feeds_by_hand(table=table)) < 1e-4  # sums of a thousand
    without = split_graph(model, class_bytes=63)
    assert without is not None
    assert without.classes is None
    assert [value.name for value in without.rest.graph.input][-1] == "table"
    assert without.report.prefix == split.report.prefix
    assert check_split(model, without, feeds_by_hand(table=table)) < 1e-4


def test_classes_alone() -> None:
    """The class is added to the image at once, but the text is long: the rest takes the image itself."""
    body = """
        narrow = Gather(one_hot, class_labels)
        s = ReduceMean<keepdims=1>(said, every)
        x = Add(sample, s)
        h = conv(x, w_in)
        hh = Add(h, when)
        output = conv(hh, w_out)
    """
    model = by_hand(body, codes=TEXT, more_inputs=", float[conditions,1000,12] table")
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 3]), "every"))
    split = split_graph(model)
    assert split is not None
    assert split.prefix is None
    assert [value.name for value in split.rest.graph.input] == ["sample", "timestep", "class_labels", "class.0"]
    table = np.random.default_rng(2).standard_normal((5, 1000, 12)).astype(np.float32)
    assert check_split(model, split, feeds_by_hand(table=table)) < 1e-4


def test_a_table_read_whole_is_left_alone() -> None:
    """Attention over the whole table by the image: no row of it belongs to a cell."""
    body = """
        whole = MatMul(class_table, w_text)
        turned = Transpose<perm=[1,0]>(whole)
        q = ReduceMean<keepdims=0>(d, sides)
        scores = MatMul(q, turned)
        most = ReduceMax<keepdims=1>(scores, last)
        wide = Unsqueeze(most, sides)
        dd = Mul(d, wide)
        output = conv(dd, w_out)
    """
    start = "h = conv(sample, w_in) b = conv(h, w_mid) c = Add(b, when) d = Add(c, said)"
    model = by_hand(start + body, more_inputs=", float[conditions,12] class_table")
    split = split_graph(model)
    assert split is not None
    assert split.classes is None
    table = np.random.default_rng(2).standard_normal((5, 12)).astype(np.float32)
    assert check_split(model, split, feeds_by_hand(class_table=table)) < 1e-4


def test_the_check_sees_rows_that_depend_on_each_other() -> None:
    """The rows of a network that sums over the batch are not independent: its split is wrong, and the check sees it."""
    body = BLOCK.replace("c = Add(b, when)", "m = ReduceMean<keepdims=1>(b, first) bb = Sub(b, m) c = Add(bb, when)")
    model = by_hand(body)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "first"))
    split = split_graph(model)
    assert split is not None
    feeds = feeds_by_hand()
    assert check_split(model, split, feeds) < 1e-4  # every pair as often as every other: the mean is the same
    shifted = BLOCK.replace("c = Add(b, when)", "m = CumSum(b, zero) c = Add(m, when)")
    model = by_hand(shifted)
    model.graph.initializer.append(numpy_helper.from_array(np.array(0), "zero"))
    split = split_graph(model)
    assert split is not None
    assert check_split(model, split, feeds) > 0.1


def test_the_check_sees_another_network() -> None:
    model = by_hand(BLOCK)
    split = split_graph(model)
    assert split is not None
    for tensor in split.rest.graph.initializer:
        if tensor.name == "w_out":
            tensor.CopyFrom(numpy_helper.from_array(1.1 * numpy_helper.to_array(tensor), "w_out"))
    assert check_split(model, split, feeds_by_hand()) > 0.01


def test_a_part_that_cannot_run_is_refused_in_one_line() -> None:
    model = by_hand(BLOCK)
    split = split_graph(model)
    assert split is not None
    split.rest.graph.node[-1].op_type = "NoSuchOperator"
    with pytest.raises(BackendError, match="cannot run a part of the network") as caught:
        check_split(model, split, feeds_by_hand())
    assert "\n" not in str(caught.value)


def test_other_graphs_are_refused() -> None:
    model = by_hand(BLOCK)
    model.graph.input[0].name = "pixels"
    with pytest.raises(InputError, match=r"a denoiser's graph has inputs sample, .* got pixels, timestep"):
        split_graph(model)


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any price of a fetch, the parts give what the whole gives, and no node is lost or doubled."""
    monkeypatch.setattr(split_module, "_LEAST_SAVING", 0.0)
    monkeypatch.setattr(split_module, "_LEAST_PART", 0.0)
    rng = np.random.default_rng(seed)
    model = tiny_graphs.random_graph(rng)
    split = split_graph(model, flops_per_byte=float(rng.choice([0.0, 0.1, 1.0, 4.0])))
    assert split is not None
    check_structure(model, split)
    feeds: dict[str, npt.NDArray[Any]] = {
        "sample": rng.standard_normal((3, 2, 4), dtype=np.float32),
        "timestep": rng.standard_normal(3, dtype=np.float32),
        "class_labels": np.arange(4),
        "table": rng.standard_normal((4, 8), dtype=np.float32),
    }
    # Products of up to twenty values may grow: rounding is relative to the output.
    assert check_split(model, split, feeds) <= 1e-5 * max(1.0, magnitude(model, feeds))


def magnitude(model: onnx.ModelProto, feeds: dict[str, npt.NDArray[Any]]) -> float:
    from onnx.reference import ReferenceEvaluator

    worst = 0.0
    for label in feeds["class_labels"]:
        one = feeds | {"class_labels": np.full(len(feeds["sample"]), label)}
        worst = max(worst, float(np.abs(ReferenceEvaluator(model).run(None, one)[0]).max()))
    return worst
