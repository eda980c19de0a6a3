// Mixtures of experts: which experts a row goes to, and a linear layer whose weights are the row's experts'.
//
// Rows are grouped by expert, so a run reads each expert that it needs once and the others never: their weights may lie
// in a mapped file that is larger than memory.  A row is multiplied the same way whichever rows share its expert: 4-bit
// weights are never widened here (a group has few rows, and widening is paid for by many).
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "gemm.h"

namespace gog {

constexpr int kFloatRows = 4, kFloatColumns = 4;  // of a tile of float products

// A float weight's W values from column i on; the last of a row may be fewer.
GOG_INLINE vf weight_values(const float* p, int lanes) { return load_first(p, lanes); }
GOG_INLINE vf weight_values(const uint16_t* p, int lanes) {
    if (lanes >= W) return load_half(p);
    alignas(64) uint16_t some[W] = {};
    std::memcpy(some, p, (size_t)lanes * 2);
    return load_half(some);
}

// out[r][c] = rows[r] . columns[c] over k values, each in one chain of sums: the shape of the tile changes no bit.
template <int R, int C, class T>
GOG_INLINE void dot_tile(const float* const* rows, const T* const* columns, size_t k, float* out, size_t stride) {
    vf sums[R][C];
    GOG_UNROLL
    for (int r = 0; r < R; r++)
        GOG_UNROLL
        for (int c = 0; c < C; c++) sums[r][c] = vf{};
    for (size_t i = 0; i < k; i += W) {
        const int lanes = lanes_left(k, i);
        vf x[R];
        GOG_UNROLL
        for (int r = 0; r < R; r++) x[r] = load_first(rows[r] + i, lanes);
        GOG_UNROLL
        for (int c = 0; c < C; c++) {
            const vf w = weight_values(columns[c] + i, lanes);
            GOG_UNROLL
            for (int r = 0; r < R; r++) sums[r][c] = madd(sums[r][c], x[r], w);
        }
    }
    GOG_UNROLL
    for (int r = 0; r < R; r++)
        GOG_UNROLL
        for (int c = 0; c < C; c++) out[r * stride + c] = hsum(sums[r][c]);
}

// The same for any number of rows and columns; a null column gives 0.
template <class T>
inline void dot_rows(const float* const* rows, size_t m, const T* const* columns, size_t n, size_t k, float* out,
                     size_t stride) {
    for (size_t c = 0; c < n; c += kFloatColumns)
        for (size_t r = 0; r < m; r += kFloatRows) {
            const bool whole = c + kFloatColumns <= n && columns[c + kFloatColumns - 1];
            if (whole && r + kFloatRows <= m) {
                dot_tile<kFloatRows, kFloatColumns>(rows + r, columns + c, k, out + r * stride + c, stride);
                continue;
            }
            for (size_t i = r; i < std::min(m, r + kFloatRows); i++) {
                if (whole) {
                    dot_tile<1, kFloatColumns>(rows + i, columns + c, k, out + i * stride + c, stride);
                    continue;
                }
                for (size_t j = c; j < std::min(n, c + kFloatColumns); j++)
                    if (columns[j])
                        dot_tile<1, 1>(rows + i, columns + j, k, out + i * stride + j, stride);
                    else
                        out[i * stride + j] = 0;
            }
        }
}

// The `top` highest of `logits` (ties: the lower index) in rising order of index, and the softmax over them.
inline void pick_experts(const float* logits, size_t count, size_t top, int32_t* ids, float* shares) {
    std::vector<bool> taken(count, false);
    std::vector<std::pair<int32_t, float>> best(top);
    for (size_t t = 0; t < top; t++) {
        size_t at = count;
        for (size_t e = 0; e < count; e++)
            if (!taken[e] && (at == count || logits[e] > logits[at])) at = e;
        taken[at] = true;
        best[t] = {(int32_t)at, logits[at]};
    }
    const float peak = best[0].second;
    float sum = 0;
    for (auto& b : best) sum += b.second = std::exp(b.second - peak);
    std::sort(best.begin(), best.end());
    for (size_t t = 0; t < top; t++) {
        ids[t] = best[t].first;
        shares[t] = best[t].second / sum;
    }
}

// Pairs (row, place among the row's experts) by expert, each expert's in rising order.
struct Grouped {
    struct Group {
        size_t expert, begin, end;  // of `pairs`
    };
    std::vector<size_t> pairs;  // row * top + place
    std::vector<Group> groups;  // without empty ones

