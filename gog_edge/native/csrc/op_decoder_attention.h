// The operators DecoderAttentionF16 and DecoderAttentionI8: causal grouped-query attention, KV cache in place.
#pragma once

#include <thread>

#include "check.h"
#include "conversations.h"
#include "decode.h"
#include "flash.h"
#include "kv_cache.h"
#include "ort_abi.h"
#include "rotary.h"
#include "row_range.h"

namespace gog {

struct DecoderInput {
    const float *qkv, *cos, *sin, *q_norm, *k_norm;
    size_t s, total, heads, kv_heads, hd;
    float scale, epsilon;
    RowRange prefill;  // tokens whose attention is computed in blocks, in bf16 where the CPU multiplies it

    size_t group() const { return heads / kv_heads; }  // query heads that share a kv head
    // Queries of one kv head are taken token by token: row i is token i / group, head i % group of the group.
    size_t limit(size_t row) const { return total - s + row / group() + 1; }
};

template <class C>
class DecoderKernel {
public:
    DecoderKernel(const DecoderInput& in, const C& keys, const C& values, float* y)
        : in_(in), keys_(keys), values_(values), y_(y) {}

    // Rows [first, last) of every kv head's queries, at most kDecodeRows: attention straight over the cache.
    struct Stretch {
        const DecoderKernel* kernel;
        size_t first, last, tasks;  // tasks: of every kv head
        const float* q;             // of the whole conversation
        Partial* partials;
        float* out;

        size_t rows() const { return last - first; }
        size_t keys() const { return kernel->in_.limit(last - 1); }
        size_t parts() const { return div_up(keys(), kDecodeKeys); }
        size_t task_count() const { return kernel->in_.kv_heads * tasks; }
        size_t floats() const { return kernel->in_.kv_heads * parts() * rows() * kernel->in_.hd; }
    };

    // All conversations of a run at once.
    static void run(const std::vector<DecoderKernel>& kernels, const Parallel& parallel) {
        static thread_local Scratch memory;
        size_t tokens = 0;
        for (const DecoderKernel& kernel : kernels) tokens += kernel.in_.s;
        float* q = memory.get<float>(tokens * kernels[0].in_.heads * kernels[0].in_.hd);
        std::vector<float*> queries;
        for (const DecoderKernel& kernel : kernels) {
            queries.push_back(q);
            q += kernel.in_.s * kernel.in_.heads * kernel.in_.hd;
        }
        const auto prepare_token = [&](size_t token) {
            size_t i = 0;
            for (; token >= kernels[i].in_.s; i++) token -= kernels[i].in_.s;
            kernels[i].prepare(token, queries[i]);
        };
        if (tokens == 1) {
            prepare_token(0);
        } else {
            parallel(tokens, prepare_token);
        }
        decode(kernels, queries, parallel);
        for (size_t i = 0; i < kernels.size(); i++)
            if (kernels[i].in_.prefill.begin < kernels[i].in_.prefill.end) kernels[i].prefill(queries[i], parallel);
    }

private:
    // Norm, rotate and scale the queries of one token; write its key and value into the cache.
    // q is laid out [kv_heads][s][group][hd].
    void prepare(size_t token, float* q) const {
        const size_t hd = in_.hd, group = in_.group();
        const float* row = in_.qkv + token * (in_.heads + 2 * in_.kv_heads) * hd;
        const float *cos = in_.cos + token * hd / 2, *sin = in_.sin + token * hd / 2;
        const size_t position = in_.total - in_.s + token;
        alignas(64) float normed[kLargestHead], rotated[kLargestHead];
        for (size_t head = 0; head < in_.heads + in_.kv_heads; head++) {
            const bool is_key = head >= in_.heads;
            const float* weight = is_key ? in_.k_norm : in_.q_norm;
            const float* x = row + head * hd;
            if (weight) {
                rms_row(x, weight, hd, in_.epsilon, normed);
                x = normed;
            }
            if (is_key) {
                rotate_row(x, cos, sin, hd, 1.0f, rotated);
                keys_.write(head - in_.heads, position, rotated);
            } else {
                const size_t at = ((head / group) * in_.s + token) * group + head % group;
                rotate_row(x, cos, sin, hd, in_.scale * 1.44269504088896f, q + at * hd);
            }
        }
        for (size_t head = 0; head < in_.kv_heads; head++)
            values_.write(head, position, row + (in_.heads + in_.kv_heads + head) * hd);
    }

    float* out_row(size_t kv_head, size_t row) const {
        const size_t group = in_.group();
        return y_ + ((row / group) * in_.heads + kv_head * group + row % group) * in_.hd;
    }

