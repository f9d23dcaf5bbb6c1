"""Bounds of the whole numbers that nodes have as attributes.

Libraries divide by some of them and reserve memory by others, not always after a check of their own.
"""

from collections.abc import Mapping
from typing import Any

_SMALL, _LARGE = 64, 2**20
_COUNT, _MARGIN, _PLACE, _FLAG, _ANY = (1, _LARGE), (0, _LARGE), (-_SMALL, _SMALL), (0, 1), (-(2**63), 2**63 - 1)

_BOUNDS: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("group", "num_groups", "num_heads", "q_num_heads", "kv_num_heads"), _COUNT),
    **dict.fromkeys(("strides", "dilations", "kernel_shape", "blocksize", "num_outputs", "output_shape"), _COUNT),
    **dict.fromkeys(("pads", "output_padding", "rotary_embedding_dim", "block_size"), _MARGIN),
    **dict.fromkeys(("axis", "axes", "perm", "batch_dims", "batch_axis"), _PLACE),
    **dict.fromkeys(("keepdims", "transA", "transB", "ceil_mode", "allowzero", "training_mode", "is_causal"), _FLAG),
    **dict.fromkeys(("count_include_pad", "storage_order", "exclusive", "reverse", "fmod", "interleaved"), _FLAG),
    **dict.fromkeys(("to", "dtype", "output_dtype", "stash_type", "softmax_precision"), (0, _SMALL)),
    "p": (1, 2),
    "qk_matmul_output_mode": (0, 3),
    **dict.fromkeys(("starts", "ends", "start", "end", "value_int", "value_ints", "shape", "split"), _ANY),
}
"""The least and the largest number of an attribute, or of each number of a list. Starts, ends, shapes and parts are
numbers that the rules of :mod:`fastdc.backends.onnx.shapes` calculate with; ends are often the largest number."""

_OTHERS = (-(2**31), 2**31 - 1)


def check_whole_numbers(what: str, attributes: Mapping[str, Any]) -> None:
    """Refuses whole numbers that no network needs.

    Args:
        what: The node, for messages.
        attributes: Its attributes.

    Raises:
        ValueError: A number is out of its bounds.
    """
    for name, given in attributes.items():
        least, largest = _BOUNDS.get(name, _OTHERS)
        for number in given if isinstance(given, list) else [given]:
            if isinstance(number, int) and not least <= number <= largest:
                raise ValueError(f"{what} has the {name:.80} {number}, expected from {least} to {largest}")
