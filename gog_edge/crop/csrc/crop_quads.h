// Rearranges kLanes source rows into quads: [group][channel][row][4 neighbouring pixels of that channel].
//
// The horizontal pass then reads, for each output column, a run of whole groups, one row a lane.
#pragma once

#include "crop_simd.h"

namespace gog {

constexpr int kQuadBytes = 4 * kLanes;                // one channel of one group
constexpr int kGroupBytes = kChannels * kQuadBytes;  // four pixel columns of kLanes rows

// Groups [first, groups) one pixel at a time; pixels beyond `pixels` become 0 (their weights are 0 as well).
inline void quads_plain(const uint8_t* const* rows, int pixels, int first, int groups, uint8_t* out) {
  for (int g = first; g < groups; ++g)
    for (int r = 0; r < kLanes; ++r)
      for (int c = 0; c < kChannels; ++c)
        for (int i = 0; i < 4; ++i) {
          const int x = 4 * g + i;
          out[g * kGroupBytes + c * kQuadBytes + 4 * r + i] = x < pixels ? rows[r][x * kChannels + c] : uint8_t{0};
        }
}

#if defined(GOG_SIMD_VNNI) && defined(__AVX512VBMI__)

// Each 128-bit part of a register becomes one group of one row: RRRR GGGG BBBB 0000.
inline int quads_fast(const uint8_t* const* rows, int pixels, uint8_t* out) {
  alignas(64) uint8_t index[64];
  for (int g = 0; g < 4; ++g)
    for (int c = 0; c < 4; ++c)
      for (int i = 0; i < 4; ++i) index[16 * g + 4 * c + i] = static_cast<uint8_t>(c < 3 ? 12 * g + 3 * i + c : 63);
  const __m512i shuffle = _mm512_load_si512(index);
  const __mmask64 bytes48 = (1ull << 48) - 1;
  const int groups = pixels / 16 * 4;
  for (int g = 0; g < groups; g += 4) {
    uint8_t* base = out + g * kGroupBytes;
    for (int r = 0; r < kLanes; r += 4) {
      __m512i v[4];
      for (int k = 0; k < 4; ++k)
        v[k] = _mm512_permutexvar_epi8(shuffle, _mm512_maskz_loadu_epi8(bytes48, rows[r + k] + 12 * g));
      const __m512i rg01 = _mm512_unpacklo_epi32(v[0], v[1]), rg23 = _mm512_unpacklo_epi32(v[2], v[3]);
      const __m512i b01 = _mm512_unpackhi_epi32(v[0], v[1]), b23 = _mm512_unpackhi_epi32(v[2], v[3]);
      const __m512i channel[kChannels] = {_mm512_unpacklo_epi64(rg01, rg23), _mm512_unpackhi_epi64(rg01, rg23),
                                          _mm512_unpacklo_epi64(b01, b23)};
      for (int c = 0; c < kChannels; ++c) {
        uint8_t* to = base + c * kQuadBytes + 4 * r;
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_castsi512_si128(channel[c]));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + kGroupBytes), _mm512_extracti32x4_epi32(channel[c], 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * kGroupBytes), _mm512_extracti32x4_epi32(channel[c], 2));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 3 * kGroupBytes), _mm512_extracti32x4_epi32(channel[c], 3));
      }
    }
  }
  return groups;
}

#elif defined(GOG_SIMD_VNNI) || defined(GOG_SIMD_AVX2)

inline int quads_fast(const uint8_t* const* rows, int pixels, uint8_t* out) {
  const __m128i shuffle = _mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1);
  // a load takes 16 bytes of which 12 are used: stop where the last load still ends inside the row
  const int groups = pixels * kChannels >= 16 ? (pixels * kChannels - 16) / 12 + 1 : 0;
  for (int g = 0; g < groups; ++g) {
    uint8_t* base = out + g * kGroupBytes;
    for (int r = 0; r < kLanes; r += 4) {
      __m128i v[4];
      for (int k = 0; k < 4; ++k)
        v[k] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[r + k] + 12 * g)), shuffle);
      const __m128i rg01 = _mm_unpacklo_epi32(v[0], v[1]), rg23 = _mm_unpacklo_epi32(v[2], v[3]);
      const __m128i b01 = _mm_unpackhi_epi32(v[0], v[1]), b23 = _mm_unpackhi_epi32(v[2], v[3]);
      __m128i* to = reinterpret_cast<__m128i*>(base + 4 * r);
      _mm_storeu_si128(to, _mm_unpacklo_epi64(rg01, rg23));
      _mm_storeu_si128(to + kQuadBytes / 16, _mm_unpackhi_epi64(rg01, rg23));
      _mm_storeu_si128(to + 2 * kQuadBytes / 16, _mm_unpacklo_epi64(b01, b23));
    }
  }
  return groups;
}

#elif defined(GOG_SIMD_NEON)

inline int quads_fast(const uint8_t* const* rows, int pixels, uint8_t* out) {
  const int groups = pixels / 16 * 4;
  for (int g = 0; g < groups; g += 4)
    for (int r = 0; r < kLanes; ++r) {
      const uint8x16x3_t v = vld3q_u8(rows[r] + 12 * g);
      for (int c = 0; c < kChannels; ++c) {
        uint32_t four[4];
        vst1q_u32(four, vreinterpretq_u32_u8(v.val[c]));
        for (int k = 0; k < 4; ++k)
          std::memcpy(out + (g + k) * kGroupBytes + c * kQuadBytes + 4 * r, four + k, sizeof four[k]);
      }
    }
  return groups;
}

#else

inline int quads_fast(const uint8_t* const*, int, uint8_t*) { return 0; }

#endif

inline void load_quads(const uint8_t* const* rows, int pixels, uint8_t* out) {
  quads_plain(rows, pixels, quads_fast(rows, pixels, out), (pixels + 3) / 4, out);
}

}  // namespace gog
