"""Networks of the size that people use, on every backend, beside the plain PyTorch loop; a part of bench/gpu.sh.

    python bench/gpu_networks.py --out RESULT.json                  an EDM and a Stable Diffusion UNet, within 8 minutes
    python bench/gpu_networks.py --networks edm --sides plain captured tensorrt --parts check full race --minutes 5
    python bench/gpu_networks.py --device cpu --networks tiny       everything but the devices

What is timed is in gpu_parts.py, the networks and their work in gpu_models.py, the sides in gpu_sides.py. Sides run
one after the other; ratios are to the fastest plain loop of the same run. A side whose package is missing, and what no
time is left for, is named and the rest runs; so is a side that fails, which is a problem. Time is looked at between
parts, and a part that has begun is ended: an export or the build of an engine may take minutes. `--thorough` also runs
race, latency and certificates in float32 without TF32, the slowest by far.

The sides run in a process of their own. Where one ends it, leaves the device in an error or says nothing for long
(gpu_watch.py), that is a problem of the part that ran, and another process goes on with the next side. So the result is
written after every part, into RESULT.json where that is of the same device and sources: runs with other flags complete
it. Exit status: 0 all is well, 1 problems, 2 nothing to run on.
"""

import argparse
import contextlib
import gc
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common import RESULTS, machine, parser
from fastdc import DiffusionClassifier
from fastdc.backends import NetworkOptions
from fastdc.diffusion import kernels
from fastdc.support.exceptions import MissingDependencyError
from fastdc.support.optional import require, version_of
from gpu_check import gpu_stamp, said, sources_sha256
from gpu_models import NETWORKS, Case, missing_for, open_case
from gpu_parts import PARTS, Opened, Part, Record, allowed, engine_parts, plain_parts
from gpu_plain import PlainLoop, set_flags
from gpu_report import add_ratios, complete, problems_of, write
from gpu_sides import PLAIN, WORDS, Absent, Bundles, Side, chosen, details, module_of, open_side
from gpu_watch import ALIVE, BROKEN, STOPPED, UNFINISHED, watch

_SLOW = ("race", "latency", "certify")  # of float32 without TF32


class Clock:
    """The time that is left.

    Args:
        minutes: In all.
        shares: Networks, each with an even share of what the ones before it have left.
    """

    def __init__(self, minutes: float, shares: int) -> None:
        self._end = time.monotonic() + 60 * minutes
        self._shares = shares
        self._deadline = self._end

    def begin(self) -> None:
        """Begins the next network."""
        left = self._end - time.monotonic()
        self._deadline = time.monotonic() + left / max(1, self._shares)
        self._shares -= 1

    @property
    def over(self) -> bool:
        """Whether nothing more should be begun."""
        return time.monotonic() >= self._deadline


class DeviceLostError(Exception):
    """The device is in an error that only another process can leave behind."""


