"""The messages of an ONNX file with the fields that a network needs, by number (onnx.proto3)."""

import numpy as np

from fastdc.backends.onnx.wire import BYTES, EIGHT, FOUR, VARINT, Known

_B, _V = (BYTES,), (VARINT,)
MODEL: Known = {
    1: ("ir_version", _V, False),
    2: ("producer_name", _B, False),
    3: ("producer_version", _B, False),
    4: ("domain", _B, False),
    5: ("model_version", _V, False),
    6: ("doc_string", _B, False),
    7: ("graph", _B, False),
    8: ("opset_import", _B, True),
    14: ("metadata_props", _B, True),
}
OPSET: Known = {1: ("domain", _B, False), 2: ("version", _V, False)}
GRAPH: Known = {
    1: ("node", _B, True),
    2: ("name", _B, False),
    5: ("initializer", _B, True),
    10: ("doc_string", _B, False),
    11: ("input", _B, True),
    12: ("output", _B, True),
    13: ("value_info", _B, True),
    14: ("quantization_annotation", _B, True),
    16: ("metadata_props", _B, True),
}
NODE: Known = {
    1: ("input", _B, True),
    2: ("output", _B, True),
    3: ("name", _B, False),
    4: ("op_type", _B, False),
    5: ("attribute", _B, True),
    6: ("doc_string", _B, False),
    7: ("domain", _B, False),
    9: ("metadata_props", _B, True),
}
ATTRIBUTE: Known = {
    1: ("name", _B, False),
    2: ("f", (FOUR,), False),
    3: ("i", _V, False),
    4: ("s", _B, False),
    5: ("t", _B, False),
    7: ("floats", (FOUR, BYTES), True),
    8: ("ints", (VARINT, BYTES), True),
    13: ("doc_string", _B, False),
    20: ("type", _V, False),
}
TENSOR: Known = {
    1: ("dims", (VARINT, BYTES), True),
    2: ("data_type", _V, False),
    4: ("float_data", (FOUR, BYTES), True),
    5: ("int32_data", (VARINT, BYTES), True),
    7: ("int64_data", (VARINT, BYTES), True),
    8: ("name", _B, False),
    9: ("raw_data", _B, False),
    10: ("double_data", (EIGHT, BYTES), True),
    11: ("uint64_data", (VARINT, BYTES), True),
    12: ("doc_string", _B, False),
    13: ("external_data", _B, True),
    14: ("data_location", _V, False),
    16: ("metadata_props", _B, True),
}
ENTRY: Known = {1: ("key", _B, False), 2: ("value", _B, False)}
INPUT: Known = {
    1: ("name", _B, False),
    2: ("type", _B, False),
    3: ("doc_string", _B, False),
    4: ("metadata_props", _B, True),
}
ANNOTATION: Known = {1: ("tensor_name", _B, False), 2: ("quant_parameter_tensor_names", _B, True)}
TYPE: Known = {1: ("tensor_type", _B, False), 6: ("denotation", _B, False)}
TENSOR_TYPE: Known = {1: ("elem_type", _V, False), 2: ("shape", _B, False)}
SHAPE: Known = {1: ("dim", _B, True)}
DIM: Known = {1: ("dim_value", _V, False), 2: ("dim_param", _B, False), 3: ("denotation", _B, False)}

# Bytes of an element and the field that may hold it instead of raw bytes, by ONNX's number of the type. Texts, complex
# numbers and types of less than a byte are in no denoiser.
ELEMENTS: dict[int, tuple[int, str]] = {
    1: (4, "float_data"),
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20), (1, "int32_data")),
    **dict.fromkeys((4, 5, 10, 16), (2, "int32_data")),
    6: (4, "int32_data"),
    7: (8, "int64_data"),
    11: (8, "double_data"),
    12: (4, "uint64_data"),
    13: (8, "uint64_data"),
}
TYPED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
FIXED_WIDTH = {"float_data": np.float32, "double_data": np.float64}
