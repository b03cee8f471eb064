// Attention of a few query rows over one KV head, written once over 16-lane operations. Positions are taken a
// chunk at a time with an online softmax, so the scratch is small and the result does not depend on who else is
// in the batch.
#pragma once

#include <cmath>
#include <cstring>

#include "elementwise_impl.h"

namespace mobillama {
namespace {

constexpr float kMasked = -1e30f;
constexpr std::uint32_t kMaxHeadDim = 256;

// The scores, then probabilities, of a block of rows over one chunk.
template <int R>
struct ChunkRows {
    alignas(64) float rows[R][kChunkPositions];
};

// Run body(panel width as a constant, first element) over `head_dim` in panels of 4 vectors, then of 1.
template <class Body>
MOBILLAMA_INLINE void in_panels(std::uint32_t head_dim, Body body) {
    std::uint32_t first = 0;
    for (; first + 64 <= head_dim; first += 64) body(std::integral_constant<int, 4>{}, first);
    for (; first < head_dim; first += 16) body(std::integral_constant<int, 1>{}, first);
}

// ---- KV cache in f16 ----------------------------------------------------------------------------------------

template <class S>
struct HalfCache {
    template <int R>
    struct Queries {
        alignas(64) float transposed[kMaxHeadDim * R];  // (head_dim, R)
    };

    template <int R>
    static void prepare(const float* queries, std::uint32_t head_dim, Queries<R>& q) {
        for (std::uint32_t d = 0; d < head_dim; ++d) {
            for (int r = 0; r < R; ++r) q.transposed[d * R + r] = queries[r * head_dim + d];
        }
    }

    // Kept in flight at once: few rows need several tiles, or each addition would wait for the one before.
    template <int R, int kTiles>
    static void score_tiles(const std::uint16_t* keys, const std::uint16_t* values, std::uint32_t head_dim,
                            const float* q, std::uint32_t tile, ChunkRows<R>& scores) {
        const std::size_t tile_size = std::size_t(head_dim) * 16;
        keys += tile * tile_size;
        values += tile * tile_size;
        typename S::F sums[R * kTiles];
        unroll<R * kTiles>([&](auto i) MOBILLAMA_INLINE_LAMBDA { sums[i] = S::zero(); });
        for (std::uint32_t d = 0; d < head_dim; ++d) {
            unroll<kTiles>([&](auto k) MOBILLAMA_INLINE_LAMBDA {
                const auto key = S::load_half(keys + k * tile_size + d * 16);
                if (d % 2 == 0) prefetch(values + k * tile_size + d * 16);
                unroll<R>([&](auto r) MOBILLAMA_INLINE_LAMBDA {
                    sums[r * kTiles + k] = S::fma(key, S::set1(q[d * R + r]), sums[r * kTiles + k]);
                });
            });
        }
        unroll<R>([&](auto r) MOBILLAMA_INLINE_LAMBDA {
            unroll<kTiles>([&](auto k) MOBILLAMA_INLINE_LAMBDA {
                S::store(scores.rows[r] + (tile + k) * 16, sums[r * kTiles + k]);
            });
        });
    }

    template <int R>
    static void score(const HeadCache& cache, const std::byte* chunk, std::uint32_t tiles, const Queries<R>& q,
                      ChunkRows<R>& scores) {
        constexpr int kTiles = R >= S::kScoreSums ? 1 : S::kScoreSums / R;
        const auto* keys = reinterpret_cast<const std::uint16_t*>(chunk + cache.keys);
        const auto* values = reinterpret_cast<const std::uint16_t*>(chunk + cache.values);
        std::uint32_t tile = 0;
        for (; tile + kTiles <= tiles; tile += kTiles) {
            score_tiles<R, kTiles>(keys, values, cache.head_dim, q.transposed, tile, scores);
        }
        for (; tile < tiles; ++tile) score_tiles<R, 1>(keys, values, cache.head_dim, q.transposed, tile, scores);
    }

