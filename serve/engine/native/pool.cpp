#include "pool.h"

#include <chrono>

namespace native {
namespace {

constexpr uint64_t FIELD = (uint64_t{1} << 20) - 1;
constexpr int64_t MAX_COUNT = (int64_t)FIELD;
constexpr auto PATIENCE = std::chrono::microseconds(200);  // longer than the gap between two steps of a busy engine

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Pool::Pool(int num_threads) {
  for (int t = 1; t < num_threads; ++t) workers_.emplace_back([this, t] { work(t); });
}

Pool::~Pool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_.store(true);
  }
  came_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Pool::begin() {
  on_shift_.store(true);
  if (sleepers_.load() == 0) return;
  { std::lock_guard<std::mutex> lock(mutex_); }  // one that has just looked is waiting by now
  came_.notify_all();
}

bool Pool::take_one(int thread) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  const uint64_t count = (ticket >> 20) & FIELD;
  if ((ticket & FIELD) >= count) return false;
  if (ticket_.compare_exchange_strong(ticket, ticket + 1, std::memory_order_acq_rel)) {
    call_(body_, (int64_t)(ticket & FIELD), thread);
    done_.fetch_add(1, std::memory_order_acq_rel);
  }
  return true;
}

void Pool::share(int64_t count, Call call, const void* body) {
  for (int64_t start = 0; start < count; start += MAX_COUNT) {
    const int64_t now = count - start < MAX_COUNT ? count - start : MAX_COUNT;
    struct Shifted {
      Call call;
      const void* body;
      int64_t start;
    } shifted = {call, body, start};
    call_ = [](const void* s, int64_t i, int thread) {
      const auto& own = *(const Shifted*)s;
      own.call(own.body, own.start + i, thread);
    };
    body_ = &shifted;
    done_.store(0, std::memory_order_relaxed);
    epoch_ = (epoch_ + 1) & ((uint64_t{1} << 24) - 1);
    ticket_.store(epoch_ << 40 | (uint64_t)now << 20, std::memory_order_release);
    while (take_one(0)) {
    }
    for (int spins = 0; done_.load(std::memory_order_acquire) < now; ++spins) {
      relax();
      if (spins > 2000) std::this_thread::yield();  // the other thread lost its core: let it have this one
    }
  }
}

void Pool::work(int thread) {
  auto last = std::chrono::steady_clock::now();
  for (int spins = 0; !stop_.load(std::memory_order_relaxed); ++spins) {
    if (take_one(thread)) {
      spins = 0;
      continue;
    }
    relax();
    if (spins % 64 != 63) continue;
    const auto now = std::chrono::steady_clock::now();
    if (spins == 63) last = now;
    if (on_shift_.load(std::memory_order_relaxed) || now - last < PATIENCE) continue;
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1);
    came_.wait(lock, [&] { return stop_.load() || on_shift_.load(); });
    sleepers_.fetch_sub(1);
    spins = 0;
  }
}

}  // namespace native
