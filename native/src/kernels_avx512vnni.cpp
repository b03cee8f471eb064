// 16 lanes in one register; `vpdpbusd` multiplies unsigned weights by signed activations, four columns a lane.
#include <immintrin.h>

#include "attention_impl.h"

namespace mobillama {
namespace {

struct Avx512Vnni {
    using F = __m512;
    using I = __m512i;
    using Bytes = __m512i;

    static constexpr int kTokens = 16;      // 16 sums and 8 weight words fill the 32 registers
    static constexpr int kHalfTokens = 16;
    static constexpr int kQueryRows = 8;
    static constexpr int kScoreSums = 8;    // sums in flight: hides the latency of fma and vpdpbusd
    static constexpr int kWeighRows = 4;
    static constexpr int kByteBias = 128;   // load_bytes returns byte + 128, as vpdpbusd wants unsigned

    static MOBILLAMA_INLINE F zero() { return _mm512_setzero_ps(); }
    static MOBILLAMA_INLINE F set1(float x) { return _mm512_set1_ps(x); }
    static MOBILLAMA_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
    static MOBILLAMA_INLINE void store(float* p, F x) { _mm512_storeu_ps(p, x); }
    static MOBILLAMA_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
    static MOBILLAMA_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static MOBILLAMA_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static MOBILLAMA_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
    static MOBILLAMA_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
    static MOBILLAMA_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
    static MOBILLAMA_INLINE F abs(F a) { return _mm512_abs_ps(a); }
    static MOBILLAMA_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static MOBILLAMA_INLINE F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT); }
    static MOBILLAMA_INLINE F scale_by_power_of_two(F a, F power) { return _mm512_scalef_ps(a, power); }
    static MOBILLAMA_INLINE F zero_below(F value, F x, float limit) {
        return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_GE_OQ), value);
    }
    static MOBILLAMA_INLINE float reduce_add(F a) { return _mm512_reduce_add_ps(a); }
    static MOBILLAMA_INLINE float reduce_max(F a) { return _mm512_reduce_max_ps(a); }

    static MOBILLAMA_INLINE F load_half(const std::uint16_t* p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static MOBILLAMA_INLINE void store_half(std::uint16_t* p, F x) {
        const F finite = min(max(x, set1(-65504.0f)), set1(65504.0f));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(finite, _MM_FROUND_TO_NEAREST_INT));
    }

    static MOBILLAMA_INLINE I set1_int(std::int32_t x) { return _mm512_set1_epi32(x); }
    static MOBILLAMA_INLINE I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
    static MOBILLAMA_INLINE std::int32_t reduce_add(I a) { return _mm512_reduce_add_epi32(a); }
    static MOBILLAMA_INLINE I to_int(F a) { return _mm512_cvtps_epi32(a); }
    static MOBILLAMA_INLINE F to_float(I a) { return _mm512_cvtepi32_ps(a); }
    static MOBILLAMA_INLINE void store_int8(std::int8_t* p, I a) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a));
    }
    static MOBILLAMA_INLINE void store_split(std::int8_t* high, std::int8_t* low, I a) {
        store_int8(high, _mm512_srli_epi32(a, 7));
        store_int8(low, _mm512_and_si512(a, _mm512_set1_epi32(127)));
    }

    static MOBILLAMA_INLINE Bytes load_signed(const void* p) { return _mm512_loadu_si512(p); }
    static MOBILLAMA_INLINE Bytes load_bytes(const void* p) {
        return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(-128));
    }
    static MOBILLAMA_INLINE I dot4(I sum, Bytes bytes, std::int32_t x) {
        return _mm512_dpbusd_epi32(sum, bytes, _mm512_set1_epi32(x));
    }
    static MOBILLAMA_INLINE I dot4_by_positive(I sum, Bytes bytes, std::int32_t x) {
        return _mm512_dpbusd_epi32(sum, _mm512_set1_epi32(x), bytes);
    }

    template <int N, class Consume>
    static MOBILLAMA_INLINE void dot_q4(const std::byte* w, const std::int8_t* x, const std::int32_t* offsets,
                                        Consume consume) {
        const I low_nibbles = _mm512_set1_epi8(15);
        if constexpr (N == 1) {
            // The high nibbles stay where they are, 16 times too large: one shift of the sum replaces four.
            I low = _mm512_set1_epi32(offsets[0]);
            I high = _mm512_setzero_si512();
            unroll<4>([&](auto i) MOBILLAMA_INLINE_LAMBDA {
                const I word = _mm512_loadu_si512(w + i * 64);
                low = dot4(low, _mm512_and_si512(word, low_nibbles), load_word(x + i * 4));
                high = dot4(high, _mm512_andnot_si512(low_nibbles, word), load_word(x + 16 + i * 4));
            });
            consume(std::integral_constant<int, 0>{}, _mm512_add_epi32(low, _mm512_srai_epi32(high, 4)));
        } else {
            I words[8];
            unroll<4>([&](auto i) MOBILLAMA_INLINE_LAMBDA {
                const I word = _mm512_loadu_si512(w + i * 64);
                words[i] = _mm512_and_si512(word, low_nibbles);
                words[i + 4] = _mm512_and_si512(_mm512_srli_epi16(word, 4), low_nibbles);
            });
            unroll<N>([&](auto t) MOBILLAMA_INLINE_LAMBDA {
                I sum = _mm512_set1_epi32(offsets[t]);
                unroll<8>([&](auto i) MOBILLAMA_INLINE_LAMBDA {
                    sum = dot4(sum, words[i], load_word(x + t * 32 + i * 4));
                });
                consume(t, sum);
            });
        }
    }
};

}  // namespace

const Kernels& avx512vnni_kernels() {
    static const Kernels kernels = make_kernels<Avx512Vnni>("avx512vnni");
    return kernels;
}

}  // namespace mobillama
