"""Shapes of what windows make that slide over spatial dimensions: convolutions and pooling."""

from collections.abc import Sequence

from fastdc.backends.onnx.node import Node, Shape, positive


def _settings(node: Node, rank: int, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations and pads, each as long as the spatial dimensions ask for."""
    strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    pads = node.get("pads", [0] * 2 * rank)
    if (len(strides), len(dilations), len(pads), len(kernel)) != (rank, rank, 2 * rank, rank):
        raise ValueError("strides, dilations or pads")
    if list(node.get("kernel_shape", kernel)) != list(kernel):
        raise ValueError("kernel_shape")
    return strides, dilations, pads


def _window(node: Node, sizes: Shape, kernel: Sequence[int]) -> Shape:
    """Spatial dimensions of what a window gives that slides over spatial dimensions."""
    rank = len(sizes)
    strides, dilations, pads = _settings(node, rank, kernel)
    automatic = node.get("auto_pad", b"NOTSET")
    found = []
    for place, size in enumerate(sizes):
        if automatic in (b"SAME_UPPER", b"SAME_LOWER"):
            found.append(-(-size // strides[place]))
            continue
        room = size + (0 if automatic == b"VALID" else pads[place] + pads[place + rank])
        room -= dilations[place] * (kernel[place] - 1) + 1
        steps = room // strides[place]
        if node.get("ceil_mode", 0):  # one more, unless it would begin behind the end
            steps = -(-room // strides[place])
            steps -= steps * strides[place] >= size + pads[place]
        found.append(steps + 1)
    return positive(found)


def _kernel(node: Node) -> tuple[Shape, Shape]:
    """Shapes of the sample and of the kernels of a convolution."""
    given, kernel = node.shape(0), node.shape(1)
    if min(kernel) < 1 or len(given) != len(kernel) or len(given) < 3:
        raise ValueError("the kernel does not fit")
    inner, group = kernel[1], node.get("group", 1)
    if node.operator == "ConvTranspose":
        fits = given[1] == kernel[0] and given[1] % group == 0
    else:
        fits = given[1] == inner * group and kernel[0] % group == 0
    if not fits:
        raise ValueError("the groups do not fit")
    return given, kernel


def conv(node: Node) -> Shape:
    """Shape of a convolution."""
    given, kernel = _kernel(node)
    return (given[0], kernel[0], *_window(node, given[2:], kernel[2:]))


def conv_transpose(node: Node) -> Shape:
    """Shape of a transposed convolution."""
    given, kernel = _kernel(node)
    rank = len(given) - 2
    strides, dilations, pads = _settings(node, rank, kernel[2:])
    more, sizes = node.get("output_padding", [0] * rank), node.get("output_shape", None)
    if sizes is None and node.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER"):
        sizes = [size * stride for size, stride in zip(given[2:], strides, strict=True)]
    if sizes is None:
        sizes = [
            strides[i] * (given[i + 2] - 1)
            + more[i]
            + (kernel[i + 2] - 1) * dilations[i]
            + 1
            - pads[i]
            - pads[i + rank]
            for i in range(rank)
        ]
    return (given[0], kernel[1] * node.get("group", 1), *positive(sizes))


def pool(node: Node) -> Shape:
    """Shape of what pooling makes."""
    given = node.shape()
    return (*given[:2], *_window(node, given[2:], node.attributes["kernel_shape"]))
