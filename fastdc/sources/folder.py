"""A model in diffusers' format: a folder of components, each a JSON config and safetensors weights, here or on the hub.

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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastdc.sources.configs import SCHEDULER_CONFIG, check_config, check_size, read_json, read_scheduler
from fastdc.sources.hub import PREFIX, HubRepository, find_repository, is_hub_name
from fastdc.sources.pipelines import family_of
from fastdc.sources.weights import (
    SINGLE_FILES,
    VARIANT,
    choose_weights,
    count_numbers,
    is_shard_index,
    single_file,
    variants_of,
)
from fastdc.support import BundleError, InputError, installed, one_line, require, shown

require("torch", extra="export")

import torch  # noqa: E402
from torch import nn  # noqa: E402

INDEX = "model_index.json"

MAX_PARAMETERS = 20_000_000_000
"""Limit of one component. The largest published ones that papers classify with have 8e9."""

_PLAIN = re.compile(r"[A-Za-z0-9_]{1,80}")
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.safetensors")

# Files that would load other weights than those that were checked.
_REFUSED_FILES = ("adapter_config.json",)

# The components that are read, of all families. Others, such as safety checkers and ControlNets, are left alone.
_NETWORKS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
_OTHERS = ("scheduler", "tokenizer", "tokenizer_2", "tokenizer_3")
_CONFIGS = ("config.json", SCHEDULER_CONFIG)

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
        name: Short name for messages and results: the hub's org/name, or the folder's own name.
        index: Content of model_index.json; made up for a folder that holds one network alone.
        repository: The repository on the hub that the folder is fetched from; None for a folder of the user.
        variant: The variant of the weights that the user asks for, such as "fp16"; None: the default.
        scheduler: Content of a scheduler_config.json that the user gives in place of the folder's own, or None.
    """

    path: Path
    name: str
    index: dict[str, Any] = field(repr=False)
    repository: HubRepository | None = None
    variant: str | None = None
    scheduler: dict[str, Any] | None = field(default=None, repr=False)

    @classmethod
    def open(
        cls, source: "FolderLike", *, variant: str | None = None, scheduler: str | os.PathLike[str] | None = None
    ) -> "ModelFolder":
        """Opens a local folder, or a model of the hub, of which only the index is fetched.

        Args:
            source: A folder, or a model of the hub as "hf://org/name" or "hf://org/name@revision". An open folder is
                returned unchanged.
            variant: The variant of the weights to read where there are several, such as "fp16".
            scheduler: A scheduler_config.json, or a folder that holds one, to use in place of the folder's own.

        Raises:
            InputError: The folder or the scheduler does not exist, or cannot be fetched.
            BundleError: The folder is not in diffusers' format.
        """
        if isinstance(source, ModelFolder):
            return source
        if variant is not None and not VARIANT.fullmatch(variant):
            raise InputError(f"a variant must be letters, digits and _, as in fp16 (--variant), got {shown(variant)}")
        given = None if scheduler is None else read_scheduler(Path(scheduler))
        text = str(source)
        if text.startswith(PREFIX):
            repository = find_repository(text)
            path, name = _fetch_index(repository), repository.name
        else:
            repository, path = None, _local(text)
            name = path.resolve().name
        index = _index_of(path, name)
        if given is not None:
            index["scheduler"] = ["diffusers", "scheduler"]
        return cls(path, name, index, repository, variant, given)

    def ready(self, *, networks: Sequence[str] | None = None) -> "ModelFolder":
        """The folder with all files that a reader needs, which are fetched if it is on the hub.

        Args:
            networks: The components whose weights are needed; None: those of a pipeline that can be exported.

        Raises:
            InputError: A file cannot be fetched, or no component has the variant.
            BundleError: The pipeline cannot be exported, or weights are missing or pickles; nothing more is fetched.
        """
        if networks is None:
            family_of(self.pipeline)
        if self.repository is None:
            self._check_variant()
            return self
        small = sorted(file for file in self.repository.files if _is_small(file))
        folder = replace(self, path=self.repository.fetch(small))
        folder._check_variant()
        weights = [file for name in networks or _NETWORKS if folder.has(name) for file in folder._weights(name)[0]]
        self.repository.fetch([*small, *(file.relative_to(folder.path).as_posix() for file in weights)])
        return folder

    def provenance(self, *, networks: Sequence[str] = _NETWORKS) -> dict[str, str | int | float]:
        """Where the model comes from: its pipeline and name, the hub's commit, and variants that were read.

        Args:
            networks: The components that were read, if the folder has them.
        """
        found: dict[str, str | int | float] = {"pipeline": self.pipeline, "source": self.name}
        if self.repository is not None:
            found["revision"] = self.repository.commit
        read = {name: self._weights(name)[1] for name in networks if self.has(name)}
        variants = [f"{name}: {variant}" for name, variant in read.items() if variant is not None]
        if variants:
            found["variant"] = ", ".join(variants)
        if self.scheduler is not None:
            found["scheduler"] = f"{self.scheduler.get('_class_name')!s:.80}, given"
        return found

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
        """A component's config: config.json, or scheduler_config.json, or the scheduler that the user gives.

        Raises:
            BundleError: The config is missing, too large, not a JSON object, or asks for something unsupported.
        """
        if name == "scheduler" and self.scheduler is not None:
            return self.scheduler
        folder = self.folder(name)
        for file in _configs_of(name):
            if (folder / file).is_file():
                config = read_json(folder / file, self._where(name, file))
                check_config(config, self._where(name, file))
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
            raise BundleError(f"{self.name}: {name} must be of class {', '.join(allowed)}, got {shown(kind)}")
        config, folder = self.config(name), self.folder(name)
        for file in _REFUSED_FILES:
            if (folder / file).exists():
                raise BundleError(f"{self._where(name, file)} is not supported: expected complete weights")
        weights, variant = self._weights(name)
        tensors, numbers = count_numbers(weights, self._where(name, ""))
        check_size(config, tensors, self._where(name, "config"))
        self._check_layout(name, allowed[kind], config, numbers)
        module = self._load(name, allowed[kind], folder, variant)
        return module.eval().requires_grad_(False)

    def _where(self, name: str, file: str) -> str:
        """A file's name for messages, without the folders above the model's."""
        return f"{self.name}/{name}" + (f"/{file}" if file else "")

    def _files(self, folder: Path) -> frozenset[str]:
        """Names of the files in a folder, here or on the hub."""
        if self.repository is None:
            return frozenset(entry.name for entry in folder.iterdir() if entry.is_file())
        start = "" if folder == self.path else f"{folder.name}/"
        names = (file.removeprefix(start) for file in self.repository.files if file.startswith(start))
        return frozenset(name for name in names if "/" not in name)

    def _weights(self, name: str) -> tuple[list[Path], str | None]:
        """The safetensors files of a component, and the variant in their names or None."""
        folder = self.folder(name)
        file, variant = choose_weights(self._files(folder), self.name, name, self.variant)
        return self._shards(name, folder / file) if is_shard_index(file) else [folder / file], variant

    def _check_variant(self) -> None:
        """Refuses a variant that the user asks for if no component has it."""
        if self.variant is None:
            return
        found: set[str | None] = set()
        for name in filter(self.has, _NETWORKS):
            found |= set(variants_of(self._files(self.folder(name))))
        if self.variant not in found:
            listed = ", ".join(sorted(map(str, found - {None}))) or "none"
            raise InputError(f"{self.name} has no weights of the variant {self.variant} (--variant): it has {listed}")

    def _shards(self, name: str, index: Path) -> list[Path]:
        """The files that a shard index names; each must lie beside it."""
        entry = read_json(index, self._where(name, index.name))
        of_tensor = entry.get("weight_map")
        if not isinstance(of_tensor, dict) or not of_tensor:
            raise BundleError(f"{self._where(name, index.name)} has no weight_map")
        files, there = sorted({str(file) for file in of_tensor.values()}), self._files(index.parent)
        for file in files:
            if not _SHARD.fullmatch(file):
                raise BundleError(f"{self._where(name, index.name)} names {shown(file)}: expected a file beside it")
            if file not in there:
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
"""A folder in diffusers' format: its path, a model of the hub as "hf://org/name", or an open one."""


