"""Measures the sides of networks one by one and keeps their records; the work of bench/gpu/networks.py.

A side that fails, lacks a package or gets no time is noted, and the others are still measured. A part is noted before
it begins, so that another process can go on if this one is killed.
"""

import argparse
import contextlib
import gc
import sys
import time
from collections.abc import Iterator

from fastdc import DiffusionClassifier
from fastdc.backends import NetworkOptions, TorchNetwork
from fastdc.support import Float64, require
from gpu.check import said
from gpu.models import Case, missing_for, open_case
from gpu.parts import PARTS, Opened, Part, Record, allowed, engine_parts, plain_parts
from gpu.plain_loop import PlainLoop, set_flags
from gpu.report import add_ratios
from gpu.sides import PLAIN, Absent, Bundles, Side, chosen, details, module_of, open_side
from gpu.watch import ALIVE, BROKEN

_SLOW = ("race", "latency", "certify")  # parts that float32 without TF32 leaves out


class Clock:
    """Divides the time among the networks.

    Args:
        minutes: Time for all networks together.
        shares: Number of networks; each gets an even share of the remaining time.
    """

    def __init__(self, minutes: float, shares: int) -> None:
        self._end = time.monotonic() + 60 * minutes
        self._shares = shares
        self._deadline = self._end

    def begin(self) -> None:
        """Begins the share of the next network."""
        left = self._end - time.monotonic()
        self._deadline = time.monotonic() + left / max(1, self._shares)
        self._shares -= 1

    @property
    def over(self) -> bool:
        """Whether the network's time is over and nothing more should begin."""
        return time.monotonic() >= self._deadline


class DeviceLostError(Exception):
    """The device is in an error that lasts until the process ends."""


class Bench:
    """Measures the sides of networks and keeps their records.

    Args:
        options: Options of the command line.
        bundles: Bundles of the networks.
        networks: Records of earlier invocations, and of earlier processes of this invocation.

    Attributes:
        networks: Records of all networks, by name.
    """

    def __init__(self, options: argparse.Namespace, bundles: Bundles, networks: dict[str, Record]) -> None:
        self._options, self._bundles = options, bundles
        self._invocation = options.invocation
        self.networks = dict(networks)
        for name in options.networks:
            note_broken(name, self._mine(name))
        shares = sum(not missing_for(name) and bool(self.left(name)) for name in options.networks)
        self._clock = Clock(options.minutes, shares)

    def _mine(self, name: str) -> list[Record]:
        """The records of a network that this invocation has made already."""
        records: list[Record] = self.networks.get(name, {}).get("records", [])
        return [record for record in records if record["invocation"] == self._invocation]

    def left(self, name: str) -> list[Side]:
        """The sides of a network that are still to be measured."""
        done = {(record["side"], record["precision"]) for record in self._mine(name)}
        sides = chosen(tuple(self._options.sides), self._options.device)
        return [side for side in sides if (side.name, side.precision) not in done]

    def network(self, name: str) -> Iterator[None]:
        """Measures all sides of a network; yields whenever there is more to write.

        Raises:
            DeviceLostError: The device is in an error; another process has to go on.
        """
        sides = self.left(name)
        if missing_for(name):
            reason = f"{missing_for(name)} is not installed"
            note(f"{name}: not run, {reason}")
            self.networks.setdefault(name, {})["not_run"] = reason
            yield
            return
        if not sides:
            return
        self._clock.begin()
        begun = time.perf_counter()
        try:
            case = open_case(name, quick=self._options.quick)
            oracle = cpu_errors(case)
        except Exception as error:  # any failure must leave the other networks
            note(f"{name}: not run, {said(error)}")
            self.networks.setdefault(name, {}).update(not_run=said(error), problems=[f"{name}: {said(error)}"])
            yield
            return
        entry = self.networks[name] = {
            "parameters": case.parameters,
            "work": vars(case.work),
            "records": self.networks.get(name, {}).get("records", []),
        }
        note(f"{name}: {case.parameters / 1e6:.1f} million parameters, on the CPU {time.perf_counter() - begun:.0f} s")
        for side in sides:
            record: Record = {"side": side.name, "precision": side.precision, "invocation": self._invocation}
            record |= {"parts": {}, "not_run": {"": BROKEN}, "problems": [], "details": {}}
            kept = [r for r in entry["records"] if (r["side"], r["precision"]) != (side.name, side.precision)]
            entry["records"] = [*kept, record]
            for _ in self._side(side, case, oracle, record):
                add_ratios(entry["records"])
                yield
            if record["problems"] and device_lost(self._options.device):
                raise DeviceLostError

    def _side(self, side: Side, case: Case, oracle: Float64, record: Record) -> Iterator[None]:
        """Measures a side and fills its record; yields whenever there is more to write."""
        begun = time.perf_counter()
        if self._clock.over:
            record["not_run"][""] = "no time was left"
        else:
            yield  # the record is written before the side begins
            try:
                parts, found = open_parts(side, case, oracle, self._options.device, self._bundles)
                del record["not_run"][""]
                record["details"] = found
                record["open_seconds"] = time.perf_counter() - begun
                yield from self._parts(side, case, parts, record)
                del parts
            except Absent as absent:
                record["not_run"][""] = str(absent)
            except Exception as error:  # any failure must leave the other sides
                _failed(record, "", f"{case.name}, {side}: {said(error)}")
        _free()
        record["seconds"] = time.perf_counter() - begun
        told = ", ".join([*record["parts"], *(f"{part} not run: {why}" for part, why in record["not_run"].items())])
        note(f"{case.name}, {side}: {record['seconds']:.0f} s, {told}")
        yield

    def _parts(self, side: Side, case: Case, parts: dict[str, Part], record: Record) -> Iterator[None]:
        """Measures the parts of a side; yields before each, so that the record can be written."""
        measured = record["parts"]
        for name in PARTS:
            if name not in self._options.parts or name not in parts:
                continue
            reason = self._reason_against(side, case, name, measured)
            if reason:
                record["not_run"][name] = reason
                continue
            record["not_run"][name] = BROKEN
            yield
            try:
                measured[name] = parts[name](measured)
            except Exception as error:  # any failure must leave the other parts
                _failed(record, name, f"{case.name}, {side}, {name}: {said(error)}")
                if not device_lost(self._options.device):
                    continue
                left = [
                    part for part in PARTS[PARTS.index(name) + 1 :] if part in parts and part in self._options.parts
                ]
                record["not_run"] |= dict.fromkeys(left, "the device was lost before it")
                return
            del record["not_run"][name]
            record["problems"] += judged(f"{case.name}, {side}", name, measured[name])

    def _reason_against(self, side: Side, case: Case, name: str, measured: dict[str, Record]) -> str:
        """Why a part of a side is left out; "" if it is not."""
        if name == "certify" and not case.work.copies:
            return "no certificates of this network"
        if side.name == PLAIN:
            return "needs the part full" if name in ("latency", "certify") and "full" not in measured else ""
        if name in _SLOW and side.name == "torch.compile":
            return "each size of a step is compiled by itself"
        if name in _SLOW and self._slow(side):
            return "only with --thorough"
        return "no time was left" if self._clock.over else ""

    def _slow(self, side: Side) -> bool:
        return side.precision == "float32" and self._options.device != "cpu" and not self._options.thorough


