// Experts against plain loops: a part of check_kernels.cpp, which includes it.
#pragma once

#include "experts.h"

// f32 and 8-bit experts of odd sizes; each row beside others has the bits that it has alone.
static void check_experts(size_t rows, size_t experts, size_t top, size_t n, size_t k, bool gated) {
    const std::vector<float> x = normals(rows * k), router = normals(experts * k);
    std::vector<int32_t> ids(rows * top);
    std::vector<float> shares(rows * top);
    route(x.data(), rows, k, router.data(), experts, top, ids.data(), shares.data(), kParallel);
    for (size_t r = 0; r < rows; r++) {
        std::vector<std::pair<double, size_t>> order;
        for (size_t e = 0; e < experts; e++) {
            double logit = 0;
            for (size_t i = 0; i < k; i++) logit += (double)x[r * k + i] * router[e * k + i];
            order.push_back({-logit, e});
        }
        std::sort(order.begin(), order.end());
        for (size_t t = 0; t < top; t++)
            failures += std::find(&ids[r * top], &ids[r * top] + top, (int32_t)order[t].second) == &ids[r * top] + top;
    }
    const size_t outputs = gated ? 2 * n : n, packed = div_up(n, gated ? 16 : 32) * 32, depth = div_up(k, 4) * 4;
    const std::vector<float> floats = normals(experts * outputs * k);
    std::vector<uint8_t> bytes(experts * packed * depth, 128);
    std::vector<float> scales(experts * packed, 0.01f), dequantised(experts * outputs * k);
    for (size_t e = 0; e < experts; e++)
        for (size_t o = 0; o < outputs; o++) {
            const size_t column = gated ? o % n / 16 * 32 + o / n * 16 + o % n % 16 : o;
            for (size_t i = 0; i < k; i++) {
                const int q = (int)(engine() % 255) - 127;
                const size_t at = (column / 16 * (depth / 4) + i / 4) * 64 + column % 16 * 4 + i % 4;
                bytes[e * packed * depth + at] = (uint8_t)(q + 128);
                dequantised[(e * outputs + o) * k + i] = (float)q * 0.01f;
            }
        }
    for (const bool eight : {false, true}) {
        ExpertWeights w;
        w.data = eight ? (const void*)bytes.data() : floats.data();
        w.scales = scales.data();
        w.experts = experts;
        w.depth = eight ? depth : k;
        w.block = eight ? depth : 1;
        w.packed = eight ? packed : 0;
        w.columns = n;
        w.gated = gated;
        const auto run = [&](size_t row, size_t count, std::vector<float>& y) {
            const float* mix = gated ? nullptr : &shares[row * top];
            y.resize(count * n * (gated ? top : 1));
            const PairRows part{&x[row * k], k, top};
            if (eight)
                expert_linear<8>(w, part, &ids[row * top], count, top, mix, y.data(), kParallel);
            else
                expert_linear<32>(w, part, &ids[row * top], count, top, mix, y.data(), kParallel);
        };
        const std::vector<float>& values = eight ? dequantised : floats;
        std::vector<double> want(rows * n * (gated ? top : 1));
        for (size_t r = 0; r < rows; r++) {
            double peak = 0;
            for (size_t i = 0; i < k; i++) peak = std::fmax(peak, std::fabs(x[r * k + i]));
            for (size_t t = 0; t < top; t++)
                for (size_t c = 0; c < n; c++) {
                    double part[2] = {0, 0};
                    for (size_t half = 0; half < (gated ? 2 : 1); half++)
                        for (size_t i = 0; i < k; i++) {
                            double v = x[r * k + i];
                            if (eight) v = std::nearbyint(v / peak * 127) * peak / 127;
                            part[half] += v * values[((size_t)ids[r * top + t] * outputs + half * n + c) * k + i];
                        }
                    if (gated)
                        want[(r * top + t) * n + c] = part[0] / (1 + std::exp(-part[0])) * part[1];
                    else
                        want[r * n + c] += shares[r * top + t] * part[0];
                }
        }
        std::vector<float> got, alone;
        run(0, rows, got);
        expect(eight ? "experts, 8 bits" : "experts, f32", got, want, eight ? 2e-3 : 1e-5);
        for (size_t r = 0; r < rows; r++) {
            run(r, 1, alone);
            expect_bits("experts", r, &got[r * alone.size()], alone);
        }
    }
}
