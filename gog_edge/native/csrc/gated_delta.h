// The gated delta rule of Gated DeltaNet (Yang, Kautz and Hatamizadeh, 2024), for one token or thousands.
//
// Token i of a value head with decay g_i (a logarithm), rate beta_i and state S [dk, dv]:
//   S <- e^{g_i} S;  d_i = beta_i (v_i - S^T k_i);  S <- S + k_i d_i^T;  o_i = S^T q_i.
// S is brought up to date at every 64th token only.  With S at the last border, c_i the sum of g since then, and the
// k_j and d_j of the tokens since then, the same is
//   d_i = beta_i (v_i - e^{c_i} S^T k_i - sum over j < i of e^{c_i - c_j} (k_i . k_j) d_j)
//   o_i = e^{c_i} S^T q_i + sum over j <= i of e^{c_i - c_j} (q_i . k_j) d_j
//   border: S <- e^{c_63} S + sum over j of e^{c_63 - c_j} k_j d_j^T.
// So a token reads S and writes a row, many tokens are matrix products, and both are one arithmetic: every sum is a
// chain in the order of k's channels, then of the tokens, and borders are multiples of 64 of the position.  A token
// has the same bits whichever run computes it.  To take tokens back is to forget their rows (see DeltaShape::slots).
#pragma once

#include <cmath>
#include <thread>

#include "activation.h"
#include "delta_state.h"
#include "flash.h"
#include "parallel.h"
#include "simd.h"

namespace gog {

// Register tiles: tokens (each with its k and its q) x vectors of dv; channels of k x vectors of dv for a border.
constexpr int kDeltaRows = W == 16 ? 3 : 2, kDeltaColumns = W == 8 ? 2 : 4;
constexpr int kAloneColumns = W == 16 ? 8 : 4, kFoldRows = W == 8 ? 6 : 4, kFoldColumns = kDeltaColumns;

class DeltaHead {
public:
    explicit DeltaHead(const DeltaInput& in) : in_(in), s_(in.shape), padded_(s_.padded()) {}

    // All rows of key heads [begin, end) and of the value heads that they serve, chunk by chunk.
    void run(size_t begin, size_t end) {
        static thread_local Scratch memory;
        float* at = memory.get<float>(2 * kChunk * s_.dk + 4 * kChunk * kChunk + kChunk * padded_ + s_.dk * kChunk);
        const auto take = [&at](size_t count) {
            float* taken = at;
            at += count;
            return taken;
        };
        k_ = take(kChunk * s_.dk), q_ = take(kChunk * s_.dk);
        kk_ = take(kChunk * kChunk), qk_ = take(kChunk * kChunk);
        lower_ = take(kChunk * kChunk), mix_ = take(kChunk * kChunk);
        out_ = take(kChunk * padded_), weighted_ = take(s_.dk * kChunk);
        begin_ = begin, end_ = end;
        for (row_ = 0; row_ < in_.rows; row_ += count_) {
            const size_t position = in_.start + row_, chunk = position / kChunk;
            first_ = position % kChunk;
            count_ = kChunk - first_ < in_.rows - row_ ? kChunk - first_ : in_.rows - row_;
            slot_ = in_.state + chunk % s_.slots * s_.slot_words();
            next_ = in_.state + (chunk + 1) % s_.slots * s_.slot_words();
            for (size_t head = begin; head < end; head++) {
                panels_ = slot_ + s_.value_heads * s_.value_words() + head * s_.key_words();
                prepare(head);
                products();
                for (size_t g = 0; g < s_.group(); g++) value_head(head * s_.group() + g);
            }
        }
    }

private:
    // q and k of the rows at hand, ready to be multiplied; the keys also as columns of the chunk's panels.
    void prepare(size_t head) {
        for (size_t i = 0; i < count_; i++) {
            const float* q = in_.qkv + (row_ + i) * s_.qkv() + head * s_.dk;
            copy_row(q, in_.scale, q_ + i * s_.dk);
            copy_row(q + s_.key_heads * s_.dk, 1.0f, k_ + i * s_.dk);
        }
        size_t i = 0;
#if defined(GOG_AVX512)
        for (; (first_ + i) % kLanes == 0 && i + kLanes <= count_; i += kLanes) {
            size_t c = 0;
            float* panel = panels_ + (first_ + i) * s_.dk;
            for (; c + kLanes <= s_.dk; c += kLanes)
                transpose16((const uint32_t*)k_ + i * s_.dk + c, s_.dk, (uint32_t*)panel + c * kLanes);
            for (; c < s_.dk; c++)
                for (size_t n = 0; n < kLanes; n++) panel[c * kLanes + n] = k_[(i + n) * s_.dk + c];
        }
#endif
        for (; i < count_; i++) {
            float* panel = panels_ + (first_ + i) / kLanes * kLanes * s_.dk + (first_ + i) % kLanes;
            for (size_t c = 0; c < s_.dk; c++) panel[c * kLanes] = k_[i * s_.dk + c];
        }
    }

