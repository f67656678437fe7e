#!/bin/sh
# Builds, checks and times the CUDA backend on a machine with an NVIDIA GPU. Needs nvcc, make,
# a C++ compiler and what scripts/cuda-bundle.sh packs: no Go, no network. PyTorch and
# compute-sanitizer are used where they are.
#
#   scripts/cuda-check.sh [build|kernels|gradients|graphs|tutorial|sanitizer|bench]...   default: all
#
# Writes build/cuda-check.txt, and ends with code 1 if a check failed.
set -u
cd "$(dirname "$0")/.."
root=$PWD
failed=

step() { printf '\n== %s\n' "$1"; }
check() { # check NAME COMMAND...
    name=$1
    shift
    if "$@"; then echo "ok: $name"; else echo "FAILED: $name"; failed="$failed $name"; fi
}

# the best CPU module that this machine runs is not known before it is loaded: any that is there serves
compare() {
    make --no-print-directory -f csrc/cuda/cuda.mk CUDA="$(scripts/fetch-nvcc.sh)" CUDA_ARCH=90 build/cuda-compare || return 1
    for cpu in bin/libggml-cpu-haswell.so bin/libggml-cpu-armv8.0_1.so bin/libggml-cpu-*.so; do
        [ -f "$cpu" ] && { build/cuda-compare "$cpu" bin/libggml-cuda.so; return; }
    done
    echo "no bin/libggml-cpu-*.so"
    return 1
}

# Go's tests, as a program: go_tests NAME LAYERS PATTERN
go_tests() {
    tests=build/gpu/ggmlsteer.test
    [ -x $tests ] || { echo "$tests is not there: scripts/cuda-bundle.sh makes it"; return 1; }
    (cd ggmlsteer && LLSTEER_TEST_GPU_LAYERS=$2 "$root/$tests" -test.v -test.run "^($3)\$") > "build/cuda-$1.txt" 2>&1
    rc=$?
    grep -E '^(--- |FAIL|ok|PASS)|CUDA graphs|Error|Messages' "build/cuda-$1.txt"
    return $rc
}

# PyTorch's losses and gradients (testdata/reference), central differences, and the CPU's own
gradients() { go_tests gradients "$1" 'TestReference.*|TestOnDevice|TestGradientsAgainstDifferences|TestComplementGradientNearOne|TestLittleMemory'; }

# CUDA graphs: the same bits as without, and each session says that it captured and launched some
graphs() { go_tests graphs "$1" TestCUDAGraphs && grep -q '^--- PASS: TestCUDAGraphs' build/cuda-graphs.txt; }

# the demo's job on the GPU and on the CPU: the same number of steps, and the same loss to 1 in 1000
tutorial() {
    for layers in 0 -1; do
        bin/llsteer optimize -m demo demo -ngl $layers --precision "$1" --json -q -o build/cuda-tutorial$layers.gguf > build/cuda-tutorial$layers.json || return 1
    done
    python3 - "$1" <<'PY'
import json, sys
cpu, gpu = (json.load(open(f"build/cuda-tutorial{n}.json")) for n in (0, -1))
print("steps", cpu["iters"], gpu["iters"], "loss", cpu["loss"], gpu["loss"], "seconds a step", cpu["seconds_per_step"], gpu["seconds_per_step"])
tolerance = 1e-3 if sys.argv[1] == "f32" else 5e-2
sys.exit(not (abs(cpu["iters"] - gpu["iters"]) <= 1 and abs(cpu["loss"] - gpu["loss"]) <= tolerance*abs(cpu["loss"])))
PY
}

generated() {
    for layers in 0 -1; do
        bin/llsteer generate -m demo -s build/cuda-tutorial-1.gguf -p "My favorite food is" -n 24 --precision f32 -ngl $layers > build/cuda-text$layers.txt || return 1
    done
    cmp build/cuda-text0.txt build/cuda-text-1.txt
}

# some blocks on the GPU, gradients through both
partly() { bin/llsteer check -m demo demo -ngl 2; }

sanitizer() {
    command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not here: not checked"; return 0; }
    for tool in memcheck racecheck initcheck; do
        compute-sanitizer --tool $tool --error-exitcode 9 bin/llsteer optimize -m demo demo --max-iters 1 -ngl -1 -q -o build/cuda-sanitizer.gguf > build/cuda-$tool.txt 2>&1
        rc=$?
        tail -2 build/cuda-$tool.txt
        [ $rc = 0 ] || return 1
    done
    LLSTEER_CUDA_GRAPHS=1 compute-sanitizer --tool memcheck --error-exitcode 9 bin/llsteer optimize -m demo demo --max-iters 3 -ngl -1 -q -o build/cuda-sanitizer.gguf > build/cuda-memcheck-graphs.txt 2>&1
    rc=$?
    tail -2 build/cuda-memcheck-graphs.txt
    return $rc
}

all() {
    nvidia-smi || { echo "FAILED: there is no NVIDIA driver here"; failed=driver; return; }
    for part in ${*:-build kernels gradients graphs tutorial sanitizer bench}; do
        step "$part"
        case $part in
        build) check build scripts/cuda-build.sh ;;
        kernels) check kernels compare ;;
        gradients)
            check "gradients, all blocks" gradients -1
            check "gradients, two blocks" gradients 2
            ;;
        graphs)
            check "CUDA graphs, all blocks" graphs -1
            check "CUDA graphs, two blocks" graphs 2
            ;;
        tutorial)
            check "tutorial, bf16" tutorial bf16
            check "tutorial, f32" tutorial f32
            check "the same text" generated
            check "a part of the blocks" partly
            ;;
        sanitizer) check sanitizer sanitizer ;;
        bench) check bench python3 bench/cuda/run.py ;;
        *) echo "FAILED: there is no part $part"; failed="$failed $part" ;;
        esac
    done
}

mkdir -p build
{ all "$@"; echo; echo "${failed:+FAILED:$failed}"; } 2>&1 | tee build/cuda-check.txt
! grep -q '^FAILED' build/cuda-check.txt
