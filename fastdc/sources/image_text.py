"""Networks that compare images with texts, as transformers saves them: CLIP, SigLIP, SigLIP 2 and ViLT.

A folder has config.json, model.safetensors, the tokenizer's files and the image processor's. Anybody may have written
it, so it is opened by the rules of :mod:`fastdc.sources.folder`: no code of the folder runs, pickles are refused, and
every weight of the network must be there. A head that a file lacks would otherwise be random numbers, silently.

Images are prepared as the folder's processor states, by transformers' own code for Pillow: it is what such models are
published with, and gives the same numbers whether or not torchvision is installed. Texts are padded as the tokenizer
states; SigLIP, which was trained on texts of one length, sees that length always.
"""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdc.sources.configs import check_config, read_json
from fastdc.sources.folder import ModelFolder
from fastdc.sources.text import MAX_TOKENIZER_BYTES, MAX_TOKENS
from fastdc.sources.weights import PICKLES, variants_of
from fastdc.support import (
    BackendError,
    BundleError,
    FastdcError,
    InputError,
    Int64,
    PromptWarning,
    one_line,
    require,
    shown,
)

require("torch", extra="export")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

DUAL = ("clip", "siglip", "siglip2")
"""Kinds with one encoder for images and one for texts."""

JOINT = ("vilt",)
"""Kinds that read an image and a text together."""

_NETWORKS = {
    "clip": "CLIPModel",
    "siglip": "SiglipModel",
    "siglip2": "Siglip2Model",
    "vilt": "ViltForImageAndTextRetrieval",
}
_PROCESSORS = {
    "clip": "CLIPImageProcessorPil",
    "siglip": "SiglipImageProcessorPil",
    "siglip2": "Siglip2ImageProcessorPil",
    "vilt": "ViltImageProcessorPil",
}
_EXPECTED = "config.json, model.safetensors, a tokenizer and an image processor, as save_pretrained writes them"
_NAMED = 3  # texts that a warning names


