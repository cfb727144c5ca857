#include "parallel.hpp"

#include <immintrin.h>
#include <omp.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace multiflora {
namespace {

// Of one thread's share: a thread that is interrupted holds up this part of it at most.
constexpr int64_t kPiecesPerThread = 8;
// Looks before a thread sleeps: some tens of microseconds, as long as it takes from one op of a
// decode step to the next.
constexpr int kLooks = 1500;

class Pool {
 public:
  void run(int64_t count, int threads, Body body, const void* context) {
    const std::unique_lock<std::mutex> own(owner_, std::try_to_lock);
    if (!own) return body(context, 0, count);
    while (num_workers_ < threads - 1) {
      std::thread([this] { work(); }).detach();
      ++num_workers_;
    }
    const int64_t most = threads * kPiecesPerThread;
    const int64_t pieces = count < most ? count : most;
    body_.store(body, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    count_.store(count, std::memory_order_relaxed);
    pieces_.store(pieces, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    ticket_.store(static_cast<uint64_t>(++generation_) << 32 | static_cast<uint64_t>(pieces));
    if (sleepers_.load() > 0) {
      { const std::lock_guard<std::mutex> lock(sleep_); }
      wake_.notify_all();
    }
    while (take(generation_)) {
    }
    for (int looks = 0; done_.load(std::memory_order_acquire) < pieces; ++looks)
      looks < kLooks ? _mm_pause() : std::this_thread::yield();
  }

 private:
  // Does one piece of the job of this generation, if one is left. The ticket itself says how many
  // are: a job that is being prepared shares its fields with the one before, whose ticket is at
  // zero by then. So a piece that could be taken proves that the job was not over, and that what
  // was read of it was its own.
  bool take(uint32_t generation) {
    uint64_t seen = ticket_.load(std::memory_order_acquire);
    while (static_cast<uint32_t>(seen >> 32) == generation) {
      const int64_t left = static_cast<uint32_t>(seen);
      if (left == 0) return false;
      const int64_t pieces = pieces_.load(std::memory_order_relaxed);
      const int64_t count = count_.load(std::memory_order_relaxed);
      const Body body = body_.load(std::memory_order_relaxed);
      const void* context = context_.load(std::memory_order_relaxed);
      if (!ticket_.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel,
                                         std::memory_order_acquire))
        continue;
      const int64_t piece = pieces - left;
      body(context, piece * count / pieces, (piece + 1) * count / pieces);
      done_.fetch_add(1, std::memory_order_release);
      return true;
    }
    return false;
  }

  void work() {
    uint32_t last = 0;
    for (;;) {
      for (int looks = 0; current() == last; ++looks)
        looks < kLooks ? _mm_pause() : sleep_until_after(last);
      last = current();
      while (take(last)) {
      }
    }
  }

  void sleep_until_after(uint32_t generation) {
    std::unique_lock<std::mutex> lock(sleep_);
    sleepers_.fetch_add(1);
    wake_.wait(lock, [&] { return current() != generation; });
    sleepers_.fetch_sub(1);
  }

  uint32_t current() const { return static_cast<uint32_t>(ticket_.load() >> 32); }

  std::mutex owner_;
  int num_workers_ = 0;
  uint32_t generation_ = 0;
  std::atomic<uint64_t> ticket_{0};  // generation of the job, and how many pieces are left
  std::atomic<Body> body_{nullptr};
  std::atomic<const void*> context_{nullptr};
  std::atomic<int64_t> count_{0}, pieces_{0}, done_{0};
  std::mutex sleep_;
  std::condition_variable wake_;
  std::atomic<int> sleepers_{0};
};

}  // namespace

void share_out(int64_t count, Body body, const void* context) {
  // Never destroyed: its threads wait in it until the process ends.
  static Pool* const pool = new Pool;
  const int threads = omp_get_max_threads();
  if (threads < 2) return body(context, 0, count);
  pool->run(count, threads, body, context);
}

}  // namespace multiflora
