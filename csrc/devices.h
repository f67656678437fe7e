// The devices that a session computes on, and which computes what.
#pragma once

#include "internal.h"
#include "softmax.h"

#include "ggml-alloc.h"

#include <string>
#include <unordered_map>
#include <vector>

// The GPUs that hold weights of a model, and the CPU.
struct steer_devices {
    std::vector<ggml_backend_t> backends; // the CPU's last

    explicit steer_devices(const steer_model & model);
    ~steer_devices();
    steer_devices(const steer_devices &) = delete;

    int cpu() const { return (int) backends.size() - 1; }
    ggml_backend_buffer_type_t memory(int device) const { return ggml_backend_get_default_buffer_type(backends[device]); }

    // an allocator of all devices' memory
    ggml_gallocr_t new_allocator() const;

    // the device whose memory a buffer is
    int of(ggml_backend_buffer_t buffer) const;

    // a device's own softmax over the vocabulary, nullptr where it has none
    const softmax_on_device * softmax(int device) const;

    // Can any of them compute the node?
    bool support(const ggml_tensor * node) const;

    // computations end early once *cancel is not 0; nullptr: never. A GPU is not interrupted, but
    // nothing more is begun on it.
    void set_cancel(const int32_t * cancel);
    const int32_t * cancel = nullptr;

private:
    steer_backend host;
};

// Where the nodes of a graph are computed. A product is computed where its weights are, what has no
// weights where the last product was; what a device cannot compute, and inputs, are the CPU's. What a node reads
// from another device's memory is copied before. With nothing but a CPU that is the graph as it is.
class steer_placement {
public:
    // nodes: in their final order, without memory
    steer_placement(const steer_devices & devices, ggml_cgraph * nodes);
    ~steer_placement();
    steer_placement(const steer_placement &) = delete;

    int of(const ggml_tensor * t) const;

    // An input whose memory is a device's; before connect.
    void put(const ggml_tensor * input, int device) { device_of[input] = device; }

    // Adds the copies; to be called once. ranges: where each range ends that will be computed as a whole; in the
    // first `apart` of them nothing is copied for the others, since they are not computed as often.
    void connect(const std::vector<int> & ranges, int apart);

    // Memory for all that has none; false: there is not enough.
    bool allocate(ggml_gallocr_t allocator);
    void forget(); // that memory

    // Nodes [begin, end), which are ranges.
    void compute(int begin, int end);

    // A line for each node: device, operation, types and shapes, name.
    std::string describe() const;

private:
    struct copy {
        ggml_tensor * from, * to;
    };
    struct run { // nodes that one device computes
        int device, begin, end;
        std::vector<copy> copies; // before it
    };
    const steer_devices & devices;
    ggml_cgraph * nodes;
    std::unordered_map<const ggml_tensor *, int> device_of;
    std::vector<run> runs;
    ggml_context * context = nullptr; // of the copies
    ggml_cgraph * order = nullptr;    // nodes and copies, for the allocator
    std::vector<int> node_devices, leaf_devices;
};

// The numbers of a float32 tensor, which may be on any device; `copy` is where they are if it is not the CPU's.
const float * steer_numbers(const ggml_tensor * t, std::vector<float> & copy);
