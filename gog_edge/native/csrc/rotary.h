// Rotary position embedding of one head row, and the RMS norm of a head (Qwen3) before it.
#pragma once

#include "simd.h"

namespace gog {

// y[i] = x[i] c[i] - x[i + h] s[i];  y[i + h] = x[i + h] c[i] + x[i] s[i]  with h = hd / 2, times `scale`.
GOG_INLINE void rotate_row(const float* x, const float* cos, const float* sin, size_t hd, float scale, float* y) {
    const size_t half = hd / 2;
    for (size_t i = 0; i < half; i += W) {
        const int lanes = lanes_left(half, i);
        const vf a = load_first(x + i, lanes), b = load_first(x + half + i, lanes);
        const vf c = load_first(cos + i, lanes), s = load_first(sin + i, lanes);
        store_first(y + i, (a * c - b * s) * scale, lanes);
        store_first(y + half + i, (b * c + a * s) * scale, lanes);
    }
}

inline void rms_row(const float* x, const float* weight, size_t hd, float epsilon, float* y) {
    vf square{};
    for (size_t i = 0; i < hd; i += W) {
        const vf v = load_first(x + i, lanes_left(hd, i));
        square += v * v;
    }
    const float inverse = 1.0f / std::sqrt(hsum(square) / (float)hd + epsilon);
    for (size_t i = 0; i < hd; i += W) {
        const int lanes = lanes_left(hd, i);
        store_first(y + i, load_first(x + i, lanes) * inverse * load_first(weight + i, lanes), lanes);
    }
}

}  // namespace gog