    // The tokens that are written: kDecodeRows queries of a kv head at a time, many such stretches at once.
    static void decode(const std::vector<DecoderKernel>& kernels, const std::vector<float*>& queries,
                       const Parallel& parallel) {
        constexpr size_t kMostFloats = 4 << 20;  // of results that are still to be put together
        static thread_local std::vector<Stretch> all;
        all.clear();
        for (size_t i = 0; i < kernels.size(); i++) {
            const RowRange& prefill = kernels[i].in_.prefill;
            kernels[i].cut(0, prefill.begin, queries[i], &all);
            kernels[i].cut(prefill.end, kernels[i].in_.s, queries[i], &all);
        }
        for (size_t begin = 0, end; begin < all.size(); begin = end) {
            size_t floats = all[begin].floats();
            for (end = begin + 1; end < all.size() && floats + all[end].floats() <= kMostFloats; end++)
                floats += all[end].floats();
            attend_stretches(all.data() + begin, end - begin, parallel);
        }
    }

    static void attend_stretches(Stretch* stretches, size_t count, const Parallel& parallel) {
        static thread_local Scratch partial_memory, row_memory;
        // A few tasks for every core; the keys are cut at multiples of kDecodeKeys only.
        static const size_t cores = std::thread::hardware_concurrency();
        size_t tasks = 0, partials = 0, floats = 0, work = 0;
        for (Stretch* s = stretches; s < stretches + count; s++) {
            const size_t kv_heads = s->kernel->in_.kv_heads;
            s->tasks = div_up(4 * (cores > 0 ? cores : 8), kv_heads * count);
            if (s->tasks > s->parts()) s->tasks = s->parts();
            tasks += kv_heads * s->tasks;
            partials += kv_heads * s->parts();
            floats += s->floats();
            work += kv_heads * s->keys() * s->rows();
        }
        Partial* partial = partial_memory.get<Partial>(partials);
        float* out = row_memory.get<float>(floats);
        for (Stretch* s = stretches; s < stretches + count; s++) {
            s->partials = partial, s->out = out;
            partial += s->kernel->in_.kv_heads * s->parts();
            out += s->floats();
        }
        const auto task = [&](size_t i) {
            const Stretch* s = stretches;
            for (; i >= s->task_count(); s++) i -= s->task_count();
            s->kernel->attend_stretch(*s, i);
        };
        if (work < 2048) {  // cheaper than waking another thread
            for (size_t i = 0; i < tasks; i++) task(i);
        } else {
            parallel(tasks, task);
        }
        for (const Stretch* s = stretches; s < stretches + count; s++)
            for (size_t head = 0; head < s->kernel->in_.kv_heads && s->tasks > 1; head++) s->kernel->merge(*s, head);
    }

    // Cuts tokens [begin, end) into stretches.
    void cut(size_t begin, size_t end, const float* q, std::vector<Stretch>* stretches) const {
        const size_t most = kDecodeRows / in_.group();
        for (size_t token = begin; token < end; token += most)
            stretches->push_back(
                {this, token * in_.group(), (token + most < end ? token + most : end) * in_.group(), 0, q, {}, {}});
    }

    void attend_stretch(const Stretch& s, size_t i) const {
        const size_t head = i / s.tasks, part = i % s.tasks, each = s.parts(), rows = s.rows(), keys = s.keys();
        const size_t begin = part * each / s.tasks, end = (part + 1) * each / s.tasks, at = head * each + begin;
        size_t limits[kDecodeRows];
        for (size_t r = 0; r < rows; r++) limits[r] = in_.limit(s.first + r);
        attend_cache(keys_, values_, head, begin * kDecodeKeys, part + 1 < s.tasks ? end * kDecodeKeys : keys,
                     s.q + (head * in_.s * in_.group() + s.first) * in_.hd, rows, limits, s.out + at * rows * in_.hd,
                     s.partials + at);
        if (s.tasks == 1) merge(s, head);
    }

    void merge(const Stretch& s, size_t head) const {
        const size_t each = s.parts(), rows = s.rows(), hd = in_.hd;
        for (size_t r = 0; r < rows; r++)
            merge_parts(s.partials + head * each, s.out + head * each * rows * hd, rows * hd, each, r, hd,
                        out_row(head, s.first + r));
    }

