"""One tiny model of every family that can be exported, with its bundle and graphs, made once per test run.

An export takes seconds, so that all tests of a family look at one bundle, and at one graph per precision. They lie in
the run's temporary folder, where the workers of a parallel run share them. The first worker that wants one makes it
under a lock.
"""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from torch import Tensor, nn

from fastdc import Model
from fastdc.bundle import DENOISER, Bundle, Defaults, Prompts, load_bundle, prompts_of
from fastdc.data import LabelledImages
from fastdc.diffusion import EDMSchedule, Parameterization
from fastdc.export import export_source
from fastdc.export.denoiser import conditions, timesteps
from fastdc.sources import Source, open_source
from fastdc.testing import WITHOUT, edm_files, tiny_pipelines
from helpers.tiny_graphs import Denoiser

# Networks of some thousand parameters: threads would only wait for each other.
torch.set_num_threads(1)

NAMES = ("cube", "cone")
TEMPLATES = ("a photo of a {}.", "the red {}")
PROMPTS: Prompts = prompts_of(NAMES, TEMPLATES)

# Packages that fastdc needs neither to open nor to run a bundle.
HIDDEN = "torch,onnx,onnxscript,diffusers,transformers,peft,huggingface_hub"


class Small(nn.Module):
    """Convolutions, a normalisation, an embedding and a product: enough to go through every step of an export fast."""

    def __init__(self, *, channels: int = 2, classes: int = 3, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = nn.GroupNorm(2, width)
        self.label = nn.Embedding(classes + 1, width)
        self.time = nn.Linear(1, width)
        self.mix = nn.Linear(width, width)
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        time = self.time(timestep[:, None].to(self.time.weight.dtype))
        code = self.mix(nn.functional.silu(self.label(class_labels) + time))
        hidden = nn.functional.silu(self.norm(self.first(sample)) + code[:, :, None, None])
        out: Tensor = self.last(nn.functional.silu(self.middle(hidden)))
        return out


def small_source(*, seed: int = 0, side: int = 6, defaults: Defaults | None = None) -> Source:
    """A user's own module, made into a source by hand."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Small().eval().requires_grad_(False)
    model = Model(
        name="by hand",
        image_shape=(2, side, side),
        class_names=("x", "y", "z"),
        schedule=EDMSchedule(sigma_min=0.02, sigma_max=20.0, timestep_scale=0.25),
        parameterization=Parameterization("edm", sigma_data=0.5),
        null_class=3,
        defaults=defaults or Defaults(draws=4, levels=(0.1, 3.0), weighting="edm"),
    )
    return Source(family="module", model=model, denoiser=network, provenance={"source": "by hand"})


def labelled(source: Source, count: int = 24, *, seed: int = 0) -> LabelledImages:
    """Random images of a source's shape, with random labels."""
    rng = np.random.default_rng(seed)
    names = source.model.class_names
    images = rng.integers(0, 256, (count, *source.model.image_shape)).astype(np.uint8)
    labels = rng.integers(0, len(names), count)
    return LabelledImages(images, labels, names, tuple(f"image {i}" for i in range(count)))


def random_images(source: Source, count: int = 4, *, seed: int = 1) -> npt.NDArray[np.float32]:
    """Images (count, c, h, w) in [0, 1]."""
    return np.random.default_rng(seed).random((count, *source.model.image_shape), dtype=np.float32)


def _unet2d(folder: Path) -> Source:
    return open_source(tiny_pipelines.tiny_unet2d(folder, classes=4), class_names=("a", "b", "c"))


def _dit(folder: Path) -> Source:
    return open_source(tiny_pipelines.tiny_dit(folder))


def _sd(folder: Path) -> Source:
    return open_source(tiny_pipelines.tiny_sd(folder), prompts=PROMPTS)


def _sdxl(folder: Path) -> Source:
    return open_source(tiny_pipelines.tiny_sdxl(folder), prompts=PROMPTS)


def _sd3(folder: Path) -> Source:
    return open_source(tiny_pipelines.tiny_sd3(folder), prompts=PROMPTS)


def _edm(folder: Path) -> Source:
    folder.mkdir(parents=True)
    return open_source(edm_files.write_edm(folder / "tiny-edm.pkl", "ddpmpp", label_dropout=0.1))


_OPENED: dict[str, Callable[[Path], Source]] = {
    "module": lambda _: small_source(),
    "unet2d": _unet2d,
    "dit": _dit,
    "stable-diffusion": _sd,
    "stable-diffusion-xl": _sdxl,
    "stable-diffusion-3": _sd3,
    "edm": _edm,
}
# In half precision, a UNet with texts has one level: its resampling is that of unet2d, and each level takes seconds.
_ONE_LEVEL: dict[str, Any] = {
    "block_out_channels": (8,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "transformer_layers_per_block": 1,
}
_HALF: dict[str, Callable[[Path], Source]] = {
    "stable-diffusion": lambda folder: open_source(tiny_pipelines.tiny_sd(folder, unet=_ONE_LEVEL), prompts=PROMPTS),
    "stable-diffusion-xl": lambda folder: open_source(
        tiny_pipelines.tiny_sdxl(folder, unet=_ONE_LEVEL), prompts=PROMPTS
    ),
}
PUBLISHED = tuple(name for name in _OPENED if name != "module")
"""Names of the families of other tools."""

FAMILIES = ["module", *(pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED)]
"""Names of all families, for ``parametrize``."""


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of a parallel run see."""
    own = factory.getbasetemp()
    return own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own


@contextmanager
def _first_makes(path: Path) -> Iterator[bool]:
    """Gives whether the caller must make a shared file or folder; holds its lock until it is made."""
    path.parent.mkdir(exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not path.exists()


@cache
def _source(family: str, root: Path) -> Source:
    # The folder has the same name in every worker, because it gives the source its name.
    return _OPENED[family](root / f"opened-{os.getpid()}" / f"tiny-{family}")


@cache
def _half_source(family: str, root: Path) -> Source:
    made = _HALF.get(family)
    return _source(family, root) if made is None else made(root / f"opened-{os.getpid()}" / f"half-{family}")


@cache
def exported(family: str, root: Path) -> tuple[Source, Bundle]:
    """A family's source and its bundle, as an export without options makes it.

    Args:
        family: One of :data:`FAMILIES`.
        root: The folder that holds the bundles; see :func:`shared_folder`.
    """
    source, out = _source(family, root), root / "bundles" / family
    with _first_makes(out) as mine:
        if mine:
            export_source(source, out)
    return source, load_bundle(out)


def denoiser_of(family: str, root: Path, *, precision: str = "float32") -> Denoiser:
    """The network whose graph in a precision is that of :func:`graph_of`."""
    source = _source(family, root) if precision == "float32" else _half_source(family, root)
    low, high = timesteps(source)
    shape, tables = source.model.sample_shape, source.tables
    return Denoiser(source.denoiser, shape, conditions(source), tables=tables, timesteps=(low, high))


@cache
def _graph_file(family: str, root: Path, precision: str) -> Path:
    if precision == "float32":
        return exported(family, root)[1].path / DENOISER
    path = root / "graphs" / f"{family}-{precision}.onnx"
    with _first_makes(path) as mine:
        if mine:
            model = denoiser_of(family, root, precision=precision).graph(precision=precision)
            path.write_bytes(model.SerializeToString())
    return path


def graph_of(family: str, root: Path, *, precision: str = "float32") -> onnx.ModelProto:
    """The graph of a family's network, its weights inside; a fresh copy. In float32 it is the bundle's."""
    return onnx.load(_graph_file(family, root, precision))


def run_without(program: str, *args: str | Path) -> str:
    """Output of a program in a process in which importing :data:`HIDDEN` fails."""
    code = WITHOUT + "\n" + program
    command = [sys.executable, "-c", code, HIDDEN, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout
