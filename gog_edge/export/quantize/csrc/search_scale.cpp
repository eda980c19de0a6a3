// The scale search of quantize_search.py (method `mse`), block by block; the numpy code there is its reference.
//
// For every block of inputs: a few candidate scales; for each the integers it leads to, the least-squares scale for
// those integers, and the (weighted) squared error with it; the best candidate stays. Rows are spread over threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace {

struct Plan {
    int64_t inputs;
    int64_t width;      // inputs a block
    float low, high;    // range of q
    float search_low;   // smallest q that may be used
    bool symmetric, positive, half;
    const float* factors;  // shrink factors of the covering scale
    int32_t factor_count;
    const float* flips;    // factors for the scale of the other sign (symmetric only)
    int32_t flip_count;
    const float* strength; // [inputs] or null
};

// float16 and back, round half to even, without relying on a compiler's half type.
float through_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t sign = bits & 0x80000000u;
    const float magnitude = std::fabs(value);
    if (!(magnitude < 65520.0f)) return sign ? -std::numeric_limits<float>::infinity() : std::numeric_limits<float>::infinity();
    float rounded;
    if (magnitude < 6.103515625e-05f) {  // subnormal: steps of 2^-24
        rounded = std::nearbyint(magnitude * 16777216.0f) / 16777216.0f;
    } else {
        uint32_t m = bits & 0x7FFFFFFFu;
        m += 0x0FFFu + ((m >> 13) & 1u);
        m &= 0xFFFFE000u;
        std::memcpy(&rounded, &m, 4);
    }
    return sign ? -rounded : rounded;
}

// The scale as the graph will hold it: never 0, never lost to underflow.
float rounded_scale(float scale, bool half) {
    const float smallest = half ? 6.103515625e-05f : 1.17549435e-38f;
    const float kept = half ? through_half(scale) : scale;
    if (std::fabs(kept) < smallest) return scale == 0.0f ? 1.0f : std::copysign(smallest, scale);
    return kept;
}

inline float clamped(float value, float low, float high) { return std::min(std::max(value, low), high); }

struct Choice {
    float scale, zero;
};

// Least-squares scale for the integers that `from` leads to; `from` stays where it is undefined.
float refitted(const float* w, const float* s, int64_t n, Choice from, const Plan& p) {
    const float inverse = 1.0f / from.scale;
    float top = 0.0f, bottom = 0.0f;
    if (s != nullptr) {
#pragma omp simd reduction(+ : top, bottom)
        for (int64_t i = 0; i < n; ++i) {
            const float k = clamped(std::nearbyint(w[i] * inverse) + from.zero, p.search_low, p.high) - from.zero;
            top += k * s[i] * w[i];
            bottom += k * s[i] * k;
        }
    } else {
#pragma omp simd reduction(+ : top, bottom)
        for (int64_t i = 0; i < n; ++i) {
            const float k = clamped(std::nearbyint(w[i] * inverse) + from.zero, p.search_low, p.high) - from.zero;
            top += k * w[i];
            bottom += k * k;
        }
    }
    float fitted = bottom > 0.0f ? top / std::max(bottom, 1e-30f) : from.scale;
    if ((p.positive || !p.symmetric) && !(fitted > 0.0f)) fitted = from.scale;
    if (fitted == 0.0f) fitted = from.scale;
    return rounded_scale(fitted, p.half);
}

float squared_error(const float* w, const float* s, int64_t n, Choice c, const Plan& p) {
    const float inverse = 1.0f / c.scale;
    float sum = 0.0f;
    if (s != nullptr) {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < n; ++i) {
            const float k = clamped(std::nearbyint(w[i] * inverse) + c.zero, p.search_low, p.high) - c.zero;
            const float e = k * c.scale - w[i];
            sum += e * s[i] * e;
        }
    } else {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < n; ++i) {
            const float k = clamped(std::nearbyint(w[i] * inverse) + c.zero, p.search_low, p.high) - c.zero;
            const float e = k * c.scale - w[i];
            sum += e * e;
        }
    }
    return sum;
}

