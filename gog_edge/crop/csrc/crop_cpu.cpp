// Crop + antialiased bicubic resize + normalise + patchify on the CPU, in one pass over the source rows.
//
// A walk over output rows goes along their source rows: blocks of kLanes rows are rearranged into quads, resized
// horizontally into a ring of 8-bit rows (grouped by four, so that the vertical pass reads quads as well), and
// every output row is resized vertically from the ring, normalised and written where the patches want it.
// A stretch of rows is walked from both ends by two threads that meet where they meet, so nobody waits for a thread
// that starts late. Walks share no output, so the result does not depend on the number of threads.
#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "crop_helpers.h"
#include "crop_quads.h"
#include "crop_taps.h"

namespace gog {
namespace {

struct Job {
  const uint8_t* source;  // first pixel of the box
  int64_t row_bytes;      // from one source row to the next
  int32_t in_w, in_h, out_w, out_h;
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

enum class Way { kDown, kUp };

class Walk {
 public:
  Walk(const Job& job, const QuadTaps& x, const QuadTaps& y, Way way)
      : job_(job),
        x_(x),
        y_(y),
        way_(way),
        pitch_((static_cast<size_t>(job.out_w) + kLanes) * 4),  // a vertical load may run kLanes columns over
        slots_((y.stride + 2 * kGroups + kGroups - 1) / kGroups * kGroups),
        quads_(static_cast<size_t>((job.in_w + 3) / 4) * kGroupBytes),
        ring_(slots_ * kChannels * pitch_),
        under_(y.stride) {}

  // Output row y: the neighbour, in this walk's way, of the row before.
  void row(int32_t y) {
    const size_t i = static_cast<size_t>(y);
    const int32_t first = y_.first[i], last = first + y_.count[i];
    if (way_ == Way::kDown) {
      if (next_ < 0) next_ = first / kGroups * kGroups;
      for (; next_ < last; next_ += kGroups) horizontal(next_);
    } else {
      if (next_ < 0) next_ = (last + kGroups - 1) / kGroups * kGroups;
      while (next_ > first) horizontal(next_ -= kGroups);
    }
    select(i);
    if (job_.patches != nullptr) {
      vertical_patches(y);
    } else {
      vertical_image(y);
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

  // Finds the row groups under output row i.
  void select(size_t i) {
    for (int32_t q = 0; q < y_.count[i]; ++q) under_[static_cast<size_t>(q)] = ring(y_.first[i] + q, 0);
    under_count_ = static_cast<size_t>(y_.count[i]);
    under_weights_ = y_.of(static_cast<int32_t>(i));
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
  const Way way_;
  const size_t pitch_, slots_;
  std::vector<uint8_t> quads_, ring_;
  std::vector<const uint8_t*> under_;
  int32_t next_ = -1;  // down: the first row group not in the ring; up: the one behind the next to be loaded
  size_t under_count_ = 0;
  const Weights* under_weights_ = nullptr;
};

enum Status : int32_t { kOk = 0, kNoMemory = 1, kFailed = 2 };

// Output rows [begin, end): one thread walks down from the first, one up from the last, a few rows at a time.
class Stretch {
 public:
  void set(int32_t begin, int32_t end) {
    begin_ = begin;
    end_ = end;
    left_ = end - begin;
  }

  // Returns when no rows are left, or when two others are at it.
  void walk(const Job& job, const QuadTaps& x, const QuadTaps& y) {
    if (left_ <= 0) return;
    const int side = sides_.fetch_add(1);
    if (side > 1) return;
    Walk walk(job, x, y, side == 0 ? Way::kDown : Way::kUp);
    int32_t done = 0;
    for (int32_t left; (left = left_.fetch_sub(kRows)) > 0;)
      for (int32_t n = std::min(left, kRows); n > 0; --n, ++done) walk.row(side == 0 ? begin_ + done : end_ - 1 - done);
  }

 private:
  static constexpr int32_t kRows = 4;
  int32_t begin_ = 0, end_ = 0;
  std::atomic<int32_t> left_{0}, sides_{0};
};

// One crop, worked at by any number of threads.
class Shared {
 public:
  Shared(const Job& job, const Taps* taps, int32_t threads)
      : job_(job), taps_(taps), stretches_(static_cast<size_t>((std::min(threads, job.out_h) + 1) / 2)) {
    const int64_t count = static_cast<int64_t>(stretches_.size());
    const auto cut = [&](int64_t k) { return static_cast<int32_t>(job_.out_h * k / count); };
    for (int64_t k = 0; k < count; ++k) stretches_[static_cast<size_t>(k)].set(cut(k), cut(k + 1));
  }

  // When the first who called it returns, all that is not done is being done by others who called it.
  void work() noexcept {
    const size_t arrival = arrivals_.fetch_add(1);
    try {
      for (int axis; (axis = next_axis_.fetch_add(1)) < 2;) prepare(axis);
      while (ready_.load(std::memory_order_acquire) < 2 && status_ == kOk) std::this_thread::yield();
      for (size_t i = 0; i < stretches_.size() && status_ == kOk; ++i)
        stretches_[(arrival + i) % stretches_.size()].walk(job_, *axes_[0], *axes_[1]);
    } catch (const std::bad_alloc&) {
      status_ = kNoMemory;
    } catch (...) {
      status_ = kFailed;
    }
  }

  Status status() const { return static_cast<Status>(status_.load()); }

 private:
  void prepare(int axis) {
    const int32_t in = axis == 0 ? job_.in_w : job_.in_h, out = axis == 0 ? job_.out_w : job_.out_h;
    axes_[axis].reset(taps_ != nullptr ? new QuadTaps(taps_[axis], out)
                                       : new QuadTaps(BicubicTaps(in, out).view(), out));
    ready_.fetch_add(1, std::memory_order_release);
  }

  const Job& job_;
  const Taps* taps_;  // of x and y, or null
  std::unique_ptr<QuadTaps> axes_[2];
  std::vector<Stretch> stretches_;
  std::atomic<size_t> arrivals_{0};
  std::atomic<int> next_axis_{0}, ready_{0}, status_{kOk};
};

Status run(const Job& job, const Taps* taps, int32_t threads) {
  Shared shared(job, taps, std::max(threads, 1));
  {
    const Offer offer([&shared] { shared.work(); }, std::min(threads, job.out_h) - 1);
    shared.work();
  }
  return shared.status();
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
    gog::Job job{source, row_bytes, sizes[0], sizes[1], sizes[2], sizes[3], patch, merge, {}, patches, image};
    for (int c = 0; c < gog::kChannels; ++c) {
      job.normal.offset[c] = normal[c];
      job.normal.scale[c] = normal[gog::kChannels + c];
    }
    if (taps == nullptr) return gog::run(job, nullptr, threads);
    const gog::Taps given[] = {{taps[0], taps[1], taps[2], strides[0]}, {taps[3], taps[4], taps[5], strides[1]}};
    return gog::run(job, given, threads);
  } catch (const std::bad_alloc&) {
    return gog::kNoMemory;
  } catch (...) {
    return gog::kFailed;
  }
}
