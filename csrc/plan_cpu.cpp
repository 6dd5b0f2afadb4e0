// The CPU loops around plan.h.
#include "kernels.h"

namespace lesionaug {

void sample_plan_cpu(const PlanArgs& args) {
  int64_t lesion = -1;  // whose angle of rotation `r` is known: rows of one rotation mostly follow each other
  uint32_t r = 0;
  float angle = 0;
  for (int64_t row = 0; row < args.num_rows; ++row) {
    const PlanRow wanted = plan_row(args, row);
    if (!in_plan(args, wanted.lesion, wanted.k)) {
      store_row(args, row, wanted.lesion, draw(args, wanted.lesion, wanted.k));
      continue;
    }
    const uint32_t rotation = uint32_t(wanted.k) / variants(args), v = uint32_t(wanted.k) % variants(args);
    if (wanted.lesion != lesion || rotation != r) {
      lesion = wanted.lesion;
      r = rotation;
      angle = draw_angle(args, lesion, r);
    }
    store_row(args, row, lesion, draw_variant(args, lesion, r, v, angle));
  }
}

void philox_cpu(uint64_t seed, const int64_t* counters, int64_t* words, int64_t count) {
  for (int64_t row = 0; row < count; ++row) philox_row(seed, counters, words, row);
}

}  // namespace lesionaug
