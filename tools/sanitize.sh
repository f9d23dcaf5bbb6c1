#!/usr/bin/env bash
# Builds the native module with a sanitizer, and runs the native tests and fuzz targets on it:
#   tools/sanitize.sh address      AddressSanitizer and UndefinedBehaviorSanitizer
#   tools/sanitize.sh thread       ThreadSanitizer
# Everything goes into a temporary folder. Needs GCC with its sanitizer libraries, and the extra [test] in the
# environment of $PYTHON. INPUTS is the number of inputs per fuzz target (2000).
# usage: tools/sanitize.sh KIND [pytest options]
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:?usage: tools/sanitize.sh address|thread [pytest options]}
shift
python=${PYTHON:-python}
cxx=${CXX:-g++}
case $kind in
  address) flags=address,undefined library=libasan.so ;;
  thread) flags=thread library=libtsan.so ;;
  *) echo "expected address or thread, got $kind" >&2; exit 2 ;;
esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

CXX=$cxx FASTDC_CUDA=OFF CXXFLAGS="-fsanitize=$flags -fno-sanitize-recover=all -fno-omit-frame-pointer -g1" \
  "$python" -m pip install -q --no-deps --target "$work/site" -c constraints.txt .

# The module is built here and nowhere else: an installation of the environment must not be found instead.
cat >"$work/site/sitecustomize.py" <<'PY'
import sys

sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "ScikitBuildRedirectingFinder"]
PY
export PYTHONPATH=$work/site PYTHONSAFEPATH=1 PYTHONMALLOC=malloc
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=ignore_noninstrumented_modules=0:halt_on_error=1:abort_on_error=1:allocator_may_return_null=1
preload=$("$cxx" -print-file-name=$library):$("$cxx" -print-file-name=libstdc++.so)
# ThreadSanitizer needs its own places in the address space.
run() { setarch "$(uname -m)" -R env LD_PRELOAD="$preload" "$python" "$@"; }

# A sanitizer needs memory of its own, so tests that measure or limit memory fail under it.
skip=(--deselect tests/diffusion/test_thread_pool.py::test_a_pool_that_gets_fewer_threads_than_it_wants_still_works
  --deselect tests/engine/test_ledger.py::test_a_closed_request_gives_its_memory_back)
# ThreadSanitizer ends a child that starts threads after the fork of a process with threads.
if [ "$kind" = thread ]; then skip+=(-k "not fork"); fi

run -c "import fastdc._C; print('built:', fastdc._C.__file__)"
run -m pytest -q -p no:cacheprovider tests/diffusion/test_kernels.py tests/diffusion/test_kernel_arguments.py \
  tests/diffusion/test_kernel_memory.py tests/diffusion/test_thread_pool.py tests/diffusion/test_philox.py \
  tests/engine/test_ledger.py "${skip[@]}" "$@"
for target in kernels views ledger; do
  PYTHONSAFEPATH= run tools/fuzz.py "$target" --inputs "${INPUTS:-2000}"
done
