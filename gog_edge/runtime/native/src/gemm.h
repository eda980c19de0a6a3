// y = x W^T with 8-bit or 4-bit weights and int8 activations: one kernel for one row (bound by memory) and for
// a thousand (bound by the dot-product units), over one packed layout.
//
// Packed weights (gog_edge/runtime/ops/packing.py): columns of y in panels of 16, padded to a multiple of 32;
//   8 bits: [panel][K/4][16][4] bytes, byte = q + 128;
//   4 bits: [panel][K/8][16][4] bytes, byte j of a column: low nibble = q[k + j], high nibble = q[k + 4 + j].
// A 4-bit vector is split into two registers of bytes as it is loaded; the split costs three instructions for
// every 2 R dot products of a tile of R rows and runs on other ports, so nothing is gained by unpacking ahead.
// Scales: 8 bits: f32 [panel][16], one per column; 4 bits: f16 [panel][K/block][16].
#pragma once

#include "activation.h"
#include "parallel.h"
#include "quantize.h"
#include "simd.h"

namespace gog {

constexpr int kStrip = 32;                               // columns finished at a time
constexpr int kVectors = W == 16 ? 2 : 16 / W;           // accumulators per row
constexpr int kTileColumns = kVectors * W;               // 32 or 16
constexpr size_t kRowBytesInL2 = 384 << 10;              // activations a task keeps hot while weights stream

struct PackedWeights {
    const uint8_t* data = nullptr;
    const void* scales = nullptr;
    const uint8_t* zeros = nullptr;  // 4 bits: [panel][K/block][16], or null: 8
    size_t columns = 0;              // of y, as padded
    size_t depth = 0;                // K, padded to a multiple of the block
    size_t block = 0;                // columns of x that share a scale (depth for 8 bits)
};

struct TileInput {
    const uint8_t* data;       // first panel of the tile
    size_t panel_bytes;
    const void* scales;        // of the first panel
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
template <int kBits, int R>
GOG_INLINE void dot_group(vi (&acc)[R][kVectors], const uint8_t* const (&w)[kVectors], const int8_t* a, size_t group) {
    if (kBits == 8) {
        for (size_t k = 0; k < group / 4; k++) {
            vb weights[kVectors];
            GOG_UNROLL
            for (int v = 0; v < kVectors; v++) weights[v] = weight_bytes(w[v] + k * 64);
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

template <int kBits, int R, bool kZeros>
void gemm_tile(const TileInput& in) {
    constexpr int32_t kMiddle = kBits == 8 ? 128 - kWeightShift : 8;
    constexpr bool kOneGroup = kBits == 8;
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
        dot_group<kBits, R>(acc, w, a, in.group);
        GOG_UNROLL
        for (int v = 0; v < kVectors; v++) {
            const size_t at = (v * W / 16 * in.groups + g) * 16 + v * W % 16;
            const vf scale = kBits == 8 ? load<vf>((const float*)in.scales + at)
                                        : load_half((const uint16_t*)in.scales + at);
            vf zero{};
            if (kZeros)
                GOG_UNROLL
                for (int i = 0; i < W; i++) zero[i] = (float)in.zeros[at + i];
            GOG_UNROLL
            for (int r = 0; r < R; r++) {
                vf value = to_float(acc[r][v]);
                if (kZeros) value -= zero * (float)in.row_sums[g * R + r];
                const vf scaled = value * (scale * in.row_scales[g * R + r]);
                total[r][v] = kOneGroup ? scaled : total[r][v] + scaled;
            }
        }
    }
    GOG_UNROLL
    for (int r = 0; r < R; r++)
        GOG_UNROLL
        for (int v = 0; v < kVectors; v++) store(in.strip + r * kStrip + v * W, total[r][v]);
}

typedef void (*TileKernel)(const TileInput&);

template <int kBits, bool kZeros>
inline TileKernel tile_kernel(size_t rows) {
    static const TileKernel kernels[] = {
        gemm_tile<kBits, 1, kZeros>,  gemm_tile<kBits, 2, kZeros>,  gemm_tile<kBits, 3, kZeros>,
        gemm_tile<kBits, 4, kZeros>,  gemm_tile<kBits, 5, kZeros>,  gemm_tile<kBits, 6, kZeros>,
#if defined(GOG_AVX512)
        gemm_tile<kBits, 7, kZeros>,  gemm_tile<kBits, 8, kZeros>,  gemm_tile<kBits, 9, kZeros>,
        gemm_tile<kBits, 10, kZeros>, gemm_tile<kBits, 11, kZeros>, gemm_tile<kBits, 12, kZeros>,
        gemm_tile<kBits, 13, kZeros>, gemm_tile<kBits, 14, kZeros>,
#endif
    };
    static_assert(sizeof kernels / sizeof kernels[0] == kTileRows, "one kernel per tile height");
    return kernels[rows - 1];
}

// y = epilogue(x W^T): x quantised by quantize_rows with the weights' depth and block.
template <int kBits>
void gemm(const QuantizedRows& x, const PackedWeights& w, const Epilogue& epilogue, const Parallel& parallel) {
    const size_t strips = w.columns / kStrip;
    const size_t groups = w.depth / w.block;
    const size_t panel_bytes = w.depth * 2 * kBits;
    const size_t scale_bytes = groups * 16 * (kBits == 8 ? 4 : 2);
    const size_t most_tiles = kRowBytesInL2 / (w.depth * kTileRows) + 1;
    const size_t row_chunks = div_up(x.tiles, most_tiles);
    // Enough tasks to even out two cores that are not equally free, each long enough to hide its dispatch.
    size_t strips_each = x.tiles > 1 ? 4 : div_up(strips, 16);
    if (strips_each > strips) strips_each = strips;
    const size_t strip_chunks = div_up(strips, strips_each);
    parallel(row_chunks * strip_chunks, [&](size_t task) {
        const size_t tile_begin = task / strip_chunks * x.tiles / row_chunks;
        const size_t tile_end = (task / strip_chunks + 1) * x.tiles / row_chunks;
        const size_t strip_begin = task % strip_chunks * strips_each;
        const size_t strip_end = strip_begin + strips_each < strips ? strip_begin + strips_each : strips;
        alignas(64) float strip[kTileRows * kStrip];
        for (size_t s = strip_begin; s < strip_end; s++) {
            for (size_t tile = tile_begin; tile < tile_end; tile++) {
                const size_t first = x.first_row(tile), rows = x.tile_rows(tile);
                const TileKernel kernel =
                    w.zeros ? tile_kernel<kBits, true>(rows) : tile_kernel<kBits, false>(rows);
                for (int part = 0; part < kStrip / kTileColumns; part++) {
                    const size_t panel = s * 2 + part * kTileColumns / 16;
                    TileInput in;
                    in.data = w.data + panel * panel_bytes;
                    in.panel_bytes = panel_bytes;
                    in.scales = (const char*)w.scales + panel * scale_bytes;
                    in.zeros = w.zeros ? w.zeros + panel * groups * 16 : nullptr;
                    in.rows = x.bytes + first * w.depth;
                    in.row_scales = x.scales + first * groups;
                    in.row_sums = x.sums + first * groups;
                    in.groups = groups;
                    in.group = w.block;
                    in.strip = strip + part * kTileColumns;
                    kernel(in);
                }
                finish_strip(strip, rows, first, s * kStrip, epilogue);
            }
        }
        if (epilogue.stream) finish_streaming();
    });
}

}  // namespace gog
