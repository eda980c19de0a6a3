// The one operation that the CPU build vectorises: for kLanes independent outputs, add four taps at a time.
//
// A "quad" is four neighbouring inputs of one lane, four bytes; kLanes quads lie together in memory. `Weights`
// are four weights, shared by all lanes, in the form that the instruction set multiplies best. A weight has up to
// 24 bits, so it is split into digits and the digits' sums are joined at the end: exact, whatever the path.
#pragma once

#include <cstdint>
#include <cstring>

#include "crop_core.h"

#if defined(GOG_PORTABLE)
#define GOG_SIMD_NAME "portable"
#elif defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define GOG_SIMD_NAME "avx512-vnni"
#define GOG_SIMD_VNNI 1
#include <immintrin.h>
#elif defined(__AVX2__)
#define GOG_SIMD_NAME "avx2"
#define GOG_SIMD_AVX2 1
#include <immintrin.h>
#elif defined(__ARM_NEON) && defined(__ARM_FEATURE_DOTPROD)
#define GOG_SIMD_NAME "neon-dotprod"
#define GOG_SIMD_NEON 1
#include <arm_neon.h>
#else
#define GOG_SIMD_NAME "portable"
#endif

namespace gog {

// Balanced base-256 digits: w = d[0] + 256 d[1] + 65536 d[2], every digit in -128..127.
struct Digits {
  int8_t d[3][4];
  explicit Digits(const int32_t (&w)[4]) {
    for (int i = 0; i < 4; ++i) {
      int32_t rest = w[i];
      for (int k = 0; k < 3; ++k) {
        d[k][i] = static_cast<int8_t>(static_cast<uint8_t>(rest & 255));
        rest = (rest - d[k][i]) >> 8;
      }
    }
  }
};

#if defined(GOG_SIMD_VNNI)

constexpr int kLanes = 16;

struct Weights {
  int32_t d[3];
  void set(const int32_t (&w)[4]) {
    const Digits digits(w);
    std::memcpy(d, digits.d, sizeof d);
  }
};

struct Sum {
  __m512i s0 = _mm512_setzero_si512(), s1 = _mm512_setzero_si512(), s2 = _mm512_setzero_si512();

  inline void add(const uint8_t* quads, const Weights& w) {
    const __m512i v = _mm512_loadu_si512(quads);
    s0 = _mm512_dpbusd_epi32(s0, v, _mm512_set1_epi32(w.d[0]));
    s1 = _mm512_dpbusd_epi32(s1, v, _mm512_set1_epi32(w.d[1]));
    s2 = _mm512_dpbusd_epi32(s2, v, _mm512_set1_epi32(w.d[2]));
  }
  // 0..255 in each of the 16 lanes
  inline __m512i value() const {
    __m512i s = _mm512_add_epi32(s0, _mm512_set1_epi32(kHalf));
    s = _mm512_add_epi32(s, _mm512_slli_epi32(s1, 8));
    s = _mm512_add_epi32(s, _mm512_slli_epi32(s2, 16));
    s = _mm512_srai_epi32(s, kPrecisionBits);
    return _mm512_min_epi32(_mm512_max_epi32(s, _mm512_setzero_si512()), _mm512_set1_epi32(255));
  }
  inline void store_bytes(uint8_t* out) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(value()));
  }
  inline void store_floats(float* out, int lanes, float offset, float scale) const {
    const __m512 v = _mm512_cvtepi32_ps(value());
    const __m512 f = _mm512_mul_ps(_mm512_sub_ps(v, _mm512_set1_ps(offset)), _mm512_set1_ps(scale));
    _mm512_mask_storeu_ps(out, static_cast<__mmask16>((1u << lanes) - 1u), f);
  }
};

#elif defined(GOG_SIMD_AVX2)

constexpr int kLanes = 8;

// w = low + 4096 high, low in 0..4095: both fit the 16-bit multiply-add.
struct Weights {
  int16_t low[4], high[4];
  void set(const int32_t (&w)[4]) {
    for (int i = 0; i < 4; ++i) {
      low[i] = static_cast<int16_t>(w[i] & 4095);
      high[i] = static_cast<int16_t>(w[i] >> 12);
    }
  }
};

struct Sum {
  __m256i l0 = _mm256_setzero_si256(), l1 = _mm256_setzero_si256();
  __m256i h0 = _mm256_setzero_si256(), h1 = _mm256_setzero_si256();

