"""What a machine does with a model: every combination of backend, precision and batch, each in a process of its own."""

from fastdc.benchmark.advice import CRITERION, MARGIN, Advice, advise
from fastdc.benchmark.configuration import Configuration, configurations
from fastdc.benchmark.report import advice_facts, advice_lines, flags, short, table_text
from fastdc.benchmark.rows import Row
from fastdc.benchmark.run import Benchmark
from fastdc.benchmark.samples import Samples, sample_images
from fastdc.benchmark.statistics import Latency, Spread

__all__ = [
    "CRITERION",
    "MARGIN",
    "Advice",
    "Benchmark",
    "Configuration",
    "Latency",
    "Row",
    "Samples",
    "Spread",
    "advice_facts",
    "advice_lines",
    "advise",
    "configurations",
    "flags",
    "sample_images",
    "short",
    "table_text",
]
