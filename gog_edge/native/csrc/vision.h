// Vision attention over packed groups of rows, in bf16 or f32: which task packs what, and who attends to it.
#pragma once

#include <vector>

#include "flash.h"
#include "rotary.h"

namespace gog {

// Rows of one attention group: an image, or one window of it.
struct Group {
    size_t begin, count;  // into the list of rows
};

struct VisionInput {
    const float *qkv, *cos, *sin;
    size_t n, heads, hd;
    float scale;
    std::vector<int64_t> rows;  // every row once, group after group
    std::vector<Group> groups;
};

// A group this small is packed and attended by one task, in memory of its own that stays in the L2 cache.
constexpr size_t kSmallGroup = 256;
constexpr size_t kHeadsAtOnce = 4;  // of a small group: neighbouring heads are neighbours in a row of qkv
constexpr size_t kPiece = 8 * kQueryBlock;

template <class E>
class VisionKernel {
public:
    explicit VisionKernel(const VisionInput& in, float* y)
        : in_(in), y_(y), hd_(in.hd), padded_(padded_head(in.hd)), words_(in.hd / E::kPer) {}

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
        uint32_t* memory = scratch.get<uint32_t>(in_.heads * head_words(most));
        for (const Group& group : in_.groups)
            if (group.count > kSmallGroup) large_group(group, memory, parallel);
    }

private:
    size_t head_words(size_t keys) const { return key_words<E>(keys, hd_) + value_words<E>(keys, hd_); }
    HeadMemory part_of(uint32_t* memory, size_t keys) const { return {memory, memory + key_words<E>(keys, hd_)}; }
    size_t row_of(const Group& group, size_t i) const { return (size_t)in_.rows[group.begin + i]; }
    const float* part(const Group& group, size_t i, size_t which, size_t head) const {
        return in_.qkv + (row_of(group, i) * 3 * in_.heads + which * in_.heads + head) * hd_;
    }

    void whole_group(const Group& group) const {
        static thread_local Scratch scratch;
        const size_t each = head_words(group.count);
        uint32_t* memory = scratch.get<uint32_t>(kHeadsAtOnce * each);
        for (size_t head = 0; head < in_.heads; head += kHeadsAtOnce) {
            const size_t heads = in_.heads - head < kHeadsAtOnce ? in_.heads - head : kHeadsAtOnce;
            pack(group, 0, group.count, head, heads, memory);
            for (size_t h = 0; h < heads; h++)
                attend_rows(group, 0, group.count, head + h, part_of(memory + h * each, group.count));
        }
    }

    void large_group(const Group& group, uint32_t* memory, const Parallel& parallel) const {
        const size_t each = head_words(group.count), pieces = div_up(group.count, kPiece);
        const auto begin = [&](size_t piece) { return piece * kPiece; };
        const auto end = [&](size_t piece) { return piece + 1 < pieces ? (piece + 1) * kPiece : group.count; };
        parallel(pieces * 2, [&](size_t task) {
            const size_t piece = task / 2, half = in_.heads / 2, first = task % 2 ? half : 0;
            pack(group, begin(piece), end(piece), first, task % 2 ? in_.heads - half : half, memory + first * each);
        });
        parallel(in_.heads * pieces, [&](size_t task) {
            const size_t head = task / pieces, piece = task % pieces;  // a head's keys stay in the L2 cache
            attend_rows(group, begin(piece), end(piece), head, part_of(memory + head * each, group.count));
        });
    }

    // Keys and values of `heads` heads from `head` on: rotate, round, repack.  Head h goes to memory + h * each.
    // begin is a multiple of W; the last piece also clears what a block of keys may read beyond the group.
    void pack(const Group& group, size_t begin, size_t end, size_t head, size_t heads, uint32_t* memory) const {
        const size_t each = head_words(group.count);
        if (end == group.count) end = div_up(end, 2 * W) * 2 * W;
        static const float zero[kLargestHead] = {};
        alignas(64) float rotated[W * kLargestHead];
        for (size_t i = begin; i < end; i += W) {
            const size_t count = i >= group.count ? 0 : group.count - i < (size_t)W ? group.count - i : W;
            for (size_t h = 0; h < heads; h++) {
                const HeadMemory out = part_of(memory + h * each, group.count);
                for (size_t j = 0; j < count; j++) {
                    const size_t at = row_of(group, i + j) * hd_ / 2;
                    rotate_row(part(group, i + j, 1, head + h), in_.cos + at, in_.sin + at, hd_, 1.0f,
                               rotated + j * hd_);
                }
                pack_keys<E>(rotated, hd_, count, i, out.keys);
                for (size_t j = 0; j < (size_t)W; j += E::kPer)
                    pack_values<E>(j < count ? part(group, i + j, 2, head + h) : zero,
                                   j + 1 < count ? part(group, i + j + 1, 2, head + h) : nullptr, hd_, i + j,
                                   out.values);
            }
        }
    }

    void attend_rows(const Group& group, size_t begin, size_t end, size_t head, const HeadMemory& memory) const {
        alignas(64) float row[kLargestHead];
        alignas(64) uint32_t queries[kQueryBlock * kLargestHead];
        alignas(64) float out[kQueryBlock * kLargestHead];
        size_t limits[kQueryBlock];
        const size_t span = end - begin, blocks = div_up(span, kQueryBlock);
        for (size_t b = 0; b < blocks; b++) {
            const size_t first = begin + b * span / blocks, last = begin + (b + 1) * span / blocks;
            for (size_t i = first; i < last; i++) {
                const size_t at = row_of(group, i) * hd_ / 2;
                rotate_row(part(group, i, 0, head), in_.cos + at, in_.sin + at, hd_,
                           in_.scale * 1.44269504088896f, row);
                to_words<E>(row, hd_, queries + (i - first) * words_);
                limits[i - first] = group.count;
            }
            attend<E>({queries, last - first, hd_, group.count, limits, out}, memory);
            for (size_t i = first; i < last; i++)
                std::memcpy(y_ + (row_of(group, i) * in_.heads + head) * hd_, out + (i - first) * padded_, hd_ * 4);
        }
    }

    const VisionInput& in_;
    float* y_;
    size_t hd_, padded_, words_;
};

}  // namespace gog
