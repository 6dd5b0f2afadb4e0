// The table of names Python sees. Addresses come as integers: Python has checked and allocated everything.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "kernels.h"
#include "result_memory.h"

namespace py = pybind11;
using namespace lesionaug;
using py::literals::operator""_a;

namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

ResampleArgs resample_args(uintptr_t pixels, int pixel_dtype, uintptr_t offsets, uintptr_t sizes, int64_t num_images,
                           int channels, int height, int width, int64_t num_patches, uintptr_t image_index,
                           uintptr_t flip, uintptr_t matrix, bool matrix_is_double, uintptr_t centers,
                           uintptr_t spacing, uintptr_t angle, uintptr_t shift, uintptr_t side, uintptr_t rows,
                           std::optional<PlanArgs> plan, int size, bool antialias, int border, double a, double fill,
                           std::optional<std::pair<double, double>> window, std::pair<double, double> out_range,
                           uintptr_t out, int out_dtype) {
  ResampleArgs args{};
  args.pixels = at<void>(pixels);
  args.pixel_dtype = Dtype(pixel_dtype);
  args.offsets = at<int64_t>(offsets);
  args.sizes = at<int32_t>(sizes);
  args.num_images = num_images;
  args.channels = channels;
  args.height = height;
  args.width = width;
  args.num_patches = num_patches;
  args.image_index = at<int64_t>(image_index);
  args.flip = at<uint8_t>(flip);
  args.matrix = at<void>(matrix);
  args.matrix_is_double = matrix_is_double;
  args.centers = at<double>(centers);
  args.spacing = at<double>(spacing);
  args.angle = at<float>(angle);
  args.shift = at<float>(shift);
  args.side = at<float>(side);
  args.rows = at<int64_t>(rows);
  if (plan) args.plan = *plan;
  args.size = size;
  args.antialias = antialias;
  args.border = Border(border);
  args.a = a;
  args.fill = fill;
  args.windowed = window.has_value();
  args.window_low = window ? window->first : 0.0;
  args.window_high = window ? window->second : 1.0;
  args.out_low = out_range.first;
  args.out_high = out_range.second;
  args.out = at<void>(out);
  args.out_dtype = Dtype(out_dtype);
  return args;
}

PlanArgs plan_args(uint64_t seed, int64_t num_rois, uintptr_t lesion_keys, uintptr_t diameters, int n_rot, int n_flip,
                   int n_trans, int n_scale, double max_angle, double base_side, double shift_fraction,
                   double max_shift, double scale_low, double scale_span, int64_t num_rows, int64_t num_indices,
                   uintptr_t lesions, uintptr_t indices, bool index_per_row, uintptr_t roi, uintptr_t angle,
                   uintptr_t flip, uintptr_t shift, uintptr_t side) {
  PlanArgs args{};
  args.seed = seed;
  args.num_rois = num_rois;
  args.lesion_keys = at<int64_t>(lesion_keys);
  args.diameters = at<float>(diameters);
  args.n_rot = n_rot;
  args.n_flip = n_flip;
  args.n_trans = n_trans;
  args.n_scale = n_scale;
  args.max_angle = max_angle;
  args.base_side = base_side;
  args.shift_fraction = shift_fraction;
  args.max_shift = max_shift;
  args.scale_low = scale_low;
  args.scale_span = scale_span;
  args.num_rows = num_rows;
  args.num_indices = num_indices;
  args.lesions = at<int64_t>(lesions);
  args.indices = at<int64_t>(indices);
  args.index_per_row = index_per_row;
  args.roi = at<int64_t>(roi);
  args.angle = at<float>(angle);
  args.flip = at<uint8_t>(flip);
  args.shift = at<float>(shift);
  args.side = at<float>(side);
  return args;
}

// uint8 [bytes], not initialised; None where the system has no such memory, or none left.
py::object result_memory(size_t bytes) {
  ResultBlock* block = take_result_block(bytes);
  if (!block) return py::none();
  const py::capsule owner(block, [](void* given) { give_result_block(static_cast<ResultBlock*>(given)); });
  return py::array_t<uint8_t>(py::ssize_t(bytes), static_cast<uint8_t*>(block->memory), owner);
}

using Released = py::call_guard<py::gil_scoped_release>;

}  // namespace

