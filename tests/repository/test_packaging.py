"""The installation: the package's data, its requirements, the pins, and the checker of built distributions.

tools/wheel.sh, which CI runs, builds distributions. These tests cover the checker that it uses, tools/check_dist.py.
"""

import hashlib
import importlib.metadata
import importlib.resources
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import check_dist
from fastdc.bundle.shipped import shipped_models
from fastdc.support import DISTRIBUTION
from helpers.paths import ROOT

EXTRAS = {
    "cpu",
    "cuda",
    "torch",
    "tensorrt",
    "export",
    "train",
    "plot",
    "pandas",
    "parquet",
    "medical",
    "test",
    "dev",
    "text",
    "tensorrt-rtx",
    "sklearn",
    "explain",
    "docs",
}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_extras_are_the_documented_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(project["optional-dependencies"]) == EXTRAS
    assert set(importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []) == EXTRAS
    documented = (ROOT / "docs" / "building.md").read_text(encoding="utf-8")
    assert all(f"| `{extra}` |" in documented for extra in EXTRAS)


def test_the_name_of_the_distribution_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == DISTRIBUTION
    assert importlib.metadata.version(DISTRIBUTION) == project["version"]


# On the package index, "fastdc" is another project: nobody may be told to install it, and no requirement may name it.
_FOREIGN = re.compile(r"\bpip3? install\b[^\n|#&]*(?<![\w./-])fastdc(?![\w./-])|(?<![\w-])fastdc\[[a-z]")


def test_what_the_foreign_name_is() -> None:
    for text in ("pip install fastdc", "pip install -U 'fastdc[cpu]'", "`pip install fastdc==1`", "needs fastdc[cpu]"):
        assert _FOREIGN.search(text), text
    for text in (
        "pip install -e .",
        f"pip install '{DISTRIBUTION}[cpu]' && fastdc demo".partition("&")[0],
        "fastdc.load",
    ):
        assert not _FOREIGN.search(text), text


def test_nobody_is_told_to_install_the_package_of_the_same_name() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    kinds = {".py", ".md", ".toml", ".sh", ".yml", ".yaml", ".txt", ".cff", ".ipynb", ".cpp", ".h", ".cu", ""}
    names = [name for name in listed.stdout.splitlines() if Path(name).suffix in kinds and (ROOT / name).is_file()]
    if not names:
        pytest.skip("not a git checkout")
    found = []
    for name in names:
        if name != "tests/repository/test_packaging.py":
            text = (ROOT / name).read_text(encoding="utf-8", errors="replace")
            found += [f"{name}: {match[0]}" for match in _FOREIGN.finditer(text)]
    assert found == []


def test_only_one_place_in_the_code_spells_an_installation() -> None:
    for path in (ROOT / "fastdc").rglob("*.py"):
        if path.name != "distribution.py" and path != ROOT / "fastdc" / "__init__.py":
            assert "pip install" not in path.read_text(encoding="utf-8"), path


def test_package_data_is_installed() -> None:
    package = importlib.resources.files("fastdc")
    needed = ["py.typed", "models/digits-test.npz", "models/mnist-test-300.npz", "models/phantoms-test-200.npz"]
    for bundle in shipped_models():
        manifest = json.loads((package / "models" / bundle / "fastdc.json").read_text(encoding="utf-8"))
        needed += [f"models/{bundle}/{name}" for name in manifest["files"]]
    assert len(needed) > 4
    for name in needed:
        assert (package / name).is_file(), name


def test_the_command_is_installed() -> None:
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="fastdc")
    assert callable(entry.load())


