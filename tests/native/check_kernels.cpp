// Kernels against plain loops, without Python or ONNX Runtime: for sanitizers, and for CPUs that only an emulator
// has.  Exits 1 and says which case is off.  Built and run by test_kernels_cpp.py.
#include <cstdio>
#include <random>
#include <thread>

#include "decode.h"
#include "gemm.h"
#include "vision.h"
#include "vision8.h"

using namespace gog;

static int failures = 0;
static std::mt19937 engine(7);

static float normal() { return std::normal_distribution<float>()(engine); }
static std::vector<float> normals(size_t n) {
    std::vector<float> x(n);
    for (float& v : x) v = normal();
    return x;
}
static void expect(const char* what, const std::vector<float>& got, const std::vector<double>& want, double tolerance) {
    double worst = 0, largest = 1e-9;
    for (size_t i = 0; i < want.size(); i++) {
        worst = std::fmax(worst, std::fabs(got[i] - want[i]));
        largest = std::fmax(largest, std::fabs(want[i]));
    }
    const bool good = worst <= tolerance * largest && std::isfinite(worst);
    std::printf("%-40s error %.2e of %.2e %s\n", what, worst, largest, good ? "ok" : "WRONG");
    failures += !good;
}

// Row `row` computed beside others must have the bits that it has alone.
static void expect_bits(const char* what, size_t row, const float* beside, const std::vector<float>& alone) {
    const bool same = std::memcmp(alone.data(), beside, alone.size() * 4) == 0;
    if (!same) std::printf("%s: row %zu has other bits alone WRONG\n", what, row);
    failures += !same;
}

// Two threads, so that a race has a chance to show.
static void dispatch(const void*, Parallel::Task task, size_t count, void* user) {
    std::thread other([&] {
        for (size_t i = 1; i < count; i += 2) task(user, i);
    });
    for (size_t i = 0; i < count; i += 2) task(user, i);
    other.join();
}
static const Parallel kParallel(nullptr, &dispatch);

#include "check_delta.h"
#include "check_experts.h"

struct Linear {
    size_t m, n, k, block;
    int bits;
    bool zeros;
    size_t rotation = 0;
};

