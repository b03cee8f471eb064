#include "weights.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "half.h"

namespace mobillama {
namespace {

// A matrix that has its place in the arena and waits to be repacked into it.
struct PackJob {
    const gguf::Tensor* tensor;
    Matrix* matrix;
    std::size_t offset;
};

class Loader {
public:
    Loader(const gguf::File& file, const ModelConfig& config, const Shards& shards, const Kernels& kernels)
        : file_(file), config_(config), shards_(shards), kernels_(kernels) {
        for (const Range& heads : shards.key_value_heads) {
            attention_columns_.push_back(Shards::attention_columns(config, heads));
        }
    }

    // Find and check all tensors and lay out the arena.
    Status plan(Weights& weights) {
        const std::uint32_t hidden = config_.hidden_size;
        TRY_ASSIGN(const gguf::Tensor* embedding, find_matrix("token_embd.weight", config_.vocab_size, hidden));
        weights.embedding = *embedding;
        weights.ffns.resize(config_.num_ffns());
        weights.layers.resize(config_.num_hidden_layers);
        for (std::uint32_t i = 0; i < weights.ffns.size(); ++i) TRY(plan_ffn(i, weights.ffns[i]));
        for (std::uint32_t i = 0; i < weights.layers.size(); ++i) {
            weights.layers[i].ffn = config_.ffn_of_layer[i];
            TRY(plan_layer("blk." + std::to_string(i), weights.layers[i]));
        }
        TRY_ASSIGN(weights.output_norm, vector("output_norm.weight", hidden));
        const bool tied = file_.tensors.count("output.weight") == 0;
        return matrix(tied ? "token_embd.weight" : "output.weight", config_.vocab_size, hidden, weights.output);
    }

    Status pack(Weights& weights, ThreadPool& pool, const MappedFile* mapping) {
        TRY_ASSIGN(weights.arena, PageBuffer::allocate(arena_bytes_));
        for (const PackJob& job : jobs_) {
            std::byte* target = weights.arena.data() + job.offset;
            for (Matrix::Shard& shard : job.matrix->shards) {
                shard.data = target;
                target += tiles_of(job.matrix->rows) * shard.tile_bytes;
            }
        }
        pool.run([&](unsigned member) {
            for (const PackJob& job : jobs_) pack_part(job, member, pool.size(), mapping);
        });
        // Once more for the pages on the borders of the members' parts.
        if (mapping != nullptr) mapping->drop_pages(mapping->bytes());
        return Done{};
    }

private:
    static void pack_part(const PackJob& job, unsigned member, unsigned members, const MappedFile* mapping) {
        constexpr std::uint32_t kTilesAtOnce = 16;  // bounds how much of the file is resident
        const std::uint64_t tiles = tiles_of(job.matrix->rows);
        const auto begin = std::uint32_t(tiles * member / members);
        const auto end = std::uint32_t(tiles * (member + 1) / members);
        const std::size_t row_bytes = job.tensor->data.size() / job.tensor->rows();
        for (std::uint32_t first = begin; first < end; first += kTilesAtOnce) {
            const Range part{first, std::min(first + kTilesAtOnce, end)};
            for (const Matrix::Shard& shard : job.matrix->shards) {
                auto* target = const_cast<std::byte*>(shard.data) + first * shard.tile_bytes;
                pack_tiles(*job.tensor, shard.columns, part, target);
            }
            if (mapping == nullptr) continue;
            const std::size_t from = std::size_t(part.begin) * kTileRows * row_bytes;
            const std::size_t to = std::min(std::size_t(part.end) * kTileRows * row_bytes, job.tensor->data.size());
            mapping->drop_pages(job.tensor->data.subspan(from, to - from));
        }
    }