    template <int R, int kFirst, int kRows>
    static void weigh_rows(const std::uint16_t* values, const std::uint16_t* next_keys, std::uint32_t head_dim,
                           std::uint32_t positions, const ChunkRows<R>& probabilities, float* out) {
        in_panels(head_dim, [&](auto width, std::uint32_t d) MOBILLAMA_INLINE_LAMBDA {
            constexpr int kWidth = decltype(width)::value;
            typename S::F sums[kRows * kWidth];
            unroll<kRows * kWidth>([&](auto i) MOBILLAMA_INLINE_LAMBDA {
                sums[i] = S::load(out + (kFirst + i / kWidth) * head_dim + d + i % kWidth * 16);
            });
            for (std::uint32_t position = 0; position < positions; ++position) {
                typename S::F value[kWidth];
                const std::size_t at = std::size_t(position) * head_dim + d;
                unroll<kWidth>([&](auto j) MOBILLAMA_INLINE_LAMBDA {
                    value[j] = S::load_half(values + at + j * 16);
                    if (kFirst == 0 && j % 2 == 0) prefetch(next_keys + at + j * 16);
                });
                unroll<kRows>([&](auto r) MOBILLAMA_INLINE_LAMBDA {
                    const auto p = S::set1(probabilities.rows[kFirst + r][position]);
                    unroll<kWidth>([&](auto j) MOBILLAMA_INLINE_LAMBDA {
                        sums[r * kWidth + j] = S::fma(value[j], p, sums[r * kWidth + j]);
                    });
                });
            }
            unroll<kRows * kWidth>([&](auto i) MOBILLAMA_INLINE_LAMBDA {
                S::store(out + (kFirst + i / kWidth) * head_dim + d + i % kWidth * 16, sums[i]);
            });
        });
    }

    template <int R>
    static void weigh(const HeadCache& cache, const std::byte* chunk, const std::byte* next_keys,
                      std::uint32_t positions, const ChunkRows<R>& probabilities, float* out) {
        constexpr int kRows = R < S::kWeighRows ? R : S::kWeighRows;
        const auto* values = reinterpret_cast<const std::uint16_t*>(chunk + cache.values);
        const auto* next = reinterpret_cast<const std::uint16_t*>(next_keys);
        unroll<R / kRows>([&](auto part) {
            weigh_rows<R, part * kRows, kRows>(values, next, cache.head_dim, positions, probabilities, out);
        });
    }
};

// ---- KV cache in 8 bits, one scale for each key and each value -----------------------------------------------

template <class S>
MOBILLAMA_INLINE void quantise_head(const float* x, std::uint32_t n, std::int8_t* quants, float* scale) {
    auto magnitude = S::zero();
    for (std::uint32_t i = 0; i < n; i += 16) magnitude = S::max(magnitude, S::abs(S::load(x + i)));
    const float largest = S::reduce_max(magnitude);
    const bool nonzero = largest > kLeastMagnitude;
    const auto factor = S::set1(nonzero ? 127.0f / largest : 0.0f);
    for (std::uint32_t i = 0; i < n; i += 16) S::store_int8(quants + i, S::to_int(S::mul(S::load(x + i), factor)));
    *scale = nonzero ? largest / 127.0f : 0.0f;
}

template <class S>
struct ByteCache {
    template <int R>
    struct Queries {
        alignas(64) std::int8_t quants[kMaxHeadDim * R];  // (head_dim / 4, R, 4)
        float scales[R];
        std::int32_t offsets[R];  // what the bias of S::load_bytes adds to each dot product, negated
    };

    template <int R>
    static void prepare(const float* queries, std::uint32_t head_dim, Queries<R>& q) {
        for (int r = 0; r < R; ++r) {
            alignas(64) std::int8_t row[kMaxHeadDim];
            quantise_head<S>(queries + r * head_dim, head_dim, row, &q.scales[r]);
            std::int32_t sum = 0;
            for (std::uint32_t d = 0; d < head_dim; ++d) sum += row[d];
            q.offsets[r] = -S::kByteBias * sum;
            for (std::uint32_t d = 0; d < head_dim; d += 4) std::memcpy(q.quants + (d * R + r * 4), row + d, 4);
        }
    }

