// A panel of 4-bit or 5-bit weights as 8-bit ones: the blocks of a group of K brought to one scale per column.
//
// With s the scale of a block and S = max |s| * m / 127 over the group (m = 8, or 15 with zero points; 16 for 5 bits), the byte is
// round((q - zero) * s / S).  The rounding is at most half of S: 1/32 (1/17) of a 4-bit step of the block with the
// largest scale.  Activations then have one scale per group, too.  Measured on Gaussian weights in blocks of 32
// with outlier activations, relative error of y: 9.60 % by the 4-bit weights alone, 9.64 % with activations in
// int8 by blocks, 9.88 % widened (blocks of 128: 10.96, 11.10, 11.23 %).
#pragma once

#include "parallel.h"
#include "simd.h"

namespace gog {

constexpr int kStrip = 32;            // columns finished at a time
constexpr size_t kWideGroup = 256;    // of K, at most
constexpr size_t kWideAhead = 4096;   // bytes of weights fetched ahead

struct PackedWeights {
    const uint8_t* data = nullptr;
    const void* scales = nullptr;
    const uint8_t* zeros = nullptr;  // 4 bits: [panel][K/block][16], or null: 8
    size_t columns = 0;              // of y, as padded
    size_t depth = 0;                // K, padded to a multiple of the block
    size_t block = 0;                // columns of x that share a scale (depth for 8 bits)
};

// The largest multiple of the block that divides K and is at most kWideGroup; 0: there is none worth it.
inline size_t wide_group(const PackedWeights& w) {
    for (size_t group = kWideGroup / w.block * w.block; group >= 64 && group >= w.block; group -= w.block)
        if (w.depth % group == 0) return group;
    return 0;
}

// (q - zero) * ratio for nibbles q of 16 columns, ratio in 1/2048: 16-bit halves of the columns' four bytes.
// `factor` holds a column's ratio twice, `zero16` its zero point * 16 twice.
typedef int16_t vs16 __attribute__((vector_size(4 * W)));
typedef uint16_t vu16 __attribute__((vector_size(4 * W)));
GOG_INLINE vs16 scaled_halves(vs16 q16, vs16 factor) {  // q16 = (q - zero) * 16: round(q16 * factor / 2^15)
#if defined(GOG_AVX512)
    return (vs16)_mm512_mulhrs_epi16((__m512i)q16, (__m512i)factor);
#elif defined(GOG_AVX2)
    return (vs16)_mm256_mulhrs_epi16((__m256i)q16, (__m256i)factor);
#elif defined(GOG_NEON)
    return (vs16)vqrdmulhq_s16((int16x8_t)q16, (int16x8_t)factor);
#else
    vs16 out;
    for (int i = 0; i < 2 * W; i++) out[i] = (int16_t)((q16[i] * factor[i] + 0x4000) >> 15);
    return out;
#endif
}
// Bytes (+ 128) of one nibble of every byte: even and odd bytes hold nibble * 16.
GOG_INLINE vb widened(vu16 even, vu16 odd, vs16 zero16, vs16 factor) {
    const vu16 e = (vu16)scaled_halves((vs16)even - zero16, factor);
    const vu16 o = (vu16)scaled_halves((vs16)odd - zero16, factor);
    return (vb)((e & 255) | (o << 8)) ^ 128;
}

// 32 of K of a panel at 5 bits: four steps of 8 as 4 bits have them ([16 columns][4] bytes each), then for each step 64
// bits of the low nibbles' values and 64 of the high ones', bit i of byte i.
constexpr size_t kFiveBytes = 320;

// Sets bit 4 of byte i where bit i of `bits` is 1.
GOG_INLINE vb with_fifth(vb nibbles, const uint8_t* bits) {
#if defined(GOG_AVX512)
    uint64_t mask;
    std::memcpy(&mask, bits, 8);
    return (vb)_mm512_mask_add_epi8((__m512i)nibbles, (__mmask64)mask, (__m512i)nibbles, _mm512_set1_epi8(16));
#elif defined(GOG_AVX2)
    int32_t word;
    std::memcpy(&word, bits, 4);
    const __m256i place = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x((int64_t)0x8040201008040201);
    const __m256i spread = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(word), place), bit);
    return nibbles | (vb)_mm256_and_si256(_mm256_cmpeq_epi8(spread, bit), _mm256_set1_epi8(16));
