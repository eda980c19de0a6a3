// Vectors of W 32-bit lanes over the widest instruction set the compiler was told of (-march=native).
//
// Arithmetic is written with the compiler's vector extensions (GCC and Clang), so every kernel also compiles for
// a CPU without a special path; intrinsics appear only where the extensions have no word for an instruction:
// the u8 x s8 dot product, the bf16 dot product, conversions with rounding, and 2^n scaling.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define GOG_INLINE inline __attribute__((always_inline))
#define GOG_UNROLL _Pragma("GCC unroll 32")

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && \
    defined(__AVX512VNNI__)
#define GOG_AVX512 1
#if defined(__AVX512BF16__)
#define GOG_BF16 1
#endif
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define GOG_AVX2 1
#elif defined(__ARM_NEON) && defined(__aarch64__)
#define GOG_NEON 1
#endif

namespace gog {

#if defined(GOG_AVX512)
constexpr int W = 16;
constexpr const char* kIsa =
#if defined(GOG_BF16)
    "avx512-vnni-bf16";
#else
    "avx512-vnni";
#endif
#elif defined(GOG_AVX2)
constexpr int W = 8;
#if defined(__AVXVNNI__)
constexpr const char* kIsa = "avx2-vnni";
#else
constexpr const char* kIsa = "avx2";
#endif
#else
constexpr int W = 4;
#if defined(GOG_NEON) && defined(__ARM_FEATURE_DOTPROD) && defined(__ARM_FEATURE_MATMUL_INT8)
constexpr const char* kIsa = "neon-i8mm";
#elif defined(GOG_NEON) && defined(__ARM_FEATURE_DOTPROD)
constexpr const char* kIsa = "neon-dotprod";
#elif defined(GOG_NEON)
constexpr const char* kIsa = "neon";
#else
constexpr const char* kIsa = "generic";
#endif
#endif

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef uint8_t vb __attribute__((vector_size(4 * W)));

template <class V, class T>
GOG_INLINE V load(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <class V, class T>
GOG_INLINE void store(T* p, V v) {
    std::memcpy(p, &v, sizeof v);
}
GOG_INLINE vf splat(float x) { return x - vf{}; }
GOG_INLINE vi splat(int32_t x) { return x - vi{}; }
GOG_INLINE vf to_float(vi x) { return __builtin_convertvector(x, vf); }

GOG_INLINE vf vmax(vf a, vf b) {
#if defined(GOG_AVX512)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(GOG_AVX2)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(GOG_NEON)
    return (vf)vmaxq_f32((float32x4_t)a, (float32x4_t)b);
#else
    return a > b ? a : b;
#endif
}
// sum + a * b.  Where the CPU rounds once, always once: left to the compiler, that could differ between two kernels
// made for different numbers of rows, and a row's bits must not depend on the rows beside it.
GOG_INLINE vf madd(vf sum, vf a, vf b) {
#if defined(GOG_AVX512)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(GOG_AVX2)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#elif defined(GOG_NEON)
    return (vf)vfmaq_f32((float32x4_t)sum, (float32x4_t)a, (float32x4_t)b);
#else
    return sum + a * b;
#endif
}
GOG_INLINE vf madd(vf sum, vf a, float b) { return madd(sum, a, splat(b)); }
GOG_INLINE float madd(float sum, float a, float b) {
#if defined(GOG_AVX512) || defined(GOG_AVX2) || defined(GOG_NEON)
    return __builtin_fmaf(a, b, sum);
#else
    return sum + a * b;
#endif
}
GOG_INLINE vf vmin(vf a, vf b) { return -vmax(-a, -b); }
GOG_INLINE vf vabs(vf a) { return (vf)((vi)a & 0x7fffffff); }

GOG_INLINE float hsum(vf a) {
#if defined(GOG_AVX512)
    return _mm512_reduce_add_ps((__m512)a);
#else
    float s = 0;
    for (int i = 0; i < W; i++) s += a[i];
    return s;
#endif
}
GOG_INLINE int32_t hsum(vi a) {
#if defined(GOG_AVX512)
    return _mm512_reduce_add_epi32((__m512i)a);
#else
    int32_t s = 0;
    for (int i = 0; i < W; i++) s += a[i];
    return s;
#endif
}
GOG_INLINE float hmax(vf a) {
#if defined(GOG_AVX512)
    return _mm512_reduce_max_ps((__m512)a);
#else
    float m = a[0];
    for (int i = 1; i < W; i++) m = a[i] > m ? a[i] : m;
    return m;
#endif
}

// The lanes of 16 vectors folded to one number each, out[i] from a[i]: by sum, or by maximum.
template <bool kMaximum>
GOG_INLINE void fold16(const vf (&a)[16], float* out) {
#if defined(GOG_AVX512)
    const auto join = [](__m512 x, __m512 y) { return kMaximum ? _mm512_max_ps(x, y) : _mm512_add_ps(x, y); };
    __m512 b[8], c[4], d[2];
    GOG_UNROLL
    for (int i = 0; i < 8; i++)  // vectors 2i and 2i + 1
        b[i] = join(_mm512_unpacklo_ps((__m512)a[2 * i], (__m512)a[2 * i + 1]),
                    _mm512_unpackhi_ps((__m512)a[2 * i], (__m512)a[2 * i + 1]));
    GOG_UNROLL
    for (int i = 0; i < 4; i++)  // every 128-bit lane holds what that lane of four vectors folds to
        c[i] = join((__m512)_mm512_unpacklo_pd((__m512d)b[2 * i], (__m512d)b[2 * i + 1]),
                    (__m512)_mm512_unpackhi_pd((__m512d)b[2 * i], (__m512d)b[2 * i + 1]));
    GOG_UNROLL
    for (int i = 0; i < 2; i++)
        d[i] = join(_mm512_shuffle_f32x4(c[2 * i], c[2 * i + 1], 0x88),
                    _mm512_shuffle_f32x4(c[2 * i], c[2 * i + 1], 0xdd));
    _mm512_storeu_ps(out, join(_mm512_shuffle_f32x4(d[0], d[1], 0x88), _mm512_shuffle_f32x4(d[0], d[1], 0xdd)));
#else
    for (int i = 0; i < 16; i++) out[i] = kMaximum ? hmax(a[i]) : hsum(a[i]);
#endif
}

// Round to the nearest integer, ties to even (the default rounding mode).
GOG_INLINE vf vround(vf x) {
#if defined(GOG_AVX512)
    return (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(GOG_AVX2)
    return (vf)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(GOG_NEON)
    return (vf)vrndnq_f32((float32x4_t)x);
#else
    const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it leaves no fraction bits
    return (x + magic) - magic;
#endif
}
GOG_INLINE vi to_int(vf x) {  // nearest, ties to even
#if defined(GOG_AVX512)
    return (vi)_mm512_cvtps_epi32((__m512)x);
#elif defined(GOG_AVX2)
    return (vi)_mm256_cvtps_epi32((__m256)x);
#else
    return __builtin_convertvector(vround(x), vi);
#endif
}

// u8 weights x s8 activations: lane i gains sum over 4 bytes of w[4i+j] * a[4i+j], exactly.
// Where the CPU has only a signed product (Arm dotprod) weights are stored minus 128 (see weight_bytes).
#if defined(GOG_NEON) && defined(__ARM_FEATURE_DOTPROD) && !defined(__ARM_FEATURE_MATMUL_INT8)
constexpr int kWeightShift = 128;
#else
constexpr int kWeightShift = 0;
#endif
template <bool kSmall>  // kSmall: every weight byte is below 16
GOG_INLINE vi dot4(vi acc, vb w, vi a) {
#if defined(GOG_AVX512)
    return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, (__m512i)a);
#elif defined(GOG_AVX2) && defined(__AVXVNNI__)
    return (vi)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)w, (__m256i)a);
#elif defined(GOG_AVX2)
    const __m256i x = (__m256i)w, y = (__m256i)a;
    if (kSmall) {  // 15 * 127 * 2 fits 16 bits: the saturating instruction is exact
        const __m256i pairs = _mm256_maddubs_epi16(x, y);
        return acc + (vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    }
    const __m256i low = _mm256_set1_epi16(0xff);
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(x, low),
                                           _mm256_srai_epi16(_mm256_slli_epi16(y, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(x, 8), _mm256_srai_epi16(y, 8));
    return acc + (vi)even + (vi)odd;
#elif defined(GOG_NEON) && defined(__ARM_FEATURE_MATMUL_INT8)
    return (vi)vusdotq_s32((int32x4_t)acc, (uint8x16_t)w, (int8x16_t)a);
#elif defined(GOG_NEON) && defined(__ARM_FEATURE_DOTPROD)
    return (vi)vdotq_s32((int32x4_t)acc, (int8x16_t)w, (int8x16_t)a);
#else
    typedef int8_t vs __attribute__((vector_size(4 * W)));
    const vs s = (vs)a;
    vi sum = acc;
    for (int i = 0; i < W; i++)
        sum[i] += w[4 * i] * s[4 * i] + w[4 * i + 1] * s[4 * i + 1] + w[4 * i + 2] * s[4 * i + 2] +
                  w[4 * i + 3] * s[4 * i + 3];
    return sum;
#endif
}
GOG_INLINE vb weight_bytes(const uint8_t* p) {  // 8-bit weights as dot4 wants them
    vb v = load<vb>(p);
    if (kWeightShift) v ^= 0x80;
    return v;
}

GOG_INLINE uint16_t bf16_from(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

GOG_INLINE float half_to_float(uint16_t h) {
#if defined(GOG_AVX512) || defined(GOG_AVX2)
    return _cvtsh_ss(h);
#elif defined(GOG_NEON)
    __fp16 x;
    std::memcpy(&x, &h, 2);
    return (float)x;
#else
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    const uint32_t mantissa = h & 0x3ff, exponent = (h >> 10) & 31;
    float f;
    if (exponent == 0) {
        f = (float)mantissa * 5.9604644775390625e-8f;
        return sign ? -f : f;
    }
    const uint32_t u = sign | (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | (mantissa << 13);
    std::memcpy(&f, &u, 4);
    return f;
#endif
}
GOG_INLINE uint16_t float_to_half(float x) {
#if defined(GOG_AVX512) || defined(GOG_AVX2)
    return (uint16_t)_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
#elif defined(GOG_NEON)
    const __fp16 h = (__fp16)x;
    uint16_t u;
    std::memcpy(&u, &h, 2);
    return u;
#else
    uint32_t u;
    std::memcpy(&u, &x, 4);
    const uint32_t sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffff;
    if (magnitude >= 0x47800000) return (uint16_t)(sign | (magnitude > 0x7f800000 ? 0x7e00 : 0x7c00));
    if (magnitude < 0x38800000) return (uint16_t)(sign | (uint32_t)std::lrint(std::fabs(x) * 16777216.0f));
    return (uint16_t)(sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13));
#endif
}
GOG_INLINE vf load_half(const uint16_t* p) {
#if defined(GOG_AVX512)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(GOG_AVX2)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#elif defined(GOG_NEON)
    return (vf)vcvt_f32_f16(vld1_f16((const __fp16*)p));
#else
    vf v;
    for (int i = 0; i < W; i++) v[i] = half_to_float(p[i]);
    return v;
#endif
}
GOG_INLINE void store_half(uint16_t* p, vf x) {
#if defined(GOG_AVX512)
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(GOG_AVX2)
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < W; i++) p[i] = float_to_half(x[i]);
#endif
}
GOG_INLINE vf load_i8(const int8_t* p) {
#if defined(GOG_AVX512)
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(GOG_AVX2)
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
    vf v;
    for (int i = 0; i < W; i++) v[i] = (float)p[i];
    return v;
#endif
}
// Integers in [-128, 127] to W bytes.
GOG_INLINE void store_i8(int8_t* p, vi x) {
#if defined(GOG_AVX512)
    _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)x));
