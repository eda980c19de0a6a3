// The shared library's entry points: RegisterCustomOps for ONNX Runtime, a few facts for Python.
#include "op_causal_conv.h"
#include "op_decoder_attention.h"
#include "op_experts.h"
#include "op_gated_delta.h"
#include "op_linear.h"
#include "op_vision_attention.h"
#include "ort_abi.h"
#include "parallel.h"
#include "peak.h"

#define GOG_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using gog::Parallel;
using namespace gog::ort;

gog::ort::Operator<gog::Linear<8>, Parallel> linear_w8;
gog::ort::Operator<gog::Linear<5>, Parallel> linear_w5;
gog::ort::Operator<gog::Linear<4>, Parallel> linear_w4;
gog::ort::Operator<gog::VisionAttention, Parallel> vision_attention;
gog::ort::Operator<gog::DecoderAttention<gog::HalfCache>, Parallel> decoder_attention_f16;
gog::ort::Operator<gog::DecoderAttention<gog::ByteCache>, Parallel> decoder_attention_i8;
gog::ort::Operator<gog::CausalConv, Parallel> causal_conv;
gog::ort::Operator<gog::GatedDelta, Parallel> gated_delta;
gog::ort::Operator<gog::Route, Parallel> route;
gog::ort::Operator<gog::ExpertLinear<4>, Parallel> expert_linear_w4;
gog::ort::Operator<gog::ExpertLinear<8>, Parallel> expert_linear_w8;
gog::ort::Operator<gog::ExpertLinear<16>, Parallel> expert_linear_f16;
gog::ort::Operator<gog::ExpertLinear<32>, Parallel> expert_linear_f32;

CustomOp* const kOperators[] = {&linear_w8, &linear_w5, &linear_w4, &vision_attention,
                               &decoder_attention_f16, &decoder_attention_i8, &causal_conv, &gated_delta,
                               &route, &expert_linear_w4, &expert_linear_w8, &expert_linear_f16, &expert_linear_f32};

}  // namespace

GOG_EXPORT Status* RegisterCustomOps(Options* options, const ApiBase* base) {
    const ApiTable table = base->get_api(kApiVersion);
    if (table == nullptr) {  // older than the ABI we were written for: it can still make a status
        const ApiTable oldest = base->get_api(1);
        return oldest ? Api(oldest).failure("this ONNX Runtime is too old for gog-edge's operators") : nullptr;
    }
    const Api api(table);
    static Domain* domain = nullptr;  // lives as long as the process: sessions keep pointers into it
    static Status* status = [&]() -> Status* {
        Status* failed = api.call<Status*, const char*, Domain**>(kCreateDomain, "ai.gog_edge", &domain);
        for (CustomOp* op : kOperators)
            if (!failed) failed = api.call<Status*, Domain*, const CustomOp*>(kDomainAdd, domain, op);
        return failed;
    }();
    if (status != nullptr || domain == nullptr) return api.failure("gog-edge's operator domain was refused");
    return api.call<Status*, Options*, Domain*>(kAddDomain, options, domain);
}

GOG_EXPORT const char* gog_ops_isa() { return gog::kIsa; }
// Operations a second of one core: 0 f32, 1 bf16 (f32 where there is none), 2 int8.
GOG_EXPORT double gog_ops_peak(int product, double seconds) {
    return gog::peak_rate((gog::Product)product, seconds);
}
GOG_EXPORT int gog_ops_version() { return 1; }