#elif defined(GOG_NEON)
    const uint8x16_t spread = vcombine_u8(vdup_n_u8(bits[0]), vdup_n_u8(bits[1]));
    const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
    return nibbles | (vb)vandq_u8(vtstq_u8(spread, bit), vdupq_n_u8(16));
#else
    for (int i = 0; i < 4 * W; i++) nibbles[i] |= (bits[i / 8] >> (i % 8) & 1) << 4;
    return nibbles;
#endif
}

// Step `step` of 8 of K in a block; `block` points at its first byte plus `offset`, the first column's in its 64 bytes.
GOG_INLINE void split_fives(const uint8_t* block, size_t step, size_t offset, vb* low, vb* high) {
    const vb raw = load<vb>(block + step * 64);
    const uint8_t* bits = block - offset + 256 + step * 16 + offset / 8;
    *low = with_fifth(raw & 15, bits);
    *high = with_fifth(raw >> 4, bits + 8);
}

// data: [K/4][16][4] bytes of q + 128; scales: [K/group][16].
template <int kBits>
inline void widen_panel(const PackedWeights& w, size_t panel, size_t group, uint8_t* data, float* scales) {
    const size_t blocks = w.depth / w.block, per_group = group / w.block;
    const uint16_t* block_scales = (const uint16_t*)w.scales + panel * blocks * 16;
    const uint8_t* zeros = w.zeros ? w.zeros + panel * blocks * 16 : nullptr;
    const uint8_t* in = w.data + panel * w.depth * 2 * kBits;
    const float most = (zeros ? 15.0f : (float)(1 << (kBits - 1))) / 127.0f;
    for (size_t v = 0; v < 16; v += W) {
        for (size_t g = 0; g < w.depth / group; g++) {
            const size_t first = g * per_group;
            vf peak{};
            for (size_t b = first; b < first + per_group; b++)
                peak = vmax(peak, vabs(load_half(block_scales + b * 16 + v)));
            const vf scale = peak * most;
            store(scales + g * 16 + v, scale);
            const vf inverse = scale > 0.0f ? 2048.0f / scale : vf{};
            for (size_t b = first; b < first + per_group; b++) {
                const vi ratio = to_int(load_half(block_scales + b * 16 + v) * inverse);
                const vs16 factor = (vs16)((ratio & 0xffff) | (ratio << 16));
                vi zero = splat(1 << (kBits - 1));
                if (zeros)
                    for (int i = 0; i < W; i++) zero[i] = zeros[b * 16 + v + i];
                const vs16 zero16 = (vs16)((zero << 4) | (zero << 20));
                for (size_t k = b * w.block / 8; k < (b + 1) * w.block / 8; k++) {
                    if (kBits == 5) {
                        const uint8_t* block = in + k / 4 * kFiveBytes + v * 4;
                        __builtin_prefetch(block + k % 4 * 64 + kWideAhead);
                        vb low, high;
                        split_fives(block, k % 4, v * 4, &low, &high);
                        const vu16 l = (vu16)low, h = (vu16)high;
                        store(data + 2 * k * 64 + v * 4, widened((l & 255) << 4, (l >> 8) << 4, zero16, factor));
                        store(data + (2 * k + 1) * 64 + v * 4, widened((h & 255) << 4, (h >> 8) << 4, zero16, factor));
                        continue;
                    }
                    __builtin_prefetch(in + k * 64 + kWideAhead);
                    const vu16 x = load<vu16>(in + k * 64 + v * 4);
                    store(data + 2 * k * 64 + v * 4, widened((x & 15) << 4, (x >> 4) & 240, zero16, factor));
                    store(data + (2 * k + 1) * 64 + v * 4, widened(x & 240, (x >> 8) & 240, zero16, factor));
                }
            }
        }
    }
}

}  // namespace gog
