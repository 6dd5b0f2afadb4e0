// The adjoint of the sampling of tiles: gradients of the pixels of a patch, spread over the pixels it weighed. A
// pixel's neighbours in its patch weigh nearly the same pixels, and a load of what was just stored in parts waits for
// it: pixels are taken in an order in which neighbours lie far apart.
#pragma once

#include "tile_kernels.h"

namespace lesionaug {
namespace {
namespace TILE_ISA {

template <int W>
TILE_INLINE void add_scaled(float* p, F<W> v, float scale) {
  *reinterpret_cast<typename Vectors<W>::Loose*>(p) = fma<W>(v, all<W>(scale), load<W>(p));
}

template <int W>
void spread_plain(const Tile& t, const float* gradient, float* plane) {
  alignas(64) int32_t offsets[kTileColumns];
  alignas(64) float rest_x[kTileColumns], rest_y[kTileColumns], wx[4 * kTileColumns], down[4][kTileColumns];
  const float a = float(t.a);
  for (int i = 0; i < t.size; ++i) {
    for (int j = 0; j < t.padded; j += kTileColumns, gradient += kTileColumns) {
      place_row<W>(t, i, j, kTileColumns, offsets, rest_x, rest_y);
      for (int k = 0; k < kTileColumns; k += W) {
        F<W> w[4];
        four_weights<W>(*reinterpret_cast<const F<W>*>(rest_y + k), a, w);
        for (int q = 0; q < 4; ++q)
          *reinterpret_cast<F<W>*>(down[q] + k) = w[q] * *reinterpret_cast<const F<W>*>(gradient + k);
        four_weights<W>(*reinterpret_cast<const F<W>*>(rest_x + k), a, w);
        turn_groups<W>(w[0], w[1], w[2], w[3]);  // w[q]: the four weights of pixel q of every four
        for (int q = 0; q < 4; ++q)
          for (int g = 0; g < W; g += 4)
            __builtin_memcpy(wx + 4 * (k + g + q), reinterpret_cast<const float*>(&w[q]) + g, 4 * sizeof(float));
      }
      asm volatile("" ::: "memory");
      for (int start = 0; start < 16; ++start)
        for (int k = start; k < kTileColumns; k += 16) {
          const F<4> across = load<4>(wx + 4 * k);
          float* p = plane + offsets[k];
          add_scaled<4>(p, across, down[0][k]);
          add_scaled<4>(p + t.stride, across, down[1][k]);
          add_scaled<4>(p + 2 * int64_t(t.stride), across, down[2][k]);
          add_scaled<4>(p + 3 * int64_t(t.stride), across, down[3][k]);
        }
    }
  }
}

template <int W, int kWide, int kChunks>
void spread_antialiased(const Tile& t, const float* gradient, float* plane) {
  alignas(64) int32_t offsets[kTileColumns];
  alignas(64) float rest_x[kTileColumns], share[kTileColumns];
  alignas(64) float wx[kTileColumns][kTileTaps], wy[kTileTaps][kTileColumns];
  const float a = float(t.a), step_x = float(1 / t.sigma_x);
  F<W> tap;
  for (int k = 0; k < W; ++k) tap[k] = float(k + 1) * step_x - 2.0f;
  const int chunks = kChunks ? kChunks : (t.taps_x + W - 1) / W;
  for (int i = 0; i < t.size; ++i) {
    for (int j = 0; j < t.padded; j += kTileColumns, gradient += kTileColumns) {
      weigh_row<kWide>(t, t.taps_y, i, j, kTileColumns, offsets, rest_x, wy, share);
      asm volatile("" ::: "memory");
      for (int k = 0; k < kTileColumns; k += W) {
        F<W> sums[W];
        for (int p = 0; p < W; ++p) {
          const F<W> from = fma<W>(all<W>(rest_x[k + p]), all<W>(-step_x), tap);
          F<W> sum{};
          for (int c = 0; c < chunks; ++c) {
            const F<W> w = keys_kernel<W>(from + float(c * W) * step_x, a);
            *reinterpret_cast<F<W>*>(wx[k + p] + c * W) = w;
            sum += w;
          }
          sums[p] = sum;
        }
        F<W>& s = *reinterpret_cast<F<W>*>(share + k);
        s = *reinterpret_cast<const F<W>*>(gradient + k) / (sum_each<W>(sums) * s);
      }
      asm volatile("" ::: "memory");
      for (int start = 0; start < 8; ++start)
        for (int k = start; k < kTileColumns; k += 8)
          for (int c = 0; c < chunks; ++c) {
            const F<W> across = *reinterpret_cast<const F<W>*>(wx[k] + c * W) * share[k];
            float* p = plane + offsets[k] + c * W;
            for (int tap_y = 0; tap_y < t.taps_y; ++tap_y, p += t.stride) add_scaled<W>(p, across, wy[tap_y][k]);
          }
    }
  }
}

template <int W>
void spread(const Tile& t, const float* gradient, float* plane) {
  constexpr int kFew = W > 8 ? 8 : W;
  if (t.sigma_x == 1 && t.sigma_y == 1) {
    spread_plain<W>(t, gradient, plane);
  } else if (t.taps_x <= kFew) {
    spread_antialiased<kFew, W, 1>(t, gradient, plane);
  } else {
    spread_antialiased<W, W, 0>(t, gradient, plane);
  }
}

void accumulate(double* sum, const float* values, int64_t count) {
  for (int64_t k = 0; k < count; ++k) sum[k] += double(values[k]);
}

// The functions of this instruction set as tile.h hands them on.
template <int W>
const TileKernels* kernels(const char* name) {
  // Four floats each: 1 MiB where vectors are long, as processors of that kind have twice that at least.
  constexpr int64_t most_coefficients = int64_t(1) << (W > 8 ? 16 : 15);
  static const TileKernels table = {name,       most_coefficients, prepare<W>, coefficients<W>, sample<W>, spread<W>,
                                    accumulate, window<W>,         narrow<W>,  copy<W>,         fence};
  return &table;
}

}  // namespace TILE_ISA
}  // namespace
}  // namespace lesionaug
