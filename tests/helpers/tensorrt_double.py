"""A double of TensorRT's Python module, with the interface of the real bindings, that runs plans on the CPU.

The interface is that of tests/golden/tensorrt-*.json, read from the published bindings. A member that the bindings do
not have, or a call that fits none of their signatures, is an AssertionError, so code that passes here calls only what
exists. A plan is the ONNX file behind a mark, and running it reads and writes the addresses that it was given. Every
call is recorded in order.
"""

import ctypes
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from helpers.paths import GOLDEN

VERSIONS = ("11.4", "10.16", "rtx-1.7")
PLAN = b"plan of a double: "
DAMAGED = b"a timing cache of another version"
_KINDS: dict[str, tuple[str, Any]] = {"tensor(float)": ("FLOAT", np.float32), "tensor(float16)": ("HALF", np.float16)}
_KINDS |= {"tensor(int64)": ("INT64", np.int64)}


def interface(version: str) -> dict[str, Any]:
    """The interface of a version's bindings, one of :data:`VERSIONS`."""
    found: dict[str, Any] = json.loads((GOLDEN / f"tensorrt-{version}.json").read_text(encoding="utf-8"))
    return found


def arguments_of(signature: str) -> list[tuple[str, bool]]:
    """(name, is required) of each argument of a pybind11 signature, without self."""
    inside = signature[signature.index("(") + 1 : signature.rindex(") ->")]
    while (plain := re.sub(r"\[[^\[\]]*\]|<[^<>]*>", "", inside)) != inside:
        inside = plain
    parts = [part.strip() for part in inside.split(",") if part.strip()]
    named = [(part.partition(":")[0].strip(), "=" not in part) for part in parts]
    return [(name, required) for name, required in named if name != "self"]


def fits(signatures: list[str], count: int, keywords: set[str]) -> bool:
    """Whether a call with `count` positional arguments and these keywords fits one of the signatures."""
    for signature in signatures:
        given = arguments_of(signature)
        names = {name for name, _ in given[count:]}
        required = {name for name, needed in given[count:] if needed}
        if count <= len(given) and keywords <= names and required <= keywords:
            return True
    return False


class Part:
    """An object of one of TensorRT's classes; `_does` holds the functions and values of its members."""

    def __init__(self, double: "Double", kind: str, **does: Any) -> None:
        self.__dict__.update(_double=double, _kind=kind, _does=does)

    def _known(self, name: str) -> Any:
        members = self._double.classes[self._kind]
        assert name in members, f"{self._kind} of {self._double.version} has no {name}"
        return members[name]

    def __getattr__(self, name: str) -> Any:
        signatures = self._known(name)
        self._double.used.add((self._kind, name))
        does = self._does.get(name)
        if not isinstance(signatures, list):
            assert name in self._does, f"the double does not say what {self._kind}.{name} is"
            return does() if callable(does) else does

        def call(*arguments: Any, **keywords: Any) -> Any:
            assert fits(signatures, len(arguments), set(keywords)), (self._kind, name, arguments, keywords, signatures)
            self._double.calls.append((f"{self._kind}.{name}", *arguments, *keywords.values()))
            return does(*arguments, **keywords) if callable(does) else does

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__class__":  # tells the bindings the real class of a layer
            self.__dict__["_kind"] = value._kind
            return
        self._double.used.add((self._kind, name))
        assert self._known(name) == "property", f"{self._kind}.{name} cannot be set"
        self._double.calls.append((f"{self._kind}.{name} =", value))
        self._does[name] = value


class _Enumeration:
    """An enumeration of the module: its values by name."""

    def __init__(self, double: "Double", kind: str) -> None:
        self._double, self._kind = double, kind
        values = [name for name, what in double.classes[kind].items() if what == "value"]
        self._values = {name: _Member(name, place) for place, name in enumerate(values)}

    def __getattr__(self, name: str) -> Any:
        if name not in self._values:
            raise AttributeError(f"{self._kind} of {self._double.version} has no {name}")
        self._double.used.add((self._kind, name))
        return self._values[name]


class _Member(int):
    name: str

    def __new__(cls, name: str, value: int) -> "_Member":
        made = int.__new__(cls, value)
        made.name = name
        return made


