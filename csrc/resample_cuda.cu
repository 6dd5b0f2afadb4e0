// The CUDA launches around resample.h: one thread per patch pixel.
#include "kernels.h"
#include "launch.h"

namespace lesionaug {
namespace {

constexpr int kPixelsPerBlock = 256;

int64_t blocks_per_patch(const ResampleArgs& args) {
  return (int64_t(args.size) * args.size + kPixelsPerBlock - 1) / kPixelsPerBlock;
}

// One block is `kPixelsPerBlock` threads, each a pixel of one patch; its first thread looks the patch up for all.
template <class T, class S>
__global__ void resample_kernel(const ResampleArgs args, const int64_t blocks) {
  __shared__ Patch patch;
  const int64_t n = blockIdx.x / blocks;
  if (threadIdx.x == 0) patch = load_patch(args, n);
  __syncthreads();
  const int64_t pixel = (blockIdx.x % blocks) * blockDim.x + threadIdx.x;
  if (pixel >= int64_t(args.size) * args.size) return;
  const int i = int(pixel / args.size), j = int(pixel % args.size);
  for (int c = 0; c < args.channels; ++c) resample_pixel<T, S>(args, patch, n, c, i, j);
}

// Sums in fixed point: integer addition has no order, so the atomics give the same bits every time.
template <class T>
__global__ void adjoint_kernel(const ResampleArgs args, const int64_t blocks, int64_t* workspace, const double* scale) {
  __shared__ Patch patch;
  const int64_t n = blockIdx.x / blocks;
  if (threadIdx.x == 0) patch = load_patch(args, n);
  __syncthreads();
  const int64_t pixel = (blockIdx.x % blocks) * blockDim.x + threadIdx.x;
  if (pixel >= int64_t(args.size) * args.size || patch.status != Status::kOk) return;
  const int i = int(pixel / args.size), j = int(pixel % args.size);
  const double fixed = *scale;
  double x, y;
  patch_point(patch.map, i, j, x, y);
  for (int c = 0; c < args.channels; ++c) {
    const T value = static_cast<const T*>(args.out)[patch_address(args, n, c, i, j, patch.flip)];
    int64_t* plane = workspace + patch.offset + c * int64_t(patch.height) * patch.width;
    spread(value, patch, x, y, args, [&](int64_t at, T share) {
      atomicAdd(reinterpret_cast<unsigned long long*>(plane + at),
                static_cast<unsigned long long>(llrint(double(share) * fixed)));
    });
  }
}

template <class T>
__global__ void from_fixed_kernel(const int64_t* workspace, const double* scale, T* gradient, int64_t count) {
  const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at < count) gradient[at] = T(double(workspace[at]) / *scale);
}

__global__ void patch_to_image_kernel(const ResampleArgs args, float* matrices) {
  const int64_t n = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n < args.num_patches) patch_to_image_row(args, matrices, n);
}

template <class T>
void adjoint(const ResampleArgs& args, T* gradient, int64_t* workspace, const double* scale, int64_t num_pixels,
             void* stream) {
  const int64_t blocks = blocks_per_patch(args);
  launch("resample_adjoint", adjoint_kernel<T>, args.num_patches * blocks, kPixelsPerBlock, stream, args, blocks,
         workspace, scale);
  launch("resample_adjoint", from_fixed_kernel<T>, (num_pixels + kPixelsPerBlock - 1) / kPixelsPerBlock,
         kPixelsPerBlock, stream, workspace, scale, gradient, num_pixels);
}

}  // namespace

void resample_cuda(const ResampleArgs& args, void* stream) {
  const int64_t blocks = blocks_per_patch(args);
  with_types(args, [&](auto source, auto compute) {
    launch("resample", resample_kernel<decltype(compute), decltype(source)>, args.num_patches * blocks, kPixelsPerBlock,
           stream, args, blocks);
  });
}

void resample_adjoint_cuda(const ResampleArgs& args, void* gradient, int64_t* workspace, const double* scale,
                           int64_t num_pixels, void* stream) {
  if (args.out_dtype == Dtype::kFloat64) {
    adjoint(args, static_cast<double*>(gradient), workspace, scale, num_pixels, stream);
  } else {
    adjoint(args, static_cast<float*>(gradient), workspace, scale, num_pixels, stream);
  }
}

void patch_to_image_cuda(const ResampleArgs& args, float* matrices, void* stream) {
  launch("patch_to_image", patch_to_image_kernel, (args.num_patches + kPixelsPerBlock - 1) / kPixelsPerBlock,
         kPixelsPerBlock, stream, args, matrices);
}

}  // namespace lesionaug