    __attribute__((noinline)) void copy_row(const float* x, float scale, float* y) const {
        const size_t whole = s_.dk / W * W, rest = s_.dk - whole;
        if (in_.l2) {
            vf square = rest ? load_first(x + whole, (int)rest) : vf{};
            square *= square;
            for (size_t c = 0; c < whole; c += W) square = madd(square, load<vf>(x + c), load<vf>(x + c));
            scale /= std::sqrt(hsum(square) + in_.l2_epsilon);
        }
        for (size_t c = 0; c < whole; c += W) store(y + c, load<vf>(x + c) * scale);
        if (rest) store_first(y + whole, load_first(x + whole, (int)rest) * scale, (int)rest);
    }

    // kk_[i][j] = k_i . k_j and qk_[i][j] = q_i . k_j for j up to i's place in the chunk (and some lanes beyond).
    void products() {
        constexpr size_t kRows = W == 16 ? 6 : W == 8 ? 2 : 3;
        const size_t panels = (first_ + count_ - 1) / kLanes + 1;
        if (count_ == 1) {  // memory is the limit: all panels in one pass
            if (panels == 4) return product<1, 4>(0, 0);
            if (panels == 3) return product<1, 3>(0, 0);
            return panels == 2 ? product<1, 2>(0, 0) : product<1, 1>(0, 0);
        }
        for (size_t p = 0; p < panels; p++) {
            size_t i = p * kLanes > first_ ? p * kLanes - first_ : 0;  // tokens before it do not see the panel
            for (; i + kRows <= count_; i += kRows) product<kRows, 1>(i, p);
            for (; i < count_; i++) product<1, 1>(i, p);
        }
    }

    template <int R, int P>
    void product(size_t i, size_t panel) {
        constexpr int V = (int)kLanes / W;
        vf k[R][P * V], q[R][P * V];
        GOG_UNROLL
        for (int r = 0; r < R; r++)
            GOG_UNROLL
            for (int v = 0; v < P * V; v++) k[r][v] = q[r][v] = vf{};
        const float *base = panels_ + panel * s_.dk * kLanes, *ki = k_ + i * s_.dk, *qi = q_ + i * s_.dk;
        for (size_t c = 0; c < s_.dk; c++) {
            GOG_UNROLL
            for (int v = 0; v < P * V; v++) {
                const vf x = load<vf>(base + (size_t)(v / V) * s_.dk * kLanes + c * kLanes + v % V * W);
                GOG_UNROLL
                for (int r = 0; r < R; r++) {
                    k[r][v] = madd(k[r][v], x, ki[(size_t)r * s_.dk + c]);
                    q[r][v] = madd(q[r][v], x, qi[(size_t)r * s_.dk + c]);
                }
            }
        }
        GOG_UNROLL
        for (int r = 0; r < R; r++)
            GOG_UNROLL
            for (int v = 0; v < P * V; v++) {
                store(kk_ + (i + r) * kChunk + panel * kLanes + v * W, k[r][v]);
                store(qk_ + (i + r) * kChunk + panel * kLanes + v * W, q[r][v]);
            }
    }