    void prefill(const float* q, const Parallel& parallel) const {
        typedef FastWords E;
        static thread_local Scratch scratch;
        constexpr size_t kPiece = 4 * kQueryBlock, kPackKeys = 128, kMostWords = 4 << 20;
        const size_t hd = in_.hd, rows = in_.s * in_.group();
        const size_t first = in_.prefill.begin * in_.group(), last = in_.prefill.end * in_.group();
        const size_t keys = in_.limit(last - 1);
        const size_t key_part = key_words<E>(keys, hd), each = key_part + value_words<E>(keys, hd);
        size_t at_once = kMostWords / each > 0 ? kMostWords / each : 1;
        if (at_once > in_.kv_heads) at_once = in_.kv_heads;
        uint32_t* memory = scratch.get<uint32_t>(at_once * each);
        const auto memory_of = [&](size_t slot) { return HeadMemory{memory + slot * each, memory + slot * each + key_part}; };
        const size_t packs = div_up(keys, kPackKeys), pieces = div_up(last - first, kPiece);
        for (size_t head = 0; head < in_.kv_heads; head += at_once) {
            const size_t heads = in_.kv_heads - head < at_once ? in_.kv_heads - head : at_once;
            parallel(heads * packs, [&](size_t task) {
                const size_t begin = task % packs * kPackKeys;
                pack<E>(head + task / packs, begin, keys, memory_of(task / packs));
            });
            parallel(heads * pieces, [&](size_t task) {
                // A head at a time, so that its keys and values stay in the caches.  Late pieces see more keys: they
                // go first, so that the last task left is a short one.
                const size_t slot = task / pieces, piece = pieces - 1 - task % pieces;
                const size_t begin = first + piece * kPiece, end = begin + kPiece < last ? begin + kPiece : last;
                attend_rows<E>(head + slot, begin, end, q + (head + slot) * rows * hd, memory_of(slot));
            });
        }
    }

    // Keys [begin, begin + 128) of a head's `total`, and the zeros a block of keys may read beyond the last.
    template <class E>
    void pack(size_t head, size_t begin, size_t total, const HeadMemory& out) const {
        const size_t hd = in_.hd;
        const size_t limit = div_up(total, 2 * W) * 2 * W, end = begin + 128 < limit ? begin + 128 : limit;
        alignas(64) float rows[W * kLargestHead];
        for (size_t i = begin; i < end; i += W) {
            const size_t count = i >= total ? 0 : total - i < (size_t)W ? total - i : W;
            for (size_t j = 0; j < count; j++) read_row(keys_, head, i + j, rows + j * hd);
            pack_keys<E>(rows, hd, count, i, out.keys);
            for (size_t j = 0; j < count; j++) read_row(values_, head, i + j, rows + j * hd);
            std::memset(rows + count * hd, 0, (W - count) * hd * 4);
            for (size_t j = 0; j < (size_t)W; j += E::kPer)
                pack_values<E>(rows + j * hd, rows + (j + E::kPer - 1) * hd, hd, i + j, out.values);
        }
    }

    template <class E>
    void attend_rows(size_t head, size_t begin, size_t end, const float* q, const HeadMemory& memory) const {
        const size_t hd = in_.hd, padded = padded_head(hd), words = hd / E::kPer;
        alignas(64) uint32_t queries[kQueryBlock * kLargestHead];
        alignas(64) float out[kQueryBlock * kLargestHead];
        size_t limits[kQueryBlock];
        const size_t span = end - begin, blocks = div_up(span, kQueryBlock);
        for (size_t b = 0; b < blocks; b++) {
            const size_t first = begin + b * span / blocks, last = begin + (b + 1) * span / blocks;
            for (size_t i = first; i < last; i++) {
                to_words<E>(q + i * hd, hd, queries + (i - first) * words);
                limits[i - first] = in_.limit(i);
            }
            attend<E>({queries, last - first, hd, in_.limit(last - 1), limits, out}, memory);
            for (size_t i = first; i < last; i++) std::memcpy(out_row(head, i), out + (i - first) * padded, hd * 4);
        }
    }

    DecoderInput in_;
    C keys_, values_;
    float* y_;
};

template <class C>
class DecoderAttention {
public:
    static constexpr const char* kName = C::kScaled ? "DecoderAttentionI8" : "DecoderAttentionF16";
    static const std::vector<ort::Argument>& inputs() {
        using namespace ort;
        constexpr Element cache = C::kScaled ? kInt8 : kHalf;
        static const std::vector<Argument> list{
            {kFloat, kRequired}, {kFloat, kRequired}, {kFloat, kRequired}, {kInt32, kRequired}, {cache, kRequired},
            {cache, kRequired},  {kFloat, kOptional}, {kFloat, kOptional}, {kFloat, kOptional}, {kFloat, kOptional},
            {kInt32, kOptional}};
        return list;
    }
    static const std::vector<ort::Argument>& outputs() {
        static const std::vector<ort::Argument> list{{ort::kFloat, ort::kRequired}};
        return list;
    }

