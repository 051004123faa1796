// Memory for numbers: aligned to cache lines, zeroed, on huge pages where it is large.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <new>
#include <utility>

namespace native {

template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count) { make(count); }
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(raw_, other.raw_);
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  ~Buffer() { free(raw_); }

  void make(int64_t count) {
    constexpr size_t HUGE_PAGE = size_t{1} << 21, LINE = 64;
    const size_t wanted = (size_t)count * sizeof(T), unit = wanted >= HUGE_PAGE ? HUGE_PAGE : LINE;
    void* fresh = calloc(1, wanted + 2 * unit);  // untouched pages of a large pool take no memory
    if (fresh == nullptr) throw std::bad_alloc();
    char* aligned = (char*)(((uintptr_t)fresh + unit - 1) / unit * unit);
#if defined(__linux__)
    if (unit == HUGE_PAGE) madvise(aligned, wanted / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
    free(raw_);
    raw_ = fresh;
    data_ = (T*)aligned;
    count_ = count;
  }
  // Room for at least count; what was in it is lost when it grows.
  T* reserve(int64_t count) {
    if (count > count_) make(count);
    return data_;
  }
  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t count() const { return count_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  void* raw_ = nullptr;
  T* data_ = nullptr;
  int64_t count_ = 0;
};

}  // namespace native
