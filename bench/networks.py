"""Time per evaluation on four sides: torch eager, torch.compile, ONNX Runtime in float32 and in int8.

    python bench/networks.py [--networks UNet2D DiT-S/2] [--batches 1 16 128] [--threads 1] [--quick]

torch runs as its users would set it up: in inference mode, with weights and samples in channels_last if that is faster,
and compiled for the batch. ONNX Runtime runs as in the onnx backend, with the denoiser as a whole; bench/split.py
measures the parts. int8 is that of ``fastdc export --precision int8``, calibrated on random images, on which its speed
does not depend. Sides take turns within a round; a time is the median step divided by its number of cells.

The last columns show the distance from torch eager: the largest difference of an output over the largest output.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common import parser, print_table, ratio, save, time_sides
from fastdc.backends import AbstractSlot, NetworkOptions, OnnxNetwork
from fastdc.bundle import Bundle
from fastdc.sources import Source, WithTables
from tables import announced, note
from typical import CONDITIONS, NETWORKS, exported, open_network, quantised

BATCHES = (1, 16, 128)
SIDES = ("torch eager", "torch.compile", "onnx fp32", "onnx int8")


class Torch:
    """A network in torch with its inputs.

    Args:
        source: The model.
        inputs: The tensors sample, timestep and class_labels.
        channels_last: Whether weights and samples have the layout channels_last.
        compiled: Whether to use torch.compile.
    """

    def __init__(
        self, source: Source, inputs: tuple[Tensor, Tensor, Tensor], *, channels_last: bool, compiled: bool = False
    ) -> None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        module: Any = WithTables(source.denoiser, source.tables)  # nn.Module.to is declared without memory_format
        self.module: Callable[..., Any] = module.to(memory_format=layout)
        sample, *rest = inputs
        self.inputs = (sample.to(memory_format=layout), *rest)
        self.compile_seconds = 0.0
        if compiled:
            torch._dynamo.reset()
            self.module = torch.compile(self.module, dynamic=False)
            start = time.perf_counter()
            self()
            self.compile_seconds = time.perf_counter() - start

    def __call__(self) -> Tensor:
        with torch.inference_mode():
            output: Tensor = self.module(*self.inputs)
        return output


def inputs_of(source: Source, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of a step: noise, levels from the whole schedule, all classes in turn."""
    rng = np.random.default_rng(0)
    sample = rng.standard_normal((batch, *source.model.sample_shape)).astype(np.float32)
    timestep = source.model.schedule.levels(rng.random(batch)).timestep.astype(np.float32)
    labels = np.arange(batch, dtype=np.int64) % CONDITIONS
    return torch.from_numpy(sample), torch.from_numpy(timestep), torch.from_numpy(labels)


def slot_of(bundle: Bundle, inputs: tuple[Tensor, Tensor, Tensor], threads: int) -> AbstractSlot:
    """A slot of the onnx backend that is filled with a step."""
    batch = len(inputs[0])
    options = NetworkOptions(batch=batch, threads=threads)
    slot = OnnxNetwork(bundle, options, intra_op_threads=threads, split=False).slots[0]
    for buffer, values in zip((slot.sample, slot.timestep, slot.class_labels), inputs, strict=True):
        buffer[:] = values.numpy()
    return slot


