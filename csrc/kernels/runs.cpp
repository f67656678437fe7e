#include "runs.h"

#include "ggml-cpu-impl.h"
#include "ggml-impl.h"

#include <algorithm>

namespace {

constexpr int     MOST  = 24;   // nodes of a run
constexpr int     SLOTS = 8;    // results that only the run reads
constexpr int64_t PIECE = 4096; // elements: so many of several tensors fit into the second-level cache
constexpr int64_t WHOLE = 8192; // of a row that must not be divided

bool is_row_of(const ggml_tensor * s, const ggml_tensor * t) { return ggml_nrows(s) == 1 && s->ne[0] == t->ne[0]; }

// Does a row of t depend on whole rows of its sources? Else an element depends on single elements.
bool needs_whole_rows(const ggml_tensor * t) { return t->op == GGML_OP_RMS_NORM || t->op == GGML_OP_RMS_NORM_BACK; }

// Does a row of t depend on the same row of each source alone, or on one that is for all rows?
bool is_by_rows(const ggml_tensor * t) {
    bool for_all_rows = false;
    switch (t->op) {
        case GGML_OP_ADD: case GGML_OP_SUB: case GGML_OP_MUL: case GGML_OP_DIV:
            for_all_rows = true;
            break;
        case GGML_OP_SQR: case GGML_OP_SCALE: case GGML_OP_CLAMP: case GGML_OP_UNARY: case GGML_OP_SILU_BACK:
            break;
        case GGML_OP_RMS_NORM: case GGML_OP_RMS_NORM_BACK:
            if (t->ne[0] <= WHOLE) {
                break;
            }
            return false;
        case GGML_OP_GLU:
            if (t->src[1]) {
                break;
            }
            return false; // its operands are the halves of a longer row
        default:
            return false;
    }
    const ggml_tensor * a = t->src[0], * b = t->src[1];
    const auto plain = [](const ggml_tensor * s) { return s->type == GGML_TYPE_F32 && ggml_is_contiguous(s); };
    return plain(t) && !ggml_is_empty(t) && plain(a) && ggml_are_same_shape(a, t) && !t->src[2] &&
        (!b || (plain(b) && (ggml_are_same_shape(b, t) || (for_all_rows && is_row_of(b, t)))));
}

struct run {
    int n = 0, end = 0; // nodes, and the index in the graph behind them
    ggml_tensor * nodes[MOST];

    run(const ggml_cgraph * graph, int first) : end(first) {
        for (int i = first; i < graph->n_nodes && n < MOST; ++i) {
            ggml_tensor * t = graph->nodes[i];
            if (ggml_op_is_empty(t->op)) {
                continue; // a view, which computes nothing
            }
            if (!is_by_rows(t) || !joins(t)) {
                break;
            }
            nodes[n++] = t;
            end = i + 1;
        }
    }

    // A piece of t must not be laid over another piece of what nodes before read or write, nor of what t reads and they write.
    bool joins(const ggml_tensor * t) const {
        if (n > 0 && !ggml_are_same_shape(t, nodes[0])) {
            return false;
        }
        const auto apart = [](const ggml_tensor * a, const ggml_tensor * b) {
            const size_t size_a = a ? ggml_nbytes(a) : 0, size_b = b ? ggml_nbytes(b) : 0;
            return !a || !b || (a->data == b->data && size_a == size_b) || (char *) a->data + size_a <= (char *) b->data || (char *) b->data + size_b <= (char *) a->data;
        };
        for (int i = 0; i < n; ++i) {
            const ggml_tensor * u = nodes[i];
            if (!apart(t, u) || !apart(t, u->src[0]) || !apart(t, u->src[1]) || !apart(t->src[0], u) || !apart(t->src[1], u)) {
                return false;
            }
        }
        return true;
    }

