"""``fastdc train --from CLIP``: fine-tune a CLIP or SigLIP of transformers on images whose classes are texts."""

import shlex
from contextlib import ExitStack
from typing import Any

import click

from fastdc.cli.options import Advance, progress_bar
from fastdc.support import InputError

_SIGNAL_CODES = {"SIGINT": 130, "SIGTERM": 143}  # 128 + number, as shells report them
_RECIPE = ("epochs", "batch", "lr", "warmup", "weight_decay", "clip", "seed")
_HIDDEN = ("weight_decay", "clip")
_OTHERS = ("template", "prompts", "split", "skip_bad", "max_pixels", "device", "threads")


def run(data: str | None, out: str, from_: str, resume: bool, quiet: bool, processes: int, **options: Any) -> None:
    """Does the command with the options of :mod:`fastdc.cli.commands.train`, whose --from is a CLIP."""
    from fastdc.train import ContrastiveRecipe, Tuning, tune_image_text

    options["processes"] = processes if processes > 1 else None
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    wrong = next((name for name in given if name not in (*_RECIPE, *_OTHERS)), None)
    if wrong is not None:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in (*_RECIPE, *_OTHERS) if name not in _HIDDEN)
        raise InputError(f"{wrong} cannot be given with a CLIP to fine-tune (--from): expected some of {flags}")
    if data is None:
        raise InputError("give DATA, the images to train on (a folder with one sub-folder per class, a table, an .npz)")
    more: dict[str, Any] = {name: given[name] for name in _OTHERS if name in given}
    if "prompts" in more:
        from fastdc.bundle import read_prompts

        more["prompts"] = read_prompts(more["prompts"])
    recipe = ContrastiveRecipe(**{name: given[name] for name in _RECIPE if name in given})
    tuning = Tuning(model=from_, data=data, out=out, recipe=recipe, **more)
    say = (lambda line: None) if quiet else (lambda line: click.echo(line, err=True))
    with _Bar(quiet) as bar:
        summary = tune_image_text(tuning, resume=resume, progress=bar.show, notify=say)
    done = f"{summary.step} of {summary.steps} steps in {summary.seconds:.0f} s, loss {summary.loss:.4f}"
    place = shlex.quote(str(summary.path))
    if summary.stopped_by is not None:
        click.echo(f"stopped by {summary.stopped_by} and saved: {summary.path}, {done}")
        click.echo("next: the same command with --resume")
        click.get_current_context().exit(_SIGNAL_CODES[summary.stopped_by])
    click.echo(f"trained {summary.path}: from {from_}, {summary.images:,} images, {done}")
    click.echo(f"next: fastdc compose DATA --clip {place}")


class _Bar(ExitStack):
    """A bar that begins with the first step, when the number of steps is known."""

    def __init__(self, quiet: bool) -> None:
        super().__init__()
        self._quiet, self._done = quiet, 0
        self._advance: Advance | None = None

    def show(self, done: int, of: int) -> None:
        """Shows the steps that are done."""
        if self._advance is None:
            self._advance = self.enter_context(progress_bar(of, quiet=self._quiet, description="train", unit="step"))
        self._advance(done - self._done, "")
        self._done = done
