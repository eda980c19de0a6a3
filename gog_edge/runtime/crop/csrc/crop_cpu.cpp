// Crop + antialiased bicubic resize + normalise + patchify on the CPU, in one pass over the source rows.
//
// A band of output rows walks down its source rows: blocks of kLanes rows are rearranged into quads, resized
// horizontally into a ring of 8-bit rows (grouped by four, so that the vertical pass reads quads as well), and
// every output row is resized vertically from the ring, normalised and written where the patches want it.
// Bands are independent (they share no output), so the result does not depend on the number of threads.
#include <algorithm>
#include <exception>
#include <new>
#include <thread>
#include <vector>

#include "crop_quads.h"
#include "crop_taps.h"

namespace gog {
namespace {

struct Job {
  const uint8_t* source;  // first pixel of the box
  int64_t row_bytes;      // from one source row to the next
  int32_t in_w, in_h, out_w, out_h;
  Taps x, y;
  int32_t patch, merge;
  Normal normal;
  float* patches;  // [n, 3 * patch * patch], or null
  uint8_t* image;  // [out_h, out_w, 3], used when `patches` is null
};

// Weights of one axis in whole quads of the input.
struct QuadTaps {
  std::vector<int32_t> first, count;  // of the quads of each output
  std::vector<Weights> weights;       // [output][stride]
  size_t stride = 0;

  QuadTaps(const Taps& taps, int32_t outputs) : first(static_cast<size_t>(outputs)), count(first.size()) {
    for (size_t i = 0; i < first.size(); ++i) {
      first[i] = taps.start[i] / 4;
      count[i] = (taps.start[i] + taps.count[i] - 1) / 4 - first[i] + 1;
      stride = std::max(stride, static_cast<size_t>(count[i]));
    }
    weights.resize(first.size() * stride);
    for (size_t i = 0; i < first.size(); ++i) {
      const int32_t* w = taps.weight + i * static_cast<size_t>(taps.stride);
      for (int32_t q = 0; q < count[i]; ++q) {
        int32_t four[4];
        for (int32_t k = 0; k < 4; ++k) {
          const int32_t j = 4 * (first[i] + q) + k - taps.start[i];
          four[k] = j >= 0 && j < taps.count[i] ? w[j] : 0;
        }
        weights[i * stride + static_cast<size_t>(q)].set(four);
      }
    }
  }
  const Weights* of(int32_t i) const { return weights.data() + static_cast<size_t>(i) * stride; }
};

class Band {
 public:
  Band(const Job& job, const QuadTaps& x, const QuadTaps& y)
      : job_(job),
        x_(x),
        y_(y),
        pitch_((static_cast<size_t>(job.out_w) + kLanes) * 4),  // a vertical load may run kLanes columns over
        slots_((y.stride + 2 * kGroups + kGroups - 1) / kGroups * kGroups),
        quads_(static_cast<size_t>((job.in_w + 3) / 4) * kGroupBytes),
        ring_(slots_ * kChannels * pitch_),
        under_(y.stride) {}

  void run(int32_t y0, int32_t y1) {
    int32_t next = y_.first[static_cast<size_t>(y0)] / kGroups * kGroups;  // first row group not in the ring
    for (int32_t y = y0; y < y1; ++y) {
      const size_t i = static_cast<size_t>(y);
      while (next < y_.first[i] + y_.count[i]) {
        horizontal(next);
        next += kGroups;
      }
      select(y);
      if (job_.patches != nullptr) {
        vertical_patches(y);
      } else {
        vertical_image(y);
      }
    }
  }

 private:
  static constexpr int kGroups = kLanes / 4;  // row groups that one horizontal block makes

  uint8_t* ring(int32_t group, int c) {
    return ring_.data() + (static_cast<size_t>(group) % slots_ * kChannels + static_cast<size_t>(c)) * pitch_;
  }

  // Row groups group .. group + kGroups - 1 of the ring from source rows 4 * group ...
  void horizontal(int32_t group) {
    const uint8_t* rows[kLanes];
    for (int r = 0; r < kLanes; ++r) {  // rows below the box are never weighted: any row will do
      rows[r] = job_.source + std::min(4 * group + r, job_.in_h - 1) * job_.row_bytes;
    }
    load_quads(rows, job_.in_w, quads_.data());
    uint8_t* to[kChannels][kGroups];
    for (int c = 0; c < kChannels; ++c)
      for (int k = 0; k < kGroups; ++k) to[c][k] = ring(group + k, c);
    for (int32_t x = 0; x < job_.out_w; ++x) {
      const size_t i = static_cast<size_t>(x);
      const uint8_t* quads = quads_.data() + static_cast<size_t>(x_.first[i]) * kGroupBytes;
      const Weights* w = x_.of(x);
      Sum sum[kChannels];
      for (int32_t q = 0; q < x_.count[i]; ++q, quads += kGroupBytes)
        for (int c = 0; c < kChannels; ++c) sum[c].add(quads + c * kQuadBytes, w[q]);
      for (int c = 0; c < kChannels; ++c) {
        uint8_t bytes[kLanes];
        sum[c].store_bytes(bytes);
        for (int k = 0; k < kGroups; ++k) std::memcpy(to[c][k] + 4 * i, bytes + 4 * k, 4);
      }
    }
  }