static void check_linear(const Linear& c) {
    const size_t groups = c.k / c.block, columns = div_up(c.n, 32) * 32;
    std::vector<uint8_t> data(columns * c.k * (size_t)c.bits / 8), zeros(columns * groups, 8);
    std::vector<float> scales(columns * groups);
    std::vector<uint16_t> halves(columns * groups);
    std::vector<int> q(columns * c.k);
    for (size_t i = 0; i < scales.size(); i++) {
        halves[i] = float_to_half(std::fabs(normal()) * 0.05f + 0.01f);
        scales[i] = half_to_float(halves[i]);
        if (c.zeros) zeros[i] = (uint8_t)(engine() % 16);
    }
    for (size_t col = 0; col < columns; col++)
        for (size_t i = 0; i < c.k; i++) {
            const size_t panel = col / 16, lane = col % 16;
            if (c.bits == 8) {
                const int v = (int)(engine() % 255) - 127;
                q[col * c.k + i] = v;
                data[panel * c.k * 16 + i / 4 * 64 + lane * 4 + i % 4] = (uint8_t)(v + 128);
            } else {
                const int v = (int)(engine() % 16);
                const size_t at = (panel * groups + i / c.block) * 16 + lane;
                q[col * c.k + i] = v - zeros[at];
                data[panel * c.k * 8 + i / 8 * 64 + lane * 4 + i % 4] |= (uint8_t)(v << (i % 8 >= 4 ? 4 : 0));
            }
        }
    const std::vector<float> x = normals(c.m * c.k);
    PackedWeights w;
    w.data = data.data();
    w.scales = c.bits == 8 ? (const void*)scales.data() : halves.data();
    w.zeros = c.zeros ? zeros.data() : nullptr;
    w.columns = columns;
    w.depth = c.k;
    w.block = c.block;
    const Rotation rotation(c.rotation);
    std::vector<float> turned = x;  // one row after the other, by the definition: signs, then sums over all of a block
    for (size_t r = 0; r < c.m; r++)
        for (size_t at = 0; c.rotation > 0 && at < c.k; at += c.rotation) {
            float* row = &turned[r * c.k + (at + c.rotation <= c.k ? at : c.k - c.rotation)];
            const std::vector<float> before(row, row + c.rotation);
            for (size_t i = 0; i < c.rotation; i++) {
                double sum = 0;
                for (size_t j = 0; j < c.rotation; j++)
                    sum += (__builtin_popcountll(i & j) % 2 ? -1.0 : 1.0) * rotation.factors[j] * before[j];
                row[i] = (float)sum;
            }
        }
    for (const bool widened : {false, true}) {
        const size_t group = widened ? wide_group(w) : c.block;
        if (widened && (c.bits == 8 || group == 0)) continue;
        QuantizeBuffers buffers;
        const size_t most = c.bits == 4 && !widened ? most_rows(Format::kNibbles) : kTileRows;
        const QuantizedRows rows = quantize_rows(x.data(), c.m, c.k, c.k, group, most, {}, rotation, buffers, kParallel);
        std::vector<float> y(c.m * c.n);
        Epilogue e;
        e.y = y.data();
        e.columns = c.n;
        if (widened)
            gemm_widened<4>(rows, {}, w, e, kParallel);
        else if (c.bits == 8)
            gemm<8>(rows, w, e, kParallel);
        else
            gemm<4>(rows, w, e, kParallel);
        std::vector<double> want(c.m * c.n);
        for (size_t r = 0; r < c.m; r++)
            for (size_t col = 0; col < c.n; col++)
                for (size_t g = 0; g < c.k / group; g++) {
                    float peak = 0;
                    for (size_t i = g * group; i < (g + 1) * group; i++) peak = std::fmax(peak, std::fabs(turned[r * c.k + i]));
                    double sum = 0;
                    for (size_t i = g * group; i < (g + 1) * group; i++) {
                        const size_t at = (col / 16 * groups + i / c.block) * 16 + col % 16;
                        const double step = std::nearbyint(turned[r * c.k + i] * (127.0f / peak));
                        sum += step * q[col * c.k + i] * scales[at];
                    }
                    want[r * c.n + col] += sum * peak / 127;
                }
        char name[80];
        std::snprintf(name, sizeof name, "linear %d bits %zux%zux%zu block %zu%s%s", c.bits, c.m, c.n, c.k, c.block,
                      c.zeros ? " zeros" : "", widened ? " widened" : "");
        expect(name, y, want, widened ? 0.02 : c.rotation ? 4e-3 : 1e-5);  // a turned value on a tie
        for (size_t r = 0; r < c.m; r++) {
            QuantizeBuffers own;
            const QuantizedRows one = quantize_rows(&x[r * c.k], 1, c.k, c.k, group, most, {}, rotation, own, kParallel);
            std::vector<float> alone(c.n);
            e.y = alone.data();
            if (widened)
                gemm_widened<4>(one, {}, w, e, kParallel);
            else if (c.bits == 8)
                gemm<8>(one, w, e, kParallel);
            else
                gemm<4>(one, w, e, kParallel);
            expect_bits(name, r, &y[r * c.n], alone);
        }
    }
}

static void softmax_mix(const std::vector<double>& scores, const float* values, size_t stride, size_t hd, double* out) {
    double top = -1e300, sum = 0;
    for (double s : scores) top = std::fmax(top, s);
    for (size_t k = 0; k < scores.size(); k++) {
        const double p = std::exp(scores[k] - top);
        sum += p;
        for (size_t i = 0; i < hd; i++) out[i] += p * values[k * stride + i];
    }
    for (size_t i = 0; i < hd; i++) out[i] /= sum;
}