    Grouped(const int32_t* ids, size_t count, size_t experts) : pairs(count) {
        std::vector<size_t> at(experts + 1, 0);
        for (size_t i = 0; i < count; i++) at[(size_t)ids[i] + 1]++;
        for (size_t e = 0; e < experts; e++) {
            if (at[e + 1]) groups.push_back({e, at[e], at[e] + at[e + 1]});
            at[e + 1] += at[e];
        }
        for (size_t i = 0; i < count; i++) pairs[at[(size_t)ids[i]]++] = i;
    }
};

// Cuts experts x strips of 32 packed columns into tasks: f(number of the group, strip_begin, strip_end).  With few rows
// an expert, a task reads kTaskBytes of weights at least, and there are about 64.
template <class F>
void in_expert_strips(const Grouped& grouped, size_t strips, size_t strip_bytes, const Parallel& parallel, const F& f) {
    const size_t all = grouped.groups.size() * strips;
    const size_t least = kTaskBytes / strip_bytes + 1, even = div_up(all, 64);
    const bool few = grouped.pairs.size() <= 2 * grouped.groups.size();
    const size_t each = std::min(strips, few ? std::max(least, even) : (size_t)4);
    const size_t chunks = div_up(strips, each);
    parallel(grouped.groups.size() * chunks, [&](size_t task) {
        const size_t begin = task % chunks * each;
        f(task / chunks, begin, std::min(begin + each, strips));
    });
}

// The weights of all experts, one after the other.  4 and 8 bits: each packed as gemm.h says, with `scales` and,
// perhaps, `zeros`; f16 and f32: each [columns of y (twice if gated), depth].
struct ExpertWeights {
    const void* data = nullptr;
    const void* scales = nullptr;
    const uint8_t* zeros = nullptr;
    size_t experts = 0, depth = 0;
    size_t block = 1;    // of depth, that share a scale
    size_t packed = 0;   // columns of an expert, as padded; 4 and 8 bits only
    size_t columns = 0;  // of y
    const Rotation* rotation = nullptr;  // of the rows of x, before they are rounded; null: none
    bool gated = false;  // gate and up, woven by panels of 16 where they are packed; y = silu(gate) * up

    size_t strips() const { return packed ? packed / kStrip : div_up(columns, gated ? kStrip / 2 : kStrip); }
};

// Rows of x, which a pair (row, expert) reads: one for all experts of the row, or one for each.
struct PairRows {
    const float* x;
    size_t k, share;  // pairs that share a row

