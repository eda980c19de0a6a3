// The arithmetic of the crop kernel, shared by the CPU build, the CUDA build (NVRTC) and the host emulation of
// the CUDA grid. Everything here is exact integer or single-operation float arithmetic, so that all builds give
// the same bits.
//
// The resize is Pillow's 8-bit bicubic (src/libImaging/Resample.c): a horizontal pass, rounding to 8 bits, then a
// vertical pass, with weights in fixed point of 22 fractional bits. The weights come from the host (taps.py).
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define GOG_HD __device__ __forceinline__
#else
#define GOG_HD inline
#endif

#if defined(__CUDACC_RTC__)
typedef unsigned char uint8_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
#else
#include <cstdint>
#endif

namespace gog {

constexpr int kChannels = 3;       // RGB, interleaved in the source
constexpr int kPrecisionBits = 22;  // of a weight: 32 - 8 (pixel) - 2 (overshoot of the cubic)
constexpr int32_t kHalf = 1 << (kPrecisionBits - 1);

// Weights of one axis. Output i is sum over j < count[i] of weight[i * stride + j] * input[start[i] + j].
struct Taps {
  const int32_t* start;
  const int32_t* count;
  const int32_t* weight;
  int32_t stride;
};

// (value - offset) * scale of one channel; offset and scale are in 8-bit steps.
struct Normal {
  float offset[kChannels];
  float scale[kChannels];
};

// Rounded fixed-point sum (kHalf included) to 0..255.
GOG_HD int32_t clip8(int32_t sum) {
  const int32_t v = sum >> kPrecisionBits;
  return v < 0 ? 0 : (v > 255 ? 255 : v);
}

// A subtraction, then a multiplication: no compiler may contract that into one rounding, so builds agree.
GOG_HD float normalise(int32_t v, float offset, float scale) {
  return (static_cast<float>(v) - offset) * scale;
}

// Row of `patches` that holds patch (row, column) of a grid `grid_w` patches wide: merge blocks in row-major
// order, m x m patches row-major inside a block.
GOG_HD int64_t patch_row(int32_t row, int32_t column, int32_t grid_w, int32_t m) {
  const int64_t block = static_cast<int64_t>(row / m) * (grid_w / m) + column / m;
  return block * m * m + (row % m) * m + column % m;
}

// Index in `patches` [n, 3 * p * p] of channel c of the resized pixel (x, y).
GOG_HD int64_t patch_index(int32_t x, int32_t y, int32_t c, int32_t p, int32_t m, int32_t out_w) {
  const int64_t row = patch_row(y / p, x / p, out_w / p, m);
  return ((row * kChannels + c) * p + y % p) * p + x % p;
}

// One channel of one output pixel along a row or a column: `step` bytes lie between neighbours.
GOG_HD int32_t tap_sum(const uint8_t* input, int32_t step, const int32_t* weight, int32_t count) {
  int32_t sum = kHalf;
  for (int32_t j = 0; j < count; ++j) sum += weight[j] * static_cast<int32_t>(input[j * step]);
  return sum;
}

}  // namespace gog