    void value_head(size_t head) {
        matrix_ = slot_ + head * s_.value_words();
        d_ = matrix_ + s_.dk * padded_;
        decay_ = d_ + kChunk * padded_;
        if (in_.start + row_ == 0) std::memset(matrix_, 0, s_.dk * padded_ * 4);
        y_ = in_.y + (row_ * s_.value_heads + head) * s_.dv;
        v_ = in_.qkv + row_ * s_.qkv() + 2 * s_.key_heads * s_.dk + head * s_.dv;
        for (size_t i = 0; i < count_; i++) coefficients(head, i);
        plan(head);
        const bool last = (head + 1) % s_.group() == 0 && head + 1 < s_.value_heads;  // of those of its key head
        next_panels_ = count_ == 1 && last ? first_ / kLanes + 1 : 0;
        if (count_ == 1)
            columns<1, kAloneColumns>();
        else if (count_ == 2)
            columns<2, 4>();
        else
            columns<kDeltaRows, kDeltaColumns>();
        for (size_t i = 0; i < count_; i++) finish(head, i);
        if (first_ + count_ == kChunk) fold(next_ + head * s_.value_words());
    }

    // x [64] of exp(c_i - c_j) for j up to i (and some lanes beyond).  c is kept as two floats, whose difference keeps
    // the digits of a small decay behind a large one.
    GOG_INLINE vf fading(size_t i, size_t j) const {
        const vf high = splat(decay_[i]) - load<vf>(decay_ + j);
        const vf low = splat(decay_[kChunk + i]) - load<vf>(decay_ + kChunk + j);
        return exp2v<5, false>((high + low) * 1.44269504088896f);
    }
    float faded(size_t i) const { return std::exp(decay_[i] + decay_[kChunk + i]); }

    __attribute__((noinline)) void coefficients(size_t head, size_t i) {
        const size_t at = (row_ + i) * s_.value_heads + head, place = first_ + i;
        float g = in_.a[at], beta = in_.b[at];
        if (in_.bias) {
            const float x = g + in_.bias[head];
            g = in_.rate[head] * (x > 20.0f ? x : std::log1p(std::exp(x)));
            beta = 1.0f / (1.0f + std::exp(-beta));
        }
        if (g < -128.0f) g = -128.0f;  // e^-128 is 0; the sum stays finite
        const double before = place ? (double)decay_[place - 1] + (double)decay_[kChunk + place - 1] : 0.0;
        const double sum = before + (double)g;
        decay_[place] = (float)sum;
        decay_[kChunk + place] = (float)(sum - (double)decay_[place]);
        beta_[i] = beta;
        faded_[i] = faded(place);
        for (size_t j = 0; j <= place; j += W) {
            const vf p = fading(place, j);
            store(lower_ + i * kChunk + j, p * -beta * load<vf>(kk_ + i * kChunk + j));
            store(mix_ + i * kChunk + j, p * load<vf>(qk_ + i * kChunk + j));
        }
    }

    // What to fetch while `head` is computed: lines of its y, and q, k and v of the head that comes next.
    void plan(size_t head) {
        fetch_.clear();
        if (count_ > 2) {
            size_t next = head + 1, row = row_;
            if (next == end_ * s_.group()) next = begin_ * s_.group(), row += count_;
            for (size_t i = 0; i < count_; i++) {
                fetch_.add(y_ + i * s_.value_heads * s_.dv);
                if (row + i >= in_.rows) continue;
                const float* at = in_.qkv + (row + i) * s_.qkv();
                fetch_.add(at + 2 * s_.key_heads * s_.dk + next * s_.dv);
                if (next % s_.group()) continue;
                fetch_.add(at + next / s_.group() * s_.dk);
                fetch_.add(at + (s_.key_heads + next / s_.group()) * s_.dk);
            }
        }
        const size_t tiles = div_up(count_, kDeltaRows) * div_up(padded_, kDeltaColumns * W);
        fetch_.start(s_.dk > s_.dv ? s_.dk : s_.dv, tiles * div_up(s_.dk, kStretch));
    }

    template <int R, int C>
    void columns() {
        size_t column = 0;
        for (; column + C * W <= padded_; column += C * W) rows<R, C>(0, column);
        if constexpr (C > 1)
            for (; column < padded_; column += W) rows<R, 1>(0, column);
    }
    template <int R, int C>
    void rows(size_t i, size_t column) {
        for (; i + R <= count_; i += R) tile<R, C>(i, column);
        if constexpr (R > 1)
            if (i < count_) rows<R - 1, C>(i, column);
    }

