// Which rows of a run are read rather than written: the optional input prefill_rows of the decoder's operators.
#pragma once

#include "check.h"
#include "ort_abi.h"

namespace gog {

struct RowRange {
    size_t begin = 0, end = 0;
};

// i32 [2]: first and one past the last row that takes the arithmetic of prefill; without the input, every row does.
inline RowRange row_range(const ort::Tensor& input, size_t rows) {
    if (!input) return {0, rows};
    require(input.count() == 2, "prefill_rows must be [2]");
    const int32_t* p = input.as<int32_t>();
    require(p[0] >= 0 && p[0] <= p[1] && (size_t)p[1] <= rows, "prefill_rows must be a range of the rows");
    if (p[0] == p[1]) return {};
    return {(size_t)p[0], (size_t)p[1]};
}

}  // namespace gog
