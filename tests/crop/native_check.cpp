// Drives the crop kernel without Python, so that sanitizers and an emulator can watch it: random boxes in frames
// whose buffers end exactly where the last pixel does, checked against the definition written as plain loops.
//
// usage: native_check cpu | grid  CASES      (prints the number of cases; exits 1 at the first difference)
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "host_cuda.h"

extern "C" int32_t gog_crop(const uint8_t*, int64_t, const int32_t*, int32_t, int32_t, const float*, float*, uint8_t*,
                            int32_t, const int32_t* const*, const int32_t*);
extern "C" const char* gog_crop_simd();

namespace {

struct Axis {
  std::vector<int32_t> start, count, weight;
  int32_t stride = 0;
};

// Windows that move right, as a resize's do, with random weights that sum to about one.
Axis random_axis(std::mt19937& rng, int32_t in, int32_t out) {
  Axis axis;
  const double scale = static_cast<double>(in) / out, support = 2.0 * std::max(scale, 1.0);
  axis.stride = static_cast<int32_t>(2 * support) + 3;
  axis.weight.assign(static_cast<size_t>(out * axis.stride), 0);
  for (int32_t i = 0; i < out; ++i) {
    const double centre = (i + 0.5) * scale;
    const int32_t start = std::max(0, static_cast<int32_t>(centre - support + 0.5));
    const int32_t stop = std::min(in, static_cast<int32_t>(centre + support + 0.5));
    axis.start.push_back(start);
    axis.count.push_back(stop - start);
    std::uniform_int_distribution<int32_t> weight(-(1 << 22) / (2 * (stop - start)), (5 << 20) / (stop - start) + 1);
    for (int32_t j = 0; j < stop - start; ++j) axis.weight[static_cast<size_t>(i * axis.stride + j)] = weight(rng);
  }
  return axis;
}

int32_t slow_sum(const Axis& axis, int32_t i, const uint8_t* in, int64_t step) {
  int64_t sum = 1 << 21;
  for (int32_t j = 0; j < axis.count[static_cast<size_t>(i)]; ++j)
    sum += static_cast<int64_t>(axis.weight[static_cast<size_t>(i * axis.stride + j)]) *
           in[(axis.start[static_cast<size_t>(i)] + j) * step];
  sum >>= 22;
  return static_cast<int32_t>(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

int fail(const char* what, int number) {
  std::printf("case %d: %s differ\n", number, what);
  return 1;
}

int check(std::mt19937& rng, int number, bool grid) {
  auto pick = [&](int32_t low, int32_t high) { return std::uniform_int_distribution<int32_t>(low, high)(rng); };
  const int32_t frame_w = pick(1, 150), frame_h = pick(1, grid ? 600 : 150);  // a block sees 64 rows at a time
  const int32_t x0 = pick(0, frame_w - 1), y0 = pick(0, frame_h - 1);
  const int32_t in_w = number % 3 ? frame_w - x0 : pick(1, frame_w - x0);  // mostly boxes that touch the border
  const int32_t in_h = number % 3 ? frame_h - y0 : pick(1, frame_h - y0);
  const int32_t patch = pick(1, 40), merge = pick(1, 2), threads = pick(1, 3);
  const int32_t most = std::max(1, (grid ? 50 : 90) / (patch * merge));
  const int32_t out_w = patch * merge * pick(1, most), out_h = patch * merge * pick(1, most);
  std::vector<uint8_t> frame(static_cast<size_t>(frame_w * frame_h * 3));
  for (uint8_t& v : frame) v = static_cast<uint8_t>(number % 2 ? pick(0, 255) : 255 * pick(0, 1));
  const Axis x = random_axis(rng, in_w, out_w), y = random_axis(rng, in_h, out_h);
  const float normal[6] = {122.7f, 127.5f, 104.1f, 0.0146f, 1 / 127.5f, 0.0142f};

  std::vector<uint8_t> middle(static_cast<size_t>(in_h * out_w * 3)), image(static_cast<size_t>(out_h * out_w * 3));
  const uint8_t* source = frame.data() + (y0 * frame_w + x0) * 3;
  for (int32_t r = 0; r < in_h; ++r)
    for (int32_t i = 0; i < out_w * 3; ++i)
      middle[static_cast<size_t>(r * out_w * 3 + i)] =
          static_cast<uint8_t>(slow_sum(x, i / 3, source + r * frame_w * 3 + i % 3, 3));
  for (int32_t r = 0; r < out_h; ++r)
    for (int32_t i = 0; i < out_w * 3; ++i)
      image[static_cast<size_t>(r * out_w * 3 + i)] =
          static_cast<uint8_t>(slow_sum(y, r, middle.data() + i, out_w * 3));
  std::vector<float> patches(image.size());
  size_t at = 0;  // the order of the patches, spelt out
  const int32_t side = patch * merge;
  for (int32_t by = 0; by < out_h; by += side)
    for (int32_t bx = 0; bx < out_w; bx += side)
      for (int32_t my = 0; my < side; my += patch)
        for (int32_t mx = 0; mx < side; mx += patch)
          for (int32_t c = 0; c < 3; ++c)
            for (int32_t py = 0; py < patch; ++py)
              for (int32_t px = 0; px < patch; ++px) {
                const int32_t v = image[static_cast<size_t>(((by + my + py) * out_w + bx + mx + px) * 3 + c)];
                patches[at++] = (static_cast<float>(v) - normal[c]) * normal[3 + c];
              }

  std::vector<float> got_patches(patches.size());
  std::vector<uint8_t> got_image(image.size());
  if (grid) {
    std::vector<int32_t> tables;
    for (const auto* part : {&x.start, &x.count, &y.start, &y.count, &x.weight, &y.weight})
      tables.insert(tables.end(), part->begin(), part->end());
    const unsigned grid_w = static_cast<unsigned>((out_w + gog::kTileW - 1) / gog::kTileW);
    const unsigned grid_h = static_cast<unsigned>((out_h + gog::kTileH - 1) / gog::kTileH);
    for (float* out : {got_patches.data(), static_cast<float*>(nullptr)})
      host_launch(grid_w, grid_h, gog::kBlockThreads, source, int64_t{3} * frame_w, out_w, out_h, tables.data(),
                  x.stride, y.stride, patch, merge, normal[0], normal[1], normal[2], normal[3], normal[4], normal[5],
                  out, out ? nullptr : got_image.data());
  } else {
    const int32_t sizes[4] = {in_w, in_h, out_w, out_h}, strides[2] = {x.stride, y.stride};
    const int32_t* taps[6] = {x.start.data(), x.count.data(), x.weight.data(),
                              y.start.data(), y.count.data(), y.weight.data()};
    for (float* out : {got_patches.data(), static_cast<float*>(nullptr)})
      if (gog_crop(source, frame_w * 3, sizes, patch, merge, normal, out, out ? nullptr : got_image.data(), threads,
                   taps, strides) != 0)
        return fail("status codes", number);
  }
  if (image != got_image) return fail("images", number);
  if (std::memcmp(patches.data(), got_patches.data(), patches.size() * sizeof(float)) != 0)
    return fail("patches", number);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const bool grid = argc > 1 && std::string(argv[1]) == "grid";
  const int cases = argc > 2 ? std::stoi(argv[2]) : 0;
  std::mt19937 rng(20261122);
  for (int number = 0; number < cases; ++number)
    if (check(rng, number, grid) != 0) return 1;
  std::printf("%d cases equal, %s\n", cases, grid ? "grid" : gog_crop_simd());
  return 0;
}