    Status plan_ffn(std::uint32_t index, Ffn& ffn) {
        const std::string name = "ffn." + std::to_string(index);
        const auto uses = std::count(config_.ffn_of_layer.begin(), config_.ffn_of_layer.end(), index);
        for (Matrix* part : {&ffn.gate, &ffn.up, &ffn.down}) part->reused = uses > 1;
        const std::uint32_t hidden = config_.hidden_size;
        const std::uint32_t intermediate = config_.intermediate_size;
        TRY(matrix(name + ".gate.weight", intermediate, hidden, ffn.gate));
        TRY(matrix(name + ".up.weight", intermediate, hidden, ffn.up));
        return matrix(name + ".down.weight", hidden, intermediate, ffn.down, shards_.ffn_columns);
    }

    Status plan_layer(const std::string& name, Layer& layer) {
        const std::uint32_t hidden = config_.hidden_size;
        const std::uint32_t key_value_size = config_.num_key_value_heads * config_.head_dim;
        TRY_ASSIGN(layer.attention_norm, vector(name + ".attn_norm.weight", hidden));
        TRY_ASSIGN(layer.ffn_norm, vector(name + ".ffn_norm.weight", hidden));
        TRY(matrix(name + ".attn_q.weight", config_.attention_size(), hidden, layer.query));
        TRY(matrix(name + ".attn_k.weight", key_value_size, hidden, layer.key));
        TRY(matrix(name + ".attn_v.weight", key_value_size, hidden, layer.value));
        TRY(matrix(name + ".attn_output.weight", hidden, config_.attention_size(), layer.attention_output,
                   attention_columns_));
        if (file_.tensors.count(name + ".ffn_gain.weight") != 0) {
            TRY_ASSIGN(layer.gain, vector(name + ".ffn_gain.weight", config_.intermediate_size));
        }
        if (config_.ffn_delta_rank != 0) TRY(plan_delta(name + ".ffn_delta", layer.delta.emplace()));
        return Done{};
    }

    Status plan_delta(const std::string& name, FfnDelta& delta) {
        const std::uint32_t hidden = config_.hidden_size;
        const std::uint32_t intermediate = config_.intermediate_size;
        const std::uint32_t rank = config_.ffn_delta_rank;
        TRY(half_matrix(name + ".gate_a.weight", rank, hidden, delta.gate_a));
        TRY(half_matrix(name + ".gate_b.weight", intermediate, rank, delta.gate_b));
        TRY(half_matrix(name + ".up_a.weight", rank, hidden, delta.up_a));
        TRY(half_matrix(name + ".up_b.weight", intermediate, rank, delta.up_b));
        TRY(half_matrix(name + ".down_a.weight", rank, intermediate, delta.down_a, shards_.ffn_columns));
        return half_matrix(name + ".down_b.weight", hidden, rank, delta.down_b);
    }

    Result<const gguf::Tensor*> find_tensor(const std::string& name, std::uint64_t rows, std::uint64_t columns) {
        const auto found = file_.tensors.find(name);
        if (found == file_.tensors.end()) return Error{"tensor '" + name + "' is missing"};
        const gguf::Tensor& tensor = found->second;
        if (tensor.columns() != columns || tensor.rows() != rows || tensor.dimensions[2] != 1 ||
            tensor.dimensions[3] != 1) {
            return Error{"tensor '" + name + "' is " + std::to_string(tensor.rows()) + " x " +
                         std::to_string(tensor.columns()) + " where the metadata calls for " + std::to_string(rows) +
                         " x " + std::to_string(columns)};
        }
        return &tensor;
    }

    Result<const gguf::Tensor*> find_matrix(const std::string& name, std::uint64_t rows, std::uint64_t columns) {
        TRY_ASSIGN(const gguf::Tensor* tensor, find_tensor(name, rows, columns));
        if (tensor->type == gguf::TensorType::f32) {
            return Error{"tensor '" + name + "' is f32; matrices must be f16, q8_0 or q4_0"};
        }
        return tensor;
    }

    Result<std::vector<float>> vector(const std::string& name, std::uint32_t size) {
        TRY_ASSIGN(const gguf::Tensor* tensor, find_tensor(name, 1, size));
        if (tensor->type != gguf::TensorType::f32) {
            return Error{"tensor '" + name + "' is " + gguf::type_name(tensor->type) + "; it must be f32"};
        }
        std::vector<float> values(size);
        std::memcpy(values.data(), tensor->data.data(), tensor->data.size());
        return values;
    }

