"""Every family of diffusion models through every step, from its own tools' format to a class without torch.

    python bench/families.py [--only sd sdxl] [--precisions float32]

For each family, a tiny pipeline with random weights is saved in its standard format, in the standard classes, and then:

* load: opened as a source, nothing of it executed;
* export: made a bundle, its graphs compared with torch;
* verify: the errors of 4 images at 4 levels under every class, against torch's: largest relative difference of a cell,
  and images whose class differs, ties aside;
* parts: what the split saves with 10 classes, and the largest relative difference of a cell from the graph as a whole;
* engine: every graph of the denoiser parsed and built by NVIDIA's own parser and builder (tensorrt_rtx, no GPU needed);
* classify: the bundle classifies in a process that can import neither torch, onnx, diffusers nor transformers, and
  gives the classes that it gives here.

Seconds are of one run. A cell that fails holds the error's line, and the command then exits with 1.
"""

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastdc
from common import parser, print_table, save
from fastdc.backends import NetworkOptions
from fastdc.backends.onnx.cpu import OnnxNetwork
from fastdc.bundle.architectures import MLPDenoiser
from fastdc.bundle.folder import Bundle
from fastdc.bundle.format import CLASSES, DENOISER, PREFIX, REST, saved_by_parts
from fastdc.bundle.model import Model
from fastdc.bundle.prompts import Prompts, prompts_of
from fastdc.classifier import DiffusionClassifier
from fastdc.diffusion.parameterization import Parameterization
from fastdc.diffusion.schedules import DiscreteSchedule
from fastdc.export import export_source
from fastdc.export.compare import compare_errors
from fastdc.export.tensorrt_check import build_check
from fastdc.sources.base import Source
from fastdc.sources.choose import open_source
from fastdc.support.optional import installed
from fastdc.testing import edm_files, tiny_pipelines
from fastdc.testing.absent import WITHOUT
from tables import announced

PRECISIONS = ("float32", "float16", "bfloat16")
HIDDEN = "torch,onnx,onnxscript,diffusers,transformers"
DRAWS = 4

_CLASSIFY = """
import sys
import numpy as np
import fastdc

labels = fastdc.load(sys.argv[1], threads=1).classify(np.load(sys.argv[2]), rule="full", draws=int(sys.argv[3])).labels
print(*labels)
assert not {"torch", "onnx", "diffusers", "transformers"} & set(sys.modules)
"""


@dataclass(frozen=True)
class Family:
    """One row.

    Attributes:
        what: What the table calls it.
        write: Saves the model under a path and returns it.
        read: Opens what was saved.
    """

    what: str
    write: Callable[[Path], Path]
    read: Callable[[Path], Source] = open_source


@dataclass
class Row:
    """What was found of one family: the cells of the table by column, and how many failed."""

    cells: dict[str, str] = field(default_factory=dict)
    failed: int = 0


def prompts() -> Prompts:
    """Three classes of two prompts each."""
    return prompts_of(("red cube", "blue cone", "photo"), ("a photo of a {}", "the {}"))


def text(path: Path) -> Source:
    """A text-conditional pipeline."""
    return open_source(path, prompts=prompts())


def plain_module(_: Path) -> Source:
    """A torch module that is no pipeline of anybody's, with what must be said about it."""
    torch.manual_seed(0)
    network = MLPDenoiser((1, 6, 6), 5, 32)
    with torch.no_grad():  # parts of it begin at zero, the class's too
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model = Model(
        name="mlp",
        image_shape=(1, 6, 6),
        class_names=("a", "b", "c", "d"),
        schedule=DiscreteSchedule(num_train_timesteps=1000),
        parameterization=Parameterization("v_prediction"),
        null_class=4,
    )
    return Source(family="module", model=model, denoiser=network.eval().requires_grad_(False))


def pickle_of(variant: str) -> Family:
    """An EDM pickle of a kind of network."""
    names = {"ddpmpp": "SongUNet, DDPM++", "ncsnpp": "SongUNet, NCSN++", "adm": "DhariwalUNet (ADM)"}
    return Family(f"EDM pickle: {names[variant]}", lambda path: edm_files.write_edm(path / "snapshot.pkl", variant))


