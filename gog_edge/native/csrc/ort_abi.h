// The part of ONNX Runtime's C ABI that a custom operator needs, declared from its published facts: OrtApi is a
// table of function pointers that is only ever appended to, so a function is named by its slot; OrtCustomOp is a
// struct of callbacks whose first field says how many of them we know.  Nothing else of the runtime is included,
// and the wheel ships no header of others.  load: see RegisterCustomOps in ops.cpp, which asks for version
// kApiVersion and refuses a runtime that does not have it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace gog::ort {

constexpr uint32_t kApiVersion = 18;    // first release with every slot below; newer runtimes still answer to it
constexpr uint32_t kCustomOpFields = 17;  // OrtCustomOp up to GetEndVersion

struct Status;
struct Value;
struct Context;
struct Info;
struct Domain;
struct Options;
struct TypeAndShape;

typedef const void* const* ApiTable;

struct ApiBase {
    ApiTable (*get_api)(uint32_t version);
    const char* (*version_string)();
};

enum Slot : int {
    kCreateStatus = 0,
    kCreateDomain = 26,
    kDomainAdd = 27,
    kAddDomain = 28,
    kTensorData = 51,
    kElementType = 60,
    kDimensionsCount = 61,
    kDimensions = 62,
    kTypeAndShape = 65,
    kAttributeFloat = 85,
    kAttributeInt = 86,
    kInputCount = 88,
    kOutputCount = 89,
    kGetInput = 90,
    kGetOutput = 91,
    kReleaseStatus = 93,
    kReleaseTypeAndShape = 99,
    kParallelFor = 274,
};

enum Element : int { kUndefined = 0, kFloat = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6, kInt64 = 7, kHalf = 10 };
enum Presence : int { kRequired = 0, kOptional = 1 };

// Field order is the ABI; names are ours.
struct CustomOp {
    uint32_t version;
    void* (*create_kernel)(const CustomOp*, ApiTable, const Info*);
    const char* (*name)(const CustomOp*);
    const char* (*provider)(const CustomOp*);
    int (*input_type)(const CustomOp*, size_t);
    size_t (*input_count)(const CustomOp*);
    int (*output_type)(const CustomOp*, size_t);
    size_t (*output_count)(const CustomOp*);
    void (*compute)(void*, Context*);
    void (*destroy)(void*);
    int (*input_presence)(const CustomOp*, size_t);
    int (*output_presence)(const CustomOp*, size_t);
    int (*input_memory)(const CustomOp*, size_t);
    int (*variadic_input_least)(const CustomOp*);
    int (*variadic_input_same)(const CustomOp*);
    int (*variadic_output_least)(const CustomOp*);
    int (*variadic_output_same)(const CustomOp*);
    Status* (*create_kernel_v2)(const CustomOp*, ApiTable, const Info*, void**);
    Status* (*compute_v2)(void*, Context*);
    void* infer_shape;
    int (*start_version)(const CustomOp*);
    int (*end_version)(const CustomOp*);
};

class Api {
public:
    explicit Api(ApiTable table) : table_(table) {}

    template <class R, class... A>
    R call(Slot slot, A... arguments) const {
        return reinterpret_cast<R (*)(A...)>(const_cast<void*>(table_[slot]))(arguments...);
    }
    Status* failure(const std::string& message) const {
        return call<Status*, int, const char*>(kCreateStatus, 2 /* invalid argument */, message.c_str());
    }
    // Throws on a status; for calls that can only fail if the runtime is broken.
    void check(Status* status, const char* what) const {
        if (status == nullptr) return;
        call<void, Status*>(kReleaseStatus, status);
        throw std::runtime_error(std::string("ONNX Runtime refused ") + what);
    }

private:
    ApiTable table_;
};

// A tensor argument of a running kernel.  Absent optional arguments have data == nullptr.
struct Tensor {
    void* data = nullptr;
    int type = kUndefined;
    std::vector<int64_t> shape;

    explicit operator bool() const { return data != nullptr; }
    template <class T>
    const T* as() const { return static_cast<const T*>(data); }
    template <class T>
    T* mutable_as() const { return static_cast<T*>(data); }
    size_t count() const {
        size_t n = 1;
        for (int64_t d : shape) n *= (size_t)d;
        return n;
    }
    size_t dim(size_t i) const { return (size_t)shape.at(i); }
    size_t last() const { return shape.empty() ? 1 : (size_t)shape.back(); }
};

class Call {
public:
    Call(const Api& api, Context* context) : api_(api), context_(context) {
        size_t count = 0;
        api_.check(api_.call<Status*, const Context*, size_t*>(kInputCount, context_, &count), "the input count");
        inputs_ = count;
        api_.check(api_.call<Status*, const Context*, size_t*>(kOutputCount, context_, &count), "the output count");
        outputs_ = count;
    }

