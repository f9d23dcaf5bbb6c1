"""Builds TensorRT engines: an ONNX graph is parsed, given the shapes that it will run at, and built to a plan.

Types are the graph's (strongly typed networks): an engine has the precision that the graph was exported in, and no
option changes it. An engine has a few *profiles*, ranges of shapes that kernels are chosen for. TensorRT tunes each
profile at one size, so each usual step size has a static profile (least = usual = largest), and one range serves all
small steps. "conditions", the number of rows of a text model's tables, is the bundle's own number in every profile.

TF32, which TensorRT turns on by default, is off: it would round float32 to 10 bits. Auxiliary streams are off so that a
step can be captured on one stream, and TensorRT-RTX is told to allocate nothing while it runs, for the same reason.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastdc.backends.onnx.graphs import Graph
from fastdc.backends.options import MAX_BATCH
from fastdc.backends.tensorrt.module import TensorRT
from fastdc.support import BackendError, InputError, checks, shorten

Range = tuple[int, int, int]
"""Least, usual and largest extent of a dimension."""

BATCH, CONDITIONS = "batch", "conditions"
"""Names of the dimensions that vary: rows of a step, and rows of the condition tables."""


@dataclass(frozen=True)
class EngineOptions:
    """Options that an engine is built with.

    Attributes:
        batches: Step sizes with a static profile each, in increasing order.
        latency: Least, usual and largest size of one more profile, for small steps; None for no such profile.
        opt_level: How long TensorRT looks for faster kernels, 0 to 5.
        workspace: Device memory in bytes that a kernel may use while it runs; None for all of it.
        tf32: Whether float32 products are computed in TF32 (10 bits): faster, and not comparable with other backends.
        aux_streams: Number of streams that TensorRT may use beside the slot's, 0 to 16.
        hardware_compatible: Whether the plan fits every GPU from Ampere on; slower.

    Raises:
        InputError: An option lies outside its range.
    """

    batches: tuple[int, ...] = (64, 512)
    latency: Range | None = (1, 8, 64)
    opt_level: int = 3
    workspace: int | None = None
    tf32: bool = False
    aux_streams: int = 0
    hardware_compatible: bool = False

    def __post_init__(self) -> None:
        sizes = self.batches
        if any(not _is_size(size) for size in sizes) or sorted(set(sizes)) != list(sizes):
            raise InputError(f"batches must be different sizes from 1 to {MAX_BATCH} in order, got {sizes}")
        if self.latency is not None:
            check_range("latency", self.latency)
        elif not sizes:
            raise InputError("an engine needs at least one batch, or a range of them for latency")
        checks.whole("opt_level", self.opt_level, low=0, high=5)
        if self.workspace is not None:
            checks.whole("workspace", self.workspace)
        checks.whole("aux_streams", self.aux_streams, low=0, high=16)

    @property
    def ranges(self) -> tuple[Range, ...]:
        """Least, usual and largest step size of each profile, in the engine's order: static ones, then the range."""
        return (*((size, size, size) for size in self.batches), *(() if self.latency is None else (self.latency,)))

    @property
    def largest(self) -> int:
        """Largest step size of any profile."""
        return max(high for _, _, high in self.ranges)


@dataclass(frozen=True)
class Built:
    """A plan and facts of its build.

    Attributes:
        plan: The serialised engine. Two builds of the same graph differ in their bytes.
        timing_cache: Kernel timings of the build, which shorten the next build by the same version on the same GPU.
        log: Messages of TensorRT, one per line.
        seconds: Time of parsing and building.
        layers: Number of layers of the parsed network.
        inputs: TensorRT's name of the type of each input, by input name.
        outputs: TensorRT's name of the type of each output, by output name.
    """

    plan: bytes = field(repr=False)
    timing_cache: bytes = field(default=b"", repr=False)
    log: tuple[str, ...] = field(default=(), repr=False)
    seconds: float = 0.0
    layers: int = 0
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)


def check_range(name: str, given: Range) -> None:
    """Checks that a range is three sizes in increasing order.

    Args:
        name: Name of the range in the message.
        given: The range.

    Raises:
        InputError: The sizes are not in order, or lie outside 1 to 65,536.

    Example:
        >>> from fastdc.backends.tensorrt import check_range
        >>> check_range("latency", (1, 8, 64))
    """
    low, usual, high = given
    if not (all(map(_is_size, given)) and low <= usual <= high):
        raise InputError(f"{name} must be three sizes in increasing order from 1, got {given}")


def _is_size(value: Any) -> bool:
    return checks.is_whole(value) and 1 <= value <= MAX_BATCH


def build_engine(
    trt: TensorRT, model: Graph | bytes | str | Path, rows: int, options: EngineOptions, *, timing_cache: bytes = b""
) -> Built:
    """Builds the plan of a denoiser's graph.

    Args:
        trt: TensorRT that builds the plan.
        model: A bundle's graph; or a graph of your own, as the content of its file or, if weights lie beside it, its
            path.
        rows: Number of rows of the condition tables.
        options: Options of the engine.
        timing_cache: Timing cache of an earlier build by the same version on the same GPU; b"" for none.

    Raises:
        BackendError: The graph cannot be parsed (the message names the nodes), or cannot be built.
    """
    ranges = [{BATCH: batch, CONDITIONS: (rows, rows, rows)} for batch in options.ranges]
    return build_plan(trt, model, ranges, options, timing_cache=timing_cache)


