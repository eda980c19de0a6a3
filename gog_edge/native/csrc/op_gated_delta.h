// The operator GatedDelta (semantics: gog_edge/native/contract.py).
#pragma once

#include "check.h"
#include "conversations.h"
#include "gated_delta.h"
#include "ort_abi.h"

namespace gog {

class GatedDelta {
public:
    static constexpr const char* kName = "GatedDelta";
    static const std::vector<ort::Argument>& inputs() {
        using namespace ort;
        static const std::vector<Argument> list{
            {kFloat, kRequired}, {kFloat, kRequired}, {kFloat, kRequired}, {kInt32, kRequired}, {kFloat, kRequired},
            {kFloat, kOptional}, {kFloat, kOptional}, {kFloat, kOptional}, {kFloat, kOptional}};
        return list;
    }
    static const std::vector<ort::Argument>& outputs() {
        static const std::vector<ort::Argument> list{{ort::kFloat, ort::kRequired}};
        return list;
    }

    explicit GatedDelta(const ort::Attributes& attributes)
        : shape_{(size_t)attributes.integer("key_heads", 0), (size_t)attributes.integer("value_heads", 0),
                 (size_t)attributes.integer("key_size", 0), (size_t)attributes.integer("value_size", 0), 0},
          scale_(attributes.real("scale", 0.0f)),
          epsilon_(attributes.real("epsilon", 1e-6f)),
          l2_epsilon_(attributes.real("l2_epsilon", 1e-6f)),
          l2_(attributes.integer("l2_norm", 1) == 1) {
        require(shape_.key_heads > 0 && shape_.key_heads <= 4096 && shape_.value_heads > 0 &&
                    shape_.value_heads <= 4096 && shape_.value_heads % shape_.key_heads == 0,
                "attributes key_heads and value_heads are missing or do not divide");
        require(shape_.dk > 0 && shape_.dk <= 4096 && shape_.dv > 0 && shape_.dv <= 4096,
                "attributes key_size and value_size must be 1 to 4096");
    }

    void run(const ort::Call& call, const Parallel& parallel) const {
        const ort::Tensor qkv = call.input(0), a = call.input(1), b = call.input(2), length = call.input(3),
                          state = call.input(4), rate = call.input(5), bias = call.input(6), gate = call.input(7),
                          norm = call.input(8);
        DeltaInput in;
        in.shape = shape_;
        require(qkv.last() == shape_.qkv(), "qkv must be [.., 2 * key_heads * key_size + value_heads * value_size]");
        in.rows = qkv.count() / qkv.last();
        require(a.count() == in.rows * shape_.value_heads && b.count() == a.count(),
                "a and b must be [.., value_heads]");
        const size_t many = conversation_count(length);
        require(state.shape.size() == 2 && state.dim(0) > 0 && state.dim(1) == shape_.slot_words(),
                "state must be [slots, words] (gog_edge.native.contract.delta_words)");
        require(!rate == !bias && (!rate || rate.count() == shape_.value_heads) &&
                    (!bias || bias.count() == shape_.value_heads),
                "decay_rate and dt_bias must be [value_heads], both or neither");
        require(!gate == !norm && (!gate || gate.count() == in.rows * shape_.value_heads * shape_.dv) &&
                    (!norm || norm.count() == shape_.dv),
                "gate must be [.., value_heads * value_size] and norm_weight [value_size], both or neither");
        in.shape.slots = state.dim(0);
        in.qkv = qkv.as<float>(), in.a = a.as<float>(), in.b = b.as<float>();
        in.rate = rate.as<float>(), in.bias = bias.as<float>();
        in.gate = gate.as<float>(), in.norm = norm.as<float>();
        in.state = const_cast<float*>(state.as<float>());
        in.scale = scale_ > 0 ? scale_ : 1.0f / std::sqrt((float)shape_.dk);
        in.epsilon = epsilon_, in.l2_epsilon = l2_epsilon_, in.l2 = l2_;
        std::vector<int64_t> shape = qkv.shape;
        shape.back() = (int64_t)(shape_.value_heads * shape_.dv);
        in.y = call.output(0, shape).mutable_as<float>();
        if (in.rows == 0) return;
        if (many == 0) {
            const int64_t total = (int64_t)length.as<int32_t>()[0] + 1;
            require(total >= (int64_t)in.rows, "seqlens_k + 1 must be at least the number of rows");
            in.start = (size_t)total - in.rows;
            return gated_delta(in, parallel);
        }
        for (const Conversation& c : conversation_table(state, state.count() * 4, many, in.rows)) {
            in.rows = (size_t)c.rows;
            in.start = (size_t)(c.total - c.rows);
            in.state = (float*)c.address;
            gated_delta(in, parallel);
            in.qkv += in.rows * shape_.qkv(), in.y += in.rows * shape_.value_heads * shape_.dv;
            in.a += in.rows * shape_.value_heads, in.b += in.rows * shape_.value_heads;
            if (in.gate) in.gate += in.rows * shape_.value_heads * shape_.dv;
        }
    }

private:
    DeltaShape shape_;
    float scale_, epsilon_, l2_epsilon_;
    bool l2_;
};

}  // namespace gog
