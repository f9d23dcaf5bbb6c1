#!/usr/bin/env bash
# Installs a CUDA 13 compiler from NVIDIA's wheels into a folder, for machines without one (CI, the manylinux image).
# Prints the path of its nvcc, FOLDER/toolkit/bin/nvcc, for CUDACXX. Nothing outside the folder changes.
# usage: CUDACXX=$(tools/cuda_toolkit.sh FOLDER) FASTDC_CUDA=ON pip install .
set -euo pipefail
constraints=$(realpath "$(dirname "$0")/../constraints.txt")
folder=$(realpath -m "${1:?usage: tools/cuda_toolkit.sh FOLDER}")
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install -q -c "$constraints" \
  nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl >&2
toolkit=$("$folder/bin/python" -c "import nvidia.cu13 as cuda; print(list(cuda.__path__)[0])")
ln -sfn lib "$toolkit/lib64" # nvcc looks for the runtime in lib64, but the wheels have lib
ln -sfn "$toolkit" "$folder/toolkit"
"$folder/toolkit/bin/nvcc" --version >&2
echo "$folder/toolkit/bin/nvcc"
