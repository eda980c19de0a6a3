// The operators LinearW8, LinearW5 and LinearW4 (semantics: gog_edge/native/__init__.py).
#pragma once

#include "check.h"
#include "gemm.h"
#include "ort_abi.h"
#include "row_range.h"

namespace gog {

template <int kBits>
class Linear {
public:
    static constexpr const char* kName = kBits == 8 ? "LinearW8" : kBits == 5 ? "LinearW5" : "LinearW4";
    static const std::vector<ort::Argument>& inputs() {
        using namespace ort;
        static const std::vector<Argument> list =
            kBits == 8 ? std::vector<Argument>{{kFloat, kRequired}, {kUint8, kRequired}, {kFloat, kRequired},
                                               {kFloat, kOptional}, {kFloat, kOptional}, {kFloat, kOptional},
                                               {kFloat, kOptional}}
                       : std::vector<Argument>{{kFloat, kRequired}, {kUint8, kRequired}, {kHalf, kRequired},
                                               {kFloat, kOptional}, {kFloat, kOptional}, {kFloat, kOptional},
                                               {kFloat, kOptional}, {kUint8, kOptional}, {kInt32, kOptional}};
        return list;
    }
    static const std::vector<ort::Argument>& outputs() {
        static const std::vector<ort::Argument> list{{ort::kFloat, ort::kRequired}};
        return list;
    }

    explicit Linear(const ort::Attributes& attributes)
        : columns_((size_t)attributes.integer("N", 0)),
          activation_((Activation)attributes.integer("activation", 0)),
          norm_((Norm)attributes.integer("norm", 0)),
          epsilon_(attributes.real("epsilon", 1e-6f)),
          rotation_(rotation_of(attributes.integer("rotation", 0))),
          exact_(attributes.integer("exact", 0) == 1) {
        require(columns_ > 0, "attribute N (columns of y) is missing");
        require((int)activation_ >= 0 && (int)activation_ <= 4, "attribute activation must be 0 to 4");
        require((int)norm_ >= 0 && (int)norm_ <= 2, "attribute norm must be 0 (none), 1 (RMS) or 2 (layer)");
    }

    void run(const ort::Call& call, const Parallel& parallel) const {
        const ort::Tensor x = call.input(0), weight = call.input(1), scales = call.input(2), bias = call.input(3),
                          residual = call.input(4), norm_weight = call.input(5), norm_bias = call.input(6),
                          zeros = kBits == 4 ? call.input(7) : ort::Tensor{},
                          prefill = kBits < 8 ? call.input(8) : ort::Tensor{};
        constexpr size_t kStep = kBits == 8 ? 4 : kBits == 5 ? 32 : 8;
        require(!x.shape.empty(), "x must have at least one axis");
        if (kBits == 5)
            require(weight.shape.size() == 3 && weight.dim(2) == kFiveBytes, "weight must be packed as [panels, K/32, 320]");
        else
            require(weight.shape.size() == 4 && weight.dim(2) == 16 && weight.dim(3) == 4,
                    "weight must be packed as [panels, K/step, 16, 4]");
        PackedWeights w;
        w.data = weight.as<uint8_t>();
        w.scales = scales.data;
        w.zeros = zeros ? zeros.as<uint8_t>() : nullptr;
        w.columns = weight.dim(0) * 16;
        w.depth = weight.dim(1) * kStep;
        require(scales.shape.size() == 3 && scales.dim(0) == weight.dim(0) && scales.dim(2) == 16 && scales.dim(1) > 0,
                "scales must be [panels, groups, 16]");
        w.block = w.depth / scales.dim(1);
        require(w.columns % kStrip == 0 && w.block % kStep == 0 && w.block * scales.dim(1) == w.depth,
                "weight and scales do not fit each other");
        require(!zeros || zeros.count() == scales.count(), "zero_points must have one entry per scale");
        const size_t k = x.last(), rows = x.count() / (k ? k : 1);
        require(k > 0 && k <= w.depth && w.depth - k < w.block, "the last axis of x does not fit the weight's K");
        require(rotation_.block <= k, "attribute rotation is more than the last axis of x");
        const bool pair = activation_ == Activation::kSiluMul;
        require(columns_ <= (pair ? w.columns / 2 : w.columns), "attribute N exceeds the packed weight");
        require(!bias || bias.count() == w.columns, "bias must be packed: one entry per packed column");
        require(!residual || residual.count() == rows * columns_, "residual must have the shape of y");
        require(!norm_weight || norm_weight.count() == k, "norm_weight must have K entries");
        require(!norm_bias || norm_bias.count() == k, "norm_bias must have K entries");

        std::vector<int64_t> shape = x.shape;
        shape.back() = (int64_t)columns_;
        const ort::Tensor y = call.output(0, shape);
        if (rows == 0) return;
        NormSpec norm;
        norm.kind = norm_;
        norm.weight = norm_weight.as<float>();
        norm.bias = norm_bias.as<float>();
        norm.epsilon = epsilon_;
        static thread_local QuantizeBuffers buffers[3];  // per calling thread, shared by all nodes
        const auto quantized = [&](size_t begin, size_t end, size_t group, size_t most, QuantizeBuffers& buffer) {
            if (begin == end) return QuantizedRows{};
            QuantizedRows q = quantize_rows(x.as<float>() + begin * k, end - begin, k, w.depth, group, most, norm,
                                            rotation_, buffer, parallel);
            q.offset = begin;
            return q;
        };
        const RowRange wide = kBits < 8 && !exact_ && wide_group(w) ? row_range(prefill, rows) : RowRange{};
        constexpr size_t kMost = kBits < 8 ? most_rows(Format::kNibbles) : kTileRows;
        Epilogue epilogue;
        epilogue.activation = activation_;
        epilogue.bias = bias.as<float>();
        epilogue.residual = residual.as<float>();
        epilogue.y = y.mutable_as<float>();
        epilogue.columns = columns_;
        epilogue.stream = can_stream(epilogue.y, rows, columns_);
        if (wide.begin == wide.end)
            return gemm<kBits>(quantized(0, rows, w.block, kMost, buffers[0]), w, epilogue, parallel);
        const QuantizedRows others[2] = {quantized(0, wide.begin, w.block, kMost, buffers[0]),
                                         quantized(wide.end, rows, w.block, kMost, buffers[1])};
        gemm_widened<kBits == 8 ? 4 : kBits>(
            quantized(wide.begin, wide.end, wide_group(w), kTileRows, buffers[2]), others, w, epilogue, parallel);
    }

private:
    size_t columns_;
    Activation activation_;
    Norm norm_;
    float epsilon_;
    Rotation rotation_;
    bool exact_;
};

}  // namespace gog