class Bench:
    """Runs the sides of networks and keeps what they gave.

    Args:
        options: Of the command line.
        bundles: Where exports are kept.
        networks: What an earlier run gave, or an earlier process of this one.
    """

    def __init__(self, options: argparse.Namespace, bundles: Bundles, networks: dict[str, Record]) -> None:
        self._options, self._bundles = options, bundles
        self._run = options.run
        self.networks = dict(networks)
        for name in options.networks:
            note_broken(name, self._mine(name))
        shares = sum(not missing_for(name) and bool(self._left(name)) for name in options.networks)
        self._clock = Clock(options.minutes, shares)

    def _mine(self, name: str) -> list[Record]:
        """The records of a network that this run has made already."""
        return [r for r in self.networks.get(name, {}).get("records", []) if r["run"] == self._run]

    def _left(self, name: str) -> list[Side]:
        """The sides of a network that are still to be run."""
        done = {(record["side"], record["precision"]) for record in self._mine(name)}
        sides = chosen(tuple(self._options.sides), self._options.device)
        return [side for side in sides if (side.name, side.precision) not in done]

    def network(self, name: str) -> Iterator[None]:
        """All sides of one network; yields whenever there is more to write.

        Raises:
            DeviceLostError: Another process has to go on.
        """
        sides = self._left(name)
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
        except Exception as error:  # whatever it is, the other networks are worth their time
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
            record: Record = {"side": side.name, "precision": side.precision, "run": self._run}
            record |= {"parts": {}, "not_run": {"": BROKEN}, "problems": [], "details": {}}
            kept = [r for r in entry["records"] if (r["side"], r["precision"]) != (side.name, side.precision)]
            entry["records"] = [*kept, record]
            for _ in self._side(side, case, oracle, record):
                add_ratios(entry["records"])
                yield
            if record["problems"] and device_lost(self._options.device):
                raise DeviceLostError

    def _side(self, side: Side, case: Case, oracle: npt.NDArray[np.float64], record: Record) -> Iterator[None]:
        """Fills the record of a side; yields whenever there is more to write."""
        begun = time.perf_counter()
        if self._clock.over:
            record["not_run"][""] = "no time was left"
        else:
            yield  # what is being tried is written down first
            try:
                parts, found = self._open(side, case, oracle)
                del record["not_run"][""]
                record["details"] = found
                record["open_seconds"] = time.perf_counter() - begun
                yield from self._parts(side, case, parts, record)
                del parts
            except Absent as absent:
                record["not_run"][""] = str(absent)
            except Exception as error:  # whatever it is, the other sides are worth their time
                _failed(record, "", f"{case.name}, {side}: {said(error)}")
        _free()
        record["seconds"] = time.perf_counter() - begun
        told = ", ".join([*record["parts"], *(f"{part} not run: {why}" for part, why in record["not_run"].items())])
        note(f"{case.name}, {side}: {record['seconds']:.0f} s, {told}")
        yield

    def _open(self, side: Side, case: Case, oracle: npt.NDArray[np.float64]) -> tuple[dict[str, Part], Record]:
        """What measures each part of a side, and what the side is."""
        device = self._options.device
        set_flags(side.precision, plain=side.name == PLAIN)
        limit = allowed(case, side.precision)
        if side.name == PLAIN:
            module = module_of(case).to(device)
            loop = PlainLoop(case, module.half() if side.precision == "float16" else module, side.precision, device)
            return plain_parts(loop, case, oracle, limit), {}
        network = open_side(side, case, device, self._bundles)
        opened = Opened(case, DiffusionClassifier(case.source.model, network, case.encoder), limit, oracle)
        return engine_parts(opened), details(network)

    def _parts(self, side: Side, case: Case, parts: dict[str, Part], record: Record) -> Iterator[None]:
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
            except Exception as error:  # as above
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
        """Why a part is left out; "" if it is not."""
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


def judged(what: str, part: str, record: Record) -> list[str]:
    """What is wrong with a part that ran, in words."""
    if part == "check" and not record["held"]:
        found, most = record["difference"], record["allowed"]
        return [f"{what}: errors differ from the CPU's by {found:.2g}, allowed is {most:.2g}"]
    if part == "step" and not record["equal_bits"]:
        return [f"{what}: a captured step does not equal the same step launched by itself"]
    return []


def _failed(record: Record, part: str, message: str) -> None:
    """Notes a part, or with "" a side, that should have run."""
    record["not_run"][part] = "failed, see the problems"
    record["problems"].append(message)


def note_broken(name: str, records: list[Record]) -> None:
    """Makes problems of what was running when an earlier process of this run ended."""
    for record in records:
        for part, reason in record["not_run"].items():
            if reason == BROKEN:
                where = ", ".join(filter(None, (name, f"{record['side']} {record['precision']}", part)))
                _failed(record, part, f"{where}: ended the process, or said nothing for too long")


def device_lost(device: str) -> bool:
    """Whether the device is in an error that stays: then everything later in this process fails as well."""
    if not device.startswith("cuda"):
        return False
    try:
        require("torch", extra="cuda").cuda.synchronize()
    except Exception:  # torch names it by its own classes, which change
        return True
    return False


def cpu_errors(case: Case) -> npt.NDArray[np.float64]:
    """Errors (K,) of the first image in float32 by torch on the CPU, which all sides are compared with."""
    from fastdc.backends.torch import TorchNetwork

    options = NetworkOptions(device="cpu", batch=case.source.model.num_classes)
    network = TorchNetwork(module_of(case), case.source.model.sample_shape, options)
    classifier = DiffusionClassifier(case.source.model, network, case.encoder)
    errors = classifier.errors(case.images[:1], draws=case.work.check).errors
    return np.asarray(errors.mean(axis=2, dtype=np.float64)[0])