  // Finds the row groups under output row y.
  void select(int32_t y) {
    const size_t i = static_cast<size_t>(y);
    for (int32_t q = 0; q < y_.count[i]; ++q) under_[static_cast<size_t>(q)] = ring(y_.first[i] + q, 0);
    under_count_ = static_cast<size_t>(y_.count[i]);
    under_weights_ = y_.of(y);
  }

  // Sums of columns x .. x + kLanes - 1 of the selected output row.
  inline void vertical(int32_t x, Sum (&sum)[kChannels]) const {
    for (size_t q = 0; q < under_count_; ++q) {
      const uint8_t* quads = under_[q] + 4 * static_cast<size_t>(x);
      for (size_t c = 0; c < kChannels; ++c) sum[c].add(quads + c * pitch_, under_weights_[q]);
    }
  }

  void vertical_patches(int32_t y) {
    const int32_t p = job_.patch;
    for (int32_t left = 0; left < job_.out_w; left += p) {
      float* out = job_.patches + patch_index(left, y, 0, p, job_.merge, job_.out_w);
      for (int32_t o = 0; o < p; o += kLanes) {
        Sum sum[kChannels];
        vertical(left + o, sum);
        for (int c = 0; c < kChannels; ++c)
          sum[c].store_floats(out + c * p * p + o, std::min(kLanes, p - o), job_.normal.offset[c],
                              job_.normal.scale[c]);
      }
    }
  }

  void vertical_image(int32_t y) {
    uint8_t* out = job_.image + static_cast<int64_t>(y) * job_.out_w * kChannels;
    for (int32_t x = 0; x < job_.out_w; x += kLanes) {
      Sum sum[kChannels];
      vertical(x, sum);
      uint8_t bytes[kChannels][kLanes];
      for (int c = 0; c < kChannels; ++c) sum[c].store_bytes(bytes[c]);
      for (int32_t k = 0; k < std::min(kLanes, job_.out_w - x); ++k)
        for (int c = 0; c < kChannels; ++c) *out++ = bytes[c][k];
    }
  }

  const Job& job_;
  const QuadTaps& x_;
  const QuadTaps& y_;
  const size_t pitch_, slots_;
  std::vector<uint8_t> quads_, ring_;
  std::vector<const uint8_t*> under_;
  size_t under_count_ = 0;
  const Weights* under_weights_ = nullptr;
};

enum Status : int32_t { kOk = 0, kNoMemory = 1, kFailed = 2 };

Status run(const Job& job, int32_t threads) {
  const QuadTaps x(job.x, job.out_w), y(job.y, job.out_h);
  const int32_t bands = std::max(1, std::min(threads, job.out_h));
  std::vector<Status> status(static_cast<size_t>(bands), kOk);
  auto work = [&](int32_t band) noexcept {
    try {
      const auto cut = [&](int32_t k) { return static_cast<int32_t>(static_cast<int64_t>(job.out_h) * k / bands); };
      Band(job, x, y).run(cut(band), cut(band + 1));
    } catch (const std::bad_alloc&) {
      status[static_cast<size_t>(band)] = kNoMemory;
    }
  };
  std::vector<std::thread> helpers;
  helpers.reserve(static_cast<size_t>(bands));
  int32_t started = 1;  // this thread takes band 0
  try {
    for (; started < bands; ++started) helpers.emplace_back(work, started);
  } catch (const std::exception&) {
    // no more threads to be had: the remaining bands run here
  }
  work(0);
  for (int32_t band = started; band < bands; ++band) work(band);
  for (std::thread& helper : helpers) helper.join();
  return *std::max_element(status.begin(), status.end());
}

}  // namespace
}  // namespace gog

#define GOG_EXPORT extern "C" __attribute__((visibility("default")))

GOG_EXPORT const char* gog_crop_simd() { return GOG_SIMD_NAME; }

// Returns 0, 1 when memory ran out, 2 on any other failure. Sizes and pointers are checked by the caller.
// `sizes`: {in_w, in_h, out_w, out_h}. `normal`: three offsets, three scales. Exactly one of `patches` and `image` is
// written. `taps`: null for bicubic, or {x.start, x.count, x.weight, y.start, y.count, y.weight} with `strides`, the
// weights per output of x and y.
GOG_EXPORT int32_t gog_crop(const uint8_t* source, int64_t row_bytes, const int32_t* sizes, int32_t patch,
                            int32_t merge, const float* normal, float* patches, uint8_t* image, int32_t threads,
                            const int32_t* const* taps, const int32_t* strides) {
  try {
    gog::Job job{source, row_bytes, sizes[0], sizes[1], sizes[2], sizes[3], {}, {}, patch, merge, {}, patches, image};
    for (int c = 0; c < gog::kChannels; ++c) {
      job.normal.offset[c] = normal[c];
      job.normal.scale[c] = normal[gog::kChannels + c];
    }
    if (taps != nullptr) {
      job.x = {taps[0], taps[1], taps[2], strides[0]};
      job.y = {taps[3], taps[4], taps[5], strides[1]};
      return gog::run(job, threads);
    }
    const gog::BicubicTaps x(job.in_w, job.out_w), y(job.in_h, job.out_h);
    job.x = x.view();
    job.y = y.view();
    return gog::run(job, threads);
  } catch (const std::bad_alloc&) {
    return gog::kNoMemory;
  } catch (...) {
    return gog::kFailed;
  }
}
