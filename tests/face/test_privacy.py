"""fastdc is silent: no library that it uses writes into the home directory or connects to anything."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fastdc.support import telemetry, version_of
from helpers.no_network import KILLED, SUPPORTED
from helpers.paths import ROOT

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="needs seccomp filters of Linux on x86-64")

_USE = """
import numpy as np, fastdc
from fastdc.certification import Fixed
from fastdc.data import digits_test

clf = fastdc.load("digits-mlp")
images = digits_test().images[:2]
assert len(clf.classify(images).labels) == 2
assert len(clf.certify(images[:1], Fixed(0.25, 100, 0.01), n0=8)) == 1
"""

_EXPORT = """
import sys
from pathlib import Path
from fastdc.cli.main import main
from fastdc.testing.tiny_pipelines import tiny_dit

folder = Path(sys.argv[1])
tiny_dit(folder / "pipeline")
sys.argv = ["fastdc", "export", str(folder / "pipeline"), str(folder / "bundle"), "--quiet"]
main()
"""


def run(code: str, home: Path, *args: str, **environment: str) -> int:
    """Runs code without a network and with its own home; returns the exit code."""
    home.mkdir(exist_ok=True)
    # Few variables, not "all but ORT_...": ONNX Runtime is also silent where it sees CI, GITHUB_ACTIONS or TF_BUILD.
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TMPDIR") if name in os.environ}
    path = os.pathsep.join((str(ROOT / "tests"), *sys.path))
    start = "from helpers.no_network import forbid_network; forbid_network()\n"
    command = [sys.executable, "-P", "-c", start + textwrap.dedent(code), *args]
    environment = kept | {"HOME": str(home), "PYTHONPATH": path} | environment
    return subprocess.run(command, env=environment, check=False, timeout=120).returncode


def test_use_leaves_no_trace(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    assert run(_USE, tmp_path / "home") == 0
    assert list((tmp_path / "home").rglob("*")) == []


def test_export_leaves_no_trace(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("onnxscript")
    assert run(_EXPORT, tmp_path / "home", str(tmp_path)) == 0
    assert (tmp_path / "bundle" / "fastdc.json").is_file()
    assert list((tmp_path / "home").rglob("*")) == []


def test_a_process_that_reaches_for_the_network_is_seen(tmp_path: Path) -> None:
    opened = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
    assert run(opened + "s.bind(('127.0.0.1', 0))", tmp_path) == 0
    assert run(opened + "s.connect(('127.0.0.1', 9))", tmp_path) == KILLED
    assert run(opened + "s.sendto(b'-', ('127.0.0.1', 9))", tmp_path) == KILLED
    sixth = opened.replace("AF_INET", "AF_INET6")
    assert run(sixth + "s.connect(('::1', 9))", tmp_path) == KILLED
    assert run(sixth + "s.sendto(b'-', ('::1', 9))", tmp_path) == KILLED
    assert run("import socket; a, b = socket.socketpair(); a.send(b'-'); assert b.recv(1) == b'-'", tmp_path) == 0


def test_telemetry_that_a_user_has_switched_on_is_seen(tmp_path: Path) -> None:
    """Also shows that the tests above can fail."""
    version = pytest.importorskip("packaging.version").Version
    if (found := version_of("onnxruntime")) is None or version(found) < version("1.29"):
        pytest.skip("needs an ONNX Runtime with telemetry")
    code = run(_USE, tmp_path, ORT_DISABLE_TELEMETRY="0")
    assert code == KILLED or list(tmp_path.rglob("deviceid"))


def test_a_users_own_value_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    telemetry.switch_off()
    assert (os.environ["ORT_DISABLE_TELEMETRY"], os.environ["HF_HUB_DISABLE_TELEMETRY"]) == ("0", "1")
