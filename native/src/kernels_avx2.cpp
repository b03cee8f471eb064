// 16 lanes in two registers; `vpmaddubsw` multiplies unsigned bytes by signed ones into 16-bit pairs.
#include <immintrin.h>

#include "attention_impl.h"

namespace mobillama {
namespace {

struct Avx2 {
    struct F {
        __m256 low, high;
    };
    struct I {
        __m256i low, high;
    };
    using Bytes = I;

    static constexpr int kTokens = 4;  // 16 registers: more sums would live in memory
    static constexpr int kHalfTokens = 4;
    static constexpr int kQueryRows = 4;
    static constexpr int kScoreSums = 4;
    static constexpr int kWeighRows = 1;
    static constexpr int kByteBias = 0;

    static MOBILLAMA_INLINE F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
    static MOBILLAMA_INLINE F set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
    static MOBILLAMA_INLINE F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    static MOBILLAMA_INLINE void store(float* p, F x) {
        _mm256_storeu_ps(p, x.low);
        _mm256_storeu_ps(p + 8, x.high);
    }
    static MOBILLAMA_INLINE F add(F a, F b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
    static MOBILLAMA_INLINE F sub(F a, F b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
    static MOBILLAMA_INLINE F mul(F a, F b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
    static MOBILLAMA_INLINE F div(F a, F b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
    static MOBILLAMA_INLINE F min(F a, F b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
    static MOBILLAMA_INLINE F max(F a, F b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
    static MOBILLAMA_INLINE F abs(F a) {
        const __m256 sign = _mm256_set1_ps(-0.0f);
        return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
    }
    static MOBILLAMA_INLINE F fma(F a, F b, F c) {
        return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
    }
    static MOBILLAMA_INLINE F round(F a) {
        return {_mm256_round_ps(a.low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                _mm256_round_ps(a.high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
    }
    static MOBILLAMA_INLINE __m256 scale_half(__m256 a, __m256 power) {
        return _mm256_castsi256_ps(
            _mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_cvtps_epi32(power), 23)));
    }
    static MOBILLAMA_INLINE F scale_by_power_of_two(F a, F power) {
        return {scale_half(a.low, power.low), scale_half(a.high, power.high)};
    }
    static MOBILLAMA_INLINE F zero_below(F value, F x, float limit) {
        const __m256 least = _mm256_set1_ps(limit);
        return {_mm256_and_ps(value.low, _mm256_cmp_ps(x.low, least, _CMP_GE_OQ)),
                _mm256_and_ps(value.high, _mm256_cmp_ps(x.high, least, _CMP_GE_OQ))};
    }
    static MOBILLAMA_INLINE float reduce_add(F a) {
        const __m256 eight = _mm256_add_ps(a.low, a.high);
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
    static MOBILLAMA_INLINE float reduce_max(F a) {
        const __m256 eight = _mm256_max_ps(a.low, a.high);
        const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
    }

    static MOBILLAMA_INLINE F load_half(const std::uint16_t* p) {
        return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
                _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
    }
    static MOBILLAMA_INLINE void store_half(std::uint16_t* p, F x) {
        const F finite = min(max(x, set1(-65504.0f)), set1(65504.0f));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(finite.low, _MM_FROUND_TO_NEAREST_INT));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(finite.high, _MM_FROUND_TO_NEAREST_INT));
    }

    static MOBILLAMA_INLINE I set1_int(std::int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
    static MOBILLAMA_INLINE I add_int(I a, I b) {
        return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
    }
    static MOBILLAMA_INLINE std::int32_t reduce_add(I a) {
        const __m256i eight = _mm256_add_epi32(a.low, a.high);
        const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
        const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
        return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
    }
    static MOBILLAMA_INLINE I to_int(F a) { return {_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)}; }
    static MOBILLAMA_INLINE F to_float(I a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
    static MOBILLAMA_INLINE void store_int8(std::int8_t* p, I a) {
        const __m256i pairs = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.low, a.high), 0xd8);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                         _mm_packs_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1)));
    }
    static MOBILLAMA_INLINE void store_split(std::int8_t* high, std::int8_t* low, I a) {
        const __m256i seven_bits = _mm256_set1_epi32(127);
        store_int8(high, {_mm256_srli_epi32(a.low, 7), _mm256_srli_epi32(a.high, 7)});
        store_int8(low, {_mm256_and_si256(a.low, seven_bits), _mm256_and_si256(a.high, seven_bits)});
    }

    static MOBILLAMA_INLINE Bytes load_signed(const void* p) {
        const auto* part = static_cast<const __m256i*>(p);
        return {_mm256_loadu_si256(part), _mm256_loadu_si256(part + 1)};
    }
    static MOBILLAMA_INLINE Bytes load_bytes(const void* p) { return load_signed(p); }

    static MOBILLAMA_INLINE __m256i sum_pairs(__m256i sum, __m256i pairs) {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    // |bytes| is unsigned and its sign moves to x: at most 2 * 128 * 127, which 16 bits hold.
    static MOBILLAMA_INLINE __m256i multiply(__m256i bytes, __m256i x) {
        return _mm256_maddubs_epi16(_mm256_abs_epi8(bytes), _mm256_sign_epi8(x, bytes));
    }
    static MOBILLAMA_INLINE I dot4(I sum, Bytes bytes, std::int32_t x) {
        const __m256i quad = _mm256_set1_epi32(x);
        return {sum_pairs(sum.low, multiply(bytes.low, quad)), sum_pairs(sum.high, multiply(bytes.high, quad))};
    }
    static MOBILLAMA_INLINE I dot4_by_positive(I sum, Bytes bytes, std::int32_t x) {
        const __m256i quad = _mm256_set1_epi32(x);
        return {sum_pairs(sum.low, _mm256_maddubs_epi16(quad, bytes.low)),
                sum_pairs(sum.high, _mm256_maddubs_epi16(quad, bytes.high))};
    }

    // 8 products of pairs stay within 16 bits (8 * 2 * 15 * 127), so they are widened once a block.
    template <int N, class Consume>
    static MOBILLAMA_INLINE void dot_q4(const std::byte* w, const std::int8_t* x, const std::int32_t* offsets,
                                        Consume consume) {
        const __m256i nibbles = _mm256_set1_epi8(15);
        __m256i dots[2][N];
        unroll<2>([&](auto half) MOBILLAMA_INLINE_LAMBDA {
            __m256i pairs[N];
            unroll<N>([&](auto t) MOBILLAMA_INLINE_LAMBDA { pairs[t] = _mm256_setzero_si256(); });
            unroll<4>([&](auto i) MOBILLAMA_INLINE_LAMBDA {
                const __m256i word = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + i * 64 + half * 32));
                const __m256i low = _mm256_and_si256(word, nibbles);
                const __m256i high = _mm256_and_si256(_mm256_srli_epi16(word, 4), nibbles);
                unroll<N>([&](auto t) MOBILLAMA_INLINE_LAMBDA {
                    const __m256i x_low = _mm256_set1_epi32(load_word(x + t * 32 + i * 4));
                    const __m256i x_high = _mm256_set1_epi32(load_word(x + t * 32 + 16 + i * 4));
                    pairs[t] = _mm256_add_epi16(pairs[t], _mm256_maddubs_epi16(low, x_low));
                    pairs[t] = _mm256_add_epi16(pairs[t], _mm256_maddubs_epi16(high, x_high));
                });
            });
            unroll<N>([&](auto t) MOBILLAMA_INLINE_LAMBDA {
                dots[half][t] = sum_pairs(_mm256_set1_epi32(offsets[t]), pairs[t]);
            });
        });
        unroll<N>([&](auto t) MOBILLAMA_INLINE_LAMBDA { consume(t, I{dots[0][t], dots[1][t]}); });
    }
};

}  // namespace

const Kernels& avx2_kernels() {
    static const Kernels kernels = make_kernels<Avx2>("avx2");
    return kernels;
}

}  // namespace mobillama
