// The CPU loops around resample.h.
#include <vector>

#include "kernels.h"
#include "parallel.h"

namespace lesionaug {

std::pair<Status, int64_t> check_patches(const ResampleArgs& args) {
  for (int64_t n = 0; n < args.num_patches; ++n) {
    const Status status = load_patch(args, n).status;
    if (status != Status::kOk) return {status, n};
  }
  return {Status::kOk, -1};
}

void resample_cpu(const ResampleArgs& args, int threads) {
  with_types(args, [&](auto source, auto compute) {
    parallel_for(args.num_patches, threads, [&](int64_t n) {
      const Patch p = load_patch(args, n);
      for (int i = 0; i < args.size; ++i)
        for (int j = 0; j < args.size; ++j) resample_pixel<decltype(compute), decltype(source)>(args, p, n, i, j);
    });
  });
}

namespace {

// Patches in the order of their images, so that one thread owns an image: sums in one order whatever the threads.
std::pair<std::vector<int64_t>, std::vector<int64_t>> patches_by_image(const ResampleArgs& args) {
  std::vector<int64_t> start(args.num_images + 1, 0), patches(args.num_patches);
  const auto image = [&](int64_t n) { return args.image_index ? args.image_index[n] : n; };
  for (int64_t n = 0; n < args.num_patches; ++n) ++start[image(n) + 1];
  for (int64_t k = 0; k < args.num_images; ++k) start[k + 1] += start[k];
  std::vector<int64_t> next(start.begin(), start.end() - 1);
  for (int64_t n = 0; n < args.num_patches; ++n) patches[next[image(n)]++] = n;
  return {start, patches};
}

template <class T>
void adjoint(const ResampleArgs& args, T* gradient, int threads) {
  const auto [start, patches] = patches_by_image(args);
  const T* incoming = static_cast<const T*>(args.out);
  parallel_for(args.num_images * args.channels, threads, [&](int64_t plane) {
    const int64_t k = plane / args.channels;
    const int c = int(plane % args.channels);
    const int64_t height = args.sizes ? args.sizes[2 * k] : args.height;
    const int64_t width = args.sizes ? args.sizes[2 * k + 1] : args.width;
    const int64_t offset = args.offsets ? args.offsets[k] : k * args.channels * height * width;
    std::vector<double> sum(height * width, 0.0);
    for (int64_t s = start[k]; s < start[k + 1]; ++s) {
      const Patch p = load_patch(args, patches[s]);
      for (int i = 0; i < args.size; ++i)
        for (int j = 0; j < args.size; ++j) {
          double x, y;
          patch_point(p.map, i, j, x, y);
          const T value = incoming[patch_address(args, patches[s], c, i, j, p.flip)];
          spread(value, p, x, y, args, [&](int64_t at, T share) { sum[at] += share; });
        }
    }
    T* target = gradient + offset + c * height * width;
    for (int64_t at = 0; at < height * width; ++at) target[at] = T(sum[at]);
  });
}

}  // namespace

void resample_adjoint_cpu(const ResampleArgs& args, void* gradient, int threads) {
  if (args.out_dtype == Dtype::kFloat64) {
    adjoint(args, static_cast<double*>(gradient), threads);
  } else {
    adjoint(args, static_cast<float*>(gradient), threads);
  }
}

void patch_to_image_cpu(const ResampleArgs& args, float* matrices) {
  for (int64_t n = 0; n < args.num_patches; ++n) patch_to_image_row(args, matrices, n);
}

}  // namespace lesionaug