@dataclass(frozen=True, eq=False)
class ImageTextModel:
    """A network that compares images with texts, and what prepares both for it.

    Attributes:
        name: Name of its folder.
        kind: "clip", "siglip", "siglip2" or "vilt".
        network: transformers' network, float32, in evaluation mode.
        tokenizer: transformers' tokenizer.
        processor: transformers' image processor.
        length: Number of tokens that it reads.
        sha256: Hash of the files of weights.
    """

    name: str
    kind: str
    network: nn.Module = field(repr=False)
    tokenizer: Any = field(repr=False)
    processor: Any = field(repr=False)
    length: int
    sha256: str

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The network's inputs for n texts, each int64 (n, length); the length is that of the longest but for SigLIP.

        Args:
            texts: n texts; what is longer than the network reads is cut, which :meth:`check_texts` tells.
        """
        padding = "longest" if self.kind in ("clip", "vilt") else "max_length"
        made = self.tokenizer(
            list(texts), padding=padding, truncation=True, max_length=self.length, return_tensors="pt"
        )
        return {name: values.to(self.device) for name, values in made.items()}

    def pixels(self, images: Sequence[NDArray[np.uint8]]) -> dict[str, Tensor]:
        """The network's inputs for b images, as the folder's processor makes them.

        Args:
            images: b pictures, uint8 RGB (3, h, w), whose sizes may differ.
        """
        from PIL import Image

        pictures = [Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))) for image in images]
        made = self.processor(images=pictures, return_tensors="pt")
        return {name: values.to(self.device) for name, values in made.items()}

    def text_features(self, inputs: dict[str, Tensor]) -> Tensor:
        """Embeddings of texts with norm 1, float32 (n, d); of the kinds in :data:`DUAL`."""
        network: Any = self.network
        return _normed(network.get_text_features(**inputs).pooler_output)

    def image_features(self, inputs: dict[str, Tensor]) -> Tensor:
        """Embeddings of images with norm 1, float32 (b, d); of the kinds in :data:`DUAL`."""
        network: Any = self.network
        return _normed(network.get_image_features(**inputs).pooler_output)

    def firsts(self, texts: Sequence[str]) -> Int64:
        """For each of n texts, one or more, the first of them that the network reads as the same tokens, int64 (n,)."""
        seen: dict[tuple[int, ...], int] = {}
        ids = self.tokens(texts)["input_ids"].tolist()
        return np.array([seen.setdefault(tuple(one), at) for at, one in enumerate(ids)], np.int64)

    def check_texts(self, texts: Sequence[str]) -> None:
        """Warns of texts that are longer than the network reads, and of texts that it reads as the same.

        Warns:
            PromptWarning: There are such texts; the message names some.
        """
        if not texts:
            return
        encoded = self.tokenizer(list(texts), verbose=False)["input_ids"]
        cut = [
            f"{_short(text)} loses {len(ids) - self.length} token{'s'[: len(ids) - self.length != 1]}"
            for text, ids in zip(texts, encoded, strict=True)
            if len(ids) > self.length
        ]
        first = [texts[at] for at in self.firsts(texts).tolist()]
        same = [f"{_short(a)} and {_short(b)}" for a, b in zip(first, texts, strict=True) if a != b]
        for found, what in ((cut, f"reads at most {self.length} tokens"), (same, "reads these texts as the same")):
            if found:
                more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
                line = f"{self.name} {what}: {', '.join(found[:_NAMED])}{more}"
                warnings.warn(line, PromptWarning, stacklevel=3)

    def save(self, folder: Path) -> None:
        """Writes network, tokenizer and image processor into a folder, which :func:`open_image_text` reads."""
        network: Any = self.network
        with _without_bars():
            network.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def open_image_text(folder: str | Path, kinds: Sequence[str], *, device: str = "cpu") -> ImageTextModel:
    """Opens a folder that transformers has written; nothing is fetched, and nothing in it is executed.

    Args:
        folder: The folder.
        kinds: Kinds of networks that are expected, such as :data:`DUAL`.
        device: "cpu", "cuda", "cuda:N", or "auto": the first CUDA device, if there is one.

    Raises:
        InputError: There is no such folder.
        BundleError: The folder holds another kind of network, is incomplete or damaged, or asks for code to be run.
        BackendError: There is no such device.
        MissingDependencyError: torch or transformers is not installed.

    Example:
        >>> from fastdc.sources import open_image_text
        >>> from fastdc.testing import tiny_image_text
        >>> open_image_text(tiny_image_text(folder / "clip", "clip"), ["clip"]).kind
        'clip'
    """
    path = Path(folder)
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise InputError(f"{path} {what}: expected a folder with {_EXPECTED}")
    name = path.resolve().name
    transformers = require("transformers", extra="export")
    config = _config(path, name, kinds)
    kind = str(config["model_type"])
    files = [entry.name for entry in path.iterdir() if entry.is_file()]
    if not variants_of(files):
        pickles = sorted(file for file in files if file.endswith(PICKLES))
        if pickles:
            raise BundleError(
                f"{name}/{pickles[0]:.80} is a pickle, which is not read: load it with transformers and write it with "
                "save_pretrained"
            )
        raise BundleError(f"{name} is incomplete: expected {_EXPECTED}, found no model.safetensors")
    wanted = _device(device)
    of_class = _NETWORKS[kind]
    opened = ModelFolder(path, name, {"_class_name": of_class, kind: ["transformers", of_class]})
    tokenizer, length = _tokenizer(path, name, config)
    processor = _processor(path, name, kind)
    with _without_bars():
        network = opened.component(kind, {of_class: getattr(transformers, of_class)})
    return ImageTextModel(name, kind, network.to(wanted), tokenizer, processor, length, _digest(path))


def _config(path: Path, name: str, kinds: Sequence[str]) -> dict[str, Any]:
    """The folder's config, which must be that of one of some kinds."""
    where = f"{name}/config.json"
    if not (path / "config.json").is_file():
        raise BundleError(f"{name} has no config.json: expected {_EXPECTED}")
    config = read_json(path / "config.json", where)
    check_config(config, where)
    kind = str(config.get("model_type"))
    if kind not in kinds:
        raise BundleError(f"{where}: expected a model_type of {', '.join(kinds)}, got {shown(kind)}")
    made = config.get("architectures")
    if isinstance(made, list) and made and _NETWORKS[kind] not in made:
        raise BundleError(f"{where}: expected a {_NETWORKS[kind]}, got {shown(made[0])}")
    return config


