// Work split over threads without OpenMP, so that no second runtime sits beside torch's.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace lesionaug {

// Calls body(i) for i in [0, count), neighbouring i on one thread. What body(i) computes must not depend on the split.
template <class Body>
void parallel_for(int64_t count, int threads, const Body& body) {
  const int64_t used = std::clamp<int64_t>(threads, 1, std::max<int64_t>(count, 1));
  const auto run = [&](int64_t part) {
    for (int64_t i = count * part / used; i < count * (part + 1) / used; ++i) body(i);
  };
  std::vector<std::thread> workers;
  for (int64_t part = 1; part < used; ++part) workers.emplace_back(run, part);
  run(0);
  for (std::thread& worker : workers) worker.join();
}

}  // namespace lesionaug