    template <int R, int kTiles>
    static void score_tiles(const HeadCache& cache, const std::byte* chunk, const Queries<R>& q, std::uint32_t tile,
                            ChunkRows<R>& scores) {
        const std::uint32_t head_dim = cache.head_dim;
        const std::size_t tile_size = std::size_t(head_dim) * 16;
        const std::byte* keys = chunk + cache.keys + tile * tile_size;
        const std::byte* values = chunk + cache.values + tile * tile_size;
        const auto* key_scales = reinterpret_cast<const float*>(chunk + cache.key_scales);
        const auto* value_scales = reinterpret_cast<const float*>(chunk + cache.value_scales);
        typename S::I sums[R * kTiles];
        unroll<R * kTiles>([&](auto i) MOBILLAMA_INLINE_LAMBDA { sums[i] = S::set1_int(q.offsets[i / kTiles]); });
        for (std::uint32_t d = 0; d < head_dim; d += 4) {
            unroll<kTiles>([&](auto k) MOBILLAMA_INLINE_LAMBDA {
                const auto key = S::load_bytes(keys + k * tile_size + d * 16);
                prefetch(values + k * tile_size + d * 16);
                unroll<R>([&](auto r) MOBILLAMA_INLINE_LAMBDA {
                    auto& sum = sums[r * kTiles + k];
                    sum = S::dot4(sum, key, load_word(q.quants + d * R + r * 4));
                });
            });
        }
        unroll<kTiles>([&](auto k) MOBILLAMA_INLINE_LAMBDA {
            const auto key_scale = S::load(key_scales + (tile + k) * 16);
            prefetch(value_scales + (tile + k) * 16);
            unroll<R>([&](auto r) MOBILLAMA_INLINE_LAMBDA {
                const auto scale = S::mul(key_scale, S::set1(q.scales[r]));
                S::store(scores.rows[r] + (tile + k) * 16, S::mul(S::to_float(sums[r * kTiles + k]), scale));
            });
        });
    }

    template <int R>
    static void score(const HeadCache& cache, const std::byte* chunk, std::uint32_t tiles, const Queries<R>& q,
                      ChunkRows<R>& scores) {
        constexpr int kTiles = R >= S::kScoreSums ? 1 : S::kScoreSums / R;
        std::uint32_t tile = 0;
        for (; tile + kTiles <= tiles; tile += kTiles) score_tiles<R, kTiles>(cache, chunk, q, tile, scores);
        for (; tile < tiles; ++tile) score_tiles<R, 1>(cache, chunk, q, tile, scores);
    }

    // Probabilities times value scales, as whole numbers of 14 bits in two bytes of 7: what integer dot products
    // of every instruction set take without overflow, and finer than the values' own rounding.
    template <int R>
    struct Weights {
        alignas(64) std::int8_t high[R][kChunkPositions];
        alignas(64) std::int8_t low[R][kChunkPositions];
        float scales[R];
    };

    static void split(const float* probabilities, const float* value_scales, std::uint32_t padded,
                      std::int8_t* high, std::int8_t* low, float* scale) {
        constexpr float kMost = 127.0f * 128.0f + 127.0f;
        auto magnitude = S::zero();
        for (std::uint32_t i = 0; i < padded; i += 16) {
            magnitude = S::max(magnitude, S::mul(S::load(probabilities + i), S::load(value_scales + i)));
        }
        const float largest = S::reduce_max(magnitude);
        const bool nonzero = largest > kLeastMagnitude;
        const auto factor = S::set1(nonzero ? kMost / largest : 0.0f);
        for (std::uint32_t i = 0; i < padded; i += 16) {
            const auto weight = S::mul(S::load(probabilities + i), S::load(value_scales + i));
            S::store_split(high + i, low + i, S::to_int(S::mul(weight, factor)));
        }
        *scale = nonzero ? largest / kMost : 0.0f;
    }

    template <int R, int kFirst, int kRows>
    static void weigh_rows(const std::byte* values, const std::byte* next_keys, std::uint32_t head_dim,
                           std::uint32_t padded, const Weights<R>& weights, float* out) {
        in_panels(head_dim, [&](auto width, std::uint32_t d) MOBILLAMA_INLINE_LAMBDA {
            constexpr int kWidth = decltype(width)::value;
            typename S::I high[kRows * kWidth];
            typename S::I low[kRows * kWidth];
            unroll<kRows * kWidth>([&](auto i) MOBILLAMA_INLINE_LAMBDA { high[i] = low[i] = S::set1_int(0); });
            for (std::uint32_t position = 0; position < padded; position += 4) {
                typename S::Bytes value[kWidth];
                const std::size_t at = std::size_t(position) * head_dim + d * 4;
                unroll<kWidth>([&](auto j) MOBILLAMA_INLINE_LAMBDA {
                    value[j] = S::load_signed(values + at + j * 64);
                    if (kFirst == 0) prefetch(next_keys + at + j * 64);
                });
                unroll<kRows>([&](auto r) MOBILLAMA_INLINE_LAMBDA {
                    const std::int32_t h = load_word(weights.high[kFirst + r] + position);
                    const std::int32_t l = load_word(weights.low[kFirst + r] + position);
                    unroll<kWidth>([&](auto j) MOBILLAMA_INLINE_LAMBDA {
                        const int sum = r * kWidth + j;
                        high[sum] = S::dot4_by_positive(high[sum], value[j], h);
                        low[sum] = S::dot4_by_positive(low[sum], value[j], l);
                    });
                });
            }
            unroll<kRows * kWidth>([&](auto i) MOBILLAMA_INLINE_LAMBDA {
                float* target = out + (kFirst + i / kWidth) * head_dim + d + i % kWidth * 16;
                const auto sum = S::fma(S::to_float(high[i]), S::set1(128.0f), S::to_float(low[i]));
                S::store(target, S::fma(sum, S::set1(weights.scales[kFirst + i / kWidth]), S::load(target)));
            });
        });
    }

