// Vision attention in 8 bits: as vision.h, with a first pass for the ranges of the values.
#pragma once

#include <vector>

#include "flash8.h"
#include "rotary.h"
#include "vision.h"

namespace gog {

class ByteVisionKernel {
public:
    ByteVisionKernel(const VisionInput& in, float* y) : in_(in), y_(y), hd_(in.hd), padded_(padded_head(in.hd)) {}

    void run(const Parallel& parallel) const {
        size_t small = 0, most = 0;
        for (const Group& group : in_.groups) {
            if (group.count <= kSmallGroup) small++;
            else if (group.count > most) most = group.count;
        }
        if (small > 0)
            parallel(in_.groups.size(), [&](size_t g) {
                if (in_.groups[g].count <= kSmallGroup) whole_group(in_.groups[g]);
            });
        if (most == 0) return;
        static thread_local Scratch scratch;
        uint32_t* memory = scratch.get<uint32_t>(in_.heads * byte_memory_words(most, hd_));
        for (const Group& group : in_.groups)
            if (group.count > kSmallGroup) large_group(group, memory, parallel);
    }

private:
    // Range of the values of a head's channels over some rows.
    struct Range {
        alignas(64) float most[kLargestHead], least[kLargestHead];
    };

    size_t row_of(const Group& group, size_t i) const { return (size_t)in_.rows[group.begin + i]; }
    const float* part(const Group& group, size_t i, size_t which, size_t head) const {
        return in_.qkv + (row_of(group, i) * 3 * in_.heads + which * in_.heads + head) * hd_;
    }
    void rotated(const Group& group, size_t i, size_t which, size_t head, float scale, float* out) const {
        const size_t at = row_of(group, i) * hd_ / 2;
        rotate_row(part(group, i, which, head), in_.cos + at, in_.sin + at, hd_, scale, out);
    }

    void value_range(const Group& group, size_t begin, size_t end, size_t head, Range& range) const {
        for (size_t c = 0; c < hd_; c += W) {
            const int lanes = lanes_left(hd_, c);
            vf most = load_first(part(group, begin, 2, head) + c, lanes), least = most;
            for (size_t i = begin + 1; i < end; i++) {
                const vf v = load_first(part(group, i, 2, head) + c, lanes);
                most = vmax(most, v);
                least = vmin(least, v);
            }
            store(range.most + c, most);
            store(range.least + c, least);
        }
    }

    // Middles and scales of the values, from the ranges of all pieces; the keys' mean, from a sample of them.
    void settle(const Group& group, size_t head, const Range* ranges, size_t count, size_t stride,
                const ByteMemory& out) const {
        for (size_t c = 0; c < padded_; c += W) {
            const bool real = c < hd_;
            vf most = real ? load<vf>(ranges->most + c) : vf{}, least = real ? load<vf>(ranges->least + c) : vf{};
            for (size_t i = 1; i < count && real; i++) {
                most = vmax(most, load<vf>(ranges[i * stride].most + c));
                least = vmin(least, load<vf>(ranges[i * stride].least + c));
            }
            store(out.value_middles + c, (most + least) * 0.5f);
            store(out.value_scales + c, (most - least) * (0.5f / 127.0f));
            store(out.key_means + c, vf{});
        }
        alignas(64) float key[kLargestHead + W] = {};
        const size_t step = div_up(group.count, 32), sampled = div_up(group.count, step);
        for (size_t i = 0; i < group.count; i += step) {
            rotated(group, i, 1, head, 1.0f / (float)sampled, key);
            for (size_t c = 0; c < padded_; c += W)
                store(out.key_means + c, load<vf>(out.key_means + c) + load<vf>(key + c));
        }
    }

    void whole_group(const Group& group) const {
        static thread_local Scratch scratch;
        uint32_t* memory = scratch.get<uint32_t>(byte_memory_words(group.count, hd_));
        Range range;
        const ByteMemory bytes = byte_memory(memory, group.count, hd_);
        for (size_t head = 0; head < in_.heads; head++) {
            value_range(group, 0, group.count, head, range);
            settle(group, head, &range, 1, 1, bytes);
            pack(group, 0, group.count, head, bytes);
            attend_rows(group, 0, group.count, head, bytes);
        }
    }

