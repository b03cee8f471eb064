// The forward pass of a batch of tokens through all layers, on all members of a thread pool.
#pragma once

#include <cstdint>
#include <span>

#include "config.h"
#include "kernels.h"
#include "kv_cache.h"
#include "scratch.h"
#include "shards.h"
#include "thread_pool.h"
#include "weights.h"

namespace mobillama {

enum class Logits { none, last, all };

// Up to kBatchTokens tokens, or their embeddings, that follow the positions already in `cache`.
struct Batch {
    KvCache* cache = nullptr;
    std::uint32_t first_position = 0;
    std::uint32_t count = 0;
    const std::int32_t* tokens = nullptr;
    const float* embeddings = nullptr;  // (count, hidden_size); used when `tokens` is null
    Logits wanted = Logits::none;
    float* logits = nullptr;  // (1 or count, vocab_size)
};

// What a pass needs of a model; the parts belong to it.
struct ForwardContext {
    const ModelConfig& config;
    const Weights& weights;
    const Shards& shards;
    const Kernels& kernels;
    Scratch& scratch;
    ThreadPool& pool;
};

// Append the batch's keys and values to its cache (which has room for them) and write the wanted logits.
void forward(const ForwardContext& context, const Batch& batch);

}  // namespace mobillama
