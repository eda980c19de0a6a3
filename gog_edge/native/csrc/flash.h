// Attention of a block of queries over the packed keys and values of one head, softmax computed on the way.
//
// All products run over 32-bit words: one f32, or two neighbouring bf16 (multiplied pairwise and added by one
// instruction, so a word costs the same and holds twice as much).  With h = words per head row:
//   keys    [key / W][h][W]            lane = key          scores = sum over h of splat(query word) . keys
//   values  [key words][hd padded]     lane = channel      out += splat(probability word) . values
// A word of values and probabilities pairs two neighbouring keys (bf16) or is one key (f32).
// Queries carry scale * log2(e), so that the softmax needs 2^x only.
#pragma once

#include <cmath>

#include "parallel.h"
#include "simd.h"

namespace gog {

struct F32Words {
    static constexpr int kPer = 1;
    static GOG_INLINE vf dot(vf acc, vi a, vi b) { return madd(acc, (vf)a, (vf)b); }
};
#if defined(GOG_BF16)
struct Bf16Words {
    static constexpr int kPer = 2;
    static GOG_INLINE vf dot(vf acc, vi a, vi b) {
        return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
    }
};
typedef Bf16Words FastWords;
#else
typedef F32Words FastWords;
#endif

constexpr int kQueryBlock = 24;                     // queries that share a pass over the keys
constexpr int kKeyBlock = W == 16 ? 128 : 64;       // keys per pass: scores stay in the L1 cache
constexpr int kScoreRows = W == 16 ? 12 : 6;        // register tile of the scores: rows x 2 vectors
constexpr int kFetchRows = 4;                       // tiles of more rows ask for the words they come to next:
                                                    // over a long sequence those lie in the L3 cache, or beyond
constexpr int kLargestHead = 256;

inline size_t padded_head(size_t hd) { return div_up(hd, W) * W; }
inline size_t padded_keys(size_t keys) { return div_up(keys, kKeyBlock) * kKeyBlock; }

// Row x[0, n) to words (n even for bf16): bf16 by round to nearest even.
template <class E>
GOG_INLINE void to_words(const float* x, size_t n, uint32_t* words) {
    if (E::kPer == 1) {
        std::memcpy(words, x, n * 4);
        return;
    }
    size_t i = 0;
#if defined(GOG_BF16)
    for (; i < n; i += 32) {
        const vf low = load_first(x + i, lanes_left(n, i));
        const vf high = i + W < n ? load_first(x + i + W, lanes_left(n, i + W)) : vf{};
        const __mmask16 real = n - i >= 32 ? 0xffff : (__mmask16)((1u << (n - i) / 2) - 1);
        _mm512_mask_storeu_epi32(words + i / 2, real, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
    }
#endif
    for (; i < n; i += 2) words[i / 2] = bf16_from(x[i]) | (uint32_t)bf16_from(x[i + 1]) << 16;
}

// Packed keys and values of one head and sequence.
struct HeadMemory {
    uint32_t* keys;    // padded_keys * words
    uint32_t* values;  // padded_keys / kPer * padded_head
};
template <class E>
size_t key_words(size_t keys, size_t hd) { return padded_keys(keys) * hd / E::kPer; }
template <class E>
size_t value_words(size_t keys, size_t hd) { return padded_keys(keys) / E::kPer * padded_head(hd); }

#if defined(GOG_AVX512)
// out[i][k] = rows[k][i] for a square of 16 x 16 words.
GOG_INLINE void transpose16(const uint32_t* rows, size_t row_stride, uint32_t* out) {
    __m512i a[16], b[16];
    GOG_UNROLL
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(rows + i * row_stride);
    GOG_UNROLL
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    GOG_UNROLL
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    GOG_UNROLL
    for (int i = 0; i < 4; i++) {  // a[4 q + i] holds word 4 l + i of rows 4 q … 4 q + 3 in its 128-bit lane l
        const __m512i low = _mm512_shuffle_i32x4(a[i], a[4 + i], 0x88), low2 = _mm512_shuffle_i32x4(a[i], a[4 + i], 0xdd);
        const __m512i high = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0x88);
        const __m512i high2 = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0xdd);
        _mm512_storeu_si512(out + i * 16, _mm512_shuffle_i32x4(low, high, 0x88));
        _mm512_storeu_si512(out + (8 + i) * 16, _mm512_shuffle_i32x4(low, high, 0xdd));
        _mm512_storeu_si512(out + (4 + i) * 16, _mm512_shuffle_i32x4(low2, high2, 0x88));
        _mm512_storeu_si512(out + (12 + i) * 16, _mm512_shuffle_i32x4(low2, high2, 0xdd));
    }
}
#endif

