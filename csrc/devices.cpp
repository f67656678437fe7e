#include "devices.h"

#include "ggml-backend-impl.h"
#include "ggml-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <map>
#include <tuple>

// ---- devices -----------------------------------------------------------------

static bool is_host(ggml_backend_buffer_t buffer) { return ggml_backend_buffer_is_host(buffer); }

steer_devices::steer_devices(const steer_model & m) : host(m.threads) {
    for (const auto & named : m.model->tensors_by_name) {
        ggml_backend_buffer_t buffer = named.second->buffer;
        if (!buffer || is_host(buffer)) {
            continue;
        }
        ggml_backend_dev_t device = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(buffer));
        if (std::any_of(backends.begin(), backends.end(), [&](ggml_backend_t b) { return ggml_backend_get_device(b) == device; })) {
            continue;
        }
        ggml_backend_t backend = ggml_backend_dev_init(device, "session"); // csrc/cuda/graphs.cuh
        if (!backend) {
            steer_throw(STEER_FAILED, "%s did not start", ggml_backend_dev_name(device));
        }
        backends.push_back(backend);
    }
    backends.push_back(host.backend);
}

steer_devices::~steer_devices() {
    for (int i = 0; i < cpu(); ++i) {
        ggml_backend_free(backends[i]);
    }
}

ggml_gallocr_t steer_devices::new_allocator() const {
    std::vector<ggml_backend_buffer_type_t> types;
    for (size_t i = 0; i < backends.size(); ++i) {
        types.push_back(memory(i));
    }
    return ggml_gallocr_new_n(types.data(), types.size());
}

int steer_devices::of(ggml_backend_buffer_t buffer) const {
    for (int i = 0; !is_host(buffer) && i < cpu(); ++i) {
        if (ggml_backend_get_device(backends[i]) == ggml_backend_buft_get_device(ggml_backend_buffer_get_type(buffer))) {
            return i;
        }
    }
    return cpu();
}

const softmax_on_device * steer_devices::softmax(int device) const {
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(backends[device]));
    const auto get = (const softmax_on_device * (*)()) ggml_backend_reg_get_proc_address(reg, SOFTMAX_ON_DEVICE);
    return get ? get() : nullptr;
}

bool steer_devices::support(const ggml_tensor * node) const {
    return std::any_of(backends.begin(), backends.end(), [&](ggml_backend_t b) { return ggml_backend_supports_op(b, node); });
}

void steer_devices::set_cancel(const int32_t * c) {
    cancel = c;
    host.set_cancel(c);
}

// ---- placement ----------------------------------------------------------------

// computes nothing, on whatever device
static bool is_view_only(const ggml_tensor * t) {
    return t->op == GGML_OP_NONE || t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_PERMUTE || t->op == GGML_OP_TRANSPOSE;
}

static const ggml_tensor * owner(const ggml_tensor * t) { return t->view_src ? t->view_src : t; }

