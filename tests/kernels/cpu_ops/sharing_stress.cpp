// Loops of changing lengths, one right after the other, whose threads are held up before any of
// their atomic operations: every index is visited once, by the loop that it belongs to, before that
// loop returns.

#include <immintrin.h>
#include <omp.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>

namespace std {

// Before one operation in sixteen, other threads run.
inline void hesitate() {
  static thread_local uint32_t state = hash<thread::id>()(this_thread::get_id()) | 1;
  state = state * 1664525u + 1013904223u;
  if (state >> 28 == 0) this_thread::yield();
}

template <typename T>
struct hesitant : atomic<T> {
  using Base = atomic<T>;
  using Base::Base;
  T load(memory_order order = memory_order_seq_cst) const {
    hesitate();
    return Base::load(order);
  }
  void store(T value, memory_order order = memory_order_seq_cst) {
    hesitate();
    Base::store(value, order);
  }
  T fetch_add(T value, memory_order order = memory_order_seq_cst) {
    hesitate();
    return Base::fetch_add(value, order);
  }
  template <typename... Orders>
  bool compare_exchange_weak(T& seen, T value, Orders... orders) {
    hesitate();
    return Base::compare_exchange_weak(seen, value, orders...);
  }
};

}  // namespace std

#define atomic hesitant
#include "parallel.cpp"
#undef atomic

namespace {

constexpr int64_t kMost = 64;

struct Job {
  uint64_t number = 0;
  int64_t count = 0;
  std::atomic<int> visits[kMost] = {};
};

void check(bool is_right, const char* what, uint64_t number) {
  if (is_right) return;
  std::printf("%s in loop %llu\n", what, static_cast<unsigned long long>(number));
  std::fflush(stdout);
  std::_Exit(1);
}

// Two bodies that agree in nothing but their type: one is never given the other's context.
template <uint64_t REMAINDER>
void visit(const void* context, int64_t first, int64_t stop) {
  Job& job = *static_cast<Job*>(const_cast<void*>(context));
  check(job.number % 2 == REMAINDER, "another loop's body", job.number);
  check(0 <= first && first < stop && stop <= job.count, "a range outside", job.number);
  for (int64_t i = first; i < stop; ++i) job.visits[i].fetch_add(1);
}

}  // namespace

int main(int, char** arguments) {
  const std::chrono::duration<double> length(std::atof(arguments[1]));
  const auto end = std::chrono::steady_clock::now() + length;
  static Job jobs[2];
  uint64_t number = 0;
  for (; number % 64 || std::chrono::steady_clock::now() < end; ++number) {
    Job& job = jobs[number % 2];
    job.number = number;
    job.count = 2 + static_cast<int64_t>(number * 2654435761u % (kMost - 1));
    for (auto& visits : job.visits) visits.store(0);
    multiflora::share_out(job.count, number % 2 ? visit<1> : visit<0>, &job);
    for (int64_t i = 0; i < kMost; ++i)
      check(job.visits[i].load() == (i < job.count), "not every index once", number);
  }
  std::printf("%llu loops\n", static_cast<unsigned long long>(number));
}