    Status matrix(const std::string& name, std::uint32_t rows, std::uint32_t columns, Matrix& target,
                  const std::vector<Range>& shards = {}) {
        TRY_ASSIGN(const gguf::Tensor* tensor, find_matrix(name, rows, columns));
        target.multiply = kernel_for(tensor->type);
        target.rows = rows;
        const std::vector<Range> cuts = shards.empty() ? std::vector<Range>{{0, columns}} : shards;
        for (const Range& cut : cuts) target.shards.push_back({cut, nullptr, tile_bytes(tensor->type, cut.size())});
        jobs_.push_back({tensor, &target, arena_bytes_});
        arena_bytes_ += packed_bytes(*tensor, cuts);
        return Done{};
    }

    Status half_matrix(const std::string& name, std::uint32_t rows, std::uint32_t columns, Matrix& target,
                       const std::vector<Range>& shards = {}) {
        TRY_ASSIGN(const gguf::Tensor* tensor, find_matrix(name, rows, columns));
        if (tensor->type != gguf::TensorType::f16) {
            return Error{"tensor '" + name + "' is " + gguf::type_name(tensor->type) + "; it must be f16"};
        }
        return matrix(name, rows, columns, target, shards);
    }

    Matmul kernel_for(gguf::TensorType type) const {
        switch (type) {
            case gguf::TensorType::q4_0: return kernels_.matmul_q4_0;
            case gguf::TensorType::q8_0: return kernels_.matmul_q8_0;
            case gguf::TensorType::f16: return kernels_.matmul_f16;
            case gguf::TensorType::f32: break;
        }
        return nullptr;
    }

    const gguf::File& file_;
    const ModelConfig& config_;
    const Shards& shards_;
    const Kernels& kernels_;
    std::vector<Range> attention_columns_;
    std::vector<PackJob> jobs_;
    std::size_t arena_bytes_ = 0;
};

}  // namespace

Result<Weights> load_weights(const gguf::File& file, const ModelConfig& config, const Shards& shards,
                             const Kernels& kernels, ThreadPool& pool, const MappedFile* mapping) {
    Weights weights;
    Loader loader(file, config, shards, kernels);
    TRY(loader.plan(weights));
    TRY(loader.pack(weights, pool, mapping));
    return weights;
}

void dequantise_row(const gguf::Tensor& tensor, std::uint64_t row, float* out) {
    const std::uint64_t columns = tensor.columns();
    const std::size_t row_bytes = tensor.data.size() / tensor.rows();
    const std::byte* source = tensor.data.data() + row * row_bytes;
    const auto next_half = [&source] {
        std::uint16_t half;
        std::memcpy(&half, source, sizeof half);
        source += sizeof half;
        return half_to_float(half);
    };
    switch (tensor.type) {
        case gguf::TensorType::q4_0:
            for (std::uint64_t first = 0; first < columns; first += kBlock, source += 16) {
                const float scale = next_half();
                for (std::uint64_t i = 0; i < 16; ++i) {
                    const int byte = std::to_integer<int>(source[i]);
                    out[first + i] = scale * float((byte & 15) - 8);
                    out[first + 16 + i] = scale * float((byte >> 4) - 8);
                }
            }
            break;
        case gguf::TensorType::q8_0:
            for (std::uint64_t first = 0; first < columns; first += kBlock, source += kBlock) {
                const float scale = next_half();
                for (std::uint64_t i = 0; i < kBlock; ++i) {
                    out[first + i] = scale * float(static_cast<std::int8_t>(source[i]));
                }
            }
            break;
        case gguf::TensorType::f16:
            for (std::uint64_t i = 0; i < columns; ++i) out[i] = next_half();
            break;
        case gguf::TensorType::f32: assert(false && "matrices are never f32");
    }
}

}  // namespace mobillama
