// y = x W^T with 8-bit, 5-bit or 4-bit weights and int8 activations: one kernel for one row (bound by memory) and for
// a thousand (bound by the dot-product units), over one packed layout.
//
// Packed weights (gog_edge/native/packing.py): columns of y in panels of 16, padded to a multiple of 32;
//   8 bits: [panel][K/4][16][4] bytes, byte = q + 128;
//   4 bits: [panel][K/8][16][4] bytes, byte j of a column: low nibble = q[k + j], high nibble = q[k + 4 + j];
//   5 bits: [panel][K/32][320] bytes: four steps of K as 4 bits have them, then the fifth bits (widen.h).
// Scales: 8 bits: f32 [panel][K/block][16], mostly one block; 4 and 5 bits: f16 [panel][K/block][16].
//
// 4-bit and 5-bit weights reach the dot product in two ways.  To write token by token a vector is split into two registers of
// bytes as it is loaded, and every block of K has its own sum, scale and activation scale.  To read many tokens a
// strip of 32 columns is first widened to 8 bits with one scale per column and kWideGroup of K (widen.h), because a
// sum that is scaled every 32 products spends a third of its time on scaling.  The two round differently, so the
// caller says which rows take which; the number of rows decides nothing.
#pragma once

#include "activation.h"
#include "parallel.h"
#include "quantize.h"
#include "simd.h"
#include "widen.h"