PYBIND11_MODULE(LESIONAUG_MODULE, m) {
  m.doc() = "Native kernels of lesionaug; private, use the functions of the package.";

  // module_local: the tests load an emulated twin of this module beside it.
  py::class_<PlanArgs>(m, "PlanArgs", py::module_local())
      .def(py::init(&plan_args), py::kw_only(), "seed"_a, "num_rois"_a, "lesion_keys"_a, "diameters"_a, "n_rot"_a,
           "n_flip"_a, "n_trans"_a, "n_scale"_a, "max_angle"_a, "base_side"_a, "shift_fraction"_a, "max_shift"_a,
           "scale_low"_a, "scale_span"_a, "num_rows"_a = 0, "num_indices"_a = 0, "lesions"_a = 0, "indices"_a = 0,
           "index_per_row"_a = false, "roi"_a = 0, "angle"_a = 0, "flip"_a = 0, "shift"_a = 0, "side"_a = 0);
  py::class_<ResampleArgs>(m, "ResampleArgs", py::module_local())
      .def(py::init(&resample_args), py::kw_only(), "pixels"_a, "pixel_dtype"_a, "offsets"_a, "sizes"_a, "num_images"_a,
           "channels"_a, "height"_a, "width"_a, "num_patches"_a, "image_index"_a, "flip"_a, "matrix"_a,
           "matrix_is_double"_a, "centers"_a, "spacing"_a, "angle"_a, "shift"_a, "side"_a, "rows"_a, "plan"_a, "size"_a,
           "antialias"_a, "border"_a, "a"_a, "fill"_a, "window"_a, "out_range"_a, "out"_a, "out_dtype"_a)
      .def(
          "of_rows",  // the same call for other rows of its plan
          [](ResampleArgs args, uintptr_t rows, int64_t num_patches, uintptr_t out) {
            args.rows = at<int64_t>(rows);
            args.image_index = nullptr;
            args.flip = nullptr;
            args.num_patches = num_patches;
            args.out = at<void>(out);
            return args;
          },
          "rows"_a, "num_patches"_a, "out"_a);

  m.def(
      "check_patches",
      [](const ResampleArgs& args, int threads) {
        const auto [status, index] = check_patches(args, threads);
        return std::pair<int, int64_t>(int(status), index);
      },
      "args"_a, "threads"_a, Released());
  m.def("cpu_paths", &cpu_paths);
  m.def("resample_cpu", &resample_cpu, "args"_a, "threads"_a, "path"_a, Released());
  m.def(
      "resample_adjoint_cpu",
      [](const ResampleArgs& args, uintptr_t gradient, int threads, const std::string& path) {
        resample_adjoint_cpu(args, at<void>(gradient), threads, path);
      },
      "args"_a, "gradient"_a, "threads"_a, "path"_a, Released());
  m.def("result_memory", &result_memory, "bytes"_a);
  m.def(
      "patch_to_image_cpu",
      [](const ResampleArgs& args, uintptr_t matrices) { patch_to_image_cpu(args, at<float>(matrices)); }, "args"_a,
      "matrices"_a, Released());
  m.def("sample_plan_cpu", &sample_plan_cpu, "args"_a, Released());
  m.def(
      "philox_cpu",
      [](uint64_t seed, uintptr_t counters, uintptr_t words, int64_t count) {
        philox_cpu(seed, at<int64_t>(counters), at<int64_t>(words), count);
      },
      "seed"_a, "counters"_a, "words"_a, "count"_a, Released());

#ifdef LESIONAUG_WITH_CUDA
  m.def(
      "resample_cuda",
      [](const ResampleArgs& args, bool tiled, uintptr_t stream) {
        if (!tiled || !resample_tiled_cuda(args, at<void>(stream))) resample_cuda(args, at<void>(stream));
      },
      "args"_a, "tiled"_a, "stream"_a, Released());
  m.def(
      "resample_adjoint_cuda",
      [](const ResampleArgs& args, uintptr_t gradient, uintptr_t workspace, uintptr_t scale, int64_t num_pixels,
         uintptr_t stream) {
        resample_adjoint_cuda(args, at<void>(gradient), at<int64_t>(workspace), at<double>(scale), num_pixels,
                              at<void>(stream));
      },
      "args"_a, "gradient"_a, "workspace"_a, "scale"_a, "num_pixels"_a, "stream"_a, Released());
  m.def(
      "patch_to_image_cuda",
      [](const ResampleArgs& args, uintptr_t matrices, uintptr_t stream) {
        patch_to_image_cuda(args, at<float>(matrices), at<void>(stream));
      },
      "args"_a, "matrices"_a, "stream"_a, Released());
  m.def(
      "sample_plan_cuda", [](const PlanArgs& args, uintptr_t stream) { sample_plan_cuda(args, at<void>(stream)); },
      "args"_a, "stream"_a, Released());
  m.def(
      "philox_cuda",
      [](uint64_t seed, uintptr_t counters, uintptr_t words, int64_t count, uintptr_t stream) {
        philox_cuda(seed, at<int64_t>(counters), at<int64_t>(words), count, at<void>(stream));
      },
      "seed"_a, "counters"_a, "words"_a, "count"_a, "stream"_a, Released());
#endif

  m.attr("cuda_archs") = std::string(LESIONAUG_CUDA_ARCHS);        // empty: built without CUDA
  m.attr("cuda_verified") = std::string(LESIONAUG_CUDA_VERIFIED);  // the GPU and commit, empty: on none yet
  m.attr("cuda_sha256") = std::string(LESIONAUG_CUDA_SHA256);      // of the sources, benchmarks/sources.py
  m.attr("least_result") = py::int_(kLeastResult);
  m.attr("compiler") = std::string(LESIONAUG_COMPILER);
}
