// Threads that stay: a crop takes about a millisecond, so it neither makes threads nor waits for late ones.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace gog {

// Offers `work` to up to `wanted` helpers for as long as it lives. The one who offers is to do all of the work
// himself as far as nobody else does: helpers that come too late, or never (no more threads to be had), cost nothing.
// The end of its life takes the offer back and waits for the helpers that are at work.
class Offer {
 public:
  Offer(std::function<void()> work, int wanted) : work_(std::move(work)), places_(std::min(wanted, kMostHelpers)) {
    if (places_ < 1) return;
    pool_ = Pool::here();
    pool_->post(this);
  }
  ~Offer() {
    if (pool_ == nullptr) return;
    pool_->withdraw(this);
    while (at_work_.load(std::memory_order_acquire) != 0) std::this_thread::yield();
  }
  Offer(const Offer&) = delete;
  Offer& operator=(const Offer&) = delete;

 private:
  static constexpr int kMostHelpers = 15;

  class Pool {
   public:
    // This process's pool. Never destroyed: its threads may wait in it until the process ends. A process made by
    // fork has none of its parent's threads and makes a pool of its own.
    static Pool* here() {
      static std::atomic<Pool*> current{nullptr};
      Pool* pool = current.load(std::memory_order_acquire);
      while (pool == nullptr || pool->process_ != getpid()) {
        Pool* fresh = new Pool;
        if (current.compare_exchange_strong(pool, fresh)) return fresh;
        delete fresh;
      }
      return pool;
    }

    void post(Offer* offer) {
      const int wanted = offer->places_;
      {
        const std::lock_guard<std::mutex> hold(mutex_);
        offers_.push_back(offer);
        try {
          for (; threads_ < wanted; ++threads_) std::thread([this] { serve(); }).detach();
        } catch (const std::exception&) {
          // no more threads to be had: those that are there do it
        }
      }
      for (int i = 0; i < wanted; ++i) wake_.notify_one();
    }

    void withdraw(Offer* offer) {
      const std::lock_guard<std::mutex> hold(mutex_);
      offers_.erase(std::remove(offers_.begin(), offers_.end(), offer), offers_.end());
    }

   private:
    void serve() {
      std::unique_lock<std::mutex> hold(mutex_);
      while (true) {
        wake_.wait(hold, [this] { return !offers_.empty(); });
        Offer* offer = offers_.front();
        offer->at_work_.fetch_add(1, std::memory_order_relaxed);
        if (--offer->places_ == 0) offers_.erase(offers_.begin());
        hold.unlock();
        offer->work_();
        offer->at_work_.fetch_sub(1, std::memory_order_release);  // the offer may be gone from here on
        hold.lock();
      }
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<Offer*> offers_;
    int threads_ = 0;
    const pid_t process_ = getpid();
  };

  std::function<void()> work_;  // throws nothing
  int places_;                  // guarded by the pool's mutex once it is posted
  std::atomic<int> at_work_{0};
  Pool* pool_ = nullptr;
};

}  // namespace gog
