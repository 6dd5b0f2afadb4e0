// What the binding calls: the same functions for the CPU and for a CUDA stream.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "plan.h"
#include "resample.h"

namespace lesionaug {

// First patch that is not valid and what is wrong with it, or kOk. Reads host memory.
std::pair<Status, int64_t> check_patches(const ResampleArgs& args, int threads);

// `path` is one of cpu_paths, or "": the fastest. All give the same to rounding; one gives the same bits however a call
// is split over threads or calls.
constexpr char kReferencePath[] = "reference";  // the loop over resample.h
std::vector<std::string> cpu_paths();
void resample_cpu(const ResampleArgs& args, int threads, const std::string& path);
// Gradient with respect to the pixels: args.out is read as the patches' gradient, `gradient` [pixels] is written.
void resample_adjoint_cpu(const ResampleArgs& args, void* gradient, int threads, const std::string& path);
void patch_to_image_cpu(const ResampleArgs& args, float* matrices);
void sample_plan_cpu(const PlanArgs& args);
void philox_cpu(uint64_t seed, const int64_t* counters, int64_t* words, int64_t count);

#ifdef LESIONAUG_WITH_CUDA
// All of these only enqueue work on `stream` (a cudaStream_t) of the current device, and throw when a launch fails.
void resample_cuda(const ResampleArgs& args, void* stream);
// The same by tiles. False, and nothing enqueued, where it cannot: float64, a size that is not a
// multiple of 4, patches that do not begin at a multiple of 16 bytes.
bool resample_tiled_cuda(const ResampleArgs& args, void* stream);
// `workspace` int64 [pixels] must be zero; `scale` float64 [1] turns a gradient into fixed point.
void resample_adjoint_cuda(const ResampleArgs& args, void* gradient, int64_t* workspace, const double* scale,
                           int64_t num_pixels, void* stream);
void patch_to_image_cuda(const ResampleArgs& args, float* matrices, void* stream);
void sample_plan_cuda(const PlanArgs& args, void* stream);
void philox_cuda(uint64_t seed, const int64_t* counters, int64_t* words, int64_t count, void* stream);
#endif

// One row of `words` [count, 4] from one row of `counters` [count, 4]; each int64 holds a 32-bit word.
LA_HD void philox_row(uint64_t seed, const int64_t* counters, int64_t* words, int64_t row) {
  const int64_t* c = counters + 4 * row;
  const Words result = philox(seed, {{uint32_t(c[0]), uint32_t(c[1]), uint32_t(c[2]), uint32_t(c[3])}});
  for (int i = 0; i < 4; ++i) words[4 * row + i] = result.w[i];
}

LA_HD void patch_to_image_row(const ResampleArgs& args, float* matrices, int64_t row) {
  const Patch p = load_patch(args, row);
  const Map m = fold_flip(p.map, p.flip, args.size);  // called without antialias, so no zoom is too large
  const double values[6] = {m.m00, m.m01, m.m02, m.m10, m.m11, m.m12};
  for (int i = 0; i < 6; ++i) matrices[6 * row + i] = p.status == Status::kOk ? float(values[i]) : NAN;
}

}  // namespace lesionaug
