// Keys and values of the positions so far. Memory is taken a chunk of positions at a time, so that a short
// conversation with a long-context model costs little.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "config.h"
#include "kernels.h"
#include "platform.h"
#include "result.h"

namespace mobillama {

enum class CacheType : std::uint32_t { f16 = 0, q8_0 = 1 };

class KvCache {
public:
    KvCache(const ModelConfig& config, CacheType type);

    // Make room for positions before `positions`.
    Status reserve(std::uint32_t positions);

    // Where `head` of `layer` lies; valid until the next reserve().
    HeadCache head(std::uint32_t layer, std::uint32_t head) const;

    CacheType type() const { return type_; }
    std::size_t bytes() const { return chunk_bytes_ * chunks_.size(); }

    // Visit the memory of the first `positions` positions, in an order that depends on nothing else.
    void for_each_piece(std::uint32_t positions, const std::function<void(std::span<std::byte>)>& visit) const;

    // The sum of the sizes of those pieces.
    std::size_t prefix_bytes(std::uint32_t positions) const;

private:
    CacheType type_;
    std::uint32_t heads_;  // of all layers
    std::uint32_t heads_per_layer_;
    HeadCache layout_;
    std::size_t head_bytes_;
    std::size_t chunk_bytes_;
    std::vector<PageBuffer> chunks_;
    std::vector<std::byte*> chunk_data_;
};

}  // namespace mobillama