namespace gog {

constexpr int kStreamRows = W == 16 ? 8 : 4;  // up to here memory is as much the limit as arithmetic
constexpr size_t kStreamAhead = 4096;    // fetched ahead: a page, because hardware prefetchers stop at its end

// Columns of a tile.  For few rows memory is the limit, and one panel at a time is one line through the weights: two
// panels side by side start two new streams every strip (measured: 16 against 22 GB/s of one core, blocks of 32).
constexpr int tile_columns(size_t rows) { return W == 16 && rows > kStreamRows ? 32 : 16; }
constexpr size_t kRowBytesInL2 = 384 << 10;              // activations a task keeps hot while weights stream
constexpr size_t kWideRowBytes = 2 << 20;                // the same where widening a strip must pay for itself

constexpr size_t kTaskBytes = 64 << 10;

// How a tile's weights are stored: whole rows of bytes with one scale, bytes with a scale per group of K, or
// nibbles with a scale (and a zero point) per block, or five bits with a scale per block.
enum class Format { kBytes, kGroupedBytes, kNibbles, kNibblesZeros, kFives };
constexpr int bits_of(Format format) {
    return format == Format::kFives ? 5 : format == Format::kBytes || format == Format::kGroupedBytes ? 8 : 4;
}

struct TileInput {
    const uint8_t* data;       // first panel of the tile
    size_t panel_bytes;
    const void* scales;        // of the first panel: [groups][16], f16 for nibbles
    const uint8_t* zeros;
    const int8_t* rows;        // [K/4][R][4]
    const float* row_scales;   // [groups][R]
    const int32_t* row_sums;   // [groups][R]
    size_t groups, group;
    float* strip;              // [R][kStrip], at the tile's first column
};

GOG_INLINE vi four_bytes(const int8_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return splat(x);
}

// acc[r][v] += sum over the group of weight bytes * activation bytes.
template <int kBits, int R, int kVectors>
GOG_INLINE void dot_group(vi (&acc)[R][kVectors], const uint8_t* const (&w)[kVectors], const int8_t* a, size_t group) {
    if (kBits == 8) {
        for (size_t k = 0; k < group / 4; k++) {
            vb weights[kVectors];
            GOG_UNROLL
            for (int v = 0; v < kVectors; v++) {
                if (R <= kStreamRows) __builtin_prefetch(w[v] + k * 64 + kStreamAhead);
                weights[v] = weight_bytes(w[v] + k * 64);
            }
            GOG_UNROLL
            for (int r = 0; r < R; r++) {
                const vi x = four_bytes(a + (k * R + r) * 4);
                GOG_UNROLL
                for (int v = 0; v < kVectors; v++) acc[r][v] = dot4<false>(acc[r][v], weights[v], x);
            }
        }
        return;
    }
    for (size_t k = 0; k < group / 8; k++) {
        vb low[kVectors], high[kVectors];
        GOG_UNROLL
        for (int v = 0; v < kVectors; v++) {
            if (kBits == 5) {
                const uint8_t* block = w[v] + k / 4 * kFiveBytes;
                if (R <= kStreamRows) {
                    __builtin_prefetch(block + k % 4 * 64 + kStreamAhead);
                    if (k % 4 == 0) __builtin_prefetch(block + 256 + kStreamAhead);
                }
                split_fives(block, k % 4, v * W % 16 * 4, &low[v], &high[v]);
                continue;
            }
            if (R <= kStreamRows) __builtin_prefetch(w[v] + k * 64 + kStreamAhead);
            const vb raw = load<vb>(w[v] + k * 64);
            low[v] = raw & 15;
            high[v] = raw >> 4;
        }
        GOG_UNROLL
        for (int r = 0; r < R; r++) {
            const vi x = four_bytes(a + (2 * k * R + r) * 4);
            GOG_UNROLL
            for (int v = 0; v < kVectors; v++) acc[r][v] = dot4<true>(acc[r][v], low[v], x);
        }
        GOG_UNROLL
        for (int r = 0; r < R; r++) {
            const vi x = four_bytes(a + ((2 * k + 1) * R + r) * 4);
            GOG_UNROLL
            for (int v = 0; v < kVectors; v++) acc[r][v] = dot4<true>(acc[r][v], high[v], x);
        }
    }
}

template <Format kFormat, int R>
__attribute__((noinline)) void gemm_tile(const TileInput& in) {
    constexpr int kVectors = tile_columns(R) / W;
    constexpr int kBits = bits_of(kFormat);
    constexpr bool kZeros = kFormat == Format::kNibblesZeros, kOneGroup = kFormat == Format::kBytes;
    constexpr int32_t kMiddle = kBits == 8 ? 128 - kWeightShift : 1 << (kBits - 1);
    vf total[R][kVectors];
    if (!kOneGroup)
        GOG_UNROLL
        for (int r = 0; r < R; r++)
            GOG_UNROLL
            for (int v = 0; v < kVectors; v++) total[r][v] = vf{};
    const int8_t* a = in.rows;
    const size_t group_bytes = in.group * 2 * kBits;  // of one panel: 16 columns
    for (size_t g = 0; g < (kOneGroup ? 1 : in.groups); g++, a += in.group * R) {
        const uint8_t* w[kVectors];
        GOG_UNROLL
        for (int v = 0; v < kVectors; v++)
            w[v] = in.data + v * W / 16 * in.panel_bytes + g * group_bytes + v * W % 16 * 4;
        vi acc[R][kVectors];
        GOG_UNROLL
        for (int r = 0; r < R; r++)
            GOG_UNROLL
            for (int v = 0; v < kVectors; v++)
                acc[r][v] = kZeros ? vi{} : splat(-kMiddle * in.row_sums[g * R + r]);
        dot_group<kBits, R, kVectors>(acc, w, a, in.group);
        GOG_UNROLL
        for (int v = 0; v < kVectors; v++) {
            const size_t at = (v * W / 16 * in.groups + g) * 16 + v * W % 16;
            const vf scale = kBits < 8 ? load_half((const uint16_t*)in.scales + at)
                                       : load<vf>((const float*)in.scales + at);
            vf zero{};
            if (kZeros)
                GOG_UNROLL
                for (int i = 0; i < W; i++) zero[i] = (float)in.zeros[at + i];
            GOG_UNROLL
            for (int r = 0; r < R; r++) {
                vf value = to_float(acc[r][v]);
                if (kZeros) value = madd(value, zero, -(float)in.row_sums[g * R + r]);
                const vf step = scale * in.row_scales[g * R + r];
                total[r][v] = kOneGroup ? value * step : madd(total[r][v], value, step);
            }
        }
    }
    GOG_UNROLL
    for (int r = 0; r < R; r++)
        GOG_UNROLL
        for (int v = 0; v < kVectors; v++) store(in.strip + r * kStrip + v * W, total[r][v]);
}

// Rows of a tile at most: with a sum per block in registers beside the total, 14 rows would not fit in them.
constexpr int most_rows(Format format) {
    return bits_of(format) < 8 && kTileRows > 8 ? 8 : kTileRows;
}

template <Format kFormat, int R = most_rows(kFormat)>
inline void run_tile(size_t rows, const TileInput& in) {
    if (rows == R)
        gemm_tile<kFormat, R>(in);
    else if constexpr (R > 1)
        run_tile<kFormat, R - 1>(rows, in);
}

// What strips are made of: where the panels of a strip lie and how, for the tiles of a task.
struct Strip {
    const uint8_t* data;  // two panels
    const void* scales;   // of the first panel
    const uint8_t* zeros;
    size_t panel_bytes, scale_bytes;
};

// Tile `tile` of x against one strip; `sums` takes its rows x kStrip.
template <Format kFormat>
inline void strip_tile(const QuantizedRows& x, size_t tile, const Strip& strip, float* sums) {
    const size_t first = x.first_row(tile), rows = x.tile_rows(tile);
    const int columns = tile_columns(rows);
    for (int part = 0; part < kStrip / columns; part++) {
        const size_t panel = part * columns / 16;
        TileInput in;
        in.data = strip.data + panel * strip.panel_bytes;
        in.panel_bytes = strip.panel_bytes;
        in.scales = (const char*)strip.scales + panel * strip.scale_bytes;
        in.zeros = strip.zeros ? strip.zeros + panel * x.groups * 16 : nullptr;
        in.rows = x.bytes + first * x.columns;
        in.row_scales = x.scales + first * x.groups;
        in.row_sums = x.sums + first * x.groups;
        in.groups = x.groups;
        in.group = x.group;
        in.strip = sums + part * columns;
        run_tile<kFormat>(rows, in);
    }
}

// Tiles [tile_begin, tile_end) of x against one strip; `sums` holds kTileRows x kStrip.
template <Format kFormat>
inline void multiply_strip(const QuantizedRows& x, size_t tile_begin, size_t tile_end, const Strip& strip,
                           size_t column, const Epilogue& epilogue, float* sums) {
    for (size_t tile = tile_begin; tile < tile_end; tile++) {
        const size_t first = x.first_row(tile), rows = x.tile_rows(tile);
        if (rows > kStreamRows) fetch_strip(rows, x.offset + first, column, epilogue);
        strip_tile<kFormat>(x, tile, strip, sums);
        finish_strip(sums, rows, x.offset + first, column, epilogue);
    }
}

// Cuts tiles x strips into tasks: f(first chunk of rows, tile_begin, tile_end, strip_begin, strip_end).
template <class F>
void in_tasks(const QuantizedRows& x, size_t strips, size_t strip_bytes, size_t row_bytes, const Parallel& parallel,
              const F& f) {
    const size_t most_tiles = row_bytes / (x.columns * kTileRows) + 1;
    const size_t row_chunks = div_up(x.tiles, most_tiles);
    // Enough tasks to even out cores that are not equally free, each long enough to hide its dispatch: for a few
    // rows, kTaskBytes of weights and at most 64 tasks.
    const size_t least = kTaskBytes / strip_bytes + 1, even = div_up(strips, 64);
    size_t strips_each = x.tiles > 1 ? 4 : least > even ? least : even;
    if (strips_each > strips) strips_each = strips;
    const size_t strip_chunks = div_up(strips, strips_each);
    parallel(row_chunks * strip_chunks, [&](size_t task) {
        const size_t chunk = task / strip_chunks, begin = task % strip_chunks * strips_each;
        f(chunk == 0, chunk * x.tiles / row_chunks, (chunk + 1) * x.tiles / row_chunks, begin,
          begin + strips_each < strips ? begin + strips_each : strips);
    });
}

// Where strip s of packed weights lies.
template <int kBits>
inline Strip packed_strip(const PackedWeights& w, size_t s) {
    const size_t panel_bytes = w.depth * 2 * kBits, groups = w.depth / w.block;
    const size_t scale_bytes = groups * 16 * (kBits == 8 ? 4 : 2);
    return {w.data + s * 2 * panel_bytes, (const char*)w.scales + s * 2 * scale_bytes,
            w.zeros ? w.zeros + s * 2 * groups * 16 : nullptr, panel_bytes, scale_bytes};
}

template <Format kFormat>
void gemm_packed(const QuantizedRows& x, const PackedWeights& w, const Epilogue& epilogue, const Parallel& parallel) {
    constexpr int kBits = bits_of(kFormat);
    const size_t strip_bytes = x.columns * kStrip * kBits / 8;
    in_tasks(x, w.columns / kStrip, strip_bytes, kRowBytesInL2, parallel,
             [&](bool, size_t tile_begin, size_t tile_end, size_t begin, size_t end) {
                 alignas(64) float sums[kTileRows * kStrip];
                 for (size_t s = begin; s < end; s++)
                     multiply_strip<kFormat>(x, tile_begin, tile_end, packed_strip<kBits>(w, s), s * kStrip, epilogue,
                                             sums);
                 if (epilogue.stream) finish_streaming();
             });
}

// x quantised in groups of w.block, in tiles of most_rows(…) at most.
template <int kBits>
void gemm(const QuantizedRows& x, const PackedWeights& w, const Epilogue& epilogue, const Parallel& parallel) {
    if (kBits == 8 && w.block == w.depth)
        gemm_packed<Format::kBytes>(x, w, epilogue, parallel);
    else if (kBits == 8)
        gemm_packed<Format::kGroupedBytes>(x, w, epilogue, parallel);
    else if (kBits == 5)
        gemm_packed<Format::kFives>(x, w, epilogue, parallel);
    else if (w.zeros)
        gemm_packed<Format::kNibblesZeros>(x, w, epilogue, parallel);
    else
        gemm_packed<Format::kNibbles>(x, w, epilogue, parallel);
}

// 4-bit or 5-bit weights widened strip by strip; x quantised in groups of wide_group(w).  `others` (two sets of rows,
// possibly none) are quantised as for gemm and multiplied with the blocks as they are: a strip that is about to be
// widened is read once for both.
template <int kBits>
inline void gemm_widened(const QuantizedRows& x, const QuantizedRows (&others)[2], const PackedWeights& w,
                         const Epilogue& epilogue, const Parallel& parallel) {
    in_tasks(x, w.columns / kStrip, x.columns * kStrip * kBits / 8, kWideRowBytes, parallel,
             [&](bool first_rows, size_t tile_begin, size_t tile_end, size_t begin, size_t end) {
        static thread_local Scratch bytes, scales;  // of the thread that runs the task
        uint8_t* data = bytes.get<uint8_t>(kStrip * w.depth);
        float* column_scales = scales.get<float>(kStrip * x.groups);
        alignas(64) float sums[kTileRows * kStrip];
        for (size_t s = begin; s < end; s++) {
            for (const QuantizedRows& o : others) {
                if (!first_rows || o.tiles == 0) continue;
                if (kBits == 5)
                    multiply_strip<Format::kFives>(o, 0, o.tiles, packed_strip<5>(w, s), s * kStrip, epilogue, sums);
                else if (w.zeros)
                    multiply_strip<Format::kNibblesZeros>(o, 0, o.tiles, packed_strip<4>(w, s), s * kStrip, epilogue, sums);
                else
                    multiply_strip<Format::kNibbles>(o, 0, o.tiles, packed_strip<4>(w, s), s * kStrip, epilogue, sums);
            }
            for (size_t p = 0; p < kStrip / 16; p++)
                widen_panel<kBits>(w, s * 2 + p, x.group, data + p * 16 * w.depth, column_scales + p * 16 * x.groups);
            const Strip strip{data, column_scales, nullptr, 16 * w.depth, 16 * x.groups * 4};
            multiply_strip<Format::kGroupedBytes>(x, tile_begin, tile_end, strip, s * kStrip, epilogue, sums);
        }
        if (epilogue.stream) finish_streaming();
    });
}

}  // namespace gog
