#!/usr/bin/env bash
# Verifies and measures fastdc on the GPU of this machine, without access to the internet:
#
#     bench/gpu/gpu.sh [options] [RESULT.json]      default: bench/results/gpu-DEVICE.json
#
# It builds fastdc from these sources for this device in a temporary folder, and then does the chosen parts:
#
#     tests       runs `pytest -m cuda`
#     sanitizer   runs some of these tests under compute-sanitizer if it is installed (SANITIZE=0 turns this off)
#     kernels     compares CPU and CUDA noise bit for bit, and times the kernels beside a copy (check.py)
#     networks    checks and times networks on every backend beside the plain PyTorch loop (networks.py)
#
# Options: --parts tests,sanitizer,kernels,networks; --minutes 8 for all parts (the networks get the rest, at least 2);
# --networks edm,sd; --sides plain,captured,tensorrt,onnx,eager,compile; --quick; --keep FOLDER for exports and engines.
# Several invocations with different parts complete one RESULT.json, and the page RESULT.md, if device and commit agree.
#
# Needs a GPU with its driver, nvcc, g++, CMake, Python 3.11 or later with torch for CUDA, and the build, base and test
# requirements of pyproject.toml. Missing Python packages may be put as wheels into the folder .whl of the repository.
# onnxruntime-gpu, tensorrt, onnx with onnxscript, diffusers and cuda-core are optional: a side that needs a missing one
# is named and left out. PYTHON and CUDACXX choose the interpreter and nvcc. Exit status: 0 all is well, 1 something
# failed, 2 nothing was done.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3}
result=""
parts="tests,sanitizer,kernels,networks"
minutes=8
keep=""
quick=()
networks=()

refuse() {
  printf 'bench/gpu/gpu.sh: %s\n' "$@" >&2
  exit 2
}

usage() {
  refuse "usage: bench/gpu/gpu.sh [--parts P,...] [--minutes N] [--networks N,...] [--sides S,...] [--quick]" \
    "       [--keep FOLDER] [RESULT.json]; parts are tests, sanitizer, kernels, networks"
}

while [[ $# -gt 0 ]]; do
  case $1 in
    --quick) quick=(--quick) ;;
    --parts | --minutes | --networks | --sides | --keep)
      [[ $# -ge 2 ]] || usage
      case $1 in
        --parts) parts=$2 ;;
        --minutes) minutes=$2 ;;
        --keep) keep=$(realpath -m "$2") ;;
        *)
          IFS=, read -ra names <<<"$2"
          networks+=("$1" "${names[@]}")
          ;;
      esac
      shift
      ;;
    -*) usage ;;
    *)
      [[ -z ${result} ]] || usage
      result=$1
      ;;
  esac
  shift
done
[[ ${parts} =~ ^(tests|sanitizer|kernels|networks)(,(tests|sanitizer|kernels|networks))*$ ]] || usage
[[ ${minutes} =~ ^[1-9][0-9]{0,2}$ ]] || usage
wanted() { [[ ,${parts}, == *,$1,* ]]; }

command -v "${python}" >/dev/null || refuse "no ${python}: set PYTHON to a Python with torch for CUDA"
if [[ -z ${CUDACXX:-} ]]; then
  CUDACXX=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null || true)
fi
[[ -n ${CUDACXX} && -x ${CUDACXX} ]] || refuse "no nvcc: put it on PATH, or set CUDACXX"
export CUDACXX

work=$(mktemp -d)
trap 'rm -rf "${work}"' EXIT
[[ -z ${result} ]] || result=$(realpath -m "${result}")

