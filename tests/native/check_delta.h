// The kernels of linear attention against loops over tokens in f64, and against themselves cut in other ways.
#pragma once

#include "gated_delta.h"
#include "op_causal_conv.h"

struct Delta {
    size_t key_heads, value_heads, dk, dv, slots;
    bool fused;
};

// y of `rows` tokens that are run `step` at a time, over a state that begins as noise.
static std::vector<float> run_delta(const Delta& c, gog::DeltaInput in, size_t step) {
    in.shape = {c.key_heads, c.value_heads, c.dk, c.dv, c.slots};
    std::vector<float> state(c.slots * in.shape.slot_words(), NAN), y(in.rows * c.value_heads * c.dv);
    const size_t rows = in.rows;
    gog::DeltaInput part = in;
    for (size_t at = 0; at < rows; at += part.rows) {
        part.rows = rows - at < step ? rows - at : step;
        part.start = at;
        part.qkv = in.qkv + at * in.shape.qkv();
        part.a = in.a + at * c.value_heads, part.b = in.b + at * c.value_heads;
        part.gate = in.gate ? in.gate + at * c.value_heads * c.dv : nullptr;
        part.state = state.data(), part.y = &y[at * c.value_heads * c.dv];
        gog::gated_delta(part, kParallel);
    }
    return y;
}

static void check_delta(const Delta& c, size_t rows) {
    const size_t width = 2 * c.key_heads * c.dk + c.value_heads * c.dv, group = c.value_heads / c.key_heads;
    const std::vector<float> qkv = normals(rows * width), gate = normals(rows * c.value_heads * c.dv);
    const std::vector<float> norm = normals(c.dv), rate(c.value_heads, -0.3f), bias(c.value_heads, 0.1f);
    std::vector<float> a = normals(rows * c.value_heads), b = normals(a.size());
    for (size_t i = 0; i < a.size() && !c.fused; i++) {
        a[i] = i % 7 == 3 ? -50.0f : i % 5 == 1 ? 0.0f : -std::fabs(a[i]);
        b[i] = std::fmin(std::fabs(b[i]), 1.0f);
    }
    gog::DeltaInput in{};
    in.qkv = qkv.data(), in.a = a.data(), in.b = b.data(), in.rows = rows;
    in.scale = 1.0f / std::sqrt((float)c.dk), in.epsilon = in.l2_epsilon = 1e-6f, in.l2 = true;
    if (c.fused) in.rate = rate.data(), in.bias = bias.data(), in.gate = gate.data(), in.norm = norm.data();

    std::vector<double> want(rows * c.value_heads * c.dv);
    for (size_t h = 0; h < c.value_heads; h++) {
        std::vector<double> s(c.dk * c.dv), k(c.dk), q(c.dk), o(c.dv);
        for (size_t t = 0; t < rows; t++) {
            const float* x = &qkv[t * width + h / group * c.dk];
            const float* v = &qkv[t * width + 2 * c.key_heads * c.dk + h * c.dv];
            double kk = 1e-6, qq = 1e-6, g = a[t * c.value_heads + h], beta = b[t * c.value_heads + h], mean = 0;
            if (c.fused) g = rate[h] * std::log1p(std::exp(g + bias[h])), beta = 1 / (1 + std::exp(-beta));
            for (size_t i = 0; i < c.dk; i++) {
                q[i] = x[i], k[i] = x[c.key_heads * c.dk + i];
                kk += k[i] * k[i], qq += q[i] * q[i];
            }
            for (double& value : s) value *= std::exp(g);
            for (size_t j = 0; j < c.dv; j++) {
                double seen = 0;
                for (size_t i = 0; i < c.dk; i++) seen += s[i * c.dv + j] * k[i] / std::sqrt(kk);
                o[j] = 0;
                for (size_t i = 0; i < c.dk; i++) {
                    s[i * c.dv + j] += k[i] / std::sqrt(kk) * beta * (v[j] - seen);
                    o[j] += s[i * c.dv + j] * q[i] / std::sqrt(qq * (double)c.dk);
                }
                mean += o[j] * o[j] / (double)c.dv;
            }
            for (size_t j = 0; j < c.dv; j++) {
                const size_t at = (t * c.value_heads + h) * c.dv + j;
                const double z = gate[at];
                want[at] = c.fused ? o[j] / std::sqrt(mean + 1e-6) * norm[j] * z / (1 + std::exp(-z)) : o[j];
            }
        }
    }
    char name[80];
    std::snprintf(name, sizeof name, "delta %zu/%zu heads %zu x %zu rows %zu", c.key_heads, c.value_heads, c.dk, c.dv,
                  rows);
    const std::vector<float> whole = run_delta(c, in, rows);
    expect(name, whole, want, 1e-5);
    for (size_t step : {1, 2, 5, 64}) expect_bits(name, step, whole.data(), run_delta(c, in, step));
}

static void check_convolution(size_t channels, size_t taps, size_t kept) {
    constexpr size_t kRows = 23;
    const std::vector<float> x = normals(kRows * channels), weight = normals(taps * channels), bias = normals(channels);
    const auto run = [&](size_t step) {
        std::vector<float> history(kept * channels, NAN), y(kRows * channels);
        for (size_t at = 0; at < kRows; at += step) {
            const size_t rows = kRows - at < step ? kRows - at : step;
            const gog::ConvInput in{&x[at * channels], weight.data(), bias.data(), history.data(), &y[at * channels],
                                    rows, at, channels, taps, kept, true};
            gog::causal_conv(in, 0, channels);
        }
        return y;
    };
    std::vector<double> want(kRows * channels);
    for (size_t t = 0; t < kRows; t++)
        for (size_t c = 0; c < channels; c++) {
            double sum = bias[c];
            for (size_t i = 0; i < taps; i++)
                if (t + i + 1 >= taps) sum += weight[i * channels + c] * (double)x[(t + i + 1 - taps) * channels + c];
            want[t * channels + c] = sum / (1 + std::exp(-sum));
        }
    char name[80];
    std::snprintf(name, sizeof name, "convolution of %zu channels, %zu taps", channels, taps);
    const std::vector<float> whole = run(kRows);
    expect(name, whole, want, 1e-5);
    for (size_t step : {1, 2, 7}) expect_bits(name, step, whole.data(), run(step));
}
