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
        require(weight.shape.size() == 2 && weight.dim(0) >= top_, "weight must be [experts, K] with at least top experts");
        const size_t k = x.last(), rows = x.count() / (k ? k : 1), experts = weight.dim(0);
        require(k > 0 && k == weight.dim(1), "the last axis of x does not fit the weight's K");
        const std::vector<int64_t> shape{(int64_t)rows, (int64_t)top_};
        const ort::Tensor ids = call.output(0, shape), shares = call.output(1, shape);
        if (rows == 0) return;
        static thread_local Scratch scratch;
        float* logits = scratch.get<float>(rows * experts);
        constexpr size_t kRows = 32, kExperts = 32;
        const size_t row_chunks = div_up(rows, kRows), chunks = div_up(experts, kExperts);
        parallel(row_chunks * chunks, [&](size_t task) {
            const size_t first = task / chunks * kRows, begin = task % chunks * kExperts;
            const size_t m = std::min(kRows, rows - first), n = std::min(kExperts, experts - begin);
            const float *x_rows[kRows], *columns[kExperts];
            for (size_t r = 0; r < m; r++) x_rows[r] = x.as<float>() + (first + r) * k;
            for (size_t c = 0; c < n; c++) columns[c] = weight.as<float>() + (begin + c) * k;
            dot_rows(x_rows, m, columns, n, k, logits + first * experts + begin, experts);
        });
        for (size_t r = 0; r < rows; r++)
            pick_experts(logits + r * experts, experts, top_, ids.mutable_as<int32_t>() + r * top_,
                         shares.mutable_as<float>() + r * top_);
    }

private:
    size_t top_;
};

