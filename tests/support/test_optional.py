"""Optional packages: imported when asked for, and one clear line when they are missing."""

import subprocess
import sys
from pathlib import Path

import pytest

from fastdc import FastdcError, InputError, MissingDependencyError
from fastdc.support.exceptions import BackendError, BundleError
from fastdc.support.optional import EXTRA_OF, installed, require, version_of
from helpers.paths import ROOT
from helpers.worlds import assert_one_line

HEAVY = ("torch", "onnxruntime", "onnx", "onnxscript", "diffusers", "transformers", "matplotlib", "sklearn")
NOT_NEEDED = (*HEAVY, "scipy", "PIL", "click", "tqdm", "safetensors", "tensorrt")


def test_importing_fastdc_loads_no_optional_package() -> None:
    code = f"import sys, fastdc; print([name for name in {NOT_NEEDED} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_a_package_that_is_there_is_returned() -> None:
    import scipy.special

    assert require("scipy.special") is scipy.special
    assert installed("scipy")
    assert version_of("numpy") is not None


def test_a_missing_package_is_one_line_that_names_the_extra() -> None:
    with pytest.raises(MissingDependencyError) as caught:
        require("no_such_package.part", extra="train")
    assert_one_line(caught.value, "no_such_package", "pip install 'fastdc[train]'")
    assert caught.value.name == "no_such_package"
    assert not installed("no_such_package")
    assert not installed("no_such_package.part")
    assert version_of("no-such-package") is None


@pytest.mark.parametrize("name", sorted(EXTRA_OF))
def test_every_extra_that_is_named_exists(name: str) -> None:
    import tomllib

    pyproject = ROOT / "pyproject.toml"
    extras = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert EXTRA_OF[name] in extras


def test_a_package_whose_own_needs_are_missing_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "half_there.py").write_text("import no_such_package")
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(ModuleNotFoundError, match="no_such_package") as caught:
            require("half_there", extra="train")
    finally:
        sys.path.remove(str(tmp_path))
    assert not isinstance(caught.value, FastdcError)


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (InputError, ValueError),
        (BundleError, ValueError),
        (MissingDependencyError, ImportError),
        (BackendError, RuntimeError),
    ],
)
def test_every_exception_is_also_the_one_that_python_users_expect(kind: type[FastdcError], builtin: type) -> None:
    assert issubclass(kind, FastdcError)
    assert issubclass(kind, builtin)