def build_plan(
    trt: TensorRT,
    model: Graph | bytes | str | Path,
    ranges: Sequence[Mapping[str, Range]],
    options: EngineOptions,
    *,
    timing_cache: bytes = b"",
) -> Built:
    """Builds a plan with one profile per entry of `ranges`.

    Args:
        trt: TensorRT that builds the plan.
        model: A bundle's graph; or a graph of your own, as the content of its file or, if weights lie beside it, its
            path.
        ranges: For each profile, the least, usual and largest extent of each named dimension.
        options: Options of the engine; its batches are not used.
        timing_cache: Timing cache of an earlier build by the same version on the same GPU; b"" for none.

    Raises:
        BackendError: The graph cannot be parsed (the message names the nodes) or built, or a dimension has no range.

    Example:
        >>> import tensorrt_rtx
        >>> from fastdc.backends.tensorrt import EngineOptions, build_plan, use_module
        >>> graph = (fastdc.bundle.find_model("digits-mlp") / "denoiser.onnx").read_bytes()
        >>> build_plan(use_module(tensorrt_rtx, "tensorrt_rtx"), graph, [{"batch": (1, 2, 4)}], EngineOptions()).outputs
        {'output': 'FLOAT'}
    """
    start = time.perf_counter()
    mark = trt.logger.mark()
    module = trt.module
    builder: Any = trt.make("Builder")
    flags = 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)  # version 10 also has other networks
    network = builder.create_network(flags)
    parser: Any = module.OnnxParser(network, trt.logger)
    if not _parse(parser, model):
        raise BackendError(f"{trt.name} cannot parse the graph: {parser_errors(parser)}")
    _let_attention_fall_back(module, network)
    config = builder.create_builder_config()
    _configure(module, config, options)
    timed = trt.flavour == "tensorrt"  # tensorrt_rtx times no kernels while it builds
    if timed:
        _set_timing_cache(config, timing_cache)
    _add_profiles(trt, builder, network, config, ranges)
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


def _parse(parser: Any, model: Graph | bytes | str | Path) -> bool:
    """Parses a graph. The weights of a bundle's graph come from memory, where they were verified, and from no file."""
    if isinstance(model, (str, Path)):
        return bool(parser.parse_from_file(str(model)))
    if isinstance(model, bytes) or not model.external:
        return bool(parser.parse(model if isinstance(model, bytes) else model.content))
    start = np.frombuffer(model.data, np.uint8).ctypes.data
    return (
        parser.load_model_proto(model.content)
        and all(parser.load_initializer(one.name, start + one.offset, one.length) for one in model.external)
        and parser.parse_model_proto()
    )


def _add_profiles(
    trt: TensorRT, builder: Any, network: Any, config: Any, ranges: Sequence[Mapping[str, Range]]
) -> None:
    mark = trt.logger.mark()
    shapes = dimension_names(network)
    for given in ranges:
        profile = builder.create_optimization_profile()
        for name, extents in _extents(shapes, given).items():
            with trt.refusals(f"refuses the shapes {extents} of {name}"):
                profile.set_shape(name, *extents)
        if config.add_optimization_profile(profile) < 0:
            raise BackendError(f"{trt.name} refuses the shapes {dict(given)}: {trt.logger.error(mark)}")


def merge_timing_caches(trt: TensorRT, ours: bytes, theirs: bytes) -> bytes:
    """The entries of two timing caches of the same version and GPU; only `ours` if TensorRT refuses `theirs`."""
    if not theirs or ours == theirs:
        return ours
    builder: Any = trt.make("Builder")
    config = builder.create_builder_config()
    merged, other = config.create_timing_cache(ours), config.create_timing_cache(theirs)
    if merged is None or other is None or not merged.combine(other, False):
        return ours
    return _serialized(merged)


def parser_errors(parser: Any) -> str:
    """A parser's errors in one line: node, operator and description of each."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    lines = [f"{one.node_name() or '?'} ({one.node_operator() or '?'}): {one.desc()}" for one in errors]
    return shorten("; ".join(lines), 500) or "no reason given"


def dimension_names(network: Any) -> dict[str, list[int | str]]:
    """Shape of each input, with names for dynamic dimensions."""
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


def _set_timing_cache(config: Any, content: bytes) -> None:
    """Gives a build the timings of earlier builds, or an empty cache if TensorRT refuses them.

    TensorRT refuses a cache that is damaged or of another version or GPU. Without any cache the build would not return
    its own timings, and a bad file would never be replaced.
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
    (config.set_flag if options.tf32 else config.clear_flag)(module.BuilderFlag.TF32)
    capturable = getattr(module.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
    if capturable is not None:  # TensorRT-RTX may otherwise allocate during a capture
        config.set_flag(capturable)
    levels = module.HardwareCompatibilityLevel
    config.hardware_compatibility_level = levels.AMPERE_PLUS if options.hardware_compatible else levels.NONE


def _let_attention_fall_back(module: Any, network: Any) -> None:
    """Lets TensorRT split attention layers: as one layer (opset 23) attention fails for many head sizes."""
    kind = getattr(module.LayerType, "ATTENTION_OUTPUT", None)
    if kind is None:  # a version without such layers
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
