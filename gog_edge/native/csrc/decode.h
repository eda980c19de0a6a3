// Attention of a few queries (decoding, or checking a guessed continuation) straight over the cache: every cached
// row is read once, in the order it lies in memory, and widened in registers; nothing is repacked.
//
// What a query gets depends on the query and the keys it sees alone, to the last bit: keys are cut at fixed positions
// of the sequence (kDecodeKeys, and blocks of kKeyBlock within), every kernel adds in the same order however many
// queries or keys it takes at once, and a key that a query does not see adds exactly nothing.
#pragma once

#include "flash.h"
#include "kv_cache.h"

namespace gog {

constexpr size_t kDecodeRows = 32;   // queries of one kv head at once: tokens x heads of its group
constexpr size_t kDecodeKeys = 256;  // keys whose softmax is computed on its own
static_assert(kDecodeKeys % kKeyBlock == 0, "blocks of keys must not cross a cut");

// Up to so many rows, arithmetic is short beside reading, and keys and values are read in the order they lie in: then
// the hardware fetches ahead as fast as memory goes (measured, two rows: 13.8 -> 18.4 GB/s of one core).  More rows
// go through a block in pieces that fit the registers, and ask for what comes next themselves.
constexpr int kLineRows = 2;

// Softmax over one row of scores of this key block, in place: scores become probabilities.
// `visible` keys count (at most kKeyBlock), the others get probability 0.
GOG_INLINE void softmax_row(float* scores, size_t visible, size_t count, float* maximum, vf* sum, float* factor) {
    if (visible == 0) {
        *factor = 1.0f;
        std::memset(scores, 0, count * 4);
        return;
    }
    if (visible < count) hide(scores, visible, count);
    vf top = load<vf>(scores);
    for (size_t i = W; i < count; i += W) top = vmax(top, load<vf>(scores + i));
    const float block = hmax(top), fresh = block > *maximum ? block : *maximum;
    *factor = std::exp2(*maximum - fresh);
    *maximum = fresh;
    to_probabilities<F32Words>(scores, count, fresh, *factor, sum);
}

// scores[r][key] for R rows and 16 / R keys from `position` on.  kTail: only `left` of the keys are there, and what is
// stored for the others means nothing.
template <class C, int R, bool kTail>
GOG_INLINE void few_scores(const C& cache, size_t head, size_t position, size_t left, const float* q, size_t stride,
                           float* scores) {
    constexpr int kKeys = 16 / R;
    const auto* first = cache.row(head, position);
    const auto row = [&](int k) { return first + (kTail && (size_t)k >= left ? left - 1 : (size_t)k) * cache.hd; };
    vf acc[16];
    GOG_UNROLL
    for (int i = 0; i < 16; i++) acc[i] = vf{};
    const size_t hd = cache.hd;
    if (R <= kLineRows) {
        GOG_UNROLL
        for (int k = 0; k < kKeys; k++)
            for (size_t i = 0; i < hd; i += W) {
                const vf key = C::values(row(k), i);
                GOG_UNROLL
                for (int r = 0; r < R; r++)
                    acc[r * kKeys + k] = madd(acc[r * kKeys + k], load<vf>(q + r * stride + i), key);
            }
    }
    for (size_t i = 0; i < hd && R > kLineRows; i += W) {
        GOG_UNROLL
        for (int k = 0; k < kKeys; k++) {
            const vf key = C::values(row(k), i);
            GOG_UNROLL
            for (int r = 0; r < R; r++)
                acc[r * kKeys + k] = madd(acc[r * kKeys + k], load<vf>(q + r * stride + i), key);
        }
    }
    alignas(64) float sums[16];
    fold16<false>(acc, sums);
    for (int r = 0; r < R; r++) std::memcpy(scores + r * kKeyBlock, sums + r * kKeys, kKeys * 4);
}

// The same for head sizes that are no multiple of W.
template <class C>
inline void plain_scores(const C& cache, size_t head, size_t position, size_t keys, const float* q, size_t rows,
                         float* scores) {
    const size_t hd = cache.hd, whole = hd / W * W;
    for (size_t k = 0; k < keys; k++) {
        const auto* row = cache.row(head, position + k);
        for (size_t r = 0; r < rows; r++) {
            const float* x = q + r * hd;
            vf lanes{};
            for (size_t i = 0; i < whole; i += W) lanes = madd(lanes, load<vf>(x + i), C::values(row, i));
            float sum = hsum(lanes);
            for (size_t i = whole; i < hd; i++) sum = madd(sum, x[i], C::value(row, i));
            scores[r * kKeyBlock + k] = sum;
        }
    }
}

// Asks for `count` rows from `position` on.  Hardware prefetchers stop at every page (16 rows of 128 f16), and keys
// and values are read in turns: while one is worked on, the other is fetched.
template <class C>
GOG_INLINE void prefetch_rows(const C& cache, size_t head, size_t position, size_t count) {
    const char* p = (const char*)cache.row(head, position);
    const size_t bytes = count * cache.hd * sizeof *cache.data;
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i);
}

