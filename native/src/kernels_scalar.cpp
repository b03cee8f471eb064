// 16 lanes as an array: runs everywhere, and is what the tests hold the other instruction sets against.
#include <bit>
#include <cmath>

#include "attention_impl.h"
#include "half.h"

namespace mobillama {
namespace {

struct Scalar {
    template <class T, int kCount>
    struct Lanes {
        T lane[kCount];
    };
    using F = Lanes<float, 16>;
    using I = Lanes<std::int32_t, 16>;
    using Bytes = Lanes<std::int8_t, 64>;

    static constexpr int kTokens = 1;
    static constexpr int kHalfTokens = 1;
    static constexpr int kQueryRows = 1;
    static constexpr int kScoreSums = 1;
    static constexpr int kWeighRows = 1;
    static constexpr int kByteBias = 0;

    template <class Function>
    static MOBILLAMA_INLINE F map(Function function) {
        F result;
        for (int i = 0; i < 16; ++i) result.lane[i] = function(i);
        return result;
    }
    template <class Function>
    static MOBILLAMA_INLINE I map_int(Function function) {
        I result;
        for (int i = 0; i < 16; ++i) result.lane[i] = function(i);
        return result;
    }

    static F zero() { return set1(0.0f); }
    static F set1(float x) { return map([&](int) { return x; }); }
    static F load(const float* p) { return map([&](int i) { return p[i]; }); }
    static void store(float* p, const F& x) { std::memcpy(p, x.lane, sizeof x.lane); }
    static F add(const F& a, const F& b) { return map([&](int i) { return a.lane[i] + b.lane[i]; }); }
    static F sub(const F& a, const F& b) { return map([&](int i) { return a.lane[i] - b.lane[i]; }); }
    static F mul(const F& a, const F& b) { return map([&](int i) { return a.lane[i] * b.lane[i]; }); }
    static F div(const F& a, const F& b) { return map([&](int i) { return a.lane[i] / b.lane[i]; }); }
    static F min(const F& a, const F& b) { return map([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; }); }
    static F max(const F& a, const F& b) { return map([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; }); }
    static F abs(const F& a) { return map([&](int i) { return std::fabs(a.lane[i]); }); }
    static F fma(const F& a, const F& b, const F& c) {
        return map([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
    }
    static F round(const F& a) { return map([&](int i) { return std::nearbyint(a.lane[i]); }); }
    static F scale_by_power_of_two(const F& a, const F& power) {
        return map([&](int i) { return std::ldexp(a.lane[i], whole(power.lane[i])); });
    }
    static F zero_below(const F& value, const F& x, float limit) {
        return map([&](int i) { return x.lane[i] >= limit ? value.lane[i] : 0.0f; });
    }
    static float reduce_add(const F& a) {
        float sum = 0.0f;
        for (const float x : a.lane) sum += x;
        return sum;
    }
    static float reduce_max(const F& a) {
        float most = a.lane[0];
        for (const float x : a.lane) most = x > most ? x : most;
        return most;
    }

    static F load_half(const std::uint16_t* p) { return map([&](int i) { return half_to_float(p[i]); }); }
    static void store_half(std::uint16_t* p, const F& x) {
        for (int i = 0; i < 16; ++i) p[i] = float_to_half(x.lane[i]);
    }

    static I set1_int(std::int32_t x) { return map_int([&](int) { return x; }); }
    static I add_int(const I& a, const I& b) { return map_int([&](int i) { return a.lane[i] + b.lane[i]; }); }
    static std::int32_t reduce_add(const I& a) {
        std::int32_t sum = 0;
        for (const std::int32_t x : a.lane) sum += x;
        return sum;
    }
    static I to_int(const F& a) { return map_int([&](int i) { return whole(std::nearbyint(a.lane[i])); }); }
    static F to_float(const I& a) { return map([&](int i) { return float(a.lane[i]); }); }
    static void store_int8(std::int8_t* p, const I& a) {
        for (int i = 0; i < 16; ++i) p[i] = std::int8_t(a.lane[i]);
    }
    static void store_split(std::int8_t* high, std::int8_t* low, const I& a) {
        for (int i = 0; i < 16; ++i) {
            high[i] = std::int8_t(a.lane[i] >> 7);
            low[i] = std::int8_t(a.lane[i] & 127);
        }
    }

    static Bytes load_signed(const void* p) {
        Bytes bytes;
        std::memcpy(bytes.lane, p, sizeof bytes.lane);
        return bytes;
    }
    static Bytes load_bytes(const void* p) { return load_signed(p); }
    static I dot4(const I& sum, const Bytes& bytes, std::int32_t x) {
        std::int8_t quad[4];
        std::memcpy(quad, &x, sizeof quad);
        return map_int([&](int i) {
            const std::int8_t* b = bytes.lane + i * 4;
            return sum.lane[i] + b[0] * quad[0] + b[1] * quad[1] + b[2] * quad[2] + b[3] * quad[3];
        });
    }
    static I dot4_by_positive(const I& sum, const Bytes& bytes, std::int32_t x) { return dot4(sum, bytes, x); }

    template <int N, class Consume>
    static MOBILLAMA_INLINE void dot_q4(const std::byte* w, const std::int8_t* x, const std::int32_t* offsets,
                                        Consume consume) {
        Bytes words[8];
        for (int i = 0; i < 4; ++i) {
            for (int j = 0; j < 64; ++j) {
                words[i].lane[j] = std::int8_t(std::to_integer<int>(w[i * 64 + j]) & 15);
                words[i + 4].lane[j] = std::int8_t(std::to_integer<int>(w[i * 64 + j]) >> 4);
            }
        }
        unroll<N>([&](auto t) {
            I sum = set1_int(offsets[t]);
            for (int i = 0; i < 8; ++i) sum = dot4(sum, words[i], load_word(x + t * 32 + i * 4));
            consume(t, sum);
        });
    }

private:
    // Numbers from broken weights may be anything; a cast of what does not fit would be undefined.
    static std::int32_t whole(float x) { return x > -65536.0f && x < 65536.0f ? std::int32_t(x) : 0; }
};

}  // namespace

const Kernels& scalar_kernels() {
    static const Kernels kernels = make_kernels<Scalar>("scalar");
    return kernels;
}

}  // namespace mobillama
