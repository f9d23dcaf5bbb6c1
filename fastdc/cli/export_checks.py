"""What ``fastdc export`` can refuse before torch is imported, which takes seconds."""

import re
from pathlib import Path
from typing import Any

from fastdc.cli.sources import STDIN
from fastdc.support import InputError, checks

OF_SOURCES = {
    "prompts": "--prompts",
    "classes": "--classes",
    "template": "--template",
    "image_size": "--image-size",
    "null_class": "--null-class",
    "lora": "--lora",
    "variant": "--variant",
    "scheduler": "--scheduler",
    "opset": "--opset",
    "split": "--no-split",
    "text": "--no-text-encoder",
    "decoder": "--decoder",
    "scored": "--scored",
    "engine": "--engine",
    "verify": "--verify",
}
"""The options of models of other tools, as typed."""

_UNLESS_GIVEN = {"split": True, "text": True, "decoder": False, "scored": False, "verify": False}


def check_export(source: str, out: str, options: dict[str, Any], *, is_run: bool) -> None:
    """Refuses what is missing, in the way, or without effect.

    Args:
        source: The model to export.
        out: Folder of the bundle.
        options: Options of the command.
        is_run: Whether the source is a run of ``fastdc train``.

    Raises:
        InputError: See above.
    """
    from fastdc.bundle import read_prompts
    from fastdc.export import ExportOptions, check_calibration

    if not Path(source).exists() and not source.startswith("hf://"):
        if re.fullmatch(r"\w[\w.-]*/[\w.-]+", source):
            raise InputError(f"{source} does not exist here; for the Hugging Face hub write hf://{source}")
        raise InputError(
            f"{source} does not exist: expected a run of fastdc train, a diffusers folder (on the Hugging Face hub: "
            "hf://org/name), or an EDM .pkl"
        )
    _check_kind(source, options, is_run=is_run)
    if Path(out).exists() and not options["overwrite"]:
        raise InputError(f"{out} exists: choose another path, or replace it with --overwrite")
    loras = [text.rpartition("=")[0] or text for text in options["lora"]]
    for name, path in (("calibrate", options["calibrate"]), *(("lora", path) for path in loras)):
        if path not in (None, STDIN) and not Path(path).exists():
            raise InputError(f"--{name} {path} does not exist")
    scheduler = options["scheduler"]
    if scheduler is not None and not Path(scheduler).exists():
        raise InputError(
            f"{scheduler} is no scheduler (--scheduler): expected a scheduler_config.json, or a folder with one"
        )
    if options["prompts"] is not None:
        read_prompts(options["prompts"])
    if options["draws"] is not None:
        checks.whole("draws", options["draws"])
    if options["calibrate"] is None:
        if options["precision"] == "int8" and options["engine"] is None:
            raise InputError("int8 needs images to take the ranges of activations from (--calibrate)")
        asked = {name: options[name] for name in ("weighting", "choose", "delta")}
        check_calibration(ExportOptions(**asked), None)


def _check_kind(source: str, options: dict[str, Any], *, is_run: bool) -> None:
    """Refuses options of models of other tools with a run, and the other way round."""
    for name, typed in OF_SOURCES.items() if is_run else ():
        if options[name] not in (None, (), _UNLESS_GIVEN.get(name)):
            raise InputError(f"{typed} is for models of other tools, but {source} is a run of fastdc train")
    if options["checkpoint"] is not None and not is_run:
        raise InputError(f"--checkpoint is for runs of fastdc train, and {source} is not one")
