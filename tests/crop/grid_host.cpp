// The CUDA kernel as a shared library, for a stand-in of the driver: `gog_launch` takes what a launch takes.
#include "host_cuda.h"

extern "C" void gog_launch(uint32_t grid_x, uint32_t grid_y, uint32_t block, const uint8_t* source, int64_t row_bytes,
                           int32_t out_w, int32_t out_h, const int32_t* tables, int32_t x_stride, int32_t y_stride,
                           int32_t patch, int32_t merge, float offset0, float offset1, float offset2, float scale0,
                           float scale1, float scale2, float* patches, uint8_t* image) {
  host_launch(grid_x, grid_y, block, source, row_bytes, out_w, out_h, tables, x_stride, y_stride, patch, merge, offset0,
              offset1, offset2, scale0, scale1, scale2, patches, image);
}
