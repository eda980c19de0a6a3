// Weights of Pillow's antialiased bicubic resize, on the host; the same table as taps.py, operation by operation.
//
// Build with -ffp-contract=off: a fused multiply-add would round differently from Pillow and from numpy.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "crop_core.h"

namespace gog {

inline double cubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  const double near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  const double far = (((x - 5.0) * x + 8.0) * x - 4.0) * a;
  return x < 1.0 ? near : (x < 2.0 ? far : 0.0);
}

// The weights of one axis, owned.
class BicubicTaps {
 public:
  BicubicTaps(int32_t in, int32_t out) : start_(static_cast<size_t>(out)), count_(start_.size()) {
    const double scale = static_cast<double>(in) / out;
    const double spread = std::max(scale, 1.0);  // downscaling widens the filter: that is the antialiasing
    const double support = 2.0 * spread, inverse = 1.0 / spread;
    for (size_t i = 0; i < start_.size(); ++i) {
      const double centre = (static_cast<double>(i) + 0.5) * scale;
      start_[i] = std::max(static_cast<int32_t>(centre - support + 0.5), 0);
      count_[i] = std::min(static_cast<int32_t>(centre + support + 0.5), in) - start_[i];
      stride_ = std::max(stride_, count_[i]);
    }
    weight_.assign(start_.size() * static_cast<size_t>(stride_), 0);
    std::vector<double> w(static_cast<size_t>(stride_));
    for (size_t i = 0; i < start_.size(); ++i) {
      const double centre = (static_cast<double>(i) + 0.5) * scale;
      const size_t count = static_cast<size_t>(count_[i]);
      for (size_t j = 0; j < count; ++j)
        w[j] = cubic((static_cast<double>(static_cast<int32_t>(j) + start_[i]) - centre + 0.5) * inverse);
      double total = 0.0;
      for (size_t j = 0; j < count; ++j) total += w[j];
      int32_t* to = weight_.data() + i * static_cast<size_t>(stride_);
      for (size_t j = 0; j < count; ++j) {
        const double fixed = w[j] / total * (1 << kPrecisionBits);
        to[j] = static_cast<int32_t>(fixed + (fixed < 0 ? -0.5 : 0.5));
      }
    }
  }

  Taps view() const { return Taps{start_.data(), count_.data(), weight_.data(), stride_}; }

 private:
  std::vector<int32_t> start_, count_, weight_;
  int32_t stride_ = 0;
};

}  // namespace gog
