"""Engines from ONNX graphs: parsed, given the shapes that they will be run at, and built to a plan.

Types are the graph's (strongly typed networks): an engine has the precision that the graph was exported in, and no
option changes it. An engine has a few *profiles*, ranges of shapes that kernels are chosen for. TensorRT tunes them at
one size of each, so steps of the usual sizes have a static profile each (least = usual = largest), and one range serves
every small step. "conditions", the rows of a text model's tables, is the bundle's own number in all of them.

TF32, which TensorRT turns on unless told otherwise, is off: it would round float32 to 10 bits. Auxiliary streams are
off, so that a step can be captured into a CUDA graph on one stream; TensorRT-RTX is told to allocate nothing while it
runs, for the same reason. A version-compatible plan carries code that runs on
the host: it is an option for plans that a user built, and this package never lets a plan run such code.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdc.backends.protocol import MAX_BATCH
from fastdc.backends.tensorrt.module import TensorRT
from fastdc.support import BackendError, InputError

Range = tuple[int, int, int]
"""Least, usual and largest extent of a dimension."""

BATCH, CONDITIONS = "batch", "conditions"


@dataclass(frozen=True)
class EngineOptions:
    """What an engine is built for.

    Attributes:
        batches: Steps of exactly these sizes have a profile each, in increasing order.
        latency: Least, usual and largest batch of one range beside them, for small steps; None: none.
        opt_level: 0 to 5: how long TensorRT looks for faster kernels.
        workspace: Bytes of device memory that a kernel may use while it runs; None: all there is.
        tf32: Let float32 multiply in TF32, 10 bits, which is faster and not comparable with other backends.
        aux_streams: Streams that TensorRT may use beside ours.
        version_compatible: A plan for later versions of TensorRT as well; slower, and holds host code.
        hardware_compatible: A plan for every GPU from Ampere on; slower.
        refit: Let weights be replaced without a rebuild; slower.
    """

    batches: tuple[int, ...] = (64, 512)
    latency: Range | None = (1, 8, 64)
    opt_level: int = 3
    workspace: int | None = None
    tf32: bool = False
    aux_streams: int = 0
    version_compatible: bool = False
    hardware_compatible: bool = False
    refit: bool = False

    def __post_init__(self) -> None:
        sizes = self.batches
        if any(not 1 <= size <= MAX_BATCH for size in sizes) or sorted(set(sizes)) != list(sizes):
            raise InputError(f"batches must be different sizes from 1 to {MAX_BATCH} in order, got {sizes}")
        if self.latency is not None:
            check_range("latency", self.latency)
        elif not sizes:
            raise InputError("an engine needs at least one batch, or a range of them for latency")
        if not 0 <= self.opt_level <= 5:
            raise InputError(f"opt_level must be from 0 to 5, got {self.opt_level}")
        if self.workspace is not None and self.workspace < 1:
            raise InputError(f"workspace must be a number of bytes, got {self.workspace}")
        if not 0 <= self.aux_streams <= 16:
            raise InputError(f"aux_streams must be from 0 to 16, got {self.aux_streams}")

    @property
    def ranges(self) -> tuple[Range, ...]:
        """The batch of each profile in the order of the engine: the static ones, then the range."""
        return (*((size, size, size) for size in self.batches), *(() if self.latency is None else (self.latency,)))

    @property
    def largest(self) -> int:
        """The largest step of any profile."""
        return max(high for _, _, high in self.ranges)


@dataclass(frozen=True)
class Built:
    """A plan and how it came about.

    Attributes:
        plan: The serialised engine. Two builds of the same graph differ in their bytes.
        timing_cache: What was measured on the way; saves it in the next build by the same version on the same GPU.
        log: What TensorRT said, a line each.
        seconds: Parsing and building.
        layers: Of the network as parsed.
        inputs: Type of each input by name, as TensorRT calls it.
        outputs: Likewise.
    """

    plan: bytes = field(repr=False)
    timing_cache: bytes = field(default=b"", repr=False)
    log: tuple[str, ...] = field(default=(), repr=False)
    seconds: float = 0.0
    layers: int = 0
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)


def check_range(name: str, given: Range) -> None:
    """Raises InputError unless `given` is three extents in increasing order."""
    low, usual, high = given
    if not 1 <= low <= usual <= high <= MAX_BATCH:
        raise InputError(f"{name} must be three sizes in increasing order from 1, got {given}")


def build_engine(
    trt: TensorRT, model: bytes | str | Path, rows: int, options: EngineOptions, *, timing_cache: bytes = b""
) -> Built:
    """An engine of a denoiser's graph.

    Args:
        trt: What builds it.
        model: The content of the graph's file, or its path where weights lie beside it.
        rows: Of the condition tables.
        options: What it is built for.
        timing_cache: Of an earlier build by the same version on the same GPU.

    Raises:
        BackendError: The graph cannot be parsed, with the nodes that are to blame, or built.
    """
    ranges = [{BATCH: batch, CONDITIONS: (rows, rows, rows)} for batch in options.ranges]
    return build_plan(trt, model, ranges, options, timing_cache=timing_cache)


def build_plan(
    trt: TensorRT,
    model: bytes | str | Path,
    ranges: Sequence[Mapping[str, Range]],
    options: EngineOptions,
    *,
    timing_cache: bytes = b"",
) -> Built:
    """A plan with a profile for each of `ranges`, which give the extents of dimensions by their names.

    Raises:
        BackendError: As in :func:`build_engine`, or a dimension is in no range.
    """
    start = time.perf_counter()
    mark = trt.logger.mark()
    module = trt.module
    builder: Any = trt.make("Builder")
    network = builder.create_network(_typed(module))
    parser: Any = module.OnnxParser(network, trt.logger)
    if not (parser.parse(model) if isinstance(model, bytes) else parser.parse_from_file(str(model))):
        raise BackendError(f"{trt.name} cannot parse the graph: {parser_errors(parser)}")
    _let_attention_fall_back(module, network)
    config = builder.create_builder_config()
    _configure(module, config, options)
    timed = trt.flavour == "tensorrt"  # the other flavour measures nothing while it builds
    if timed:
        _set_timing_cache(config, timing_cache)
    shapes = dimension_names(network)
    for given in ranges:
        profile = builder.create_optimization_profile()
        for name, extents in _extents(shapes, given).items():
            with trt.refusals(f"refuses the shapes {extents} of {name}"):
                profile.set_shape(name, *extents)
        if config.add_optimization_profile(profile) < 0:
            raise BackendError(f"{trt.name} refuses the shapes {dict(given)}: {trt.logger.error(mark)}")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(f"{trt.name} cannot build the graph: {trt.logger.error(mark)}")
    return Built(
        bytes(plan),
        _serialized(config.get_timing_cache()) if timed else b"",
        trt.logger.since(mark),
        time.perf_counter() - start,
        int(network.num_layers),
        _types(network.get_input, network.num_inputs),
        _types(network.get_output, network.num_outputs),
    )


def merge_timing_caches(trt: TensorRT, ours: bytes, theirs: bytes) -> bytes:
    """The entries of two timing caches of the same version and GPU; `ours` where TensorRT does not take `theirs`."""
    if not theirs or ours == theirs:
        return ours
    builder: Any = trt.make("Builder")
    config = builder.create_builder_config()
    merged, other = config.create_timing_cache(ours), config.create_timing_cache(theirs)
    if merged is None or other is None or not merged.combine(other, False):
        return ours
    return _serialized(merged)


def parser_errors(parser: Any) -> str:
    """What a parser has against a graph, in one line: node, operator and description of each error."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    lines = [f"{one.node_name() or '?'} ({one.node_operator() or '?'}): {one.desc()}" for one in errors]
    return " ".join("; ".join(lines).split())[:500] or "no reason given"