if compgen -G "${root}/.whl/*.whl" >/dev/null; then
  "${python}" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
    --target "${work}/tools" "${root}"/.whl/*.whl || refuse "the wheels in .whl do not install into ${python}"
  export PYTHONPATH="${work}/tools${PYTHONPATH:+:${PYTHONPATH}}"
fi

# The architecture of device 0 ("90" for compute capability 9.0) and its name, or all reasons to refuse at once.
probed=$("${python}" - "${CUDACXX}" <<'PYTHON'
import importlib.util, re, shutil, subprocess, sys

problems = []
if sys.version_info < (3, 11):
    problems.append(f"Python 3.11 or later is needed, this is {sys.version.split()[0]}")
needed = {
    "torch": "torch", "scikit_build_core": "scikit-build-core", "pybind11": "pybind11", "tvm_ffi": "apache-tvm-ffi",
    "numpy": "numpy", "scipy": "scipy", "PIL": "pillow", "safetensors": "safetensors", "click": "click",
    "tqdm": "tqdm", "pytest": "pytest", "hypothesis": "hypothesis", "ml_dtypes": "ml_dtypes",
}
missing = [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
if missing:
    problems.append(f"{sys.executable} lacks {', '.join(missing)}: install them, or put wheels into .whl")
if shutil.which("g++") is None:
    problems.append("no g++ on PATH")
if shutil.which("cmake") is None and importlib.util.find_spec("cmake") is None:
    problems.append("no CMake: put cmake on PATH, or its wheel into .whl")
architecture = name = ""
if "torch" not in missing:
    import torch

    if torch.version.cuda is None:
        problems.append(f"torch {torch.__version__} is built without CUDA")
    elif not torch.cuda.is_available():
        problems.append("no usable GPU: torch sees none (is there a device, and its driver?)")
    else:
        architecture = "{}{}".format(*torch.cuda.get_device_capability(0))
        name = re.sub("[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-")
        known = subprocess.run([sys.argv[1], "--list-gpu-code"], capture_output=True, text=True).stdout.split()
        if f"sm_{architecture}" not in known:
            problems.append(f"{sys.argv[1]} has no sm_{architecture}, the architecture of this device")
for problem in problems:
    print(f"bench/gpu/gpu.sh: {problem}", file=sys.stderr)
print(architecture, name)
sys.exit(2 if problems else 0)
PYTHON
) || exit 2
read -r architecture device <<<"${probed}"
result=${result:-${root}/bench/results/gpu-${device}.json}

echo "== build for sm_${architecture}"
export CMAKE_PREFIX_PATH="$("${python}" -m pybind11 --cmakedir)${CMAKE_PREFIX_PATH:+:${CMAKE_PREFIX_PATH}}"
if ! FASTDC_CUDA=ON FASTDC_CUDA_ARCHITECTURES="${architecture}-real" \
  "${python}" -m pip install --no-index --no-build-isolation --no-deps --no-compile --no-cache-dir \
  --disable-pip-version-check --target "${work}/site" -C build-dir="${work}/build" "${root}" \
  >"${work}/build.log" 2>&1; then
  tail -40 "${work}/build.log" >&2
  echo "bench/gpu/gpu.sh: the build failed" >&2
  exit 1
fi

# PYTHONSAFEPATH: the package comes from the folder just built, not from the sources, which have no native module.
built="${work}/site${PYTHONPATH:+:${PYTHONPATH}}"
run_tests() { PYTHONSAFEPATH=1 PYTHONPATH="${built}" "$@"; }
cd "${root}"
run_tests "${python}" -c 'import sys, fastdc; sys.exit(not fastdc.__file__.startswith(sys.argv[1]))' "${work}/site" ||
  refuse "${python} imports another fastdc, installed in editable mode: uninstall it, or set PYTHON to another"

junit=()
if wanted tests; then
  echo "== pytest -m cuda"
  # Only the files with such tests: importing all the others takes half a minute of the device's time.
  mapfile -t files < <(grep -rlE 'mark\.cuda|cuda_sides' tests --include='test_*.py' | sort)
  run_tests timeout --kill-after=10 $((30 * minutes)) "${python}" -m pytest -m cuda "${files[@]}" -q \
    -p no:cacheprovider --continue-on-collection-errors --junitxml="${work}/tests.xml" || true
  junit=(--junit "${work}/tests.xml")
fi

sanitized=""
beside=$(dirname "$(realpath "${CUDACXX}")")
sanitizer=$(command -v compute-sanitizer || ls "${beside}/compute-sanitizer" 2>/dev/null || true)
if wanted sanitizer && [[ ${SANITIZE:-1} != 0 && -z ${sanitizer} ]]; then
  echo "== compute-sanitizer is neither on PATH nor beside nvcc: left out"
elif wanted sanitizer && [[ ${SANITIZE:-1} != 0 ]]; then
  for tool in memcheck racecheck; do
    echo "== compute-sanitizer --tool ${tool}"
    status=0
    # Without torch's cache each array is an allocation of its own, so that overruns are found. 77: errors were found.
    run_tests env PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout --kill-after=10 $((8 * minutes)) \
      "${sanitizer}" --tool "${tool}" --error-exitcode 77 \
      "${python}" -m pytest tests/diffusion/test_cuda.py -q -p no:cacheprovider -k "783 and runs or outside" ||
      status=$?
    sanitized="${sanitized} ${tool}=${status}"
  done
fi

status=0
if wanted tests || wanted sanitizer || wanted kernels; then
  echo "== noise and times"
  check=("${quick[@]}")
  wanted kernels || check+=(--no-kernels)
  PYTHONPATH="${built}" "${python}" bench/gpu/check.py "${junit[@]}" --sanitizer "${sanitized}" "${check[@]}" \
    --out "${result}" || status=1
fi

if wanted networks; then
  echo "== networks"
  left=$((minutes - SECONDS / 60))
  PYTHONPATH="${built}" FASTDC_CACHE=${FASTDC_CACHE:-${keep:-${work}}/cache} "${python}" bench/gpu/networks.py \
    --minutes $((left > 2 ? left : 2)) "${networks[@]}" "${quick[@]}" ${keep:+--keep "${keep}"} \
    --out "${result}" || status=1
fi
exit ${status}
