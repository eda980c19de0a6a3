// The decoder's KV cache as attention sees it: rows of one head, stored as f16, or as int8 with a scale a row.
#pragma once

#include "simd.h"

namespace gog {

struct HalfCache {
    uint16_t* data;      // [kv_heads, capacity, hd]
    float* row_scales;   // unused
    size_t capacity, hd;

    const uint16_t* row(size_t head, size_t position) const { return data + (head * capacity + position) * hd; }
    static GOG_INLINE vf values(const uint16_t* row, size_t i) { return load_half(row + i); }
    static float value(const uint16_t* row, size_t i) { return half_to_float(row[i]); }
    float scale(size_t, size_t) const { return 1.0f; }
    static constexpr bool kScaled = false;

    void write(size_t head, size_t position, const float* x) const {
        uint16_t* out = data + (head * capacity + position) * hd;
        size_t i = 0;
        for (; i + W <= hd; i += W) store_half(out + i, load<vf>(x + i));
        for (; i < hd; i++) out[i] = float_to_half(x[i]);
    }
};

struct ByteCache {
    int8_t* data;        // [kv_heads, capacity, hd]
    float* row_scales;   // [kv_heads, capacity]
    size_t capacity, hd;

    const int8_t* row(size_t head, size_t position) const { return data + (head * capacity + position) * hd; }
    static GOG_INLINE vf values(const int8_t* row, size_t i) { return load_i8(row + i); }
    static float value(const int8_t* row, size_t i) { return (float)row[i]; }
    float scale(size_t head, size_t position) const { return row_scales[head * capacity + position]; }
    static constexpr bool kScaled = true;

    void write(size_t head, size_t position, const float* x) const {
        float peak = 0;
        for (size_t i = 0; i < hd; i++) peak = std::fabs(x[i]) > peak ? std::fabs(x[i]) : peak;
        const float inverse = peak > 0 ? 127.0f / peak : 0.0f;
        int8_t* out = data + (head * capacity + position) * hd;
        size_t i = 0;
        for (; i + W <= hd; i += W) store_i8(out + i, to_int(load<vf>(x + i) * inverse));
        for (; i < hd; i++) out[i] = (int8_t)std::lrint(x[i] * inverse);
        row_scales[head * capacity + position] = peak / 127.0f;
    }
};

// A cached row as f32, its scale applied.
template <class C>
inline void read_row(const C& cache, size_t head, size_t position, float* x) {
    const auto* row = cache.row(head, position);
    const float scale = cache.scale(head, position);
    size_t i = 0;
    for (; i + W <= cache.hd; i += W) store(x + i, C::values(row, i) * scale);
    for (; i < cache.hd; i++) x[i] = C::value(row, i) * scale;
}

}  // namespace gog
