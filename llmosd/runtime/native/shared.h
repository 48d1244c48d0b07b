// How the workers of one parallel region share out its work. Nobody waits for a worker that has not begun, so one may do
// it all.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

namespace llmos {

// Work in ranges, that others wait for.
class Shared {
 public:
  void open(int64_t count) {
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
  }

  // Calls task(begin, end) for ranges of at most `step` until all are taken.
  template <class Task>
  void take(int64_t step, Task&& task) {
    for (int64_t i; (i = next_.fetch_add(step, std::memory_order_relaxed)) < count_;) {
      const int64_t end = std::min(count_, i + step);
      task(i, end);
      done_.fetch_add(end - i, std::memory_order_release);
    }
  }

  // Until what others have taken is done too.
  void wait() const {
    for (int spins = 0; done_.load(std::memory_order_acquire) < count_; ++spins)
      if (spins > kSpins) std::this_thread::yield();
  }

 private:
  static constexpr int kSpins = 1000;
  int64_t count_ = 0;
  std::atomic<int64_t> next_{0}, done_{0};
};

// Work that is dealt out in equal stretches, one a worker, so that each goes through memory in one direction; who is
// done helps the others.
class Dealt {
 public:
  void open(int64_t count, int workers) {
    if (workers > workers_) next_ = std::make_unique<std::atomic<int64_t>[]>(size_t(workers));
    count_ = count;
    workers_ = workers;
    for (int i = 0; i < workers; ++i) next_[i].store(count * i / workers, std::memory_order_relaxed);
  }

  // Calls task(i) until all are taken.
  template <class Task>
  void take(int worker, Task&& task) {
    for (int helped = 0; helped < workers_; ++helped) {
      const int part = (worker + helped) % workers_;
      const int64_t end = count_ * (part + 1) / workers_;
      for (int64_t i; (i = next_[part].fetch_add(1, std::memory_order_relaxed)) < end;) task(i);
    }
  }

 private:
  std::unique_ptr<std::atomic<int64_t>[]> next_;
  int64_t count_ = 0;
  int workers_ = 0;
};

}  // namespace llmos
