"""Targets that call native kernels, views, the ledger and the public options; an input determines the arguments."""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastdc
from fastdc.diffusion import kernels
from fastdc.inference import Options
from fastdc.testing import GaussianWorld
from fuzzing.mutations import VALUES
from fuzzing.target import Target

_DTYPES = (np.float32, np.float16, np.float64, np.int32, np.int64, np.uint8, np.bool_, np.complex64)


def _from_seed(call: Callable[[random.Random], Any]) -> Target:
    """A target whose input is the seed of the generator that chooses the arguments."""
    return Target([b"seed"], lambda data: call(random.Random(data)), lambda _, rng: rng.randbytes(8))


def _array(rng: random.Random, shape: tuple[int, ...], dtype: Any, high: int = 4) -> Any:
    """An array of a shape and type, mostly; sometimes another shape, type, layout, or something else."""
    if rng.random() < 0.04:
        return rng.choice(VALUES)
    if rng.random() < 0.06:
        shape = tuple(rng.choice((0, 1, 2, 3, 5)) for _ in range(rng.randrange(5)))
    if rng.random() < 0.05:
        dtype = rng.choice(_DTYPES)
    made = np.random.default_rng(rng.getrandbits(32)).integers(0, high, shape).astype(dtype)
    if made.size and rng.random() < 0.1:
        extreme = rng.choice((-1, 2**31 - 1, -(2**31), 10**6, math.nan, math.inf))
        with np.errstate(all="ignore"):
            made.flat[rng.randrange(made.size)] = np.float64(extreme).astype(dtype)
    kind = rng.randrange(40)
    if kind == 0 and made.ndim:
        made = made[::-1]
    elif kind == 1:
        made = np.asfortranarray(made)
    elif kind == 2:
        made.flags.writeable = False
    elif kind == 3 and made.ndim:
        made = np.broadcast_to(made[:1], made.shape)
    elif kind == 4:
        made = made.astype(made.dtype.newbyteorder())
    elif kind == 5:
        return kernels.view(made)
    return made


def _number(rng: random.Random, value: Any) -> Any:
    return rng.choice(VALUES) if rng.random() < 0.04 else value


def _kernel(rng: random.Random) -> object:
    n, draws, cells, classes = (rng.choice((1, 2, 3, 17)) for _ in range(4))
    shape = (n, 1, rng.choice((1, 3, 8)), rng.choice((1, 5, 8)))
    size = (cells, *shape[1:])
    images = _array(rng, shape, np.float32)
    table = np.stack(
        [np.random.default_rng(rng.getrandbits(32)).integers(0, top, cells) for top in (n, classes, draws)], 1
    )
    table = table.astype(np.int32) if rng.random() < 0.9 else _array(rng, (cells, 3), np.int32, 20)
    rows, streams = _array(rng, (draws, 8), np.float32), _array(rng, (n,), np.int64)
    common = (images, table, rows, streams)
    options: dict[str, Any] = {"seed": _number(rng, rng.getrandbits(64)), "purpose": _number(rng, rng.randrange(4))}
    if rng.random() < 0.3:
        options["antithetic"] = _number(rng, True)
    pool = [*common, _array(rng, (cells,), np.float32), None, None]  # outputs may lie over inputs
    kind = rng.randrange(4)
    if kind == 0:
        return kernels.philox_normal(
            _array(rng, (n,), np.int64),
            _array(rng, (n,), np.int32),
            _number(rng, rng.randrange(40)),
            seed=options["seed"],
            purpose=options["purpose"],
        )
    if kind == 1:
        out = rng.choice((None, _array(rng, size, rng.choice((np.float32, np.float16))), rng.choice(pool)))
        extra: dict[str, Any] = {"timestep": rng.choice((None, _array(rng, (cells,), np.float32), rng.choice(pool)))}
        extra["labels"] = rng.choice((None, _array(rng, (cells,), np.int64), rng.choice(pool)))
        return kernels.add_noise(
            images, table, rows, streams, out=out, n_classes=_number(rng, classes), **extra, **options
        )
    loss = _number(rng, rng.choice(("l2", "l1", "huber", "residual")))
    output = _array(rng, size, rng.choice((np.float32, np.float16)))
    target = rng.choice((None, _array(rng, shape, np.float32)))
    options |= {"loss": loss, "delta": _number(rng, rng.choice((1.0, 0.5))), "target": target}
    if kind == 2:
        out = rng.choice((None, _array(rng, (cells,), np.float32), rng.choice(pool)))
        return kernels.denoising_error(output, *common, out=out, n_classes=_number(rng, classes), **options)
    maps = rng.choice((_array(rng, (n, classes, *shape[1:]), np.float32), rng.choice(pool)))
    return kernels.error_map(output, *common, maps, **options)