void block(const float* w, const float* s, int64_t n, const Plan& p, int8_t* q, float* scale, int8_t* zero) {
    float low = w[0], high = w[0];
#pragma omp simd reduction(min : low) reduction(max : high)
    for (int64_t i = 0; i < n; ++i) {
        low = w[i] < low ? w[i] : low;
        high = w[i] > high ? w[i] : high;
    }
    Choice best{1.0f, 0.0f};
    float best_error = std::numeric_limits<float>::infinity();
    const auto consider = [&](Choice c) {
        c.scale = refitted(w, s, n, c, p);
        const float error = squared_error(w, s, n, c, p);
        if (error < best_error) {
            best_error = error;
            best = c;
        }
    };
    if (p.symmetric) {
        const float largest = std::max(std::fabs(low), std::fabs(high));
        float cover;
        if (p.search_low > p.low) {
            cover = largest / -p.search_low;  // 8 bits: both sides alike
        } else if (p.positive) {
            cover = largest / (p.high + 0.5f);
        } else {  // the extreme value lands on the lowest integer
            cover = (high > -low ? high : low) / p.low;
        }
        cover = rounded_scale(cover, p.half);
        for (int32_t f = 0; f < p.factor_count; ++f) consider({rounded_scale(cover * p.factors[f], p.half), 0.0f});
        for (int32_t f = 0; f < p.flip_count; ++f) consider({rounded_scale(-cover * p.flips[f], p.half), 0.0f});
    } else {
        low = std::min(low, 0.0f);
        high = std::max(high, 0.0f);
        for (int32_t f = 0; f < p.factor_count; ++f) {
            const float step = rounded_scale((high - low) * (p.factors[f] / (p.high - p.low)), p.half);
            const float z = clamped(std::nearbyint(p.low - low * p.factors[f] / step), p.low, p.high);
            consider({step, z});
        }
    }
    for (int64_t i = 0; i < n; ++i) {
        const float k = std::nearbyint(w[i] / best.scale) + best.zero;
        q[i] = static_cast<int8_t>(clamped(k, p.search_low, p.high));
    }
    *scale = best.scale;
    if (zero != nullptr) *zero = static_cast<int8_t>(best.zero);
}

void rows(const float* w, int64_t from, int64_t to, const Plan& p, int8_t* q, float* scale, int8_t* zero) {
    const int64_t blocks = (p.inputs + p.width - 1) / p.width;
    for (int64_t row = from; row < to; ++row) {
        for (int64_t b = 0; b < blocks; ++b) {
            const int64_t start = b * p.width;
            const int64_t n = std::min(p.width, p.inputs - start);
            const int64_t at = row * p.inputs + start;
            const int64_t cell = row * blocks + b;
            block(w + at, p.strength == nullptr ? nullptr : p.strength + start, n, p, q + at, scale + cell,
                  zero == nullptr ? nullptr : zero + cell);
        }
    }
}

}  // namespace

// weight [count, inputs], strength [inputs] or null -> q [count, inputs], scale and zero [count, blocks] (zero: null
// when symmetric). flags: 1 symmetric, 2 positive scales, 4 float16 scales. 0, or 1 when there is no memory for threads.
extern "C" __attribute__((visibility("default"))) int32_t gog_search_scale(
    const float* weight, int64_t count, int64_t inputs, int64_t width, int32_t bits, int32_t flags,
    const float* factors, int32_t factor_count, const float* flips, int32_t flip_count, const float* strength,
    int8_t* q, float* scale, int8_t* zero, int32_t threads) {
    Plan p{};
    p.inputs = inputs;
    p.width = width;
    p.low = static_cast<float>(-(1 << (bits - 1)));
    p.high = static_cast<float>((1 << (bits - 1)) - 1);
    p.symmetric = (flags & 1) != 0;
    p.positive = (flags & 2) != 0;
    p.half = (flags & 4) != 0;
    p.search_low = p.symmetric && bits == 8 ? -p.high : p.low;
    p.factors = factors;
    p.factor_count = factor_count;
    p.flips = flips;
    p.flip_count = flip_count;
    p.strength = strength;
    const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, count));
    std::vector<std::thread> helpers;
    int32_t failed = 0;
    try {
        helpers.reserve(static_cast<size_t>(parts));
        for (int64_t i = 1; i < parts; ++i)
            helpers.emplace_back(rows, weight, count * i / parts, count * (i + 1) / parts, std::cref(p), q, scale, zero);
    } catch (const std::bad_alloc&) {
        failed = 1;
    } catch (const std::system_error&) {
        failed = 1;
    }
    rows(weight, 0, count / parts, p, q, scale, zero);
    for (std::thread& helper : helpers) helper.join();
    return failed;
}