// Put the W key rows x[W][hd] (rows at and beyond `count` become zero) at key `first` (a multiple of W).
template <class E>
inline void pack_keys(const float* x, size_t hd, size_t count, size_t first, uint32_t* keys) {
    const size_t words = hd / E::kPer;
    alignas(64) uint32_t row[W][kLargestHead];
    for (size_t k = 0; k < (size_t)W; k++) {
        if (k < count)
            to_words<E>(x + k * hd, hd, row[k]);
        else
            std::memset(row[k], 0, words * 4);
    }
    uint32_t* out = keys + first * words;
    size_t i = 0;
#if defined(GOG_AVX512)
    for (; i + 16 <= words; i += 16) transpose16(&row[0][i], kLargestHead, out + i * W);
#endif
    for (; i < words; i++)
        for (int k = 0; k < W; k++) out[i * W + k] = row[k][i];
}

// bf16 of every lane in the lower, or the upper, half of its word.
GOG_INLINE vu bf16_word(vf x) {
    const vu u = (vu)x;
    return u + 0x7fff + ((u >> 16) & 1);
}
GOG_INLINE vu low_half(vf x) { return bf16_word(x) >> 16; }
GOG_INLINE vu high_half(vf x) { return bf16_word(x) & 0xffff0000u; }

// Put the value rows a and b (neighbouring keys first, first + 1; b may be null: zero) or, in f32, a alone.
template <class E>
inline void pack_values(const float* a, const float* b, size_t hd, size_t first, uint32_t* values) {
    const size_t padded = padded_head(hd);
    uint32_t* out = values + first / E::kPer * padded;
    for (size_t i = 0; i < padded; i += W) {
        const int lanes = i < hd ? lanes_left(hd, i) : 0;
        const vf low = load_first(a + i, lanes);
        if (E::kPer == 1) {
            store(out + i, low);
            continue;
        }
        const vf high = b ? load_first(b + i, lanes) : vf{};
        store(out + i, low_half(low) | high_half(high));
    }
}

GOG_INLINE vi splat_word(const uint32_t* p) { return splat((int32_t)*p); }

// scores[R][kKeyBlock], two vectors of keys at a time.
template <class E, int R>
void score_rows(const uint32_t* queries, size_t words, const uint32_t* keys, size_t key_count, float* scores) {
    for (size_t key = 0; key < key_count; key += 2 * W) {
        vf acc[R][2];
        GOG_UNROLL
        for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = vf{};
        const uint32_t* k0 = keys + key * words;
        const uint32_t* k1 = k0 + W * words;
        for (size_t i = 0; i < words; i++) {
            const vi a = load<vi>(k0 + i * W), b = load<vi>(k1 + i * W);
            if (R > kFetchRows) {
                __builtin_prefetch(k0 + (i + 2 * words) * W);
                __builtin_prefetch(k1 + (i + 2 * words) * W);
            }
            GOG_UNROLL
            for (int r = 0; r < R; r++) {
                const vi q = splat_word(queries + r * words + i);
                acc[r][0] = E::dot(acc[r][0], q, a);
                acc[r][1] = E::dot(acc[r][1], q, b);
            }
        }
        GOG_UNROLL
        for (int r = 0; r < R; r++) {
            store(scores + r * kKeyBlock + key, acc[r][0]);
            store(scores + r * kKeyBlock + key + W, acc[r][1]);
        }
    }
}

// out[R][padded] (C vectors of it) = factor[r] * out + probabilities . values
template <class E, int R, int C>
void mix_rows(const uint32_t* probabilities, size_t key_words_count, const uint32_t* values, size_t padded,
              const float* factor, float* out) {
    vf acc[R][C];
    GOG_UNROLL
    for (int r = 0; r < R; r++)
        GOG_UNROLL
        for (int c = 0; c < C; c++) acc[r][c] = load<vf>(out + r * padded + c * W) * factor[r];
    for (size_t k = 0; k < key_words_count; k++) {
        vi v[C];
        GOG_UNROLL
        for (int c = 0; c < C; c++) {
            v[c] = load<vi>(values + k * padded + c * W);
            if (R > kFetchRows / 2) __builtin_prefetch(values + (k + 8) * padded + c * W);
        }
        GOG_UNROLL
        for (int r = 0; r < R; r++) {
            const vi p = splat_word(probabilities + r * kKeyBlock + k);
            GOG_UNROLL
            for (int c = 0; c < C; c++) acc[r][c] = E::dot(acc[r][c], p, v[c]);
        }
    }
    GOG_UNROLL
    for (int r = 0; r < R; r++)
        GOG_UNROLL
        for (int c = 0; c < C; c++) store(out + r * padded + c * W, acc[r][c]);
}

