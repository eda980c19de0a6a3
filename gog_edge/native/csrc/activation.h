// What happens to 32 finished columns of a few rows before they are stored: bias, activation, residual.
#pragma once

#include "simd.h"

namespace gog {

enum class Activation { kNone = 0, kGeluTanh = 1, kGeluErf = 2, kSilu = 3, kSiluMul = 4 };

GOG_INLINE vf sigmoid(vf x) { return reciprocal(1.0f + expv(-vmax(x, splat(-80.0f)))); }

GOG_INLINE vf gelu_tanh(vf x) {  // x/2 (1 + tanh u) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3)
    return x * sigmoid(x * (1.5957691216f + 0.0713548163f * x * x));
}

GOG_INLINE vf gelu_erf(vf x) {
    // x/2 (1 + erf(x / sqrt 2)); erf by Abramowitz & Stegun 7.1.26, absolute error 1.5e-7
    const vf z = vabs(x) * 0.70710678118f;
    const vf t = reciprocal(1.0f + 0.3275911f * z);
    vf p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const vf tail = p * t * expv(-z * z);  // 1 - erf(z)
    const vf phi = 0.5f * tail;
    return x * (x < 0.0f ? phi : 1.0f - phi);
}

GOG_INLINE vf activate(vf x, Activation kind) {
    switch (kind) {
        case Activation::kGeluTanh: return gelu_tanh(x);
        case Activation::kGeluErf: return gelu_erf(x);
        case Activation::kSilu: return x * sigmoid(x);
        default: return x;
    }
}

struct Epilogue {
    Activation activation = Activation::kNone;
    const float* bias = nullptr;      // [columns of the weight] or null
    const float* residual = nullptr;  // [rows, columns of y] or null; may be y itself
    float* y = nullptr;               // [rows, columns of y], row stride = columns of y
    size_t columns = 0;               // of y
    bool stream = false;              // y is larger than the caches: write past them
};

// Rows of y are far apart, so a tile's stores miss, and each first reads the line it is about to overwrite; for
// a y that no cache will hold that reading is pure loss (measured: 8 to 10 % of a 3072 x 3072 x 1024 product).
constexpr size_t kStreamBytes = 6 << 20;
inline bool can_stream(const float* y, size_t rows, size_t columns) {
    return rows * columns * 4 >= kStreamBytes && (uintptr_t)y % (4 * W) == 0 && columns % W == 0;
}
GOG_INLINE void store_past_cache(float* p, vf v) {
#if defined(GOG_AVX512)
    _mm512_stream_ps(p, (__m512)v);
#elif defined(GOG_AVX2)
    _mm256_stream_ps(p, (__m256)v);
#else
    store(p, v);
#endif
}
// Streaming stores are ordered with nothing: call this before telling another thread that y is there.
GOG_INLINE void finish_streaming() {
#if defined(GOG_AVX512) || defined(GOG_AVX2)
    _mm_sfence();
#endif
}

// Asks for the lines of residual and y that finish_strip will touch: rows are far apart, so nothing else foresees them.
GOG_INLINE void fetch_strip(size_t rows, size_t first_row, size_t column, const Epilogue& e) {
    const bool pair = e.activation == Activation::kSiluMul;
    const size_t start = pair ? column / 2 : column;
    for (size_t r = 0; r < rows; r++) {
        const size_t at = (first_row + r) * e.columns + start;
        for (size_t i = 0; i < (pair ? 16 : 32); i += 16) {
            if (e.residual) __builtin_prefetch(e.residual + at + i);
            if (!e.stream) __builtin_prefetch(e.y + at + i, 1);
        }
    }
}

// strip: `rows` x 32 values of the columns from `column` on.  kSiluMul: the first 16 are gate, the last 16 up,
// and 16 columns of y come out, from column / 2 on.
inline void finish_strip(const float* strip, size_t rows, size_t first_row, size_t column, const Epilogue& e) {
    const bool pair = e.activation == Activation::kSiluMul;
    const size_t start = pair ? column / 2 : column;
    const size_t width = pair ? 16 : 32;
    for (size_t i = 0; i < width; i += W) {
        if (start + i >= e.columns) return;
        const int lanes = e.columns - start - i < (size_t)W ? (int)(e.columns - start - i) : W;
        vf bias{}, up_bias{};
        if (e.bias && pair) {
            bias = load<vf>(e.bias + column + i);
            up_bias = load<vf>(e.bias + column + 16 + i);
        } else if (e.bias) {
            bias = load_first(e.bias + start + i, lanes);
        }
        for (size_t r = 0; r < rows; r++) {
            const float* s = strip + r * 32 + i;
            vf v = load<vf>(s) + bias;
            if (pair)
                v = v * sigmoid(v) * (load<vf>(s + 16) + up_bias);
            else
                v = activate(v, e.activation);
            const size_t at = (first_row + r) * e.columns + start + i;
            if (e.residual) v += load_first(e.residual + at, lanes);
            if (e.stream)
                store_past_cache(e.y + at, v);
            else
                store_first(e.y + at, v, lanes);
        }
    }
}

}  // namespace gog