def measure_network(name: str, batches: list[int], rounds: int, *, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """Measures one network at all batches."""
    source = open_network(name)
    threads = torch.get_num_threads()
    with ExitStack() as stack:
        plain = stack.enter_context(exported(source, split=False))
        small = stack.enter_context(quantised(source, plain))
        bundles = dict(zip(SIDES[2:], (plain, small), strict=True))
        megabytes = {side: sum(f.stat().st_size for f in b.path.iterdir()) / 1e6 for side, b in bundles.items()}
        shared = {"network": name, "cost": plain.manifest["cost"], "megabytes": megabytes}
        made = []
        for batch in batches:
            with announced(f"{name}, batch {batch}"):
                inputs = inputs_of(source, batch)
                slots = {side: slot_of(bundle, inputs, threads) for side, bundle in bundles.items()}
                made.append({**shared, "batch": batch, **_measure(source, inputs, slots, rounds, clock)})
        return made


def _measure(
    source: Source,
    inputs: tuple[Tensor, Tensor, Tensor],
    slots: dict[str, AbstractSlot],
    rounds: int,
    clock: Callable[[], float],
) -> dict[str, Any]:
    batch = len(inputs[0])
    tried = {}
    for layout in (False, True):
        side = Torch(source, inputs, channels_last=layout)
        tried[layout] = min(time_sides({"": side}, rounds=2, warmup=1, clock=clock)[""].seconds)
    last = tried[True] < tried[False]
    eager = Torch(source, inputs, channels_last=last)
    compiled = Torch(source, inputs, channels_last=last, compiled=True)
    sides: dict[str, Callable[[], Any]] = {SIDES[0]: eager, SIDES[1]: compiled}
    sides |= {name: partial(slot.run, batch) for name, slot in slots.items()}
    timings = time_sides(sides, rounds=rounds, warmup=1, clock=clock)
    want = eager().numpy()
    outputs: dict[str, npt.NDArray[Any]] = {SIDES[1]: compiled().numpy()}
    outputs |= {name: slot.output[:batch] for name, slot in slots.items()}
    return {
        "channels_last": last,
        "compile_seconds": compiled.compile_seconds,
        "ms": {name: 1e3 * timing.median / batch for name, timing in timings.items()},
        "spread": {name: timing.spread for name, timing in timings.items()},
        "faster_than_eager": {name: ratio(timings[SIDES[0]], timing) for name, timing in timings.items()},
        "difference": {name: float(np.abs(got - want).max() / np.abs(want).max()) for name, got in outputs.items()},
    }


def line(one: dict[str, Any]) -> list[str]:
    """A row of the table."""
    cost = one["cost"]
    times = [f"{one['ms'][side]:.2f}" for side in SIDES]
    gains = [f"{one['faster_than_eager'][side]:.2f}x" for side in SIDES[1:]]
    differences = [f"{one['difference'][side]:.0e}" for side in SIDES[2:]]
    size = f"{cost['parameters'] / 1e6:.1f} M, {cost['flops'] / 1e9:.1f} GFLOP"
    return [one["network"], size, str(one["batch"]), *times, *gains, *differences]


def main() -> None:
    made = parser(__doc__, "networks")
    made.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS), help="networks [all]")
    made.add_argument("--batches", nargs="+", type=int, default=list(BATCHES), help="batch sizes [%(default)s]")
    made.add_argument("--threads", type=int, default=1, help="threads of each library inside a step [%(default)s]")
    made.add_argument("--rounds", type=int, default=5, help="timed rounds [%(default)s]")
    made.add_argument("--quick", action="store_true", help="batch 1 and two rounds, as a trial")
    made.add_argument("--cpu-time", action="store_true", help="measure CPU time of the thread; needs --threads 1")
    arguments = made.parse_args()
    if arguments.cpu_time and arguments.threads != 1:
        made.error("--cpu-time measures one thread: expected --threads 1")
    batches, rounds = ([1], 2) if arguments.quick else (arguments.batches, arguments.rounds)
    torch.set_num_threads(arguments.threads)
    clock = time.thread_time if arguments.cpu_time else time.perf_counter
    found = []
    for name in arguments.networks:
        note(f"{name}: exporting")
        found += measure_network(name, batches, rounds, clock=clock)
    columns = ["network", "size", "batch", *(f"{side}, ms" for side in SIDES)]
    columns += [f"{side} faster" for side in SIDES[1:]] + [f"{side} off" for side in SIDES[2:]]
    print_table(f"an evaluation, {arguments.threads} thread(s)", columns, [line(one) for one in found])
    save(
        arguments.out,
        {
            "question": "what an evaluation costs by the library that runs the network",
            "clock": "thread" if arguments.cpu_time else "wall",
            "threads": arguments.threads,
            "rounds": rounds,
            "networks": found,
        },
    )


if __name__ == "__main__":
    main()
