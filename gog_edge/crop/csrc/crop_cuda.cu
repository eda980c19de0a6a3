// Entry point of the CUDA build. Launch: grid (ceil(out_w / 32), ceil(out_h / 16)), 256 threads, no dynamic shared
// memory. Exactly one of `patches` and `image` is not null.
#include "crop_grid.h"

namespace gog {

struct CudaThread {
  __device__ __forceinline__ int32_t index() const { return static_cast<int32_t>(threadIdx.x); }
  __device__ __forceinline__ int32_t block_x() const { return static_cast<int32_t>(blockIdx.x); }
  __device__ __forceinline__ int32_t block_y() const { return static_cast<int32_t>(blockIdx.y); }
  __device__ __forceinline__ void sync() const { __syncthreads(); }
};

}  // namespace gog

extern "C" __global__ void __launch_bounds__(gog::kBlockThreads)
    gog_crop(const uint8_t* source, int64_t row_bytes, int32_t out_w, int32_t out_h, const int32_t* tables,
             int32_t x_stride, int32_t y_stride, int32_t patch, int32_t merge, float offset0, float offset1,
             float offset2, float scale0, float scale1, float scale2, float* patches, uint8_t* image) {
  __shared__ gog::Shared shared;
  gog::GridJob job{source, row_bytes, out_w, out_h, {}, {}, patch, merge,
                   {{offset0, offset1, offset2}, {scale0, scale1, scale2}}, patches, image};
  gog::unpack_tables(tables, x_stride, y_stride, job);
  gog::crop_tile(job, gog::CudaThread{}, shared);
}
