// A backend module for tests: a GPU that is none. Its memory cannot be touched from
// outside, as a GPU's: who follows a pointer into it ends with a segmentation fault. It computes
// with the CPU's kernels and softmax, so that results must have the same bits as without it.
//
// GGML_BACKEND_PATH names it, and llsteer loads it where GPU layers are asked for. With
// LLSTEER_MOCK_AS, the path of libggml-cuda.so, it refuses what that backend refuses, and has a softmax if that has one.

#include "ggml-backend-impl.h"
#include "ggml-impl.h"
#include "softmax.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>

#include <dlfcn.h>
#include <sys/mman.h>

namespace {

// What a module says of itself. MOCK_CPU is the path of the CPU's.
ggml_backend_reg_t open_module(const char * path) {
    void * module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!module) {
        GGML_ABORT("%s", dlerror());
    }
    return ((ggml_backend_init_t) dlsym(module, "ggml_backend_init"))();
}

// the module of LLSTEER_MOCK_AS, or nullptr
ggml_backend_reg_t mocked() {
    static ggml_backend_reg_t reg = getenv("LLSTEER_MOCK_AS") ? open_module(getenv("LLSTEER_MOCK_AS")) : nullptr;
    return reg;
}

ggml_backend_t new_cpu() {
    static ggml_backend_reg_t reg = open_module(MOCK_CPU);
    ggml_backend_t backend = ggml_backend_dev_init(ggml_backend_reg_dev_get(reg, 0), nullptr);
    ((ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads"))(backend, 2);
    return backend;
}

// ---- memory -----------------------------------------------------------------

struct memory {
    void * base;
    size_t size;
};

std::mutex lock;
std::set<memory *> all;
int n_open = 0; // whose business with the memory is under way

void protect(int how) {
    for (memory * m : all) {
        GGML_ASSERT(mprotect(m->base, m->size, how) == 0);
    }
}

struct opened {
    opened() {
        std::lock_guard<std::mutex> guard(lock);
        if (n_open++ == 0) {
            protect(PROT_READ | PROT_WRITE);
        }
    }
    ~opened() {
        std::lock_guard<std::mutex> guard(lock);
        if (--n_open == 0) {
            protect(PROT_NONE);
        }
    }
};

memory * of(ggml_backend_buffer_t b) { return (memory *) b->context; }

void free_buffer(ggml_backend_buffer_t b) {
    std::lock_guard<std::mutex> guard(lock);
    all.erase(of(b));
    munmap(of(b)->base, of(b)->size);
    delete of(b);
}
void * get_base(ggml_backend_buffer_t b) { return of(b)->base; }
void memset_tensor(ggml_backend_buffer_t, ggml_tensor * t, uint8_t value, size_t offset, size_t size) {
    opened o;
    memset((char *) t->data + offset, value, size);
}
void set_tensor(ggml_backend_buffer_t, ggml_tensor * t, const void * data, size_t offset, size_t size) {
    opened o;
    memcpy((char *) t->data + offset, data, size);
}
void get_tensor(ggml_backend_buffer_t, const ggml_tensor * t, void * data, size_t offset, size_t size) {
    opened o;
    memcpy(data, (const char *) t->data + offset, size);
}
void clear(ggml_backend_buffer_t b, uint8_t value) {
    opened o;
    memset(of(b)->base, value, of(b)->size);
}

const char * type_name(ggml_backend_buffer_type_t) { return "Mock"; }
size_t alignment(ggml_backend_buffer_type_t) { return 128; }
ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t type, size_t size) {
    const size_t whole = GGML_PAD(size, 4096);
    void * base = mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) {
        return nullptr;
    }
    memory * m = new memory{ base, whole };
    {
        std::lock_guard<std::mutex> guard(lock);
        all.insert(m);
    }
    return ggml_backend_buffer_init(type, { free_buffer, get_base, nullptr, memset_tensor, set_tensor, get_tensor, nullptr, clear, nullptr }, m, size);
}

extern ggml_backend_device device;
extern ggml_backend_reg reg;
ggml_backend_buffer_type type = { { type_name, alloc_buffer, alignment, nullptr, nullptr, nullptr, nullptr }, &device, nullptr };

// ---- backend -----------------------------------------------------------------

ggml_backend_t cpu(ggml_backend_t b) { return (ggml_backend_t) b->context; }