// Run f<R>() for `rows` in balanced pieces of at most kMost rows: f(first, piece).
template <int kMost, template <int> class F, class... A>
GOG_INLINE void in_pieces(size_t rows, A... arguments) {
    const size_t pieces = div_up(rows, kMost);
    for (size_t p = 0; p < pieces; p++) {
        const size_t first = p * rows / pieces, count = (p + 1) * rows / pieces - first;
        F<kMost>::run(first, count, arguments...);
    }
}

template <class E>
struct Scores {
    template <int R>
    struct Rows {
        static void run(size_t first, size_t count, const uint32_t* queries, size_t words, const uint32_t* keys,
                        size_t key_count, float* scores) {
            if (count == R)
                score_rows<E, R>(queries + first * words, words, keys, key_count, scores + first * kKeyBlock);
            else if constexpr (R > 1)
                Rows<R - 1>::run(first, count, queries, words, keys, key_count, scores);
        }
    };
};
template <class E, int C>
struct Mix {
    template <int R>
    struct Rows {
        static void run(size_t first, size_t count, const uint32_t* p, size_t key_words_count, const uint32_t* values,
                        size_t padded, const float* factor, float* out) {
            if (count == R)
                mix_rows<E, R, C>(p + first * kKeyBlock, key_words_count, values, padded, factor + first,
                                  out + first * padded);
            else if constexpr (R > 1)
                Rows<R - 1>::run(first, count, p, key_words_count, values, padded, factor, out);
        }
    };
};

// Hides keys of a block from a row: scores of keys from `visible` on become kHidden, whose 2^x is 0 beside any
// score that is seen.  Finite, so that no difference of two hidden scores is a NaN.
constexpr float kHidden = -1e30f;
inline void hide(float* scores, size_t visible, size_t count) {
    vf lanes{};
    for (int i = 0; i < W; i++) lanes[i] = (float)i;
    for (size_t v = visible / W; v < count / W; v++) {
        const vf s = load<vf>(scores + v * W);
        store(scores + v * W, lanes + (float)(v * W) < (float)visible ? s : splat(kHidden));
    }
}

// Running softmax of a block of queries.  Everything that is one number a row is kept as an array over rows, so
// that a vector holds W rows.
struct Softmax {
    static constexpr int kRows = (kQueryBlock + 15) / 16 * 16;
    alignas(64) float maximum[kRows], factor[kRows], gain[kRows];
    vf sum[kQueryBlock];

    explicit Softmax(size_t rows) {
        for (int r = 0; r < kRows; r++) maximum[r] = kHidden;
        for (size_t r = 0; r < rows; r++) sum[r] = vf{};
    }

    // From the scores of the next block: the new maxima, and what the old output must be multiplied by (factor).
    // kLocal: the block's probabilities will be relative to its own maximum, left in `top`, and gain is
    // what puts them right.  scale: of each row's scores, or null.
    template <bool kLocal>
    void next(const float* scores, size_t rows, size_t count, const float* scale, float* top) {
        for (size_t first = 0; first < rows; first += 16) {
            vf lanes[16];
            for (size_t r = 0; r < 16; r++) {
                const float* s = scores + (first + r < rows ? first + r : first) * kKeyBlock;
                vf m0 = load<vf>(s), m1 = load<vf>(s + W);
                for (size_t i = 2 * W; i < count; i += 2 * W) {
                    m0 = vmax(m0, load<vf>(s + i));
                    m1 = vmax(m1, load<vf>(s + i + W));
                }
                lanes[r] = vmax(m0, m1);
            }
            fold16<true>(lanes, top + first);
        }
        for (size_t r = 0; r < rows; r += W) {
            vf block = load<vf>(top + r);
            if (scale) block *= load<vf>(scale + r);
            const vf old = load<vf>(maximum + r), fresh = vmax(old, block);
            store(maximum + r, fresh);
            store(factor + r, old == fresh ? splat(1.0f) : exp2v(old - fresh));  // exactly 1: keys that a row does
                                                                                 // not see change nothing
            store(top + r, kLocal ? block : fresh);
            if (kLocal) store(gain + r, exp2v(block - fresh));
        }
    }
};

