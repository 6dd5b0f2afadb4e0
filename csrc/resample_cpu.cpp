// The CPU loops: the workers of tile_worker.h, or resample.h pixel by pixel.
#include <algorithm>
#include <atomic>
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

// Asks for large pages for a large result: where it is fresh memory, its first touch costs less than half. Returns
// whether it is: then the system clears it on the way, and writing past the caches would wait for that.
bool advise_large_pages(const ResampleArgs& args) {
#ifdef __linux__
  constexpr uintptr_t kLargePage = uintptr_t(1) << 21;
  const int64_t values = args.num_patches * args.channels * args.size * args.size;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(args.out) + kLargePage - 1) / kLargePage * kLargePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(args.out) + uintptr_t(values) * value_size(args.out_dtype)) /
                        kLargePage * kLargePage;
  if (begin >= end) return false;
  // A refusal changes nothing but the time.
  (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  unsigned char touched = 1;
  return mincore(reinterpret_cast<void*>(end - kLargePage), 1, &touched) == 0 && !(touched & 1);
#else
  (void)args;
  return false;
#endif
}

}  // namespace

const TileKernels* kernels_for(const std::string& path) {
  if (path == kReferencePath) return nullptr;
  for (const TileKernels* kernels : all_kernels())
    if (path.empty() || path == kernels->name) return kernels;
  throw std::invalid_argument("no CPU path '" + path + "' on this processor");
}

std::vector<std::string> cpu_paths() {
  std::vector<std::string> names;
  for (const TileKernels* kernels : all_kernels()) names.push_back(kernels->name);
  names.push_back(kReferencePath);
  return names;
}

std::pair<Status, int64_t> check_patches(const ResampleArgs& args, int threads) {
  constexpr int64_t kPiece = 2048;  // about as long as it takes to start a thread
  std::atomic<int64_t> first_bad{args.num_patches};
  parallel_for(args.num_patches, kPiece, threads, [&](int64_t n) {
    if (load_patch(args, n).status == Status::kOk) return;
    int64_t known = first_bad;
    while (n < known && !first_bad.compare_exchange_weak(known, n)) {
    }
  });
  if (first_bad == args.num_patches) return {Status::kOk, -1};
  return {load_patch(args, first_bad).status, first_bad};
}

void resample_cpu(const ResampleArgs& args, int threads, const std::string& path) {
  const TileKernels* kernels = kernels_for(path);
  const bool fresh = advise_large_pages(args);
  const int used = useful_threads(args, threads);
  const int64_t piece = piece_of(args.num_patches, used);
  with_types(args, [&](auto source, auto compute) {
    using S = decltype(source);
    using T = decltype(compute);
    if constexpr (std::is_same<T, float>::value) {
      if (kernels) {
        parallel(args.num_patches, piece, used,
                 [&](Pieces& pieces) { TileWorker<S>(args, *kernels, !fresh).run(pieces); });
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

void patch_to_image_cpu(const ResampleArgs& args, float* matrices) {
  for (int64_t n = 0; n < args.num_patches; ++n) patch_to_image_row(args, matrices, n);
}

}  // namespace lesionaug
