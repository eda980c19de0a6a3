// What the gated delta rule (gated_delta.h) is given and what it keeps between runs.
#pragma once

#include "parallel.h"
#include "simd.h"

namespace gog {

constexpr size_t kChunk = 64;  // tokens between two borders
constexpr size_t kLanes = 16;  // of a panel of keys, and what dv is padded to: the same on every CPU

// A state is `slots` times (value heads times [S: dk x padded dv][d: 64 x padded dv][c: 2 x 64], key heads times
// [k: 64 / 16 panels x dk x 16]).  Slot i % slots holds S at token 64 i and the rows of the 64 tokens from there on.
struct DeltaShape {
    size_t key_heads, value_heads, dk, dv, slots;

    size_t group() const { return value_heads / key_heads; }
    size_t padded() const { return div_up(dv, kLanes) * kLanes; }
    size_t value_words() const { return (dk + kChunk) * padded() + 2 * kChunk; }
    size_t key_words() const { return kChunk * dk; }
    size_t slot_words() const { return value_heads * value_words() + key_heads * key_words(); }
    size_t qkv() const { return 2 * key_heads * dk + value_heads * dv; }
};

struct DeltaInput {
    DeltaShape shape;
    const float *qkv, *a, *b;        // [rows, q | k | v], [rows, value heads] twice
    const float *rate, *bias;        // [value heads] or null: g = rate * softplus(a + bias), beta = sigmoid(b)
    const float *gate, *norm;        // [rows, value heads * dv], [dv] or null: y = rms(o) * norm * silu(gate)
    float *state, *y;                // [slots, slot_words], [rows, value heads * dv]
    size_t rows, start;              // start: tokens before the first row
    float scale, epsilon, l2_epsilon;
    bool l2;                         // whether q and k are divided by their length
};

// Rows of a head lie a token's width apart, which no hardware prefetcher follows.  While one head's rows are computed
// the lines of the next one's are fetched, a few at a time, so that memory keeps up.
class FetchAhead {
public:
    void clear() { rows_ = row_ = 0; }
    void add(const float* row) { list_[rows_++] = row; }
    void start(size_t width, size_t calls) {
        width_ = width, at_ = row_ = 0;
        each_ = div_up(rows_ * div_up(width, kLanes), calls);
    }
    GOG_INLINE void some() {
        for (size_t n = 0; n < each_ && row_ < rows_; n++) {
            __builtin_prefetch(list_[row_] + at_, 0, 2);
            at_ += kLanes;
            if (at_ >= width_) at_ = 0, row_++;
        }
    }

private:
    size_t rows_ = 0, row_ = 0, width_ = 0, at_ = 0, each_ = 0;
    const float* list_[4 * kChunk];
};

constexpr size_t kStretch = 16;  // channels of k between two calls of `some`

// One token is bound by memory, and hardware prefetchers stop at the end of a page: rows of S are asked for kLead rows
// ahead, behind them those of d, and then the next head's first.
constexpr size_t kLead = 32;
template <int C>
GOG_INLINE void fetch_row(const float* row) {
    for (int c = 0; c < C * W; c += (int)kLanes) __builtin_prefetch(row + c);
}

}  // namespace gog
