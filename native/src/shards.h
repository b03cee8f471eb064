// Who computes what. Each member of the thread pool owns some KV heads with their query heads, some columns of
// the FFN and some rows of the vocabulary: from the queries to the output projection, and from gate to down,
// nobody waits. Fixed shards also fix the order of every sum, so a thread count always gives the same logits.
#pragma once

#include <cstdint>
#include <vector>

#include "config.h"
#include "tiles.h"

namespace mobillama {

struct Shards {
    std::vector<Range> key_value_heads;  // one entry for each member; with more members than heads some are empty
    std::vector<Range> ffn_columns;
    std::vector<Range> vocabulary;

    Shards(const ModelConfig& config, unsigned members);

    // Columns of the attention's output that belong to a range of KV heads.
    static Range attention_columns(const ModelConfig& config, Range key_value_heads);
};

}  // namespace mobillama
