// Attention of a block of queries in 8 bits: both products run on the u8 x s8 dot product, twice the rate of bf16.
//
// What is rounded, and what keeps the error small:
//   keys     minus the mean of a sample of them (the same for all scores of a query, which softmax ignores), one
//            scale per key row;
//   queries  one scale per row, stored + 128 for the unsigned operand; what the 128 adds is a number per key,
//            subtracted by starting the sums there;
//   values   minus the middle of their channel's range (probabilities sum to 1: it is added back at the end), one
//            scale per channel;
//   probabilities  0 … 255 relative to the largest of their block of kKeyBlock keys, so a far larger score
//            elsewhere does not round them to nothing.
// Words are four neighbouring channels (scores) or keys (values); otherwise the layouts are those of flash.h.
#pragma once

#include "flash.h"

namespace gog {

#if defined(GOG_NEON)
constexpr float kProbabilityTop = 127.0f;  // the operand is signed on some of these CPUs
constexpr int32_t kQueryOffset = 0;
#else
constexpr float kProbabilityTop = 255.0f;
constexpr int32_t kQueryOffset = 128;
#endif

// The two products of bytes: `first` is the broadcast word (queries + kQueryOffset, or probabilities).
GOG_INLINE vi dot_bytes(vi acc, vi first, vi second) {
#if defined(GOG_NEON) && defined(__ARM_FEATURE_DOTPROD)
    return (vi)vdotq_s32((int32x4_t)acc, (int8x16_t)first, (int8x16_t)second);
#elif defined(GOG_NEON)
    const int16x8_t low = vmull_s8(vget_low_s8((int8x16_t)first), vget_low_s8((int8x16_t)second));
    const int16x8_t high = vmull_s8(vget_high_s8((int8x16_t)first), vget_high_s8((int8x16_t)second));
    return acc + (vi)vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
#else
    return dot4<false>(acc, (vb)first, second);
#endif
}

struct ByteMemory {
    uint32_t* keys;        // [key / W][words][W]
    uint32_t* values;      // [key / 4][padded_head]
    float* key_scales;     // [keys]
    int32_t* key_starts;   // [keys]: -kQueryOffset * sum of the key's bytes
    float* value_scales;   // [padded_head]
    float* value_middles;    // [padded_head]
    float* key_means;      // [padded_head]
};

inline size_t byte_words(size_t hd) { return (hd + 3) / 4; }
// 32-bit words of a head's memory, and the parts of it.
inline size_t byte_memory_words(size_t keys, size_t hd) {
    const size_t n = padded_keys(keys), padded = padded_head(hd);
    return n * byte_words(hd) + n / 4 * padded + 2 * n + 3 * padded;
}
inline ByteMemory byte_memory(uint32_t* memory, size_t keys, size_t hd) {
    const size_t n = padded_keys(keys), padded = padded_head(hd);
    ByteMemory out;
    out.keys = memory;
    out.values = out.keys + n * byte_words(hd);
    out.key_scales = (float*)(out.values + n / 4 * padded);
    out.key_starts = (int32_t*)out.key_scales + n;
    out.value_scales = (float*)out.key_starts + n;
    out.value_middles = out.value_scales + padded;
    out.key_means = out.value_middles + padded;
    return out;
}

inline float peak_of(const float* x, size_t n) {
    vf top{};
    for (size_t i = 0; i < n; i += W) top = vmax(top, vabs(load_first(x + i, lanes_left(n, i))));
    return hmax(top);
}
// Bytes of x * inverse + offset; beyond n: of 0 + offset.  Whole vectors are written.
inline void to_bytes(const float* x, size_t n, float inverse, int32_t offset, uint32_t* words) {
    for (size_t i = 0; i < n; i += W)
        store_i8((int8_t*)words + i, to_int(load_first(x + i, lanes_left(n, i)) * inverse) + offset);
}

GOG_INLINE vi four_of(const uint8_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return splat(x);
}

// A query row (scaled by scale * log2 e) to words; its scale is returned.  Room for whole vectors is needed.
inline float pack_query(const float* x, size_t hd, uint32_t* words) {
    const float peak = peak_of(x, hd);
    to_bytes(x, hd, peak > 0 ? 127.0f / peak : 0.0f, kQueryOffset, words);
    return peak / 127.0f;
}

// W key rows x[W][hd], the mean already subtracted (rows from `count` on become zero), at key `first`.
inline void pack_byte_keys(const float* x, size_t hd, size_t count, size_t first, const ByteMemory& out) {
    constexpr size_t kStride = kLargestHead / 4 + W;
    const size_t words = byte_words(hd);
    alignas(64) uint32_t row[W][kStride];
    alignas(64) float peaks[16];
    vf lanes[16];
    for (size_t k = 0; k < 16; k++) {
        lanes[k] = vf{};
        for (size_t i = 0; k < count && i < hd; i += W)
            lanes[k] = vmax(lanes[k], vabs(load_first(x + k * hd + i, lanes_left(hd, i))));
    }
    fold16<true>(lanes, peaks);
    for (size_t k = 0; k < (size_t)W; k++) {
        if (peaks[k] > 0)
            to_bytes(x + k * hd, hd, 127.0f / peaks[k], 0, row[k]);
        else
            std::memset(row[k], 0, words * 4);
    }
    uint32_t* keys = out.keys + first * words;
    size_t i = 0;
#if defined(GOG_AVX512)
    for (; i + 16 <= words; i += 16) transpose16(&row[0][i], kStride, keys + i * W);
#endif
    for (; i < words; i++)
        for (int k = 0; k < W; k++) keys[i * W + k] = row[k][i];
    vi sums{};
    for (i = 0; i < words; i++) sums = dot_bytes(sums, splat(0x01010101), load<vi>(keys + i * W));
    store(out.key_starts + first, sums * -kQueryOffset);
    store(out.key_scales + first, load<vf>(peaks) / 127.0f);
}

// Four value rows (null: zero) at key `first`, with the means and scales of their channels.
inline void pack_byte_values(const float* const rows[4], size_t hd, size_t first, const ByteMemory& memory) {
    const size_t padded = padded_head(hd);
    uint32_t* out = memory.values + first / 4 * padded;
    for (size_t i = 0; i < padded; i += W) {
        const int lanes = hd > i ? lanes_left(hd, i) : 0;
        const vf scale = load<vf>(memory.value_scales + i), mean = load<vf>(memory.value_middles + i);
        const vf inverse = scale > 0.0f ? 1.0f / scale : vf{};
        vu word{};
        for (int k = 0; k < 4; k++)
            if (rows[k] && lanes > 0)
                word |= ((vu)to_int((load_first(rows[k] + i, lanes) - mean) * inverse) & 255) << (8 * k);
        store(out + i, word);
    }
}

// scores[R][kKeyBlock] of one block of keys, the keys' scales applied.
template <int R>
void score_byte_rows(const uint32_t* queries, size_t words, const ByteMemory& memory, size_t first_key, size_t count,
                     float* scores) {
    for (size_t key = 0; key < count; key += 2 * W) {
        const uint32_t* k0 = memory.keys + (first_key + key) * words;
        const uint32_t* k1 = k0 + W * words;
        const vi s0 = load<vi>(memory.key_starts + first_key + key);
        const vi s1 = load<vi>(memory.key_starts + first_key + key + W);
        vi acc[R][2];
        GOG_UNROLL
        for (int r = 0; r < R; r++) {
            acc[r][0] = s0;
            acc[r][1] = s1;
        }
        for (size_t i = 0; i < words; i++) {
            const vi a = load<vi>(k0 + i * W), b = load<vi>(k1 + i * W);
            GOG_UNROLL
            for (int r = 0; r < R; r++) {
                const vi q = splat_word(queries + r * words + i);
                acc[r][0] = dot_bytes(acc[r][0], q, a);
                acc[r][1] = dot_bytes(acc[r][1], q, b);
            }
        }
        const vf scale0 = load<vf>(memory.key_scales + first_key + key);
        const vf scale1 = load<vf>(memory.key_scales + first_key + key + W);
        GOG_UNROLL
        for (int r = 0; r < R; r++) {
            store(scores + r * kKeyBlock + key, to_float(acc[r][0]) * scale0);
            store(scores + r * kKeyBlock + key + W, to_float(acc[r][1]) * scale1);
        }
    }
}
template <int R>
struct ByteScores {
    static void run(size_t first, size_t rows, const uint32_t* queries, size_t words, const ByteMemory& memory,
                    size_t first_key, size_t count, float* scores) {
        if (rows == R)
            score_byte_rows<R>(queries + first * words, words, memory, first_key, count, scores + first * kKeyBlock);
        else if constexpr (R > 1)
            ByteScores<R - 1>::run(first, rows, queries, words, memory, first_key, count, scores);
    }
};

// out[R][C vectors] = factor[r] * out + gain[r] * (probability bytes . values)
template <int R, int C>
void mix_byte_rows(const uint8_t* probabilities, size_t count, const uint32_t* values, size_t padded,
                   const float* factor, const float* gain, float* out) {
    vi acc[R][C];
    GOG_UNROLL
    for (int r = 0; r < R; r++)
        GOG_UNROLL
        for (int c = 0; c < C; c++) acc[r][c] = vi{};
    for (size_t k = 0; k < count / 4; k++) {
        vi v[C];
        GOG_UNROLL
        for (int c = 0; c < C; c++) v[c] = load<vi>(values + k * padded + c * W);
        GOG_UNROLL
        for (int r = 0; r < R; r++) {
            const vi p = four_of(probabilities + r * kKeyBlock + k * 4);
            GOG_UNROLL
            for (int c = 0; c < C; c++) acc[r][c] = dot_bytes(acc[r][c], p, v[c]);
        }
    }
    GOG_UNROLL
    for (int r = 0; r < R; r++)
        GOG_UNROLL
        for (int c = 0; c < C; c++) {
            float* at = out + r * padded + c * W;
            store(at, madd(load<vf>(at) * factor[r], to_float(acc[r][c]), gain[r]));
        }
}
template <int C>
struct ByteMix {
    template <int R>
    struct Rows {
        static void run(size_t first, size_t rows, const uint8_t* p, size_t count, const uint32_t* values,
                        size_t padded, const float* factor, const float* gain, float* out) {
            if (rows == R)
                mix_byte_rows<R, C>(p + first * kKeyBlock, count, values, padded, factor + first, gain + first,
                                    out + first * padded);
            else if constexpr (R > 1)
                Rows<R - 1>::run(first, rows, p, count, values, padded, factor, gain, out);
        }
    };
};

// One row of scores to bytes; sums of the bytes (not of what they were rounded from) keep the weights' sum at 1.
GOG_INLINE void to_probability_bytes(const float* scores, size_t count, float scale, float top, float factor,
                                     float gain, vf* sum, uint8_t* out) {
    const float start = std::log2(kProbabilityTop) - top;
    vi total{};
    for (size_t i = 0; i < count; i += W) {
        const vi p = to_int(exp2v<3, false>(load<vf>(scores + i) * scale + start));
        total += p;
        store_i8((int8_t*)out + i, p);
    }
    *sum = *sum * factor + to_float(total) * gain;
}

// Like attend of flash.h; every row sees all `keys`.  query_scales [rows] as pack_query gave them.
inline void attend_bytes(const uint32_t* queries, const float* query_scales, size_t rows, size_t hd, size_t keys,
                         const ByteMemory& memory, float* out) {
    const size_t words = byte_words(hd), padded = padded_head(hd);
    alignas(64) float scores[kQueryBlock * kKeyBlock];
    alignas(64) uint8_t bytes[kQueryBlock * kKeyBlock];
    alignas(64) float top[Softmax::kRows];
    Softmax softmax(rows);
    std::memset(out, 0, rows * padded * 4);
    for (size_t key = 0; key < keys; key += kKeyBlock) {
        const size_t left = keys - key;
        const size_t count = left >= kKeyBlock ? kKeyBlock : div_up(left, 2 * W) * 2 * W;
        in_pieces<kScoreRows, ByteScores>(rows, queries, words, memory, key, count, scores);
        if (left < count)
            for (size_t r = 0; r < rows; r++) hide(scores + r * kKeyBlock, left, count);
        softmax.next<true>(scores, rows, count, query_scales, top);
        for (size_t r = 0; r < rows; r++)
            to_probability_bytes(scores + r * kKeyBlock, count, query_scales[r], top[r], softmax.factor[r],
                                 softmax.gain[r], softmax.sum + r, bytes + r * kKeyBlock);
        const uint32_t* values = memory.values + key / 4 * padded;
        const float *factor = softmax.factor, *gain = softmax.gain;
        for (size_t c = 0; c < padded / W;) {
            const size_t rest = padded / W - c;
            const uint32_t* v = values + c * W;
            const uint8_t* p = bytes;
            float* to = out + c * W;
            if (W == 16 && rest == 5) {
                in_pieces<5, ByteMix<5>::template Rows>(rows, p, count, v, padded, factor, gain, to);
                c += 5;
            } else if (rest >= 4) {
                in_pieces<W == 16 ? 6 : 3, ByteMix<4>::template Rows>(rows, p, count, v, padded, factor, gain, to);
                c += 4;
            } else {
                in_pieces<8, ByteMix<1>::template Rows>(rows, p, count, v, padded, factor, gain, to);
                c += 1;
            }
        }
    }
    for (size_t r = 0; r < rows; r++) {
        const float total = hsum(softmax.sum[r]);
        const float inverse = total > 0 ? 1.0f / total : 0.0f;
        for (size_t i = 0; i < padded; i += W) {
            float* at = out + r * padded + i;
            store(at, load<vf>(at) * (inverse * load<vf>(memory.value_scales + i)) + load<vf>(memory.value_middles + i));
        }
    }
}

}  // namespace gog
