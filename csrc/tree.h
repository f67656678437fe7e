// The batch of a session: a tree of tokens.
#pragma once

#include "steer.h"

#include "llama-batch.h"

#include <algorithm>
#include <memory>
#include <vector>

struct target {
    int32_t row;   // among the tokens whose logits are wanted
    int32_t index; // among all targets
    steer_token token;
    int32_t node; // of the token itself, if it is in the batch
};

// A tree of tokens: sequences that agree in tokens and strengths up to a point
// share what is before it. A token belongs to the sequences that pass through
// it, and attends to the earlier tokens of all of these.
struct tree {
    struct node {
        steer_token token;
        int32_t pos;
        bool output;
        std::vector<llama_seq_id> sequences;
        std::vector<float> strengths;
        std::vector<int32_t> children;
    };
    std::vector<node> nodes;
    std::vector<int32_t> roots;
    std::vector<target> targets; // row: a node, until number_rows
    int32_t n_sequences = 0;

    int32_t step(std::vector<int32_t> & from, steer_token token, int32_t pos, std::vector<float> && strengths) {
        for (const int32_t i : from) {
            if (nodes[i].token == token && nodes[i].strengths == strengths) {
                return i;
            }
        }
        from.push_back(nodes.size()); // before nodes grows: from may be in it
        nodes.push_back({ token, pos, false, {}, std::move(strengths), {} });
        return nodes.size() - 1;
    }

    // strengths: [n_strengths][n_tokens]; index: of the first target among all. The last
    // token predicts nothing and is left out unless whole.
    void add(const steer_token * tokens, int32_t n_tokens, int32_t n_prompt, const float * strengths, int32_t n_strengths, int32_t index, bool whole) {
        const llama_seq_id id = n_sequences++;
        int32_t at = -1;
        for (int32_t i = 0; i < n_tokens - !whole; ++i) {
            std::vector<float> s(n_strengths);
            for (int32_t k = 0; k < n_strengths; ++k) {
                s[k] = strengths[(size_t) k*n_tokens + i];
            }
            at = step(at < 0 ? roots : nodes[at].children, tokens[i], i, std::move(s));
            nodes[at].sequences.push_back(id);
            if (i >= n_prompt) {
                targets[targets.size() - 1].node = at;
            }
            if (i + 1 >= n_prompt && i + 1 < n_tokens) {
                nodes[at].output = true;
                targets.push_back({ at, index + i + 1 - n_prompt, tokens[i + 1], -1 });
            }
        }
    }

    // The nodes whose logits are wanted, in order, and the rows of the targets among them.
    std::vector<int32_t> number_rows() {
        std::vector<int32_t> outputs, row(nodes.size());
        for (size_t i = 0; i < nodes.size(); ++i) {
            if (nodes[i].output) {
                row[i] = outputs.size();
                outputs.push_back(i);
            }
        }
        for (auto & t : targets) {
            t.row = row[t.row];
        }
        return outputs;
    }

    llama_ubatch ubatch(int32_t n_pos_per_embd) const {
        auto data = std::make_shared<llama_ubatch::data_t>();
        const size_t n = nodes.size();
        size_t n_ids = 0;
        for (const auto & node : nodes) {
            data->token.push_back(node.token);
            data->n_seq_id.push_back(node.sequences.size());
            data->output.push_back(node.output);
            n_ids += node.sequences.size();
        }
        // M-RoPE: text has the same position in each of the first three dimensions, and none in the fourth
        for (int32_t d = 0; d < n_pos_per_embd; ++d) {
            for (const auto & node : nodes) {
                data->pos.push_back(d < 3 ? node.pos : 0);
            }
        }
        data->seq_id_data.reserve(n_ids);
        for (const auto & node : nodes) {
            data->seq_id.push_back(data->seq_id_data.data() + data->seq_id_data.size());
            data->seq_id_data.insert(data->seq_id_data.end(), node.sequences.begin(), node.sequences.end());
        }
        data->seq_idx.assign(LLAMA_MAX_SEQ, -1);
        for (int32_t s = 0; s < n_sequences; ++s) {
            data->seq_id_unq.push_back(s);
            data->seq_idx[s] = s;
        }
        llama_ubatch u = {};
        u.n_tokens     = n;
        u.n_seq_tokens = 1;
        u.n_seqs       = n;
        u.n_seqs_unq   = n_sequences;
        u.n_pos        = n_pos_per_embd;
        u.token        = data->token.data();
        u.pos          = data->pos.data();
        u.n_seq_id     = data->n_seq_id.data();
        u.seq_id       = data->seq_id.data();
        u.seq_id_unq   = data->seq_id_unq.data();
        u.seq_idx      = data->seq_idx.data();
        u.output       = data->output.data();
        u.data         = data;
        return u;
    }
};