    // d and o of tokens i … i + R - 1.
    template <int R, int C>
    GOG_INLINE void tile(size_t i, size_t column) {
        vf d[R][C], o[R][C];
        GOG_UNROLL
        for (int r = 0; r < R; r++)
            GOG_UNROLL
            for (int c = 0; c < C; c++) d[r][c] = o[r][c] = vf{};
        const size_t before = first_ + i;
        const float *s = matrix_ + column, *k = k_ + i * s_.dk, *q = q_ + i * s_.dk;
        for (size_t n = 0; n < s_.dk;) {
            if (R > 1) fetch_.some();
            for (const size_t stop = n + kStretch < s_.dk ? n + kStretch : s_.dk; n < stop; n++, s += padded_) {
                if (R == 1) {
                    if (n + kLead < s_.dk + before) fetch_row<C>(s + kLead * padded_);
                    for (size_t p = 0; p < next_panels_; p++)
                        __builtin_prefetch(panels_ + s_.key_words() + (p * s_.dk + n) * kLanes);
                }
                GOG_UNROLL
                for (int c = 0; c < C; c++) {
                    const vf x = load<vf>(s + c * W);
                    GOG_UNROLL
                    for (int r = 0; r < R; r++) {
                        d[r][c] = madd(d[r][c], x, k[(size_t)r * s_.dk + n]);
                        o[r][c] = madd(o[r][c], x, q[(size_t)r * s_.dk + n]);
                    }
                }
            }
        }
        GOG_UNROLL
        for (int r = 0; r < R; r++) {
            const float* v = v_ + (i + r) * s_.qkv();
            GOG_UNROLL
            for (int c = 0; c < C; c++) {
                const size_t at = column + c * W;
                const vf value = at < s_.dv ? load_first(v + at, lanes_left(s_.dv, at)) : vf{};
                d[r][c] = madd(value, d[r][c], -faded_[i + r]) * beta_[i + r];
                o[r][c] = o[r][c] * faded_[i + r];
            }
        }
        const float *l = lower_ + i * kChunk, *m = mix_ + i * kChunk, *row = d_ + column;
        for (size_t j = 0; j < before; j++, row += padded_) {
            if (R == 1 && j < kLead) fetch_row<C>(matrix_ + s_.value_words() + j * padded_ + column);
            GOG_UNROLL
            for (int c = 0; c < C; c++) {
                const vf x = load<vf>(row + c * W);
                GOG_UNROLL
                for (int r = 0; r < R; r++) {
                    d[r][c] = madd(d[r][c], x, l[(size_t)r * kChunk + j]);
                    o[r][c] = madd(o[r][c], x, m[(size_t)r * kChunk + j]);
                }
            }
        }
        float* own = d_ + before * padded_ + column;
        GOG_UNROLL
        for (int n = 0; n < R; n++) {
            GOG_UNROLL
            for (int r = n; r < R; r++)
                GOG_UNROLL
                for (int c = 0; c < C; c++) {
                    if (r > n) d[r][c] = madd(d[r][c], d[n][c], l[(size_t)r * kChunk + before + n]);
                    o[r][c] = madd(o[r][c], d[n][c], m[(size_t)r * kChunk + before + n]);
                }
            GOG_UNROLL
            for (int c = 0; c < C; c++) {
                store(own + (size_t)n * padded_ + c * W, d[n][c]);
                store(out_ + (i + n) * padded_ + column + c * W, o[n][c]);
            }
        }
    }

    // y of token i, with the gated norm where there is one.
    __attribute__((noinline)) void finish(size_t head, size_t i) const {
        const float* o = out_ + i * padded_;
        float* y = y_ + i * s_.value_heads * s_.dv;
        if (!in_.gate) {
            std::memcpy(y, o, s_.dv * 4);
            return;
        }
        vf square{};
        for (size_t c = 0; c < padded_; c += W) square = madd(square, load<vf>(o + c), load<vf>(o + c));
        const float inverse = 1.0f / std::sqrt(hsum(square) / (float)s_.dv + in_.epsilon);
        const float* gate = in_.gate + ((row_ + i) * s_.value_heads + head) * s_.dv;
        for (size_t c = 0; c < s_.dv; c += W) {
            const int lanes = lanes_left(s_.dv, c);
            const vf z = load_first(gate + c, lanes), w = load_first(in_.norm + c, lanes);
            store_first(y + c, load<vf>(o + c) * inverse * w * (z * sigmoid(z)), lanes);
        }
    }

