// Rotary position embedding of one head row, and the RMS norm of a head (Qwen3) before it.
#pragma once

#include "simd.h"

namespace gog {

// y[i] = x[i] c[i] - x[i + h] s[i];  y[i + h] = x[i + h] c[i] + x[i] s[i]  with h = hd / 2, times `scale`.
GOG_INLINE void rotate_row(const float* x, const float* cos, const float* sin, size_t hd, float scale, float* y) {
    const size_t half = hd / 2, whole = half / W * W;
    for (size_t i = 0; i < whole; i += W) {
        const vf a = load<vf>(x + i), b = load<vf>(x + half + i), c = load<vf>(cos + i), s = load<vf>(sin + i);
        store(y + i, (a * c - b * s) * scale);
        store(y + half + i, (b * c + a * s) * scale);
    }
    for (size_t i = whole; i < half; i++) {
        const float a = x[i], b = x[half + i];
        y[i] = (a * cos[i] - b * sin[i]) * scale;
        y[half + i] = (b * cos[i] + a * sin[i]) * scale;
    }
}

inline void rms_row(const float* x, const float* weight, size_t hd, float epsilon, float* y) {
    vf square{};
    float tail = 0;
    const size_t whole = hd / W * W;
    for (size_t i = 0; i < whole; i += W) square += load<vf>(x + i) * load<vf>(x + i);
    for (size_t i = whole; i < hd; i++) tail += x[i] * x[i];
    const float inverse = 1.0f / std::sqrt((hsum(square) + tail) / (float)hd + epsilon);
    for (size_t i = 0; i < whole; i += W) store(y + i, load<vf>(x + i) * inverse * load<vf>(weight + i));
    for (size_t i = whole; i < hd; i++) y[i] = x[i] * inverse * weight[i];
}

}  // namespace gog