    explicit DecoderAttention(const ort::Attributes& attributes)
        : heads_((size_t)attributes.integer("heads", 0)),
          kv_heads_((size_t)attributes.integer("kv_heads", 0)),
          scale_(attributes.real("scale", 0.0f)),
          epsilon_(attributes.real("epsilon", 1e-6f)) {
        require(heads_ > 0 && kv_heads_ > 0 && heads_ % kv_heads_ == 0,
                "attributes heads and kv_heads are missing or do not divide");
        require(heads_ / kv_heads_ <= kDecodeRows, "more than 32 query heads share a kv head");
    }

    void run(const ort::Call& call, const Parallel& parallel) const {
        const ort::Tensor qkv = call.input(0), cos = call.input(1), sin = call.input(2), length = call.input(3),
                          key = call.input(4), value = call.input(5), q_norm = call.input(6), k_norm = call.input(7),
                          key_scale = call.input(8), value_scale = call.input(9), prefill = call.input(10);
        require(key.shape.size() == 4 && key.dim(0) == 1 && key.dim(1) == kv_heads_ && value.shape == key.shape,
                "the caches must be [1, kv_heads, cap, hd]");
        const size_t hd = key.dim(3), width = (heads_ + 2 * kv_heads_) * hd;
        require(hd % 2 == 0 && hd > 0 && hd <= (size_t)kLargestHead, "hd must be even and at most 256");
        require(qkv.last() == width, "qkv must be [.., (heads + 2 * kv_heads) * hd]");
        const size_t many = conversation_count(length);
        DecoderInput in;
        in.s = qkv.count() / width;
        require(cos.count() == in.s * hd / 2 && sin.count() == cos.count(), "rope_cos/rope_sin must be [s, hd/2]");
        require((!q_norm || q_norm.count() == hd) && (!k_norm || k_norm.count() == hd), "norms must have hd entries");
        require(!C::kScaled || (key_scale && value_scale && value_scale.count() == key_scale.count()),
                "key_scale and value_scale must be [1, kv_heads, cap]");
        in.prefill = row_range(prefill, in.s);
        in.qkv = qkv.as<float>();
        in.cos = cos.as<float>();
        in.sin = sin.as<float>();
        in.q_norm = q_norm.as<float>();
        in.k_norm = k_norm.as<float>();
        in.heads = heads_;
        in.kv_heads = kv_heads_;
        in.hd = hd;
        in.scale = scale_ > 0 ? scale_ : 1.0f / std::sqrt((float)hd);
        in.epsilon = epsilon_;
        std::vector<int64_t> shape = qkv.shape;
        shape.back() = (int64_t)(heads_ * hd);
        const ort::Tensor y = call.output(0, shape);
        if (in.s == 0) return;
        std::vector<DecoderKernel<C>> kernels;
        const auto add = [&](size_t first, size_t rows, size_t total, size_t capacity, const void* const (&caches)[4]) {
            require(total >= rows && total <= capacity, "seqlens_k + 1 must be between s and the cache's capacity");
            DecoderInput part = in;
            part.s = rows, part.total = total;
            part.qkv += first * width, part.cos += first * hd / 2, part.sin += first * hd / 2;
            part.prefill = inside(in.prefill, first, rows);
            kernels.emplace_back(part, cache_at(caches[0], caches[2], capacity, hd),
                                 cache_at(caches[1], caches[3], capacity, hd),
                                 y.mutable_as<float>() + first * heads_ * hd);
        };
        if (many == 0) {
            const size_t capacity = key.dim(2);
            require(!C::kScaled || key_scale.count() == kv_heads_ * capacity,
                    "key_scale and value_scale must be [1, kv_heads, cap]");
            add(0, in.s, (size_t)length.as<int32_t>()[0] + 1, capacity,
                {key.data, value.data, key_scale.data, value_scale.data});
        } else {
            typedef std::vector<Conversation> Table;
            const auto table = [&](const ort::Tensor& cache, size_t element) {
                return cache ? conversation_table(cache, cache.count() * element, many, in.s) : Table(many);
            };
            const size_t element = sizeof(*C::data);
            const Table tables[4] = {table(key, element), table(value, element), table(key_scale, 4),
                                     table(value_scale, 4)};
            for (size_t i = 0, first = 0; i < many; first += (size_t)tables[0][i++].rows) {
                const Conversation& c = tables[0][i];
                const void* caches[4];
                for (int j = 0; j < 4; j++) caches[j] = (const void*)tables[j][i].address;
                add(first, (size_t)c.rows, (size_t)c.total, (size_t)c.capacity, caches);
            }
        }
        DecoderKernel<C>::run(kernels, parallel);
    }

private:
    static C cache_at(const void* rows, const void* scales, size_t capacity, size_t hd) {
        return {static_cast<decltype(C::data)>(const_cast<void*>(rows)),
                static_cast<float*>(const_cast<void*>(scales)), capacity, hd};
    }

    size_t heads_, kv_heads_;
    float scale_, epsilon_;
};

}  // namespace gog
