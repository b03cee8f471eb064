// Matrix times activations, written once over an instruction set's 16-lane operations (`isa_*.h`).
#pragma once

#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels.h"

#if defined(__GNUC__)
#define MOBILLAMA_INLINE inline __attribute__((always_inline))
#define MOBILLAMA_INLINE_LAMBDA __attribute__((always_inline))
#else
#define MOBILLAMA_INLINE inline
#define MOBILLAMA_INLINE_LAMBDA
#endif

// Everything below is compiled once per instruction set with that set's flags. The anonymous namespace keeps
// the linker from merging those copies.
namespace mobillama {
namespace {

// body(0), body(1), ... body(N - 1) with constant indices, so that arrays of vectors stay in registers.
template <int N, class Body>
MOBILLAMA_INLINE void unroll(Body body) {
    [&]<int... index>(std::integer_sequence<int, index...>) MOBILLAMA_INLINE_LAMBDA {
        (body(std::integral_constant<int, index>{}), ...);
    }(std::make_integer_sequence<int, N>{});
}

MOBILLAMA_INLINE std::int32_t load_word(const void* address) {
    std::int32_t word;
    std::memcpy(&word, address, sizeof word);
    return word;
}

// Fetch a line of memory into the second-level cache.
MOBILLAMA_INLINE void prefetch(const void* address) {
#if defined(__GNUC__)
    __builtin_prefetch(address, 0, 2);
#else
    (void)address;
#endif
}

// The same for a line that is read once: on x86 it then leaves the second-level cache without taking a place in the
// last-level one, which belongs to the shared FFN.
MOBILLAMA_INLINE void prefetch_once(const void* address) {
#if defined(__GNUC__) && defined(__x86_64__)
    __builtin_prefetch(address, 0, 0);
#else
    prefetch(address);
#endif
}

// How far ahead of the sums weights are fetched. Processors' own prefetchers stop at each page of 4 KiB.
constexpr std::size_t kFetchAhead = 20480;

// Block formats: the bytes of a block in a tile, and the 16 integer dot products of a block with N tokens,
// each handed to consume(token, dot) as soon as it is there.
template <class S>
struct Q4 {
    static constexpr std::size_t kBlockBytes = 256;
    template <int N, class Consume>
    static MOBILLAMA_INLINE void dot(const std::byte* w, const std::int8_t* x, const std::int32_t* offsets,
                                     Consume consume) {
        S::template dot_q4<N>(w, x, offsets, consume);
    }
};

template <class S>
struct Q8 {
    static constexpr std::size_t kBlockBytes = 512;
    template <int N, class Consume>
    static MOBILLAMA_INLINE void dot(const std::byte* w, const std::int8_t* x, const std::int32_t* offsets,
                                     Consume consume) {
        typename S::Bytes words[8];
        unroll<8>([&](auto i) MOBILLAMA_INLINE_LAMBDA { words[i] = S::load_bytes(w + i * 64); });
        unroll<N>([&](auto t) MOBILLAMA_INLINE_LAMBDA {
            auto sum = S::set1_int(offsets[t] * (S::kByteBias / 8));
            unroll<8>([&](auto i) MOBILLAMA_INLINE_LAMBDA {
                sum = S::dot4(sum, words[i], load_word(x + t * 32 + i * 4));
            });
            consume(t, sum);
        });
    }
};

// Write a tile's results for one token; the padding of a last tile stays unwritten.
template <class S>
MOBILLAMA_INLINE void store_rows(float* y, typename S::F sum, std::uint32_t rows) {
    if (rows >= kTileRows) {
        S::store(y, sum);
        return;
    }
    alignas(64) float lanes[kTileRows];
    S::store(lanes, sum);
    std::memcpy(y, lanes, rows * sizeof(float));
}

// One tile times N tokens whose blocks begin at `first`. Of `next`, when given, one line is fetched per block.
template <class S, class Format, int N, bool kReused>
void block_tile(const std::byte* tile, std::uint32_t blocks, const std::byte* next, const Activations& x,
                std::size_t first, float* y, std::size_t y_stride, std::uint32_t rows) {
    constexpr std::size_t kScaleBytes = kTileRows * sizeof(std::uint16_t);
    typename S::F sums[N];
    unroll<N>([&](auto t) MOBILLAMA_INLINE_LAMBDA { sums[t] = S::zero(); });
    const std::byte* w = tile;
    const std::byte* ahead = tile + kFetchAhead;
    const auto* w_scales = reinterpret_cast<const std::uint16_t*>(tile + blocks * Format::kBlockBytes);
    const std::int8_t* quants = x.quants + first * 32;
    const float* scales = x.scales + first;
    const std::int32_t* offsets = x.offsets + first;
    for (std::uint32_t block = 0; block < blocks; ++block) {
        for (std::size_t line = 0; line < Format::kBlockBytes + kScaleBytes; line += 64) {
            if constexpr (kReused) {
                prefetch(ahead + line);
            } else {
                prefetch_once(ahead + line);
            }
        }
        ahead += Format::kBlockBytes + kScaleBytes;
        if (next != nullptr) prefetch(next + block * 64);
        const auto w_scale = S::load_half(w_scales);
        Format::template dot<N>(w, quants, offsets, [&](auto t, auto dot) MOBILLAMA_INLINE_LAMBDA {
            sums[t] = S::fma(S::to_float(dot), S::mul(w_scale, S::set1(scales[t])), sums[t]);
        });
        w += Format::kBlockBytes;
        w_scales += kTileRows;
        quants += x.group * 32;
        scales += x.group;
        offsets += x.group;
    }
    unroll<N>([&](auto t) MOBILLAMA_INLINE_LAMBDA {
        store_rows<S>(y + t * y_stride, sums[t], rows);
    });
}

// kTiles tiles times N tokens. One token takes several tiles at once: a single chain of additions would wait for
// itself, and splitting it would make the sums depend on the number of tokens.
template <class S, int N, int kTiles>
void half_tiles(const TileRun& w, std::uint32_t row, const Activations& x, std::uint32_t token, float* y,
                std::size_t y_stride) {
    const auto* tile = reinterpret_cast<const std::uint16_t*>(w.data + row / kTileRows * w.tile_bytes);
    const std::size_t tile_stride = w.tile_bytes / sizeof(std::uint16_t);
    const float* values[N];
    for (int t = 0; t < N; ++t) values[t] = x.values + (token + t) * x.stride;
    typename S::F sums[N * kTiles];
    unroll<N * kTiles>([&](auto i) MOBILLAMA_INLINE_LAMBDA { sums[i] = S::zero(); });
    for (std::uint32_t column = 0; column < w.columns; ++column) {
        unroll<kTiles>([&](auto k) MOBILLAMA_INLINE_LAMBDA {
            const auto lanes = S::load_half(tile + k * tile_stride + column * kTileRows);
            unroll<N>([&](auto t) MOBILLAMA_INLINE_LAMBDA {
                sums[t * kTiles + k] = S::fma(lanes, S::set1(values[t][column]), sums[t * kTiles + k]);
            });
        });
    }
    unroll<N>([&](auto t) MOBILLAMA_INLINE_LAMBDA {
        unroll<kTiles>([&](auto k) MOBILLAMA_INLINE_LAMBDA {
            const std::uint32_t first = row + k * kTileRows;
            store_rows<S>(y + (token + t) * y_stride + first, sums[t * kTiles + k], w.rows - first);
        });
    });
}

// Cover `tokens` tokens with passes of N = kMax, kMax / 2, ... 1 at a time.
template <int kMax, class Pass>
MOBILLAMA_INLINE void in_passes(std::uint32_t tokens, Pass pass) {
    std::uint32_t token = 0;
    for (; tokens - token >= std::uint32_t(kMax); token += kMax) pass(std::integral_constant<int, kMax>{}, token);
    if constexpr (kMax > 1) {
        in_passes<kMax / 2>(tokens - token, [&](auto n, std::uint32_t t) { pass(n, token + t); });
    }
}

template <class S, class Format>
void matmul_blocks(const TileRun& w, const Activations& x, std::uint32_t tokens, float* y, std::size_t y_stride) {
    const std::uint32_t blocks = w.columns / 32;
    const std::byte* next = tokens == 1 ? w.next : nullptr;
    for (std::uint32_t row = 0; row < w.rows; row += kTileRows) {
        const std::byte* tile = w.data + row / kTileRows * w.tile_bytes;
        for (std::uint32_t start = 0; start < tokens; start += x.group) {
            const std::uint32_t in_group = tokens - start < x.group ? tokens - start : x.group;
            in_passes<S::kTokens>(in_group, [&](auto n, std::uint32_t token) {
                constexpr int kTokens = decltype(n)::value;
                const auto multiply = w.reused ? block_tile<S, Format, kTokens, true>
                                               : block_tile<S, Format, kTokens, false>;
                multiply(tile, blocks, next, x, x.block_index(start + token, 0), y + (start + token) * y_stride + row,
                         y_stride, w.rows - row);
            });
        }
        if (next != nullptr) next += std::size_t(blocks) * 64;
    }
}

template <class S>
void matmul_half(const TileRun& w, const Activations& x, std::uint32_t tokens, float* y, std::size_t y_stride) {
    in_passes<S::kHalfTokens>(tokens, [&](auto n, std::uint32_t token) {
        constexpr int kTokens = decltype(n)::value;
        constexpr int kTiles = kTokens == 1 ? 4 : 1;
        std::uint32_t row = 0;
        for (; row + (kTiles - 1) * kTileRows < w.rows; row += kTiles * kTileRows) {
            half_tiles<S, kTokens, kTiles>(w, row, x, token, y, y_stride);
        }
        for (; row < w.rows; row += kTileRows) half_tiles<S, kTokens, 1>(w, row, x, token, y, y_stride);
    });
}

}  // namespace
}  // namespace mobillama