// Scores of R rows against a block; the values of the same keys are fetched on the way, and in a first block, which
// no other has announced, the keys themselves.
template <class C, int R>
inline void score_block(const C& cache, const C& ahead, size_t head, size_t position, size_t keys, bool first,
                        const float* q, float* scores) {
    constexpr size_t kLead = 32;
    constexpr size_t kKeys = 16 / R;
    if (cache.hd % W) return plain_scores(cache, head, position, keys, q, R, scores);
    size_t k = 0;
    for (; k + kKeys <= keys; k += kKeys) {
        if (R > kLineRows) prefetch_rows(ahead, head, position + k, kKeys);
        if (R > kLineRows && first && k + kKeys + kLead <= keys) prefetch_rows(cache, head, position + k + kLead, kKeys);
        few_scores<C, R, false>(cache, head, position + k, kKeys, q, cache.hd, scores + k);
    }
    if (k < keys) few_scores<C, R, true>(cache, head, position + k, keys - k, q, cache.hd, scores + k);
}

// out[R][hd] = factor[r] * out + sum over keys of p[r][key] * value row, C vectors of channels at a time.
// `ahead` rows from `next` on are fetched on the way (the keys of the next block).
template <class Cache, int R, int C>
GOG_INLINE void few_values(const Cache& cache, size_t head, size_t position, size_t keys, size_t channel,
                           const float* p, const float* factor, float* out, const Cache& keys_cache, size_t next,
                           size_t ahead) {
    vf acc[R][C];
    GOG_UNROLL
    for (int r = 0; r < R; r++)
        GOG_UNROLL
        for (int c = 0; c < C; c++) acc[r][c] = load<vf>(out + r * cache.hd + channel + c * W) * factor[r];
    const auto* row = cache.row(head, position);
    for (size_t k = 0; k < keys; k++, row += cache.hd) {
        if (R > kLineRows && k < ahead) prefetch_rows(keys_cache, head, next + k, 1);
        vf v[C];
        GOG_UNROLL
        for (int c = 0; c < C; c++) v[c] = Cache::values(row, channel + c * W);
        GOG_UNROLL
        for (int r = 0; r < R; r++)
            GOG_UNROLL
            for (int c = 0; c < C; c++) acc[r][c] = madd(acc[r][c], v[c], p[r * kKeyBlock + k]);
    }
    GOG_UNROLL
    for (int r = 0; r < R; r++)
        GOG_UNROLL
        for (int c = 0; c < C; c++) store(out + r * cache.hd + channel + c * W, acc[r][c]);
}

template <class Cache, int R>
inline void mix_block(const Cache& cache, size_t head, size_t position, size_t keys, const float* p,
                      const float* factor, float* out, const Cache& keys_cache, size_t ahead) {
    size_t i = 0;
    const size_t next = position + keys;
    constexpr int kMost = W == 16 && R <= kLineRows ? 8 : 4;  // vectors of channels at a time
    for (; i + kMost * W <= cache.hd; i += kMost * W)
        few_values<Cache, R, kMost>(cache, head, position, keys, i, p, factor, out, keys_cache, next, i ? 0 : ahead);
    for (; i + W <= cache.hd; i += W)
        few_values<Cache, R, 1>(cache, head, position, keys, i, p, factor, out, keys_cache, next, i ? 0 : ahead);
    for (; i < cache.hd; i++)
        for (int r = 0; r < R; r++) {
            float sum = out[r * cache.hd + i] * factor[r];
            for (size_t k = 0; k < keys; k++)
                sum = madd(sum, p[r * kKeyBlock + k], Cache::value(cache.row(head, position + k), i));
            out[r * cache.hd + i] = sum;
        }
}

// Unnormalised attention over kDecodeKeys keys; they are put together by merge_parts.
struct Partial {
    float maximum[kDecodeRows], sum[kDecodeRows];
};

