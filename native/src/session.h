// One conversation with a model: a position and the keys and values before it. Its methods may be called from
// several threads; they wait for each other.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "kv_cache.h"
#include "model.h"
#include "result.h"

namespace mobillama {

class Session {
public:
    explicit Session(std::shared_ptr<Model> model);

    std::uint32_t position() const;
    std::size_t cache_bytes() const;
    const ModelConfig& config() const { return model_->config(); }

    // Append tokens. `logits` has vocab_size floats for each token, or for the last one alone.
    Status forward(std::span<const std::int32_t> tokens, bool all_logits, std::span<float> logits);

    // The same from embeddings, (count, hidden_size).
    Status forward_embeddings(std::span<const float> embeddings, bool all_logits, std::span<float> logits);

    // Forget everything from `position` on.
    Status truncate(std::uint32_t position);

    // Write the cache to a file, or take it from one that the same model wrote.
    Status save(const std::string& path) const;
    Status load(const std::string& path);

private:
    Status check_room(std::size_t count) const;
    Status run(Batch batch, std::size_t count, bool all_logits, std::span<float> logits);

    std::shared_ptr<Model> model_;
    KvCache cache_;
    std::uint32_t position_ = 0;
    mutable std::mutex mutex_;
};

}  // namespace mobillama
