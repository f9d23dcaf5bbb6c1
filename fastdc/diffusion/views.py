"""Views of arrays, the form in which the kernels take them: any array that speaks DLPack, or plain memory."""

from typing import Any, TypeAlias

import numpy as np

from fastdc.diffusion import native
from fastdc.diffusion.native import TensorView
from fastdc.support import InputError, checks

Array: TypeAlias = Any
"""An array that speaks DLPack, or a TensorView."""

_CPU, _CUDA = 1, 2  # DLPack's device types
_DTYPES = ("float32", "float16", "bfloat16", "int32", "int64")
_LARGEST_WORD = 2**64 - 1


def view(array: Array) -> TensorView:
    """Makes a reusable view of a contiguous array, for hot loops: the array is inspected only once.

    The view keeps the array alive and sees its current contents. NumPy arrays of ml_dtypes' bfloat16 are supported.

    Args:
        array: A contiguous CPU or CUDA array of float32, float16, bfloat16, int32 or int64.

    Returns:
        The view. A TensorView is returned unchanged.

    Raises:
        InputError: The array is of another kind.

    Example:
        >>> fastdc.diffusion.kernels.view(np.zeros((2, 3), np.float32)).shape
        (2, 3)
    """
    return view_as(array, "array")


def view_memory(
    pointer: int, shape: tuple[int, ...], dtype: str, *, device: int | None = None, owner: object = None
) -> TensorView:
    """Makes a view of plain, row-major memory. The view speaks DLPack itself and never synchronises.

    Args:
        pointer: Address of the first element, a multiple of the element's size. It is not checked further.
        shape: Extents.
        dtype: Element type: "float32", "float16", "bfloat16", "int32" or "int64".
        device: Index of the CUDA device, or None for memory that the CPU can read.
        owner: Object that is kept alive as long as the view and everything made from it.

    Returns:
        The view.

    Raises:
        InputError: An argument is out of range.

    Example:
        >>> memory = np.arange(6, dtype=np.int32)
        >>> np.from_dlpack(fastdc.diffusion.kernels.view_memory(memory.ctypes.data, (2, 3), "int32", owner=memory))[1]
        array([3, 4, 5], dtype=int32)
    """
    extents = [checks.whole("an extent of shape", extent, low=0, high=2**63 - 1) for extent in shape]
    kind, index = (_CPU, 0) if device is None else (_CUDA, checks.whole("device", device, low=0, high=2**15 - 1))
    address = checks.whole("pointer", pointer, low=0, high=_LARGEST_WORD)
    return native.view_of_memory(address, extents, checks.one_of("dtype", dtype, _DTYPES), kind, index, owner)


def view_as(array: Array, name: str, *, copy: bool = False) -> TensorView:
    """Makes a view of the argument `name`. If `copy`, an array that is not contiguous or requires grad is copied first.

    Raises:
        InputError: The array cannot be viewed; the message begins with `name`.
    """
    if isinstance(array, TensorView):
        return array
    try:
        if copy and _is_torch(array):
            array = array.detach().contiguous()
        elif copy and isinstance(array, np.ndarray) and not (array.flags.c_contiguous and array.flags.aligned):
            array = array.copy()
        if isinstance(array, np.ndarray) and array.dtype.name == "bfloat16":
            return TensorView(array.view(np.uint16), "bfloat16")
        if _is_torch(array) and array.is_cuda:  # torch exports only arrays on its current device
            import torch

            with torch.cuda.device(array.device):
                return TensorView(array)
        return TensorView(array)
    except Exception as error:  # DLPack leaves it to the producer which exception it raises
        raise InputError(f"{name}: {str(error).partition(chr(10))[0]}") from None


def input_view(array: Array, name: str) -> TensorView:
    """Makes a view of the input `name`, of a copy if need be."""
    return array if isinstance(array, TensorView) else view_as(array, name, copy=True)


def empty_like(array: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """Makes an uninitialised array of the library and on the device of `array`; a NumPy array for CPU views.

    Raises:
        InputError: `array` is a view of a CUDA array: its library is unknown.
    """
    if _is_torch(array):
        import torch

        return torch.empty(shape, dtype=getattr(torch, dtype), device=array.device)
    if isinstance(array, TensorView) and array.is_cuda:
        raise InputError("out must be given for views of CUDA arrays")
    if dtype == "bfloat16":
        import ml_dtypes

        return np.empty(shape, dtype=ml_dtypes.bfloat16)
    return np.empty(shape, dtype=dtype)


def stream_of(stream: int | None, *arrays: Array) -> int:
    """Returns the CUDA stream handle: `stream`, else torch's current stream for CUDA tensors, else 0."""
    if stream is not None:
        return checks.whole("stream", stream, low=0, high=_LARGEST_WORD)
    for array in arrays:
        if _is_torch(array) and array.is_cuda:
            import torch

            return int(torch.cuda.current_stream(array.device).cuda_stream)
    return 0


def _is_torch(array: Array) -> bool:
    return type(array).__module__.partition(".")[0] == "torch"
