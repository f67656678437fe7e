# The CUDA backend, a module that is loaded at run time, from the patched sources
# in build/src. For scripts/cuda-build.sh, which finds the compiler and knows when other
# flags ask for other objects.
#
#   CUDA        folder of the toolkit
#   CUDA_ARCH   compute capabilities, such as "80 90"

.DELETE_ON_ERROR:
.PHONY: flags
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := bin/libggml-cuda.so

SRC := build/src
OBJ := build/obj/cuda
CXX ?= c++
CC  ?= cc
NVCC := $(CUDA)/bin/nvcc

# as in the Makefile
OPT := -O3 -DNDEBUG
DEFINES := -D_GNU_SOURCE -D_XOPEN_SOURCE=600 -DGGML_VERSION='"0.0.0"' -DGGML_COMMIT='"ollama-v0.24.0"' \
	-DGGML_SCHED_MAX_COPIES=4 -DGGML_BACKEND_DL -DGGML_SHARED -DGGML_BACKEND_SHARED
INCLUDES := -I$(SRC)/ggml/include -I$(SRC)/ggml/src -I$(SRC)/ggml/src/ggml-cuda -Icsrc/cuda
HOST_FLAGS := $(OPT) -g0 -fPIC -pthread -MMD -MP -w $(DEFINES) $(INCLUDES) -DGGML_BUILD
# NO_VMM: the functions behind it are the driver's, and a module that names them does not
# load where there is none. NO_FA: no flash attention, which has no backward pass and
# takes twice as long to compile as all the rest.
CUDA_DEFINES := -DGGML_BACKEND_BUILD -DGGML_CUDA_NO_VMM -DGGML_CUDA_NO_FA -DGGML_CUDA_USE_GRAPHS -DGGML_CUDA_PEER_MAX_BATCH_SIZE=128
CODE := $(foreach a,$(CUDA_ARCH),-gencode arch=compute_$(a),code=sm_$(a))
# ggml compiles everything with fast math, in which tanh is good to 2e-4 only: 0.01 in a logit
# that is capped at 30. Products alone have no functions in them that suffer.
FAST = $(if $(filter mm%,$(<F)),-use_fast_math)
NVCC_FLAGS = -std=c++17 $(OPT) $(FAST) -extended-lambda $(CODE) -Xcompiler -fPIC,-pthread,-w -w -MMD -MP $(DEFINES) $(CUDA_DEFINES) $(INCLUDES)

# fattn*: see NO_FA; csrc/cuda has the two functions that the rest calls
CU_SRC := $(filter-out %/fattn.cu %/fattn-tile.cu %/fattn-wmma-f16.cu,$(wildcard $(SRC)/ggml/src/ggml-cuda/*.cu)) \
	$(wildcard $(SRC)/ggml/src/ggml-cuda/template-instances/mm*.cu) $(wildcard csrc/cuda/*.cu)
BASE_SRC := $(filter-out %/ggml.cpp %/ggml-backend-reg.cpp,$(wildcard $(SRC)/ggml/src/*.c $(SRC)/ggml/src/*.cpp))
# ggml-backend-reg.cpp is the list of backends, which the module does not ask
OBJECTS := $(CU_SRC:%=$(OBJ)/%.o) $(BASE_SRC:%=$(OBJ)/%.o)

$(OBJ)/%.cu.o: %.cu
	@mkdir -p $(@D)
	@echo "  NVCC    $<"
	@$(NVCC) $(NVCC_FLAGS) -c $< -o $@
$(OBJ)/%.cpp.o: %.cpp
	@mkdir -p $(@D)
	@echo "  CXX     $<"
	@$(CXX) -std=c++17 $(HOST_FLAGS) -c $< -o $@
$(OBJ)/%.c.o: %.c
	@mkdir -p $(@D)
	@echo "  CC      $<"
	@$(CC) -std=gnu11 $(HOST_FLAGS) -c $< -o $@

flags:
	$(info $(NVCC_FLAGS) $(HOST_FLAGS))
	@:

LIB    := $(firstword $(wildcard $(CUDA)/lib64 $(CUDA)/targets/*/lib $(CUDA)/lib))
CUBLAS := $(firstword $(wildcard $(LIB)/libcublas.so $(LIB)/libcublas.so.*))

# Like the CPU's modules it has ggml's base in itself and shows two functions. CUDA's
# runtime is in it, too; cuBLAS is found beside it, where it was at the build, or where the system has it.
bin/libggml-cuda.so: $(OBJECTS) csrc/backend.map
	@mkdir -p $(@D)
	@echo "  LINK    $@"
	@$(CXX) -shared -pthread -Wl,--no-undefined -Wl,--version-script=csrc/backend.map -o $@ $(OBJECTS) \
		$(LIB)/libcudart_static.a $(CUBLAS) -Wl,-rpath,'$$ORIGIN:$(LIB)' -ldl -lrt -lm

# compares the module's device with the CPU's
build/cuda-compare: $(OBJ)/csrc/cuda/compare.cpp.o $(OBJ)/csrc/softmax.cpp.o $(BASE_SRC:%=$(OBJ)/%.o)
	@echo "  LINK    $@"
	@$(CXX) -pthread -o $@ $^ -ldl -lm

-include $(shell find $(OBJ) -name '*.d' 2>/dev/null)
