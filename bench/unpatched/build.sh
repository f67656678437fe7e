#!/bin/sh
# Builds build/unpatched/prompts from the ggml and llama.cpp of the module that go.mod pins, as they are, for
# this machine's processor, with what llama.cpp turns on by itself: OpenMP, llamafile's kernels, repacked weights, AMX.
set -eu
cd "$(dirname "$0")/../.."
out=build/unpatched
# whole or not at all
[ -d $out/src ] || { rm -rf $out/new && patches/patches.sh pristine $out/new && mv $out/new $out/src; }
case $(uname -m) in
x86_64) arch=x86 native=-march=native ;;
aarch64) arch=arm native=-mcpu=native ;;
*) echo "build.sh: no such processor is known here: $(uname -m)" >&2; exit 2 ;;
esac
cat > $out/Makefile <<MAKE
S := $out/src
SOURCES := \$(wildcard \$(S)/ggml/src/*.c \$(S)/ggml/src/ggml*.cpp \$(S)/ggml/src/gguf.cpp \$(S)/ggml/src/mem_*.cpp \$(S)/ggml/src/ggml-cpu/*.c \$(S)/ggml/src/ggml-cpu/*.cpp \\
	\$(S)/ggml/src/ggml-cpu/amx/*.cpp \$(S)/ggml/src/ggml-cpu/llamafile/sgemm.cpp \$(S)/ggml/src/ggml-cpu/arch/$arch/quants.c \$(S)/ggml/src/ggml-cpu/arch/$arch/repack.cpp \\
	\$(S)/llama/src/*.cpp \$(S)/llama/src/models/*.cpp) bench/unpatched/library/prompts.cpp
FLAGS := -O3 -DNDEBUG $native -fopenmp -w -D_GNU_SOURCE -DGGML_USE_CPU -DGGML_USE_OPENMP -DGGML_USE_LLAMAFILE -DGGML_USE_CPU_REPACK \\
	-DGGML_VERSION='"0.0.0"' -DGGML_COMMIT='"module"' -DGGML_SCHED_MAX_COPIES=4 \\
	-I\$(S)/ggml/include -I\$(S)/ggml/src -I\$(S)/ggml/src/ggml-cpu -I\$(S)/llama/include -I\$(S)/llama/src
OBJECTS := \$(addprefix $out/obj/,\$(addsuffix .o,\$(SOURCES)))
$out/prompts: \$(OBJECTS)
	g++ -fopenmp -o \$@ \$^ -lpthread -ldl -lm
$out/obj/%.c.o: %.c
	@mkdir -p \$(@D)
	gcc -std=gnu11 \$(FLAGS) -c \$< -o \$@
$out/obj/%.cpp.o: %.cpp
	@mkdir -p \$(@D)
	g++ -std=c++17 \$(FLAGS) -c \$< -o \$@
MAKE
make -s -j"$(nproc)" -f $out/Makefile $out/prompts
