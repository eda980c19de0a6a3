// An orthogonal rotation of a row before it is rounded: Hadamard transforms of blocks of columns, and one more over the
// last block's worth of columns where they do not fill the row (the two overlap, so every column is mixed). Signs are
// changed first, in a fixed pattern: a row with a mean would have all of it in one column, and what the first of two
// overlapping transforms has spread the second would gather again.
//
// Weights are rotated the same way before they are quantised (gog_edge/native/rotation.py), so the product is that of
// the plain ones.  What rotating buys: no column stands out, so a scale per row serves all of them.
#pragma once

#include <vector>

#include "check.h"
#include "simd.h"

namespace gog {

constexpr size_t kLeastRotation = 16;

// Blocks of `block` columns, a power of two from kLeastRotation on; 0: nothing is rotated.
struct Rotation {
    explicit Rotation(size_t block = 0) : block(block), factors(block) {
        const float scale = 1.0f / std::sqrt((float)block);
        for (size_t i = 0; i < block; i++) {
            uint32_t mixed = (uint32_t)i * 2654435761u;  // a pattern that no transform knows
            mixed = (mixed ^ mixed >> 15) * 2246822519u;
            factors[i] = (mixed ^ mixed >> 13) & 1 ? -scale : scale;
        }
    }
    size_t block;
    std::vector<float> factors;  // sign of each column, and what makes the transform orthonormal
};

// Lane i from lane i ^ H.
template <int H>
GOG_INLINE vf swap_lanes(vf x) {
#if defined(GOG_AVX512)
    if constexpr (H == 1) return (vf)_mm512_permute_ps((__m512)x, 0xb1);
    if constexpr (H == 2) return (vf)_mm512_permute_ps((__m512)x, 0x4e);
    if constexpr (H == 4) return (vf)_mm512_shuffle_f32x4((__m512)x, (__m512)x, 0xb1);
    return (vf)_mm512_shuffle_f32x4((__m512)x, (__m512)x, 0x4e);
#elif defined(GOG_AVX2)
    if constexpr (H == 1) return (vf)_mm256_permute_ps((__m256)x, 0xb1);
    if constexpr (H == 2) return (vf)_mm256_permute_ps((__m256)x, 0x4e);
    return (vf)_mm256_permute2f128_ps((__m256)x, (__m256)x, 1);
#elif defined(GOG_NEON)
    if constexpr (H == 1) return (vf)vrev64q_f32((float32x4_t)x);
    return (vf)vextq_f32((float32x4_t)x, (float32x4_t)x, 2);
#else
    vf y;
    for (int i = 0; i < W; i++) y[i] = x[i ^ H];
    return y;
#endif
}

// Sums in lanes without bit H, differences in the others.
template <int H>
GOG_INLINE vf lane_stage(vf x) {
    vf sign;
    GOG_UNROLL
    for (int i = 0; i < W; i++) sign[i] = i & H ? -1.0f : 1.0f;
    return madd(swap_lanes<H>(x), x, sign);
}

GOG_INLINE vf lane_stages(vf x) {
    x = lane_stage<2>(lane_stage<1>(x));
    if constexpr (W > 4) x = lane_stage<4>(x);
    if constexpr (W > 8) x = lane_stage<8>(x);
    return x;
}

GOG_INLINE void four_stage(vf (&v)[4]) {
    const vf a = v[0] + v[1], b = v[0] - v[1], c = v[2] + v[3], d = v[2] - v[3];
    v[0] = a + c;
    v[1] = b + d;
    v[2] = a - c;
    v[3] = b - d;
}

// y[4 * W] = the first stages of the transform of factors * x, up to columns 4 * W apart.
GOG_INLINE void four_vectors(const float* x, float* y, const vf (&factors)[4]) {
    vf v[4];
    GOG_UNROLL
    for (int j = 0; j < 4; j++) v[j] = lane_stages(load<vf>(x + j * W) * factors[j]);
    four_stage(v);
    GOG_UNROLL
    for (int j = 0; j < 4; j++) store(y + j * W, v[j]);
}

GOG_INLINE void load_four(const float* p, vf (&v)[4]) {
    GOG_UNROLL
    for (int j = 0; j < 4; j++) v[j] = load<vf>(p + j * W);
}

// y[n] = the transform of factors * x[n], n a power of two from kLeastRotation on; x and y may be the same.
inline void hadamard(const float* x, float* y, size_t n, const float* factors) {
    size_t done = W;
    if (n >= 4 * W) {
        for (size_t i = 0; i < n; i += 4 * W) {
            vf f[4];
            load_four(factors + i, f);
            four_vectors(x + i, y + i, f);
        }
        done = 4 * W;
    } else {
        for (size_t i = 0; i < n; i += W) store(y + i, lane_stages(load<vf>(x + i) * load<vf>(factors + i)));
    }
    for (; 4 * done <= n; done *= 4)
        for (size_t begin = 0; begin < n; begin += 4 * done)
            for (size_t i = begin; i < begin + done; i += W) {
                vf v[4];
                GOG_UNROLL
                for (int j = 0; j < 4; j++) v[j] = load<vf>(y + i + j * done);
                four_stage(v);
                GOG_UNROLL
                for (int j = 0; j < 4; j++) store(y + i + j * done, v[j]);
            }
    if (done < n)
        for (size_t i = 0; i < n / 2; i += W) {
            const vf a = load<vf>(y + i), b = load<vf>(y + i + n / 2);
            store(y + i, a + b);
            store(y + i + n / 2, a - b);
        }
}

// The rotation that attribute `rotation` of an operator names.
inline Rotation rotation_of(int64_t block) {
    require(block == 0 || (block >= (int64_t)kLeastRotation && block <= 1 << 20 && (block & (block - 1)) == 0),
            "attribute rotation must be 0 or a power of two from 16 on");
    return Rotation((size_t)block);
}

// y = x rotated; x and y may be the same.
inline void rotate_columns(const float* x, float* y, size_t columns, const Rotation& rotation) {
    const size_t block = rotation.block;
    const float* factors = rotation.factors.data();
    size_t at = 0;
    if (block == 4 * W) {  // a block in registers, and the factors of all
        vf f[4];
        load_four(factors, f);
        for (; at + 4 * W <= columns; at += 4 * W) four_vectors(x + at, y + at, f);
    }
    for (; at + block <= columns; at += block) hadamard(x + at, y + at, block, factors);
    if (at == columns) return;
    if (x != y) std::memcpy(y + at, x + at, (columns - at) * sizeof(float));
    hadamard(y + columns - block, y + columns - block, block, factors);
}

}  // namespace gog
