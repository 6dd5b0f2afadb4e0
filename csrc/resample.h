// The pixel math, once: Keys' cubic kernel, antialiased, ragged images to square patches (docs/definitions.md, 2).
// The CPU file loops over this, the CUDA file launches it; neither has a formula of its own.
#pragma once

#include "geometry.h"
#include "plan.h"

namespace lesionaug {

enum class Border : int { kReflect, kReplicate, kConstant, kRenorm };

constexpr double kMaxSigma = 256.0;  // a source 256 times as fine as the patch; beyond it a patch is refused
constexpr int kCachedTaps = 32;      // weights kept per row of taps; enough up to sigma 7.75

// Pointers are to contiguous memory on the device that runs the call; a null pointer is an argument not given.
struct ResampleArgs {
  // The images: one flat buffer with a table, or dense [num_images, channels, height, width].
  const void* pixels;
  const int64_t* offsets;  // [num_images], or null: dense
  const int32_t* sizes;    // [num_images, 2] height and width, or null: dense
  int64_t num_images;
  int32_t channels, height, width;
  Dtype pixel_dtype;
  // The maps: matrices, lesions with their parameters, or lesions whose parameters are drawn on the way.
  int64_t num_patches;
  const int64_t* image_index;  // [num_patches], or null: 0, 1, 2, ...
  const uint8_t* flip;         // [num_patches], or null: no flips
  const void* matrix;          // [num_patches, 2, 3] float32 or float64, or null
  int32_t matrix_is_double;
  const double* centers;  // [num_images, 2]
  const double* spacing;  // [num_images, 2], or null: square pixels
  const float* angle;     // [num_patches] degrees
  const float* shift;     // [num_patches, 2]
  const float* side;      // [num_patches]
  const int64_t* rows;    // [num_patches] lesion x 2^32 + augmentation, or null
  PlanArgs plan;          // where `rows` is given; what it says of rows is not used
  // How to sample.
  int32_t size;
  int32_t antialias;
  Border border;
  int32_t windowed;
  double a, fill, window_low, window_high, out_low, out_high;
  // The patches, [num_patches, channels, size, size].
  void* out;
  Dtype out_dtype;
};

// One patch, looked up and checked: everything its pixels share.
struct Patch {
  Map map;
  double sigma_x, sigma_y;
  int64_t image, offset;
  int32_t height, width;
  uint8_t flip;
  Status status;
};

LA_HD bool finite(double value) { return value - value == 0; }

LA_HD Patch load_patch(const ResampleArgs& args, int64_t n) {
  Patch p{};
  p.image = args.rows ? args.rows[n] >> 32 : args.image_index ? args.image_index[n] : n;
  if (p.image < 0 || p.image >= args.num_images) {
    p.status = Status::kIndexOutOfRange;
    return p;
  }
  p.height = args.sizes ? args.sizes[2 * p.image] : args.height;
  p.width = args.sizes ? args.sizes[2 * p.image + 1] : args.width;
  p.offset = args.offsets ? args.offsets[p.image] : p.image * args.channels * int64_t(p.height) * p.width;
  p.flip = args.flip ? args.flip[n] : 0;
  Map& m = p.map;
  if (args.matrix && args.matrix_is_double) {
    const double* row = static_cast<const double*>(args.matrix) + 6 * n;
    m = {row[0], row[1], row[2], row[3], row[4], row[5]};
  } else if (args.matrix) {
    const float* row = static_cast<const float*>(args.matrix) + 6 * n;
    m = {row[0], row[1], row[2], row[3], row[4], row[5]};
  } else {
    const Draw drawn = args.rows ? draw(args.plan, p.image, args.rows[n] & 0xFFFFFFFF)
                                 : Draw{args.angle[n], args.shift[2 * n], args.shift[2 * n + 1], args.side[n], p.flip};
    p.flip = drawn.flip;
    const double* center = args.centers + 2 * p.image;
    const double* spacing = args.spacing ? args.spacing + 2 * p.image : nullptr;
    if (!finite(drawn.angle)) {
      p.status = Status::kNotFinite;
      return p;
    }
    m = place({center[0], center[1], spacing ? spacing[0] : 1.0, spacing ? spacing[1] : 1.0, drawn.angle, p.flip,
               drawn.shift_x, drawn.shift_y, drawn.side},
              args.size);
  }
  // No patch point may overflow: this also catches every entry that is not finite itself.
  const double reach_x = (fabs(m.m00) + fabs(m.m01)) * args.size + fabs(m.m02);
  const double reach_y = (fabs(m.m10) + fabs(m.m11)) * args.size + fabs(m.m12);
  if (!finite(reach_x) || !finite(reach_y)) {
    p.status = Status::kNotFinite;
    return p;
  }
  p.sigma_x = args.antialias ? fmax(1.0, hypot(m.m00, m.m01)) : 1.0;
  p.sigma_y = args.antialias ? fmax(1.0, hypot(m.m10, m.m11)) : 1.0;
  if (p.sigma_x > kMaxSigma || p.sigma_y > kMaxSigma) p.status = Status::kSigmaTooLarge;
  return p;
}

template <class T>
LA_HD T keys_inner(T t, T a) {  // of a distance 0 .. 1
  return ((a + 2) * t - (a + 3)) * t * t + 1;
}

template <class T>
LA_HD T keys_outer(T t, T a) {  // of a distance 1 .. 2
  return (((t - 5) * t + 8) * t - 4) * a;
}

template <class T>
LA_HD T keys(T t, T a) {
  t = t < 0 ? -t : t;
  return t < 1 ? keys_inner(t, a) : t < 2 ? keys_outer(t, a) : T(0);
}

// The source pixels along one axis that a sample point weighs, and their weights.
template <class T>
struct Taps {
  int32_t first, count;
  T start, step, a;  // tap i lies at t = (start + i) * step from the sample point, in units of the kernel

