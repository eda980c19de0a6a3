// CUDA on the host: compiles csrc/crop_cuda.cu as it is, and runs its grid with one thread of the operating system
// for each thread of a block, one block after the other (shared memory is one static object).
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

struct HostIndex {
  unsigned x = 0, y = 0;
};
inline thread_local HostIndex threadIdx, blockIdx;

class HostBarrier {
 public:
  void open(int count) { count_ = count; }
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const int round = round_;
    if (++waiting_ == count_) {
      waiting_ = 0;
      ++round_;
      all_.notify_all();
    } else {
      all_.wait(lock, [&] { return round != round_; });
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_;
  int count_ = 0, waiting_ = 0, round_ = 0;
};
inline HostBarrier host_barrier;

inline void __syncthreads() { host_barrier.wait(); }

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__ static
#define gog_crop gog_crop_entry  // the host kernel has the name as well
#include "crop_cuda.cu"
#undef gog_crop

template <class... Arguments>
void host_launch(unsigned grid_x, unsigned grid_y, unsigned block, Arguments... arguments) {
  host_barrier.open(static_cast<int>(block));
  std::vector<std::thread> threads;
  for (unsigned id = 0; id < block; ++id)
    threads.emplace_back([=] {
      threadIdx.x = id;
      for (unsigned y = 0; y < grid_y; ++y)
        for (unsigned x = 0; x < grid_x; ++x) {
          blockIdx.x = x;
          blockIdx.y = y;
          gog_crop_entry(arguments...);
          host_barrier.wait();  // the next block reuses the shared memory
        }
    });
  for (std::thread& t : threads) t.join();
}
