#!/bin/sh
# Builds bin/libggml-cuda.so, ggml's CUDA backend with our kernels, from the patched
# sources in build/src. Needs make, a C++ compiler and nvcc, which it fetches
# where there is none (fetch-nvcc.sh); neither Go nor a GPU.
#
#   CUDA_ARCH   compute capabilities, such as "80 90"; default: that of the GPUs here,
#               or 90 (H100) where there are none
#   JOBS        compilations at a time; default: a processor each
#
# A build of the same sources is kept in a cache outside the repository (LLSTEER_CUDA,
# or llsteer/cuda in the user's cache folder) and taken from there.
set -eu
cd "$(dirname "$0")/.."

[ -d build/src/ggml/src/ggml-cuda ] || { echo "cuda-build.sh: build/src has no patched sources; \`make\` makes them, on a machine with Go" >&2; exit 1; }
CUDA=$(scripts/fetch-nvcc.sh)
if [ -z "${CUDA_ARCH:-}" ]; then
    CUDA_ARCH=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | sort -u | tr '\n' ' ') || true
    CUDA_ARCH=$(echo ${CUDA_ARCH:-90}) # without spaces around it
fi

# what the module is made of
MAKE="make --no-print-directory -f csrc/cuda/cuda.mk"
export CUDA CUDA_ARCH
flags=$($MAKE flags; "$CUDA/bin/nvcc" --version)
sum=$({
    echo "$flags $(uname -m)"
    { find build/src/ggml/include build/src/ggml/src -maxdepth 1 -type f; find build/src/ggml/src/ggml-cuda csrc/cuda csrc/softmax.h csrc/backend.map -type f ! -path '*/host/*'; } | LC_ALL=C sort | xargs sha256sum
} | sha256sum | cut -c1-16)

cache=${LLSTEER_CUDA:-${XDG_CACHE_HOME:-$HOME/.cache}/llsteer/cuda}
kept=$cache/$sum.so
if [ ! -f "$kept" ]; then
    echo "  CUDA    for compute capability $CUDA_ARCH, with $CUDA"
    objects=build/obj/cuda
    [ "$(cat $objects/flags 2>/dev/null)" = "$flags" ] || rm -rf $objects
    mkdir -p $objects
    echo "$flags" > $objects/flags
    $MAKE -j"${JOBS:-$(nproc)}"
    mkdir -p "$cache"
    cp bin/libggml-cuda.so "$kept.new"
    mv "$kept.new" "$kept"
    ls -t "$cache"/*.so | tail -n +4 | xargs -r rm -f # the last three
fi
mkdir -p bin
cmp -s "$kept" bin/libggml-cuda.so || { cp "$kept" bin/libggml-cuda.so.new; mv bin/libggml-cuda.so.new bin/libggml-cuda.so; }