// One row of scores to probability words, in place.
template <class E>
GOG_INLINE void to_probabilities(float* scores, size_t count, float top, float factor, vf* sum) {
    vf total = *sum * factor;
#if defined(GOG_BF16)
    if (E::kPer == 2) {
        for (size_t i = 0; i < count; i += 2 * W) {
            const vf p0 = exp2v<3, false>(load<vf>(scores + i) - top);
            const vf p1 = exp2v<3, false>(load<vf>(scores + i + W) - top);
            total += p0 + p1;
            _mm512_storeu_si512(scores + i / 2, (__m512i)_mm512_cvtne2ps_pbh((__m512)p1, (__m512)p0));
        }
        *sum = total;
        return;
    }
#endif
    for (size_t i = 0; i < count; i += W) {
        const vf p = exp2v<5, false>(load<vf>(scores + i) - top);
        total += p;
        store(scores + i, p);
    }
    *sum = total;
}

// One block of queries; every row sees key 0.
struct QueryBlock {
    const uint32_t* queries;  // [rows][words]
    size_t rows, hd;
    size_t keys;              // keys any of the rows sees
    const size_t* limits;     // [rows] keys each row sees, from key 0 on
    float* out;               // [rows][padded_head]: the attention output, normalised
};

// Outputs are unnormalised sums until the end; see Softmax for the running maxima.
template <class E>
inline void attend(const QueryBlock& block, const HeadMemory& memory) {
    const size_t words = block.hd / E::kPer, padded = padded_head(block.hd);
    alignas(64) float scores[kQueryBlock * kKeyBlock];
    alignas(64) float top[Softmax::kRows];
    Softmax softmax(block.rows);
    std::memset(block.out, 0, block.rows * padded * 4);
    for (size_t key = 0; key < block.keys; key += kKeyBlock) {
        const size_t left = block.keys - key;
        const size_t count = left >= kKeyBlock ? kKeyBlock : div_up(left, 2 * W) * 2 * W;
        in_pieces<kScoreRows, Scores<E>::template Rows>(block.rows, block.queries, words,
                                                        (const uint32_t*)memory.keys + key * words, count, scores);
        for (size_t r = 0; r < block.rows; r++) {
            const size_t limit = block.limits[r] > key ? block.limits[r] - key : 0;
            if (limit < count) hide(scores + r * kKeyBlock, limit, count);
        }
        softmax.next<false>(scores, block.rows, count, nullptr, top);
        for (size_t r = 0; r < block.rows; r++)
            to_probabilities<E>(scores + r * kKeyBlock, count, top[r], softmax.factor[r], softmax.sum + r);
        const float* factor = softmax.factor;
        const uint32_t* p = (const uint32_t*)scores;
        const uint32_t* values = memory.values + key / E::kPer * padded;
        const size_t pairs = count / E::kPer;
        for (size_t c = 0; c < padded / W;) {
            const size_t rest = padded / W - c;
            const uint32_t* v = values + c * W;
            float* out = block.out + c * W;
            if (W == 16 && rest == 5) {
                in_pieces<5, Mix<E, 5>::template Rows>(block.rows, p, pairs, v, padded, factor, out);
                c += 5;
            } else if (rest >= 4) {
                in_pieces<W == 16 ? 6 : 3, Mix<E, 4>::template Rows>(block.rows, p, pairs, v, padded,
                                                                    factor, out);
                c += 4;
            } else if (rest >= 2) {
                in_pieces<W == 16 ? 8 : 5, Mix<E, 2>::template Rows>(block.rows, p, pairs, v, padded,
                                                                    factor, out);
                c += 2;
            } else {
                in_pieces<8, Mix<E, 1>::template Rows>(block.rows, p, pairs, v, padded, factor, out);
                c += 1;
            }
        }
    }
    for (size_t r = 0; r < block.rows; r++) {
        const float total = hsum(softmax.sum[r]);
        const float inverse = total > 0 ? 1.0f / total : 0.0f;
        for (size_t i = 0; i < padded; i += W)
            store(block.out + r * padded + i, load<vf>(block.out + r * padded + i) * inverse);
    }
}

}  // namespace gog