def _tokenizer(path: Path, name: str, config: dict[str, Any]) -> tuple[Any, int]:
    """The tokenizer, and the number of tokens that the network reads."""
    transformers = require("transformers", extra="export")
    if not any((path / file).is_file() for file in ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model")):
        raise BundleError(f"{name} has no tokenizer: expected tokenizer.json")
    for file in path.glob("*token*.json"):
        if file.stat().st_size > MAX_TOKENIZER_BYTES:
            raise BundleError(f"{name}/{file.name} must have at most {MAX_TOKENIZER_BYTES // 10**6} MB")
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, **options)
        except ImportError:  # sentencepiece, which SigLIP's first tokenizer needs unless it is written out as JSON
            if not (path / "tokenizer.json").is_file():
                raise
            tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(path, **options)
        limits = [int(tokenizer.model_max_length), int(_text_config(config).get("max_position_embeddings", MAX_TOKENS))]
        length = min(*limits, MAX_TOKENS)
        tokenizer(["a"], padding="max_length", truncation=True, max_length=length)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # json, tokenizers and transformers raise all kinds; a panic of Rust is no Exception
        raise BundleError(f"{name}: the tokenizer cannot be read: {one_line(error)}") from None
    return tokenizer, length


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config about texts, with the defaults of its kind."""
    transformers = require("transformers", extra="export")
    made = getattr(transformers, _NETWORKS[config["model_type"]]).config_class(**config)
    found: dict[str, Any] = getattr(made, "text_config", made).to_dict()
    return found


def _processor(path: Path, name: str, kind: str) -> Any:
    """The image processor, in transformers' version for Pillow."""
    transformers = require("transformers", extra="export")
    if not any((path / file).is_file() for file in ("preprocessor_config.json", "processor_config.json")):
        raise BundleError(f"{name} has no image processor: expected preprocessor_config.json")
    try:
        processor = getattr(transformers, _PROCESSORS[kind]).from_pretrained(path, local_files_only=True)
        from PIL import Image

        processor(images=[Image.new("RGB", (48, 40))], return_tensors="pt")
    except Exception as error:  # anything, on a bad config
        raise BundleError(f"{name}: the image processor cannot be read: {one_line(error)}") from None
    return processor


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keeps transformers from drawing bars of weights that are read or written in a moment."""
    logging = require("transformers.utils.logging", extra="export")
    drawn = logging.is_progress_bar_enabled()
    if drawn:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()


def _device(wanted: str) -> torch.device:
    """A device of torch by its name."""
    if wanted == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, got {shown(wanted)}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendError(f"device {wanted!r} was asked for, but torch finds {torch.cuda.device_count()} CUDA devices")
    return device


def _digest(path: Path) -> str:
    """The sha256 of all files of weights, one after the other by name."""
    whole = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as opened:
            whole.update(hashlib.file_digest(opened, "sha256").digest())
    return whole.hexdigest()


@contextmanager
def computing(name: str, threads: int | None = None) -> Iterator[None]:
    """Around evaluations of a network: no gradients, a number of threads, and torch's exceptions in one line.

    Args:
        name: Name of the model, for messages.
        threads: Number of CPU threads; None: torch's choice.

    Raises:
        BackendError: torch cannot compute it: its config and weights disagree, or the memory is too small.

    Example:
        >>> from fastdc.sources import computing
        >>> with computing("clip", threads=1): pass
    """
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        with torch.inference_mode():
            yield
    except FastdcError:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise BackendError(f"{name} cannot be computed: {one_line(error)}") from None
    finally:
        torch.set_num_threads(before)


def _normed(features: Tensor) -> Tensor:
    out: Tensor = features / features.norm(dim=-1, keepdim=True)
    return out


def _short(text: str) -> str:
    """A text in quotes, its middle left out if it is long: texts often differ at the end."""
    return repr(text if len(text) <= 60 else f"{text[:25]} ... {text[-30:]}")