def installed_requirements(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> set[str]:
    """Every installed distribution that a distribution with these extras requires, directly or indirectly."""
    requirements = pytest.importorskip("packaging.requirements")
    if (name, extras) in seen:
        return set()
    seen.add((name, extras))
    try:
        requires = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:  # this extra is not installed
        return set()
    found = {name}
    for text in requires:
        requirement = requirements.Requirement(text)
        environments = [{"extra": extra} for extra in extras] or [{"extra": ""}]
        if requirement.marker is None or any(requirement.marker.evaluate(each) for each in environments):
            found |= installed_requirements(normalized(requirement.name), frozenset(requirement.extras), seen)
    return found


def test_every_installed_requirement_is_pinned() -> None:
    required = installed_requirements(DISTRIBUTION, frozenset(EXTRAS), set()) - {DISTRIBUTION}
    assert {"numpy", "onnxruntime", "pytest"} <= required
    assert required - pins().keys() == set()


def test_pins_satisfy_the_declared_requirements() -> None:
    requirements = pytest.importorskip("packaging.requirements")
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = pyproject["project"]
    declared = [*project["dependencies"], *pyproject["build-system"]["requires"]]
    declared += [text for extra in project["optional-dependencies"].values() for text in extra]
    pinned = pins()
    for text in declared:
        requirement = requirements.Requirement(text)
        if requirement.name != DISTRIBUTION:
            assert requirement.specifier.contains(pinned[normalized(requirement.name)]), text


# The first ONNX Runtime that reads an opset; https://onnxruntime.ai/docs/reference/compatibility.html.
FIRST_RUNTIME = {20: "1.17", 21: "1.18", 22: "1.21", 23: "1.23"}


SUPPORTED = re.findall(
    r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8")
)


def lowest(texts: Iterable[str], python: str) -> dict[str, set[Any]]:
    """The largest bound of each distribution (its lower bound, or its pin) in the requirements for that Python."""
    requirements, version = (
        pytest.importorskip("packaging.requirements"),
        pytest.importorskip("packaging.version").Version,
    )
    found: dict[str, set[Any]] = {}
    for requirement in map(requirements.Requirement, texts):
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            bounds = {version(one.version) for one in requirement.specifier if one.operator in {">=", "=="}}
            found.setdefault(normalized(requirement.name), set()).update(bounds)
    return {name: {max(bounds)} for name, bounds in found.items() if bounds}


@pytest.mark.parametrize("python", SUPPORTED)
@pytest.mark.parametrize(
    ("file", "extras"),
    [
        ("constraints-lowest.txt", ("cpu", "test")),
        ("constraints-lowest-models.txt", ("export", "train", "text", "plot", "pandas", "parquet", "medical")),
    ],
)
def test_the_lowest_versions_that_ci_installs_are_the_lower_bounds(
    file: str, extras: tuple[str, ...], python: str
) -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = pyproject["project"]
    declared = [text for extra in extras for text in project["optional-dependencies"][extra]]
    if "cpu" in extras:
        declared += [*project["dependencies"], *pyproject["build-system"]["requires"]]
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    pinned = lowest((line for line in lines if line and not line.startswith("#")), python)
    assert pinned == lowest(declared, python)


def test_workflows_and_wheels_name_every_supported_python() -> None:
    assert len(SUPPORTED) > 3
    named = ", ".join(f'"{python}"' for python in SUPPORTED)
    for line in (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8").splitlines():
        assert not line.strip().startswith("python: [") or f"[{named}]" in line, line
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert tool["cibuildwheel"]["build"].split() == [f"cp{python.replace('.', '')}-*" for python in SUPPORTED]


def lower_bounds() -> dict[str, set[str]]:
    """The lower bounds of each distribution in pyproject.toml, over all extras."""
    requirements = pytest.importorskip("packaging.requirements")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    found: dict[str, set[str]] = {}
    for requirement in map(requirements.Requirement, texts):
        bounds = {one.version for one in requirement.specifier if one.operator == ">="}
        found.setdefault(normalized(requirement.name), set()).update(bounds)
    return found


def test_the_oldest_runtime_reads_what_the_exporter_writes() -> None:
    version = pytest.importorskip("packaging.version").Version
    pytest.importorskip("torch")
    from fastdc.export import DEFAULT_OPSET

    bounds = lower_bounds()
    for name in ("onnxruntime", "onnxruntime-gpu"):
        assert min(map(version, bounds[name])) >= version(FIRST_RUNTIME[DEFAULT_OPSET])


def test_packages_that_belong_together_have_bounds_that_do() -> None:
    """Older ones read tokenizers, count T5's weights or place the LoRAs of text encoders in another way."""
    version = pytest.importorskip("packaging.version").Version
    bounds = lower_bounds()
    (transformers,) = bounds["transformers"]
    assert version(transformers) >= version("5.23")
    for name, least in (("diffusers", "0.42"), ("peft", "0.21"), ("onnxscript", "0.6.2")):
        assert min(map(version, bounds[name])) >= version(least), name


def good_bundle(folder: str) -> dict[str, bytes]:
    data = b"network"
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest = json.dumps({"files": {"denoiser.onnx": entry}}).encode()
    return {f"{folder}/fastdc.json": manifest, f"{folder}/denoiser.onnx": data}


def good_wheel() -> dict[str, bytes]:
    files = dict.fromkeys(check_dist.WHEEL_NEEDS, b"")
    files["fastdc/_C.cpython-311-x86_64-linux-gnu.so"] = b""
    files |= {f"fast_diffusion_classifier-0.1.0.dist-info/licenses/{name}": b"" for name in check_dist.LICENCES}
    for folder in check_dist.BUNDLES:
        files |= good_bundle(folder)
    return files


def good_sdist() -> dict[str, bytes]:
    files = dict.fromkeys(check_dist.SDIST_NEEDS, b"")
    for folder in check_dist.BUNDLES:
        files |= good_bundle(folder)
    return files


def test_the_files_of_the_package_may_be_in_a_wheel() -> None:
    assert {f"fastdc/models/{name}" for name in shipped_models()} == set(check_dist.BUNDLES)
    tracked = subprocess.run(["git", "ls-files", "fastdc"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = [name for name in tracked.stdout.splitlines() if (ROOT / name).is_file()]
    if not names:
        pytest.skip("not a git checkout")
    assert check_dist.wheel_problems(good_wheel() | {name: (ROOT / name).read_bytes() for name in names}) == []


def test_the_files_that_a_distribution_needs_are_in_the_repository() -> None:
    needed = {*check_dist.WHEEL_NEEDS, *check_dist.LICENCES, *check_dist.SDIST_NEEDS}
    assert [name for name in sorted(needed) if not (ROOT / name).is_file()] == []


def test_good_distributions_pass() -> None:
    assert check_dist.wheel_problems(good_wheel()) == []
    assert check_dist.sdist_problems(good_sdist()) == []


@pytest.mark.parametrize(
    "missing",
    [name for name in good_wheel() if not name.endswith("denoiser.onnx")] + ["fastdc/models/digits/denoiser.onnx"],
)
def test_a_missing_file_of_a_wheel_is_seen(missing: str) -> None:
    files = good_wheel()
    del files[missing]
    assert check_dist.wheel_problems(files)


@pytest.mark.parametrize("missing", good_sdist())
def test_a_missing_file_of_a_source_distribution_is_seen(missing: str) -> None:
    files = good_sdist()
    del files[missing]
    assert check_dist.sdist_problems(files)


@pytest.mark.parametrize(
    "extra",
    ["tests/diffusion/test_kernels.py", "csrc/bindings.cpp", "fastdc.libs/libgomp.so", "fastdc/a.pyc", "fastdc/a.json"],
)
def test_an_extra_file_in_a_wheel_is_seen(extra: str) -> None:
    assert check_dist.wheel_problems({**good_wheel(), extra: b""}) == [f"{extra} does not belong in a wheel"]


def test_a_changed_bundle_is_seen() -> None:
    files = {**good_wheel(), "fastdc/models/digits/denoiser.onnx": b"netw0rk"}
    (problem,) = check_dist.wheel_problems(files)
    assert (
        problem == "fastdc/models/digits/denoiser.onnx is not the file that fastdc/models/digits/fastdc.json describes"
    )


def write_wheel(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)


def write_sdist(path: Path, files: dict[str, bytes]) -> None:
    source = path.parent / "source"
    for name, data in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    with tarfile.open(path, "w:gz") as sdist:
        sdist.add(source, arcname="fast_diffusion_classifier-0.1.0")


@pytest.mark.parametrize(
    ("name", "write", "files"),
    [("fastdc.whl", write_wheel, good_wheel()), ("fastdc.tar.gz", write_sdist, good_sdist())],
    ids=["wheel", "sdist"],
)
def test_archives_are_read_back(
    tmp_path: Path, name: str, write: Callable[[Path, dict[str, bytes]], None], files: dict[str, bytes]
) -> None:
    write(tmp_path / name, files)
    assert check_dist.read_archive(tmp_path / name) == files


def test_without_the_native_module_the_error_says_what_to_do(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "fastdc", tmp_path / "fastdc", ignore=shutil.ignore_patterns("_C*.so", "models"))
    # -S -P: without the finder of an editable installation; the path holds the copy and the installed packages.
    path = [str(tmp_path), *(entry for entry in sys.path if entry.endswith("site-packages"))]
    code = f"import sys; sys.path[:0] = {path!r}; import fastdc; fastdc.load"
    done = subprocess.run([sys.executable, "-S", "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith("ImportError: fastdc._C, the compiled part, is missing")
