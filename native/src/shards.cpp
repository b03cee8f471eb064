#include "shards.h"

namespace mobillama {
namespace {

// Cut 0..size into equal parts whose borders are multiples of `unit`; the last part takes what is left.
std::vector<Range> split(std::uint32_t size, std::uint32_t unit, unsigned parts) {
    const std::uint64_t units = (size + unit - 1) / unit;
    std::vector<Range> ranges(parts);
    for (unsigned part = 0; part < parts; ++part) {
        ranges[part].begin = std::uint32_t(units * part / parts) * unit;
        ranges[part].end = std::uint32_t(units * (part + 1) / parts) * unit;
        if (ranges[part].end > size) ranges[part].end = size;
    }
    return ranges;
}

// The output projection's columns are quantised in blocks of 32, which a border must not cut.
std::uint32_t head_unit(const ModelConfig& config) {
    return config.query_heads_per_key_value_head() * config.head_dim % kBlock == 0 ? 1 : 2;
}

}  // namespace

Shards::Shards(const ModelConfig& config, unsigned members)
    : key_value_heads(split(config.num_key_value_heads, head_unit(config), members)),
      ffn_columns(split(config.intermediate_size, kBlock, members)),
      vocabulary(split(config.vocab_size, kTileRows, members)) {}

Range Shards::attention_columns(const ModelConfig& config, Range key_value_heads) {
    const std::uint32_t width = config.query_heads_per_key_value_head() * config.head_dim;
    return {key_value_heads.begin * width, key_value_heads.end * width};
}

}  // namespace mobillama
