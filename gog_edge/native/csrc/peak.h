// What one core can do at most: multiply-adds a second on registers alone, for the rooflines of `bench.kernels`.
#pragma once

#include <chrono>

#include "flash.h"
#include "simd.h"

namespace gog {

enum class Product : int { kF32 = 0, kWords = 1, kBytes = 2 };  // kWords: bf16 where the CPU multiplies it

// Operations (two a multiply-add) a second of `product`, measured for about `seconds`; the best of short runs.
inline double peak_rate(Product product, double seconds) {
    using Clock = std::chrono::steady_clock;
    constexpr int kChains = W == 16 ? 16 : 10, kRounds = 20000;
    const double per_round = 2.0 * kChains * W *
                             (product == Product::kBytes ? 4 : product == Product::kWords ? FastWords::kPer : 1);
    double best = 0;
    const auto start = Clock::now();
    while (std::chrono::duration<double>(Clock::now() - start).count() < seconds) {
        vi sums[kChains];
        vi a = splat(0x3f013f01), b = splat(0x01020304);
        GOG_UNROLL
        for (int i = 0; i < kChains; i++) sums[i] = splat(i);
        const auto begin = Clock::now();
        for (int round = 0; round < kRounds; round++) {
            GOG_UNROLL
            for (int i = 0; i < kChains; i++) {
                if (product == Product::kBytes)
                    sums[i] = dot4<false>(sums[i], (vb)a, b);
                else if (product == Product::kWords)
                    sums[i] = (vi)FastWords::dot((vf)sums[i], a, b);
                else
                    sums[i] = (vi)F32Words::dot((vf)sums[i], a, b);
            }
#if defined(__x86_64__)
            asm volatile("" : "+x"(a));  // the compiler must not see that every round is the same
#elif defined(__aarch64__)
            asm volatile("" : "+w"(a));
#endif
        }
        const double took = std::chrono::duration<double>(Clock::now() - begin).count();
        vi total{};
        GOG_UNROLL
        for (int i = 0; i < kChains; i++) total += sums[i];
        const int32_t sum = hsum(total);
        asm volatile("" : : "r"(sum));
        const double rate = per_round * kRounds / took;
        best = rate > best ? rate : best;
    }
    return best;
}

}  // namespace gog
