// Memory that a thread keeps between calls, so that a step allocates nothing once its largest size has been seen.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace llmos {

class Scratch {
 public:
  // At least `count` elements of T, 64-byte aligned, contents undefined; valid until the next call.
  template <class T>
  T* reserve(size_t count) {
    const size_t bytes = (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    if (bytes > capacity_) {
      memory_.reset();
      capacity_ = 0;
      memory_.reset(std::aligned_alloc(kAlignment, bytes));
      if (!memory_) throw std::bad_alloc();
      capacity_ = bytes;
    }
    return static_cast<T*>(memory_.get());
  }

 private:
  static constexpr size_t kAlignment = 64;
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> memory_;
  size_t capacity_ = 0;
};

}  // namespace llmos
