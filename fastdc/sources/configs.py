"""JSON configs of models by anybody: read within limits, and refused if they ask for more than a network.

A config may not ask for code, adapters or quantised weights, nor for more layers than its weights have tensors, because
laying out a network costs time for each layer.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastdc.support import BundleError, InputError, checks, strict_json

SCHEDULER_CONFIG = "scheduler_config.json"

MAX_JSON_BYTES = 4 * 2**20
"""Size limit of one JSON file. The largest published ones are shard indices and lists of a thousand class names."""

MAX_POSITIONS = 2**28
"""Limit of numbers in a table of positions. A network computes the table, so no file bounds it; SD3's has 2.3e8."""

_LAYERS = re.compile(r"layers|depth|num_blocks")

# Entries that would run code, fetch something, or load other weights than those that were checked.
# transformers fetches the code of attention and experts that are named like a repository of the hub, and runs it.
_REFUSED_KEYS = (
    "auto_map",
    "quantization_config",
    "transformers_weights",
    "_attn_implementation",
    "attn_implementation",
    "_experts_implementation",
    "experts_implementation",
    "trust_remote_code",
)


def read_json(path: Path, where: str) -> dict[str, Any]:
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


def read_scheduler(path: Path) -> dict[str, Any]:
    """The scheduler config that the user gives: a file, a folder that holds one, or a pipeline's folder."""
    places = (path, path / SCHEDULER_CONFIG, path / "scheduler" / SCHEDULER_CONFIG)
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise InputError(f"{path} is no scheduler (--scheduler): expected a {SCHEDULER_CONFIG}, or a folder with one")
    config = read_json(file, str(file))
    check_config(config, str(file))
    return config


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Refuses a config that asks for code, adapters or quantised weights, itself or in a config within it."""
    for key in _REFUSED_KEYS:
        if config.get(key):
            raise BundleError(f"{where}: {key} is not supported")
    for inner in config.values():
        if isinstance(inner, dict):
            check_config(inner, where)


def check_size(config: Mapping[str, Any], tensors: int, where: str) -> None:
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
