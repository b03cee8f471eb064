// A model's weights as the kernels want them: matrices repacked once into one arena, each FFN once.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "config.h"
#include "gguf.h"
#include "kernels.h"
#include "platform.h"
#include "result.h"
#include "shards.h"
#include "thread_pool.h"
#include "tiles.h"

namespace mobillama {

struct Ffn {
    Matrix gate;
    Matrix up;
    Matrix down;  // cut into column shards
};

// A layer's own addition to the FFN it shares: each projection W becomes W + b a.
struct FfnDelta {
    Matrix gate_a, gate_b;
    Matrix up_a, up_b;
    Matrix down_a;  // cut into column shards
    Matrix down_b;
};

struct Layer {
    std::vector<float> attention_norm;
    Matrix query;
    Matrix key;
    Matrix value;
    Matrix attention_output;  // cut into column shards
    std::vector<float> ffn_norm;
    std::uint32_t ffn = 0;
    std::optional<FfnDelta> delta;
    std::vector<float> gain;  // empty, or intermediate_size factors on silu(gate) * up
};

struct Weights {
    PageBuffer arena;
    std::vector<Layer> layers;
    std::vector<Ffn> ffns;
    std::vector<float> output_norm;
    Matrix output;
    gguf::Tensor embedding;  // stays in the mapped file; rows are read as tokens need them
};

// Check every tensor against the config, then repack. `mapping`, when given, is where `file` lies: pages that
// have been repacked are dropped from memory, so that the file and its copy are never both resident.
Result<Weights> load_weights(const gguf::File& file, const ModelConfig& config, const Shards& shards,
                             const Kernels& kernels, ThreadPool& pool, const MappedFile* mapping);

// Row `row` of a q4_0, q8_0 or f16 tensor as floats.
void dequantise_row(const gguf::Tensor& tensor, std::uint64_t row, float* out);

}  // namespace mobillama
