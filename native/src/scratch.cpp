#include "scratch.h"

#include <algorithm>

namespace mobillama {
namespace {

// Hands out 64-byte aligned pieces of a buffer; without a buffer it only counts.
class Carver {
public:
    explicit Carver(std::byte* base) : base_(base) {}

    template <class T>
    T* take(std::size_t count) {
        const std::size_t at = used_;
        used_ = (used_ + count * sizeof(T) + 63) / 64 * 64;
        return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
    }

    Activations activations(std::uint32_t tokens, std::uint32_t size) {
        Activations x = unquantised(tokens, size);
        x.blocks = size / kBlock;
        // Groups are whole, so that a pass of several tokens may run over the end of a batch.
        const std::size_t grouped = tokens == 1 ? 1 : (tokens + kTokenGroup - 1) / kTokenGroup * kTokenGroup;
        x.group = tokens == 1 ? 1 : kTokenGroup;
        x.quants = take<std::int8_t>(grouped * size);
        x.scales = take<float>(grouped * x.blocks);
        x.offsets = take<std::int32_t>(grouped * x.blocks);
        return x;
    }

    Activations unquantised(std::uint32_t tokens, std::uint32_t size) {
        Activations x;
        x.values = take<float>(std::size_t(tokens) * size);
        x.stride = size;
        return x;
    }

    std::size_t used() const { return used_; }

private:
    std::byte* base_;
    std::size_t used_ = 0;
};

void carve(Carver& carver, const ModelConfig& config, const Shards& shards, Scratch& scratch) {
    constexpr std::size_t kTokens = kBatchTokens;
    const std::uint32_t hidden = config.hidden_size;
    scratch.hidden_states = carver.take<float>(kTokens * hidden);
    scratch.normed = carver.activations(kBatchTokens, hidden);
    scratch.members.resize(shards.key_value_heads.size());
    for (std::size_t i = 0; i < scratch.members.size(); ++i) {
        MemberScratch& member = scratch.members[i];
        const std::uint32_t key_value_size = shards.key_value_heads[i].size() * config.head_dim;
        const std::uint32_t query_size = key_value_size * config.query_heads_per_key_value_head();
        const std::uint32_t ffn_size = shards.ffn_columns[i].size();
        member.hidden_states = carver.take<float>(hidden);
        member.normed = carver.activations(1, hidden);
        member.query = carver.take<float>(kTokens * query_size);
        member.key = carver.take<float>(kTokens * key_value_size);
        member.value = carver.take<float>(kTokens * key_value_size);
        member.attended = carver.activations(kBatchTokens, query_size);
        member.up = carver.take<float>(kTokens * ffn_size);
        member.ffn = carver.activations(kBatchTokens, ffn_size);
        if (config.ffn_delta_rank != 0) {
            member.low_rank = carver.unquantised(kBatchTokens, config.ffn_delta_rank);
            member.delta = carver.take<float>(kTokens * std::max(hidden, ffn_size));
        }
        member.cosine = carver.take<float>(kTokens * config.head_dim / 2);
        member.sine = carver.take<float>(kTokens * config.head_dim / 2);
        member.attention_out = carver.take<float>(kTokens * hidden);
        member.ffn_out = carver.take<float>(kTokens * hidden);
    }
}

}  // namespace

Result<Scratch> Scratch::allocate(const ModelConfig& config, const Shards& shards) {
    Scratch scratch;
    Carver counter(nullptr);
    carve(counter, config, shards, scratch);
    TRY_ASSIGN(scratch.memory, PageBuffer::allocate(counter.used()));
    Carver carver(scratch.memory.data());
    carve(carver, config, shards, scratch);
    return scratch;
}

}  // namespace mobillama
