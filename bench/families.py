"""Every family of diffusion models in every step, from its own tools' format to a classification without torch.

    python bench/families.py [--only sd sdxl] [--precisions float32]

For each family, the benchmark saves a tiny pipeline with random weights in its standard format and classes, and then
takes these steps:

* load: open it as a source, without executing any of it;
* export: make a bundle whose graphs are compared with torch;
* verify: compare the errors of 4 images at 4 levels under every class with torch's: the largest relative difference of
  a cell, and the number of images with the same class, not counting ties;
* parts: compare the network in parts with the whole: the share saved with 10 classes, and the largest relative
  difference of a cell;
* engine: parse and build every graph of the denoiser with NVIDIA's own parser and builder (tensorrt_rtx, no GPU);
* classify: classify with the bundle in a process that cannot import torch, onnx, diffusers or transformers, and get the
  same classes as in this process.

Seconds are of one trial. If a step fails, its cell holds the error, and the command exits with 1.
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
from fastdc.backends import NetworkOptions, OnnxNetwork
from fastdc.bundle import CLASSES, DENOISER, PREFIX, REST, Bundle, Model, Prompts, prompts_of, saved_by_parts
from fastdc.bundle.architectures import MLPDenoiser
from fastdc.classifier import DiffusionClassifier
from fastdc.diffusion import DiscreteSchedule, Parameterization
from fastdc.export import compare_errors, export_source
from fastdc.export.tensorrt_check import build_check
from fastdc.sources import Source, open_source
from fastdc.support import installed
from fastdc.testing import WITHOUT, edm_files, tiny_pipelines
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
    """One row of the table.

    Attributes:
        what: Name in the table.
        write: Saves the model under a path and returns the path.
        read: Opens the saved model.
    """

    what: str
    write: Callable[[Path], Path]
    read: Callable[[Path], Source] = open_source


@dataclass
class Row:
    """The results of one family: cells of the table by column, and the number that failed."""

    cells: dict[str, str] = field(default_factory=dict)
    failed: int = 0


def prompts() -> Prompts:
    """Three classes of two prompts each."""
    return prompts_of(("red cube", "blue cone", "photo"), ("a photo of a {}", "the {}"))


def text(path: Path) -> Source:
    """A text-conditional pipeline."""
    return open_source(path, prompts=prompts())


def plain_module(_: Path) -> Source:
    """A torch module that belongs to no pipeline, with a model made by hand."""
    torch.manual_seed(0)
    network = MLPDenoiser((1, 6, 6), 5, 32)
    with torch.no_grad():  # some layers start at zero, among them the class's
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
    """An EDM pickle with one kind of network."""
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
    """The steps of one family, each of which fills one cell. After a failed step, the steps that need it are skipped.

    Args:
        folder: An empty folder for the family.
        row: Row to fill in.
    """

    def __init__(self, folder: Path, row: Row) -> None:
        self.folder, self.row = folder, row

    def take(self, column: str, step: Callable[[], tuple[Any, str]]) -> Any:
        """Takes a step and fills in its cell; returns the step's result, or None if it fails."""
        start = time.perf_counter()
        try:
            result, found = step()
        except Exception as error:  # the table shows every failure
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
        if (
            precision != "bfloat16"
        ):  # ONNX Runtime has no bfloat16 on the CPU; the export itself was verified in another way
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
    """Largest relative difference of a cell. If `exact`, different classes or a difference above 1e-4 are errors."""
    found = compare_errors(source, bundle, images_for(source.model), draws=DRAWS)
    if exact and (found.differing or not found.relative <= 1e-4):
        raise ArithmeticError(str(found))
    same = f"{found.same}/{found.images}" + (f" ({found.ties} tied)" if found.ties else "")
    return f"{found.relative:.0e}, {same}"


def parts(bundle: Bundle) -> str:
    """Share of operations that the parts save with 10 classes, and the largest relative difference of a cell."""
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
    """Seconds to build the denoiser's graphs, and their number."""
    trt = importlib.import_module("tensorrt_rtx")
    names = [name for name in (DENOISER, PREFIX, CLASSES, REST) if name in bundle.files]
    few = (1, 2, 4)
    leading = {"pairs": few, "conditions": few}
    seconds = sum(build_check(bundle.path / name, trt, leading=leading).seconds for name in names)
    return f"{seconds:.1f} s ({len(names)})"


def without_torch(bundle: Bundle, folder: Path) -> str:
    """Seconds of a process that classifies without torch, onnx, diffusers and transformers."""
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
    made.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS, help="precisions [all]")
    made.add_argument("--threads", type=int, default=1, help="threads of torch [%(default)s]")
    return made.parse_args()


def main() -> int:
    os.environ["HF_HUB_OFFLINE"] = "1"  # every model is made here
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