#else
    for (int i = 0; i < W; i++) p[i] = (int8_t)x[i];
#endif
}
// The ragged end of a row: its first `n` lanes, of which lanes_left(columns, i) remain at column i.
GOG_INLINE int lanes_left(size_t columns, size_t i) { return columns - i < (size_t)W ? (int)(columns - i) : W; }
GOG_INLINE void store_first(float* p, vf x, int n) {
    if (n >= W) {
        store(p, x);
    } else {
#if defined(GOG_AVX512)
        _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)x);
#else
        for (int i = 0; i < n; i++) p[i] = x[i];
#endif
    }
}
GOG_INLINE vf load_first(const float* p, int n) {
    if (n >= W) return load<vf>(p);
#if defined(GOG_AVX512)
    return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
    vf v{};
    for (int i = 0; i < n; i++) v[i] = p[i];
    return v;
#endif
}

// 2^x by a minimax polynomial on [-1/2, 1/2]: relative error 1e-7 (degree 5), or 8e-5 (degree 3, enough for a
// result that is rounded to 8 bits).  kClamped: x is clamped to [-126, 127], so what would be a subnormal becomes
// 2^-126; otherwise x must be finite and below 127, and far below -126 gives 0: a hidden key must add nothing at all.
template <int kDegree = 5, bool kClamped = true>
GOG_INLINE vf exp2v(vf x) {
#if defined(GOG_AVX512)
    if (kClamped) x = vmax(x, splat(-126.0f));
#else
    const vi seen = x >= -126.0f;
    x = vmin(vmax(x, splat(-126.0f)), splat(127.0f));
#endif
    const vf n = vround(x);
    const vf r = x - n;
    vf p;
    if (kDegree >= 5) {
        p = r * 1.327647164e-3f + 9.675541551e-3f;
        p = p * r + 5.550713277e-2f;
        p = p * r + 2.402211972e-1f;
        p = p * r + 6.931469671e-1f;
        p = p * r + 1.000000072f;
    } else {
        p = r * 5.517166595e-2f + 2.426111358e-1f;
        p = p * r + 6.932609872e-1f;
        p = p * r + 9.999280728e-1f;
    }
#if defined(GOG_AVX512)
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    const vi power = (vi)p + (__builtin_convertvector(n, vi) << 23);
    return (vf)(kClamped ? power : power & seen);
#endif
}
GOG_INLINE vf expv(vf x) { return exp2v(x * 1.44269504088896f); }

GOG_INLINE vf reciprocal(vf x) {  // relative error below 1e-6
#if defined(GOG_AVX512)
    const vf y = (vf)_mm512_rcp14_ps((__m512)x);
    return y * (2.0f - x * y);
#else
    return 1.0f / x;
#endif
}

}  // namespace gog
