// 16 lanes in four registers; `sdot` multiplies signed bytes, four columns a lane (Armv8.2 dot product).
#pragma once

#include <arm_neon.h>

#include "attention_impl.h"

namespace mobillama {
namespace {

struct Neon {
    struct F {
        float32x4_t part[4];
    };
    struct I {
        int32x4_t part[4];
    };
    struct Bytes {
        int8x16_t part[4];
    };

    static constexpr int kTokens = 4;
    static constexpr int kHalfTokens = 4;
    static constexpr int kQueryRows = 4;
    static constexpr int kScoreSums = 4;
    static constexpr int kWeighRows = 1;
    static constexpr int kByteBias = 0;

    template <class Result, class Function>
    static MOBILLAMA_INLINE Result each(Function function) {
        Result result;
        unroll<4>([&](auto i) MOBILLAMA_INLINE_LAMBDA { result.part[i] = function(i); });
        return result;
    }

    static MOBILLAMA_INLINE F set1(float x) {
        return each<F>([&](int) MOBILLAMA_INLINE_LAMBDA { return vdupq_n_f32(x); });
    }
    static MOBILLAMA_INLINE F zero() { return set1(0.0f); }
    static MOBILLAMA_INLINE F load(const float* p) {
        return each<F>([&](int i) MOBILLAMA_INLINE_LAMBDA { return vld1q_f32(p + i * 4); });
    }
    static MOBILLAMA_INLINE void store(float* p, F x) {
        for (int i = 0; i < 4; ++i) vst1q_f32(p + i * 4, x.part[i]);
    }
    static MOBILLAMA_INLINE F add(F a, F b) {
        return each<F>([&](int i) MOBILLAMA_INLINE_LAMBDA { return vaddq_f32(a.part[i], b.part[i]); });
    }
    static MOBILLAMA_INLINE F sub(F a, F b) {
        return each<F>([&](int i) MOBILLAMA_INLINE_LAMBDA { return vsubq_f32(a.part[i], b.part[i]); });
    }
    static MOBILLAMA_INLINE F mul(F a, F b) {
        return each<F>([&](int i) MOBILLAMA_INLINE_LAMBDA { return vmulq_f32(a.part[i], b.part[i]); });
    }
    static MOBILLAMA_INLINE F div(F a, F b) {
        return each<F>([&](int i) MOBILLAMA_INLINE_LAMBDA { return vdivq_f32(a.part[i], b.part[i]); });
    }
    static MOBILLAMA_INLINE F min(F a, F b) {
        return each<F>([&](int i) MOBILLAMA_INLINE_LAMBDA { return vminq_f32(a.part[i], b.part[i]); });
    }
    static MOBILLAMA_INLINE F max(F a, F b) {
        return each<F>([&](int i) MOBILLAMA_INLINE_LAMBDA { return vmaxq_f32(a.part[i], b.part[i]); });
    }
    static MOBILLAMA_INLINE F abs(F a) {
        return each<F>([&](int i) MOBILLAMA_INLINE_LAMBDA { return vabsq_f32(a.part[i]); });
    }
    static MOBILLAMA_INLINE F fma(F a, F b, F c) {
        return each<F>([&](int i) MOBILLAMA_INLINE_LAMBDA { return vfmaq_f32(c.part[i], a.part[i], b.part[i]); });
    }
    static MOBILLAMA_INLINE F round(F a) {
        return each<F>([&](int i) MOBILLAMA_INLINE_LAMBDA { return vrndnq_f32(a.part[i]); });
    }
    static MOBILLAMA_INLINE F scale_by_power_of_two(F a, F power) {
        return each<F>([&](int i) MOBILLAMA_INLINE_LAMBDA {
            const int32x4_t exponent = vshlq_n_s32(vcvtnq_s32_f32(power.part[i]), 23);
            return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a.part[i]), exponent));
        });
    }
    static MOBILLAMA_INLINE F zero_below(F value, F x, float limit) {
        return each<F>([&](int i) MOBILLAMA_INLINE_LAMBDA {
            const uint32x4_t keep = vcgeq_f32(x.part[i], vdupq_n_f32(limit));
            return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(value.part[i]), keep));
        });
    }
    static MOBILLAMA_INLINE float reduce_add(F a) {
        return vaddvq_f32(vaddq_f32(vaddq_f32(a.part[0], a.part[1]), vaddq_f32(a.part[2], a.part[3])));
    }
    static MOBILLAMA_INLINE float reduce_max(F a) {
        return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.part[0], a.part[1]), vmaxq_f32(a.part[2], a.part[3])));
    }

    static MOBILLAMA_INLINE F load_half(const std::uint16_t* p) {
        return each<F>([&](int i) MOBILLAMA_INLINE_LAMBDA {
            return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + i * 4)));
        });
    }
    static MOBILLAMA_INLINE void store_half(std::uint16_t* p, F x) {
        const F finite = min(max(x, set1(-65504.0f)), set1(65504.0f));
        for (int i = 0; i < 4; ++i) vst1_u16(p + i * 4, vreinterpret_u16_f16(vcvt_f16_f32(finite.part[i])));
    }

    static MOBILLAMA_INLINE I set1_int(std::int32_t x) {
        return each<I>([&](int) MOBILLAMA_INLINE_LAMBDA { return vdupq_n_s32(x); });
    }
    static MOBILLAMA_INLINE I add_int(I a, I b) {
        return each<I>([&](int i) MOBILLAMA_INLINE_LAMBDA { return vaddq_s32(a.part[i], b.part[i]); });
    }
    static MOBILLAMA_INLINE std::int32_t reduce_add(I a) {
        return vaddvq_s32(vaddq_s32(vaddq_s32(a.part[0], a.part[1]), vaddq_s32(a.part[2], a.part[3])));
    }
    static MOBILLAMA_INLINE I to_int(F a) {
        return each<I>([&](int i) MOBILLAMA_INLINE_LAMBDA { return vcvtnq_s32_f32(a.part[i]); });
    }
    static MOBILLAMA_INLINE F to_float(I a) {
        return each<F>([&](int i) MOBILLAMA_INLINE_LAMBDA { return vcvtq_f32_s32(a.part[i]); });
    }
    static MOBILLAMA_INLINE void store_int8(std::int8_t* p, I a) {
        const int16x8_t low = vcombine_s16(vmovn_s32(a.part[0]), vmovn_s32(a.part[1]));
        const int16x8_t high = vcombine_s16(vmovn_s32(a.part[2]), vmovn_s32(a.part[3]));
        vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
    }
    static MOBILLAMA_INLINE void store_split(std::int8_t* high, std::int8_t* low, I a) {
        store_int8(high, each<I>([&](int i) MOBILLAMA_INLINE_LAMBDA { return vshrq_n_s32(a.part[i], 7); }));
        store_int8(low, each<I>([&](int i) MOBILLAMA_INLINE_LAMBDA {
                       return vandq_s32(a.part[i], vdupq_n_s32(127));
                   }));
    }

    static MOBILLAMA_INLINE Bytes load_signed(const void* p) {
        const auto* bytes = static_cast<const std::int8_t*>(p);
        return each<Bytes>([&](int i) MOBILLAMA_INLINE_LAMBDA { return vld1q_s8(bytes + i * 16); });
    }
    static MOBILLAMA_INLINE Bytes load_bytes(const void* p) { return load_signed(p); }
    static MOBILLAMA_INLINE I dot4(I sum, Bytes bytes, std::int32_t x) {
        const int8x16_t quad = vreinterpretq_s8_s32(vdupq_n_s32(x));
        return each<I>([&](int i) MOBILLAMA_INLINE_LAMBDA {
            return vdotq_s32(sum.part[i], bytes.part[i], quad);
        });
    }
    static MOBILLAMA_INLINE I dot4_by_positive(I sum, Bytes bytes, std::int32_t x) { return dot4(sum, bytes, x); }

    // The activations stay in two registers a token; `sdot` picks a group of four out of them by its index.
    template <int N, class Consume>
    static MOBILLAMA_INLINE void dot_q4(const std::byte* w, const std::int8_t* x, const std::int32_t* offsets,
                                        Consume consume) {
        const auto* words = reinterpret_cast<const std::uint8_t*>(w);
        const uint8x16_t nibbles = vdupq_n_u8(15);
        I sums[N];
        int8x16_t low_x[N];
        int8x16_t high_x[N];
        unroll<N>([&](auto t) MOBILLAMA_INLINE_LAMBDA {
            sums[t] = set1_int(offsets[t]);
            low_x[t] = vld1q_s8(x + t * 32);
            high_x[t] = vld1q_s8(x + t * 32 + 16);
        });
        unroll<4>([&](auto i) MOBILLAMA_INLINE_LAMBDA {
            constexpr int kGroup = decltype(i)::value;
            unroll<4>([&](auto rows) MOBILLAMA_INLINE_LAMBDA {
                const uint8x16_t word = vld1q_u8(words + kGroup * 64 + rows * 16);
                const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(word, nibbles));
                const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(word, 4));
                unroll<N>([&](auto t) MOBILLAMA_INLINE_LAMBDA {
                    int32x4_t& sum = sums[t].part[rows];
                    sum = vdotq_laneq_s32(sum, low, low_x[t], kGroup);
                    sum = vdotq_laneq_s32(sum, high, high_x[t], kGroup);
                });
            });
        });
        unroll<N>([&](auto t) MOBILLAMA_INLINE_LAMBDA { consume(t, sums[t]); });
    }
};

}  // namespace
}  // namespace mobillama