// q [rows][hd] (scaled by scale * log2 e) over keys [begin, end) of one kv head; row r sees keys below limits[r].
// begin is a multiple of kDecodeKeys; from there on every kDecodeKeys keys have their own partial and out[rows][hd].
template <class C>
inline void attend_cache(const C& keys, const C& values, size_t head, size_t begin, size_t end, const float* q,
                         size_t rows, const size_t* limits, float* out, Partial* partials) {
    alignas(64) float scores[kDecodeRows * kKeyBlock];
    alignas(64) float scaled[kKeyBlock];
    float factor[kDecodeRows];
    vf sums[kDecodeRows];
    const size_t hd = keys.hd;
    Partial* partial = partials;
    for (size_t position = begin; position < end; position += kKeyBlock) {
        if (position % kDecodeKeys == 0) {
            if (position > begin) {
                partial++;
                out += rows * hd;
            }
            for (size_t r = 0; r < rows; r++) {
                partial->maximum[r] = kHidden;
                sums[r] = vf{};
            }
            std::memset(out, 0, rows * hd * 4);
        }
        const size_t count = end - position < (size_t)kKeyBlock ? end - position : kKeyBlock;
        const size_t whole = div_up(count, W) * W;
        for (size_t r = 0; r < rows;) {
            float* s = scores + r * kKeyBlock;
            const float* x = q + r * hd;
            const bool fetch = position == begin && r == 0;
            if (rows - r >= 4) {
                score_block<C, 4>(keys, values, head, position, count, fetch, x, s);
                r += 4;
            } else if (rows - r >= 2) {
                score_block<C, 2>(keys, values, head, position, count, fetch, x, s);
                r += 2;
            } else {
                score_block<C, 1>(keys, values, head, position, count, fetch, x, s);
                r += 1;
            }
        }
        if (C::kScaled)
            for (size_t k = 0; k < count; k++) scaled[k] = keys.scale(head, position + k);
        for (size_t r = 0; r < rows; r++) {
            float* s = scores + r * kKeyBlock;
            if (C::kScaled)
                for (size_t k = 0; k < count; k++) s[k] *= scaled[k];
            for (size_t k = count; k < whole; k++) s[k] = 0;
            const size_t limit = limits[r] > position ? limits[r] - position : 0;
            softmax_row(s, limit < count ? limit : count, whole, partial->maximum + r, sums + r, factor + r);
        }
        if (C::kScaled) {
            for (size_t k = 0; k < count; k++) scaled[k] = values.scale(head, position + k);
            for (size_t r = 0; r < rows; r++)
                for (size_t k = 0; k < count; k++) scores[r * kKeyBlock + k] *= scaled[k];
        }
        const size_t left = end - position - count, ahead = left < count ? left : count;
        for (size_t r = 0; r < rows;) {
            const float* p = scores + r * kKeyBlock;
            if (rows - r >= 4) {
                mix_block<C, 4>(values, head, position, count, p, factor + r, out + r * hd, keys, r ? 0 : ahead);
                r += 4;
            } else if (rows - r >= 2) {
                mix_block<C, 2>(values, head, position, count, p, factor + r, out + r * hd, keys, r ? 0 : ahead);
                r += 2;
            } else {
                mix_block<C, 1>(values, head, position, count, p, factor + r, out + r * hd, keys, r ? 0 : ahead);
                r += 1;
            }
        }
        if (left == 0 || (position + kKeyBlock) % kDecodeKeys == 0)
            for (size_t r = 0; r < rows; r++) partial->sum[r] = hsum(sums[r]);
    }
}

// out[hd] of one row from `parts` partials: that of parts[i] is at rows + i * stride.
inline void merge_parts(const Partial* partials, const float* rows, size_t stride, size_t parts, size_t row, size_t hd,
                        float* out) {
    float top = kHidden, total = 0;
    for (size_t i = 0; i < parts; i++) top = partials[i].maximum[row] > top ? partials[i].maximum[row] : top;
    for (size_t i = 0; i < hd; i++) out[i] = 0;
    for (size_t i = 0; i < parts; i++) {
        if (partials[i].maximum[row] == kHidden) continue;
        const float weight = std::exp2(partials[i].maximum[row] - top);
        total = madd(total, weight, partials[i].sum[row]);
        for (size_t j = 0; j < hd; j++) out[j] = madd(out[j], weight, rows[i * stride + row * hd + j]);
    }
    const float inverse = total > 0 ? 1.0f / total : 0.0f;
    for (size_t j = 0; j < hd; j++) out[j] *= inverse;
}

}  // namespace gog
