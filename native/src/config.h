// The model's shape, read from a file's metadata and checked.
#pragma once

#include <cstdint>
#include <vector>

#include "gguf.h"
#include "result.h"

namespace mobillama {

struct ModelConfig {
    std::uint32_t vocab_size = 0;
    std::uint32_t hidden_size = 0;
    std::uint32_t intermediate_size = 0;
    std::uint32_t num_hidden_layers = 0;
    std::uint32_t num_attention_heads = 0;
    std::uint32_t num_key_value_heads = 0;
    std::uint32_t head_dim = 0;
    std::uint32_t context_length = 0;
    std::uint32_t ffn_delta_rank = 0;       // 0: the layers add nothing to their FFN
    std::vector<std::uint32_t> ffn_of_layer;  // which FFN each layer uses
    float rms_norm_eps = 0;
    float rope_theta = 0;

    std::uint32_t query_heads_per_key_value_head() const { return num_attention_heads / num_key_value_heads; }
    std::uint32_t attention_size() const { return num_attention_heads * head_dim; }
    std::uint32_t num_ffns() const;
};

// Read and check the shape; errors name the metadata key.
Result<ModelConfig> read_config(const gguf::File& file);

}  // namespace mobillama