FAMILIES = {
    "unet2d": Family("UNet2DModel, DDPM, epsilon", tiny_pipelines.tiny_unet2d),
    "unet2d-v": Family(
        "UNet2DModel, DDIM, v, null class",
        lambda path: tiny_pipelines.tiny_unet2d(
            path, scheduler="DDIMScheduler", pipeline="DDIMPipeline", prediction_type="v_prediction"
        ),
        lambda path: open_source(path, class_names=("a", "b", "c")),
    ),
    "unet2d-sample": Family(
        "UNet2DModel, sample, larger images",
        lambda path: tiny_pipelines.tiny_unet2d(path, beta_schedule="squaredcos_cap_v2", prediction_type="sample"),
        lambda path: open_source(path, image_size=(16, 8)),
    ),
    "dit": Family("DiTPipeline", tiny_pipelines.tiny_dit),
    "sd": Family("StableDiffusionPipeline 1.x", tiny_pipelines.tiny_sd, text),
    "sd2": Family(
        "StableDiffusionPipeline 2.x, v",
        lambda path: tiny_pipelines.tiny_sd(
            path,
            scheduler="DDIMScheduler",
            prediction_type="v_prediction",
            unet={"use_linear_projection": True, "attention_head_dim": (2, 4)},
        ),
        text,
    ),
    "sdxl": Family("StableDiffusionXLPipeline", tiny_pipelines.tiny_sdxl, text),
    "sd3": Family("StableDiffusion3Pipeline", tiny_pipelines.tiny_sd3, text),
    "sd3-no-t5": Family(
        "StableDiffusion3Pipeline without T5", lambda path: tiny_pipelines.tiny_sd3(path, t5=False), text
    ),
    "ddpmpp": pickle_of("ddpmpp"),
    "ncsnpp": pickle_of("ncsnpp"),
    "adm": pickle_of("adm"),
    "module": Family("torch module from Python", lambda path: path, plain_module),
}


class Steps:
    """The steps of one family, a cell each: what is asked of a step that cannot be is not asked of the next.

    Args:
        folder: Of the family, empty.
        row: Filled in.
    """

    def __init__(self, folder: Path, row: Row) -> None:
        self.folder, self.row = folder, row

    def take(self, column: str, step: Callable[[], tuple[Any, str]]) -> Any:
        """Runs a step and fills in its cell; its result, or None if it fails."""
        start = time.perf_counter()
        try:
            result, found = step()
        except Exception as error:  # whatever goes wrong is what the table is for
            self.row.failed += 1
            self.row.cells[column] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
            return None
        seconds = f"{time.perf_counter() - start:.1f} s"
        self.row.cells[column] = f"ok {found}" if found else f"ok {seconds}"
        return result

    def run(self, family: Family, precisions: list[str]) -> None:
        saved = self.folder / "model"
        saved.mkdir()
        source = self.take("load", lambda: (family.read(family.write(saved)), ""))
        for precision in precisions if source is not None else ():
            self._precision(source, precision)

    def _precision(self, source: Source, precision: str) -> None:
        name = "" if precision == "float32" else f"{precision} "
        out = self.folder / precision
        bundle: Bundle | None = self.take(
            f"{name}export", lambda: (export_source(source, out, precision=precision), "")
        )
        if bundle is None:
            return
        if precision != "bfloat16":  # ONNX Runtime has none on the CPU; the export was compared in another way
            self.take(f"{name}verify", lambda: (None, verify(source, bundle, exact=precision == "float32")))
        if installed("tensorrt_rtx"):
            self.take(f"{name}engine", lambda: (None, engines(bundle)))
        if precision == "float32":
            self.take("parts", lambda: (None, parts(bundle)))
            self.take("without torch", lambda: (None, without_torch(bundle, self.folder)))
            size = sum(file.stat().st_size for file in bundle.path.iterdir())
            self.row.cells["bundle"] = f"{size / 1e6:.2f} MB"


def images_for(model: Model) -> Any:
    """Four images of random pixels."""
    return np.random.default_rng(1).random((4, *model.image_shape), dtype=np.float32)


