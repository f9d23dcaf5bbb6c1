"""A command whose --help lists its options under headings, so that readers find an option by its purpose."""

from collections.abc import Iterator

import click

HEADINGS = {
    "Model": ("--model", "--prompts", "--calibration", "--denoiser"),
    "Rule and decision": ("--rule", "--rule-option", "--self-calibrate", "--decision", "--prior"),
    "Noise draws": (
        "--draws",
        "--first",
        "--levels",
        "--order",
        "--antithetic",
        "--weighting",
        "--loss",
        "--level-weights",
        "--seed",
    ),
    "Network": ("--backend", "--device", "--precision", "--batch", "--compile", "--threads"),
    "Images": ("--window", "--fit", "--max-pixels", "--skip-bad", "--split"),
    "Output": (
        "--json",
        "--csv",
        "--latex",
        "--html",
        "--answers",
        "--provenance",
        "--save",
        "--plot",
        "--quiet",
        "--help",
    ),
}
"""The options under each heading; all other options come first, under "Options"."""

_HEADING_OF = {option: heading for heading, options in HEADINGS.items() for option in options}


class LevelsCommand(click.Command):
    """A command whose option --levels takes two numbers or the one word "all"."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses the arguments, with the word "all" of --levels written twice, once for each end of the band."""
        return super().parse_args(ctx, list(_with_both_ends(args)))


def _with_both_ends(args: list[str]) -> Iterator[str]:
    """The arguments; after the word --, where no options are, as they are."""
    before, options = "", True
    for word in args:
        options = options and word != "--"
        yield word
        if options and (word == "--levels=all" or (before, word) == ("--levels", "all")):
            yield "all"
        before = word


class GroupedCommand(LevelsCommand):
    """A command whose options are listed under :data:`HEADINGS`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options, one section per heading."""
        sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in ("Options", *HEADINGS)}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                heading = next(filter(None, map(_HEADING_OF.get, parameter.opts)), "Options")
                sections[heading].append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)
