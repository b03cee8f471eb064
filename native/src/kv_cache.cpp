#include "kv_cache.h"

#include <algorithm>

namespace mobillama {
namespace {

std::size_t element_bytes(CacheType type) { return type == CacheType::f16 ? 2 : 1; }
std::size_t scale_bytes(CacheType type) { return type == CacheType::f16 ? 0 : sizeof(float); }

}  // namespace

KvCache::KvCache(const ModelConfig& config, CacheType type)
    : type_(type),
      heads_(config.num_hidden_layers * config.num_key_value_heads),
      heads_per_layer_(config.num_key_value_heads) {
    const std::size_t vectors = std::size_t(kChunkPositions) * config.head_dim * element_bytes(type);
    const std::size_t scales = kChunkPositions * scale_bytes(type);
    layout_.head_dim = config.head_dim;
    layout_.keys = 0;
    layout_.key_scales = vectors;
    layout_.values = vectors + scales;
    layout_.value_scales = 2 * vectors + scales;
    head_bytes_ = 2 * (vectors + scales);
    chunk_bytes_ = head_bytes_ * heads_;
}

Status KvCache::reserve(std::uint32_t positions) {
    while (chunks_.size() * kChunkPositions < positions) {
        PageBuffer chunk;
        // Every head has its own part of a chunk, so a short text's first chunk is hardly touched.
        const bool sparse = chunks_.empty() && positions <= kChunkPositions / 4;
        TRY_ASSIGN(chunk, PageBuffer::allocate(chunk_bytes_, sparse ? Pages::small : Pages::huge));
        chunk_data_.push_back(chunk.data());
        chunks_.push_back(std::move(chunk));
    }
    return Done{};
}

HeadCache KvCache::head(std::uint32_t layer, std::uint32_t head) const {
    const std::size_t offset = (std::size_t(layer) * heads_per_layer_ + head) * head_bytes_;
    HeadCache view = layout_;
    view.chunks = chunk_data_.data();
    view.keys += offset;
    view.key_scales += offset;
    view.values += offset;
    view.value_scales += offset;
    return view;
}

void KvCache::for_each_piece(std::uint32_t positions,
                             const std::function<void(std::span<std::byte>)>& visit) const {
    for (std::uint32_t first = 0; first < positions; first += kChunkPositions) {
        // Whole tiles of 16 positions: a tile's positions are interleaved.
        const std::uint32_t count = std::min(kChunkPositions, (positions - first + 15) / 16 * 16);
        const std::size_t vectors = std::size_t(count) * layout_.head_dim * element_bytes(type_);
        const std::size_t scales = count * scale_bytes(type_);
        std::byte* chunk = chunk_data_[first / kChunkPositions];
        for (std::uint32_t head = 0; head < heads_; ++head, chunk += head_bytes_) {
            visit({chunk + layout_.keys, vectors});
            visit({chunk + layout_.values, vectors});
            if (scales == 0) continue;
            visit({chunk + layout_.key_scales, scales});
            visit({chunk + layout_.value_scales, scales});
        }
    }
}

std::size_t KvCache::prefix_bytes(std::uint32_t positions) const {
    const std::size_t padded = std::size_t(positions + 15) / 16 * 16;
    return padded * heads_ * 2 * (layout_.head_dim * element_bytes(type_) + scale_bytes(type_));
}

}  // namespace mobillama
