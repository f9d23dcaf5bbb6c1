#!/usr/bin/env bash
# Compiles the CPU kernels for 64-bit Arm and runs them under an emulator: the noise must be that of the golden files, and
# every kernel must give the bits of this machine's build. Needs g++-aarch64-linux-gnu and qemu-user-static (Debian's and Ubuntu's names).
# usage: tools/aarch64.sh
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The options of CMakeLists.txt.
numerics=$(sed -n 's/^set(FASTDC_NUMERICS \(.*\))$/\1/p' CMakeLists.txt)
[ -n "$numerics" ] || { echo "CMakeLists.txt: expected a line set(FASTDC_NUMERICS ...)" >&2; exit 1; }
read -ra options <<<"$numerics"
sources=(tools/native_check.cpp csrc/kernels_cpu.cpp csrc/thread_pool.cpp)

# usage: build COMPILER OUTPUT [options]
build() {
  "$1" -std=c++17 -O3 -Wall -Wextra -Wno-ignored-attributes -Werror "${options[@]}" \
    -DFASTDC_CPU_NAMESPACE=cpu_baseline -Icsrc "${@:3}" -o "$2" "${sources[@]}" -pthread
}
build "${CXX:-g++}" "$work/here"
build aarch64-linux-gnu-g++ "$work/arm" -static
"$work/here" tests/golden >"$work/here.txt"
qemu-aarch64-static "$work/arm" tests/golden >"$work/arm.txt"
diff "$work/here.txt" "$work/arm.txt"
head -n 1 "$work/arm.txt"
echo "$(($(wc -l <"$work/arm.txt") - 1)) outputs have the bits of $(uname -m)"
