"""Encoders of images and texts in a bundle; their agreement with torch is in test_families.py."""

from dataclasses import replace

import pytest

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("diffusers")

from torch import nn

from fastdc.export import encoders
from fastdc.support import BundleError
from helpers.exported import small_source


def test_an_encoder_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "LARGE", 100)
    source = replace(small_source(), encoder=nn.Conv2d(2, 4, 2, stride=2).eval().requires_grad_(False))
    with pytest.raises(BundleError, match=r"encoder\.onnx would hold 0\.0 GiB of weights, the limit is 1\.5"):
        encoders.encoder_files(source, 22, lambda _: None)


def test_a_source_without_encoders_has_no_files_of_them() -> None:
    said: list[str] = []
    source = small_source()
    assert encoders.encoder_files(source, 22, said.append) == ({}, {})
    assert encoders.text_files(source, 22, said.append) == ({}, {})
    assert encoders.table_files(source) == {}
    assert said == []
