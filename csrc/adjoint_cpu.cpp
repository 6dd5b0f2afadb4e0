// The adjoint on the CPU: gradients of patches to gradients of images, by the kernels of tile_adjoint.h or pixel by
// pixel by resample.h. One thread owns an image, and takes its patches in their order: sums do not depend on threads.
#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "tile_worker.h"

namespace lesionaug {
namespace {

constexpr int64_t kSummedInFloat = 16;  // patches whose gradients are summed up in float32 before float64

// The patches sorted by image: those of image k are patches[start[k]] .. patches[start[k + 1] - 1].
struct PatchesByImage {
  std::vector<int64_t> start, patches;

  explicit PatchesByImage(const ResampleArgs& args) : start(args.num_images + 1, 0), patches(args.num_patches) {
    const auto image = [&](int64_t n) { return args.image_index ? args.image_index[n] : n; };
    for (int64_t n = 0; n < args.num_patches; ++n) ++start[image(n) + 1];
    for (int64_t k = 0; k < args.num_images; ++k) start[k + 1] += start[k];
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t n = 0; n < args.num_patches; ++n) patches[next[image(n)]++] = n;
  }
};

// What one thread needs to sum the gradients of planes up. T: type of the gradients.
template <class T>
class AdjointWorker {
 public:
  AdjointWorker(const ResampleArgs& args, const TileKernels* kernels) : args_(args), kernels_(kernels), maker_(args) {}

  // Fills `gradient`, channel `c` of an image [height, width], from the given patches.
  void run(const int64_t* patches, int64_t count, int c, int64_t height, int64_t width, T* gradient) {
    double* sum = sum_.get(height * width);
    std::fill(sum, sum + height * width, 0.0);
    jobs_.clear();
    for (int64_t k = 0; k < count; ++k) jobs_.push_back(plan_job(args_, patches[k], false));
    for (int64_t k = 0, end; k < count; k = end) {
      end = end_of_group(k);
      if (end == k) {
        by_pixel(patches[k], c, sum);
        end = k + 1;
      } else {
        by_tiles(jobs_.data() + k, patches + k, end - k, c, sum);
      }
    }
    for (int64_t at = 0; at < height * width; ++at) gradient[at] = T(sum[at]);
  }

 private:
  const ResampleArgs& args_;
  const TileKernels* kernels_;
  TileMaker maker_;
  std::vector<Job> jobs_;
  Scratch<double> sum_;
  Scratch<float> rows_, around_;

  void by_pixel(int64_t n, int c, double* sum) const {
    const Patch p = load_patch(args_, n);
    const T* incoming = static_cast<const T*>(args_.out);
    for (int i = 0; i < args_.size; ++i)
      for (int j = 0; j < args_.size; ++j) {
        double x, y;
        patch_point(p.map, i, j, x, y);
        const T value = incoming[patch_address(args_, n, c, i, j, p.flip)];
        spread(value, p, x, y, args_, [&](int64_t at, T share) { sum[at] += share; });
      }
  }

  // The vector kernels can do no float64, no very large zooms and not every border.
  bool can(const Job& job) const { return std::is_same<T, float>::value && kernels_ && job.fast; }

  // How many patches, from k on, are summed up together in float32: a few that lie about each other.
  int64_t end_of_group(int64_t k) const {
    Rectangle all{};
    int64_t end = k, areas = 0;
    for (; end < int64_t(jobs_.size()) && end - k < kSummedInFloat && can(jobs_[end]); ++end) {
      const Rectangle with = areas ? all.with(jobs_[end].taps) : jobs_[end].taps;
      areas += jobs_[end].taps.area();
      if (end > k && (with.area() > areas || with.area() > kLargestStage)) break;
      all = with;
    }
    return end;
  }

