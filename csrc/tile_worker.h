// How the CPU gets from a call to tiles: which patches the vector kernels can do, what they read, and where it goes.
// Patches of one image are worked on together; those that differ in flips only share one sampling; pixels that are not
// floats, or lie beyond the image, are copied to a stage first. What no kernel can do is left to resample.h.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#include "parallel.h"
#include "resample.h"
#include "tile.h"

namespace lesionaug {

constexpr int64_t kLargestStage = int64_t(1) << 24;   // pixels copied beside an image for one patch, at most
constexpr int64_t kStreamedBytes = int64_t(1) << 23;  // outputs from this size on are written past the caches
constexpr int kRowsAtOnce = 64;

// Half-open rectangle of an image's pixels; may lie outside it.
struct Rectangle {
  int64_t left, top, right, bottom;

  int64_t width() const { return right - left; }
  int64_t area() const { return (right - left) * (bottom - top); }
  bool inside(int64_t columns, int64_t rows) const {
    return left >= 0 && top >= 0 && right <= columns && bottom <= rows;
  }
  Rectangle with(const Rectangle& other) const {
    return {std::min(left, other.left), std::min(top, other.top), std::max(right, other.right),
            std::max(bottom, other.bottom)};
  }
};

// One patch on its way through the vector kernels.
struct Job {
  Patch patch;
  int32_t taps_x, taps_y;
  Rectangle taps;  // all taps of all its pixels
  bool fast;       // false: left to the loop over resample.h
  bool direct;     // fast, and the image is read where it lies

  bool plain() const { return patch.sigma_x == 1 && patch.sigma_y == 1; }
};

// A rectangle of an image as the kernels read it.
struct Plane {
  const float* pixels;
  int64_t stride;
  Rectangle where;
};

// Where the taps of the pixels of one axis lie, with a margin for the rounding of positions.
inline void tap_range(double from_columns, double from_rows, double offset, double sigma, int32_t taps, int size,
                      double& low, double& high) {
  const double near = 0.5, far = size - 0.5;
  low = offset + std::min(from_columns * near, from_columns * far) + std::min(from_rows * near, from_rows * far);
  high = offset + std::max(from_columns * near, from_columns * far) + std::max(from_rows * near, from_rows * far);
  const double reach = 2 * sigma;  // the first tap is the next pixel after point - reach
  low = std::floor(low - 0.5 - reach - 1e-3) + 1;
  high = std::floor(high - 0.5 - reach + 1e-3) + 1 + taps;
}

// `as_is`: pixels inside the image can be read where they lie.
inline Job plan_job(const ResampleArgs& args, int64_t n, bool as_is) {
  Job job{};
  job.patch = load_patch(args, n);
  const Patch& p = job.patch;
  if (p.status != Status::kOk) return job;
  const bool plain = job.plain();
  job.taps_x = plain ? 4 : int32_t(std::floor(4 * p.sigma_x)) + 1;
  job.taps_y = plain ? 4 : int32_t(std::floor(4 * p.sigma_y)) + 1;
  if (job.taps_x > kTileTaps || job.taps_y > kTileTaps) return job;
  double left, top, right, bottom;
  tap_range(p.map.m00, p.map.m01, p.map.m02, p.sigma_x, job.taps_x, args.size, left, right);
  tap_range(p.map.m10, p.map.m11, p.map.m12, p.sigma_y, job.taps_y, args.size, top, bottom);
  if (!(std::min(left, top) > -1e8 && std::max(right, bottom) < 1e8)) return job;
  job.taps = {int64_t(left), int64_t(top), int64_t(right), int64_t(bottom)};
  const bool inside = job.taps.inside(p.width, p.height);
  job.direct = as_is && inside && (job.taps.bottom - job.taps.top) * int64_t(p.width) < INT32_MAX;
  job.fast = job.direct || (job.taps.area() <= kLargestStage && (inside || args.border != Border::kRenorm));
  return job;
}

inline bool same_sampling(const Job& a, const Job& b) {
  const Map &m = a.patch.map, &o = b.patch.map;
  return a.patch.image == b.patch.image && m.m00 == o.m00 && m.m01 == o.m01 && m.m02 == o.m02 && m.m10 == o.m10 &&
         m.m11 == o.m11 && m.m12 == o.m12;
}

// Memory aligned to 64 bytes that grows and is not cleared.
template <class T>
class Scratch {
 public:
  T* get(int64_t count) {
    if (count > size_) {
      memory_.reset();
      memory_.reset(static_cast<T*>(std::aligned_alloc(64, (size_t(count) * sizeof(T) + 63) / 64 * 64)));
      if (!memory_) throw std::bad_alloc();
      size_ = count;
    }
    return memory_.get();
  }
  T* data() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> memory_;
  int64_t size_ = 0;
};

// Makes tiles, and holds the tables of their columns and rows: one tile at a time.
class TileMaker {
 public:
  explicit TileMaker(const ResampleArgs& args)
      : args_(args), padded_((args.size + kTileColumns - 1) / kTileColumns * kTileColumns) {}