    template <int R>
    static void weigh(const HeadCache& cache, const std::byte* chunk, const std::byte* next_keys,
                      std::uint32_t positions, const ChunkRows<R>& probabilities, float* out) {
        constexpr int kRows = R < S::kWeighRows / 2 ? R : (S::kWeighRows / 2 > 0 ? S::kWeighRows / 2 : 1);
        const std::uint32_t padded = (positions + 15) / 16 * 16;
        const auto* value_scales = reinterpret_cast<const float*>(chunk + cache.value_scales);
        const std::byte* next_scales = next_keys + (cache.key_scales - cache.keys);
        for (std::size_t line = 0; line < padded * sizeof(float); line += 64) prefetch(next_scales + line);
        Weights<R> weights;
        for (int r = 0; r < R; ++r) {
            split(probabilities.rows[r], value_scales, padded, weights.high[r], weights.low[r], &weights.scales[r]);
        }
        unroll<R / kRows>([&](auto part) {
            weigh_rows<R, part * kRows, kRows>(chunk + cache.values, next_keys, cache.head_dim, padded, weights, out);
        });
    }
};

// ---- What both have in common -----------------------------------------------------------------------------------

// Turns a row's scores into e^(score - largest) and folds its sum and its output so far into the new scale.
// Lanes from `visible` up to `padded` become 0.
template <class S>
void softmax_step(float* scores, std::uint32_t visible, std::uint32_t padded, float* largest, float* total,
                  float* out, std::uint32_t head_dim) {
    for (std::uint32_t i = visible; i < padded; ++i) scores[i] = kMasked;
    if (visible == 0) {
        for (std::uint32_t i = 0; i < padded; ++i) scores[i] = 0.0f;
        return;
    }
    auto most = S::set1(*largest);
    for (std::uint32_t i = 0; i < padded; i += 16) most = S::max(most, S::load(scores + i));
    const float new_largest = S::reduce_max(most);
    auto sum = S::zero();
    for (std::uint32_t i = 0; i < padded; i += 16) {
        const auto e = exponential<S>(S::sub(S::load(scores + i), S::set1(new_largest)));
        sum = S::add(sum, e);
        S::store(scores + i, e);
    }
    const auto shrink = exponential<S>(S::set1(*largest - new_largest));
    alignas(64) float factor[16];
    S::store(factor, shrink);
    *total = *total * factor[0] + S::reduce_add(sum);
    *largest = new_largest;
    for (std::uint32_t d = 0; d < head_dim; d += 16) S::store(out + d, S::mul(S::load(out + d), shrink));
}

// While it reads a chunk's keys it fetches the chunk's values, and while it reads those the next chunk's keys.
template <class S, class Cache, int R>
void attend_rows(const HeadCache& cache, const std::byte* keys_after, const float* queries,
                 const std::uint32_t* limits, float* out) {
    typename Cache::template Queries<R> q;
    Cache::template prepare<R>(queries, cache.head_dim, q);
    std::uint32_t most = 0;
    for (int r = 0; r < R; ++r) most = limits[r] > most ? limits[r] : most;
    float largest[R];
    float total[R];
    for (int r = 0; r < R; ++r) {
        largest[r] = kMasked;
        total[r] = 0.0f;
    }
    std::memset(out, 0, R * cache.head_dim * sizeof(float));
    ChunkRows<R> scores;
    for (std::uint32_t first = 0; first < most; first += kChunkPositions) {
        const std::byte* chunk = cache.chunks[first / kChunkPositions];
        const std::uint32_t positions = most - first < kChunkPositions ? most - first : kChunkPositions;
        const std::uint32_t tiles = (positions + 15) / 16;
        Cache::template score<R>(cache, chunk, tiles, q, scores);
        for (int r = 0; r < R; ++r) {
            const std::uint32_t seen = limits[r] > first ? limits[r] - first : 0;
            softmax_step<S>(scores.rows[r], seen < positions ? seen : positions, tiles * 16, &largest[r], &total[r],
                            out + r * cache.head_dim, cache.head_dim);
        }
        const bool last = first + positions == most;
        const std::byte* next_keys = last ? keys_after : cache.chunks[first / kChunkPositions + 1] + cache.keys;
        Cache::template weigh<R>(cache, chunk, next_keys, positions, scores, out);
    }
    for (int r = 0; r < R; ++r) {
        const auto inverse = S::set1(1.0f / total[r]);
        float* row = out + r * cache.head_dim;
        for (std::uint32_t d = 0; d < cache.head_dim; d += 16) S::store(row + d, S::mul(S::load(row + d), inverse));
    }
}

template <class S, class Cache>
void attend(const AttendTask& task) {
    in_passes<S::kQueryRows>(task.rows, [&](auto n, std::uint32_t row) {
        const std::size_t at = std::size_t(row) * task.cache.head_dim;
        attend_rows<S, Cache, decltype(n)::value>(task.cache, task.next_keys, task.queries + at, task.limits + row,
                                                  task.out + at);
    });
}

template <class S>
void store_f16(const HeadCache& cache, std::uint32_t position, const float* key, const float* value) {
    std::byte* chunk = cache.chunks[position / kChunkPositions];
    const std::uint32_t slot = position % kChunkPositions;
    const std::size_t n = cache.head_dim;
    auto* keys = reinterpret_cast<std::uint16_t*>(chunk + cache.keys) + slot / 16 * 16 * n + slot % 16;
    auto* values = reinterpret_cast<std::uint16_t*>(chunk + cache.values) + slot * n;
    alignas(64) std::uint16_t halves[kMaxHeadDim];
    for (std::size_t d = 0; d < n; d += 16) {
        S::store_half(halves + d, S::load(key + d));
        S::store_half(values + d, S::load(value + d));
    }
    for (std::size_t d = 0; d < n; ++d) keys[d * 16] = halves[d];
}

template <class S>
void store_q8_0(const HeadCache& cache, std::uint32_t position, const float* key, const float* value) {
    std::byte* chunk = cache.chunks[position / kChunkPositions];
    const std::uint32_t slot = position % kChunkPositions;
    const std::uint32_t n = cache.head_dim;
    alignas(64) std::int8_t quants[kMaxHeadDim];
    quantise_head<S>(key, n, quants, reinterpret_cast<float*>(chunk + cache.key_scales) + slot);
    std::byte* keys = chunk + cache.keys + slot / 16 * 16 * n + slot % 16 * 4;
    for (std::uint32_t d = 0; d < n; d += 4) std::memcpy(keys + d * 16, quants + d, 4);
    quantise_head<S>(value, n, quants, reinterpret_cast<float*>(chunk + cache.value_scales) + slot);
    std::byte* values = chunk + cache.values + slot / 4 * 4 * n + slot % 4;
    for (std::uint32_t d = 0; d < n; ++d) std::memcpy(values + d * 4, quants + d, 1);
}

template <class S, class Q8Blocks = Q8<S>>
Kernels make_kernels(const char* name) {
    return {.name = name,
            .matmul_q4_0 = matmul_blocks<S, Q4<S>>,
            .matmul_q8_0 = matmul_blocks<S, Q8Blocks>,
            .matmul_f16 = matmul_half<S>,
            .add = add<S>,
            .rms_norm = rms_norm<S>,
            .quantise = quantise<S>,
            .swiglu = swiglu<S>,
            .rope = rope<S>,
            .store_f16 = store_f16<S>,
            .store_q8_0 = store_q8_0<S>,
            .attend_f16 = attend<S, HalfCache<S>>,
            .attend_q8_0 = attend<S, ByteCache<S>>};
}

}  // namespace
}  // namespace mobillama
