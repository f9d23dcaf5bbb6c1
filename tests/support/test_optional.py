"""Optional packages: imported on demand, with a one-line error if they are missing. Exceptions and lazy names."""

import sys
from pathlib import Path

import pytest

from fastdc import FastdcError, InputError, MissingDependencyError
from fastdc.support import install_hint
from fastdc.support.exceptions import BackendError, BundleError
from fastdc.support.lazy_names import lazy_names
from fastdc.support.optional import check_installed, installed, require, version_of
from helpers.worlds import assert_one_line


def test_an_installed_package_is_returned() -> None:
    import scipy.special

    assert require("scipy.special") is scipy.special
    assert installed("scipy")
    assert version_of("no-such-package", "numpy") == version_of("numpy") is not None


def test_a_missing_package_is_one_line_that_names_the_extra() -> None:
    with pytest.raises(MissingDependencyError) as caught:
        require("no_such_package.part", extra="train")
    assert_one_line(caught.value, "no_such_package", install_hint("train"))
    assert caught.value.name == "no_such_package"
    assert not installed("no_such_package")
    assert not installed("no_such_package.part")
    assert version_of("no-such-package") is None


def test_a_missing_package_is_found_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed("numpy")
    with pytest.raises(MissingDependencyError) as caught:
        check_installed("no_such_package", extra="train")
    assert_one_line(caught.value, "no_such_package", install_hint("train"))
    monkeypatch.delitem(sys.modules, "this", raising=False)
    check_installed("this")
    assert "this" not in sys.modules


def test_a_package_whose_own_needs_are_missing_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "half_there.py").write_text("import no_such_package")
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(ModuleNotFoundError, match="no_such_package") as caught:
            require("half_there", extra="train")
    finally:
        sys.path.remove(str(tmp_path))
    assert not isinstance(caught.value, FastdcError)


def test_lazy_names_are_imported_on_first_use() -> None:
    get = lazy_names("email", {"MIMEAudio": "mime.audio"})
    sys.modules.pop("email.mime.audio", None)
    assert get("MIMEAudio").__name__ == "MIMEAudio"
    assert "email.mime.audio" in sys.modules
    with pytest.raises(AttributeError, match="module 'email' has no attribute 'other'"):
        get("other")


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