    void large_group(const Group& group, uint32_t* memory, const Parallel& parallel) const {
        static thread_local Scratch ranges;
        const size_t each = byte_memory_words(group.count, hd_), pieces = div_up(group.count, kPiece);
        const size_t heads = in_.heads;
        Range* all = ranges.get<Range>(pieces * heads);
        const auto begin = [&](size_t piece) { return piece * kPiece; };
        const auto end = [&](size_t piece) { return piece + 1 < pieces ? (piece + 1) * kPiece : group.count; };
        const auto bytes_of = [&](size_t head) { return byte_memory(memory + head * each, group.count, hd_); };
        parallel(pieces, [&](size_t piece) {
            for (size_t h = 0; h < heads; h++)
                value_range(group, begin(piece), end(piece), h, all[piece * heads + h]);
        });
        parallel(heads, [&](size_t h) { settle(group, h, all + h, pieces, heads, bytes_of(h)); });
        parallel(pieces, [&](size_t piece) {
            for (size_t h = 0; h < heads; h++) pack(group, begin(piece), end(piece), h, bytes_of(h));
        });
        parallel(heads * pieces, [&](size_t task) {
            const size_t head = task / pieces, piece = task % pieces;  // a head's keys stay in the L2 cache
            attend_rows(group, begin(piece), end(piece), head, bytes_of(head));
        });
    }

    // begin is a multiple of W; the last piece also clears what a block of keys may read beyond the group.
    void pack(const Group& group, size_t begin, size_t end, size_t head, const ByteMemory& out) const {
        if (end == group.count) end = div_up(end, 2 * W) * 2 * W;
        alignas(64) float rows[16 * kLargestHead];
        for (size_t i = begin; i < end; i += W) {
            const size_t count = i >= group.count ? 0 : group.count - i < (size_t)W ? group.count - i : W;
            for (size_t j = 0; j < count; j++) {
                float* row = rows + j * hd_;
                rotated(group, i + j, 1, head, 1.0f, row);
                for (size_t c = 0; c < hd_; c += W) {
                    const int lanes = lanes_left(hd_, c);
                    store_first(row + c, load_first(row + c, lanes) - load<vf>(out.key_means + c), lanes);
                }
            }
            pack_byte_keys(rows, hd_, count, i, out);
            for (size_t j = 0; j < (size_t)W; j += 4) {
                const float* four[4];
                for (size_t k = 0; k < 4; k++) four[k] = j + k < count ? part(group, i + j + k, 2, head) : nullptr;
                pack_byte_values(four, hd_, i + j, out);
            }
        }
    }

    void attend_rows(const Group& group, size_t begin, size_t end, size_t head, const ByteMemory& memory) const {
        const size_t words = byte_words(hd_);
        alignas(64) float row[kLargestHead];
        alignas(64) uint32_t queries[kQueryBlock * kLargestHead / 4 + W];
        alignas(64) float out[kQueryBlock * kLargestHead];
        alignas(64) float scales[Softmax::kRows] = {};
        const size_t span = end - begin, blocks = div_up(span, kQueryBlock);
        for (size_t b = 0; b < blocks; b++) {
            const size_t first = begin + b * span / blocks, last = begin + (b + 1) * span / blocks;
            for (size_t i = first; i < last; i++) {
                rotated(group, i, 0, head, in_.scale * 1.44269504088896f, row);
                scales[i - first] = pack_query(row, hd_, queries + (i - first) * words);
            }
            attend_bytes(queries, scales, last - first, hd_, group.count, memory, out);
            for (size_t i = first; i < last; i++)
                std::memcpy(y_ + (row_of(group, i) * in_.heads + head) * hd_, out + (i - first) * padded_, hd_ * 4);
        }
    }

    const VisionInput& in_;
    float* y_;
    size_t hd_, padded_;
};

}  // namespace gog