def verify(source: Source, bundle: Bundle, *, exact: bool) -> str:
    """Largest relative difference of a cell; an error where classes differ, or cells by more than 1e-4 if `exact`."""
    found = compare_errors(source, bundle, images_for(source.model), draws=DRAWS)
    if exact and (found.differing or not found.relative <= 1e-4):
        raise ArithmeticError(str(found))
    same = f"{found.same}/{found.images}" + (f" ({found.ties} tied)" if found.ties else "")
    return f"{found.relative:.0e}, {same}"


def parts(bundle: Bundle) -> str:
    """What the split saves with 10 classes, and the largest relative difference of a cell."""
    if REST not in bundle.files:
        return "not split"
    cost = bundle.manifest["cost"]
    both = []
    for split in (False, True):
        network = OnnxNetwork(bundle, NetworkOptions(threads=1), split=split)
        opened = fastdc.load(bundle.path, threads=1)
        clf = DiffusionClassifier(opened.model, network, opened.encoder)
        both.append(clf.errors(images_for(bundle.model), draws=DRAWS).errors.astype(np.float64))
    relative = float((np.abs(both[1] - both[0]) / np.abs(both[0])).max())
    if not relative <= 1e-4:
        raise ArithmeticError(f"parts differ from the whole by {relative:.1e}")
    saved = saved_by_parts(cost, 10)
    return f"{100 * saved:.0f} %, {relative:.0e}"


def engines(bundle: Bundle) -> str:
    """Seconds to build the denoiser's graphs, and how many there are."""
    trt = importlib.import_module("tensorrt_rtx")
    names = [name for name in (DENOISER, PREFIX, CLASSES, REST) if name in bundle.files]
    few = (1, 2, 4)
    leading = {"pairs": few, "conditions": few}
    seconds = sum(build_check(bundle.path / name, trt, leading=leading).seconds for name in names)
    return f"{seconds:.1f} s ({len(names)})"


def without_torch(bundle: Bundle, folder: Path) -> str:
    """Seconds of a process that classifies where torch and the rest are not installed."""
    images = images_for(bundle.model)
    np.save(folder / "images.npy", images)
    here = fastdc.load(bundle.path, threads=1).classify(images, rule="full", draws=DRAWS).labels
    program = [sys.executable, "-c", WITHOUT + _CLASSIFY, HIDDEN]
    arguments = [str(bundle.path), str(folder / "images.npy"), str(DRAWS)]
    start = time.perf_counter()
    done = subprocess.run([*program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr else f"exit code {done.returncode}")
    if [int(label) for label in done.stdout.split()] != here.tolist():
        raise ArithmeticError(f"classes {done.stdout.strip()}, in this process {here.tolist()}")
    return f"{time.perf_counter() - start:.1f} s"


def options() -> argparse.Namespace:
    made = parser(__doc__, "families")
    made.add_argument("--only", nargs="+", default=list(FAMILIES), choices=list(FAMILIES), help="families [all]")
    made.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS, help="[all]")
    made.add_argument("--threads", type=int, default=1, help="of torch [%(default)s]")
    return made.parse_args()


def main() -> int:
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is made here
    arguments = options()
    torch.set_num_threads(arguments.threads)
    rows = {}
    for key in arguments.only:
        rows[key] = Row()
        with announced(key), tempfile.TemporaryDirectory() as folder:
            Steps(Path(folder), rows[key]).run(FAMILIES[key], arguments.precisions)
    exact = ["load", "export", "verify", "parts", "engine", "without torch", "bundle"]
    narrow = ["float16 export", "float16 verify", "float16 engine", "bfloat16 export", "bfloat16 engine"]
    for title, columns in (("float32", exact), ("narrower", narrow)):
        if not any(one in row.cells for row in rows.values() for one in columns[1:]):
            continue
        lines = [[FAMILIES[key].what, *(row.cells.get(one, "-") for one in columns)] for key, row in rows.items()]
        print_table(f"every family, {title}", ["family", *columns], lines)
    failed = sum(row.failed for row in rows.values())
    found = {key: {"family": FAMILIES[key].what, "failed": row.failed, **row.cells} for key, row in rows.items()}
    save(arguments.out, {"question": "does every family work in every step", "failed": failed, "families": found})
    print(f"{failed} cells failed" if failed else "every cell works")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