const char * backend_name(ggml_backend_t) { return "Mock0"; }
void backend_free(ggml_backend_t b) {
    ggml_backend_free(cpu(b));
    delete b;
}
ggml_status compute(ggml_backend_t b, ggml_cgraph * graph, int) {
    for (int i = 0; i < graph->n_nodes; ++i) {
        const ggml_tensor * t = graph->nodes[i];
        if (t->op == GGML_OP_NONE || t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_PERMUTE || t->op == GGML_OP_TRANSPOSE) {
            continue;
        }
        GGML_ASSERT(t->buffer && t->buffer->buft == &type && "a node that this device is to compute is not in its memory");
        for (const ggml_tensor * src : t->src) {
            GGML_ASSERT((!src || (src->buffer && src->buffer->buft == &type)) && "what a node reads is not in this device's memory");
        }
    }
    opened o;
    return ggml_backend_graph_compute(cpu(b), graph);
}

// Is it the beginning of n floats in this device's memory?
bool holds(const float * p, int64_t n) {
    std::lock_guard<std::mutex> guard(lock);
    return std::any_of(all.begin(), all.end(), [&](const memory * m) { return (char *) p >= (char *) m->base && (char *) (p + n) <= (char *) m->base + m->size; });
}
void softmax_forward(ggml_backend_t, const softmax_rows & rows, const float * logits, float * exps, softmax_target * targets, size_t n) {
    for (size_t i = 0; i < n; ++i) {
        const int64_t size = (int64_t) (targets[i].row + 1)*rows.n_vocab;
        GGML_ASSERT(holds(logits, size) && (!exps || holds(exps, size)) && "a row is not in this device's memory");
    }
    opened o;
    rows.forward(logits, exps, targets, n);
}
void softmax_backward(ggml_backend_t, const softmax_rows & rows, float * exps, const softmax_weight * weights, size_t n) {
    for (size_t i = 0; i < n; ++i) {
        GGML_ASSERT(holds(exps, (int64_t) (weights[i].row + 1)*rows.n_vocab) && "a row is not in this device's memory");
    }
    opened o;
    rows.backward(exps, weights, n);
}
const softmax_on_device * softmax() {
    static const softmax_on_device functions = { softmax_forward, softmax_backward };
    return &functions;
}

ggml_guid guid = { 'l', 'l', 's', 't', 'e', 'e', 'r', ' ', 'm', 'o', 'c', 'k', 0, 0, 0, 0 };

// ---- device ------------------------------------------------------------------

const char * device_name(ggml_backend_dev_t) { return "Mock0"; }
const char * description(ggml_backend_dev_t) { return "a GPU that is none"; }
void get_memory(ggml_backend_dev_t, size_t * free, size_t * total) { *free = *total = (size_t) 8 << 30; }
enum ggml_backend_dev_type device_type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; }
void get_props(ggml_backend_dev_t, ggml_backend_dev_props * props) {
    *props = {};
    props->name = "Mock0";
    props->description = "a GPU that is none";
    props->id = "mock";
    props->library = "Mock";
    props->type = GGML_BACKEND_DEVICE_TYPE_GPU;
    get_memory(&device, &props->memory_free, &props->memory_total);
}
ggml_backend_t init_backend(ggml_backend_dev_t, const char *) {
    ggml_backend_i iface = {};
    iface.get_name = backend_name;
    iface.free = backend_free;
    iface.graph_compute = compute;
    return new ggml_backend{ &guid, iface, &device, new_cpu() };
}
ggml_backend_buffer_type_t buffer_type(ggml_backend_dev_t) { return &type; }

bool supports_op(ggml_backend_dev_t, const ggml_tensor * t) {
    static const auto as = (bool (*)(const ggml_tensor *)) (mocked() ? ggml_backend_reg_get_proc_address(mocked(), "ggml_backend_cuda_supports_op") : nullptr);
    GGML_ASSERT(as || !mocked());
    static ggml_backend_t inner = new_cpu();
    return (!as || as(t)) && ggml_backend_supports_op(inner, t);
}
bool supports_buft(ggml_backend_dev_t, ggml_backend_buffer_type_t t) { return t == &type; }

ggml_backend_device device = {
    { device_name, description, get_memory, device_type, get_props, init_backend, buffer_type, nullptr, nullptr, supports_op, supports_buft, nullptr, nullptr, nullptr, nullptr, nullptr },
    &reg, nullptr,
};

const char * reg_name(ggml_backend_reg_t) { return "Mock"; }
size_t device_count(ggml_backend_reg_t) { return 1; }
ggml_backend_dev_t get_device(ggml_backend_reg_t, size_t) { return &device; }
void * get_proc_address(ggml_backend_reg_t, const char * name) {
    return strcmp(name, SOFTMAX_ON_DEVICE) == 0 && (!mocked() || ggml_backend_reg_get_proc_address(mocked(), name)) ? (void *) softmax : nullptr;
}
ggml_backend_reg reg = { GGML_BACKEND_API_VERSION, { reg_name, device_count, get_device, get_proc_address }, nullptr };

} // namespace

extern "C" ggml_backend_reg_t ggml_backend_init() { return &reg; }
