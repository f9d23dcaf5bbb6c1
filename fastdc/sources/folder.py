"""A model in diffusers' format: a folder of components, each a JSON config and safetensors weights, or a hub id.

Only components that a caller names are built, and only if their class is on the caller's list. A pipeline object is
never built, because its index may name code to be run. Anybody may have written the folder. Therefore, before any
memory is taken:

* Names must be plain, JSON files must be small, and a config may not ask for code, adapters or quantised weights.
* The headers of all weights are read. They state how many numbers there are, and the files must be whole.
* The network is laid out without memory (on torch's meta device) and must need as many numbers as there are. The number
  of layers that a config asks for is bounded by the number of tensors in the files.

Weights in other formats than safetensors are refused: the older formats are pickles, which execute their content.
"""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors

from fastdc.support import BundleError, InputError, checks, installed, one_line, require, shown, strict_json

require("torch", extra="export")

import torch  # noqa: E402
from torch import nn  # noqa: E402

INDEX = "model_index.json"

MAX_JSON_BYTES = 4 * 2**20
"""Size limit of one JSON file. The largest published ones are shard indices and lists of a thousand class names."""

MAX_PARAMETERS = 20_000_000_000
"""Limit of one component. The largest published ones that papers classify with have 8e9."""

MAX_POSITIONS = 2**28
"""Limit of numbers in a table of positions. A network computes the table, so no file bounds it; SD3's has 2.3e8."""

_PLAIN = re.compile(r"[A-Za-z0-9_]{1,80}")
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.safetensors")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}")
_LAYERS = re.compile(r"layers|depth|num_blocks")
_STEMS = ("diffusion_pytorch_model", "model")

# Entries and files that would run code, fetch something, or load other weights than those that were checked.
_REFUSED_KEYS = ("auto_map", "quantization_config", "transformers_weights", "_attn_implementation", "trust_remote_code")
_REFUSED_FILES = ("adapter_config.json",)

# A folder on the hub also holds the same weights in other formats and precisions.
_WANTED = (INDEX, "*config.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors", "diffusion_*.safetensors")
_UNWANTED = ("safety_checker/*", "*.fp16.*", "*.bf16.*", "*.non_ema.*", "*/openvino_*", "*/flax_*")

_COMPONENT_OF = {
    "UNet2DModel": "unet",
    "UNet2DConditionModel": "unet",
    "DiTTransformer2DModel": "transformer",
    "Transformer2DModel": "transformer",
    "SD3Transformer2DModel": "transformer",
    "AutoencoderKL": "vae",
}


