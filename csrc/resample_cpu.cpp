// The CPU loops: the workers of tile_worker.h, resample.h pixel by pixel, and the adjoint.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "kernels.h"
#include "parallel.h"
#include "tile_worker.h"

namespace lesionaug {
namespace {

// Every path that this processor can take, the fastest first.
std::vector<const TileKernels*> all_kernels() {
  std::vector<const TileKernels*> found;
  for (const TileKernels* kernels : {tile_kernels_avx512(), tile_kernels_avx2(), tile_kernels_portable()})
    if (kernels) found.push_back(kernels);
  return found;
}

// The kernels called `path`; the fastest for "", null for the loop over resample.h.
const TileKernels* kernels_for(const std::string& path) {
  if (path == kReferencePath) return nullptr;
  for (const TileKernels* kernels : all_kernels())
    if (path.empty() || path == kernels->name) return kernels;
  throw std::invalid_argument("no CPU path '" + path + "' on this processor");
}

// Pieces are whole rotations of the default plan where there are enough patches.
int64_t piece_of(int64_t num_patches, int threads) {
  const int64_t piece = std::clamp<int64_t>(num_patches / (8 * std::max(threads, 1)), 1, 64);
  return piece >= 16 ? piece / 16 * 16 : piece;
}

// Small calls are not worth a thread's start.
int useful_threads(const ResampleArgs& args, int threads) {
  const int64_t pixels = args.num_patches * args.channels * args.size * args.size;
  return int(std::clamp<int64_t>(pixels / (4 * 64 * 64), 1, threads));
}

uintptr_t value_size(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64: return 8;
    case Dtype::kFloat32: return 4;
    case Dtype::kUint8: return 1;
    default: return 2;
  }
}

// Asks for large pages for a large result: where it is fresh memory, its first touch costs less than half.
void advise_large_pages(const ResampleArgs& args) {
#ifdef __linux__
  constexpr uintptr_t kLargePage = uintptr_t(1) << 21;
  const int64_t values = args.num_patches * args.channels * args.size * args.size;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(args.out) + kLargePage - 1) / kLargePage * kLargePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(args.out) + uintptr_t(values) * value_size(args.out_dtype)) /
                        kLargePage * kLargePage;
  // A refusal changes nothing but the time.
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)args;
#endif
}

}  // namespace

std::vector<std::string> cpu_paths() {
  std::vector<std::string> names;
  for (const TileKernels* kernels : all_kernels()) names.push_back(kernels->name);
  names.push_back(kReferencePath);
  return names;
}

std::pair<Status, int64_t> check_patches(const ResampleArgs& args) {
  for (int64_t n = 0; n < args.num_patches; ++n) {
    const Status status = load_patch(args, n).status;
    if (status != Status::kOk) return {status, n};
  }
  return {Status::kOk, -1};
}

void resample_cpu(const ResampleArgs& args, int threads, const std::string& path) {
  const TileKernels* kernels = kernels_for(path);
  advise_large_pages(args);
  const int used = useful_threads(args, threads);
  const int64_t piece = piece_of(args.num_patches, used);
  with_types(args, [&](auto source, auto compute) {
    using S = decltype(source);
    using T = decltype(compute);
    if constexpr (std::is_same<T, float>::value) {
      if (kernels) {
        parallel(args.num_patches, piece, used, [&](Pieces& pieces) { TileWorker<S>(args, *kernels).run(pieces); });
        return;
      }
    }
    parallel_for(args.num_patches, piece, used, [&](int64_t n) {
      const Patch p = load_patch(args, n);
      for (int c = 0; c < args.channels; ++c)
        for (int i = 0; i < args.size; ++i)
          for (int j = 0; j < args.size; ++j) resample_pixel<T, S>(args, p, n, c, i, j);
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
  parallel_for(args.num_images * args.channels, 1, threads, [&](int64_t plane) {
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
