#include "session.h"

#include <algorithm>

namespace mobillama {

Session::Session(std::shared_ptr<Model> model)
    : model_(std::move(model)), cache_(model_->config(), model_->cache_type()) {}

std::uint32_t Session::position() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return position_;
}

std::size_t Session::cache_bytes() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return cache_.bytes();
}

Status Session::check_room(std::size_t count) const {
    if (count == 0) return Error{"no tokens to evaluate"};
    const std::uint32_t context = config().context_length;
    if (count > context - position_) {
        return Error{"the context is full: " + std::to_string(position_) + " of " + std::to_string(context) +
                     " positions are taken and " + std::to_string(count) + " more were asked for"};
    }
    return Done{};
}

Status Session::forward(std::span<const std::int32_t> tokens, bool all_logits, std::span<float> logits) {
    const std::lock_guard<std::mutex> lock(mutex_);
    TRY(check_room(tokens.size()));
    for (const std::int32_t token : tokens) {
        if (token < 0 || std::uint32_t(token) >= config().vocab_size) {
            return Error{"token " + std::to_string(token) + " is not in the vocabulary of " +
                         std::to_string(config().vocab_size)};
        }
    }
    Batch batch;
    batch.tokens = tokens.data();
    return run(batch, tokens.size(), all_logits, logits);
}

Status Session::forward_embeddings(std::span<const float> embeddings, bool all_logits, std::span<float> logits) {
    const std::lock_guard<std::mutex> lock(mutex_);
    assert(embeddings.size() % config().hidden_size == 0);
    const std::size_t count = embeddings.size() / config().hidden_size;
    TRY(check_room(count));
    Batch batch;
    batch.embeddings = embeddings.data();
    return run(batch, count, all_logits, logits);
}

Status Session::run(Batch batch, std::size_t count, bool all_logits, std::span<float> logits) {
    const std::size_t vocab_size = config().vocab_size;
    assert(logits.size() == (all_logits ? count : 1) * vocab_size);
    TRY(cache_.reserve(position_ + std::uint32_t(count)));
    batch.cache = &cache_;
    for (std::size_t done = 0; done < count; done += batch.count) {
        batch.count = std::uint32_t(std::min<std::size_t>(kBatchTokens, count - done));
        batch.first_position = position_;
        const bool at_end = done + batch.count == count;
        batch.wanted = all_logits ? Logits::all : at_end ? Logits::last : Logits::none;
        batch.logits = logits.data() + (all_logits ? done * vocab_size : 0);
        model_->forward(batch);
        position_ += batch.count;
        if (batch.tokens != nullptr) batch.tokens += batch.count;
        if (batch.embeddings != nullptr) batch.embeddings += std::size_t(batch.count) * config().hidden_size;
    }
    return Done{};
}

Status Session::truncate(std::uint32_t position) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (position > position_) {
        return Error{"cannot truncate to position " + std::to_string(position) + ": the session is at " +
                     std::to_string(position_)};
    }
    position_ = position;
    return Done{};
}

}  // namespace mobillama
