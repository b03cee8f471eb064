// NEON with the matrix product of Armv8.6 (i8mm): `smmla` multiplies two rows by two tokens, eight columns at a
// time, so that many tokens take half the instructions. A single token stays with the dot product.
#include "isa_neon.h"

namespace mobillama {
namespace {

struct NeonI8mm : Neon {
    // Eight columns of two tokens: what `smmla` takes.
    static MOBILLAMA_INLINE int8x16_t token_pair(const std::int8_t* x) {
        return vcombine_s8(vld1_s8(x), vld1_s8(x + 32));
    }

    // For every pair of tokens the sums of 16 rows, two rows by two tokens a register.
    template <int N>
    struct Sums {
        int32x4_t pairs[N / 2][8];
    };

    // Add eight columns of four rows: `left` holds the first four columns, `right` the other four.
    template <int N>
    static MOBILLAMA_INLINE void add_columns(Sums<N>& sums, int quad, int8x16_t left, int8x16_t right,
                                             const int8x16_t* x) {
        const int32x4_t a = vreinterpretq_s32_s8(left);
        const int32x4_t b = vreinterpretq_s32_s8(right);
        const int8x16_t first_rows = vreinterpretq_s8_s32(vzip1q_s32(a, b));
        const int8x16_t last_rows = vreinterpretq_s8_s32(vzip2q_s32(a, b));
        unroll<N / 2>([&](auto t) MOBILLAMA_INLINE_LAMBDA {
            int32x4_t* of_pair = sums.pairs[t] + 2 * quad;
            of_pair[0] = vmmlaq_s32(of_pair[0], first_rows, x[t]);
            of_pair[1] = vmmlaq_s32(of_pair[1], last_rows, x[t]);
        });
    }

    template <int N, class Consume>
    static MOBILLAMA_INLINE void hand_on(const Sums<N>& sums, const std::int32_t* offsets, Consume consume) {
        unroll<N>([&](auto t) MOBILLAMA_INLINE_LAMBDA {
            const int32x4_t* of_pair = sums.pairs[t / 2];
            const int32x4_t offset = vdupq_n_s32(offsets[t]);
            consume(t, each<I>([&](int quad) MOBILLAMA_INLINE_LAMBDA {
                const int32x4_t a = of_pair[2 * quad];
                const int32x4_t b = of_pair[2 * quad + 1];
                return vaddq_s32(offset, t % 2 == 0 ? vuzp1q_s32(a, b) : vuzp2q_s32(a, b));
            }));
        });
    }

    template <int N, class Consume>
    static MOBILLAMA_INLINE void dot_q4(const std::byte* w, const std::int8_t* x, const std::int32_t* offsets,
                                        Consume consume) {
        if constexpr (N == 1) {
            Neon::dot_q4<N>(w, x, offsets, consume);
        } else {
            const auto* words = reinterpret_cast<const std::uint8_t*>(w);
            const uint8x16_t nibbles = vdupq_n_u8(15);
            Sums<N> sums{};
            unroll<2>([&](auto group) MOBILLAMA_INLINE_LAMBDA {
                int8x16_t low_x[N / 2];
                int8x16_t high_x[N / 2];
                unroll<N / 2>([&](auto t) MOBILLAMA_INLINE_LAMBDA {
                    low_x[t] = token_pair(x + t * 64 + group * 8);
                    high_x[t] = token_pair(x + t * 64 + group * 8 + 16);
                });
                unroll<4>([&](auto quad) MOBILLAMA_INLINE_LAMBDA {
                    const uint8x16_t left = vld1q_u8(words + group * 128 + quad * 16);
                    const uint8x16_t right = vld1q_u8(words + group * 128 + 64 + quad * 16);
                    add_columns<N>(sums, quad, vreinterpretq_s8_u8(vandq_u8(left, nibbles)),
                                   vreinterpretq_s8_u8(vandq_u8(right, nibbles)), low_x);
                    add_columns<N>(sums, quad, vreinterpretq_s8_u8(vshrq_n_u8(left, 4)),
                                   vreinterpretq_s8_u8(vshrq_n_u8(right, 4)), high_x);
                });
            });
            hand_on<N>(sums, offsets, consume);
        }
    }
};

// Q8 for the matrix product.
struct MatrixQ8 {
    static constexpr std::size_t kBlockBytes = Q8<NeonI8mm>::kBlockBytes;

    template <int N, class Consume>
    static MOBILLAMA_INLINE void dot(const std::byte* w, const std::int8_t* x, const std::int32_t* offsets,
                                     Consume consume) {
        if constexpr (N == 1) {
            Q8<NeonI8mm>::dot<N>(w, x, offsets, consume);
        } else {
            constexpr std::int32_t kNoOffsets[N] = {};  // they make up for a bias that these weights have not
            const auto* words = reinterpret_cast<const std::int8_t*>(w);
            NeonI8mm::Sums<N> sums{};
            unroll<4>([&](auto group) MOBILLAMA_INLINE_LAMBDA {
                int8x16_t pairs[N / 2];
                unroll<N / 2>([&](auto t) MOBILLAMA_INLINE_LAMBDA {
                    pairs[t] = NeonI8mm::token_pair(x + t * 64 + group * 8);
                });
                unroll<4>([&](auto quad) MOBILLAMA_INLINE_LAMBDA {
                    NeonI8mm::add_columns<N>(sums, quad, vld1q_s8(words + group * 128 + quad * 16),
                                             vld1q_s8(words + group * 128 + 64 + quad * 16), pairs);
                });
            });
            NeonI8mm::hand_on<N>(sums, kNoOffsets, consume);
        }
    }
};

}  // namespace

const Kernels& neon_i8mm_kernels() {
    static const Kernels kernels = make_kernels<NeonI8mm, MatrixQ8>("neon-i8mm");
    return kernels;
}

}  // namespace mobillama