  int32_t padded() const { return padded_; }

  // `step`: see Tile.
  Tile make(const Job& job, const Plane& plane, int32_t step, const TileKernels& kernels) {
    const Map& m = job.patch.map;
    const Tile tile{plane.pixels,
                    int32_t(plane.stride),
                    step,
                    int32_t(plane.where.left),
                    int32_t(plane.where.top),
                    m.m00,
                    m.m01,
                    m.m02,
                    m.m10,
                    m.m11,
                    m.m12,
                    args_.size,
                    padded_,
                    job.patch.sigma_x,
                    job.patch.sigma_y,
                    job.taps_x,
                    job.taps_y,
                    args_.a,
                    {offset_.get(2 * padded_), rest_.get(4 * padded_), rest_.data() + padded_},
                    {offset_.data() + padded_, rest_.data() + 2 * padded_, rest_.data() + 3 * padded_}};
    // A shift leaves the columns as they are.
    const bool same = tile.m00 == made_.m00 && tile.m10 == made_.m10 && tile.stride == made_.stride &&
                      (tile.step != 0) == (made_.step != 0);
    kernels.prepare(tile, !same);
    made_ = tile;
    return tile;
  }

 private:
  const ResampleArgs& args_;
  const int32_t padded_;
  Tile made_{};  // the last, none yet: its stride is 0
  Scratch<uint32_t> offset_;
  Scratch<float> rest_;
};

// The kernels called `path`; the fastest for "", null for the loop over resample.h. Throws for an unknown path.
const TileKernels* kernels_for(const std::string& path);

// What one thread needs to work on pieces of a call with sources of type S.
template <class S>
class TileWorker {
 public:
  // `stream`: results so large that the caches cannot hold them may be written past these.
  TileWorker(const ResampleArgs& args, const TileKernels& kernels, bool stream)
      : args_(args),
        kernels_(kernels),
        maker_(args),
        padded_(maker_.padded()),
        stream_(stream && args.out_dtype == Dtype::kFloat32 &&
                args.num_patches * args.channels * args.size * args.size * int64_t(sizeof(float)) >= kStreamedBytes) {}

  void run(Pieces& pieces) {
    std::vector<Job> jobs;
    for (int64_t first, last; pieces.next(first, last);) {
      jobs.clear();
      for (int64_t n = first; n < last; ++n) jobs.push_back(plan_job(args_, n, kFloat && !args_.windowed));
      for (size_t k = 0; k < jobs.size();) {  // patches of one image together
        size_t end = k + 1;
        while (end < jobs.size() && jobs[end].patch.image == jobs[k].patch.image) ++end;
        for (int c = 0; c < args_.channels; ++c) of_one_plane(jobs.data() + k, int64_t(end - k), first + int64_t(k), c);
        k = end;
      }
    }
    if (stream_) kernels_.fence();
  }

