// The tiled CUDA launch: a block works on a square of a patch, from a copy of the source pixels below it in shared
// memory; patches that differ in their flips only share one sampling, and four neighbours leave in one store. Positions
// are split into whole pixels and a rest, as on the CPU (tile_kernels.h). What it cannot do is left to resample.h.
#include "kernels.h"
#include "launch.h"

namespace lesionaug {
namespace {

#define LA_DEVICE __device__ __forceinline__

constexpr int kThreads = 256;
constexpr int kEdge = 32;  // patch pixels per side of a block's square
constexpr int kQuads = kEdge / 4;
constexpr int kShared = 7168;  // source pixels that a block keeps: 28 KiB, three blocks to an SM
constexpr int kMostTaps = 16;  // along x; sigma below 4
constexpr int kGroup = 4;      // patches per block in large calls: the plan draws one and its three flips in a row

struct Split {
  int32_t whole;
  float rest;  // in [0, 1)
};

LA_DEVICE Split split(double value) {
  const double whole = floor(value);
  const float rest = float(value - whole);
  return rest < 1.0f ? Split{int32_t(whole), rest} : Split{int32_t(whole) + 1, 0.0f};
}

LA_DEVICE Split add(Split a, Split b) {
  const float rest = a.rest + b.rest;
  return rest < 1.0f ? Split{a.whole + b.whole, rest} : Split{a.whole + b.whole + 1, rest - 1.0f};
}

struct TiledJob {
  Patch patch;
  int32_t taps_x, taps_y;
  int32_t edge;  // patch pixels per side whose source fits in shared memory; 0: read it where it lies
};

// Depends on the patch alone, so its bits do not depend on the call it is part of.
LA_CALL __device__ void make_job(const ResampleArgs& args, int64_t n, TiledJob& job) {
  job.patch = load_patch(args, n);
  job.taps_x = job.taps_y = job.edge = 0;
  const Patch& p = job.patch;
  const Map& m = p.map;
  if (p.status != Status::kOk) return;
  const bool plain = p.sigma_x == 1 && p.sigma_y == 1;
  job.taps_x = plain ? 4 : int32_t(4 * p.sigma_x) + 1;
  job.taps_y = plain ? 4 : int32_t(4 * p.sigma_y) + 1;
  const double farthest = fmax((fabs(m.m00) + fabs(m.m01)) * args.size + fabs(m.m02),
                               (fabs(m.m10) + fabs(m.m11)) * args.size + fabs(m.m12));
  if (job.taps_x > kMostTaps || !(farthest < 1e8)) return;
  for (int edge = kEdge; edge >= 8; edge /= 2) {
    const double width = (fabs(m.m00) + fabs(m.m01)) * (edge - 1) + job.taps_x + 3;  // 3: rounding, and an odd stride
    const double height = (fabs(m.m10) + fabs(m.m11)) * (edge - 1) + job.taps_y + 2;
    if (width * height <= kShared) {
      job.edge = edge;
      break;
    }
  }
  if (args.border == Border::kRenorm && job.edge) {  // its sums differ from pixel to pixel where taps fall outside
    const double far = args.size - 0.5;
    const double low_x = fmin(m.m00 * 0.5, m.m00 * far) + fmin(m.m01 * 0.5, m.m01 * far) + m.m02;
    const double high_x = fmax(m.m00 * 0.5, m.m00 * far) + fmax(m.m01 * 0.5, m.m01 * far) + m.m02;
    const double low_y = fmin(m.m10 * 0.5, m.m10 * far) + fmin(m.m11 * 0.5, m.m11 * far) + m.m12;
    const double high_y = fmax(m.m10 * 0.5, m.m10 * far) + fmax(m.m11 * 0.5, m.m11 * far) + m.m12;
    const double reach_x = 2 * p.sigma_x + 2, reach_y = 2 * p.sigma_y + 2;
    if (low_x < reach_x || high_x > p.width - reach_x || low_y < reach_y || high_y > p.height - reach_y) job.edge = 0;
  }
}

LA_DEVICE bool same_sampling(const Patch& a, const Patch& b) {
  return a.status == b.status && a.image == b.image && a.map.m00 == b.map.m00 && a.map.m01 == b.map.m01 &&
         a.map.m02 == b.map.m02 && a.map.m10 == b.map.m10 && a.map.m11 == b.map.m11 && a.map.m12 == b.map.m12;
}

// The columns and rows of a block's square: add one of each for the first tap of a pixel, along x and along y.
struct Tables {
  Split column_x[kEdge], column_y[kEdge], row_x[kEdge], row_y[kEdge];
};

LA_DEVICE void fill_tables(Tables& tables, const Patch& p, int left, int top, int thread) {
  const Map& m = p.map;
  if (thread < kEdge) {
    const double column = left + thread + 0.5;
    tables.column_x[thread] = split(m.m00 * column);
    tables.column_y[thread] = split(m.m10 * column);
  } else if (thread < 2 * kEdge) {
    const double row = top + (thread - kEdge) + 0.5;
    tables.row_x[thread - kEdge] = split(m.m01 * row + m.m02 + 0.5 - 2 * p.sigma_x);
    tables.row_y[thread - kEdge] = split(m.m11 * row + m.m12 + 0.5 - 2 * p.sigma_y);
  }
}

// The source below a part of the square, `edge` pixels per side from (row, column) of it.
struct Footprint {
  int32_t left, top, width, height, stride;
};

LA_DEVICE Footprint footprint(const Tables& t, const TiledJob& job, int row, int column) {
  const int last_row = row + job.edge - 1, last_column = column + job.edge - 1;
  const int32_t x[4] = {add(t.column_x[column], t.row_x[row]).whole, add(t.column_x[column], t.row_x[last_row]).whole,
                        add(t.column_x[last_column], t.row_x[row]).whole,
                        add(t.column_x[last_column], t.row_x[last_row]).whole};
  const int32_t y[4] = {add(t.column_y[column], t.row_y[row]).whole, add(t.column_y[column], t.row_y[last_row]).whole,
                        add(t.column_y[last_column], t.row_y[row]).whole,
                        add(t.column_y[last_column], t.row_y[last_row]).whole};
  int32_t right = x[0], bottom = y[0];
  Footprint f{x[0], y[0], 0, 0, 0};
  for (int k = 1; k < 4; ++k) {  // positions rise or fall along rows and columns: the corners are the extremes
    f.left = x[k] < f.left ? x[k] : f.left;
    f.top = y[k] < f.top ? y[k] : f.top;
    right = x[k] > right ? x[k] : right;
    bottom = y[k] > bottom ? y[k] : bottom;
  }
  f.width = right - f.left + job.taps_x;
  f.height = bottom - f.top + job.taps_y;
  f.stride = f.width | 1;
  return f;
}

template <class S>
LA_CALL __device__ void load_footprint(float* pixels, const Footprint& f, const ResampleArgs& args, const Patch& p,
                                       int c, int thread) {
  const S* plane = static_cast<const S*>(args.pixels) + p.offset + c * (int64_t(p.height) * p.width);
  const Window<float> window{float(args.window_low), float(1 / (args.window_high - args.window_low)),
                             args.windowed != 0};
  const float fill = window(float(args.fill));
  for (int y = thread / 32; y < f.height; y += kThreads / 32) {
    const int32_t row = fold(f.top + y, p.height, args.border);
    const S* source = plane + int64_t(row) * p.width;
    for (int x = thread % 32; x < f.width; x += 32) {
      const int32_t column = fold(f.left + x, p.width, args.border);
      pixels[y * f.stride + x] = row < 0 || column < 0 ? fill : window(to_compute<float>(source[column]));
    }
  }
}

// One pixel from shared memory; kTaps: 4, or at least taps_x.
template <int kTaps>
LA_DEVICE float sample_tile(const float* source, int32_t stride, float rest_x, float rest_y, const TiledJob& job,
                            float a) {
  if constexpr (kTaps == 4) {
    const float wx[4] = {keys_outer(1 + rest_x, a), keys_inner(rest_x, a), keys_inner(1 - rest_x, a),
                         keys_outer(2 - rest_x, a)};
    const float wy[4] = {keys_outer(1 + rest_y, a), keys_inner(rest_y, a), keys_inner(1 - rest_y, a),
                         keys_outer(2 - rest_y, a)};
    float total = 0;
    LA_UNROLL
    for (int i = 0; i < 4; ++i, source += stride)
      total += wy[i] * (wx[0] * source[0] + wx[1] * source[1] + wx[2] * source[2] + wx[3] * source[3]);
    return total;
  }
  const float step_x = float(1 / job.patch.sigma_x), step_y = float(1 / job.patch.sigma_y);
  float wx[kTaps], sum_x = 0, sum_y = 0, total = 0;
  LA_UNROLL
  for (int k = 0; k < kTaps; ++k) {
    wx[k] = 0;
    if (k < job.taps_x) wx[k] = keys((k + 1 - rest_x) * step_x - 2, a);
    sum_x += wx[k];
  }
  for (int i = 0; i < job.taps_y; ++i, source += stride) {
    const float wy = keys((i + 1 - rest_y) * step_y - 2, a);
    float line = 0;
    LA_UNROLL
    for (int k = 0; k < kTaps; ++k)
      if (k < job.taps_x) line += wx[k] * source[k];
    total += wy * line;
    sum_y += wy;
  }
  return total / (sum_x * sum_y);
}

// As above for the most taps; a call, so that its weights take no registers from the others.
LA_CALL __device__ float sample_many_taps(const float* source, int32_t stride, float rest_x, float rest_y,
                                          const TiledJob& job, float a) {
  return sample_tile<kMostTaps>(source, stride, rest_x, rest_y, job, a);
}

template <int kTaps>
LA_DEVICE float tile_pixel(const float* pixels, const Footprint& f, const Tables& t, const TiledJob& job, int i, int j,
                           float a) {
  const Split x = add(t.column_x[j], t.row_x[i]), y = add(t.column_y[j], t.row_y[i]);
  const float* source = pixels + (y.whole - f.top) * f.stride + (x.whole - f.left);
  if constexpr (kTaps == kMostTaps) return sample_many_taps(source, f.stride, x.rest, y.rest, job, a);
  return sample_tile<kTaps>(source, f.stride, x.rest, y.rest, job, a);
}

// Four neighbours of a row at once, mirrored where the flip says so. `address`: of the leftmost as it is stored.
LA_DEVICE void store_quad(const ResampleArgs& args, int64_t address, const float (&values)[4], bool mirror) {
  struct alignas(16) Floats {
    float v[4];
  } floats;
  struct alignas(8) Shorts {
    uint16_t v[4];
  } shorts;
  struct alignas(4) Bytes {
    uint8_t v[4];
  } bytes;
  LA_UNROLL
  for (int k = 0; k < 4; ++k) floats.v[k] = to_out_range(args, values[mirror ? 3 - k : k]);
  switch (args.out_dtype) {
    case Dtype::kFloat32: *reinterpret_cast<Floats*>(static_cast<float*>(args.out) + address) = floats; break;
    case Dtype::kFloat16:
      LA_UNROLL
      for (int k = 0; k < 4; ++k) shorts.v[k] = to_float16(floats.v[k]).bits;
      *reinterpret_cast<Shorts*>(static_cast<uint16_t*>(args.out) + address) = shorts;
      break;
    case Dtype::kBfloat16:
      LA_UNROLL
      for (int k = 0; k < 4; ++k) shorts.v[k] = to_bfloat16(floats.v[k]).bits;
      *reinterpret_cast<Shorts*>(static_cast<uint16_t*>(args.out) + address) = shorts;
      break;
    default:
      LA_UNROLL
      for (int k = 0; k < 4; ++k) bytes.v[k] = to_uint8(floats.v[k]);
      *reinterpret_cast<Bytes*>(static_cast<uint8_t*>(args.out) + address) = bytes;
  }
}

// The pixels of the square of one patch, each by itself.
template <class S>
LA_CALL __device__ void sample_plain(const ResampleArgs& args, const Patch& patch, int64_t n, int left, int top,
                                     int thread) {
  for (int pixel = thread; pixel < kEdge * kEdge; pixel += kThreads) {
    const int i = top + pixel / kEdge, j = left + pixel % kEdge;
    if (i >= args.size || j >= args.size) continue;
    for (int c = 0; c < args.channels; ++c) resample_pixel<float, S>(args, patch, n, c, i, j);
  }
}

// The pixels of one loaded part of the square, for `count` patches that share the sampling.
template <int kTaps>
LA_DEVICE void sample_part(const ResampleArgs& args, const TiledJob* jobs, int count, int64_t first, int c, int left,
                           int top, int row, int column, const float* pixels, const Footprint& f, const Tables& tables,
                           int thread) {
  const TiledJob& job = jobs[0];
  const float a = float(args.a);
  if (job.edge == kEdge) {
    const int i = thread / kQuads, j = thread % kQuads * 4;
    if (top + i >= args.size || left + j >= args.size) return;
    float values[4];
    LA_UNROLL
    for (int k = 0; k < 4; ++k) values[k] = tile_pixel<kTaps>(pixels, f, tables, job, i, j + k, a);
    for (int q = 0; q < count; ++q) {
      const uint8_t flip = jobs[q].patch.flip;
      const bool mirror = flip & 1;
      store_quad(args, patch_address(args, first + q, c, top + i, left + j + (mirror ? 3 : 0), flip), values, mirror);
    }
    return;
  }
  for (int pixel = thread; pixel < job.edge * job.edge; pixel += kThreads) {
    const int i = row + pixel / job.edge, j = column + pixel % job.edge;
    if (top + i >= args.size || left + j >= args.size) continue;
    const float value = tile_pixel<kTaps>(pixels, f, tables, job, i, j, a);
    for (int q = 0; q < count; ++q)
      store(args, patch_address(args, first + q, c, top + i, left + j, jobs[q].patch.flip), value);
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads, 3)
    tiled_kernel(const __grid_constant__ ResampleArgs args, const int64_t squares, const int group) {
  __shared__ TiledJob jobs[kGroup];
  __shared__ Tables tables;
  __shared__ float pixels[kShared];
  const int thread = int(threadIdx.x);
  const int64_t first = int64_t(blockIdx.x) / squares * group;
  const int count = int(args.num_patches - first < group ? args.num_patches - first : group);
  const int square = int(int64_t(blockIdx.x) % squares), across = (args.size + kEdge - 1) / kEdge;
  const int left = square % across * kEdge, top = square / across * kEdge;
  if (thread < count) make_job(args, first + thread, jobs[thread]);
  __syncthreads();
  for (int k = 0, end; k < count; k = end) {
    end = k + 1;
    while (end < count && same_sampling(jobs[k].patch, jobs[end].patch)) ++end;
    const TiledJob& job = jobs[k];
    if (!job.edge) {
      for (int q = k; q < end; ++q) sample_plain<S>(args, jobs[q].patch, first + q, left, top, thread);
      continue;
    }
    fill_tables(tables, job.patch, left, top, thread);
    __syncthreads();
    for (int c = 0; c < args.channels; ++c)
      for (int row = 0; row < kEdge && top + row < args.size; row += job.edge)
        for (int column = 0; column < kEdge && left + column < args.size; column += job.edge) {
          const Footprint f = footprint(tables, job, row, column);
          load_footprint<S>(pixels, f, args, job.patch, c, thread);
          __syncthreads();
          if (job.patch.sigma_x == 1 && job.patch.sigma_y == 1) {
            sample_part<4>(args, jobs + k, end - k, first + k, c, left, top, row, column, pixels, f, tables, thread);
          } else if (job.taps_x <= 8) {
            sample_part<8>(args, jobs + k, end - k, first + k, c, left, top, row, column, pixels, f, tables, thread);
          } else {
            sample_part<kMostTaps>(args, jobs + k, end - k, first + k, c, left, top, row, column, pixels, f, tables,
                                   thread);
          }
          __syncthreads();  // before the next part overwrites the pixels
        }
  }
}

template <class S>
void launch_tiled(const ResampleArgs& args, void* stream) {
  const int64_t across = (args.size + kEdge - 1) / kEdge, squares = across * across;
  const int group = args.num_patches >= 1024 * kGroup ? kGroup : 1;  // few patches: a block for each part of each
  launch("resample", tiled_kernel<S>, (args.num_patches + group - 1) / group * squares, kThreads, stream, args, squares,
         group);
}

}  // namespace

bool resample_tiled_cuda(const ResampleArgs& args, void* stream) {
  if (args.size % 4 != 0 || reinterpret_cast<uintptr_t>(args.out) % 16 != 0) return false;  // quads need both
  if (args.out_dtype == Dtype::kFloat64) return false;
  switch (args.pixel_dtype) {
    case Dtype::kInt16: launch_tiled<int16_t>(args, stream); break;
    case Dtype::kUint8: launch_tiled<uint8_t>(args, stream); break;
    case Dtype::kUint16: launch_tiled<uint16_t>(args, stream); break;
    case Dtype::kFloat16: launch_tiled<Float16>(args, stream); break;
    case Dtype::kBfloat16: launch_tiled<Bfloat16>(args, stream); break;
    case Dtype::kFloat32: launch_tiled<float>(args, stream); break;
    case Dtype::kFloat64: return false;
  }
  return true;
}

}  // namespace lesionaug
