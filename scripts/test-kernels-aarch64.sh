#!/bin/sh
# Builds the kernels and their test for aarch64 and runs them under qemu, on a machine of
# another kind (Debian: apt install g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user). Run `make` before.
set -eu
cd "$(dirname "$0")/.."
CXX=aarch64-linux-gnu-g++
for tool in $CXX aarch64-linux-gnu-gcc qemu-aarch64; do
    command -v $tool >/dev/null || { echo "test-kernels-aarch64.sh: $tool is needed (Debian: apt install g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)" >&2; exit 2; }
done
src=build/src/ggml/src
out=build/aarch64
mkdir -p $out
flags="-O2 -DNDEBUG -w -march=armv8.2-a+dotprod -D_GNU_SOURCE -DGGML_VERSION=\"0\" -DGGML_COMMIT=\"0\" -Ibuild/src/ggml/include -I$src -I$src/ggml-cpu -Icsrc/kernels"
objects=
for file in $src/ggml.c $src/ggml-alloc.c $src/ggml-quants.c $src/ggml-backend.cpp $src/ggml-threading.cpp $src/gguf.cpp csrc/kernels/*.cpp; do
    object=$out/$(basename "$file").o
    case $file in
    *.c) aarch64-linux-gnu-gcc -std=gnu11 $flags -c "$file" -o $object ;;
    *) $CXX -std=c++17 $flags -c "$file" -o $object ;;
    esac
    objects="$objects $object"
done
$CXX -static -pthread -o $out/kernels $objects -lm
qemu-aarch64 $out/kernels