 private:
  const ResampleArgs& args_;
  const TileKernels& kernels_;
  TileMaker maker_;
  const int32_t padded_;
  const bool stream_;
  Scratch<float> stage_, planes_, rows_;
  Scratch<uint8_t> narrow_;
  Plane cubics_{};
  int32_t cubics_step_ = 0;

  static constexpr bool kFloat = std::is_same<S, float>::value;

  void of_one_plane(const Job* jobs, int64_t count, int64_t first, int c) {
    const bool cubics = prepare_cubics(jobs, count, c);
    const auto staged = [&](const Job& job) { return job.fast && !job.direct && !(cubics && job.plain()); };
    // Copies what lies around several patches once, where that is less than around each.
    Rectangle all{};
    int64_t areas = 0;
    for (int64_t k = 0; k < count; ++k) {
      if (!staged(jobs[k])) continue;
      all = areas ? all.with(jobs[k].taps) : jobs[k].taps;
      areas += jobs[k].taps.area();
    }
    const bool together = areas > 0 && all.area() <= areas && all.area() <= kLargestStage;
    if (together) fill_stage(jobs[0].patch, c, all);
    for (int64_t k = 0, end; k < count; k = end) {
      end = end_of_sampling(jobs, k, count);
      if (!jobs[k].fast) {
        for (; k < end; ++k)
          for (int i = 0; i < args_.size; ++i)
            for (int j = 0; j < args_.size; ++j) resample_pixel<float, S>(args_, jobs[k].patch, first + k, c, i, j);
      } else if (cubics && jobs[k].plain()) {
        sample(jobs + k, end - k, first + k, c, cubics_, cubics_step_);
      } else if (jobs[k].direct) {
        sample(jobs + k, end - k, first + k, c, in_image(jobs[k].patch, c, jobs[k].taps), 0);
      } else {
        if (!together) fill_stage(jobs[k].patch, c, jobs[k].taps);
        const Rectangle& where = together ? all : jobs[k].taps;
        sample(jobs + k, end - k, first + k, c, {stage_.data(), where.width(), where}, 0);
      }
    }
  }

  static int64_t end_of_sampling(const Job* jobs, int64_t k, int64_t count) {
    int64_t end = k + 1;
    while (end < count && same_sampling(jobs[k], jobs[end])) ++end;
    return end;
  }

  // Works out the cubics along y around all classic patches in advance, where that is less work than for each of their
  // pixels. What comes out of a patch is the same.
  bool prepare_cubics(const Job* jobs, int64_t count, int c) {
    Rectangle all{};
    int64_t samplings = 0;
    bool direct = true;
    for (int64_t k = 0; k < count; k = end_of_sampling(jobs, k, count)) {
      if (!jobs[k].fast || !jobs[k].plain()) continue;
      all = samplings ? all.with(jobs[k].taps) : jobs[k].taps;
      direct = direct && jobs[k].direct;
      ++samplings;
    }
    if (!samplings || all.area() > std::min(samplings * args_.size * args_.size, kernels_.most_coefficients))
      return false;
    if (!direct) fill_stage(jobs[0].patch, c, all);
    const Plane source = direct ? in_image(jobs[0].patch, c, all) : Plane{stage_.data(), all.width(), all};
    cubics_step_ = int32_t((all.width() + 15) / 16 | 1) * 16;  // odd, so that rows do not meet in the caches
    const int64_t height = all.bottom - all.top;
    float* planes = planes_.get((height - 3) * 4 * cubics_step_);
    kernels_.coefficients(source.pixels, source.stride, int(all.width()), int(height), float(args_.a), planes,
                          cubics_step_);
    cubics_ = {planes, 4 * int64_t(cubics_step_), all};
    return true;
  }

  // A rectangle that lies inside an image of floats.
  Plane in_image(const Patch& p, int c, const Rectangle& where) const {
    const float* plane = static_cast<const float*>(args_.pixels) + p.offset + c * int64_t(p.height) * p.width;
    return {plane + where.top * p.width + where.left, p.width, where};
  }

