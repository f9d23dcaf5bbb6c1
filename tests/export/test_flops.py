"""Operations against counts by hand, torch's own counter, and loops that multiply one pair at a time."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from fastdc.support import InputError

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import onnx
import torch
from onnx import TensorProto, helper, parser
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fastdc.export.flops import infer_values, input_shapes, measure_flops, node_flops
from helpers import exported, tiny_graphs


def graph(text: str, *, opset: int = 23) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')


def operations(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> int:
    """Operations of all nodes, none of which is unknown."""
    values = infer_values(model, shapes)
    counts = [node_flops(node, values) for node in model.graph.node]
    assert None not in counts
    return sum(count or 0 for count in counts)


ONE_NODE = {
    # 2 * (2 * 6 * 4 * 4 results) * (4 / 2 channels per group) * 9
    "Conv": (
        "g (float[2,4,8,8] x, float[6,2,3,3] w, float[6] b) => (float[2,6,4,4] y)"
        "{ y = Conv<group=2, strides=[2,2], pads=[1,1,1,1]>(x, w, b) }",
        2 * (2 * 6 * 4 * 4) * 2 * 9,
    ),
    # each input goes to 3 channels through a 2 x 2 kernel
    "ConvTranspose": (
        "g (float[2,4,8,8] x, float[4,3,2,2] w) => (float[2,3,16,16] y) { y = ConvTranspose<strides=[2,2]>(x, w) }",
        2 * (2 * 4 * 8 * 8) * 3 * 4,
    ),
    "MatMul, broadcast": (
        "g (float[2,1,5,7] a, float[3,7,4] b) => (float[2,3,5,4] y) { y = MatMul(a, b) }",
        2 * 120 * 7,
    ),
    "MatMul, a vector": ("g (float[7] a, float[7,4] b) => (float[4] y) { y = MatMul(a, b) }", 2 * 4 * 7),
    "Gemm": (
        "g (float[5,7] a, float[4,7] b, float[4] c) => (float[5,4] y) { y = Gemm<transB=1>(a, b, c) }",
        2 * 20 * 7,
    ),
    "Gemm, transposed": ("g (float[7,5] a, float[7,4] b) => (float[5,4] y) { y = Gemm<transA=1>(a, b) }", 2 * 20 * 7),
    "Einsum": (
        'g (float[2,5,3] a, float[2,7,3] b) => (float[2,5,7] y) { y = Einsum<equation="bqd, bkd -> bqk">(a, b) }',
        2 * 2 * 5 * 7 * 3,
    ),
    "Einsum, dots": (
        'g (float[2,6,3] a, float[2,6,3,4] b) => (float[2,6,4] y) { y = Einsum<equation="...i,...ij->...j">(a, b) }',
        2 * 2 * 6 * 3 * 4,
    ),
    "Einsum, a permutation": ('g (float[2,5,3] a) => (float[3,2,5] y) { y = Einsum<equation="abc->cab">(a) }', 0),
    # scores: 2 * 4 heads * 5 queries * 7 keys * 3 wide each; mixing: the same with 6
    "Attention": (
        "g (float[2,4,5,3] q, float[2,4,7,3] k, float[2,4,7,6] v) => (float[2,4,5,6] y) { y = Attention(q, k, v) }",
        2 * 2 * 4 * 5 * 7 * (3 + 6),
    ),
    "Attention, heads inside": (
        "g (float[2,5,12] q, float[2,7,6] k, float[2,7,8] v) => (float[2,5,16] y)"
        "{ y = Attention<q_num_heads=4, kv_num_heads=2>(q, k, v) }",
        2 * 2 * 4 * 5 * 7 * (3 + 4),
    ),
    "elementwise": ("g (float[2,3,4] x, float[4] b) => (float[2,3,4] y) { y = Add(x, b) }", 24),
    "elementwise, widened": ("g (float[4] b, float[2,3,4] x) => (float[2,3,4] y) { y = Mul(b, x) }", 24),
    "reduction": ("g (float[2,3,4] x) => (float[2,3,1] y) { y = ReduceMax<keepdims=1>(x, axes) }", 24),
    "normalisation": (
        "g (float[2,8,4,4] x, float[8] s, float[8] b) => (float[2,8,4,4] y)"
        "{ y = GroupNormalization<num_groups=2>(x, s, b) }",
        256,
    ),
    "moved": ("g (float[2,3,4] x) => (float[4,3,2] y) { y = Transpose<perm=[2,1,0]>(x) }", 0),
    "of integers": ("g (int64[5] x) => (int64[5] y) { y = Add(x, x) }", 0),
    "compared": ("g (float[5] x) => (bool[5] y) { y = Less(x, x) }", 5),
}


@pytest.mark.parametrize("case", ONE_NODE)
def test_counts_by_hand(case: str) -> None:
    text, expected = ONE_NODE[case]
    model = graph(text)
    if "axes" in text:
        model.graph.initializer.append(helper.make_tensor("axes", TensorProto.INT64, [1], [2]))
    shapes = input_shapes(model)
    assert operations(model, shapes) == expected
    assert measure_flops(model, shapes).per_row == expected // next(iter(shapes.values()))[0]


def test_convolution_by_loop() -> None:
    """A loop over a convolution without padding, counting its multiplications and additions."""
    channels, results, kernel, side = 2, 3, 3, 5
    image, weight = np.ones((channels, side, side)), np.ones((results, channels, kernel, kernel))
    count = 0
    for o, i, j in itertools.product(range(results), range(side - kernel + 1), range(side - kernel + 1)):
        total = 0.0
        for c, di, dj in itertools.product(range(channels), range(kernel), range(kernel)):
            total += image[c, i + di, j + dj] * weight[o, c, di, dj]
            count += 2
        assert total == channels * kernel**2
    model = graph("g (float[1,2,5,5] x, float[3,2,3,3] w) => (float[1,3,3,3] y) { y = Conv(x, w) }")
    assert operations(model, input_shapes(model)) == count


# Products that torch computes twice and the graph once: DiT's code of (level, class), which its last layer needs again.
TWICE = {"dit": 2 * (256 * 16 + 16 * 16)}


def test_products_of_the_mlp_are_those_of_torch() -> None:
    check_products(tiny_graphs.denoiser("mlp"), tiny_graphs.graph("mlp"), twice=0)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["dit", "unet2d", "stable-diffusion"])
def test_products_of_a_family_are_those_of_torch(family: str, shared: Path) -> None:
    check_products(exported.denoiser_of(family, shared), exported.graph_of(family, shared), twice=TWICE.get(family, 0))


def check_products(made: tiny_graphs.Denoiser, model: onnx.ModelProto, *, twice: int) -> None:
    feeds = [torch.from_numpy(array) for array in made.feeds(2).values()]
    feeds[2] = feeds[2][:2]
    # torch's counter does not know fused attention on the CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        made.module(*feeds)
    shapes = input_shapes(model, batch=2, conditions=3)
    got = measure_flops(model, shapes)
    assert got.per_row == operations(model, shapes) // 2
    assert got.products == counter.get_total_flops() // 2 - twice
    assert got.products < got.per_row < 1.2 * got.products
    # Beside the weights: frequencies of the level, a table of positions, and scalars.
    weights = sum(parameter.numel() for parameter in made.module.parameters())
    assert weights <= got.parameters < weights + 1000


def test_external_weights_count() -> None:
    """Neither their values nor their file are looked at."""
    model = tiny_graphs.graph("mlp")
    shapes = input_shapes(model, batch=1)
    before = measure_flops(model, shapes)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) >= 1024:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="nowhere.data")
    assert measure_flops(model, shapes) == before


def test_shapes_that_follow_from_sizes() -> None:
    """Reshape to a target that the graph computes."""
    text = """g (float[batch,4,6] x) => (float[batch,24] y) {
        shape = Shape(x)
        zero = Constant<value_ints=[0]>()
        first = Gather(shape, zero)
        rest = Constant<value_ints=[24]>()
        target = Concat<axis=0>(first, rest)
        flat = Reshape(x, target)
        y = Sigmoid(flat)
    }"""
    model = graph(text)
    values = infer_values(model, input_shapes(model, batch=5))
    assert values["flat"].shape == (5, 24)
    assert operations(model, {"x": (5, 4, 6)}) == 120


def test_operations_on_unknown_shapes_are_unknown() -> None:
    """As many rows as are not zero: their number is unknown."""
    model = graph("g (float[5] x) => (float[n] y) { z = NonZero(x) f = Cast<to=1>(z) y = Exp(f) }")
    shapes = input_shapes(model, n=1)
    values = infer_values(model, shapes)
    assert [node_flops(node, values) for node in model.graph.node] == [0, 0, None]
    assert measure_flops(model, shapes).per_row == 0


def test_inputs_are_checked() -> None:
    model = graph("g (float[batch,4] x) => (float[batch,4] y) { y = Exp(x) }")
    with pytest.raises(InputError, match="input x has the dimension 'batch', given are pairs"):
        input_shapes(model, pairs=2)
    with pytest.raises(InputError, match="input x needs a shape of 2 dimensions, got None"):
        infer_values(model, {})
    with pytest.raises(InputError, match="input x needs a shape of 2 dimensions"):
        infer_values(model, {"x": (4,)})
