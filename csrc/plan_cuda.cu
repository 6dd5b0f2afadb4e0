// The CUDA launches around plan.h: one thread per row.
#include "kernels.h"
#include "launch.h"

namespace lesionaug {
namespace {

constexpr int kRowsPerBlock = 256;

__global__ void sample_plan_kernel(const PlanArgs args) {
  const int64_t row = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= args.num_rows) return;
  const PlanRow wanted = plan_row(args, row);
  store_row(args, row, wanted.lesion, draw(args, wanted.lesion, wanted.k));
}

__global__ void philox_kernel(uint64_t seed, const int64_t* counters, int64_t* words, int64_t count) {
  const int64_t row = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row < count) philox_row(seed, counters, words, row);
}

}  // namespace

void sample_plan_cuda(const PlanArgs& args, void* stream) {
  launch("sample_plan", sample_plan_kernel, (args.num_rows + kRowsPerBlock - 1) / kRowsPerBlock, kRowsPerBlock, stream,
         args);
}

void philox_cuda(uint64_t seed, const int64_t* counters, int64_t* words, int64_t count, void* stream) {
  launch("philox", philox_kernel, (count + kRowsPerBlock - 1) / kRowsPerBlock, kRowsPerBlock, stream, seed, counters,
         words, count);
}

}  // namespace lesionaug
