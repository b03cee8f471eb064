// The inner loops, as a table of plain functions that each instruction set fills in. All sets read the same
// layouts and do the same integer arithmetic; their floating-point sums may differ in the last bits.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mobillama {

inline constexpr std::uint32_t kTileRows = 16;

// Activations of some tokens: as floats, and quantised to int8 in blocks of 32 with one scale each.
// Quantised blocks of `group` tokens lie side by side: (token group, block, token in group, 32).
struct Activations {
    float* values = nullptr;  // token t begins at values + t * stride
    std::size_t stride = 0;
    std::int8_t* quants = nullptr;
    float* scales = nullptr;
    std::int32_t* offsets = nullptr;  // -8 times the block's sum: what q4_0's offset of 8 adds to a dot product
    std::uint32_t blocks = 0;
    std::uint32_t group = 1;

    std::size_t block_index(std::uint32_t token, std::uint32_t block) const {
        return (std::size_t(token / group) * blocks + block) * group + token % group;
    }
};

// Adjacent tiles of a matrix, holding `rows` rows in all (the last tile may be partly padding).
struct TileRun {
    const std::byte* data = nullptr;
    std::size_t tile_bytes = 0;
    std::uint32_t rows = 0;
    std::uint32_t columns = 0;
    bool reused = false;  // several layers read it for one token: it is to stay in the last-level cache
    // What the caller will read after this run. A shared FFN comes from the last-level cache and leaves the memory
    // bus idle: the kernels for one token fetch `next` into the cache meanwhile.
    const std::byte* next = nullptr;
};

// y[t * y_stride + r] = sum over c of w[r, c] * x[t, c]
using Matmul = void (*)(const TileRun& w, const Activations& x, std::uint32_t tokens, float* y,
                        std::size_t y_stride);

// Positions whose keys and values lie in one piece of the KV cache; also the step of the online softmax.
inline constexpr std::uint32_t kChunkPositions = 256;

// Where one KV head of one layer lies in each chunk of the cache. Keys come in tiles of 16 positions:
//   f16   keys (position / 16, head_dim, 16)         values (position, head_dim)
//   q8_0  keys (position / 16, head_dim / 4, 16, 4)  values (position / 4, head_dim, 4)
// with, for q8_0, one f32 scale per position for keys and one for values.
struct HeadCache {
    std::byte* const* chunks = nullptr;
    std::size_t keys = 0;  // offsets in bytes from a chunk's beginning
    std::size_t key_scales = 0;
    std::size_t values = 0;
    std::size_t value_scales = 0;
    std::uint32_t head_dim = 0;

    const std::byte* first_keys() const { return chunks[0] + keys; }
};

// Query rows over one KV head. Row r sees the positions before limits[r], of which there is at least one.
struct AttendTask {
    HeadCache cache;
    const float* queries = nullptr;  // (rows, head_dim), already divided by sqrt(head_dim)
    const std::uint32_t* limits = nullptr;
    std::uint32_t rows = 0;
    float* out = nullptr;  // (rows, head_dim)
    // The keys that the caller will read after this task; fetched into the cache meanwhile.
    const std::byte* next_keys = nullptr;
};

// The most rows of one AttendTask; the kernels read each key and value once for all of them.
inline constexpr std::uint32_t kAttendRows = 8;

struct Kernels {
    const char* name;

    Matmul matmul_q4_0;
    Matmul matmul_q8_0;
    Matmul matmul_f16;

    // y += x, n floats (a multiple of 16).
    void (*add)(float* y, const float* x, std::size_t n);

    // x.values and the quantised blocks of `token` = RMSNorm of hidden_states (x.blocks * 32 floats).
    void (*rms_norm)(const float* hidden_states, const float* weight, float eps, const Activations& x,
                     std::uint32_t token);

    // Quantise the blocks of `token` from x.values.
    void (*quantise)(const Activations& x, std::uint32_t token);

    // gate = silu(gate) * up [* gain], n floats (a multiple of 16); gain may be null.
    void (*swiglu)(float* gate, const float* up, const float* gain, std::size_t n);

    // Rotate the pairs (x[i], x[i + half]).
    void (*rope)(float* x, const float* cosine, const float* sine, std::uint32_t half);

    // Write one position's key and value.
    void (*store_f16)(const HeadCache& cache, std::uint32_t position, const float* key, const float* value);
    void (*store_q8_0)(const HeadCache& cache, std::uint32_t position, const float* key, const float* value);

    void (*attend_f16)(const AttendTask& task);
    void (*attend_q8_0)(const AttendTask& task);
};

// One table for each instruction set that this build contains.
const Kernels& scalar_kernels();
const Kernels& avx2_kernels();
const Kernels& avx512vnni_kernels();
const Kernels& neon_kernels();
const Kernels& neon_i8mm_kernels();

}  // namespace mobillama
