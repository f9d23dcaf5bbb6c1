"""TensorRT as a module: refusals before any of its objects is made, versions, and the log."""

import ctypes
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from fastdc import BackendError, InputError, MissingDependencyError
from fastdc.backends.tensorrt import driver, module
from fastdc.backends.tensorrt.module import FLAVOURS, import_tensorrt, open_tensorrt, use_module
from fastdc.support import install_hint


class Severity(int):
    """Stands for ILogger.Severity, whose lower values are worse."""

    @property
    def name(self) -> str:
        return ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")[self]


class FakeLogger:
    Severity = SimpleNamespace(ERROR=Severity(1), INFO=Severity(3))


def fake(version: str, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(__version__=version, ILogger=FakeLogger, OnnxParser=object, **more)


def test_the_driver_is_asked_before_the_module_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime object without a driver ends the process, so nothing of TensorRT may exist by then."""

    def absent() -> Any:
        raise OSError

    monkeypatch.setattr(driver, "libcuda", absent)
    monkeypatch.setattr(module, "installed", lambda name: name in FLAVOURS)
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"{name} was imported"))
    for flavour in ("auto", "tensorrt", "tensorrt_rtx"):
        with pytest.raises(BackendError, match="no driver is installed"):
            open_tensorrt(flavour)


def test_a_missing_module_is_named_with_its_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "installed", lambda name: False)
    for flavour, name in (("auto", "tensorrt"), ("tensorrt", "tensorrt"), ("tensorrt_rtx", "tensorrt_rtx")):
        with pytest.raises(MissingDependencyError, match=rf"^{name} is needed .*{re.escape(install_hint('tensorrt'))}"):
            open_tensorrt(flavour)
    with pytest.raises(InputError, match="flavour must be one of auto, tensorrt, tensorrt_rtx, got 'trt'"):
        open_tensorrt("trt")


def test_a_module_that_cannot_be_loaded_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "check_driver", lambda: None)
    monkeypatch.setattr(module, "installed", lambda name: True)

    def load(name: str) -> Any:
        raise ImportError(f"libnvinfer.so.11:\ncannot open shared object file for {name}")

    monkeypatch.setattr("importlib.import_module", load)
    import_tensorrt.cache_clear()
    with pytest.raises(
        BackendError, match=r"^tensorrt is installed and cannot be loaded: libnvinfer.so.11: cannot open"
    ):
        open_tensorrt("tensorrt")


@pytest.mark.parametrize(
    ("flavour", "good", "bad"),
    [
        ("tensorrt", ("10.16.1.11", "11.4.0.106"), ("8.6.1", "9.3.0", "12.0.0.1", "?")),
        ("tensorrt_rtx", ("1.7.1.116",), ("2.0.0.1", "0.9", "11.4.0.106")),
    ],
)
def test_versions(flavour: str, good: tuple[str, ...], bad: tuple[str, ...]) -> None:
    for version in good:
        found = use_module(fake(version), flavour)
        assert (found.flavour, found.version) == (flavour, version)
        assert version in found.name
    for version in bad:
        with pytest.raises(BackendError, match=f"^{flavour} .* is needed, found {version.replace('?', '[?]')}$"):
            use_module(fake(version), flavour)
    without_builder = fake(good[0])
    del without_builder.OnnxParser  # the lean runtime's module
    with pytest.raises(BackendError, match="with builder and parser is needed"):
        use_module(without_builder, flavour)


def test_the_logger_keeps_the_messages_since_a_mark() -> None:
    logger = use_module(fake("11.4.0.106"), "tensorrt").logger
    logger.log(Severity(1), "before")
    mark = logger.mark()
    assert logger.error(mark) == "no reason given"
    logger.log(Severity(2), "a\n  warning")
    logger.log(Severity(4), "chatter")
    for _ in range(2):
        logger.log(Severity(0), "it\nfailed")
    logger.log(Severity(1), "again")
    assert logger.since(mark) == (
        "WARNING: a warning",
        "INTERNAL_ERROR: it failed",
        "INTERNAL_ERROR: it failed",
        "ERROR: again",
    )
    assert logger.error(mark) == "it failed; again"


def test_the_real_module_opens_without_a_gpu() -> None:
    pytest.importorskip("tensorrt_rtx")
    trt = import_tensorrt("tensorrt_rtx")
    assert trt.version == sys.modules["tensorrt_rtx"].__version__
    assert trt is import_tensorrt("tensorrt_rtx"), "one logger per process: TensorRT keeps the first"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(BackendError, match="no driver is installed"):
            open_tensorrt("tensorrt_rtx")