def native_kernels(scratch: Path) -> Target:
    """The kernels, with arrays of wrong shapes, types, layouts and contents, and outputs over inputs."""
    del scratch

    def call(rng: random.Random) -> object:
        try:
            return _kernel(rng)
        except MemoryError:  # a valid request for more than there is
            return None

    return _from_seed(call)


def _view(rng: random.Random) -> object:
    memory = np.zeros(64, np.int64)
    dtype = _number(rng, rng.choice(("float32", "float16", "bfloat16", "int32", "int64", "float8", np.float32)))
    shape = tuple(_number(rng, rng.choice((0, 1, 2, 4))) for _ in range(rng.randrange(4)))
    small = math.prod(s for s in shape if isinstance(s, int)) <= 64
    if not small or not all(isinstance(s, int) for s in shape):  # the address of what is not there cannot be checked
        return kernels.view(_array(rng, (2, 3), np.float32))
    pointer = _number(rng, memory.ctypes.data + rng.choice((0, 0, 1, 8)))
    if isinstance(pointer, int) and not memory.ctypes.data <= pointer <= memory.ctypes.data + 8:
        shape = (0,)
    made = kernels.view_memory(pointer, shape, dtype, owner=_number(rng, memory))
    if (
        made.dtype == "bfloat16" or max(made.shape, default=0) > memory.size
    ):  # NumPy knows no bfloat16, and fewer elements
        return made.shape
    return np.from_dlpack(made).sum()


def views(scratch: Path) -> Target:
    """Views of arrays and of memory."""
    del scratch
    return _from_seed(_view)


def _ledger(rng: random.Random) -> None:
    ledger = kernels.Ledger(_small(rng), _small(rng))
    tickets: list[tuple[int, int]] = []
    for _ in range(rng.randrange(30)):
        places = np.array([rng.randrange(-1, 4) for _ in range(rng.randrange(3))], np.int32)
        classes = np.array([rng.randrange(-1, 6) for _ in range(rng.randrange(4))], np.int32)
        end, priority = rng.randrange(-1, 8), rng.choice((0, 1, -5, 2**31 - 1))
        kind = rng.randrange(9)
        try:
            if kind < 3:
                ledger.open(rng.randrange(-1, 4), classes, end, priority)
            elif kind == 3:
                ledger.extend(places, end, priority)
            elif kind == 4:
                ledger.add(rng.randrange(-1, 4), classes, priority)
            elif kind == 5:
                ticket, cells = ledger.propose(rng.choice((-1, 0, 1, 5, 2**40)))
                tickets.append((ticket, len(cells)))
            elif kind == 6 and tickets:
                ticket, size = tickets.pop(rng.randrange(len(tickets)))
                ledger.observe(ticket, np.zeros(rng.choice((size, size, size + 1)), np.float32))
            elif kind == 7:
                ledger.drop(places, np.ones((len(places), rng.randrange(6)), np.bool_))
            else:
                ledger.close(places)
                ledger.gather(places)
        except fastdc.InputError:
            continue


def _small(rng: random.Random) -> int:
    return rng.choice((1, 2, 5, 5, 5, 0, -1, 2**62))


def native_ledger(scratch: Path) -> Target:
    """The ledger of cells, with calls in any order."""
    del scratch
    return _from_seed(_ledger)


def options(scratch: Path) -> Target:
    """The options of a run, and images, from Python."""
    del scratch
    world = GaussianWorld.random(3)
    classifier = fastdc.DiffusionClassifier(world.model, world.network())
    names = list(Options.__dataclass_fields__)
    words = (
        "l2",
        "l1",
        "huber",
        "full",
        "paired",
        "betting",
        "staged",
        "ttest",
        "vlb",
        "edm",
        "all",
        "vote",
        "random",
        "dc",
    )
    values = (*VALUES, *words, (0.1, 2.0), (2.0, 0.1), (0.5,), [0.5, 0.6], {"alpha": 0.01}, {"alpha": -1}, 0.25, 1e-3)

    def call(rng: random.Random) -> object:
        given = {name: rng.choice(values) for name in rng.sample(names, rng.choice((0, 1, 1, 2, 3)))}
        if rng.random() < 0.2:
            return classifier.classify(_array(rng, (2, 1, 4, 4), np.uint8), draws=2)
        if not isinstance(given.get("draws", 2), int) or given.get("draws", 2) <= 64:  # long runs are no fault
            given.setdefault("draws", 2)
            return classifier.classify(np.zeros((1, 1, 4, 4), np.uint8), **given)
        return classifier.settings(**given)

    return _from_seed(call)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "kernels": native_kernels,
    "views": views,
    "ledger": native_ledger,
    "options": options,
}