static void check_vision(size_t n, size_t hd, size_t window) {
    const size_t heads = 2, width = 3 * heads * hd;
    const std::vector<float> qkv = normals(n * width), cos(n * hd / 2, 1.0f), sin(n * hd / 2, 0.0f);
    VisionInput in;
    in.qkv = qkv.data();
    in.cos = cos.data();
    in.sin = sin.data();
    in.n = n;
    in.heads = heads;
    in.hd = hd;
    in.scale = 1.0f / std::sqrt((float)hd);
    for (size_t i = 0; i < n; i++) in.rows.push_back((int64_t)i);
    std::vector<double> want(n * heads * hd);
    for (size_t begin = 0; begin < n; begin += window) {
        const size_t count = n - begin < window ? n - begin : window;
        in.groups.push_back({begin, count});
        for (size_t i = begin; i < begin + count; i++)
            for (size_t h = 0; h < heads; h++) {
                std::vector<double> scores(count);
                for (size_t k = 0; k < count; k++)
                    for (size_t d = 0; d < hd; d++)
                        scores[k] += (double)in.scale * qkv[i * width + h * hd + d] *
                                     qkv[(begin + k) * width + (heads + h) * hd + d];
                softmax_mix(scores, &qkv[begin * width + (2 * heads + h) * hd], width, hd, &want[(i * heads + h) * hd]);
            }
    }
    std::vector<float> y(n * heads * hd);
    char name[80];
    const auto check = [&](const char* kind, double tolerance) {
        std::snprintf(name, sizeof name, "vision %s n %zu hd %zu window %zu", kind, n, hd, window);
        expect(name, y, want, tolerance);
    };
    VisionKernel<F32Words>(in, y.data()).run(kParallel);
    check("f32", 1e-5);
    VisionKernel<FastWords>(in, y.data()).run(kParallel);
    check("fast", 2e-2);
    ByteVisionKernel(in, y.data()).run(kParallel);
    check("int8", 5e-2);
}

static void check_decode(size_t rows, size_t total, size_t hd) {
    std::vector<uint16_t> keys(total * hd), values(total * hd);
    std::vector<float> key_rows(total * hd), value_rows(total * hd);
    const HalfCache k{keys.data(), nullptr, total, hd}, v{values.data(), nullptr, total, hd};
    for (size_t i = 0; i < total; i++) {
        const std::vector<float> a = normals(hd), b = normals(hd);
        k.write(0, i, a.data());
        v.write(0, i, b.data());
        read_row(k, 0, i, &key_rows[i * hd]);
        read_row(v, 0, i, &value_rows[i * hd]);
    }
    std::vector<float> q = normals(rows * hd), out(rows * hd), merged(rows * hd);
    std::vector<double> want(rows * hd);
    std::vector<size_t> limits(rows);
    for (size_t r = 0; r < rows; r++) {
        limits[r] = total - rows + r + 1;
        std::vector<double> scores(limits[r]);
        for (size_t i = 0; i < limits[r]; i++)
            for (size_t d = 0; d < hd; d++) scores[i] += std::log(2.0) * q[r * hd + d] * key_rows[i * hd + d];
        softmax_mix(scores, value_rows.data(), hd, hd, &want[r * hd]);
    }
    const size_t parts = div_up(total, kDecodeKeys);
    for (const size_t tasks : {(size_t)1, parts}) {
        std::vector<Partial> partials(parts);
        std::vector<float> ranges(parts * rows * hd);
        for (size_t t = 0; t < tasks; t++) {
            const size_t begin = t * parts / tasks, end = (t + 1) * parts / tasks * kDecodeKeys;
            attend_cache(k, v, 0, begin * kDecodeKeys, end < total ? end : total, q.data(), rows, limits.data(),
                         &ranges[begin * rows * hd], &partials[begin]);
        }
        for (size_t r = 0; r < rows; r++)
            merge_parts(partials.data(), ranges.data(), rows * hd, parts, r, hd, &merged[r * hd]);
        char name[80];
        std::snprintf(name, sizeof name, "decode rows %zu total %zu hd %zu tasks %zu", rows, total, hd, tasks);
        expect(name, merged, want, 1e-5);
        for (size_t r = 0; r < rows; r++) {  // alone, over the keys it sees: the same bits
            const size_t seen = div_up(limits[r], kDecodeKeys);
            std::vector<Partial> own(seen);
            std::vector<float> sums(seen * hd), alone(hd);
            attend_cache(k, v, 0, 0, limits[r], &q[r * hd], 1, &limits[r], sums.data(), own.data());
            merge_parts(own.data(), sums.data(), hd, seen, 0, hd, alone.data());
            expect_bits(name, r, &merged[r * hd], alone);
        }
    }
}

