// A few threads that share the loops of one caller. While a Pool::Shift lives they stay awake; idle threads sleep and
// cost nothing.
#pragma once
#include <stdint.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace native {

class Pool {
 public:
  explicit Pool(int num_threads);  // counting the caller
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int num_threads() const { return (int)workers_.size() + 1; }

  // The caller's time from its first loop to its last. Without it a thread that is done early in a loop of long bodies
  // would fall asleep and miss the loops that follow.
  class Shift {
   public:
    explicit Shift(Pool& pool) : pool_(pool) { pool_.begin(); }
    ~Shift() { pool_.on_shift_.store(false); }
    Shift(const Shift&) = delete;
    Shift& operator=(const Shift&) = delete;

   private:
    Pool& pool_;
  };

  // body(index, thread) for index 0..count-1, in any order, by whichever threads are there; returns when all are done.
  // The caller takes part, so a thread that is late or never comes costs time, never the result.
  template <class Body>
  void run(int64_t count, const Body& body) {
    if (count <= 1 || workers_.empty()) {
      for (int64_t i = 0; i < count; ++i) body(i, 0);
      return;
    }
    share(count, [](const void* b, int64_t i, int thread) { (*(const Body*)b)(i, thread); }, &body);
  }

 private:
  typedef void (*Call)(const void* body, int64_t index, int thread);
  void begin();
  void share(int64_t count, Call call, const void* body);
  void work(int thread);
  bool take_one(int thread);

  // The loop in progress: epoch (24 bits), its count (20 bits), the next index (20 bits). One compare-and-swap takes an
  // index; the loop it belongs to cannot end before that index is done, so call_ and body_ are then sure to be its own.
  std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<bool> on_shift_{false};
  std::atomic<bool> stop_{false};
  Call call_ = nullptr;
  const void* body_ = nullptr;
  uint64_t epoch_ = 0;
  std::mutex mutex_;
  std::condition_variable came_;
  std::vector<std::thread> workers_;
};

}  // namespace native
