// Every usable instruction set against the scalar twin and against sums in double precision.
#include <cmath>
#include <cstring>
#include <random>

#include "check.h"
#include "half.h"
#include "isa.h"
#include "tiles.h"

using namespace mobillama;

namespace {

std::mt19937 generator(7);

std::vector<float> random_floats(std::size_t count, float scale = 1.0f) {
    std::normal_distribution<float> normal(0.0f, scale);
    std::vector<float> values(count);
    for (float& value : values) value = normal(generator);
    return values;
}

std::vector<const Kernels*> all_kernels() {
    std::vector<const Kernels*> list;
    for (const std::string& name : available_isas()) list.push_back(*choose_kernels(name));
    return list;
}

// Activations that own their memory.
struct OwnedActivations {
    OwnedActivations(std::uint32_t tokens, std::uint32_t size)
        : values(random_floats(std::size_t(tokens) * size)), quants(16 * values.size()), scales(quants.size() / 32),
          offsets(scales.size()) {
        x.values = values.data();
        x.stride = size;
        x.quants = quants.data();
        x.scales = scales.data();
        x.offsets = offsets.data();
        x.blocks = size / 32;
        x.group = tokens == 1 ? 1 : 16;
        for (std::uint32_t t = 0; t < tokens; ++t) scalar_kernels().quantise(x, t);
    }
    float quantised(std::uint32_t token, std::uint32_t column) const {
        const std::size_t at = x.block_index(token, column / 32);
        return scales[at] * float(quants[at * 32 + column % 32]);
    }

    std::vector<float> values;
    std::vector<std::int8_t> quants;
    std::vector<float> scales;
    std::vector<std::int32_t> offsets;
    Activations x;
};

// A tensor of random blocks, its meaning, and its tiles.
struct RandomMatrix {
    RandomMatrix(gguf::TensorType type, std::uint32_t rows, std::uint32_t columns) {
        std::uniform_real_distribution<float> uniform(0.01f, 0.02f);
        const auto put_half = [&](float value) {
            const std::uint16_t half = float_to_half(value);
            const auto* raw = reinterpret_cast<const std::byte*>(&half);
            file.insert(file.end(), raw, raw + 2);
        };
        for (std::uint32_t i = 0; i < rows * columns;) {
            if (type == gguf::TensorType::f16) {
                put_half(uniform(generator) - 0.015f);
                ++i;
                continue;
            }
            put_half(uniform(generator));
            const int count = type == gguf::TensorType::q4_0 ? 16 : 32;
            for (int j = 0; j < count; ++j) file.push_back(std::byte(generator() & 255));  // -128 among them
            i += 32;
        }
        tensor.type = type;
        tensor.dimensions = {columns, rows, 1, 1};
        tensor.data = file;
        run = {nullptr, tile_bytes(type, columns), rows, columns};
        tiles.resize(tiles_of(rows) * run.tile_bytes + 64);
        auto* aligned = tiles.data() + (64 - reinterpret_cast<std::uintptr_t>(tiles.data()) % 64) % 64;
        pack_tiles(tensor, {0, columns}, {0, tiles_of(rows)}, aligned);
        run.data = aligned;
    }
    float value(std::uint32_t row, std::uint32_t column) const {
        const std::size_t i = std::size_t(row) * tensor.columns() + column;
        const auto half_at = [&](std::size_t at) {
            std::uint16_t half;
            std::memcpy(&half, file.data() + at, 2);
            return half_to_float(half);
        };
        if (tensor.type == gguf::TensorType::f16) return half_at(i * 2);
        if (tensor.type == gguf::TensorType::q8_0) {
            return half_at(i / 32 * 34) * float(std::int8_t(file[i / 32 * 34 + 2 + i % 32]));
        }
        const int byte = std::to_integer<int>(file[i / 32 * 18 + 2 + i % 16]);
        return half_at(i / 32 * 18) * float((i % 32 < 16 ? byte & 15 : byte >> 4) - 8);
    }