    // Does nothing but the run read node t, and nothing write into it?
    bool is_internal(const ggml_cgraph * graph, const ggml_tensor * t) const {
        int reads = 0;
        for (int i = 0; i < n; ++i) {
            reads += (nodes[i]->src[0] == t) + (nodes[i]->src[1] == t);
            if (nodes[i]->view_src == t) {
                return false;
            }
        }
        const size_t at = ggml_hash_find(&graph->visited_hash_set, t);
        return reads > 0 && !t->view_src && !(t->flags & GGML_TENSOR_FLAG_OUTPUT) && ggml_bitset_get(graph->visited_hash_set.used, at) && graph->use_counts[at] == reads;
    }
};

// A tensor's piece, a tensor itself.
struct piece {
    ggml_tensor t;
    char * base; // the whole tensor's memory, or a slot
    bool in_slot, for_all_rows;

    void set(int64_t row, int64_t row_size, int64_t column, int64_t width, int64_t rows) {
        t.ne[0] = width;
        t.ne[1] = for_all_rows ? 1 : rows;
        t.nb[1] = width*sizeof(float);
        t.nb[2] = t.nb[3] = t.nb[1]*t.ne[1];
        t.data = base + (in_slot ? 0 : for_all_rows ? column : row*row_size + column)*sizeof(float);
    }
};

} // namespace

int llsteer_run_compute(const ggml_compute_params * params, const ggml_cgraph * graph, int first, void (* compute)(ggml_compute_params *, ggml_tensor *)) {
    const run r(graph, first);
    if (r.n < 2) {
        return 0;
    }
    // Results that only the run reads get slots, one for those that have the same memory: so none is in use twice.
    alignas(64) float slots[SLOTS][WHOLE];
    const void * owners[SLOTS];
    int n_slots = 0, slot[MOST];
    for (int i = 0; i < r.n; ++i) {
        slot[i] = SLOTS;
        if (r.is_internal(graph, r.nodes[i])) {
            slot[i] = std::find(owners, owners + n_slots, r.nodes[i]->data) - owners;
            if (slot[i] == n_slots && n_slots < SLOTS) {
                owners[n_slots++] = r.nodes[i]->data;
            }
        }
    }

    piece pieces[MOST][3]; // of each node and its sources
    const int64_t row_size = r.nodes[0]->ne[0], n_rows = ggml_nrows(r.nodes[0]);
    const auto make = [&](piece & p, ggml_tensor * t) {
        const int i = std::find(r.nodes, r.nodes + r.n, t) - r.nodes;
        p.t = *t;
        p.t.ne[2] = p.t.ne[3] = 1;
        p.in_slot = i < r.n && slot[i] < SLOTS;
        p.for_all_rows = n_rows > 1 && ggml_nrows(t) == 1;
        p.base = p.in_slot ? (char *) slots[slot[i]] : (char *) t->data;
    };
    bool whole = false;
    for (int i = 0; i < r.n; ++i) {
        whole |= needs_whole_rows(r.nodes[i]);
        make(pieces[i][0], r.nodes[i]);
        for (int j = 0; j < 2; ++j) {
            if (r.nodes[i]->src[j]) {
                make(pieces[i][1 + j], r.nodes[i]->src[j]);
                pieces[i][0].t.src[j] = &pieces[i][1 + j].t;
            }
        }
    }

    // A piece is some rows, or a part of one that ends where a vector does: functions may round what is left at a
    // row's end in another way.
    const int64_t parts = whole ? 1 : (row_size + PIECE - 1)/PIECE;
    const int64_t width = parts == 1 ? row_size : GGML_PAD((row_size + parts - 1)/parts, 64);
    const int64_t rows = std::max<int64_t>(1, std::min(PIECE/row_size, (n_rows + params->nth - 1)/params->nth));
    const int64_t n_pieces = parts*((n_rows + rows - 1)/rows);
    ggml_compute_params alone = *params;
    alone.ith = 0;
    alone.nth = 1;
    for (int64_t k = n_pieces*params->ith/params->nth; k < n_pieces*(params->ith + 1)/params->nth; ++k) {
        const int64_t row = k/parts*rows, column = k%parts*width;
        for (int i = 0; i < r.n; ++i) {
            for (piece & p : pieces[i]) {
                if (&p == pieces[i] || r.nodes[i]->src[&p - pieces[i] - 1]) {
                    p.set(row, row_size, column, std::min(width, row_size - column), std::min(rows, n_rows - row));
                }
            }
            compute(&alone, &pieces[i][0].t);
        }
    }
    return r.end - first;
}