def _configs_of(name: str) -> tuple[str, ...]:
    """The file names that a component's config may have."""
    return (SCHEDULER_CONFIG,) if name == "scheduler" else ("config.json",)


def _index_of(path: Path, name: str) -> dict[str, Any]:
    """The pipeline's index. For a network's own folder, an index is made of the network and its scheduler, if any."""
    where = f"{name}/{INDEX}"
    if (path / INDEX).is_file():
        index = read_json(path / INDEX, where)
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
        raise _no_index(str(path), [entry.name for entry in path.iterdir()])
    kind = read_json(path / "config.json", f"{name}/config.json").get("_class_name")
    if not isinstance(kind, str) or kind not in _COMPONENT_OF:
        raise BundleError(f"{name}/config.json must be of a class in {', '.join(_COMPONENT_OF)}, got {shown(kind)}")
    made: dict[str, Any] = {"_class_name": kind, _COMPONENT_OF[kind]: ["diffusers", kind]}
    if (path / SCHEDULER_CONFIG).is_file() or (path / "scheduler").is_dir():
        made["scheduler"] = ["diffusers", "scheduler"]
    return made


def _local(text: str) -> Path:
    """The user's folder.

    Raises:
        InputError: It does not exist, or is a file.
    """
    path = Path(text)
    if path.is_dir():
        return path
    if path.is_file() and path.suffix in SINGLE_FILES:
        raise InputError(single_file(text))
    if path.exists():
        raise InputError(f"{text} is a file: expected a folder with {INDEX}")
    if is_hub_name(text):
        raise InputError(f"{text} does not exist here; for the Hugging Face hub write {PREFIX}{text}")
    raise InputError(
        f"{text} does not exist: expected a folder with {INDEX}, or {PREFIX}org/name for the Hugging Face hub"
    )


def _fetch_index(repository: HubRepository) -> Path:
    """Fetches the index of a pipeline, or the config of a network alone."""
    wanted = repository.files & {INDEX, *_CONFIGS}
    if not wanted & {INDEX, "config.json"}:
        raise _no_index(repository.name, repository.files)
    return repository.fetch(wanted)


def _no_index(name: str, files: Iterable[str]) -> BundleError:
    """The refusal of a folder without an index; it says what to do about a model in one file."""
    single = sorted(file for file in files if "/" not in file and file.endswith(SINGLE_FILES))
    advice = f"; {single_file(single[0])}" if single else ""
    return BundleError(f"{name} is not a model in diffusers' format: expected {INDEX} or config.json{advice}")


def _is_small(file: str) -> bool:
    """Whether a file of the hub is a config, an index or part of a tokenizer that a reader may need."""
    folder, _, name = file.rpartition("/")
    if folder:
        return folder in (*_NETWORKS, *_OTHERS) and name.endswith((".json", ".txt", ".model"))
    return name in (INDEX, *_CONFIGS, *_REFUSED_FILES) or is_shard_index(name)
