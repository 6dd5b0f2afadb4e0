// Work split over threads without OpenMP, so that no second runtime sits beside torch's.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>

namespace lesionaug {

// Pieces of [0, count), handed out as threads ask for them.
class Pieces {
 public:
  Pieces(int64_t count, int64_t piece) : count_(count), piece_(piece) {}

  // The next piece [first, last); false when none is left.
  bool next(int64_t& first, int64_t& last) {
    first = next_.fetch_add(piece_, std::memory_order_relaxed);
    last = std::min(first + piece_, count_);
    return first < count_;
  }

 private:
  std::atomic<int64_t> next_{0};
  const int64_t count_, piece_;
};

// Calls `work`, which must not throw, on this thread and on up to `others` more; one that has not come by the time this
// one is done is not waited for. The threads stay for the next call. Another caller at the same time gets some of its
// own, and so does a forked process.
void with_threads(int others, const std::function<void()>& work);

// Calls worker(pieces) on up to `threads` threads, this one among them. What is computed must not depend on who gets
// which piece. The last exception that a worker throws is thrown again here, when all threads have ended.
template <class Worker>
void parallel(int64_t count, int64_t piece, int threads, const Worker& worker) {
  const int64_t used = std::clamp<int64_t>(threads, 1, std::max<int64_t>((count + piece - 1) / piece, 1));
  Pieces pieces(count, piece);
  std::exception_ptr failure;
  std::mutex failing;
  with_threads(int(used) - 1, [&] {
    try {
      worker(pieces);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(failing);
      failure = std::current_exception();
    }
  });
  if (failure) std::rethrow_exception(failure);
}

// Calls body(i) for i in [0, count), `piece` neighbours on one thread.
template <class Body>
void parallel_for(int64_t count, int64_t piece, int threads, const Body& body) {
  parallel(count, piece, threads, [&](Pieces& pieces) {
    for (int64_t first, last; pieces.next(first, last);)
      for (int64_t i = first; i < last; ++i) body(i);
  });
}

}  // namespace lesionaug
