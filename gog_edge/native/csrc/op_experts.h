// The operators Route and ExpertLinear… (semantics: gog_edge/native/contract.py).
#pragma once

#include "check.h"
#include "experts.h"
#include "ort_abi.h"

namespace gog {

class Route {
public:
    static constexpr const char* kName = "Route";
    static const std::vector<ort::Argument>& inputs() {
        static const std::vector<ort::Argument> list{{ort::kFloat, ort::kRequired}, {ort::kFloat, ort::kRequired}};
        return list;
    }
    static const std::vector<ort::Argument>& outputs() {
        static const std::vector<ort::Argument> list{{ort::kInt32, ort::kRequired}, {ort::kFloat, ort::kRequired}};
        return list;
    }

    explicit Route(const ort::Attributes& attributes) : top_((size_t)attributes.integer("top", 0)) {
        require(top_ > 0, "attribute top (experts of a row) is missing");
    }

    void run(const ort::Call& call, const Parallel& parallel) const {
        const ort::Tensor x = call.input(0), weight = call.input(1);
        require(weight.shape.size() == 2 && weight.dim(0) >= top_,
                "weight must be [experts, K] with at least top experts");
        const size_t k = x.last(), rows = x.count() / (k ? k : 1), experts = weight.dim(0);
        require(k > 0 && k == weight.dim(1), "the last axis of x does not fit the weight's K");
        const std::vector<int64_t> shape{(int64_t)rows, (int64_t)top_};
        const ort::Tensor ids = call.output(0, shape), shares = call.output(1, shape);
        if (rows == 0) return;
        route(x.as<float>(), rows, k, weight.as<float>(), experts, top_, ids.mutable_as<int32_t>(),
              shares.mutable_as<float>(), parallel);
    }

private:
    size_t top_;
};

// kBits: 4 and 8 as LinearW4 and LinearW8 pack one matrix, 16 and 32 floats [rows, K].
template <int kBits>
class ExpertLinear {
    static constexpr bool kFloats = kBits >= 16;

public:
    static constexpr const char* kName = kBits == 4    ? "ExpertLinearW4"
                                         : kBits == 8  ? "ExpertLinearW8"
                                         : kBits == 16 ? "ExpertLinearF16"
                                                       : "ExpertLinearF32";
    static const std::vector<ort::Argument>& inputs() {
        using namespace ort;
        constexpr Element kWeight = kFloats ? (kBits == 16 ? kHalf : kFloat) : kUint8;
        static const std::vector<Argument> list = [] {
            std::vector<Argument> all{
                {kFloat, kRequired}, {kInt32, kRequired}, {kFloat, kOptional}, {kWeight, kRequired}};
            if (!kFloats) all.push_back({kBits == 8 ? kFloat : kHalf, kRequired});
            if (kBits == 4) all.push_back({kUint8, kOptional});
            return all;
        }();
        return list;
    }
    static const std::vector<ort::Argument>& outputs() {
        static const std::vector<ort::Argument> list{{ort::kFloat, ort::kRequired}};
        return list;
    }

    explicit ExpertLinear(const ort::Attributes& attributes)
        : columns_((size_t)attributes.integer("N", 0)), gated_(attributes.integer("gated", 0) == 1),
          rotation_(rotation_of(attributes.integer("rotation", 0))) {
        require(columns_ > 0, "attribute N (columns of y) is missing");
    }

    void run(const ort::Call& call, const Parallel& parallel) const {
        const ort::Tensor x = call.input(0), ids = call.input(1), shares = call.input(2);
        require(ids.shape.size() == 2, "ids must be [rows, top]");
        const size_t rows = ids.dim(0), top = ids.dim(1), pairs = rows * top;
        const ExpertWeights w = weights(call);
        const size_t k = x.last(), given = x.count() / (k ? k : 1);
        require(k > 0 && k <= w.depth && w.depth - k < w.block, "the last axis of x does not fit the weight's K");
        require(rotation_.block <= k, "attribute rotation is more than the last axis of x");
        require(given == rows || given == pairs, "x must have a row for each row of ids, or for each id");
        require(!shares || shares.count() == pairs, "shares must have the shape of ids");
        for (size_t i = 0; i < pairs; i++)
            require(ids.as<int32_t>()[i] >= 0 && (size_t)ids.as<int32_t>()[i] < w.experts, "ids must name experts");
        const ort::Tensor y = call.output(0, {(int64_t)(shares ? rows : pairs), (int64_t)columns_});
        if (pairs == 0) return;
        expert_linear<kBits>(w, {x.as<float>(), k, given == rows ? top : 1}, ids.as<int32_t>(), rows, top,
                             shares.as<float>(), y.mutable_as<float>(), parallel);
    }

private:
    ExpertWeights weights(const ort::Call& call) const {
        const ort::Tensor weight = call.input(3), scales = kFloats ? ort::Tensor{} : call.input(4),
                          zeros = kBits == 4 ? call.input(5) : ort::Tensor{};
        ExpertWeights w;
        w.data = weight.data;
        w.columns = columns_;
        w.gated = gated_;
        w.rotation = &rotation_;
        if (kFloats) {
            require(weight.shape.size() == 3 && weight.dim(1) == columns_ * (gated_ ? 2 : 1),
                    "weight must be [experts, columns of y (twice if gated), K]");
            w.experts = weight.dim(0);
            w.depth = weight.dim(2);
            return w;
        }
        constexpr size_t kStep = kBits == 8 ? 4 : 8;
        require(weight.shape.size() == 5 && weight.dim(3) == 16 && weight.dim(4) == 4,
                "weight must be packed as [experts, panels, K/step, 16, 4]");
        require(scales.shape.size() == 4 && scales.dim(0) == weight.dim(0) && scales.dim(1) == weight.dim(1) &&
                    scales.dim(2) > 0 && scales.dim(3) == 16,
                "scales must be [experts, panels, groups, 16]");
        require(!zeros || zeros.count() == scales.count(), "zero_points must have one entry per scale");
        w.scales = scales.data;
        w.zeros = zeros.as<uint8_t>();
        w.experts = weight.dim(0);
        w.packed = weight.dim(1) * 16;
        w.depth = weight.dim(2) * kStep;
        w.block = w.depth / scales.dim(2);
        require(w.packed % kStrip == 0 && w.block % kStep == 0 && w.block * scales.dim(2) == w.depth &&
                    columns_ <= w.packed / (gated_ ? 2 : 1),
                "weight, scales and N do not fit each other");
        return w;
    }

    size_t columns_;
    bool gated_;
    Rotation rotation_;
};

}  // namespace gog
