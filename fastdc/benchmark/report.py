"""A benchmark as text: a table with a line per configuration, and the options that its advice stands for."""

import shlex
from collections.abc import Sequence
from typing import Any

from fastdc.benchmark.advice import Advice
from fastdc.benchmark.configuration import Configuration
from fastdc.benchmark.rows import Row
from fastdc.benchmark.statistics import Latency
from fastdc.diffusion import kernels

_COLUMNS = (
    *("configuration", "batch", "ms/evaluation", "images/s", "session p50 / p95", "classify p50 / p95"),
    *("memory", "start", "error", "agree"),
)


def table_text(rows: Sequence[Row]) -> str:
    """The rows as a table of text; the reason of an incomplete row stands below the line of what is known of it.

    Args:
        rows: Rows of a benchmark.

    Example:
        >>> from fastdc.benchmark import Configuration, Row, table_text
        >>> print(table_text([Row(Configuration("onnx", "cpu", "float32"), reason="no such file")]).splitlines()[-1])
          no such file
    """
    cells = [_COLUMNS, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_COLUMNS))]

    def line(entries: Sequence[str]) -> str:
        first, *others = (entry.rjust(width) for entry, width in zip(entries, widths, strict=True))
        return "  ".join([entries[0].ljust(widths[0]) if first else "", *others]).rstrip()

    lines = [line(_COLUMNS)]
    for row, entries in zip(rows, cells[1:], strict=True):
        lines.append(line(entries))
        if row.reason:
            lines.append(f"  {row.reason}")
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    rate, race, size = row.ms_per_evaluation, row.images_per_second, row.memory_bytes
    return (
        str(row.configuration),
        "-" if row.batch is None else str(row.batch),
        *("-" if one is None else f"{short(one.median)} ± {100 * one.relative:.0f} %" for one in (rate, race)),
        *(_latency(way) for way in (row.session, row.classify)),
        "-" if size is None else f"{size / 2**20:.0f} MiB",
        "-" if row.startup_seconds is None else f"{row.startup_seconds:.1f} s",
        "-" if row.error_difference is None else f"{row.error_difference:.1g}",
        "-" if row.agreeing is None else f"{row.agreeing}/{row.compared}",
    )


def short(value: float) -> str:
    """A positive number in three digits, without an exponent.

    Args:
        value: The number.

    Example:
        >>> from fastdc.benchmark import short
        >>> short(0.01234), short(12345.6)
        ('0.0123', '12,300')
    """
    if value >= 1000:
        rounded = float(f"{value:.3g}")
        return f"{rounded:,.0f}"
    return f"{value:.3g}"


def _latency(way: Latency | None) -> str:
    return "-" if way is None else f"{short(way.p50)} / {short(way.p95)} ms"


def flags(configuration: Configuration, threads: int | None = None) -> str:
    """The options of a command that choose a configuration.

    Args:
        configuration: The configuration.
        threads: Number of CPU threads that was asked for.

    Example:
        >>> from fastdc.benchmark import Configuration, flags
        >>> flags(Configuration("onnx", "cpu", "float32", 512))
        '--backend onnx --precision float32 --batch 512'
    """
    words = ["--backend", configuration.backend]
    if configuration.device != "cpu" or kernels.cuda_device_count():
        words += ["--device", configuration.device]
    words += ["--precision", configuration.precision]
    words += [] if configuration.batch is None else ["--batch", str(configuration.batch)]
    words += [] if threads is None else ["--threads", str(threads)]
    return shlex.join(words)


def advice_lines(advice: Advice, threads: int | None = None) -> list[str]:
    """The advice, a line each for throughput and latency.

    Args:
        advice: The advice.
        threads: Number of CPU threads that was asked for.

    Example:
        >>> from fastdc.benchmark import advice_lines, advise
        >>> advice_lines(advise([]))[0]
        'throughput   none: no complete row whose answers all agree'
    """
    usual = advice.default
    return [
        f"throughput   {_advised(advice.throughput, usual, threads, _rate_gain)}",
        f"latency      {_advised(advice.latency, usual, threads, _latency_gain)}",
    ]


def _advised(row: Row | None, usual: Row | None, threads: int | None, gain: Any) -> str:
    if row is None:
        return "none: no complete row whose answers all agree"
    text = flags(row.configuration, threads)
    if usual is None:
        return text
    if row == usual:
        return f"{text}    (the defaults)"
    said = gain(row, usual)
    return f"{text}{said and f'    ({said} of the defaults)'}"


def _rate_gain(row: Row, usual: Row) -> str:
    if row.images_per_second is None or usual.images_per_second is None:
        return ""
    return f"{row.images_per_second.median / usual.images_per_second.median:.2f} times the images/s"


def _latency_gain(row: Row, usual: Row) -> str:
    if row.quickest is None or usual.quickest is None:
        return ""
    return f"{row.quickest.p50 / usual.quickest.p50:.2f} times the p50"


def advice_facts(advice: Advice, threads: int | None = None) -> dict[str, str | None]:
    """The advice as plain values: the options by purpose.

    Args:
        advice: The advice.
        threads: Number of CPU threads that was asked for.

    Example:
        >>> from fastdc.benchmark import advice_facts, advise
        >>> advice_facts(advise([]))
        {'throughput': None, 'latency': None}
    """
    rows = {"throughput": advice.throughput, "latency": advice.latency}
    return {name: None if row is None else flags(row.configuration, threads) for name, row in rows.items()}
