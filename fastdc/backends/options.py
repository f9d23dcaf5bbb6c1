"""Options of a network, the same for every backend."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from fastdc.support import InputError, checks, shown

PRECISIONS = ("float32", "float16", "bfloat16")
"""Element types that a network may have as its input and output."""

MAX_BATCH = 65_536
MAX_THREADS = 1024


@dataclass(frozen=True)
class NetworkOptions:
    """How to run a network. None and "auto" leave the choice to the backend.

    Attributes:
        device: "auto", "cpu", "cuda" or "cuda:N", or the torch.device of that name.
        precision: Element type of the network's input and output: "auto" or one of :data:`PRECISIONS`.
        batch: Largest number of cells in a step, 1 to 65,536. Default: 128 on the CPU; on a CUDA device as many as its
            memory and the network's cost allow.
        threads: Number of CPU threads, 1 to 1024 (CPU backends only).
        compile: Whether the torch backend compiles its module with torch.compile.
        graphs: Whether backends that can do so capture steps on a CUDA device into CUDA graphs.
        tf32: Whether a float32 network on a CUDA device may round the factors of products to TF32, 10 bits.
        provider_options: Options of ONNX Runtime's execution provider on a CUDA device, by the names in its
            documentation; they override the options that fastdc sets. "provider" chooses the provider: "cuda" (the
            default) or "tensorrt".

    Raises:
        InputError: An option has another type or lies outside its range.
    """

    device: str = "auto"
    precision: str = "auto"
    batch: int | None = None
    threads: int | None = None
    compile: bool = False
    graphs: bool = True
    tf32: bool = False
    provider_options: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", checks.device_text(self.device))
        checks.one_of("precision", self.precision, ("auto", *PRECISIONS))
        for name, value, most in (("batch", self.batch, MAX_BATCH), ("threads", self.threads, MAX_THREADS)):
            if value is not None:
                checks.whole(name, value, high=most)
        if not isinstance(self.device, str) or not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", self.device):
            raise InputError(f"device must be auto, cpu, cuda or cuda:N, got {shown(self.device)}")
        for name, flag in (("compile", self.compile), ("graphs", self.graphs), ("tf32", self.tf32)):
            checks.flag(name, flag)
        given = self.provider_options
        if not isinstance(given, Mapping) or not all(isinstance(word, str) for pair in given.items() for word in pair):
            raise InputError(f"provider_options must be a mapping of strings to strings, got {shown(given, 200)}")
