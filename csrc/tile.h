// What the vector kernels see of a call: one plane of floats, one map, rows of one patch. Plain data only: the files
// that implement it are compiled for one instruction set each, and must share no inline function with the others.
#pragma once

#include <cstdint>

namespace lesionaug {

constexpr int kTileTaps = 128;    // most taps per axis that the vector kernels take: sigma below 32
constexpr int kTileColumns = 64;  // columns worked on at a time; tables and rows are padded to a multiple of it

// Tables of positions, split into whole pixels, as floats of the plane (modulo 2^32), and the rest, in [0, 1).
struct Positions {
  uint32_t* offset;
  float* rest_x;
  float* rest_y;
};

// All taps of all pixels of the patch lie inside the plane, so no kernel knows of borders.
struct Tile {
  const float* plane;          // the pixel at (origin_x, origin_y) of the image
  int32_t stride;              // from row to row of the plane, in floats
  int32_t step;                // 0, or the plane holds coefficients, as `coefficients` laid them out for this step
  int32_t origin_x, origin_y;  // all taps lie to the right of and below it
  double m00, m01, m02, m10, m11, m12;
  int32_t size, padded;     // side of the patch, and the same rounded up to kTileColumns
  double sigma_x, sigma_y;  // both 1: classic bicubic, else antialiased
  int32_t taps_x, taps_y;   // antialiased: enough for every pixel, see tile_taps
  double a;
  // What a pixel's column and its row add to where its first tap lies, filled by `prepare`, [padded] each.
  Positions columns, rows;
};

enum class Narrow { kFloat16, kBfloat16, kUint8 };  // outputs that are narrower than float32

struct TileKernels {
  const char* name;
  int64_t most_coefficients;  // pixels whose coefficients are worked out in advance, at most: what a second cache holds
  void (*prepare)(const Tile& tile, bool columns);  // the rows' table, and where asked the columns'
  // Works out the coefficients along y between `height` rows of `width` floats, for classic bicubic: height - 3 rows of
  // 4 * step floats (a multiple of 16, at least `width`), aligned to 64 bytes, in an order that `sample` knows.
  void (*coefficients)(const float* rows, int64_t stride, int width, int height, float a, float* planes, int32_t step);
  // Rows first .. last - 1 of the unflipped patch, [last - first, padded], aligned to 64 bytes.
  void (*sample)(const Tile& tile, int first, int last, float* rows);
  // Adds to the plane what all rows of the unflipped patch weighed of it, times the gradient [size, padded] of the
  // patch, aligned to 64 bytes; finite, and zero beyond `size`. Up to 16 floats behind the last tap of a row have zero
  // added.
  void (*spread)(const Tile& tile, const float* gradient, float* plane);
  void (*accumulate)(double* sum, const float* values, int64_t count);
  // Clips (value - low) * scale to (0, 1), NaN stays; then maps that to start + span * it.
  void (*window)(float* values, int64_t count, float low, float scale, float start, float span);
  // Rounds values, a multiple of kTileColumns, as portable.h and resample.h do one by one.
  void (*narrow)(const float* values, int64_t count, Narrow type, void* out);
  // Copies rows of `size` floats (`padded` apart) to `target` (`step` apart), each mirrored where asked; `stream`
  // goes past the caches where the alignment allows it.
  void (*copy)(float* target, int64_t step, const float* rows, int num_rows, int size, int padded, bool mirror,
               bool stream);
  void (*fence)();  // after the last `copy` of a thread that streamed
};

// Null where the compiler or the processor has no such instructions.
const TileKernels* tile_kernels_portable();
const TileKernels* tile_kernels_avx2();
const TileKernels* tile_kernels_avx512();

}  // namespace lesionaug
