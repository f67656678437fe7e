// Runs of nodes that work row by row, computed in pieces, for ggml's CPU backend.
//
// ggml computes node by node, so that each node of a run reads what the last one wrote from memory, where tensors
// are larger than the caches. Here all nodes of a run are computed for a piece of the tensors, then for the next
// one. What only the run itself reads is not written to memory at all. The bits are the same.
#pragma once

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_compute_params;
struct ggml_cgraph;

// Computes the run that begins at node `first` and gives the number of its nodes, or 0 where there is none of several
// nodes. All threads call it alike. `compute` computes a node.
int llsteer_run_compute(const struct ggml_compute_params * params, const struct ggml_cgraph * graph, int first,
    void (* compute)(struct ggml_compute_params * params, struct ggml_tensor * node));

#ifdef __cplusplus
}
#endif
