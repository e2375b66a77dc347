// Work shared between the calling thread and those of XLA's pool.
#ifndef JSEL_NATIVE_PARALLEL_H_
#define JSEL_NATIVE_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

namespace jsel {

// Calls work(item) for each item in [0, items), in any order, where each thread that takes part
// makes its own work = start(): what that holds is memory of the thread, for all of its items.
//
// The caller may itself be one of the pool's threads, all of which may wait in calls like this one:
// so nobody waits for a thread to become free. The caller takes items until none is left, and then
// waits for those alone that another thread has begun.
template <typename Start>
void ForEachBy(xla::ffi::ThreadPool& pool, int64_t items, const Start& start) {
  struct Counts {
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> done{0};
  };
  auto counts = std::make_shared<Counts>();
  // A thread that comes late finds no item, and does not touch what is gone by then.
  auto take = [counts, items, &start] {
    int64_t item = counts->next.fetch_add(1);
    if (item >= items) return;
    auto work = start();
    for (; item < items; item = counts->next.fetch_add(1)) {
      work(item);
      counts->done.fetch_add(1, std::memory_order_release);
    }
  };
  const int64_t threads = std::min<int64_t>(pool.num_threads(), items);
  for (int64_t thread = 1; thread < threads; ++thread) pool.Schedule([take] { take(); });
  take();
  for (int spins = 0; counts->done.load(std::memory_order_acquire) < items; ++spins) {
    if (spins > 1000) std::this_thread::yield();
  }
}

// The same, where no thread holds anything; by the caller alone where the work is not worth waking
// a thread, which may take longer than a pass over a megabyte.
template <typename Work>
void ForEach(xla::ffi::ThreadPool& pool, int64_t items, const Work& work, bool worth = true) {
  if (worth) return ForEachBy(pool, items, [&] { return [&](int64_t item) { work(item); }; });
  for (int64_t item = 0; item < items; ++item) work(item);
}

}  // namespace jsel

#endif  // JSEL_NATIVE_PARALLEL_H_
