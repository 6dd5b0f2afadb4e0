// The CPU loops around plan.h.
#include "kernels.h"

namespace lesionaug {

void sample_plan_cpu(const PlanArgs& args) {
  for (int64_t row = 0; row < args.num_rows; ++row) sample_row(args, row);
}

void philox_cpu(uint64_t seed, const int64_t* counters, int64_t* words, int64_t count) {
  for (int64_t row = 0; row < count; ++row) philox_row(seed, counters, words, row);
}

}  // namespace lesionaug