  LA_HD Taps(double point, double sigma, int32_t length, Border border, double a_) : step(T(1 / sigma)), a(T(a_)) {
    const double reach = 2 * sigma;
    if (border == Border::kRenorm) {
      point = fmin(fmax(point, 0.0), double(length));
    } else if (!(fabs(point) < 1e9)) {  // far outside: an equal point whose taps fit an int32
      point = border == Border::kReflect ? fmod(point, 2.0 * length) : point < 0 ? -reach - 1 : length + reach + 1;
    }
    first = int32_t(floor(point - 0.5 - reach)) + 1;
    int32_t last = int32_t(ceil(point - 0.5 + reach)) - 1;
    if (border == Border::kRenorm) {
      first = first < 0 ? 0 : first;
      last = last >= length ? length - 1 : last;
    }
    count = last - first + 1;
    start = T(first + 0.5 - point);
  }

  LA_HD T weight(int32_t i) const { return keys((start + T(i)) * step, a); }
};

// Index of the pixel that stands for tap `i`, or -1: the fill value does.
LA_HD int32_t fold(int32_t i, int32_t length, Border border) {
  if (uint32_t(i) < uint32_t(length)) return i;
  if (border == Border::kReplicate) return i < 0 ? 0 : length - 1;
  if (border != Border::kReflect) return -1;
  i %= 2 * length;
  if (i < 0) i += 2 * length;
  return i < length ? i : 2 * length - 1 - i;
}

template <class T>
LA_HD T clamp01(T value) {
  return value < 0 ? T(0) : value > 1 ? T(1) : value;  // NaN passes
}

template <class T>
struct Window {  // sources are clipped and scaled to (0, 1) before they are interpolated
  T low, scale;
  bool on;
  LA_HD T operator()(T value) const { return on ? clamp01((value - low) * scale) : value; }
};

// Calls visit(row, column, weight of the row, weight of the column) for every tap, rows outermost; row or column is -1
// where the fill value counts. Returns through the arguments the sums of the weights.
template <class T, class S>
LA_HD T sample(const S* plane, const Patch& p, double x, double y, const ResampleArgs& args) {
  const Taps<T> across(x, p.sigma_x, p.width, args.border, args.a);
  const Taps<T> down(y, p.sigma_y, p.height, args.border, args.a);
  const Window<T> window{T(args.window_low), T(1 / (args.window_high - args.window_low)), args.windowed != 0};
  const T fill = window(T(args.fill));
  T weights[kCachedTaps];
  T sum_across = 0, sum_down = 0, total = 0;
  for (int32_t j = 0; j < across.count; ++j) {
    const T weight = across.weight(j);
    if (j < kCachedTaps) weights[j] = weight;
    sum_across += weight;
  }
  const bool inside = across.first >= 0 && across.first + across.count <= p.width && across.count <= kCachedTaps;
  for (int32_t i = 0; i < down.count; ++i) {
    const T weight_down = down.weight(i);
    const int32_t row = fold(down.first + i, p.height, args.border);
    T line = 0;
    if (row < 0) {
      line = fill * sum_across;
    } else {
      const S* source = plane + int64_t(row) * p.width;
      if (inside) {  // nearly always: the same sum without the border rule
        for (int32_t j = 0; j < across.count; ++j) line += weights[j] * window(to_compute<T>(source[across.first + j]));
      } else {
        for (int32_t j = 0; j < across.count; ++j) {
          const int32_t column = fold(across.first + j, p.width, args.border);
          const T value = column < 0 ? fill : window(to_compute<T>(source[column]));
          line += (j < kCachedTaps ? weights[j] : across.weight(j)) * value;
        }
      }
    }
    total += weight_down * line;
    sum_down += weight_down;
  }
  return total / (sum_across * sum_down);
}

// The adjoint of `sample` without a window: add(index into the plane, share of `gradient`) for every tap.
template <class T, class Add>
LA_HD void spread(T gradient, const Patch& p, double x, double y, const ResampleArgs& args, Add add) {
  const Taps<T> across(x, p.sigma_x, p.width, args.border, args.a);
  const Taps<T> down(y, p.sigma_y, p.height, args.border, args.a);
  T sum_across = 0, sum_down = 0;
  for (int32_t j = 0; j < across.count; ++j) sum_across += across.weight(j);
  for (int32_t i = 0; i < down.count; ++i) sum_down += down.weight(i);
  const T share = gradient / (sum_across * sum_down);
  for (int32_t i = 0; i < down.count; ++i) {
    const int32_t row = fold(down.first + i, p.height, args.border);
    if (row < 0) continue;
    const T line = down.weight(i) * share;
    for (int32_t j = 0; j < across.count; ++j) {
      const int32_t column = fold(across.first + j, p.width, args.border);
      if (column >= 0) add(int64_t(row) * p.width + column, line * across.weight(j));
    }
  }
}

// The image point of unflipped patch pixel (row i, column j).
LA_HD void patch_point(const Map& m, int i, int j, double& x, double& y) {
  x = m.m00 * (j + 0.5) + m.m01 * (i + 0.5) + m.m02;
  y = m.m10 * (j + 0.5) + m.m11 * (i + 0.5) + m.m12;
}

// Where the value of unflipped patch pixel (i, j) of channel c lies in [num_patches, channels, size, size].
LA_HD int64_t patch_address(const ResampleArgs& args, int64_t n, int c, int i, int j, uint8_t flip) {
  const int row = (flip & 2) ? args.size - 1 - i : i;
  const int column = (flip & 1) ? args.size - 1 - j : j;
  return ((n * args.channels + c) * args.size + row) * args.size + column;
}

// Where a window's (0, 1) goes.
template <class T>
LA_HD T to_out_range(const ResampleArgs& args, T value) {
  return args.windowed ? T(args.out_low) + clamp01(value) * T(args.out_high - args.out_low) : value;
}

template <class T>
LA_HD uint8_t to_uint8(T value) {  // half to even, saturating; NaN becomes 0
  const T rounded = rint(value);
  return rounded >= 255 ? 255 : rounded > 0 ? uint8_t(rounded) : 0;
}

template <class T>
LA_HD void store(const ResampleArgs& args, int64_t address, T value) {
  value = to_out_range(args, value);
  switch (args.out_dtype) {
    case Dtype::kFloat32: static_cast<float*>(args.out)[address] = float(value); break;
    case Dtype::kFloat64: static_cast<double*>(args.out)[address] = double(value); break;
    case Dtype::kFloat16: static_cast<Float16*>(args.out)[address] = to_float16(float(value)); break;
    case Dtype::kBfloat16: static_cast<Bfloat16*>(args.out)[address] = to_bfloat16(float(value)); break;
    default: static_cast<uint8_t*>(args.out)[address] = to_uint8(value);
  }
}

// One pixel of one channel of one patch.
template <class T, class S>
LA_HD void resample_pixel(const ResampleArgs& args, const Patch& p, int64_t n, int c, int i, int j) {
  T value = T(NAN);
  if (p.status == Status::kOk) {
    double x, y;
    patch_point(p.map, i, j, x, y);
    const int64_t plane = p.offset + c * (int64_t(p.height) * p.width);
    value = sample<T>(static_cast<const S*>(args.pixels) + plane, p, x, y, args);
  }
  store(args, patch_address(args, n, c, i, j, p.flip), value);
}

// Calls f with a value of the source type and one of the type to compute in: float64 where source or output is.
template <class F>
void with_types(const ResampleArgs& args, F f) {
  const bool wide = args.out_dtype == Dtype::kFloat64;
  switch (args.pixel_dtype) {
    case Dtype::kInt16: wide ? f(int16_t(), double()) : f(int16_t(), float()); break;
    case Dtype::kUint8: wide ? f(uint8_t(), double()) : f(uint8_t(), float()); break;
    case Dtype::kUint16: wide ? f(uint16_t(), double()) : f(uint16_t(), float()); break;
    case Dtype::kFloat16: wide ? f(Float16(), double()) : f(Float16(), float()); break;
    case Dtype::kBfloat16: wide ? f(Bfloat16(), double()) : f(Bfloat16(), float()); break;
    case Dtype::kFloat32: wide ? f(float(), double()) : f(float(), float()); break;
    case Dtype::kFloat64: f(double(), double()); break;
  }
}

}  // namespace lesionaug
