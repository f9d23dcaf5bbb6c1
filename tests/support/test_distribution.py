"""The name of the distribution and the command that installs an extra."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import fastdc
from fastdc.support import DISTRIBUTION, install_hint
from fastdc.support.distribution import find_version

Install = Callable[[dict[str, object] | None], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts an installation of fastdc with a given origin in front of the one that runs, as pip writes it."""

    def made(origin: dict[str, object] | None) -> None:
        folder = tmp_path / f"{DISTRIBUTION.replace('-', '_')}-9.8.7.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: 9.8.7\n")
        if origin is not None:
            (folder / "direct_url.json").write_text(json.dumps(origin))
        monkeypatch.syspath_prepend(tmp_path)

    return made


INDEX = "pip install 'fast-diffusion-classifier[cpu]'"


@pytest.mark.parametrize(
    ("origin", "hint"),
    [
        (None, INDEX),  # from an index
        ({"url": "file:///tmp/fdc.whl", "archive_info": {}}, INDEX),
        ({"url": "https://host/r.git", "vcs_info": {"vcs": "git"}}, INDEX),
        ({"url": "{clone}", "dir_info": {}}, "cd {path} && pip install -c constraints.txt '.[cpu]'"),
        ({"url": "{clone}", "dir_info": {"editable": True}}, "cd {path} && pip install -c constraints.txt -e '.[cpu]'"),
        ({"url": "file:///was/removed", "dir_info": {}}, INDEX),
    ],
)
def test_the_hint_fits_the_installation(
    install: Install, tmp_path: Path, origin: dict[str, object] | None, hint: str
) -> None:
    clone = tmp_path / "a clone"
    clone.mkdir()
    (clone / "constraints.txt").touch()
    if origin is not None and origin["url"] == "{clone}":
        origin = origin | {"url": clone.as_uri()}
    install(origin)
    assert install_hint("cpu") == hint.format(path=f"'{clone}'")
    assert find_version() == "9.8.7"


def test_several_extras_are_one_command(install: Install) -> None:
    install(None)
    assert install_hint("cpu", "export") == "pip install 'fast-diffusion-classifier[cpu,export]'"


def test_sources_that_were_never_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    folder = Path(fastdc.__file__).parents[1]
    assert install_hint("plot") == f"cd {folder} && pip install -c constraints.txt -e '.[plot]'"
    assert find_version() == "0+unknown"