def open_parts(
    side: Side, case: Case, oracle: Float64, device: str, bundles: Bundles
) -> tuple[dict[str, Part], Record]:
    """Opens a side.

    Args:
        side: The side.
        case: The network and its work.
        oracle: Errors (K,) of the first image from the CPU.
        device: torch's name of the device.
        bundles: Bundles of the networks.

    Returns:
        A function for each part that the side has, and facts about the opened network.

    Raises:
        Absent: The side cannot run here.
    """
    set_flags(side.precision, plain=side.name == PLAIN)
    limit = allowed(case, side.precision)
    if side.name == PLAIN:
        module = module_of(case).to(device)
        loop = PlainLoop(case, module.half() if side.precision == "float16" else module, side.precision, device)
        return plain_parts(loop, case, oracle, limit), {}
    network = open_side(side, case, device, bundles)
    opened = Opened(case, DiffusionClassifier(case.source.model, network, case.encoder), limit, oracle)
    return engine_parts(opened), details(network)


def judged(what: str, part: str, record: Record) -> list[str]:
    """Problems of a part that was measured, in words."""
    if part == "check" and not record["held"]:
        found, most = record["difference"], record["allowed"]
        return [f"{what}: errors differ from the CPU's by {found:.2g}, allowed is {most:.2g}"]
    if part == "step" and not record["equal_bits"]:
        return [f"{what}: a captured step does not equal the same step launched by itself"]
    return []


def _failed(record: Record, part: str, message: str) -> None:
    """Notes a part, or a whole side if `part` is "", that failed."""
    record["not_run"][part] = "failed, see the problems"
    record["problems"].append(message)


def note_broken(name: str, records: list[Record]) -> None:
    """Notes as problems the parts that were running when an earlier process of this invocation ended."""
    for record in records:
        for part, reason in record["not_run"].items():
            if reason == BROKEN:
                where = ", ".join(filter(None, (name, f"{record['side']} {record['precision']}", part)))
                _failed(record, part, f"{where}: ended the process, or said nothing for too long")


def device_lost(device: str) -> bool:
    """Whether the device is in a lasting error, after which everything in this process fails."""
    if not device.startswith("cuda"):
        return False
    try:
        require("torch", extra="cuda").cuda.synchronize()
    except Exception:  # torch's exceptions for this have changed
        return True
    return False


def cpu_errors(case: Case) -> Float64:
    """Errors (K,) of the first image from torch in float32 on the CPU, with which all sides are compared."""
    options = NetworkOptions(device="cpu", batch=case.source.model.num_classes)
    network = TorchNetwork(module_of(case), case.source.model.sample_shape, options)
    classifier = DiffusionClassifier(case.source.model, network, case.encoder)
    errors = classifier.errors(case.images[:1], draws=case.work.check).errors
    means: Float64 = errors.mean(axis=2, dtype="float64")[0]
    return means


def note(message: str) -> None:
    """Prints a line of progress to stderr."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)
    alive()


def alive() -> None:
    """Prints a sign of life for :func:`watch`."""
    print(ALIVE, flush=True)


def _free() -> None:
    """Frees the memory of the last side."""
    torch = require("torch", extra="cuda")
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    with contextlib.suppress(Exception):  # fails on a lost device, which device_lost reports
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