@dataclass(frozen=True)
class ModelFolder:
    """A folder in diffusers' format.

    Attributes:
        path: Path of the folder.
        name: Short name for messages and results: the hub id, or the folder's own name.
        index: Content of model_index.json; made up for a folder that holds one network alone.
        revision: Commit of a folder from the hub, or "".
    """

    path: Path
    name: str
    index: dict[str, Any] = field(repr=False)
    revision: str = ""

    @classmethod
    def open(cls, source: "FolderLike") -> "ModelFolder":
        """Opens a local folder, or fetches one from the hub.

        Args:
            source: A folder, or a hub id such as "org/name". An open folder is returned unchanged.

        Raises:
            InputError: The folder does not exist and cannot be fetched.
            BundleError: The folder is not in diffusers' format.
        """
        if isinstance(source, ModelFolder):
            return source
        path, text = Path(source), str(source)
        if path.is_dir():
            return cls(path, path.resolve().name, _index_of(path))
        if path.exists():
            raise InputError(f"{text} is a file: expected a folder with {INDEX}")
        if not isinstance(source, str) or not _HUB_ID.fullmatch(source) or ".." in source:
            raise InputError(f"{text} does not exist: expected a folder with {INDEX}, or a hub id such as org/name")
        path = _fetch(source)
        return cls(path, source, _index_of(path), path.name)

    @property
    def pipeline(self) -> str:
        """Name of the pipeline's class, or of the network's class if the folder holds one network alone."""
        return str(self.index["_class_name"])

    def has(self, name: str) -> bool:
        """Whether the folder has a component of this name; pipelines may leave some out."""
        entry = self.index.get(name)
        return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)

    def class_of(self, name: str) -> str:
        """Name of a component's class.

        Raises:
            BundleError: The folder has no such component.
        """
        if not _PLAIN.fullmatch(name) or not self.has(name):
            known = ", ".join(key for key in self.index if self.has(key))
            raise BundleError(f"{self.name} has no component {shown(name)}: it has {known}")
        return str(self.index[name][1])

    def folder(self, name: str) -> Path:
        """The folder of a component: its own, or the pipeline's, as in the oldest models.

        Raises:
            BundleError: The component or its folder does not exist.
        """
        self.class_of(name)
        own = self.path / name
        if own.is_dir():
            return own
        if any((self.path / file).is_file() for file in _configs_of(name)):
            return self.path
        raise BundleError(f"{self.name} is incomplete: it has no folder {name}")

    def config(self, name: str) -> dict[str, Any]:
        """A component's config: config.json, or scheduler_config.json.

        Raises:
            BundleError: The config is missing, too large, not a JSON object, or asks for something unsupported.
        """
        folder = self.folder(name)
        for file in _configs_of(name):
            if (folder / file).is_file():
                config = _read_json(folder / file, self._where(name, file))
                _check_config(config, self._where(name, file))
                return config
        raise BundleError(f"{self.name} is incomplete: {name} has no {_configs_of(name)[-1]}")

    def component(self, name: str, allowed: Mapping[str, Any]) -> nn.Module:
        """One component with its weights: float32, on the CPU, in evaluation mode, without gradients.

        Args:
            name: Name of the component, such as "unet".
            allowed: Accepted classes of diffusers or transformers, by the names that folders use for them.

        Raises:
            BundleError: The component is of another class, its weights are missing, truncated, not safetensors or not
                of this network, or its config cannot be built.
        """
        kind = self.class_of(name)
        if kind not in allowed:
            raise BundleError(f"{self.name}: {name} must be of class {', '.join(allowed)}, got {kind:.80}")
        config, folder = self.config(name), self.folder(name)
        for file in _REFUSED_FILES:
            if (folder / file).exists():
                raise BundleError(f"{self._where(name, file)} is not supported: expected complete weights")
        weights, variant = self._weights(name, folder)
        tensors, numbers = _count(weights, self._where(name, ""))
        _check_size(config, tensors, self._where(name, "config"))
        self._check_layout(name, allowed[kind], config, numbers)
        module = self._load(name, allowed[kind], folder, variant)
        return module.eval().requires_grad_(False)

    def _where(self, name: str, file: str) -> str:
        """A file's name for messages, without the folders above the model's."""
        return f"{self.name}/{name}" + (f"/{file}" if file else "")

    def _weights(self, name: str, folder: Path) -> tuple[list[Path], str | None]:
        """The safetensors files of a component, and the variant in their names ("fp16") or None."""
        for variant in (None, "fp16"):
            for stem in _STEMS:
                middle = "" if variant is None else f".{variant}"
                whole = folder / f"{stem}{middle}.safetensors"
                shards = folder / f"{stem}.safetensors.index{middle}.json"
                if whole.is_file():
                    return [whole], variant
                if shards.is_file():
                    return self._shards(name, shards), variant
        others = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        if others:
            raise BundleError(
                f"{self._where(name, others[0])} is a pickle, which is not read: convert the model with its own "
                "pipeline, save_pretrained(folder, safe_serialization=True)"
            )
        raise BundleError(f"{self.name} is incomplete: {name} has no {_STEMS[0]}.safetensors")

    def _shards(self, name: str, index: Path) -> list[Path]:
        """The files that a shard index names; each must lie beside it."""
        entry = _read_json(index, self._where(name, index.name))
        of_tensor = entry.get("weight_map")
        if not isinstance(of_tensor, dict) or not of_tensor:
            raise BundleError(f"{self._where(name, index.name)} has no weight_map")
        files = sorted({str(file) for file in of_tensor.values()})
        for file in files:
            if not _SHARD.fullmatch(file):
                raise BundleError(f"{self._where(name, index.name)} names {shown(file)}: expected a file beside it")
            if not (index.parent / file).is_file():
                raise BundleError(f"{self.name} is incomplete: {name} has no {file}")
        return [index.parent / file for file in files]

    def _check_layout(self, name: str, kind: Any, config: dict[str, Any], numbers: int) -> None:
        """Refuses a config whose network needs another number of parameters than the weights have."""
        try:
            with torch.device("meta"):
                made = kind.from_config(config) if hasattr(kind, "from_config") else kind(kind.config_class(**config))
        except Exception as error:  # constructors raise anything on a bad config
            raise BundleError(f"{self._where(name, 'config')} cannot be built: {one_line(error)}") from None
        least = sum(parameter.numel() for parameter in made.parameters())
        most = sum(value.numel() for value in made.state_dict().values())
        if least > MAX_PARAMETERS:
            raise BundleError(f"{self._where(name, 'config')}: at most {MAX_PARAMETERS:,} parameters, got {least:,}")
        # Files may hold one copy of a tensor that a network uses twice, and indices that newer versions compute.
        if not least <= numbers <= most + 2**16:
            raise BundleError(
                f"{self.name}: {name} needs {least:,} numbers by its config, but its weights hold {numbers:,}"
            )

    def _load(self, name: str, kind: Any, folder: Path, variant: str | None) -> nn.Module:
        """Builds a component and loads its weights, whose names and shapes must all match."""
        of_diffusers = hasattr(kind, "from_config")
        options: dict[str, Any] = {"torch_dtype" if of_diffusers else "dtype": torch.float32}
        if of_diffusers:
            options["low_cpu_mem_usage"] = installed("accelerate")  # without it, the network is in memory twice
        try:
            module, report = kind.from_pretrained(
                str(folder),
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                variant=variant,
                **options,
            )
        except Exception as error:  # OSError, ValueError, RuntimeError, SafetensorError
            raise BundleError(f"{self._where(name, '')} cannot be loaded: {one_line(error)}") from None
        for problem in ("missing_keys", "mismatched_keys", "unexpected_keys"):
            names = sorted(str(key) for key in report.get(problem, ()) if not str(key).endswith("position_ids"))
            if names:
                raise BundleError(f"{self.name}: weights of {name} have {problem.replace('_', ' ')}: {names[0]:.100}")
        out: nn.Module = module
        return out


