#include "config.h"

#include <algorithm>
#include <cmath>

namespace mobillama {
namespace {

// Widest model this engine is meant for; keeps every product of two sizes within 64 bits.
constexpr std::uint64_t kMaxSize = 1 << 20;
constexpr std::uint64_t kMaxLayers = 1024;
constexpr std::uint64_t kMaxContext = std::uint64_t(1) << 31;
constexpr std::uint64_t kMaxHeadDim = 256;

const std::string kPrefix = "mobillama.";

const gguf::Value* find(const gguf::File& file, const std::string& key) {
    const auto found = file.metadata.find(key);
    return found == file.metadata.end() ? nullptr : &found->second;
}

Error missing(const std::string& key) { return Error{"metadata '" + key + "' is missing"}; }

// A whole number from `least` to `most`.
Result<std::uint32_t> size_field(const gguf::File& file, const std::string& name, std::uint64_t least,
                                 std::uint64_t most) {
    const std::string key = kPrefix + name;
    const gguf::Value* value = find(file, key);
    if (value == nullptr) return missing(key);
    std::uint64_t number = 0;
    if (const auto* natural = std::get_if<std::uint64_t>(value)) {
        number = *natural;
    } else if (const auto* integer = std::get_if<std::int64_t>(value); integer != nullptr && *integer >= 0) {
        number = std::uint64_t(*integer);
    } else {
        return Error{"metadata '" + key + "' is not a whole number"};
    }
    if (number < least || number > most) {
        return Error{"metadata '" + key + "' is " + std::to_string(number) + "; it must lie between " +
                     std::to_string(least) + " and " + std::to_string(most)};
    }
    return std::uint32_t(number);
}

Result<float> positive_field(const gguf::File& file, const std::string& name, double most) {
    const std::string key = kPrefix + name;
    const gguf::Value* value = find(file, key);
    if (value == nullptr) return missing(key);
    const auto* number = std::get_if<double>(value);
    if (number == nullptr || !(*number > 0.0) || *number > most) {
        return Error{"metadata '" + key + "' must be a number above 0 and at most " + std::to_string(most)};
    }
    return float(*number);
}

Result<std::vector<std::uint32_t>> read_ffn_of_layer(const gguf::File& file, std::uint32_t layers) {
    const std::string key = kPrefix + "ffn_of_layer";
    const gguf::Value* value = find(file, key);
    if (value == nullptr) return missing(key);
    const auto* array = std::get_if<gguf::Array>(value);
    if (array == nullptr || array->element_type != gguf::ValueType::uint32) {
        return Error{"metadata '" + key + "' is not an array of uint32"};
    }
    if (array->count != layers) {
        return Error{"metadata '" + key + "' has " + std::to_string(array->count) + " entries for " +
                     std::to_string(layers) + " layers"};
    }
    std::vector<std::uint32_t> ffn_of_layer(layers);
    std::copy(array->raw.begin(), array->raw.end(), reinterpret_cast<std::byte*>(ffn_of_layer.data()));
    for (const std::uint32_t ffn : ffn_of_layer) {
        if (ffn >= layers) {
            return Error{"metadata '" + key + "' names FFN " + std::to_string(ffn) + "; there can be no more than " +
                         std::to_string(layers)};
        }
    }
    return ffn_of_layer;
}

Status check_multiple(const std::string& name, std::uint32_t value, std::uint32_t factor) {
    if (value % factor == 0) return Done{};
    return Error{"metadata '" + kPrefix + name + "' is " + std::to_string(value) + ", not a multiple of " +
                 std::to_string(factor)};
}

}  // namespace

std::uint32_t ModelConfig::num_ffns() const {
    return 1 + *std::max_element(ffn_of_layer.begin(), ffn_of_layer.end());
}

Result<ModelConfig> read_config(const gguf::File& file) {
    const gguf::Value* architecture = find(file, "general.architecture");
    if (architecture == nullptr) return missing("general.architecture");
    const auto* name = std::get_if<std::string_view>(architecture);
    if (name == nullptr || *name != "mobillama") {
        return Error{"general.architecture is " +
                     (name == nullptr ? std::string("not a string") : "'" + std::string(name->substr(0, 80)) + "'") +
                     "; this engine reads 'mobillama' (write one with: mobillama quantize)"};
    }
    ModelConfig config;
    TRY_ASSIGN(config.vocab_size, size_field(file, "vocab_size", 1, kMaxSize));
    TRY_ASSIGN(config.hidden_size, size_field(file, "embedding_length", 32, kMaxSize));
    TRY_ASSIGN(config.intermediate_size, size_field(file, "feed_forward_length", 32, kMaxSize));
    TRY_ASSIGN(config.num_hidden_layers, size_field(file, "block_count", 1, kMaxLayers));
    TRY_ASSIGN(config.num_attention_heads, size_field(file, "attention.head_count", 1, kMaxSize));
    TRY_ASSIGN(config.num_key_value_heads,
               size_field(file, "attention.head_count_kv", 1, config.num_attention_heads));
    TRY_ASSIGN(config.head_dim, size_field(file, "attention.key_length", 16, kMaxHeadDim));
    TRY_ASSIGN(config.context_length, size_field(file, "context_length", 1, kMaxContext));
    TRY_ASSIGN(config.ffn_delta_rank, size_field(file, "ffn_delta_rank", 0, kMaxSize));
    TRY_ASSIGN(config.ffn_of_layer, read_ffn_of_layer(file, config.num_hidden_layers));
    TRY_ASSIGN(config.rms_norm_eps, positive_field(file, "attention.layer_norm_rms_epsilon", 1.0));
    TRY_ASSIGN(config.rope_theta, positive_field(file, "rope.freq_base", 1e12));

    // Activations are quantised in blocks of 32, and the kernels' tiles are 16 rows high.
    TRY(check_multiple("embedding_length", config.hidden_size, 32));
    TRY(check_multiple("feed_forward_length", config.intermediate_size, 32));
    TRY(check_multiple("attention.key_length", config.head_dim, 16));
    TRY(check_multiple("attention.head_count", config.num_attention_heads, config.num_key_value_heads));
    if (std::uint64_t(config.num_attention_heads) * config.head_dim > kMaxSize ||
        config.attention_size() % 32 != 0) {
        return Error{"metadata 'mobillama.attention.head_count' times 'attention.key_length' must be a multiple of "
                     "32 and at most " + std::to_string(kMaxSize)};
    }
    return config;
}

}  // namespace mobillama
