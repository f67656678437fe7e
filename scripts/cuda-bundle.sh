#!/bin/sh
# Packs what scripts/cuda-check.sh needs on a GPU machine without Go and network into
# build/llsteer-cuda.tar.gz: the program and its libraries, for every CPU; Go's
# tests and bench as programs; the patched sources of the CUDA backend.
#
#   scripts/cuda-bundle.sh && scp build/llsteer-cuda.tar.gz GPU:
#   there: tar xzf llsteer-cuda.tar.gz && llsteer-cuda/scripts/cuda-check.sh
set -eu
cd "$(dirname "$0")/.."

make release
mkdir -p build/gpu
go test -c -o build/gpu/ggmlsteer.test ./ggmlsteer
go build -o build/gpu/bench-step ./bench/cpu
go build -o build/gpu/bench-decode ./bench/decode
tar czf build/llsteer-cuda.tar.gz --transform 's,^,llsteer-cuda/,' --exclude bin/libggml-cuda.so \
    bin build/gpu build/src/ggml csrc scripts docs/cuda.md bench testdata ggmlsteer go.mod
ls -l build/llsteer-cuda.tar.gz