FolderLike = str | os.PathLike[str] | ModelFolder
"""A folder in diffusers' format: its path, a hub id, or an open one."""


def _configs_of(name: str) -> tuple[str, ...]:
    """The file names that a component's config may have."""
    return ("scheduler_config.json",) if name == "scheduler" else ("config.json",)


def _read_json(path: Path, where: str) -> dict[str, Any]:
    """The content of a JSON file, which must be an object; `where` names the file in messages."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise BundleError(f"{where} must be at most {MAX_JSON_BYTES} bytes, got {size}")
        content = strict_json(path.read_bytes(), Path(where), infinities=True)  # "lambda_min_clipped": -Infinity
    except OSError as error:
        raise BundleError(f"{where} cannot be read: {error.strerror}") from None
    if not isinstance(content, dict):
        raise BundleError(f"{where} must be a JSON object, got {type(content).__name__}")
    return content


def _index_of(path: Path) -> dict[str, Any]:
    """The pipeline's index. For a network's own folder, an index is made of the network and its scheduler, if any."""
    where = f"{path.name}/{INDEX}"
    if (path / INDEX).is_file():
        index = _read_json(path / INDEX, where)
        kind = index.get("_class_name")
        if isinstance(kind, list) and len(kind) == 2:  # the folder's own pipeline: its file and its class
            kind = kind[1]
        if not isinstance(kind, str):
            raise BundleError(f"{where} has no _class_name")
        bad = [name for name in index if not _PLAIN.fullmatch(name)]
        if bad:
            raise BundleError(f"{where} must name components by plain words, got {shown(bad[0])}")
        return {**index, "_class_name": kind}
    if not (path / "config.json").is_file():
        raise BundleError(f"{path} is not a model in diffusers' format: expected {INDEX} or config.json")
    kind = _read_json(path / "config.json", f"{path.name}/config.json").get("_class_name")
    if not isinstance(kind, str) or kind not in _COMPONENT_OF:
        raise BundleError(
            f"{path.name}/config.json must be of a class in {', '.join(_COMPONENT_OF)}, got {shown(kind)}"
        )
    made: dict[str, Any] = {"_class_name": kind, _COMPONENT_OF[kind]: ["diffusers", kind]}
    if (path / "scheduler_config.json").is_file() or (path / "scheduler").is_dir():
        made["scheduler"] = ["diffusers", "scheduler"]
    return made


def _fetch(source: str) -> Path:
    """Downloads a folder from the hub, without weights in other formats."""
    require("diffusers", extra="export")  # brings the hub's client
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(source, allow_patterns=list(_WANTED), ignore_patterns=list(_UNWANTED))
        )
    except Exception as error:  # errors of the hub, its HTTP client and the system
        raise InputError(
            f"{source} is not a folder here and cannot be fetched from the hub: {one_line(error)}"
        ) from None


def _check_config(config: Mapping[str, Any], where: str) -> None:
    """Refuses a config that asks for code, adapters or quantised weights."""
    for key in _REFUSED_KEYS:
        if config.get(key):
            raise BundleError(f"{where}: {key} is not supported")


def _count(files: list[Path], where: str) -> tuple[int, int]:
    """The counts (tensors, numbers) in safetensors files, from headers that the library checks against the files."""
    tensors = numbers = 0
    for file in files:
        try:
            with safetensors.safe_open(str(file), framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 - not a mapping
                    count = 1
                    for side in opened.get_slice(key).get_shape():
                        count *= int(side)
                    tensors, numbers = tensors + 1, numbers + count
        except Exception as error:  # SafetensorError, OSError
            raise BundleError(f"{where}/{file.name} is truncated or not safetensors: {one_line(error)}") from None
    return tensors, numbers


def _check_size(config: Mapping[str, Any], tensors: int, where: str) -> None:
    """Bounds the cost of laying out a network by the number of tensors in its weights."""

    def check(key: str, value: Any) -> None:
        if isinstance(value, dict):
            for inner, item in value.items():
                check(inner, item)
        elif isinstance(value, list):
            if len(value) > min(tensors, 1000):
                raise BundleError(f"{where}: {key} has {len(value)} entries, for {tensors} tensors")
            for item in value:
                check(key, item)
        elif checks.is_whole(value):
            most = tensors if _LAYERS.search(key) else 2**31
            if abs(value) > most:
                raise BundleError(f"{where}: {key} is {value}, for {tensors} tensors")

    check("", dict(config))
    count = 0
    with suppress(KeyError, TypeError, ValueError, ZeroDivisionError):  # no table, or no config that can be built
        side = max(int(config["sample_size"]) // int(config["patch_size"]), int(config.get("pos_embed_max_size") or 0))
        count = side**2 * int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    if count > MAX_POSITIONS:
        raise BundleError(f"{where}: a table of positions has at most {MAX_POSITIONS} numbers, got {count}")