  static inline __m256i four(const int16_t* w) {
    int64_t bits;
    std::memcpy(&bits, w, sizeof bits);
    return _mm256_set1_epi64x(bits);
  }
  inline void add(const uint8_t* quads, const Weights& w) {
    const __m128i* q = reinterpret_cast<const __m128i*>(quads);
    const __m256i a = _mm256_cvtepu8_epi16(_mm_loadu_si128(q));
    const __m256i b = _mm256_cvtepu8_epi16(_mm_loadu_si128(q + 1));
    const __m256i low = four(w.low), high = four(w.high);
    l0 = _mm256_add_epi32(l0, _mm256_madd_epi16(a, low));
    l1 = _mm256_add_epi32(l1, _mm256_madd_epi16(b, low));
    h0 = _mm256_add_epi32(h0, _mm256_madd_epi16(a, high));
    h1 = _mm256_add_epi32(h1, _mm256_madd_epi16(b, high));
  }
  inline __m256i value() const {
    const __m256i low = _mm256_permute4x64_epi64(_mm256_hadd_epi32(l0, l1), 0xD8);
    const __m256i high = _mm256_permute4x64_epi64(_mm256_hadd_epi32(h0, h1), 0xD8);
    __m256i s = _mm256_add_epi32(_mm256_add_epi32(low, _mm256_slli_epi32(high, 12)), _mm256_set1_epi32(kHalf));
    s = _mm256_srai_epi32(s, kPrecisionBits);
    return _mm256_min_epi32(_mm256_max_epi32(s, _mm256_setzero_si256()), _mm256_set1_epi32(255));
  }
  inline void store_bytes(uint8_t* out) const {
    const __m256i v = value();
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packus_epi16(words, words));
  }
  inline void store_floats(float* out, int lanes, float offset, float scale) const {
    const __m256 v = _mm256_cvtepi32_ps(value());
    const __m256 f = _mm256_mul_ps(_mm256_sub_ps(v, _mm256_set1_ps(offset)), _mm256_set1_ps(scale));
    if (lanes == kLanes) {
      _mm256_storeu_ps(out, f);
    } else {
      float tmp[kLanes];
      _mm256_storeu_ps(tmp, f);
      std::memcpy(out, tmp, sizeof(float) * static_cast<size_t>(lanes));
    }
  }
};

#elif defined(GOG_SIMD_NEON)

constexpr int kLanes = 8;

// The dot product is signed x signed, so pixels are taken minus 128 and `bias` gives 128 times the weights back.
struct Weights {
  int8_t d[3][4];
  int32_t bias;
  void set(const int32_t (&w)[4]) {
    const Digits digits(w);
    std::memcpy(d, digits.d, sizeof d);
    bias = 128 * (w[0] + w[1] + w[2] + w[3]);
  }
};

struct Sum {
  int32x4_t s[3][2];
  int32_t bias = kHalf;

  Sum() {
    for (auto& row : s) row[0] = row[1] = vdupq_n_s32(0);
  }
  inline void add(const uint8_t* quads, const Weights& w) {
    const int8x16_t a = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(quads), vdupq_n_u8(0x80)));
    const int8x16_t b = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(quads + 16), vdupq_n_u8(0x80)));
    for (int k = 0; k < 3; ++k) {
      int32_t four;
      std::memcpy(&four, w.d[k], 4);
      const int8x16_t digit = vreinterpretq_s8_s32(vdupq_n_s32(four));
      s[k][0] = vdotq_s32(s[k][0], a, digit);
      s[k][1] = vdotq_s32(s[k][1], b, digit);
    }
    bias += w.bias;
  }
  inline int32x4_t value(int half) const {
    int32x4_t v = vaddq_s32(s[0][half], vdupq_n_s32(bias));
    v = vaddq_s32(v, vshlq_n_s32(s[1][half], 8));
    v = vaddq_s32(v, vshlq_n_s32(s[2][half], 16));
    v = vshrq_n_s32(v, kPrecisionBits);
    return vminq_s32(vmaxq_s32(v, vdupq_n_s32(0)), vdupq_n_s32(255));
  }
  inline void store_bytes(uint8_t* out) const {
    const uint16x8_t words = vcombine_u16(vqmovun_s32(value(0)), vqmovun_s32(value(1)));
    vst1_u8(out, vqmovn_u16(words));
  }
  inline void store_floats(float* out, int lanes, float offset, float scale) const {
    float tmp[kLanes];
    float* target = lanes == kLanes ? out : tmp;
    for (int half = 0; half < 2; ++half) {
      const float32x4_t v = vcvtq_f32_s32(value(half));
      vst1q_f32(target + 4 * half, vmulq_f32(vsubq_f32(v, vdupq_n_f32(offset)), vdupq_n_f32(scale)));
    }
    if (target == tmp) std::memcpy(out, tmp, sizeof(float) * static_cast<size_t>(lanes));
  }
};

#else

constexpr int kLanes = 8;

struct Weights {
  int32_t w[4];
  void set(const int32_t (&values)[4]) { std::memcpy(w, values, sizeof w); }
};

struct Sum {
  int32_t s[kLanes];

  Sum() {
    for (int32_t& lane : s) lane = kHalf;
  }
  inline void add(const uint8_t* quads, const Weights& w) {
    for (int r = 0; r < kLanes; ++r)
      for (int i = 0; i < 4; ++i) s[r] += w.w[i] * static_cast<int32_t>(quads[4 * r + i]);
  }
  inline void store_bytes(uint8_t* out) const {
    for (int r = 0; r < kLanes; ++r) out[r] = static_cast<uint8_t>(clip8(s[r]));
  }
  inline void store_floats(float* out, int lanes, float offset, float scale) const {
    for (int r = 0; r < lanes; ++r) out[r] = normalise(clip8(s[r]), offset, scale);
  }
};

#endif

}  // namespace gog