    std::vector<std::byte> file;
    std::vector<std::byte> tiles;
    gguf::Tensor tensor;
    TileRun run;
};

Matmul matmul_of(const Kernels& kernels, gguf::TensorType type) {
    return type == gguf::TensorType::q4_0   ? kernels.matmul_q4_0
           : type == gguf::TensorType::q8_0 ? kernels.matmul_q8_0
                                            : kernels.matmul_f16;
}

void check_matmul(gguf::TensorType type, std::uint32_t rows, std::uint32_t columns, std::uint32_t tokens) {
    const RandomMatrix matrix(type, rows, columns);
    const OwnedActivations activations(tokens, columns);
    std::vector<float> expected(std::size_t(tokens) * rows);
    float largest = 0.0f;
    for (std::uint32_t t = 0; t < tokens; ++t) {
        for (std::uint32_t r = 0; r < rows; ++r) {
            double sum = 0.0;
            for (std::uint32_t c = 0; c < columns; ++c) {
                const bool floats = type == gguf::TensorType::f16;
                sum += double(matrix.value(r, c)) *
                       double(floats ? activations.values[t * columns + c] : activations.quantised(t, c));
            }
            expected[t * rows + r] = float(sum);
            largest = std::max(largest, std::fabs(float(sum)));
        }
    }
    for (const Kernels* kernels : all_kernels()) {
        std::vector<float> y(std::size_t(tokens) * rows + 1, 12345.0f);
        matmul_of(*kernels, type)(matrix.run, activations.x, tokens, y.data(), rows);
        float error = 0.0f;
        for (std::size_t i = 0; i < expected.size(); ++i) error = std::max(error, std::fabs(y[i] - expected[i]));
        CHECK(error < 2e-5f * largest);
        CHECK(y.back() == 12345.0f);  // the padding of the last tile is not written
    }
}

TEST(products_equal_double_precision_for_every_type_and_token_count) {
    for (const auto type : {gguf::TensorType::q4_0, gguf::TensorType::q8_0, gguf::TensorType::f16}) {
        for (const std::uint32_t tokens : {1u, 2u, 3u, 16u, 21u, 37u}) {
            check_matmul(type, 48, 96, tokens);
            check_matmul(type, 35, 32, tokens);
        }
    }
    for (const std::uint32_t columns : {1u, 5u, 16u}) {  // low-rank factors have no blocks
        const RandomMatrix matrix(gguf::TensorType::f16, 35, columns);
        std::vector<float> x = random_floats(3 * columns);
        Activations activations;
        activations.values = x.data();
        activations.stride = columns;
        for (const Kernels* kernels : all_kernels()) {
            std::vector<float> y(3 * 35);
            kernels->matmul_f16(matrix.run, activations, 3, y.data(), 35);
            for (std::uint32_t i = 0; i < y.size(); ++i) {
                double sum = 0.0;
                for (std::uint32_t c = 0; c < columns; ++c) {
                    sum += double(matrix.value(i % 35, c)) * double(x[i / 35 * columns + c]);
                }
                CHECK(std::fabs(y[i] - sum) < 1e-5);
            }
        }
    }
}

TEST(a_column_shard_holds_its_columns) {
    const RandomMatrix matrix(gguf::TensorType::q8_0, 16, 96);
    const Range columns{32, 96};
    std::vector<std::byte> tiles(tile_bytes(gguf::TensorType::q8_0, 64) + 64);
    pack_tiles(matrix.tensor, columns, {0, 1}, tiles.data());
    const OwnedActivations activations(1, 64);
    std::vector<float> y(16);
    scalar_kernels().matmul_q8_0({tiles.data(), tiles.size(), 16, 64}, activations.x, 1, y.data(), 16);
    for (std::uint32_t r = 0; r < 16; ++r) {
        double sum = 0.0;
        for (std::uint32_t c = 0; c < 64; ++c) sum += double(matrix.value(r, c + 32)) * double(activations.quantised(0, c));
        CHECK(std::fabs(y[r] - sum) < 1e-4);
    }
}

TEST(norm_quantise_silu_and_rope_equal_double_precision) {
    constexpr std::uint32_t kSize = 96;
    const std::vector<float> hidden = random_floats(kSize);
    const std::vector<float> weight = random_floats(kSize);
    double mean_square = 0.0;
    for (const float h : hidden) mean_square += double(h) * double(h) / kSize;
    for (const Kernels* kernels : all_kernels()) {
        OwnedActivations out(1, kSize);
        kernels->rms_norm(hidden.data(), weight.data(), 1e-5f, out.x, 0);
        for (std::uint32_t i = 0; i < kSize; ++i) {
            const double expected = double(hidden[i]) / std::sqrt(mean_square + 1e-5) * double(weight[i]);
            CHECK(std::fabs(out.values[i] - expected) < 1e-5);
            CHECK(std::fabs(out.quantised(0, i) - out.values[i]) <= out.scales[i / 32] * 0.5001f);
        }
        std::int32_t sum = 0;
        for (int i = 0; i < 32; ++i) sum += out.quants[i];
        CHECK(out.offsets[0] == -8 * sum);

        std::vector<float> gate = random_floats(kSize, 20.0f);
        gate[0] = -200.0f;
        gate[1] = 200.0f;
        const std::vector<float> before = gate;
        kernels->swiglu(gate.data(), hidden.data(), weight.data(), kSize);
        for (std::uint32_t i = 0; i < kSize; ++i) {
            const double silu = double(before[i]) / (1.0 + std::exp(-double(before[i])));
            const double expected = silu * double(hidden[i]) * double(weight[i]);
            CHECK(std::fabs(gate[i] - expected) <= 1e-5 * (1.0 + std::fabs(expected)));
        }

        std::vector<float> pair = {1.0f, 2.0f, 3.0f, 4.0f};
        const float cosine[] = {0.6f, 0.0f};
        const float sine[] = {0.8f, 1.0f};
        kernels->rope(pair.data(), cosine, sine, 2);
        CHECK(std::fabs(pair[0] - (0.6f - 2.4f)) < 1e-6f && std::fabs(pair[2] - (1.8f + 0.8f)) < 1e-6f);
        CHECK(pair[1] == -4.0f && pair[3] == 2.0f);
    }
}

TEST(blocks_of_zeros_and_of_what_is_not_a_number_do_no_harm) {
    for (const Kernels* kernels : all_kernels()) {
        OwnedActivations x(1, 64);
        for (std::uint32_t i = 0; i < 32; ++i) x.values[i] = 0.0f;
        for (std::uint32_t i = 32; i < 64; ++i) x.values[i] = i % 2 ? INFINITY : NAN;
        kernels->quantise(x.x, 0);
        CHECK(x.scales[0] == 0.0f && x.quants[0] == 0 && x.offsets[0] == 0);
    }
}

// Each row as the cache keeps it: in f16, or in 255 levels of its largest magnitude.
std::vector<float> rounded(std::vector<float> rows, std::uint32_t width, bool q8) {
    for (std::size_t first = 0; first < rows.size(); first += width) {
        float largest = 0.0f;
        for (std::uint32_t i = 0; i < width; ++i) largest = std::max(largest, std::fabs(rows[first + i]));
        for (std::uint32_t i = 0; i < width; ++i) {
            float& x = rows[first + i];
            x = q8 ? std::nearbyint(x * (127.0f / largest)) * (largest / 127.0f) : half_to_float(float_to_half(x));
        }
    }
    return rows;
}

// Keys, values and queries of one head, in a cache of `positions` positions.
void check_attention(bool q8, std::uint32_t positions, std::uint32_t head_dim, std::uint32_t rows) {
    const std::size_t vectors = std::size_t(kChunkPositions) * head_dim * (q8 ? 1 : 2);
    const std::size_t scales = q8 ? kChunkPositions * sizeof(float) : 0;
    const std::uint32_t chunk_count = (positions + kChunkPositions - 1) / kChunkPositions;
    std::vector<float> memory(chunk_count * 2 * (vectors + scales) / sizeof(float));
    std::vector<std::byte*> chunks;
    for (std::uint32_t i = 0; i < chunk_count; ++i) {
        chunks.push_back(reinterpret_cast<std::byte*>(memory.data()) + i * 2 * (vectors + scales));
    }
    const HeadCache cache{chunks.data(), 0, vectors, vectors + scales, 2 * vectors + scales, head_dim};
    const auto keys = rounded(random_floats(std::size_t(positions) * head_dim), head_dim, q8);
    const auto values = rounded(random_floats(std::size_t(positions) * head_dim), head_dim, q8);
    auto queries = random_floats(std::size_t(rows) * head_dim, 2.0f / std::sqrt(float(head_dim)));
    if (q8) queries = rounded(queries, head_dim, true);
    std::vector<std::uint32_t> limits;
    for (std::uint32_t r = 0; r < rows; ++r) limits.push_back(positions - std::min(positions - 1, r * 7));

    std::vector<double> expected(std::size_t(rows) * head_dim);
    for (std::uint32_t r = 0; r < rows; ++r) {
        double total = 0.0;
        for (std::uint32_t p = 0; p < limits[r]; ++p) {
            double score = 0.0;
            for (std::uint32_t d = 0; d < head_dim; ++d) {
                score += double(queries[r * head_dim + d]) * double(keys[p * head_dim + d]);
            }
            total += std::exp(score);
            for (std::uint32_t d = 0; d < head_dim; ++d) {
                expected[r * head_dim + d] += std::exp(score) * double(values[p * head_dim + d]);
            }
        }
        for (std::uint32_t d = 0; d < head_dim; ++d) expected[r * head_dim + d] /= total;
    }
    // With an 8-bit cache the probabilities are rounded to 14 bits.
    const double tolerance = q8 ? 2e-3 : 1e-5;
    std::vector<float> twin;
    for (const Kernels* kernels : all_kernels()) {
        for (std::uint32_t p = 0; p < positions; ++p) {
            (q8 ? kernels->store_q8_0 : kernels->store_f16)(cache, p, keys.data() + p * head_dim,
                                                            values.data() + p * head_dim);
        }
        std::vector<float> out(std::size_t(rows) * head_dim);
        AttendTask task;
        task.cache = cache;
        task.queries = queries.data();
        task.limits = limits.data();
        task.rows = rows;
        task.out = out.data();
        task.next_keys = cache.first_keys();
        (q8 ? kernels->attend_q8_0 : kernels->attend_f16)(task);
        double worst = 0.0;
        for (std::size_t i = 0; i < out.size(); ++i) worst = std::max(worst, std::fabs(out[i] - expected[i]));
        CHECK(worst < tolerance);
        if (twin.empty()) twin = out;
        for (std::size_t i = 0; i < out.size(); ++i) CHECK(std::fabs(out[i] - twin[i]) < 2e-4f);
    }
}

TEST(attention_equals_double_precision_on_what_the_cache_keeps) {
    for (const bool q8 : {false, true}) {
        for (const std::uint32_t positions : {1u, 15u, 16u, 17u, 256u, 257u, 530u}) {
            check_attention(q8, positions, 64, 8);
            check_attention(q8, positions, 80, 3);
        }
        check_attention(q8, 100, 16, 1);
        check_attention(q8, 100, 256, 5);
    }
}

}  // namespace

int main() { return check::run_all(); }
