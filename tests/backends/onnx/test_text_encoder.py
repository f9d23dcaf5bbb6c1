"""The text encoder of a bundle: whatever its tokenizer holds ends in one BundleError."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")

from fastdc.backends.onnx import text_encoder
from fastdc.backends.onnx.text_encoder import OnnxTextEncoder
from fastdc.bundle import Bundle, find_model, load_bundle
from fastdc.support import BundleError

SHIPPED = find_model("shapes")


def _bundle(folder: Path, **changes: Any) -> Bundle:
    """The shipped model with another tokenizer."""
    place = Path(shutil.copytree(SHIPPED, folder / "shapes"))
    content = json.dumps({**json.loads((place / "tokenizer.json").read_text()), **changes}).encode()
    (place / "tokenizer.json").write_bytes(content)
    manifest = json.loads((place / "fastdc.json").read_text())
    manifest["files"]["tokenizer.json"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (place / "fastdc.json").write_text(json.dumps(manifest))
    return load_bundle(place)


def _model(**changes: Any) -> dict[str, Any]:
    return {**json.loads((SHIPPED / "tokenizer.json").read_text())["model"], **changes}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"padding": None}, "tokenizer.json: padding must be an object"),
        ({"version": "9.9"}, "does not work: "),
        ({"model": _model(merges=[["absent", "absent"]])}, "does not work: "),
    ],
)
def test_a_broken_tokenizer_is_refused_when_it_is_opened(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(BundleError, match=match) as caught:
        OnnxTextEncoder(_bundle(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_fails_on_a_text_is_named(tmp_path: Path) -> None:
    encoder = OnnxTextEncoder(_bundle(tmp_path, model=_model(vocab={"a": 0}, merges=[], unk_token="absent")))
    with pytest.raises(BundleError, match="shapes does not work: "):
        encoder.encode(["a red circle"])


def test_a_panic_of_the_package_is_a_bundle_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its panics are no ``Exception``. None is known of a tokenizer that passes the check, so nothing is checked."""
    monkeypatch.setattr(text_encoder, "checked_tokenizer", lambda content, path: content.decode())
    cut = {"direction": "Right", "max_length": 12, "strategy": "LongestFirst", "stride": 50}
    encoder = OnnxTextEncoder(_bundle(tmp_path, truncation=cut))
    with pytest.raises(BundleError, match="`stride` must be strictly less than"):
        encoder.encode(["a b c d e f g h i j k l m n o p q r s t u v w x y z"])
