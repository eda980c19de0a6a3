// How a kernel spreads its work, and the scratch memory it works in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace gog {

// Calls f(0) … f(count - 1), in any order, on the threads of whoever runs the kernel (ONNX Runtime's intra-op
// pool inside a session, so that our threads and the session's never compete for a core).
class Parallel {
public:
    typedef void (*Task)(void* user, size_t index);
    typedef void (*Dispatch)(const void* context, Task task, size_t count, void* user);

    Parallel(const void* context, Dispatch dispatch) : context_(context), dispatch_(dispatch) {}

    template <class F>
    void operator()(size_t count, const F& f) const {
        if (count <= 1 || dispatch_ == nullptr) {
            for (size_t i = 0; i < count; i++) f(i);
            return;
        }
        dispatch_(context_, [](void* user, size_t index) { (*static_cast<const F*>(user))(index); }, count,
                  const_cast<F*>(&f));
    }

private:
    const void* context_;
    Dispatch dispatch_;
};

// A growing, 64-byte aligned buffer; contents are not kept when it grows.
class Scratch {
public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { std::free(data_); }

    template <class T>
    T* get(size_t count) {
        const size_t bytes = (count * sizeof(T) + 127) / 64 * 64;
        if (bytes > size_) {
            std::free(data_);
            size_ = 0;
            data_ = std::aligned_alloc(64, bytes);
            if (data_ == nullptr) throw std::bad_alloc();
            size_ = bytes;
        }
        return static_cast<T*>(data_);
    }

private:
    void* data_ = nullptr;
    size_t size_ = 0;
};

inline size_t div_up(size_t a, size_t b) { return (a + b - 1) / b; }

}  // namespace gog
