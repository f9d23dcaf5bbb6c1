"""Values that float16 cannot hold are found where the CPU computes in float32, and the layer is named."""

import copy
from pathlib import Path

import pytest

from fastdc.support import BackendError

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import numpy as np
import torch

from fastdc.export.denoiser import denoiser_files
from fastdc.export.float16_range import FLOAT16_MAX, MARGIN, check_range
from fastdc.export.verify import denoiser_feeds
from helpers.exported import small_source
from helpers.tiny_graphs import Denoiser, denoiser


def test_products_of_queries_and_keys_are_looked_at(tmp_path: Path) -> None:
    """They overflow between two linear maps whose own values do not."""
    made = denoiser("attending")
    module = copy.deepcopy(made.module)
    module.get_parameter("own.bias").mul_(6000.0)
    model = Denoiser(module, made.shape, made.conditions, tables=made.tables).graph(precision="float16")
    feeds = denoiser_feeds(made.shape, made.conditions, (0.0, 999.0), tables=made.tables)
    with pytest.raises(
        BackendError, match=r"float16 ends at 65504, and MatMul after own reaches .* bfloat16 or float32$"
    ):
        check_range(model, feeds, tmp_path)


def test_the_export_refuses_what_overflows_in_float16_arithmetic(tmp_path: Path) -> None:
    source = small_source()
    first = source.denoiser.get_submodule("first")
    with torch.no_grad():
        first.get_parameter("weight").mul_(1e3)  # the normalisation after it takes the scale back
    made = denoiser_files(source, tmp_path, precision="float16", split=False)
    seen = []
    hook = first.register_forward_hook(lambda _, __, out: seen.append(float(out.abs().max())))
    for feed in denoiser_feeds((2, 6, 6), 4, (0.0, 1.0))(3, np.random.default_rng(0)):
        source.denoiser(*map(torch.from_numpy, feed.values()))
    hook.remove()
    assert made.largest == pytest.approx(max(seen), rel=2e-3)
    assert 500 < max(seen) < FLOAT16_MAX / MARGIN
    with torch.no_grad():
        first.get_parameter("weight").mul_(1e2)
    with pytest.raises(BackendError, match="Conv in first reaches"):
        denoiser_files(source, tmp_path, precision="float16", split=False)
    inputs = torch.full((2, 2, 6, 6), 3.0).half(), torch.zeros(2), torch.zeros(2, dtype=torch.int64)
    assert not torch.isfinite(copy.deepcopy(source.denoiser).half()(*inputs)).all()
