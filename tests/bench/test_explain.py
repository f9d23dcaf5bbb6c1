"""bench/explain.py and bench/phantom_edits.py on a few phantoms: every method and measure has its numbers."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("captum")
pytest.importorskip("sklearn")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import explain
import phantom_edits


def test_every_method_has_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.json"
    monkeypatch.setattr(explain, "QUICK", {"images": 2, "val": 1, "seeds": 2, "draws": 2, "other_draws": 1, "steps": 1})
    monkeypatch.setitem(explain.OPTIONS, "integrated_gradients", ({"steps": 1},))
    monkeypatch.setitem(explain.OPTIONS, "occlusion", ({"window": 32}, {"window": 32, "baseline": "black"}))
    monkeypatch.setattr("sys.argv", ["explain.py", "--out", str(out), "--quick"])
    explain.main()
    made = json.loads(out.read_text(encoding="utf-8"))
    assert len(made["maps"]) == 1 + 3 + 3 + 2
    for name, found in made["maps"].items():
        measures = {key for key, value in found.items() if isinstance(value, dict) and "mean" in value}
        assert len(measures) == 6 + 6
        for measure in measures:
            assert found[measure]["low"] <= found[measure]["mean"] <= found[measure]["high"]
            assert found[measure]["images"] == 2
        assert set(found.get("ours minus this", measures)) == measures, name
    assert set(made["sanity"]["error maps"]) == {"rank", "absolute rank", "ssim"}
    assert set(made["auroc"]) == {"diffusion", "CNN"}


def test_every_edit_has_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.json"
    monkeypatch.setattr(phantom_edits, "RATIOS", (0.3,))
    monkeypatch.setattr(phantom_edits, "STEPS", 2)
    monkeypatch.setattr("sys.argv", ["phantom_edits.py", "--out", str(out), "--quick", "--edits", "sdedit", "heun"])
    phantom_edits.main()
    made = json.loads(out.read_text(encoding="utf-8"))
    for edit in ("sdedit", "heun"):
        assert len(made[edit]) == 1 + 6 + 6
        assert made[edit]["factual kept, diffusion"]["images"] == 2
    assert 0 < made["nothing"]["L1 to the truth"]["mean"] < 0.01, (
        "a lesion of 25 pixels of 1024, of contrast 0.07 to 0.21"
    )
