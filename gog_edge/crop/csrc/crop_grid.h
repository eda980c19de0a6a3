// The crop kernel for a grid of thread blocks: compiled by NVRTC for a GPU, and by a C++ compiler for the tests,
// where threads of the operating system stand for those of a block.
//
// A block makes a tile of output pixels. It walks down the source rows under the tile in chunks: all threads resize
// a chunk's rows horizontally into shared memory (8 bits, as Pillow rounds between the passes), then each thread
// adds what the chunk contributes to the pixels it owns, kept in registers. Shared memory does not depend on the
// scale, and every source row is read once per tile.
#pragma once

#include "crop_core.h"

namespace gog {

constexpr int kTileW = 32, kTileH = 16;  // output pixels of a block
constexpr int kBlockThreads = 256;
constexpr int kChunkRows = 64;  // source rows in shared memory
constexpr int kOwned = kTileW * kTileH / kBlockThreads;

struct GridJob {
  const uint8_t* source;  // first pixel of the box
  int64_t row_bytes;
  int32_t out_w, out_h;
  Taps x, y;
  int32_t patch, merge;
  Normal normal;
  float* patches;  // [n, 3 * patch * patch], or null
  uint8_t* image;  // [out_h, out_w, 3], used when `patches` is null
};

struct Shared {
  uint8_t rows[kChunkRows][kChannels][kTileW];
};

// `tables` holds x.start, x.count, y.start, y.count, x.weight, y.weight one after the other.
GOG_HD void unpack_tables(const int32_t* tables, int32_t x_stride, int32_t y_stride, GridJob& job) {
  const int32_t w = job.out_w, h = job.out_h;
  const int32_t* weights = tables + 2 * w + 2 * h;
  job.x = Taps{tables, tables + w, weights, x_stride};
  job.y = Taps{tables + 2 * w, tables + 2 * w + h, weights + static_cast<int64_t>(w) * x_stride, y_stride};
}

GOG_HD int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
GOG_HD int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

// `Thread` says who runs this: index in the block, block in the grid, and a barrier over the block.
template <class Thread>
GOG_HD void crop_tile(const GridJob& job, const Thread& thread, Shared& shared) {
  const int32_t left = thread.block_x() * kTileW, top = thread.block_y() * kTileH;
  const int32_t tile_w = smaller(kTileW, job.out_w - left), tile_h = smaller(kTileH, job.out_h - top);
  const int32_t last = top + tile_h - 1;
  const int32_t rows_end = job.y.start[last] + job.y.count[last];  // starts and ends both grow with the output row
  int32_t sum[kOwned][kChannels];
  for (int k = 0; k < kOwned; ++k)
    for (int c = 0; c < kChannels; ++c) sum[k][c] = kHalf;

  for (int32_t row0 = job.y.start[top]; row0 < rows_end; row0 += kChunkRows) {
    const int32_t rows = smaller(kChunkRows, rows_end - row0);
    for (int32_t item = thread.index(); item < rows * kTileW; item += kBlockThreads) {
      const int32_t r = item / kTileW, tx = item % kTileW;
      if (tx < tile_w) {
        const int32_t x = left + tx;
        const uint8_t* in = job.source + (row0 + r) * job.row_bytes + static_cast<int64_t>(job.x.start[x]) * kChannels;
        const int32_t* w = job.x.weight + static_cast<int64_t>(x) * job.x.stride;
        for (int c = 0; c < kChannels; ++c)
          shared.rows[r][c][tx] = static_cast<uint8_t>(clip8(tap_sum(in + c, kChannels, w, job.x.count[x])));
      }
    }
    thread.sync();
    for (int k = 0; k < kOwned; ++k) {
      const int32_t pixel = thread.index() + k * kBlockThreads;
      const int32_t tx = pixel % kTileW, ty = pixel / kTileW;
      if (tx < tile_w && ty < tile_h) {
        const int32_t y = top + ty, start = job.y.start[y];
        const int32_t* w = job.y.weight + static_cast<int64_t>(y) * job.y.stride;
        const int32_t first = larger(0, row0 - start), end = smaller(job.y.count[y], row0 + rows - start);
        for (int32_t j = first; j < end; ++j)
          for (int c = 0; c < kChannels; ++c) sum[k][c] += w[j] * shared.rows[start + j - row0][c][tx];
      }
    }
    thread.sync();
  }

  for (int k = 0; k < kOwned; ++k) {
    const int32_t pixel = thread.index() + k * kBlockThreads;
    const int32_t tx = pixel % kTileW, ty = pixel / kTileW;
    if (tx < tile_w && ty < tile_h) {
      const int32_t x = left + tx, y = top + ty;
      for (int c = 0; c < kChannels; ++c) {
        const int32_t v = clip8(sum[k][c]);
        if (job.patches != nullptr) {
          job.patches[patch_index(x, y, c, job.patch, job.merge, job.out_w)] =
              normalise(v, job.normal.offset[c], job.normal.scale[c]);
        } else {
          job.image[(static_cast<int64_t>(y) * job.out_w + x) * kChannels + c] = static_cast<uint8_t>(v);
        }
      }
    }
  }
}

}  // namespace gog
