"""Checks the contents of fastdc's wheels and source distributions before they are published.

A wheel must hold the package, one native module, the bundles with every file that their ``fastdc.json`` lists (with the
stated size and hash), the test images, the typing marker and the licences. It must hold nothing else: no tests, no
sources of the native module, no tools. A source distribution must hold everything that a build and a test run need.

    python tools/check_dist.py dist/*
"""

import argparse
import hashlib
import json
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

BUNDLES = tuple(f"fastdc/models/{name}" for name in ("digits", "digits-mlp", "mnist", "phantoms", "shapes"))
TEST_IMAGES = tuple(f"fastdc/models/{name}.npz" for name in ("digits-test", "mnist-test-300", "phantoms-test-200"))
WHEEL_NEEDS = ("fastdc/__init__.py", "fastdc/_C.pyi", "fastdc/py.typed", *TEST_IMAGES)
LICENCES = ("LICENSE", "THIRD_PARTY.md")
SDIST_NEEDS = (
    *WHEEL_NEEDS,
    *LICENCES,
    "CMakeLists.txt",
    "README.md",
    "SECURITY.md",
    "constraints.txt",
    "csrc/bindings.cpp",
    "csrc/kernels_cuda.cu",
    "pyproject.toml",
    "tests/repository/test_packaging.py",
)
WHEEL_SUFFIXES = {".py", ".pyi", ".typed", ".so", ".npz"}  # in addition to the files of the bundles


def read_archive(path: Path) -> dict[str, bytes]:
    """The files of a wheel (.whl) or source distribution (.tar.gz), the latter without its top folder."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist() if not name.endswith("/")}
    files = {}
    with tarfile.open(path) as sdist:
        for member in sdist.getmembers():
            if member.isfile() and (stream := sdist.extractfile(member)) is not None:
                files[member.name.partition("/")[2]] = stream.read()
    return files


def bundle_files(files: Mapping[str, bytes]) -> set[str]:
    """The manifests of the bundles in a distribution, and the files that they list."""
    found = set()
    for manifest in (f"{folder}/fastdc.json" for folder in BUNDLES):
        if manifest in files:
            folder = PurePosixPath(manifest).parent
            found |= {manifest, *(str(folder / name) for name in json.loads(files[manifest])["files"])}
    return found


def bundle_problems(files: Mapping[str, bytes], folder: str) -> list[str]:
    """The faults of a shipped bundle: a missing manifest or file, or a file that its manifest does not describe."""
    manifest_name = f"{folder}/fastdc.json"
    if manifest_name not in files:
        return [f"{manifest_name} is missing"]
    problems = []
    for name, entry in json.loads(files[manifest_name])["files"].items():
        data = files.get(f"{folder}/{name}")
        if data is None:
            problems.append(f"{folder}/{name} is missing")
        elif (len(data), hashlib.sha256(data).hexdigest()) != (entry["bytes"], entry["sha256"]):
            problems.append(f"{folder}/{name} is not the file that {manifest_name} describes")
    return problems


def wheel_problems(files: Mapping[str, bytes]) -> list[str]:
    """The faults in the contents of a wheel, one line each."""
    package = {name for name in files if PurePosixPath(name).parts[0] == "fastdc"}
    metadata = {name for name in files if PurePosixPath(name).parts[0].endswith(".dist-info")}
    problems = [f"{name} is missing" for name in WHEEL_NEEDS if name not in package]
    native = [name for name in package if name.startswith("fastdc/_C.") and name.endswith(".so")]
    if len(native) != 1:
        problems.append(f"expected one native module fastdc/_C.*.so, got {len(native)}")
    for licence in LICENCES:
        if not any(name.endswith(f".dist-info/licenses/{licence}") for name in metadata):
            problems.append(f"{licence} is missing")
    # auditwheel copies libraries into a folder fastdc.libs, which fastdc must not need.
    problems += [f"{name} does not belong in a wheel" for name in sorted(files.keys() - package - metadata)]
    rest = sorted(package - bundle_files(files))
    problems += [f"{name} does not belong in a wheel" for name in rest if Path(name).suffix not in WHEEL_SUFFIXES]
    return problems + [problem for folder in BUNDLES for problem in bundle_problems(files, folder)]


def sdist_problems(files: Mapping[str, bytes]) -> list[str]:
    """The faults in the contents of a source distribution, one line each."""
    problems = [f"{name} is missing" for name in SDIST_NEEDS if name not in files]
    unwanted = (name for name in sorted(files) if name.endswith((".so", ".pyc")) or name.startswith("build/"))
    problems += [f"{name} does not belong in a source distribution" for name in unwanted]
    return problems + [problem for folder in BUNDLES for problem in bundle_problems(files, folder)]


def main() -> int:
    """Checks every distribution on the command line; the exit code is 1 if one has a fault."""
    parser = argparse.ArgumentParser(description="Check the contents of fastdc's wheels and source distributions.")
    parser.add_argument("distributions", nargs="+", type=Path)
    failed = False
    for path in parser.parse_args().distributions:
        files = read_archive(path)
        problems = wheel_problems(files) if path.suffix == ".whl" else sdist_problems(files)
        for problem in problems:
            print(f"{path.name}: {problem}", file=sys.stderr)
        unpacked = sum(map(len, files.values())) / 1e6
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB, {len(files)} files, {unpacked:.2f} MB unpacked")
        failed |= bool(problems)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
