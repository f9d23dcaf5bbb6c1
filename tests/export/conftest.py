"""Makes exports cheap: what one test exports, the others reuse."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all workers of a run share the bundles and graphs that they export."""
    from helpers.exported import shared_folder

    return shared_folder(tmp_path_factory)


@pytest.fixture(scope="session", autouse=True)
def _one_table_of_operators() -> Iterator[None]:
    """Builds torch's table of ONNX operators once per opset, not anew for every export, which takes 0.3 s each time."""
    registration = pytest.importorskip("torch.onnx._internal.exporter._registration")
    with pytest.MonkeyPatch.context() as patch:
        made = cache(registration.ONNXRegistry.from_torchlib)
        patch.setattr(registration.ONNXRegistry, "from_torchlib", staticmethod(made))
        yield
