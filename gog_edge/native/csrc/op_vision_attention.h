// The operator VisionAttention: packed, not causal, whole sequence or windows.
#pragma once

#include "check.h"
#include "ort_abi.h"
#include "vision.h"
#include "vision8.h"

namespace gog {

class VisionAttention {
public:
    static constexpr const char* kName = "VisionAttention";
    static const std::vector<ort::Argument>& inputs() {
        using namespace ort;
        static const std::vector<Argument> list{{kFloat, kRequired}, {kFloat, kRequired}, {kFloat, kRequired},
                                                {kInt64, kOptional}, {kInt32, kOptional}};
        return list;
    }
    static const std::vector<ort::Argument>& outputs() {
        static const std::vector<ort::Argument> list{{ort::kFloat, ort::kRequired}};
        return list;
    }

    explicit VisionAttention(const ort::Attributes& attributes)
        : heads_((size_t)attributes.integer("heads", 0)),
          precision_(attributes.integer("precision", 0)),
          scale_(attributes.real("scale", 0.0f)) {
        require(heads_ > 0, "attribute heads is missing");
        require(precision_ >= 0 && precision_ <= 2, "attribute precision must be 0 (bf16), 1 (f32) or 2 (int8)");
    }

    void run(const ort::Call& call, const Parallel& parallel) const {
        const ort::Tensor qkv = call.input(0), cos = call.input(1), sin = call.input(2), gather = call.input(3),
                          mask = call.input(4);
        require(qkv.shape.size() == 2 && qkv.dim(1) % (3 * heads_) == 0, "qkv must be [n, 3 * heads * hd]");
        VisionInput in;
        in.n = qkv.dim(0);
        in.heads = heads_;
        in.hd = qkv.dim(1) / (3 * heads_);
        require(in.hd % 2 == 0 && in.hd > 0 && in.hd <= (size_t)kLargestHead, "hd must be even and at most 256");
        require(cos.count() == in.n * in.hd / 2 && sin.count() == cos.count(), "rope_cos/rope_sin must be [n, hd/2]");
        in.qkv = qkv.as<float>();
        in.cos = cos.as<float>();
        in.sin = sin.as<float>();
        in.scale = scale_ > 0 ? scale_ : 1.0f / std::sqrt((float)in.hd);
        collect_groups(in, gather, mask);
        const ort::Tensor y = call.output(0, {(int64_t)in.n, (int64_t)(heads_ * in.hd)});
        if (in.n == 0) return;
        if (precision_ == 2)
            ByteVisionKernel(in, y.mutable_as<float>()).run(parallel);
        else if (precision_ == 1)
            VisionKernel<F32Words>(in, y.mutable_as<float>()).run(parallel);
        else
            VisionKernel<FastWords>(in, y.mutable_as<float>()).run(parallel);
    }

private:
    static void add_group(VisionInput& in, size_t begin) {
        const size_t count = in.rows.size() - begin;
        if (count > 0) in.groups.push_back({begin, count});
    }

    static void collect_groups(VisionInput& in, const ort::Tensor& gather, const ort::Tensor& mask) {
        in.rows.reserve(in.n);
        if (!gather) {
            for (size_t i = 0; i < in.n; i++) in.rows.push_back((int64_t)i);
            add_group(in, 0);
            return;
        }
        require(gather.shape.size() == 2 && mask && mask.shape == gather.shape,
                "gather and mask must both be [windows, L]");
        std::vector<char> seen(in.n, 0);
        const size_t longest = gather.dim(1);
        for (size_t w = 0; w < gather.dim(0); w++) {
            const size_t begin = in.rows.size();
            for (size_t i = w * longest; i < (w + 1) * longest; i++) {
                if (mask.as<int32_t>()[i] == 0) continue;
                const int64_t row = gather.as<int64_t>()[i];
                require(row >= 0 && (size_t)row < in.n && !seen[(size_t)row], "gather must name every row once");
                seen[(size_t)row] = 1;
                in.rows.push_back(row);
            }
            add_group(in, begin);
        }
        require(in.rows.size() == in.n, "gather must name every row once");
    }

    size_t heads_;
    int64_t precision_;
    float scale_;
};

}  // namespace gog
