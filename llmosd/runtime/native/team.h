// A thread and its helpers, who share out the tasks of one call and sleep between calls.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace llmos {

class Team {
 public:
  explicit Team(int members) {
    for (int member = 1; member < members; ++member) helpers_.emplace_back([this, member] { serve(member); });
  }

  ~Team() {
    change([this] { ended_ = true; });
    wake_.notify_all();
    for (std::thread& helper : helpers_) helper.join();
  }

  // Calls task(member, index), which must not throw, once for each index below `count`; one member, which has its own
  // number, does one at a time. The caller is member 0 and waits for nobody who has not begun; without `help` it is alone.
  void share(int64_t count, bool help, const std::function<void(int, int64_t)>& task) {
    if (helpers_.empty() || !help) {
      for (int64_t i = 0; i < count; ++i) task(0, i);
      return;
    }
    change([&] { task_ = &task, count_ = count, next_ = 0, ++call_, open_ = true; });
    wake_.notify_all();
    work(0);
    change([this] { open_ = false; });
    while (working_.load(std::memory_order_acquire)) std::this_thread::yield();  // for less than one task
  }

 private:
  template <class Change>
  void change(Change made) {
    std::lock_guard<std::mutex> lock(mutex_);
    made();
  }

  void work(int member) {
    for (int64_t i; (i = next_.fetch_add(1)) < count_;) (*task_)(member, i);
  }

  void serve(int member) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (uint64_t done = 0;;) {
      wake_.wait(lock, [&] { return ended_ || (open_ && call_ != done); });
      if (ended_) return;
      done = call_;
      ++working_;
      lock.unlock();
      work(member);
      working_.fetch_sub(1, std::memory_order_release);
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  const std::function<void(int, int64_t)>* task_ = nullptr;
  int64_t count_ = 0;
  std::atomic<int64_t> next_{0};
  std::atomic<int> working_{0};
  uint64_t call_ = 0;
  bool open_ = false, ended_ = false;
  std::vector<std::thread> helpers_;  // last: they use the rest
};

}  // namespace llmos