    Tensor input(size_t index) const {
        if (index >= inputs_) return {};
        const Value* value = nullptr;
        api_.check(api_.call<Status*, const Context*, size_t, const Value**>(kGetInput, context_, index, &value),
                   "an input");
        return value ? describe(const_cast<Value*>(value)) : Tensor{};
    }
    Tensor output(size_t index, const std::vector<int64_t>& shape) const {
        if (index >= outputs_) return {};
        Value* value = nullptr;
        api_.check(api_.call<Status*, Context*, size_t, const int64_t*, size_t, Value**>(
                       kGetOutput, context_, index, shape.data(), shape.size(), &value),
                   "an output");
        if (value == nullptr) return {};
        Tensor tensor;
        tensor.data = data(value);
        tensor.shape = shape;
        return tensor;
    }
    // Tasks on the session's own intra-op threads.
    static void dispatch(const void* self, void (*task)(void*, size_t), size_t count, void* user) {
        const Call* call = static_cast<const Call*>(self);
        call->api_.check(
            call->api_.call<Status*, const Context*, void (*)(void*, size_t), size_t, size_t, void*>(
                kParallelFor, call->context_, task, count, 0, user),
            "a parallel loop");
    }

private:
    void* data(Value* value) const {
        void* pointer = nullptr;
        api_.check(api_.call<Status*, Value*, void**>(kTensorData, value, &pointer), "a tensor");
        return pointer;
    }
    Tensor describe(Value* value) const {
        Tensor tensor;
        tensor.data = data(value);
        TypeAndShape* info = nullptr;
        api_.check(api_.call<Status*, const Value*, TypeAndShape**>(kTypeAndShape, value, &info), "a shape");
        size_t rank = 0;
        Status* status = api_.call<Status*, const TypeAndShape*, size_t*>(kDimensionsCount, info, &rank);
        tensor.shape.resize(rank);
        if (!status)
            status = api_.call<Status*, const TypeAndShape*, int64_t*, size_t>(kDimensions, info,
                                                                               tensor.shape.data(), rank);
        if (!status) status = api_.call<Status*, const TypeAndShape*, int*>(kElementType, info, &tensor.type);
        api_.call<void, TypeAndShape*>(kReleaseTypeAndShape, info);
        api_.check(status, "a shape");
        return tensor;
    }

    const Api& api_;
    Context* context_;
    size_t inputs_ = 0, outputs_ = 0;
};

class Attributes {
public:
    Attributes(const Api& api, const Info* info) : api_(api), info_(info) {}

    int64_t integer(const char* name, int64_t fallback) const {
        int64_t value = fallback;
        Status* status = api_.call<Status*, const Info*, const char*, int64_t*>(kAttributeInt, info_, name, &value);
        return accept(status) ? value : fallback;
    }
    float real(const char* name, float fallback) const {
        float value = fallback;
        Status* status = api_.call<Status*, const Info*, const char*, float*>(kAttributeFloat, info_, name, &value);
        return accept(status) ? value : fallback;
    }

private:
    bool accept(Status* status) const {
        if (status == nullptr) return true;
        api_.call<void, Status*>(kReleaseStatus, status);
        return false;
    }
    const Api& api_;
    const Info* info_;
};

// One argument of an operator: its element type and whether it may be left out.
struct Argument {
    Element type;
    Presence presence;
};

// Turns a class with
//   static constexpr const char* kName; static const std::vector<Argument>& inputs(), outputs();
//   explicit K(const Attributes&); void run(const Call&, const Parallel&);
// into an OrtCustomOp.  Exceptions of run() become a status that names the operator.
template <class K, class ParallelT>
struct Operator : CustomOp {
    Operator() : CustomOp{} {
        version = kCustomOpFields;
        name = [](const CustomOp*) { return K::kName; };
        provider = [](const CustomOp*) -> const char* { return nullptr; };  // CPU
        input_count = [](const CustomOp*) { return K::inputs().size(); };
        output_count = [](const CustomOp*) { return K::outputs().size(); };
        input_type = [](const CustomOp*, size_t i) { return (int)K::inputs()[i].type; };
        output_type = [](const CustomOp*, size_t i) { return (int)K::outputs()[i].type; };
        input_presence = [](const CustomOp*, size_t i) { return (int)K::inputs()[i].presence; };
        output_presence = [](const CustomOp*, size_t i) { return (int)K::outputs()[i].presence; };
        input_memory = [](const CustomOp*, size_t) { return 0; };
        start_version = [](const CustomOp*) { return 1; };
        end_version = [](const CustomOp*) { return 0x7fffffff; };
        variadic_input_least = variadic_input_same = [](const CustomOp*) { return 1; };
        variadic_output_least = variadic_output_same = [](const CustomOp*) { return 1; };
        create_kernel_v2 = [](const CustomOp*, ApiTable table, const Info* info, void** out) -> Status* {
            const Api api(table);
            try {
                *out = new Instance(api, info);
                return nullptr;
            } catch (const std::exception& error) {
                return api.failure(std::string(K::kName) + ": " + error.what());
            }
        };
        compute_v2 = [](void* self, Context* context) -> Status* {
            Instance* instance = static_cast<Instance*>(self);
            try {
                const Call call(instance->api, context);
                instance->kernel.run(call, ParallelT(&call, &Call::dispatch));
                return nullptr;
            } catch (const std::exception& error) {
                return instance->api.failure(std::string(K::kName) + ": " + error.what());
            }
        };
        destroy = [](void* self) { delete static_cast<Instance*>(self); };
    }

private:
    struct Instance {
        Instance(const Api& a, const Info* info) : api(a), kernel(Attributes(api, info)) {}
        Api api;
        K kernel;
    };
};

}  // namespace gog::ort