  void by_tiles(const Job* jobs, const int64_t* patches, int64_t count, int c, double* sum) {
    Rectangle all = jobs[0].taps;
    for (int64_t k = 1; k < count; ++k) all = all.with(jobs[k].taps);
    float* around = around_.get(all.area() + 16);
    std::fill(around, around + all.area() + 16, 0.0f);
    for (int64_t k = 0; k < count; ++k) {
      if (fill_rows(patches[k], c, jobs[k].patch.flip)) {
        kernels_->spread(maker_.make(jobs[k], {around, all.width(), all}, 0, *kernels_), rows_.data(), around);
      } else {
        by_pixel(patches[k], c, sum);  // not finite: reaches the pixels that it should, and no other
      }
    }
    add_inside(jobs[0].patch, all, around, sum);
  }

  // The gradient of one patch, unflipped, with zeros from `size` to the padded length; false where it is not finite.
  bool fill_rows(int64_t n, int c, uint8_t flip) {
    const int size = args_.size, padded = maker_.padded();
    float* rows = rows_.get(int64_t(size) * padded);
    const float* incoming = static_cast<const float*>(args_.out) + patch_address(args_, n, c, 0, 0, 0);
    if (padded > size) std::fill(rows, rows + int64_t(size) * padded, 0.0f);
    float* first = (flip & 2) ? rows + int64_t(size - 1) * padded : rows;
    kernels_->copy(first, (flip & 2) ? -padded : padded, incoming, size, size, size, (flip & 1) != 0, false);
    uint32_t found = 0;
    for (int64_t k = 0; k < int64_t(size) * padded; ++k) {
      uint32_t bits;
      std::memcpy(&bits, rows + k, sizeof bits);
      found |= uint32_t((bits & 0x7F800000u) == 0x7F800000u);  // NaN or infinite
    }
    return found == 0;
  }

  // Adds a rectangle to the plane; what lies outside counts where the border says.
  void add_inside(const Patch& p, const Rectangle& r, const float* around, double* sum) const {
    const int64_t width = r.width();
    const int64_t left = std::clamp<int64_t>(-r.left, 0, width);
    const int64_t right = std::clamp<int64_t>(p.width - r.left, left, width);
    for (int64_t y = r.top; y < r.bottom; ++y, around += width) {
      const int32_t row = fold(int32_t(y), p.height, args_.border);
      if (row < 0) continue;
      double* target = sum + int64_t(row) * p.width;
      const auto add_outside = [&](int64_t k) {
        const int32_t column = fold(int32_t(r.left + k), p.width, args_.border);
        if (column >= 0) target[column] += double(around[k]);
      };
      for (int64_t k = 0; k < left; ++k) add_outside(k);
      kernels_->accumulate(target + r.left + left, around + left, right - left);
      for (int64_t k = right; k < width; ++k) add_outside(k);
    }
  }
};

template <class T>
void adjoint(const ResampleArgs& args, T* gradient, int threads, const TileKernels* kernels) {
  const PatchesByImage sorted(args);
  parallel(args.num_images * args.channels, 1, threads, [&](Pieces& pieces) {
    AdjointWorker<T> worker(args, kernels);
    for (int64_t plane, end; pieces.next(plane, end);) {
      const int64_t k = plane / args.channels;
      const int c = int(plane % args.channels);
      const int64_t height = args.sizes ? args.sizes[2 * k] : args.height;
      const int64_t width = args.sizes ? args.sizes[2 * k + 1] : args.width;
      const int64_t offset = args.offsets ? args.offsets[k] : k * args.channels * height * width;
      worker.run(sorted.patches.data() + sorted.start[k], sorted.start[k + 1] - sorted.start[k], c, height, width,
                 gradient + offset + c * height * width);
    }
  });
}

}  // namespace

void resample_adjoint_cpu(const ResampleArgs& args, void* gradient, int threads, const std::string& path) {
  const TileKernels* kernels = kernels_for(path);
  if (args.out_dtype == Dtype::kFloat64) {
    adjoint(args, static_cast<double*>(gradient), threads, kernels);
  } else {
    adjoint(args, static_cast<float*>(gradient), threads, kernels);
  }
}

}  // namespace lesionaug