static const ggml_tensor * weights(const ggml_tensor * node) {
    for (const ggml_tensor * src : node->src) {
        if (src && owner(src)->buffer && ggml_backend_buffer_get_usage(owner(src)->buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS) {
            return src;
        }
    }
    return nullptr;
}

steer_placement::steer_placement(const steer_devices & devices, ggml_cgraph * nodes) : devices(devices), nodes(nodes) {
    // what comes before the first product goes with it; the embedding's rows do not count, they are the CPU's
    int current = devices.cpu();
    for (int i = 0; i < nodes->n_nodes; ++i) {
        const ggml_tensor * t = nodes->nodes[i];
        if (t->op != GGML_OP_GET_ROWS && weights(t)) {
            current = devices.of(owner(weights(t))->buffer);
            break;
        }
    }
    for (int i = 0; i < nodes->n_nodes; ++i) {
        const ggml_tensor * t = nodes->nodes[i];
        if (is_view_only(t)) {
            continue;
        }
        int device = current;
        if (const ggml_tensor * w = weights(t)) {
            device = devices.of(owner(w)->buffer);
            current = t->op == GGML_OP_GET_ROWS ? current : device;
        }
        if (t->view_src) { // in place
            device = of(t);
        } else if (!ggml_backend_supports_op(devices.backends[device], t)) {
            device = devices.cpu();
        }
        if (!ggml_backend_supports_op(devices.backends[device], t)) {
            steer_throw(STEER_BAD_INPUT, "%s cannot compute %s of %s", ggml_backend_name(devices.backends[device]), ggml_op_desc(t), t->src[0] ? ggml_type_name(t->src[0]->type) : "nothing");
        }
        device_of[t] = device;
    }
}

steer_placement::~steer_placement() { ggml_free(context); }

int steer_placement::of(const ggml_tensor * t) const {
    t = owner(t);
    if (t->buffer && ggml_backend_buffer_get_usage(t->buffer) != GGML_BACKEND_BUFFER_USAGE_COMPUTE) {
        return devices.of(t->buffer);
    }
    const auto found = device_of.find(t);
    return found == device_of.end() ? devices.cpu() : found->second; // inputs are there, but for those that were put elsewhere
}

void steer_placement::connect(const std::vector<int> & ranges, int apart) {
    // a copy serves all nodes of a device, in ranges that are computed as often
    std::map<std::tuple<ggml_tensor *, int, bool>, ggml_tensor *> copies;
    size_t n_copies = 0;
    for (int pass = 0; pass < 2; ++pass) { // count them, then make them
        if (pass == 1) {
            if (n_copies > 0) {
                const size_t n = nodes->n_nodes + 2*n_copies;
                context = ggml_init({ (2*n_copies + 1)*ggml_tensor_overhead() + ggml_graph_overhead_custom(n, false), nullptr, true });
                order = ggml_new_graph_custom(context, n, false);
            }
            copies.clear();
        }
        int range = 0;
        for (int i = 0; i < nodes->n_nodes; ++i) {
            const int before = range;
            while (i == ranges[range]) {
                ++range;
            }
            ggml_tensor * t = nodes->nodes[i];
            const int device = is_view_only(t) ? (runs.empty() ? devices.cpu() : runs.back().device) : device_of.at(t);
            if (pass == 1) {
                if (runs.empty() || range != before || runs.back().device != device) {
                    runs.push_back({ device, i, i, {} });
                }
                runs.back().end = i + 1;
            }
            for (int j = 0; j < GGML_MAX_SRC && !is_view_only(t); ++j) {
                ggml_tensor * src = t->src[j];
                if (!src || of(src) == device) {
                    continue;
                }
                auto & copied = copies[{ src, device, range < apart }];
                if (pass == 0) {
                    n_copies += !copied;
                    copied = src;
                    continue;
                }
                if (!copied) {
                    copied = ggml_dup_tensor(context, src);
                    memcpy(copied->nb, src->nb, sizeof(src->nb));
                    ggml_format_name(copied, "%s on %s", src->name, ggml_backend_name(devices.backends[device]));
                    device_of[copied] = device;
                    runs.back().copies.push_back({ src, copied });
                }
                t->src[j] = copied;
            }
        }
    }
    if (!order) {
        return;
    }
    // The allocator sees a copy made where its run begins. The view before it keeps what
    // is copied from being given away too early.
    auto add = [&](ggml_tensor * t, int device) {
        order->nodes[order->n_nodes++] = t;
        node_devices.push_back(device);
    };
    for (const run & r : runs) {
        for (const copy & c : r.copies) {
            ggml_tensor * read = ggml_view_tensor(context, c.from);
            read->src[0] = c.from;
            add(read, of(c.from));
            add(c.to, r.device);
        }
        for (int i = r.begin; i < r.end; ++i) {
            add(nodes->nodes[i], of(nodes->nodes[i]));
        }
    }
    for (int i = 0; i < nodes->n_leafs; ++i) {
        order->leafs[order->n_leafs++] = nodes->leafs[i];
        leaf_devices.push_back(of(nodes->leafs[i]));
    }
}

bool steer_placement::allocate(ggml_gallocr_t allocator) {
    if (!order) {
        if (devices.backends.size() == 1) {
            return ggml_gallocr_alloc_graph(allocator, nodes);
        }
        node_devices.assign(nodes->n_nodes, runs[0].device);
        leaf_devices.assign(nodes->n_leafs, devices.cpu());
    }
    ggml_cgraph * g = order ? order : nodes;
    return ggml_gallocr_reserve_n(allocator, g, node_devices.data(), leaf_devices.data()) && ggml_gallocr_alloc_graph(allocator, g);
}

// only the allocator's buffers are of this usage
static void forget_tensor(ggml_tensor * t) {
    if (!owner(t)->buffer || ggml_backend_buffer_get_usage(owner(t)->buffer) == GGML_BACKEND_BUFFER_USAGE_COMPUTE) {
        t->data   = nullptr;
        t->buffer = nullptr;
    }
}

void steer_placement::forget() {
    ggml_cgraph * g = order ? order : nodes;
    for (int i = 0; i < g->n_nodes; ++i) {
        forget_tensor(g->nodes[i]);
    }
    for (int i = 0; i < g->n_leafs; ++i) {
        forget_tensor(g->leafs[i]);
    }
}

void steer_placement::compute(int begin, int end) {
    for (const run & r : runs) {
        if (r.begin < begin || r.begin >= end) {
            continue;
        }
        if (devices.cancel && __atomic_load_n(devices.cancel, __ATOMIC_RELAXED)) {
            steer_throw(STEER_CANCELLED, "cancelled");
        }
        for (const copy & c : r.copies) {
            ggml_backend_tensor_copy(c.from, c.to);
        }
        ggml_cgraph part = ggml_graph_view(nodes, r.begin, r.end);
        const ggml_status status = ggml_backend_graph_compute(devices.backends[r.device], &part);
        if (status == GGML_STATUS_ABORTED) {
            steer_throw(STEER_CANCELLED, "cancelled");
        }
        if (status != GGML_STATUS_SUCCESS) {
            steer_throw(STEER_FAILED, "the computation failed on %s (ggml status %d)", ggml_backend_name(devices.backends[r.device]), status);
        }
    }
}

std::string steer_placement::describe() const {
    std::string text;
    auto tensor = [&](const ggml_tensor * t) {
        char part[128];
        snprintf(part, sizeof(part), " %s[%lld,%lld,%lld,%lld]%s", ggml_type_name(t->type), (long long) t->ne[0], (long long) t->ne[1], (long long) t->ne[2], (long long) t->ne[3], ggml_is_contiguous(t) ? "" : "'");
        text += part;
    };
    for (const run & r : runs) {
        for (int i = r.begin; i < r.end; ++i) {
            const ggml_tensor * t = nodes->nodes[i];
            if (is_view_only(t)) {
                continue;
            }
            text += std::string(ggml_backend_name(devices.backends[r.device])) + " " + ggml_op_desc(t);
            tensor(t);
            text += " <-";
            for (const ggml_tensor * src : t->src) {
                if (src) {
                    tensor(src);
                }
            }
            text += std::string(" ") + t->name + "\n";
        }
    }
    return text;
}

const float * steer_numbers(const ggml_tensor * t, std::vector<float> & copy) {
    if (is_host(owner(t)->buffer)) {
        return (const float *) t->data;
    }
    copy.resize(ggml_nelements(t));
    ggml_backend_tensor_get(t, copy.data(), 0, copy.size()*sizeof(float));
    return copy.data();
}
