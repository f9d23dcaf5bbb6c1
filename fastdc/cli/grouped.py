"""A command whose --help lists its options under headings, so that readers find an option by its purpose."""

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
    "Output": ("--json", "--csv", "--html", "--provenance", "--save", "--plot", "--quiet", "--help"),
}
"""The options under each heading; all other options come first, under "Options"."""

_HEADING_OF = {option: heading for heading, options in HEADINGS.items() for option in options}


class GroupedCommand(click.Command):
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
