// Norms, quantisation, SiLU and rotary positions, written once over 16-lane operations.
#pragma once

#include <cmath>

#include "matmul_impl.h"

namespace mobillama {
namespace {

// e^x; exactly 0 below kLeastExponent, where float32 would leave its normal range.
// The polynomial is the Taylor series on [-ln2/2, ln2/2], good to 2 units in the last place.
template <class S>
MOBILLAMA_INLINE typename S::F exponential(typename S::F x) {
    constexpr float kLeastExponent = -87.0f;
    constexpr float kGreatestExponent = 88.0f;
    const auto clamped = S::min(S::max(x, S::set1(kLeastExponent)), S::set1(kGreatestExponent));
    const auto power = S::round(S::mul(clamped, S::set1(1.44269504f)));
    // ln 2 in two parts, so that the product with a whole number is exact.
    auto rest = S::fma(power, S::set1(-0.693145752f), clamped);
    rest = S::fma(power, S::set1(-1.42860677e-6f), rest);
    auto series = S::set1(1.0f / 720.0f);
    for (const float coefficient : {1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f}) {
        series = S::fma(series, rest, S::set1(coefficient));
    }
    return S::zero_below(S::scale_by_power_of_two(series, power), x, kLeastExponent);
}

// Below this, 127 / largest would overflow; such a block is zero for every purpose.
constexpr float kLeastMagnitude = 1e-30f;

template <class S>
MOBILLAMA_INLINE void quantise_block(typename S::F low, typename S::F high, std::int8_t* quants, float* scale,
                                     std::int32_t* offset) {
    const float largest = S::reduce_max(S::max(S::abs(low), S::abs(high)));
    const bool nonzero = largest > kLeastMagnitude;
    const auto factor = S::set1(nonzero ? 127.0f / largest : 0.0f);
    const auto a = S::to_int(S::mul(low, factor));
    const auto b = S::to_int(S::mul(high, factor));
    S::store_int8(quants, a);
    S::store_int8(quants + 16, b);
    *offset = -8 * S::reduce_add(S::add_int(a, b));
    *scale = nonzero ? largest / 127.0f : 0.0f;
}

template <class S>
void quantise(const Activations& x, std::uint32_t token) {
    const float* values = x.values + token * x.stride;
    for (std::uint32_t block = 0; block < x.blocks; ++block) {
        const std::size_t at = x.block_index(token, block);
        quantise_block<S>(S::load(values + block * 32), S::load(values + block * 32 + 16), x.quants + at * 32,
                          x.scales + at, x.offsets + at);
    }
}

template <class S>
void rms_norm(const float* hidden_states, const float* weight, float eps, const Activations& x,
              std::uint32_t token) {
    const std::size_t n = std::size_t(x.blocks) * 32;
    auto sum_a = S::zero();
    auto sum_b = S::zero();
    for (std::size_t i = 0; i < n; i += 32) {
        const auto a = S::load(hidden_states + i);
        const auto b = S::load(hidden_states + i + 16);
        sum_a = S::fma(a, a, sum_a);
        sum_b = S::fma(b, b, sum_b);
    }
    const float mean_square = S::reduce_add(S::add(sum_a, sum_b)) / float(n);
    const auto factor = S::set1(1.0f / std::sqrt(mean_square + eps));
    float* values = x.values + token * x.stride;
    for (std::uint32_t block = 0; block < x.blocks; ++block) {
        const float* h = hidden_states + block * 32;
        const float* w = weight + block * 32;
        const auto low = S::mul(S::mul(S::load(h), factor), S::load(w));
        const auto high = S::mul(S::mul(S::load(h + 16), factor), S::load(w + 16));
        S::store(values + block * 32, low);
        S::store(values + block * 32 + 16, high);
        const std::size_t at = x.block_index(token, block);
        quantise_block<S>(low, high, x.quants + at * 32, x.scales + at, x.offsets + at);
    }
}

template <class S>
void add(float* y, const float* x, std::size_t n) {
    for (std::size_t i = 0; i < n; i += 16) S::store(y + i, S::add(S::load(y + i), S::load(x + i)));
}

template <class S>
void swiglu(float* gate, const float* up, const float* gain, std::size_t n) {
    for (std::size_t i = 0; i < n; i += 16) {
        const auto g = S::load(gate + i);
        const auto denominator = S::add(S::set1(1.0f), exponential<S>(S::sub(S::zero(), g)));
        auto product = S::mul(S::div(g, denominator), S::load(up + i));
        if (gain != nullptr) product = S::mul(product, S::load(gain + i));
        S::store(gate + i, product);
    }
}

// The compiler vectorises this; halves need not be multiples of 16.
template <class S>
void rope(float* x, const float* cosine, const float* sine, std::uint32_t half) {
    for (std::uint32_t i = 0; i < half; ++i) {
        const float a = x[i];
        const float b = x[i + half];
        x[i] = a * cosine[i] - b * sine[i];
        x[i + half] = b * cosine[i] + a * sine[i];
    }
}

}  // namespace
}  // namespace mobillama