  // A rectangle of a plane as floats, scaled by the window, with the border's values where it lies outside.
  void fill_stage(const Patch& p, int c, const Rectangle& r) {
    const S* plane = static_cast<const S*>(args_.pixels) + p.offset + c * int64_t(p.height) * p.width;
    const int64_t width = r.width();
    float* target = stage_.get(r.area() + 16);
    const int64_t left = std::clamp<int64_t>(-r.left, 0, width);
    const int64_t right = std::clamp<int64_t>(p.width - r.left, left, width);
    for (int64_t y = r.top; y < r.bottom; ++y, target += width) {
      const int32_t row = fold(int32_t(y), p.height, args_.border);
      if (row < 0) {
        std::fill(target, target + width, float(args_.fill));
        continue;
      }
      const S* source = plane + int64_t(row) * p.width;
      for (int64_t k = 0; k < left; ++k) target[k] = outside(source, r.left + k, p.width);
      for (int64_t k = left; k < right; ++k) target[k] = to_compute<float>(source[r.left + k]);
      for (int64_t k = right; k < width; ++k) target[k] = outside(source, r.left + k, p.width);
    }
    if (args_.windowed) {
      const float low = float(args_.window_low), scale = float(1 / (args_.window_high - args_.window_low));
      kernels_.window(stage_.data(), r.area(), low, scale, 0, 1);
    }
  }

  float outside(const S* source, int64_t column, int32_t width) const {
    const int32_t k = fold(int32_t(column), width, args_.border);
    return k < 0 ? float(args_.fill) : to_compute<float>(source[k]);
  }

  // Samples once and stores `count` patches that differ in their flips only. `step`: see Tile.
  void sample(const Job* jobs, int64_t count, int64_t first, int c, const Plane& plane, int32_t step) {
    const Tile tile = maker_.make(jobs[0], plane, step, kernels_);
    for (int row = 0; row < args_.size; row += kRowsAtOnce) {
      const int end = std::min(row + kRowsAtOnce, args_.size);
      float* rows = rows_.get(int64_t(kRowsAtOnce) * padded_);
      kernels_.sample(tile, row, end, rows);
      if (args_.windowed) {
        const float span = float(args_.out_high - args_.out_low);
        kernels_.window(rows, int64_t(end - row) * padded_, 0, 1, float(args_.out_low), span);
      }
      for (int64_t k = 0; k < count; ++k) store_rows(rows, row, end, first + k, c, jobs[k].patch.flip);
    }
  }

  void store_rows(const float* rows, int row, int end, int64_t n, int c, uint8_t flip) {
    const int64_t step = (flip & 2) ? -int64_t(args_.size) : args_.size;
    const int64_t address = patch_address(args_, n, c, row, 0, flip & 2);
    const bool mirror = flip & 1;
    switch (args_.out_dtype) {
      case Dtype::kFloat16: return store_narrow<uint16_t>(rows, end - row, address, step, mirror, Narrow::kFloat16);
      case Dtype::kBfloat16: return store_narrow<uint16_t>(rows, end - row, address, step, mirror, Narrow::kBfloat16);
      case Dtype::kUint8: return store_narrow<uint8_t>(rows, end - row, address, step, mirror, Narrow::kUint8);
      default:
        kernels_.copy(static_cast<float*>(args_.out) + address, step, rows, end - row, args_.size, padded_, mirror,
                      stream_);
    }
  }

  template <class U>
  void store_narrow(const float* rows, int count, int64_t address, int64_t step, bool mirror, Narrow type) {
    U* from = reinterpret_cast<U*>(narrow_.get(int64_t(kRowsAtOnce) * padded_ * int64_t(sizeof(U))));
    kernels_.narrow(rows, int64_t(count) * padded_, type, from);
    U* target = static_cast<U*>(args_.out) + address;
    for (int i = 0; i < count; ++i, target += step, from += padded_)
      mirror ? std::reverse_copy(from, from + args_.size, target) : std::copy(from, from + args_.size, target);
  }
};

}  // namespace lesionaug
