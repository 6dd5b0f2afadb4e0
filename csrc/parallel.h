// Work split over threads without OpenMP, so that no second runtime sits beside torch's.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace lesionaug {

// Calls body(i) for i in [0, count), neighbouring i on one thread. What body(i) computes must not depend on the split.
// The last exception that a body throws is thrown again here, when all threads have ended.
template <class Body>
void parallel_for(int64_t count, int threads, const Body& body) {
  const int64_t used = std::clamp<int64_t>(threads, 1, std::max<int64_t>(count, 1));
  std::exception_ptr failure;
  std::mutex failing;
  const auto run = [&](int64_t part) {
    try {
      for (int64_t i = count * part / used; i < count * (part + 1) / used; ++i) body(i);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(failing);
      failure = std::current_exception();
    }
  };
  std::vector<std::thread> workers;
  workers.reserve(used);
  int64_t part = 1;
  try {
    for (; part < used; ++part) workers.emplace_back(run, part);
  } catch (const std::system_error&) {  // no more threads to be had: the rest is done on this one
  }
  run(0);
  for (; part < used; ++part) run(part);
  for (std::thread& worker : workers) worker.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace lesionaug