def note(message: str) -> None:
    """A line of progress, on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)
    alive()


def alive() -> None:
    """A sign of life, for watch()."""
    print(ALIVE, flush=True)


def _free() -> None:
    """Gives back the memory of the last side."""
    torch = require("torch", extra="cuda")
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    with contextlib.suppress(Exception):  # of a device that is lost, which is looked at by others
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _refusal(device: str) -> str:
    """Why nothing can be run; "" if something can."""
    try:
        torch = require("torch", extra="cuda")
    except MissingDependencyError as error:
        return str(error)
    if not device.startswith("cuda"):
        return ""
    if not kernels.build_config()["cuda"] or kernels.cuda_device_count() == 0:
        return "needs a fastdc built with CUDA, and a CUDA device (bench/gpu.sh builds one), or --device cpu"
    return "" if torch.cuda.is_available() else f"torch {torch.__version__} sees no CUDA device"


def stamp(device: str) -> Record:
    """What the numbers belong to."""
    gpu = gpu_stamp(require("torch", extra="cuda")) if device.startswith("cuda") else None
    packages = ("tensorrt", "tensorrt_rtx", "cuda-core", "onnx", "diffusers")
    versions = machine() | {name: version_of(name) for name in packages}
    return {"machine": versions, "gpu": gpu, "sources_sha256": sources_sha256()}


def arguments() -> argparse.Namespace:
    made = parser(__doc__, "gpu-networks")
    made.set_defaults(out=None)
    made.add_argument("--device", default="cuda:0", help="cuda:N, or cpu [%(default)s]")
    made.add_argument("--networks", nargs="+", choices=sorted(NETWORKS), default=["edm", "sd"])
    made.add_argument("--sides", nargs="+", choices=WORDS, default=list(WORDS))
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    made.add_argument("--minutes", type=float, default=8.0, help="after which nothing more is begun [%(default)s]")
    made.add_argument("--quick", action="store_true", help="a quarter of the images")
    made.add_argument("--thorough", action="store_true", help="all parts in float32 without TF32 as well")
    made.add_argument("--keep", type=Path, help="a folder for exports, which later runs use [a temporary one]")
    made.add_argument("--run", help=argparse.SUPPRESS)  # of a process that watch() started
    made.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return made.parse_args()


def main() -> int:
    options = arguments()
    if options.run is not None:
        try:
            status = run(options)
        except Exception:  # not one of a side: another process may do better
            traceback.print_exc()
            status = UNFINISHED
        sys.stdout.flush()
        if status == UNFINISHED:  # at once: what is left on a lost device may not let itself be freed
            os._exit(status)
        return status
    with tempfile.TemporaryDirectory() as folder:
        more = ["--folder", str(options.keep or folder)]
        status = watch([sys.executable, __file__, *sys.argv[1:]], options.minutes, more=more)
    return 1 if status == STOPPED else status


def run(options: argparse.Namespace) -> int:
    """Runs what is left of a run in this process."""
    refusal = _refusal(options.device)
    if refusal:
        print(f"gpu_networks: {refusal}", file=sys.stderr)
        return 2
    stamped = stamp(options.device)
    slug = re.sub(r"[^a-z0-9]+", "-", (stamped["gpu"] or {"name": "cpu"})["name"].lower()).strip("-")
    out = options.out or RESULTS / f"gpu-networks-{slug}.json"
    result = complete(out, stamped)
    commands = result.get("networks_commands", [])
    command = " ".join(sys.argv[: sys.argv.index("--run")])
    result["networks_commands"] = commands if command in commands[-1:] else [*commands, command]
    bench = Bench(options, Bundles(options.folder, note), result.get("networks", {}))
    try:
        for name in options.networks:
            for _ in bench.network(name):
                write(out, result | {"networks": bench.networks})
                alive()
    except DeviceLostError:
        note("the device is in an error that stays: another process goes on")
        return UNFINISHED
    write(out, result | {"networks": bench.networks})
    print((out.with_suffix(".md")).read_text(encoding="utf-8"))
    problems = problems_of({name: bench.networks[name] for name in options.networks})
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
