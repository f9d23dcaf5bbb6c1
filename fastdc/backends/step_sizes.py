"""How many cells a step holds if the user does not say so, and the sizes that a backend with fixed sizes runs."""

DEFAULT_BATCH = 128
"""Cells of a step on the CPU."""

DEVICE_SLOTS = 2
"""Slots of a network on a CUDA device: the host prepares one step while the device works on the other."""

ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of an element, by precision."""

_DEVICE_BATCH = 512

# Limits of a step on a device: operations (a few hundred milliseconds in float32 on a large GPU) and half of its
# memory. Per byte of a sample, the network of a text-to-image model such as Stable Diffusion takes ten million
# operations and keeps a few thousand bytes between layers; networks that work on pixels are cheaper.
_STEP_FLOPS = 2e13
_FLOPS_PER_BYTE = 1e7
_BYTES_BETWEEN_LAYERS = 4096


def device_batch(flops: float | None, *, sample_bytes: int, memory: int) -> int:
    """Default number of rows in a step on a CUDA device: enough to fill the device, and no more than it holds.

    The result is the largest power of two up to 512 for which a step costs at most 20 TFLOP and the steps in flight
    need at most half of the device's memory between layers, taken as 4096 bytes per byte of a sample. An unknown cost
    is taken as 10 MFLOP per byte of a sample. Steps with fewer cells run in smaller sizes (:func:`halves`), so a single
    image does not pay for a large batch.

    Args:
        flops: Floating-point operations of one evaluation; None if unknown.
        sample_bytes: Size of one network input, in bytes.
        memory: Memory of the device, in bytes.
    """
    affordable = _STEP_FLOPS / (flops or _FLOPS_PER_BYTE * sample_bytes)
    most = min(_DEVICE_BATCH, affordable, memory / (2 * DEVICE_SLOTS * sample_bytes * _BYTES_BETWEEN_LAYERS))
    return 1 << max(0, int(most).bit_length() - 1)


def halves(batch: int) -> tuple[int, ...]:
    """Step sizes from 1 to `batch`, increasing: the batch halved again and again, rounded up.

    A step padded to the next size has less than twice its cells.

    Args:
        batch: Largest size, at least 1.

    Returns:
        The sizes; the last is `batch`.

    Example:
        >>> from fastdc.backends import halves
        >>> halves(12)
        (1, 2, 3, 6, 12)
    """
    sizes = [batch]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return tuple(reversed(sizes))
