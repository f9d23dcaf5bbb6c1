"""Encoders of images and texts in a bundle; their agreement with torch is in test_families.py."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("diffusers")

import torch
from torch import nn

from fastdc import load
from fastdc.backends.onnx.image_encoder import OnnxEncoder
from fastdc.explanation import counterfactuals
from fastdc.export import encoders, export_source
from fastdc.sampling import sample
from fastdc.sources import open_decoder, open_source
from fastdc.support import BundleError, Float32, InputError
from fastdc.testing import tiny_dit
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


def test_a_bundle_with_a_decoder_draws_its_samples(tmp_path: Path) -> None:
    """Pictures of a bundle's samples and counterfactuals equal those of torch's decoder, given as an option."""
    folder = tiny_dit(tmp_path / "dit")
    module, source = open_decoder(folder), open_source(folder)
    plain = export_source(source, tmp_path / "plain", split=False)
    whole = export_source(source, tmp_path / "whole", split=False, decoder=module, overwrite=True)
    assert "decoder_max_difference" in whole.manifest["provenance"]
    without, clf = load(plain.path, threads=1), load(whole.path, threads=1)

    def decode(latents: Float32) -> Float32:
        made: Float32 = module(torch.from_numpy(latents)).numpy()
        return made

    with pytest.raises(InputError, match="has no decoder: expected a bundle exported with --decoder"):
        sample(without, [0], steps=2)
    theirs = sample(without, [0, 3], steps=2, decoder=decode)
    np.testing.assert_allclose(sample(clf, [0, 3], steps=2), theirs, atol=1e-5)
    images = np.random.default_rng(0).random((2, 3, 16, 16), np.float32)
    made = counterfactuals(clf, images, to=1, edit="flowedit", steps=2, draws=2)
    encoder = without.encoder
    assert isinstance(encoder, OnnxEncoder)
    assert not encoder.decodes
    expected = np.clip((decode(encoder.encode(2 * images - 1)) + 1) / 2, 0, 1)
    np.testing.assert_allclose(made.factual, expected, atol=1e-5)
    with pytest.raises(BundleError, match=r"has no decoder\.onnx: export it again with --decoder"):
        encoder.decode(np.zeros((1, 4, 8, 8), np.float32))


def test_a_decoder_that_cannot_be_used_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="a decoder is for models of latents"):
        export_source(small_source(), tmp_path / "b", decoder=nn.Identity())
    monkeypatch.setattr(encoders, "LARGE", 10)
    module = nn.Conv2d(2, 4, 3).eval().requires_grad_(False)
    with pytest.raises(BundleError, match=r"decoder\.onnx would hold 0\.0 GiB"):
        encoders.decoder_files(small_source(), module, 22, lambda _: None)
