#include "threads.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <system_error>
#include <thread>

namespace piston {
namespace {

using Clock = std::chrono::steady_clock;
using Word = std::atomic<uint32_t>;

constexpr std::chrono::microseconds kSpin{200};     // waiting for a job; more than lies between two operators
constexpr std::chrono::microseconds kSpinEnd{50};   // waiting for those that began; more than a piece takes
constexpr std::chrono::microseconds kTurn{1000};    // less than the system lets a thread run beside another
constexpr int kMostThreads = 256;

void sleep_while(Word& word, uint32_t value) { syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0); }
void wake(Word& word, int count) { syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0); }

// Whether `is_done` became true within a time.
template <typename Condition>
bool spin(std::chrono::microseconds time, const Condition& is_done) {
  const auto end = Clock::now() + time;
  do {
    for (int i = 0; i < 16; ++i) {
      if (is_done()) return true;
      _mm_pause();
    }
  } while (Clock::now() < end);
  return false;
}

class Threads {
 public:
  void run(int threads, void (*job)(void*, uint32_t), void* data) {
    const std::unique_lock<std::mutex> lock(callers_, std::try_to_lock);
    if (threads <= 1 || !lock.owns_lock()) return job(data, 0);  // another session's operator has the threads
    const int others = threads < kMostThreads ? threads - 1 : kMostThreads - 1;
    start(others);
    job_ = job;
    data_ = data;
    state_.store(kOpen | static_cast<uint32_t>(others) << kLimitShift);
    posted_.fetch_add(1);
    if (num_sleeping_.load() > 0) wake(posted_, others);
    job(data, 0);
    state_.fetch_and(kInside);
    const auto is_over = [&] { return state_.load() == 0; };
    if (spin(kSpinEnd, is_over)) return;
    // One of them was stopped. Asleep, this thread leaves it the core.
    is_waiting_.store(true);
    for (uint32_t state; (state = state_.load()) != 0;) sleep_while(state_, state);
    is_waiting_.store(false);
  }

 private:
  // Whether a job may be begun, how many threads may at once, and how many have and did not end.
  static constexpr uint32_t kOpen = 1u << 31, kLimitShift = 16, kInside = (1u << kLimitShift) - 1;

  void start(int count) {
    try {
      for (; num_started_ < count; ++num_started_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {  // the system has no more: those there are do the work
    }
  }

  void serve() {
    uint32_t seen = 0;
    auto turn = Clock::now();
    for (;;) {
      if (!spin(kSpin, [&] { return posted_.load() != seen; })) {
        num_sleeping_.fetch_add(1);
        sleep_while(posted_, seen);
        num_sleeping_.fetch_sub(1);
        turn = Clock::now();
      }
      seen = posted_.load();
      if (const uint32_t index = join()) {
        job_(data_, index);
        if (state_.fetch_sub(1) == 1 && is_waiting_.load()) wake(state_, 1);
      }
      // Between jobs nobody waits for this thread; the system would take the core from it within one.
      if (Clock::now() - turn < kTurn) continue;
      sched_yield();
      turn = Clock::now();
    }
  }

  uint32_t join() {
    for (uint32_t state = state_.load(); (state & kOpen) != 0;) {
      const uint32_t index = (state & kInside) + 1;
      if (index > (state & ~kOpen) >> kLimitShift) return 0;
      if (state_.compare_exchange_weak(state, state + 1)) return index;
    }
    return 0;
  }

  std::mutex callers_;
  int num_started_ = 0;
  void (*job_)(void*, uint32_t) = nullptr;
  void* data_ = nullptr;
  alignas(64) Word posted_{0};
  Word num_sleeping_{0};
  alignas(64) Word state_{0};
  std::atomic<bool> is_waiting_{false};
};

}  // namespace

void run_on_threads(int threads, void (*job)(void*, uint32_t), void* data) {
  static Threads& all = *new Threads;  // never destroyed: its threads end with the process
  all.run(threads, job, data);
}

}  // namespace piston