    // S at the next border.
    void fold(float* to) {
        alignas(64) float weights[kChunk];
        for (size_t j = 0; j < kChunk; j += W) store(weights + j, fading(kChunk - 1, j));
        const float keep = faded(kChunk - 1);
        for (size_t p = 0; p < kChunk; p += kLanes)
            for (size_t c = 0; c < s_.dk; c++)
                for (size_t v = 0; v < kLanes; v += W)
                    store(weighted_ + c * kChunk + p + v,
                          load<vf>(panels_ + p * s_.dk + c * kLanes + v) * load<vf>(weights + p + v));
        size_t column = 0;
        for (; column + kFoldColumns * W <= padded_; column += kFoldColumns * W)
            fold_rows<kFoldRows, kFoldColumns>(0, column, keep, to);
        for (; column < padded_; column += W) fold_rows<kFoldRows, 1>(0, column, keep, to);
    }
    template <int R, int C>
    void fold_rows(size_t i, size_t column, float keep, float* to) const {
        for (; i + R <= s_.dk; i += R) fold_tile<R, C>(i, column, keep, to);
        if constexpr (R > 1)
            if (i < s_.dk) fold_rows<R / 2, C>(i, column, keep, to);
    }
    template <int R, int C>
    GOG_INLINE void fold_tile(size_t i, size_t column, float keep, float* to) const {
        vf acc[R][C];
        GOG_UNROLL
        for (int r = 0; r < R; r++)
            GOG_UNROLL
            for (int c = 0; c < C; c++) acc[r][c] = load<vf>(matrix_ + (i + r) * padded_ + column + c * W) * keep;
        const float *w = weighted_ + i * kChunk, *row = d_ + column;
        for (size_t j = 0; j < kChunk; j++, row += padded_) {
            GOG_UNROLL
            for (int c = 0; c < C; c++) {
                const vf x = load<vf>(row + c * W);
                GOG_UNROLL
                for (int r = 0; r < R; r++) acc[r][c] = madd(acc[r][c], x, w[(size_t)r * kChunk + j]);
            }
        }
        GOG_UNROLL
        for (int r = 0; r < R; r++)
            GOG_UNROLL
            for (int c = 0; c < C; c++) store(to + (i + r) * padded_ + column + c * W, acc[r][c]);
    }

    const DeltaInput& in_;
    const DeltaShape& s_;
    const size_t padded_;
    size_t row_ = 0, first_ = 0, count_ = 0;  // the rows at hand, the first one's place in its chunk
    float *slot_ = nullptr, *next_ = nullptr, *panels_ = nullptr;
    float *matrix_ = nullptr, *d_ = nullptr, *decay_ = nullptr;
    const float* v_ = nullptr;
    float* y_ = nullptr;
    float *k_ = nullptr, *q_ = nullptr, *kk_ = nullptr, *qk_ = nullptr, *lower_ = nullptr, *mix_ = nullptr;
    float *out_ = nullptr, *weighted_ = nullptr;
    size_t begin_ = 0, end_ = 0;  // key heads
    size_t next_panels_ = 0;      // of the next key head, to be fetched on the way
    FetchAhead fetch_;
    float beta_[kChunk], faded_[kChunk];
};

// All rows.  The heads that a key head serves share a task, and what is computed of keys alone.
inline void gated_delta(const DeltaInput& in, const Parallel& parallel) {
    const DeltaShape& s = in.shape;
    static const size_t cores = std::thread::hardware_concurrency();
    // A few tasks for every core; neighbours share pages of qkv.
    const size_t most = 4 * (cores > 0 ? cores : 8), tasks = s.key_heads < most ? s.key_heads : most;
    const auto task = [&](size_t i) {
        DeltaHead(in).run(i * s.key_heads / tasks, (i + 1) * s.key_heads / tasks);
    };
    if (in.rows * s.value_heads * s.dk * s.dv < 1 << 15) {  // cheaper than waking another thread
        for (size_t i = 0; i < tasks; i++) task(i);
    } else {
        parallel(tasks, task);
    }
}

}  // namespace gog