class Double:
    """The module.

    Args:
        version: One of :data:`VERSIONS`.
        faults: Calls that fail, such as "IExecutionContext.set_input_shape".
        wrong: Number added to the network's outputs.

    Attributes:
        calls: Calls with their arguments, in order.
        used: (class, member) of everything that was used.
        profiles: Shapes of each profile, by input.
    """

    def __init__(self, version: str, *, faults: tuple[str, ...] = (), wrong: float = 0.0) -> None:
        found = interface(version)
        self.version, self.classes = version, found["classes"]
        self.calls: list[tuple[Any, ...]] = []
        self.used: set[tuple[str, str]] = set()
        self.faults, self.wrong = faults, wrong
        self.profiles: list[dict[str, tuple[Any, ...]]] = []
        severity = _Enumeration(self, "ILogger.Severity")
        self.module = SimpleNamespace(
            __version__=found["version"],
            ILogger=type("ILogger", (), {"Severity": severity, "__init__": lambda logger: None}),
            Builder=self._builder,
            OnnxParser=self._parser,
            Runtime=self._runtime,
        )
        for name in self.classes:
            if name not in ("ILogger.Severity", "ILogger", "Builder", "OnnxParser", "Runtime"):
                setattr(self.module, name, _Enumeration(self, name))

    def fails(self, call: str) -> bool:
        return call in self.faults

    def names(self) -> list[str]:
        """Names of the calls, in order."""
        return [name for name, *_ in self.calls]

    # --- building ----------------------------------------------------------------------------------------------------

    def _builder(self, logger: Any) -> Part:
        self._made("Builder")
        return Part(
            self,
            "Builder",
            create_network=lambda flags=0: self._network(),
            create_builder_config=self._config,
            create_optimization_profile=self._profile,
            build_serialized_network=lambda network, config: (
                None if self.fails("Builder.build_serialized_network") else PLAN + network._does["content"]
            ),
        )

    def _network(self) -> Part:
        tensors: dict[str, list[Part]] = {"inputs": [], "outputs": []}
        return Part(
            self,
            "INetworkDefinition",
            tensors=tensors,
            num_layers=1,
            get_layer=lambda index: self._attention(),
            num_inputs=lambda: len(tensors["inputs"]),
            num_outputs=lambda: len(tensors["outputs"]),
            get_input=lambda index: tensors["inputs"][index],
            get_output=lambda index: tensors["outputs"][index],
        )

    def _parser(self, network: Part, logger: Any) -> Part:
        loaded: list[bytes] = []
        weights: dict[str, bytes] = {}

        def parse(content: bytes, path: str | None = None) -> bool:
            session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
            network._does["content"] = content
            for kind, nodes in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
                network._does["tensors"][kind] += [self._tensor(node) for node in nodes]
            return True

        def parse_file(path: str) -> bool:
            return not self.fails("OnnxParser.parse") and parse(Path(path).read_bytes())

        def load(content: bytes, path: str | None = None) -> bool:
            loaded.append(content)
            return True

        def load_weight(name: str, pointer: int, size: int) -> bool:
            weights[name] = ctypes.string_at(pointer, size)
            return not self.fails("OnnxParser.load_initializer")

        words = {"node_name": lambda: "node 1", "node_operator": lambda: "Frob", "desc": lambda: "unknown"}
        error = Part(self, "ParserError", **words)
        more: dict[str, Any] = {"num_errors": 1, "get_error": lambda index: error}
        more |= {"load_model_proto": load, "load_initializer": load_weight}
        more["parse_model_proto"] = lambda: parse(_inside(loaded[-1], weights))
        return Part(self, "OnnxParser", parse=parse, parse_from_file=parse_file, **more)

    def _attention(self) -> Part:
        """An attention layer, which the bindings return as a plain layer."""
        kind = _Enumeration(self, "LayerType")._values["ATTENTION_OUTPUT"]
        return Part(self, "ILayer", type=kind, attention=Part(self, "IAttention"))

    def _tensor(self, node: Any) -> Part:
        return Part(
            self,
            "ITensor",
            name=node.name,
            dtype=SimpleNamespace(name=_KINDS[node.type][0]),
            shape=tuple(size if isinstance(size, int) else -1 for size in node.shape),
            get_dimension_name=lambda axis: node.shape[axis],
        )

    def _config(self) -> Part:
        def add(profile: Part) -> int:
            self.profiles.append(profile._does["shapes"])
            return -1 if self.fails("IBuilderConfig.add_optimization_profile") else len(self.profiles) - 1

        taken: list[Part] = []

        def take(cache: Part, ignore_mismatch: bool) -> bool:
            if cache._does["content"] == DAMAGED:
                return False
            taken.append(cache)
            return True

        return Part(
            self,
            "IBuilderConfig",
            add_optimization_profile=add,
            create_timing_cache=self._timing,
            set_timing_cache=take,
            get_timing_cache=lambda: taken[-1] if taken else None,
        )

    def _timing(self, content: bytes) -> Part:
        contents = [content or b"timing"]

        def combine(other: Part, ignore_mismatch: bool) -> bool:
            contents.append(other._does["content"])
            return not self.fails("ITimingCache.combine")

        return Part(self, "ITimingCache", content=content, serialize=lambda: b"+".join(contents), combine=combine)

    def _profile(self) -> Part:
        shapes: dict[str, tuple[Any, ...]] = {}

        def set_shape(name: str, *extents: tuple[int, ...]) -> None:
            if self.fails("IOptimizationProfile.set_shape"):
                raise RuntimeError("Shape provided for max is inconsistent with other shapes.")
            shapes[name] = extents

        return Part(self, "IOptimizationProfile", shapes=shapes, set_shape=set_shape)

    def _made(self, kind: str) -> None:
        if self.fails(kind):
            raise TypeError("pybind11::init(): factory function returned nullptr")

    # --- running -----------------------------------------------------------------------------------------------------

    def _runtime(self, logger: Any) -> Part:
        self._made("Runtime")
        return Part(self, "Runtime", deserialize_cuda_engine=self._engine)

    def _engine(self, plan: bytes) -> Part | None:
        if not plan.startswith(PLAN):
            return None
        session = ort.InferenceSession(plan[len(PLAN) :], providers=["CPUExecutionProvider"])
        nodes = {node.name: node for node in (*session.get_inputs(), *session.get_outputs())}
        outputs = {node.name for node in session.get_outputs()}
        return Part(
            self,
            "ICudaEngine",
            num_io_tensors=len(nodes),
            get_tensor_name=lambda index: list(nodes)[index],
            get_tensor_dtype=lambda name: SimpleNamespace(name=_KINDS[nodes[name].type][0]),
            get_tensor_mode=lambda name: SimpleNamespace(name="OUTPUT" if name in outputs else "INPUT"),
            get_device_memory_size_for_profile_v2=lambda profile: 1000 + profile,
            create_runtime_config=lambda: Part(self, "IRuntimeConfig", set_execution_context_allocation_strategy=None),
            create_execution_context=lambda strategy: (
                None if self.fails("ICudaEngine.create_execution_context") else self._context(session, nodes, outputs)
            ),
        )

    def _context(self, session: Any, nodes: dict[str, Any], outputs: set[str]) -> Part:
        state: dict[str, Any] = {"shapes": {}, "addresses": {}, "profile": 0, "memory": None}

        def profile(index: int, stream: int) -> bool:
            assert 0 <= index < len(self.profiles)
            assert stream, "the default stream synchronises"
            state.update(profile=index, shapes={})
            if self.fails("IExecutionContext.set_optimization_profile_async"):
                raise RuntimeError("Error in set optimization profile async.")  # as the bindings do, and not False
            return True

        def shape(name: str, given: tuple[int, ...]) -> bool:
            low, _, high = self.profiles[state["profile"]][name]
            assert all(a <= b <= c for a, b, c in zip(low, given, high, strict=True)), (name, given, low, high)
            state["shapes"][name] = given
            return not self.fails("IExecutionContext.set_input_shape")

        def address(name: str, pointer: int) -> bool:
            assert name in nodes
            state["addresses"][name] = pointer
            return not self.fails("IExecutionContext.set_tensor_address")

        def run(stream: int) -> bool:
            assert stream
            assert state["memory"], "the context was given no memory"
            feeds = {
                name: _array(state["addresses"][name], given, nodes[name]) for name, given in state["shapes"].items()
            }
            for name, made in zip(outputs, session.run(list(outputs), feeds), strict=True):
                target = _array(state["addresses"][name], made.shape, nodes[name])
                target[...] = made + made.dtype.type(self.wrong)
            return not self.fails("IExecutionContext.execute_async_v3")

        missing = set(nodes) - outputs
        return Part(
            self,
            "IExecutionContext",
            set_device_memory=lambda memory, size: state.update(memory=(memory, size)),
            set_optimization_profile_async=profile,
            set_input_shape=shape,
            infer_shapes=lambda: sorted(missing - set(state["shapes"])),
            get_tensor_shape=lambda name: (len_of(state["shapes"]), *nodes[name].shape[1:]),
            set_tensor_address=address,
            execute_async_v3=run,
        )


def _inside(content: bytes, weights: dict[str, bytes]) -> bytes:
    """A graph with the weights that it refers to inside."""
    import onnx

    model = onnx.load_model_from_string(content)
    for tensor in model.graph.initializer:
        if tensor.external_data:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = weights[tensor.name]
    return bytes(model.SerializeToString())


def len_of(shapes: dict[str, tuple[int, ...]]) -> int:
    return shapes["class_labels"][0]


def _array(pointer: int, shape: tuple[int, ...], node: Any) -> Any:
    kind = np.dtype(_KINDS[node.type][1])
    size = int(np.prod(shape)) * kind.itemsize
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer)).view(kind).reshape(shape)
