"""``fastdc train``: train a denoiser on labelled images, in a run folder that survives interruptions."""

import shlex
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastdc.cli.launching import follow, launch
from fastdc.support import FastdcError, InputError

if TYPE_CHECKING:
    from fastdc.train import RunSummary, TrainConfig

_SIGNAL_CODES = {"SIGINT": 130, "SIGTERM": 143}  # 128 + number, as shells report them


def run(**options: Any) -> None:
    """Does the command with the options of :mod:`fastdc.cli.commands.train`."""
    from fastdc.train import is_image_text, told

    if options["from_"] is not None and is_image_text(options["from_"]):
        from fastdc.cli.train_clip import run as tune

        tune(**options)
        return
    if options.pop("epochs") is not None:
        raise InputError("epochs is for a CLIP to fine-tune (--from): give steps, got epochs")
    count, index = told()
    follow()
    if index == 0:
        _run(count, **options)
        return
    warnings.simplefilter("ignore")
    try:
        _run(count, **(options | {"quiet": True}))
    except (FastdcError, OSError, MemoryError, KeyboardInterrupt):
        sys.exit(1)  # the main process says why


def _run(
    joined: int,
    data: str | None,
    out: str,
    resume: bool,
    quiet: bool,
    processes: int,
    preset: str | None,
    **options: Any,
) -> None:
    from fastdc.train import RunFolder, TrainConfig, told, train

    options["base"] = options.pop("from_")
    if options["prompts"] is not None:
        options["prompts"] = _prompts(options["prompts"])
    if options["channels"] is not None:
        options["channels"] = int(options["channels"])
    given = {name: value for name, value in options.items() if value is not None}
    if data is not None:
        given["data"] = data
    if resume:
        given = RunFolder(out).info().config.to_dict() | given
        if data is None and not Path(given["data"]).exists():
            gone = given["data"]
            raise InputError(f"{gone} is gone, with which {out} was started: give DATA, where the images are now")
    elif data is None:
        raise InputError("give DATA, the images to train on (a folder with one sub-folder per class, a table, an .npz)")
    if preset is not None and (resume or options["base"] is not None):
        raise InputError("preset is for a new run with a new network: expected neither --resume nor --from")
    made = TrainConfig if preset is None else partial(TrainConfig.named, preset)
    config = made(**(given | {"out": out}))
    if processes > 1 and joined == 1:
        click.get_current_context().exit(launch(sys.argv[1:], processes, config.threads))
    notify = (lambda line: None) if quiet else (lambda line: click.echo(line, err=True))
    summary = train(config, resume=resume, progress=False if quiet else None, notify=notify)
    code = 0 if summary.finished else _SIGNAL_CODES[summary.stopped_by or ""]
    if told()[1] > 0:
        click.get_current_context().exit(code)

    place = shlex.quote(str(summary.path))
    loss = "" if summary.loss is None else f", loss {summary.loss:.4f}"
    val_loss = "" if summary.val_loss is None else f", validation loss {summary.val_loss:.4f}"
    done = f"{summary.step} of {summary.steps} steps in {summary.seconds:.0f} s{loss}{val_loss}"
    if not summary.finished:
        click.echo(f"stopped by {summary.stopped_by} and saved: {summary.path}, {done}")
        more = f" --processes {processes}" if processes > 1 else ""
        click.echo(f"next: fastdc train --out {place} --resume{more}")
        click.get_current_context().exit(code)
    early = "" if summary.stopped_by is None else ", ended early: no better in the last checkpoints (--patience)"
    what = config.model if config.base is None else f"from {Path(config.base).name}"
    click.echo(f"trained {summary.path}: {what}, {summary.parameters:,} parameters, {done}{early}")
    if summary.best is not None:
        click.echo(f"best checkpoint: {summary.best}")
    click.echo(f"next: fastdc export {place} BUNDLE{_calibration_hint(config, summary)}")


def _prompts(path: str) -> tuple[tuple[str, str], ...]:
    """The name and the text of each class in a file of prompts."""
    from fastdc.bundle import read_prompts

    read = read_prompts(path)
    return tuple((read.class_names[k], text) for text, k in zip(read.texts, read.class_of, strict=True))


def _calibration_hint(config: "TrainConfig", summary: "RunSummary") -> str:
    from fastdc.train import validation_source

    if summary.val_loss is None:
        return "   (add --calibrate IMAGES to fit the probabilities and the race)"
    kept = summary.path / "val.npz"
    return f" --calibrate {shlex.quote(str(kept if kept.exists() else validation_source(config)))}"
