#!/bin/sh
# Prints the folder of a CUDA toolkit: that of the nvcc on the PATH or of
# CUDA_HOME, or else one made of NVIDIA's Python packages (1 GB), fetched once into a
# cache outside the repository (LLSTEER_NVCC, or llsteer/nvcc in the user's cache
# folder). It needs no GPU and no driver.
set -eu

if [ -n "${CUDA_HOME:-}" ] && [ -x "$CUDA_HOME/bin/nvcc" ]; then
    echo "$CUDA_HOME"
    exit
fi
if nvcc=$(command -v nvcc); then
    dirname "$(dirname "$(readlink -f "$nvcc")")"
    exit
fi

# the compiler's parts have one version, the libraries are those that came with it
packages='nvidia-cuda-nvcc==13.5.37 nvidia-cuda-crt==13.5.37 nvidia-nvvm==13.5.37 nvidia-cuda-runtime==13.5.37 nvidia-cuda-cccl==13.3.5.0.6 nvidia-cublas==13.10.0.20'
dir=${LLSTEER_NVCC:-${XDG_CACHE_HOME:-$HOME/.cache}/llsteer/nvcc/13.5.37}
if [ ! -x "$dir/bin/nvcc" ]; then
    fail() { echo "fetch-nvcc.sh: $1" >&2; exit 1; }
    command -v python3 >/dev/null || fail "there is no nvcc on the PATH and no CUDA_HOME; to fetch one python3 is needed, and not here (Debian: apt install python3 python3-pip)"
    python3 -m pip --version >/dev/null 2>&1 || fail "there is no nvcc on the PATH and no CUDA_HOME; to fetch one python3 needs pip (Debian: apt install python3-pip)"
    [ ! -e "$dir" ] || fail "$dir has no nvcc in it; remove it, and it will be fetched"
    mkdir -p "$(dirname "$dir")"
    tmp=$(mktemp -d "$(dirname "$dir")/fetch.XXXXXX")
    trap 'rm -rf "$tmp"' EXIT
    echo "fetching nvcc" >&2
    python3 -m pip install -q --no-deps --only-binary=:all: --target "$tmp" $packages >&2
    mv "$tmp/nvidia/cu13" "$dir"
fi
echo "$dir"
