"""``fastdc``: the command group. Here errors become one line and an exit code.

Exit codes: 0 for success; 2 for bad input or usage (one line, before the work starts); 1 if the machine failed, as with
no space on a disk or no memory, or if the reader of a pipe has gone, as in ``fastdc classify ... | head`` (click then
ends the command quietly); 130 for Ctrl-C; 143 for SIGTERM, which acts like Ctrl-C.
"""

import importlib
import io
import os
import re
import sys

import click

from fastdc.cli.messages import as_typed
from fastdc.cli.noise import log_as_notes, warnings_as_notes
from fastdc.cli.stop_signals import exit_code, sigterm_as_ctrl_c
from fastdc.support import FastdcError, Interrupted, did_you_mean, one_line

# Each command and its description, in the order of --help. A module is imported when its command runs.
_COMMANDS = {
    "demo": "Classify the test images that come with fastdc.",
    "classify": "Classify image files, folders and arrays.",
    "match": "Ask which text describes each image; pairs of captions; image retrieval.",
    "explain": "Explain answers: where in an image one class denoises better.",
    "score": "Score a model on labelled images: accuracy, classes, calibration, groups.",
    "compose": "Compare models on which text describes an image: objects, pairs, relations.",
    "calibrate": "Find on validation images how early classes can be dropped.",
    "certify": "Certify images: each gets a class and a radius within which it cannot change.",
    "evaluate": "Tabulate and plot certified accuracy from files of certificates.",
    "bench": "Measure what this machine does with a model: backends, precisions, batches.",
    "info": "Describe this installation or a model.",
    "manifest": "Make a manifest of a published table of images, such as CheXpert's or ISIC's.",
    "train": "Train a diffusion model on your own labelled images.",
    "export": "Turn a training run or a published model into a bundle that runs without torch.",
    "completion": "Print the script that completes commands and options in your shell.",
}

_EPILOG = """\b
Start here:
  fastdc demo                   real data, in under a minute
  fastdc classify digit.png     a handwritten digit, white on black
  fastdc COMMAND --help         every option, with examples

\b
From your own images to certificates:
  fastdc train photos/ --out run --val 0.1
  fastdc export run my-model --calibrate run/val.npz
  fastdc score my-model test/
  fastdc classify --model my-model new-photos/
  fastdc certify --model my-model --data test/ --sigma 0.25 --out test.tsv
  fastdc evaluate test.tsv
"""


class _LazyGroup(click.Group):
    """Imports a command's module only when it runs, so that --help and errors are quick."""

    running: click.Command | None = None
    """The command that was asked for, whose options messages name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"fastdc.cli.commands.{cmd_name}").command
        self.running = command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, but a typing error is answered with the command that was probably meant."""
        name = args[0]
        if not name.startswith("-") and name not in _COMMANDS:
            from fastdc.support import shown

            ctx.fail(f"no command {shown(name)}: expected one of {', '.join(_COMMANDS)}{did_you_mean(name, _COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


def _version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        from fastdc.support import __version__

        click.echo(f"fastdc, version {__version__}")
        ctx.exit()


@click.group(cls=_LazyGroup, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version and exit."
)
def cli() -> None:
    """Classify and certify images with diffusion models, fast.

    A conditional diffusion model denoises the image under each class; the class with the smallest error wins. No
    classifier is trained.
    """


def main() -> None:
    """Runs the command line. If FASTDC_TRACEBACK is set, errors show their traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # the terminal may be unable to show the name of a class or file
        sys.stdout.reconfigure(errors="backslashreplace")
    with sigterm_as_ctrl_c(), warnings_as_notes(), log_as_notes():
        try:
            _run()
        except SystemExit as end:
            # An interpreter that ends beside a process group may crash or wait.
            if "fastdc.train.together" in sys.modules:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
            raise


def _run() -> None:
    try:
        code = cli.main(prog_name="fastdc", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2 raises this for plain `fastdc`
            click.echo(error.ctx.get_help() if error.ctx else "")
            sys.exit(0)
        help_hint = f" (try '{error.ctx.command_path} --help')" if error.ctx else ""
        # Without click's own suggestions, up to three in alphabetical order; its words differ from version to version.
        message = error.format_message()
        if isinstance(error, click.NoSuchOption):
            message = f"No such option '{error.option_name}'"
        _fail(message.removesuffix(".") + _meant(error) + help_hint)
    except (FastdcError, click.ClickException) as error:
        if os.environ.get("FASTDC_TRACEBACK"):
            raise
        _fail(error.format_message() if isinstance(error, click.ClickException) else str(error))
    except (KeyboardInterrupt, click.Abort) as stop:
        cause = (
            stop.__cause__ or stop.__context__ if isinstance(stop, click.Abort) else stop
        )  # click's own exception for Ctrl-C
        click.echo(f"fastdc: {cause if isinstance(cause, Interrupted) else 'interrupted'}", err=True)
        from fastdc.support import calls_left

        if calls_left():  # an interpreter that ends beside a library at work may crash
            sys.stdout.flush()
            os._exit(exit_code())
        sys.exit(exit_code())
    except OSError as error:
        if os.environ.get("FASTDC_TRACEBACK"):
            raise
        what = error.strerror or str(error)
        _fail(f"{error.filename}: {what}" if error.filename else what, code=1)
    except MemoryError as error:
        _fail(f"out of memory: {error or 'try fewer images or draws'}", code=1)
    except ImportError as error:  # an installation that is broken
        if os.environ.get("FASTDC_TRACEBACK"):
            raise
        _fail(one_line(error, most=500), code=1)


def _meant(error: click.UsageError) -> str:
    """The option that was probably meant, or the choice by the value of an option."""
    if isinstance(error, click.NoSuchOption):
        params = error.ctx.command.params if error.ctx else []
        if error.ctx and (arguments := _as_argument(error.option_name.lstrip("-"), params)):
            return f": it is an argument here, {error.ctx.command_path} {arguments}"
        options = [param for param in params if isinstance(param, click.Option) and not param.hidden]
        known = [name[2:] for param in options for name in (*param.opts, *param.secondary_opts) if name[:2] == "--"]
        return did_you_mean(error.option_name.lstrip("-"), known).replace("mean '", "mean '--")
    kind = getattr(getattr(error, "param", None), "type", None)
    came = re.match(r"'(.*)' is not one of ", error.message)
    return did_you_mean(came[1], kind.choices) if isinstance(kind, click.Choice) and came else ""


def _as_argument(name: str, params: list[click.Parameter]) -> str:
    """The arguments of a command, if what was given as an option is one of them; nothing otherwise."""
    words = [str(param.metavar or param.name) for param in params if isinstance(param, click.Argument)]
    names = [re.sub(r"\W", "", word).lower().replace("bundle", "model") for word in words]
    return " ".join(words) if name in names else ""


def _fail(message: str, *, code: int = 2) -> None:
    click.echo(f"fastdc: error: {as_typed(message, cli.running)}", err=True)
    sys.exit(code)