// Rows that are read: a block of queries that see `total - rows + 1` keys and more, and each of them alone.
template <class E>
static void check_prefill(size_t rows, size_t total, size_t hd) {
    const size_t padded = padded_head(hd), words = hd / E::kPer, room = div_up(total, 2 * W) * 2 * W;
    const std::vector<float> q = normals(rows * hd), k = normals(total * hd), v = normals(total * hd);
    Scratch key_memory, value_memory;
    const HeadMemory memory{key_memory.get<uint32_t>(key_words<E>(total, hd)),
                            value_memory.get<uint32_t>(value_words<E>(total, hd))};
    std::vector<float> x(W * hd);
    for (size_t i = 0; i < room; i += W) {
        const size_t count = i >= total ? 0 : total - i < (size_t)W ? total - i : W;
        pack_keys<E>(&k[count ? i * hd : 0], hd, count, i, memory.keys);
        std::fill(x.begin(), x.end(), 0.0f);
        std::copy(v.begin() + (long)(i < total ? i * hd : 0), v.begin() + (long)(i < total ? (i + count) * hd : 0), x.begin());
        for (size_t j = 0; j < (size_t)W; j += E::kPer)
            pack_values<E>(&x[j * hd], &x[(j + E::kPer - 1) * hd], hd, i + j, memory.values);
    }
    std::vector<uint32_t> queries(rows * words + 64);
    std::vector<size_t> limits(rows);
    for (size_t r = 0; r < rows; r++) {
        to_words<E>(&q[r * hd], hd, &queries[r * words]);
        limits[r] = total - rows + r + 1;
    }
    Scratch out_memory, alone_memory;
    float *out = out_memory.get<float>(rows * padded), *own = alone_memory.get<float>(padded);
    attend<E>({queries.data(), rows, hd, total, limits.data(), out}, memory);
    char name[80];
    std::snprintf(name, sizeof name, "prefill rows %zu total %zu hd %zu", rows, total, hd);
    for (size_t r = 0; r < rows; r++) {
        attend<E>({&queries[r * words], 1, hd, limits[r], &limits[r], own}, memory);
        expect_bits(name, r, out + r * padded, std::vector<float>(own, own + hd));
    }
}

int main() {
    std::printf("%s\n", kIsa);
    for (size_t m : {1, 2, 5, 8, 9, 25, 43}) {
        check_linear({m, 33, 76, 76, 8, false});
        check_linear({m, 33, 96, 32, 8, false, 64});
        check_linear({m, 33, 48, 48, 8, false, 16});
        check_linear({m, 40, 256, 32, 4, false});
        check_linear({m, 40, 256, 32, 4, false, 256});
        check_linear({m, 70, 384, 128, 4, true});
    }
    for (size_t hd : {8, 40, 64, 72, 80}) {
        check_vision(37, hd, 16);
        check_vision(300, hd, 300);
    }
    for (size_t rows : {1, 2, 3, 7})
        for (size_t hd : {24, 64, 128})
            for (size_t total : {9, 64, 129, 150, 256, 258, 531}) check_decode(rows, total, hd);
    for (size_t rows : {1, 2, 7, 12, 13, 24})
        for (size_t hd : {24, 64, 128})
            for (size_t total : {24, 60, 66, 130, 140, 258, 531}) {
                check_prefill<F32Words>(rows, total, hd);
                check_prefill<FastWords>(rows, total, hd);
            }
    for (size_t rows : {1, 63, 64, 150}) {
        check_delta({1, 2, 32, 32, 1, false}, rows);
        check_delta({2, 2, 20, 71, 2, true}, rows);
        check_delta({1, 1, 64, 144, 1, true}, rows);
    }
    check_experts(9, 7, 2, 37, 30, true);
    check_experts(33, 5, 3, 70, 101, false);
    check_experts(1, 4, 4, 16, 64, true);
    check_convolution(37, 4, 3);
    check_convolution(16, 2, 5);
    for (uint32_t bits = 0; bits < 0x7c00; bits++)  // every finite half there and back
        failures += float_to_half(half_to_float((uint16_t)bits)) != bits;
    std::printf("%d failures\n", failures);
    return failures ? 1 : 0;
}
