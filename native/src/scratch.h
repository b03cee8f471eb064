// Working memory of one forward pass, in one allocation that is reused by every pass.
#pragma once

#include <cstdint>
#include <vector>

#include "config.h"
#include "kernels.h"
#include "platform.h"
#include "result.h"
#include "shards.h"

namespace mobillama {

// Tokens that go through the layers together; weights are read once for all of them.
inline constexpr std::uint32_t kBatchTokens = 64;

// Tokens whose quantised blocks lie side by side, for the kernels that take many tokens at once.
inline constexpr std::uint32_t kTokenGroup = 16;

// What one member of the thread pool writes. Rows are tokens.
struct MemberScratch {
    float* hidden_states = nullptr;  // of one token, for passes in which every member keeps its own
    Activations normed;              // of one token
    float* query = nullptr;
    float* key = nullptr;
    float* value = nullptr;
    Activations attended;
    float* up = nullptr;
    Activations ffn;             // its values are the gate's
    Activations low_rank;        // floats only
    float* delta = nullptr;
    float* cosine = nullptr;     // (tokens, head_dim / 2)
    float* sine = nullptr;
    float* attention_out = nullptr;  // this member's part of the attention's output, (tokens, hidden_size)
    float* ffn_out = nullptr;        // this member's part of the FFN's output
};

struct Scratch {
    PageBuffer memory;
    float* hidden_states = nullptr;  // (tokens, hidden_size), shared by all members
    Activations normed;
    std::vector<MemberScratch> members;

    static Result<Scratch> allocate(const ModelConfig& config, const Shards& shards);
};

}  // namespace mobillama