// kBits: 4 and 8 as LinearW4 and LinearW8 pack one matrix, 16 and 32 floats [rows, K].
template <int kBits>
class ExpertLinear {
    static constexpr bool kFloats = kBits >= 16;
    typedef std::conditional_t<kBits == 16, uint16_t, float> Real;

public:
    static constexpr const char* kName = kBits == 4    ? "ExpertLinearW4"
                                         : kBits == 8  ? "ExpertLinearW8"
                                         : kBits == 16 ? "ExpertLinearF16"
                                                       : "ExpertLinearF32";
    static const std::vector<ort::Argument>& inputs() {
        using namespace ort;
        constexpr Element kWeight = kFloats ? (kBits == 16 ? kHalf : kFloat) : kUint8;
        static const std::vector<Argument> list = [] {
            std::vector<Argument> all{{kFloat, kRequired}, {kInt32, kRequired}, {kFloat, kOptional}, {kWeight, kRequired}};
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
          rotation_(kFloats ? Rotation() : rotation_of(attributes.integer("rotation", 0))) {
        require(columns_ > 0, "attribute N (columns of y) is missing");
    }

    void run(const ort::Call& call, const Parallel& parallel) const {
        const ort::Tensor x = call.input(0), ids = call.input(1), shares = call.input(2);
        require(ids.shape.size() == 2, "ids must be [rows, top]");
        const size_t rows = ids.dim(0), top = ids.dim(1), pairs = rows * top;
        const Weights w = weights(call);
        const size_t k = x.last(), given = x.count() / (k ? k : 1);
        require(k > 0 && k <= w.depth && w.depth - k < w.block, "the last axis of x does not fit the weight's K");
        require(rotation_.block <= k, "attribute rotation is more than the last axis of x");
        require(given == rows || given == pairs, "x must have a row for each row of ids, or for each id");
        require(!shares || shares.count() == pairs, "shares must have the shape of ids");
        for (size_t i = 0; i < pairs; i++)
            require(ids.as<int32_t>()[i] >= 0 && (size_t)ids.as<int32_t>()[i] < w.experts, "ids must name experts");

        const ort::Tensor y = call.output(0, {(int64_t)(shares ? rows : pairs), (int64_t)columns_});
        if (pairs == 0) return;
        const Grouped grouped(ids.as<int32_t>(), pairs, w.experts);
        const float* values = x.as<float>();
        const auto x_of = [&](size_t pair) { return values + (given == rows ? pair / top : pair) * k; };
        static thread_local Scratch sorted;  // per calling thread, shared by all nodes
        Epilogue epilogue;
        epilogue.activation = gated_ ? Activation::kSiluMul : Activation::kNone;
        epilogue.y = shares ? sorted.get<float>(pairs * columns_) : y.mutable_as<float>();
        epilogue.columns = columns_;
        const auto store = [&](const Grouped::Group& group, size_t first, size_t count, size_t column, const float* sums) {
            for (size_t r = 0; r < count; r++) {
                const size_t at = group.begin + first + r;
                finish_strip(sums + r * kStrip, 1, shares ? at : grouped.pairs[at], column, epilogue);
            }
        };
        if constexpr (kFloats)
            float_products(w, grouped, x_of, k, store, parallel);
        else
            byte_products(w, grouped, x_of, k, store, parallel);
        if (shares) combine(grouped, epilogue.y, shares.as<float>(), y.mutable_as<float>(), rows, top, parallel);
    }

private:
    struct Weights {
        const char* data;
        PackedWeights packed;   // of the first expert
        size_t experts, depth, block, strips;
        size_t data_step, scale_step, zero_step;  // bytes from one expert to the next
    };

    Weights weights(const ort::Call& call) const {
        const ort::Tensor weight = call.input(3), scales = kFloats ? ort::Tensor{} : call.input(4),
                          zeros = kBits == 4 ? call.input(5) : ort::Tensor{};
        Weights w{};
        w.data = weight.as<char>();
        if (kFloats) {
            require(weight.shape.size() == 3 && weight.dim(1) == columns_ * (gated_ ? 2 : 1),
                    "weight must be [experts, columns of y (twice if gated), K]");
            w.experts = weight.dim(0);
            w.depth = weight.dim(2);
            w.block = 1;
            w.strips = div_up(columns_, gated_ ? kStrip / 2 : kStrip);
            w.data_step = weight.dim(1) * w.depth * sizeof(Real);
            return w;
        }
        constexpr size_t kStep = kBits == 8 ? 4 : 8;
        require(weight.shape.size() == 5 && weight.dim(3) == 16 && weight.dim(4) == 4,
                "weight must be packed as [experts, panels, K/step, 16, 4]");
        require(scales.shape.size() == 4 && scales.dim(0) == weight.dim(0) && scales.dim(1) == weight.dim(1) &&
                    scales.dim(2) > 0 && scales.dim(3) == 16,
                "scales must be [experts, panels, groups, 16]");
        require(!zeros || zeros.count() == scales.count(), "zero_points must have one entry per scale");
        PackedWeights& p = w.packed;
        w.experts = weight.dim(0);
        p.data = weight.as<uint8_t>();
        p.scales = scales.data;
        p.zeros = zeros ? zeros.as<uint8_t>() : nullptr;
        p.columns = weight.dim(1) * 16;
        w.depth = p.depth = weight.dim(2) * kStep;
        w.block = p.block = p.depth / scales.dim(2);
        require(p.columns % kStrip == 0 && p.block % kStep == 0 && p.block * scales.dim(2) == p.depth &&
                    columns_ <= p.columns / (gated_ ? 2 : 1),
                "weight, scales and N do not fit each other");
        w.strips = p.columns / kStrip;
        w.data_step = p.columns * p.depth * kBits / 8;
        w.zero_step = p.columns * scales.dim(2);
        w.scale_step = w.zero_step * (kBits == 8 ? 4 : 2);
        return w;
    }

    template <class X, class S>
    void float_products(const Weights& w, const Grouped& grouped, const X& x_of, size_t k, const S& store,
                        const Parallel& parallel) const {
        in_expert_strips(grouped, w.strips, kStrip * w.depth * sizeof(Real), parallel,
                         [&](size_t number, size_t begin, size_t end) {
            const Grouped::Group& group = grouped.groups[number];
            const Real* matrix = (const Real*)(w.data + group.expert * w.data_step);
            alignas(64) float sums[kFloatRows * kStrip];
            for (size_t s = begin; s < end; s++) {
                const Real* columns[kStrip];
                for (size_t c = 0; c < (size_t)kStrip; c++) {
                    const size_t half = gated_ ? c / 16 : 0, at = gated_ ? s * 16 + c % 16 : s * kStrip + c;
                    columns[c] = at < columns_ ? matrix + (half * columns_ + at) * k : nullptr;
                }
                for (size_t i = group.begin; i < group.end; i += kFloatRows) {
                    const size_t count = std::min((size_t)kFloatRows, group.end - i);
                    const float* rows[kFloatRows];
                    for (size_t r = 0; r < count; r++) rows[r] = x_of(grouped.pairs[i + r]);
                    dot_rows(rows, count, columns, kStrip, k, sums, kStrip);
                    store(group, i - group.begin, count, s * kStrip, sums);
                }
            }
        });
    }

    template <class X, class S>
    void byte_products(const Weights& w, const Grouped& grouped, const X& x_of, size_t k, const S& store,
                       const Parallel& parallel) const {
        static thread_local QuantizeBuffers buffers;
        const size_t pairs = grouped.pairs.size(), depth = w.depth, per_row = depth / w.block;
        int8_t* bytes = buffers.bytes.get<int8_t>(pairs * depth);
        float* scales = buffers.scales.get<float>(pairs * per_row);
        int32_t* sums_of = buffers.sums.get<int32_t>(pairs * per_row);
        std::vector<QuantizedRows> rows(grouped.groups.size());
        std::vector<std::pair<size_t, size_t>> tiles;  // (group, tile)
        for (size_t g = 0; g < rows.size(); g++) {
            const Grouped::Group& group = grouped.groups[g];
            QuantizedRows& q = rows[g];
            q.rows = group.end - group.begin;
            q.columns = depth;
            q.group = w.block;
            q.groups = per_row;
            q.tiles = div_up(q.rows, (size_t)most_rows(kBits == 8 ? Format::kBytes : Format::kNibbles));
            q.bytes = bytes + group.begin * depth;
            q.scales = scales + group.begin * per_row;
            q.sums = sums_of + group.begin * per_row;
            for (size_t tile = 0; tile < q.tiles; tile++) tiles.push_back({g, tile});
        }
        const auto quantize = [&](size_t i) {
            const auto [g, tile] = tiles[i];
            const Grouped::Group& group = grouped.groups[g];
            quantize_group_rows(grouped, group, x_of, k, rotation_, rows[g], tile, bytes + group.begin * depth,
                                scales + group.begin * per_row, sums_of + group.begin * per_row);
        };
        if (pairs * depth < 32768)  // below the cost of waking another thread
            for (size_t i = 0; i < tiles.size(); i++) quantize(i);
        else
            parallel(tiles.size(), quantize);
        if (kBits == 8 && per_row == 1)
            strips<Format::kBytes>(w, grouped, rows, store, parallel);
        else if (kBits == 8)
            strips<Format::kGroupedBytes>(w, grouped, rows, store, parallel);
        else if (w.packed.zeros)
            strips<Format::kNibblesZeros>(w, grouped, rows, store, parallel);
        else
            strips<Format::kNibbles>(w, grouped, rows, store, parallel);
    }

    template <Format kFormat, class S>
    void strips(const Weights& w, const Grouped& grouped, const std::vector<QuantizedRows>& rows, const S& store,
                const Parallel& parallel) const {
        in_expert_strips(grouped, w.strips, w.depth * kStrip * kBits / 8, parallel,
                         [&](size_t number, size_t begin, size_t end) {
            const Grouped::Group& group = grouped.groups[number];
            PackedWeights one = w.packed;
            one.data += group.expert * w.data_step;
            one.scales = (const char*)one.scales + group.expert * w.scale_step;
            if (one.zeros) one.zeros += group.expert * w.zero_step;
            alignas(64) float sums[kTileRows * kStrip];
            for (size_t s = begin; s < end; s++)
                for (size_t tile = 0; tile < rows[number].tiles; tile++) {
                    strip_tile<kFormat>(rows[number], tile, packed_strip<kBits>(one, s), sums);
                    store(group, rows[number].first_row(tile), rows[number].tile_rows(tile), s * kStrip, sums);
                }
        });
    }

    // y of a row = the sum over its experts, in the order of ids.
    void combine(const Grouped& grouped, const float* sorted, const float* shares, float* y, size_t rows, size_t top,
                 const Parallel& parallel) const {
        std::vector<size_t> place(grouped.pairs.size());
        for (size_t i = 0; i < place.size(); i++) place[grouped.pairs[i]] = i;
        const auto row = [&](size_t r) {
            for (size_t i = 0; i < columns_; i += W) {
                const int lanes = lanes_left(columns_, i);
                vf sum{};
                for (size_t t = 0; t < top; t++)
                    sum = madd(sum, load_first(sorted + place[r * top + t] * columns_ + i, lanes), shares[r * top + t]);
                store_first(y + r * columns_ + i, sum, lanes);
            }
        };
        if (rows < 4)
            for (size_t r = 0; r < rows; r++) row(r);
        else
            parallel(rows, row);
    }

    size_t columns_;
    bool gated_;
    Rotation rotation_;
};

}  // namespace gog
