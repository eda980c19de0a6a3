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

// One expert's rows, rotated, as int8 in tiles, see QuantizedRows; x_of(i): the row of pair i.
template <class F>
void quantize_group_rows(const Grouped& grouped, const Grouped::Group& group, const F& x_of, size_t columns,
                         const Rotation& rotation, const QuantizedRows& q, size_t tile, int8_t* bytes, float* scales,
                         int32_t* sums) {
    static thread_local Scratch turned;
    const size_t first = q.first_row(tile), count = q.tile_rows(tile);
    for (size_t r = 0; r < count; r++) {
        const float* row = x_of(grouped.pairs[group.begin + first + r]);
        if (rotation.block > 0) {
            float* y = turned.get<float>(columns);
            std::memcpy(y, row, columns * sizeof(float));
            rotate_columns(y, columns, rotation);
            row = y;
        }
        for (size_t g = 0; g < q.groups; g++) {
            const size_t begin = g * q.group, end = begin + q.group;
            const size_t real = columns > begin ? std::min(columns, end) - begin : 0;
            const size_t slot = first * q.groups + g * count + r;
            quantize_group(row + begin, real, q.group, bytes + first * q.columns + begin * count + r * 4, count * 4,
                           scales + slot, sums + slot);
        }
    }
}

// Cuts experts x strips of 32 packed columns into tasks: f(number of the group, strip_begin, strip_end).  With few rows an
// expert, a task reads kTaskBytes of weights at least, and there are about 64.
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

}  // namespace gog
