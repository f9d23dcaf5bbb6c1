"""Networks of realistic size on every backend, compared with the plain PyTorch loop; part of bench/gpu/gpu.sh.

    python bench/gpu/networks.py --out RESULT.json                  an EDM and a Stable Diffusion UNet, within 8 minutes
    python bench/gpu/networks.py --networks edm --sides plain captured tensorrt --parts check full race --minutes 5
    python bench/gpu/networks.py --device cpu --networks tiny       everything but the devices

The measurements are described in gpu/parts.py, the networks and their work in gpu/models.py, and the sides in
gpu/sides.py. Sides are measured one after the other; ratios are to the fastest plain loop of the same invocation. A
side that fails, lacks a package or gets no time is named, and the others still run; a failure counts as a problem. The
time is checked between parts, and a part that has begun is finished, so an export or the build of an engine may take
minutes longer. `--thorough` adds race, latency and certificates in float32 without TF32, by far the slowest.

The sides run in a process of their own. If a side ends that process, leaves the device in an error, or is silent for
too long (gpu/watch.py), this counts as a problem of the part that was running, and another process goes on with the
next side. The result is written after every part. If RESULT.json exists and is of the same device and sources, its
other parts are kept. Exit status: 0 all is well, 1 problems, 2 nothing to run on.
"""

import argparse
import os
import re
import sys
import tempfile
import traceback
from pathlib import Path

if not __package__:  # run as a file: imports start at bench/, as for the scripts there
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import RESULTS, machine, parser
from fastdc.diffusion import kernels
from fastdc.support import MissingDependencyError, require, version_of
from gpu.check import gpu_stamp, sources_sha256
from gpu.measure import Bench, DeviceLostError, alive, note
from gpu.models import NETWORKS
from gpu.parts import PARTS, Record
from gpu.report import complete, problems_of, write
from gpu.sides import WORDS, Bundles
from gpu.watch import STOPPED, UNFINISHED, watch


def _refusal(device: str) -> str:
    """Why nothing can run on this device; "" if something can."""
    try:
        torch = require("torch", extra="cuda")
    except MissingDependencyError as error:
        return str(error)
    if not device.startswith("cuda"):
        return ""
    if not kernels.build_config()["cuda"] or kernels.cuda_device_count() == 0:
        return "needs a CUDA device and a fastdc built with CUDA (bench/gpu/gpu.sh builds it), or --device cpu"
    return "" if torch.cuda.is_available() else f"torch {torch.__version__} sees no CUDA device"


def stamp(device: str) -> Record:
    """The device, the versions and the sources that the numbers hold for."""
    gpu = gpu_stamp(require("torch", extra="cuda")) if device.startswith("cuda") else None
    packages = ("tensorrt", "tensorrt_rtx", "cuda-core", "onnx", "diffusers")
    versions = machine() | {name: version_of(name) for name in packages}
    return {"machine": versions, "gpu": gpu, "sources_sha256": sources_sha256()}


def arguments() -> argparse.Namespace:
    made = parser(__doc__, "gpu-networks")
    made.set_defaults(out=None)
    made.add_argument("--device", default="cuda:0", help="device: cuda:N, or cpu [%(default)s]")
    made.add_argument(
        "--networks", nargs="+", choices=sorted(NETWORKS), default=["edm", "sd"], help="networks to measure [edm sd]"
    )
    made.add_argument("--sides", nargs="+", choices=WORDS, default=list(WORDS), help="sides to compare [all]")
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="measurements of a side [all]")
    made.add_argument("--minutes", type=float, default=8.0, help="time after which nothing more begins [%(default)s]")
    made.add_argument("--quick", action="store_true", help="use a quarter of the images")
    made.add_argument("--thorough", action="store_true", help="measure all parts in float32 without TF32, too")
    made.add_argument("--keep", type=Path, help="folder that keeps exports for later use [a temporary one]")
    made.add_argument("--invocation", help=argparse.SUPPRESS)  # set by watch() for its processes
    made.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return made.parse_args()


def main() -> int:
    options = arguments()
    if options.invocation is not None:
        try:
            status = measure(options)
        except Exception:  # a failure outside of the sides: another process may succeed
            traceback.print_exc()
            status = UNFINISHED
        sys.stdout.flush()
        if status == UNFINISHED:  # without cleaning up, which may hang on a lost device
            os._exit(status)
        return status
    with tempfile.TemporaryDirectory() as folder:
        more = ["--folder", str(options.keep or folder)]
        status = watch([sys.executable, __file__, *sys.argv[1:]], options.minutes, more=more)
    return 1 if status == STOPPED else status


def measure(options: argparse.Namespace) -> int:
    """Measures the remaining sides of this invocation in this process, and returns the exit status."""
    refusal = _refusal(options.device)
    if refusal:
        print(f"networks: {refusal}", file=sys.stderr)
        return 2
    stamped = stamp(options.device)
    slug = re.sub(r"[^a-z0-9]+", "-", (stamped["gpu"] or {"name": "cpu"})["name"].lower()).strip("-")
    out = options.out or RESULTS / f"gpu-networks-{slug}.json"
    result = complete(out, stamped)
    commands = result.get("networks_commands", [])
    command = " ".join(sys.argv[: sys.argv.index("--invocation")])
    result["networks_commands"] = commands if command in commands[-1:] else [*commands, command]
    bench = Bench(options, Bundles(options.folder, note), result.get("networks", {}))
    try:
        for name in options.networks:
            for _ in bench.network(name):
                write(out, result | {"networks": bench.networks})
                alive()
    except DeviceLostError:
        note("the device is in a lasting error: another process goes on")
        return UNFINISHED
    write(out, result | {"networks": bench.networks})
    print((out.with_suffix(".md")).read_text(encoding="utf-8"))
    problems = problems_of({name: bench.networks[name] for name in options.networks})
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