    const float* operator[](size_t pair) const { return x + pair / share * k; }
};

// store(group, first of its rows, rows, column, sums): sums [rows][kStrip] of products with a strip are done.
template <class T, class S>
void float_products(const ExpertWeights& w, const Grouped& grouped, const PairRows& x, const S& store,
                    const Parallel& parallel) {
    in_expert_strips(grouped, w.strips(), kStrip * w.depth * sizeof(T), parallel,
                     [&](size_t number, size_t begin, size_t end) {
        const Grouped::Group& group = grouped.groups[number];
        const T* matrix = (const T*)w.data + group.expert * w.columns * (w.gated ? 2 : 1) * w.depth;
        alignas(64) float sums[kFloatRows * kStrip];
        for (size_t s = begin; s < end; s++) {
            const T* columns[kStrip];
            for (size_t c = 0; c < (size_t)kStrip; c++) {
                const size_t half = w.gated ? c / 16 : 0, at = w.gated ? s * 16 + c % 16 : s * kStrip + c;
                columns[c] = at < w.columns ? matrix + (half * w.columns + at) * w.depth : nullptr;
            }
            for (size_t i = group.begin; i < group.end; i += kFloatRows) {
                const size_t count = std::min((size_t)kFloatRows, group.end - i);
                const float* rows[kFloatRows];
                for (size_t r = 0; r < count; r++) rows[r] = x[grouped.pairs[i + r]];
                dot_rows(rows, count, columns, kStrip, x.k, sums, kStrip);
                store(group, i - group.begin, count, s * kStrip, sums);
            }
        }
    });
}

// The rows of one expert's tile, rotated, as int8, laid out as quantize_rows does.
inline void quantize_pairs(const Grouped& grouped, const Grouped::Group& group, const PairRows& x,
                           const Rotation* rotation, const QuantizedRows& q, size_t tile, int8_t* bytes, float* scales,
                           int32_t* sums) {
    static thread_local Scratch turned;
    const size_t first = q.first_row(tile), count = q.tile_rows(tile);
    for (size_t r = 0; r < count; r++) {
        const float* row = x[grouped.pairs[group.begin + first + r]];
        if (rotation && rotation->block > 0) {
            float* y = turned.get<float>(x.k);
            rotate_columns(row, y, x.k, *rotation);
            row = y;
        }
        for (size_t g = 0; g < q.groups; g++) {
            const size_t begin = g * q.group, real = x.k > begin ? std::min(x.k - begin, q.group) : 0;
            const size_t slot = first * q.groups + g * count + r;
            quantize_group(row + begin, real, q.group, bytes + first * q.columns + begin * count + r * 4, count * 4,
                           scales + slot, sums + slot);
        }
    }
}

template <Format kFormat, class S>
void expert_strips(const ExpertWeights& w, const Grouped& grouped, const std::vector<QuantizedRows>& rows,
                   const S& store, const Parallel& parallel) {
    constexpr int kBits = bits_of(kFormat);
    const size_t strip_bytes = w.depth * kStrip * kBits / 8, entries = w.packed * (w.depth / w.block);
    in_expert_strips(grouped, w.strips(), strip_bytes, parallel, [&](size_t number, size_t begin, size_t end) {
        const Grouped::Group& group = grouped.groups[number];
        PackedWeights one;
        one.data = (const uint8_t*)w.data + group.expert * w.strips() * strip_bytes;
        one.scales = (const char*)w.scales + group.expert * entries * (kBits == 8 ? 4 : 2);
        one.zeros = w.zeros ? w.zeros + group.expert * entries : nullptr;
        one.columns = w.packed;
        one.depth = w.depth;
        one.block = w.block;
        const QuantizedRows& q = rows[number];
        alignas(64) float sums[kTileRows * kStrip];
        for (size_t s = begin; s < end; s++)
            for (size_t tile = 0; tile < q.tiles; tile++) {
                strip_tile<kFormat>(q, tile, packed_strip<kBits>(one, s), sums);
                store(group, q.first_row(tile), q.tile_rows(tile), s * kStrip, sums);
            }
    });
}

template <int kBits, class S>
void byte_products(const ExpertWeights& w, const Grouped& grouped, const PairRows& x, const S& store,
                   const Parallel& parallel) {
    static thread_local QuantizeBuffers buffers;  // per calling thread, shared by all nodes
    const size_t pairs = grouped.pairs.size(), depth = w.depth, per_row = depth / w.block;
    int8_t* bytes = buffers.bytes.get<int8_t>(pairs * depth);
    float* scales = buffers.scales.get<float>(pairs * per_row);
    int32_t* sums = buffers.sums.get<int32_t>(pairs * per_row);
    std::vector<QuantizedRows> rows(grouped.groups.size());
    std::vector<std::pair<size_t, size_t>> tiles;  // (group, tile)
    for (size_t g = 0; g < rows.size(); g++) {
        const Grouped::Group& group = grouped.groups[g];
        QuantizedRows& q = rows[g];
        q.rows = group.end - group.begin;
        q.columns = depth;
        q.group = w.block;
        q.groups = per_row;
        q.tiles = div_up(q.rows, (size_t)most_rows(kBits == 8 ? Format::kBytes : Format::kNibbles));
        q.bytes = bytes + group.begin * depth;
        q.scales = scales + group.begin * per_row;
        q.sums = sums + group.begin * per_row;
        for (size_t tile = 0; tile < q.tiles; tile++) tiles.push_back({g, tile});
    }
    const auto quantize = [&](size_t i) {
        const Grouped::Group& group = grouped.groups[tiles[i].first];
        quantize_pairs(grouped, group, x, w.rotation, rows[tiles[i].first], tiles[i].second, bytes + group.begin * depth,
                       scales + group.begin * per_row, sums + group.begin * per_row);
    };
    if (pairs * depth < 32768)  // below the cost of waking another thread
        for (size_t i = 0; i < tiles.size(); i++) quantize(i);
    else
        parallel(tiles.size(), quantize);
    if (kBits == 8 && per_row == 1)
        expert_strips<Format::kBytes>(w, grouped, rows, store, parallel);
    else if (kBits == 8)
        expert_strips<Format::kGroupedBytes>(w, grouped, rows, store, parallel);
    else if (w.zeros)
        expert_strips<Format::kNibblesZeros>(w, grouped, rows, store, parallel);
    else
        expert_strips<Format::kNibbles>(w, grouped, rows, store, parallel);
}

// y [rows, columns] = the sum over a row's experts, in the order of ids; `sorted` has a row for each grouped pair.
inline void combine_experts(const Grouped& grouped, const float* sorted, const float* shares, float* y, size_t columns,
                            size_t top, const Parallel& parallel) {
    const size_t rows = grouped.pairs.size() / top;
    std::vector<size_t> place(grouped.pairs.size());
    for (size_t i = 0; i < place.size(); i++) place[grouped.pairs[i]] = i;
    const auto row = [&](size_t r) {
        for (size_t i = 0; i < columns; i += W) {
            const int lanes = lanes_left(columns, i);
            vf sum{};
            for (size_t t = 0; t < top; t++)
                sum = madd(sum, load_first(sorted + place[r * top + t] * columns + i, lanes), shares[r * top + t]);
            store_first(y + r * columns + i, sum, lanes);
        }
    };
    if (rows < 4)
        for (size_t r = 0; r < rows; r++) row(r);
    else
        parallel(rows, row);
}

// y [rows * top, columns] of every pair, or with shares [rows, top] their sum [rows, columns].
// kBits: 4 and 8 as LinearW4 and LinearW8 pack one matrix, 16 and 32 floats.
template <int kBits>
void expert_linear(const ExpertWeights& w, const PairRows& x, const int32_t* ids, size_t rows, size_t top,
                   const float* shares, float* y, const Parallel& parallel) {
    const Grouped grouped(ids, rows * top, w.experts);
    static thread_local Scratch sorted;  // as above
    Epilogue epilogue;
    epilogue.activation = w.gated ? Activation::kSiluMul : Activation::kNone;
    epilogue.y = shares ? sorted.get<float>(rows * top * w.columns) : y;
    epilogue.columns = w.columns;
    const auto store = [&](const Grouped::Group& group, size_t first, size_t count, size_t column, const float* sums) {
        for (size_t r = 0; r < count; r++) {
            const size_t at = group.begin + first + r;
            finish_strip(sums + r * kStrip, 1, shares ? at : grouped.pairs[at], column, epilogue);
        }
    };
    if constexpr (kBits == 32)
        float_products<float>(w, grouped, x, store, parallel);
    else if constexpr (kBits == 16)
        float_products<uint16_t>(w, grouped, x, store, parallel);
    else
        byte_products<kBits>(w, grouped, x, store, parallel);
    if (shares) combine_experts(grouped, epilogue.y, shares, y, w.columns, top, parallel);
}

// ids and shares [rows, top] of x [rows, k] by the router's matrix [experts, k].
inline void route(const float* x, size_t rows, size_t k, const float* router, size_t experts, size_t top, int32_t* ids,
                  float* shares, const Parallel& parallel) {
    static thread_local Scratch scratch;
    float* logits = scratch.get<float>(rows * experts);
    constexpr size_t kRows = 32, kExperts = 32;
    const size_t row_chunks = div_up(rows, kRows), chunks = div_up(experts, kExperts);
    parallel(row_chunks * chunks, [&](size_t task) {
        const size_t first = task / chunks * kRows, begin = task % chunks * kExperts;
        const size_t m = std::min(kRows, rows - first), n = std::min(kExperts, experts - begin);
        const float *x_rows[kRows], *columns[kExperts];
        for (size_t r = 0; r < m; r++) x_rows[r] = x + (first + r) * k;
        for (size_t c = 0; c < n; c++) columns[c] = router + (begin + c) * k;
        dot_rows(x_rows, m, columns, n, k, logits + first * experts + begin, experts);
    });
    for (size_t r = 0; r < rows; r++) pick_experts(logits + r * experts, experts, top, ids + r * top, shares + r * top);
}

}  // namespace gog
