// The operator CausalConv: a depthwise convolution over tokens that keeps the rows it will need again.
#pragma once

#include "activation.h"
#include "check.h"
#include "conversations.h"
#include "ort_abi.h"
#include "parallel.h"

namespace gog {

struct ConvInput {
    const float *x, *weight, *bias;  // [rows, channels], [taps, channels], [channels] or null
    float *history, *y;              // [kept, channels]: token t at row t % kept; [rows, channels]
    size_t rows, start, channels, taps, kept;
    bool silu;
};

// Channels [begin, end), token after token.  A token before the first adds nothing, and is never read.
inline void causal_conv(const ConvInput& in, size_t begin, size_t end) {
    const size_t before = in.taps - 1;
    for (size_t row = 0; row < in.rows; row++) {
        const size_t position = in.start + row, seen = position < before ? position : before;
        for (size_t c = begin; c < end; c += W) {
            const int lanes = lanes_left(end, c);
            vf sum = in.bias ? load_first(in.bias + c, lanes) : vf{};
            for (size_t back = seen + 1; back-- > 0;) {
                const float* x = back <= row ? in.x + (row - back) * in.channels
                                             : in.history + (position - back) % in.kept * in.channels;
                sum = madd(sum, load_first(x + c, lanes),
                           load_first(in.weight + (before - back) * in.channels + c, lanes));
            }
            store_first(in.y + row * in.channels + c, in.silu ? sum * sigmoid(sum) : sum, lanes);
        }
    }
    for (size_t row = in.rows > in.kept ? in.rows - in.kept : 0; row < in.rows; row++)
        std::memcpy(in.history + (in.start + row) % in.kept * in.channels + begin, in.x + row * in.channels + begin,
                    (end - begin) * 4);
}

class CausalConv {
public:
    static constexpr const char* kName = "CausalConv";
    static const std::vector<ort::Argument>& inputs() {
        using namespace ort;
        static const std::vector<Argument> list{
            {kFloat, kRequired}, {kFloat, kRequired}, {kInt32, kRequired}, {kFloat, kRequired}, {kFloat, kOptional}};
        return list;
    }
    static const std::vector<ort::Argument>& outputs() {
        static const std::vector<ort::Argument> list{{ort::kFloat, ort::kRequired}};
        return list;
    }

    explicit CausalConv(const ort::Attributes& attributes) : silu_(attributes.integer("activation", 1) == 1) {}

    void run(const ort::Call& call, const Parallel& parallel) const {
        const ort::Tensor x = call.input(0), weight = call.input(1), length = call.input(2), history = call.input(3),
                          bias = call.input(4);
        ConvInput in;
        require(weight.shape.size() == 2 && weight.dim(0) > 0 && weight.dim(1) > 0, "weight must be [K, C]");
        in.taps = weight.dim(0), in.channels = weight.dim(1);
        require(x.last() == in.channels, "the last axis of x must be C");
        in.rows = x.count() / in.channels;
        const size_t many = conversation_count(length);
        require(history.shape.size() == 2 && history.dim(0) > 0 && history.dim(0) + 1 >= in.taps &&
                    history.dim(1) == in.channels,
                "history must be [R, C] with R at least K - 1");
        require(!bias || bias.count() == in.channels, "bias must be [C]");
        in.kept = history.dim(0);
        in.x = x.as<float>(), in.weight = weight.as<float>(), in.bias = bias.as<float>();
        in.history = const_cast<float*>(history.as<float>());
        in.y = call.output(0, x.shape).mutable_as<float>();
        in.silu = silu_;
        if (in.rows == 0) return;
        if (many == 0) {
            const int64_t total = (int64_t)length.as<int32_t>()[0] + 1;
            require(total >= (int64_t)in.rows, "seqlens_k + 1 must be at least the number of rows");
            in.start = (size_t)total - in.rows;
            return run_rows(in, parallel);
        }
        for (const Conversation& c : conversation_table(history, history.count() * 4, many, in.rows)) {
            in.rows = (size_t)c.rows;
            in.start = (size_t)(c.total - c.rows);
            in.history = (float*)c.address;
            run_rows(in, parallel);
            in.x += in.rows * in.channels, in.y += in.rows * in.channels;
        }
    }

private:
    static void run_rows(const ConvInput& in, const Parallel& parallel) {
        constexpr size_t kBlock = 512;  // channels of a task
        const size_t blocks = div_up(in.channels, kBlock);
        const auto task = [&](size_t i) {
            causal_conv(in, i * kBlock, (i + 1) * kBlock < in.channels ? (i + 1) * kBlock : in.channels);
        };
        if (in.rows * in.channels < 1 << 15) {  // cheaper than waking another thread
            for (size_t i = 0; i < blocks; i++) task(i);
        } else {
            parallel(blocks, task);
        }
    }

    bool silu_;
};

}  // namespace gog
