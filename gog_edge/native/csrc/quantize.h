// Rows of f32 activations to int8, laid out for the matrix kernels; a normalisation and a rotation can ride along.
//
// Rows are taken in tiles of up to kTileRows.  In a tile of R rows the bytes lie as [K/4][R][4], so the kernel
// walks it with one pointer.  Each row has one scale per group of `group` columns (the whole row when weights
// are per channel, the weights' block otherwise): x ~ scale * q with |q| <= 127, q rounded to nearest even.
#pragma once

#include "hadamard.h"
#include "parallel.h"
#include "simd.h"

namespace gog {

#if defined(GOG_AVX512)
constexpr int kTileRows = 14;  // 14 x 2 accumulators of the 32 registers
#else
constexpr int kTileRows = 6;
#endif

enum class Norm { kNone = 0, kRms = 1, kLayer = 2 };

struct QuantizedRows {
    size_t rows = 0, columns = 0, groups = 0, group = 0;  // columns: padded to a multiple of the group
    size_t tiles = 0, offset = 0;     // offset: of the first row, in y
    const int8_t* bytes = nullptr;    // tile t starts at columns * first_row(t)
    const float* scales = nullptr;    // [row][groups] in row order, tile after tile: [groups][R] inside a tile
    const int32_t* sums = nullptr;    // the same layout: sum of q over the group

    // Rows are dealt evenly: 15 rows are tiles of 8 and 7, not of 14 and 1.
    size_t first_row(size_t tile) const { return tile * rows / tiles; }
    size_t tile_rows(size_t tile) const { return first_row(tile + 1) - first_row(tile); }
};

struct NormSpec {
    Norm kind = Norm::kNone;
    const float* weight = nullptr;  // [columns] or null: ones
    const float* bias = nullptr;    // [columns] or null: zeros
    float epsilon = 1e-6f;
};

// y = norm(x) over n columns; x and y may be the same.
inline void normalize_row(const float* x, float* y, size_t n, const NormSpec& norm) {
    const size_t whole = n / W * W;
    vf sum{}, square{};
    float tail = 0, tail_square = 0, mean = 0;
    if (norm.kind == Norm::kLayer) {
        for (size_t i = 0; i < whole; i += W) sum += load<vf>(x + i);
        for (size_t i = whole; i < n; i++) tail += x[i];
        mean = (hsum(sum) + tail) / (float)n;
    }
    for (size_t i = 0; i < whole; i += W) {
        const vf d = load<vf>(x + i) - mean;
        square += d * d;
    }
    for (size_t i = whole; i < n; i++) tail_square += (x[i] - mean) * (x[i] - mean);
    const float inverse = 1.0f / std::sqrt((hsum(square) + tail_square) / (float)n + norm.epsilon);
    for (size_t i = 0; i < whole; i += W) {
        vf v = (load<vf>(x + i) - mean) * inverse;
        if (norm.weight) v *= load<vf>(norm.weight + i);
        if (norm.bias) v += load<vf>(norm.bias + i);
        store(y + i, v);
    }
    for (size_t i = whole; i < n; i++) {
        float v = (x[i] - mean) * inverse;
        if (norm.weight) v *= norm.weight[i];
        if (norm.bias) v += norm.bias[i];
        y[i] = v;
    }
}

// One group of one row: `n` real columns (the rest of `group` is zero) to bytes at out[(k / 4) * stride + k % 4].
inline void quantize_group(const float* x, size_t n, size_t group, int8_t* out, size_t stride, float* scale,
                           int32_t* sum) {
    const size_t whole = n / W * W;
    vf top{};
    for (size_t i = 0; i < whole; i += W) top = vmax(top, vabs(load<vf>(x + i)));
    if (whole < n) top = vmax(top, vabs(load_first(x + whole, (int)(n - whole))));
    const float peak = hmax(top);
    const float inverse = peak > 0 ? 127.0f / peak : 0.0f;
    *scale = peak / 127.0f;
    vi total{};
    size_t i = 0;
    alignas(64) int8_t lane[W];
    for (; i < whole; i += W) {
        const vi q = to_int(load<vf>(x + i) * inverse);
        total += q;
        store_i8(lane, q);
        GOG_UNROLL
        for (int j = 0; j < W; j += 4, out += stride) std::memcpy(out, lane + j, 4);
    }
    for (; i < group; i += W) {
        vi q{};
        if (i < n) q = to_int(load_first(x + i, (int)(n - i)) * inverse);
        total += q;
        store_i8(lane, q);
        for (size_t j = 0; j < (size_t)W && i + j < group; j += 4, out += stride) std::memcpy(out, lane + j, 4);
    }
    *sum = hsum(total);
}

// Quantise x [rows, columns] (optionally normalised, then rotated rotated).  `padded` >=
// columns is the weights' K, a multiple of `group`; groups a multiple of 4.  most_rows: of a tile, at most kTileRows.
// Buffers live in the caller's scratch and must outlive the result's use.
struct QuantizeBuffers {
    Scratch bytes, scales, sums;
};
inline QuantizedRows quantize_rows(const float* x, size_t rows, size_t columns, size_t padded, size_t group,
                                   size_t most_rows, const NormSpec& norm, const Rotation& rotation,
                                   QuantizeBuffers& buffers, const Parallel& parallel) {
    QuantizedRows q;
    q.rows = rows;
    q.columns = padded;
    q.group = group;
    q.groups = padded / group;
    q.tiles = div_up(rows, most_rows);
    int8_t* bytes = buffers.bytes.get<int8_t>(rows * padded);
    float* scales = buffers.scales.get<float>(rows * q.groups);
    int32_t* sums = buffers.sums.get<int32_t>(rows * q.groups);
    q.bytes = bytes;
    q.scales = scales;
    q.sums = sums;
    const auto tile_task = [&](size_t tile) {
        static thread_local Scratch changed;
        const size_t first = q.first_row(tile), count = q.tile_rows(tile);
        for (size_t r = 0; r < count; r++) {
            const float* row = x + (first + r) * columns;
            if (norm.kind != Norm::kNone || rotation.block > 0) {
                float* y = changed.get<float>(columns);
                if (norm.kind != Norm::kNone) {
                    normalize_row(row, y, columns, norm);
                    row = y;
                }
                if (rotation.block > 0) rotate_columns(row, y, columns, rotation);
                row = y;
            }
            for (size_t g = 0; g < q.groups; g++) {
                const size_t begin = g * group, end = begin + group;
                const size_t real = columns > begin ? (columns < end ? columns : end) - begin : 0;
                const size_t slot = first * q.groups + g * count + r;
                quantize_group(row + begin, real, group, bytes + first * padded + begin * count + r * 4,
                               count * 4, scales + slot, sums + slot);
            }
        }
    };
    if (rows * columns < 32768) {  // below the cost of waking another thread
        for (size_t tile = 0; tile < q.tiles; tile++) tile_task(tile);
    } else {
        parallel(q.tiles, tile_task);
    }
    return q;
}

}  // namespace gog