def dimension_names(network: Any) -> dict[str, list[int | str]]:
    """Each input's shape, with names in the place of dynamic dimensions."""
    names: dict[str, list[int | str]] = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        names[tensor.name] = [
            (tensor.get_dimension_name(axis) or BATCH) if size < 0 else int(size)
            for axis, size in enumerate(tensor.shape)
        ]
    return names


def _extents(
    shapes: Mapping[str, Sequence[int | str]], ranges: Mapping[str, Range]
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Least, usual and largest shape of each input."""
    found = {}
    for name, shape in shapes.items():
        sides: list[Range] = []
        for side in shape:
            try:
                sides.append(ranges[side] if isinstance(side, str) else (side, side, side))
            except KeyError:
                raise BackendError(
                    f"input {name} of the graph has a dimension {side!r}: expected {' or '.join(ranges)}"
                ) from None
        found[name] = tuple(zip(*sides, strict=True)) if sides else ((), (), ())
    return found


def _typed(module: Any) -> int:
    """Version 10 has to be told that types are the graph's; later ones know nothing else."""
    flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _set_timing_cache(config: Any, content: bytes) -> None:
    """Gives a build the measurements of earlier ones, or, where they are damaged or of another version or GPU, none.

    A build that is given no cache at all keeps what it measures to itself, and a bad file would never be replaced.
    """
    for given in dict.fromkeys((content, b"")):
        cache = config.create_timing_cache(given)
        if cache is not None and config.set_timing_cache(cache, False):
            return


def _configure(module: Any, config: Any, options: EngineOptions) -> None:
    if options.workspace is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace)
    config.builder_optimization_level = options.opt_level
    config.max_aux_streams = options.aux_streams
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    for flag, wanted in (
        (module.BuilderFlag.TF32, options.tf32),
        (module.BuilderFlag.VERSION_COMPATIBLE, options.version_compatible),
        (module.BuilderFlag.REFIT, options.refit),
    ):
        (config.set_flag if wanted else config.clear_flag)(flag)
    capturable = getattr(module.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
    if capturable is not None:  # TensorRT-RTX: else it may allocate while a step is captured
        config.set_flag(capturable)
    levels = module.HardwareCompatibilityLevel
    config.hardware_compatibility_level = levels.AMPERE_PLUS if options.hardware_compatible else levels.NONE


def _let_attention_fall_back(module: Any, network: Any) -> None:
    """From opset 23 on attention is one layer; it fails for many head sizes unless it may be taken apart."""
    kind = getattr(module.LayerType, "ATTENTION_OUTPUT", None)
    if kind is None:  # before there were such layers
        return
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == kind:
            layer.__class__ = module.IAttentionOutputLayer
            layer.attention.decomposable = True


def _types(value_of: Any, count: int) -> dict[str, str]:
    tensors = [value_of(index) for index in range(count)]
    return {tensor.name: tensor.dtype.name for tensor in tensors}


def _serialized(cache: Any) -> bytes:
    return b"" if cache is None else bytes(cache.serialize())
