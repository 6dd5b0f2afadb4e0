// The sampling of tiles, written once for every length of vectors (tile_vectors.h).
//
// Classic bicubic (both sigmas 1): along y a cubic between the middle two of four rows, whose coefficients are worked
// out once where many patches read them. Four columns of it are loaded at once, one coefficient after the other, or all
// sixteen numbers where a vector holds as many. Turned over, the vectors hold one column of many pixels each, and the
// same cubic is taken along x. Positions are split into whole pixels and a rest in [0, 1) (tables of what columns and
// rows add to them), so float32 loses nothing in large images; a row is placed while the one before is sampled.
// Antialiased: a pixel's row of taps is a vector, weighed by row.
#pragma once

#include <utility>

#include "tile_vectors.h"

namespace lesionaug {
namespace {
namespace TILE_ISA {

// The four coefficients of a column lie side by side, else each in a plane of its own, `step` apart.
template <int W>
constexpr bool kSideBySide = W == 16;

// Floats of the plane from a pixel to the next on its right.
template <int W>
TILE_INLINE uint32_t column_step(const Tile& t) {
  return t.step && kSideBySide<W> ? 4 : 1;
}

// Splits positions into whole pixels and the rest, in [0, 1).
template <int W>
TILE_INLINE void split(D<W> position, I<W>& whole, F<W>& rest) {
  whole = __builtin_convertvector(position, I<W>);  // toward zero
  D<W> left = position - __builtin_convertvector(whole, D<W>);
  const L<W> below = left < 0.0;  // -1 where so
  whole += __builtin_convertvector(below, I<W>);
  left += reinterpret_cast<D<W>>(below & reinterpret_cast<L<W>>(D<W>{} + 1.0));
  rest = __builtin_convertvector(left, F<W>);
  const I<W> up = rest >= 1.0f;
  whole -= up;
  rest = choose<W>(up, F<W>{}, rest);
}

// Fills a table with start + scale * (index + 0.5) along both axes, from the pixel (left, top) on; what lies beyond the
// patch is taken for its last index.
template <int W>
TILE_INLINE void fill_positions(const Tile& t, double scale_x, double start_x, int32_t left, double scale_y,
                                double start_y, int32_t top, const Positions& table) {
  constexpr int H = W / 2;  // doubles in a vector
  const D<H> last = D<H>{} + (t.size - 0.5);
  D<H> next;
  for (int n = 0; n < H; ++n) next[n] = n + 0.5;
  for (int k = 0; k < t.padded; k += H, next += double(H)) {
    const D<H> middle = next < last ? next : last;
    I<H> x, y;
    split<H>(middle * scale_x + start_x, x, *reinterpret_cast<F<H>*>(table.rest_x + k));
    split<H>(middle * scale_y + start_y, y, *reinterpret_cast<F<H>*>(table.rest_y + k));
    *reinterpret_cast<U<H>*>(table.offset + k) =
        reinterpret_cast<U<H>>(x - left) * column_step<W>(t) + reinterpret_cast<U<H>>(y - top) * uint32_t(t.stride);
  }
}

template <int W>
void prepare(const Tile& t, bool columns) {
  const bool plain = t.sigma_x == 1 && t.sigma_y == 1;
  const double reach_x = plain ? 0 : 2 * t.sigma_x, reach_y = plain ? 0 : 2 * t.sigma_y;
  const int32_t next = plain ? 1 : -1;  // the first tap is the one before the position, or the next where it reaches
  if (columns) fill_positions<W>(t, t.m00, 0, 0, t.m10, 0, 0, t.columns);
  fill_positions<W>(t, t.m01, t.m02 - 0.5 - reach_x, t.origin_x + next, t.m11, t.m12 - 0.5 - reach_y, t.origin_y + next,
                    t.rows);
}

// Adds a row's rest to those of columns; where that is a whole pixel more, `step` is added to the offsets.
template <int W>
TILE_INLINE F<W> add_rest(const float* rest, float row, uint32_t step, U<W>& offsets) {
  const F<W> sum = *reinterpret_cast<const F<W>*>(rest) + row;
#ifdef __AVX512F__
  if constexpr (W == 16) {  // the compiler does not find the masked instructions
    const __mmask16 more = _mm512_cmp_ps_mask(sum, _mm512_set1_ps(1.0f), _CMP_GE_OQ);
    const __m512i all_offsets = reinterpret_cast<__m512i>(offsets);
    offsets = reinterpret_cast<U<16>>(
        _mm512_mask_add_epi32(all_offsets, more, all_offsets, _mm512_set1_epi32(int32_t(step))));
    return _mm512_mask_sub_ps(sum, more, sum, _mm512_set1_ps(1.0f));
  }
#endif
  const I<W> more = sum >= 1.0f;  // -1 where so
  offsets += reinterpret_cast<U<W>>(more) & step;
  return sum - reinterpret_cast<F<W>>(more & reinterpret_cast<I<W>>(all<W>(1.0f)));
}

// Places W pixels of row i: their first taps as `offsets`, the rest along x as `rest_x`; returns the rest along y.
template <int W>
TILE_INLINE F<W> place_pixels(const Tile& t, int i, int j, uint32_t step, int32_t* offsets, float* rest_x) {
  U<W> sum = *reinterpret_cast<const U<W>*>(t.columns.offset + j) + t.rows.offset[i];
  *reinterpret_cast<F<W>*>(rest_x) = add_rest<W>(t.columns.rest_x + j, t.rows.rest_x[i], step, sum);
  const F<W> rest_y = add_rest<W>(t.columns.rest_y + j, t.rows.rest_y[i], uint32_t(t.stride), sum);
  *reinterpret_cast<I<W>*>(offsets) = reinterpret_cast<I<W>>(sum);
  return rest_y;
}

// Places the `used` pixels of row i from column j on for classic bicubic: their first taps and the rests.
template <int W>
TILE_INLINE void place_row(const Tile& t, int i, int j, int used, int32_t* offsets, float* rest_x, float* rest_y) {
  const uint32_t step = column_step<W>(t);
  for (int k = 0; k < used; k += W)
    *reinterpret_cast<F<W>*>(rest_y + k) = place_pixels<W>(t, i, j + k, step, offsets + k, rest_x + k);
}

// Keys' weights of the distances 1 + r, r, u = 1 - r and 1 + u.
template <int W>
TILE_INLINE void four_weights(F<W> r, float a, F<W> (&w)[4]) {
  const F<W> u = 1.0f - r, rr = r * r, uu = u * u;
  w[0] = (a * r) * uu;
  w[1] = fma<W>(fma<W>(all<W>(a + 2), r, all<W>(-a - 3)), rr, all<W>(1.0f));
  w[2] = fma<W>(fma<W>(all<W>(a + 2), u, all<W>(-a - 3)), uu, all<W>(1.0f));
  w[3] = (a * u) * rr;
}

// Keys' interpolation between r1 and r2, the middle two of four rows or columns: a cubic of the rest. Whether it is
// worked out in advance or for a pixel does not show in a bit.
template <int W>
struct Cubic {
  F<W> c0, c1, c2, c3;

  TILE_INLINE Cubic of(F<W> r0, F<W> r1, F<W> r2, F<W> r3, float a) {
    const F<W> c3 = fma<W>(all<W>(a), r0 - r3, (a + 2) * (r1 - r2));
    return {r1, a * (r0 - r2), fma<W>(all<W>(-a), r0 - r2, (r2 - r1) - c3), c3};
  }
  TILE_INLINE_MEMBER F<W> at(F<W> rest) const { return fma<W>(fma<W>(fma<W>(c3, rest, c2), rest, c1), rest, c0); }
};

template <int W>
TILE_INLINE void store_cubic(Cubic<W> cubic, int x, float* planes, int32_t step) {
  if constexpr (kSideBySide<W>) {
    turn_groups<W>(cubic.c0, cubic.c1, cubic.c2, cubic.c3);
    exchange_groups<W>(cubic.c0, cubic.c1, cubic.c2, cubic.c3);
  }
  float* p = planes + (kSideBySide<W> ? 4 * x : x);
  const int next = kSideBySide<W> ? W : step;
  *reinterpret_cast<F<W>*>(p) = cubic.c0;
  *reinterpret_cast<F<W>*>(p + next) = cubic.c1;
  *reinterpret_cast<F<W>*>(p + 2 * next) = cubic.c2;
  *reinterpret_cast<F<W>*>(p + 3 * next) = cubic.c3;
}

template <int W>
void coefficients(const float* rows, int64_t stride, int width, int height, float a, float* planes, int32_t step) {
  const int tail = width % W;
  I<W> mask;
  for (int k = 0; k < W; ++k) mask[k] = k < tail ? -1 : 0;
  for (int y = 0; y + 3 < height; ++y, rows += stride, planes += 4 * int64_t(step)) {
    int x = 0;
    for (; x + W <= width; x += W) {
      const auto part = [&](int k) { return load<W>(rows + x + k * stride); };
      store_cubic<W>(Cubic<W>::of(part(0), part(1), part(2), part(3), a), x, planes, step);
    }
    if (tail) {
      const auto part = [&](int k) { return load_first<W>(rows + x + k * stride, tail, mask); };
      store_cubic<W>(Cubic<W>::of(part(0), part(1), part(2), part(3), a), x, planes, step);
    }
  }
}

// All coefficients of the four columns of four pixels, interpolated along y: a group for each column, a pixel after the
// other in it.
template <int W>
TILE_INLINE F<W> four_pixels(const Tile& t, const int32_t* offsets, const float* rest_y) {
  F<W> p0 = load<W>(t.plane + offsets[0]), p1 = load<W>(t.plane + offsets[1]);
  F<W> p2 = load<W>(t.plane + offsets[2]), p3 = load<W>(t.plane + offsets[3]);
  turn_groups<W>(p0, p1, p2, p3);
  return Cubic<W>{p0, p1, p2, p3}.at(load_repeated<W>(rest_y));
}

// The four columns of W pixels, Q of each four consecutive ones in this call, interpolated along y.
template <int W, int Q, bool kCoefficients>
TILE_INLINE F<W> four_columns(const Tile& t, const int32_t* offsets, F<W> rest_y, float a) {
  const int64_t next = kCoefficients ? t.step : t.stride;
  const F<W> first = load_groups<W, Q>(t.plane, offsets), second = load_groups<W, Q>(t.plane + next, offsets);
  const F<W> third = load_groups<W, Q>(t.plane + 2 * next, offsets);
  const F<W> fourth = load_groups<W, Q>(t.plane + 3 * next, offsets);
  const F<W> rest = pick<W, Q, Q, Q, Q>(rest_y, rest_y);
  if constexpr (kCoefficients) return Cubic<W>{first, second, third, fourth}.at(rest);
  return Cubic<W>::of(first, second, third, fourth, a).at(rest);
}

// Where pixels of a row lie: their first taps and the rests.
struct Placed {
  alignas(64) int32_t offsets[kTileColumns];
  alignas(64) float rest_x[kTileColumns], rest_y[kTileColumns];
};

template <int W, bool kCoefficients>
TILE_INLINE F<W> sample_pixels(const Tile& t, const Placed& placed, int k, float a) {
  const int32_t* offsets = placed.offsets + k;
  const float* rest_y = placed.rest_y + k;
  F<W> c0, c1, c2, c3;
  if constexpr (kCoefficients && kSideBySide<W>) {
    c0 = four_pixels<W>(t, offsets, rest_y), c1 = four_pixels<W>(t, offsets + 4, rest_y + 4);
    c2 = four_pixels<W>(t, offsets + 8, rest_y + 8), c3 = four_pixels<W>(t, offsets + 12, rest_y + 12);
    exchange_groups<W>(c0, c1, c2, c3);
  } else {
    const F<W> down = *reinterpret_cast<const F<W>*>(rest_y);
    c0 = four_columns<W, 0, kCoefficients>(t, offsets, down, a);
    c1 = four_columns<W, 1, kCoefficients>(t, offsets, down, a);
    c2 = four_columns<W, 2, kCoefficients>(t, offsets, down, a);
    c3 = four_columns<W, 3, kCoefficients>(t, offsets, down, a);
    turn_groups<W>(c0, c1, c2, c3);
  }
  return Cubic<W>::of(c0, c1, c2, c3, a).at(*reinterpret_cast<const F<W>*>(placed.rest_x + k));
}

template <int W, bool kCoefficients>
void sample_plain(const Tile& t, int first, int last, float* rows) {
  Placed placed[2];
  const float a = float(t.a);
  const int blocks = t.padded / kTileColumns, count = (last - first) * blocks;
  const auto used = [&](int b) __attribute__((always_inline)) {
    const int left = t.size - b % blocks * kTileColumns;
    return left < kTileColumns ? left : kTileColumns;
  };
  const auto place = [&](int b) __attribute__((always_inline)) {
    Placed& p = placed[b % 2];
    place_row<W>(t, first + b / blocks, b % blocks * kTileColumns, used(b), p.offsets, p.rest_x, p.rest_y);
  };
  if (count > 0) place(0);
  for (int b = 0; b < count; ++b, rows += kTileColumns) {
    if (b + 1 < count) place(b + 1);
    asm volatile("" ::: "memory");  // or the compiler turns loads of what was just stored into shuffles
    for (int k = 0; k < used(b); k += W)
      *reinterpret_cast<F<W>*>(rows + k) = sample_pixels<W, kCoefficients>(t, placed[b % 2], k, a);
  }
}

// Keys' kernel of any distances, without branches: with z = max(1 - |t|, -1), v = 1 + z and u = max(z, 0) it is
// -a z v^2 + (3 + 4 a - 2 u) u^2.
template <int W>
TILE_INLINE F<W> keys_kernel(F<W> t, float a) {
  const F<W> distance = reinterpret_cast<F<W>>(reinterpret_cast<I<W>>(t) & 0x7FFFFFFF);
  const F<W> z = at_least<W>(1.0f - distance, -1.0f), u = at_least<W>(z, 0.0f);
  const F<W> outer = fma<W>(z, all<W>(-a), all<W>(-a)) * fma<W>(z, z, z);
  return fma<W>(fma<W>(all<W>(-2.0f), u, all<W>(3 + 4 * a)), u * u, outer);
}

// The same for antialiased sampling, and the pixels' weights along y with their sums.
template <int W>
TILE_INLINE void weigh_row(const Tile& t, int taps_y, int i, int j, int used, int32_t* offsets, float* rest_x,
                           float (*wy)[kTileColumns], float* sum_y) {
  const float a = float(t.a), step_y = float(1 / t.sigma_y);
  for (int k = 0; k < used; k += W) {
    const F<W> r = place_pixels<W>(t, i, j + k, 1, offsets + k, rest_x + k);
    F<W> sum{};
    for (int tap_y = 0; tap_y < taps_y; ++tap_y) {
      const float from = float(tap_y + 1) * step_y - 2.0f;
      const F<W> w = keys_kernel<W>(fma<W>(r, all<W>(-step_y), all<W>(from)), a);
      *reinterpret_cast<F<W>*>(wy[tap_y] + k) = w;
      sum += w;
    }
    *reinterpret_cast<F<W>*>(sum_y + k) = sum;
  }
}

// The sum of a pixel's rows of W taps, each times its weight (kTileColumns apart); `partial`: of the first `count`
// only. kTaps: as `taps`, where it is known when this is compiled, else 0.
template <int W, int kTaps>
TILE_INLINE F<W> weighted_rows(const float* row, int64_t stride, int taps, const float* weights, bool partial,
                               int count, I<W> mask) {
  F<W> even{}, odd{};
  const auto add = [&](int k, F<W>& sum) __attribute__((always_inline)) {
    const float* p = row + k * stride;
    sum = fma<W>(partial ? load_first<W>(p, count, mask) : load<W>(p), all<W>(weights[k * kTileColumns]), sum);
  };
  if constexpr (kTaps > 0) {
#pragma GCC unroll 16
    for (int k = 0; k < kTaps; ++k) add(k, k % 2 ? odd : even);
  } else {
    int k = 0;
    for (; k + 1 < taps; k += 2) add(k, even), add(k + 1, odd);
    if (k < taps) add(k, even);
  }
  return even + odd;
}

// kTapsY: as t.taps_y, where it is known when this is compiled, else 0. kChunks: vectors along x, likewise; kPartial:
// the last of them is not full. kWide: the vectors of what is done for many pixels at once.
template <int W, int kWide, int kTapsY, int kChunks, bool kPartial>
void sample_antialiased(const Tile& t, int first, int last, float* rows) {
  alignas(64) int32_t offsets[kTileColumns];
  alignas(64) float rest_x[kTileColumns], sum_y[kTileColumns], wy[kTileTaps][kTileColumns];
  const float a = float(t.a), step_x = float(1 / t.sigma_x);
  const int taps_y = kTapsY ? kTapsY : t.taps_y;
  F<W> tap;
  for (int k = 0; k < W; ++k) tap[k] = float(k + 1) * step_x - 2.0f;
  const int chunks = kChunks ? kChunks : (t.taps_x + W - 1) / W, tail = t.taps_x - (chunks - 1) * W;
  I<W> mask;
  for (int k = 0; k < W; ++k) mask[k] = k < tail ? -1 : 0;
  for (int i = first; i < last; ++i) {
    for (int j = 0; j < t.padded; j += kTileColumns, rows += kTileColumns) {
      const int used = t.size - j < kTileColumns ? t.size - j : kTileColumns;
      weigh_row<kWide>(t, taps_y, i, j, used, offsets, rest_x, wy, sum_y);
      asm volatile("" ::: "memory");
      for (int k = 0; k < used; k += W) {
        F<W> totals[W], weights[W];
        for (int p = 0; p < W; ++p) {
          const float* source = t.plane + offsets[k + p];
          const float* weights_y = &wy[0][k + p];
          const F<W> from = fma<W>(all<W>(rest_x[k + p]), all<W>(-step_x), tap);
          F<W> total{}, weight{};
          const auto add = [&](int c, bool last) __attribute__((always_inline)) {
            const F<W> w = keys_kernel<W>(from + float(c * W) * step_x, a);
            total = fma<W>(w, weighted_rows<W, kTapsY>(source + c * W, t.stride, taps_y, weights_y, last, tail, mask),
                           total);
            weight += w;
          };
          if constexpr (kChunks == 0) {
            for (int c = 0; c + 1 < chunks; ++c) add(c, false);
          } else if constexpr (kChunks == 2) {
            add(0, false);
          }
          add(chunks - 1, kPartial);
          totals[p] = total, weights[p] = weight;
        }
        *reinterpret_cast<F<W>*>(rows + k) =
            sum_each<W>(totals) / (sum_each<W>(weights) * *reinterpret_cast<const F<W>*>(sum_y + k));
      }
    }
  }
}

template <int W>
void window(float* values, int64_t count, float low, float scale, float start, float span) {
  for (int64_t k = 0; k < count; k += W) {  // counts are padded to a multiple of W
    F<W> v = (*reinterpret_cast<F<W>*>(values + k) - low) * scale;
    v = choose<W>(v < 0.0f, F<W>{}, v);
    v = choose<W>(v > 1.0f, all<W>(1.0f), v);
    *reinterpret_cast<F<W>*>(values + k) = fma<W>(v, all<W>(span), all<W>(start));
  }
}

// Half to even, overflow to infinity, NaN stays: to_float16 of portable.h for a vector, as integers.
template <int W>
TILE_INLINE I<W> float16_bits(F<W> v) {
  const I<W> bits = reinterpret_cast<I<W>>(v), magnitude = bits & 0x7FFFFFFF;
  const I<W> rebased = magnitude - 0x38000000;
  I<W> result = (rebased + 0xFFF + ((rebased >> 13) & 1)) >> 13;
  const I<W> tiny = reinterpret_cast<I<W>>(reinterpret_cast<F<W>>(magnitude) + 0.5f) - 0x3F000000;
  const auto where = [&](I<W> mask, I<W> value) { result = (value & mask) | (result & ~mask); };
  where(magnitude < 0x38800000, tiny);
  where(magnitude >= 0x477FF000, I<W>{} + 0x7C00);
  where(magnitude > 0x7F800000, I<W>{} + 0x7E00);
  return result | ((bits >> 16) & 0x8000);
}

template <int W>
TILE_INLINE I<W> bfloat16_bits(F<W> v) {
  const I<W> bits = reinterpret_cast<I<W>>(v), nan = (bits & 0x7FFFFFFF) > 0x7F800000;
  const I<W> rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, kept = (bits >> 16) | 0x40;
  return ((kept & nan) | (rounded & ~nan)) & 0xFFFF;
}

template <int W>
TILE_INLINE I<W> uint8_bits(F<W> v) {  // half to even, saturating; NaN becomes 0
  v = choose<W>(v > 0.0f, v, F<W>{});
  v = choose<W>(v < 255.0f, v, all<W>(255.0f));
  return reinterpret_cast<I<W>>(v + 8388608.0f) & 0xFF;  // 2^23: the adder rounds, the low bits are the integer
}

template <int W>
void narrow(const float* values, int64_t count, Narrow type, void* out) {
  for (int64_t k = 0; k < count; k += W) {
    const F<W> v = load<W>(values + k);
    if (type == Narrow::kUint8) {
      const auto bytes = __builtin_convertvector(uint8_bits<W>(v), typename Vectors<W>::Bytes);
      __builtin_memcpy(static_cast<uint8_t*>(out) + k, &bytes, sizeof bytes);
    } else {
      const I<W> bits = type == Narrow::kFloat16 ? float16_bits<W>(v) : bfloat16_bits<W>(v);
      const auto shorts = __builtin_convertvector(bits, typename Vectors<W>::Shorts);
      __builtin_memcpy(static_cast<uint16_t*>(out) + k, &shorts, sizeof shorts);
    }
  }
}

template <int W>
TILE_INLINE F<W> mirrored(F<W> v) {
  if constexpr (W == 4) {
    return TILE_SHUFFLE1(4, v, 3, 2, 1, 0);
  } else if constexpr (W == 8) {
    return TILE_SHUFFLE1(8, v, 7, 6, 5, 4, 3, 2, 1, 0);
  } else {
    return TILE_SHUFFLE1(16, v, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  }
}

template <int W>
TILE_INLINE void stream_store(float* target, F<W> v) {
#ifdef __AVX512F__
  if constexpr (W == 16) return _mm512_stream_ps(target, v);
#endif
#ifdef __AVX__
  if constexpr (W == 8) return _mm256_stream_ps(target, v);
#endif
#ifdef __x86_64__
  if constexpr (W == 4) return _mm_stream_ps(target, v);
#endif
  *reinterpret_cast<F<W>*>(target) = v;
}

template <int W>
void copy(float* target, int64_t step, const float* rows, int num_rows, int size, int padded, bool mirror,
          bool stream) {
  const bool aligned = reinterpret_cast<uintptr_t>(target) % (4 * W) == 0 && step % W == 0 && size % W == 0;
  for (int i = 0; i < num_rows; ++i, target += step, rows += padded) {
    if (aligned && stream) {
      for (int k = 0; k < size; k += W)
        stream_store<W>(target + k, mirror ? mirrored<W>(load<W>(rows + size - W - k)) : load<W>(rows + k));
    } else if (mirror) {
      for (int k = 0; k < size; ++k) target[k] = rows[size - 1 - k];
    } else {
      __builtin_memcpy(target, rows, size_t(size) * sizeof(float));
    }
  }
}

void fence() {
#ifdef __x86_64__
  _mm_sfence();
#endif
}

// The sampler for the tile's numbers of taps, compiled for each of the usual ones: sigma up to 4.
template <int W, int kWide, int kChunks, bool kPartial, int... kMore>
void sample_usual(const Tile& t, int first, int last, float* rows, std::integer_sequence<int, kMore...>) {
  constexpr int kFewest = 5;  // where one sigma is above 1, both axes have at least five
  const bool usual =
      (... || (t.taps_y == kFewest + kMore &&
               (sample_antialiased<W, kWide, kFewest + kMore, kChunks, kPartial>(t, first, last, rows), true)));
  if (!usual) sample_antialiased<W, kWide, 0, 0, true>(t, first, last, rows);
}

template <int W>
void sample(const Tile& t, int first, int last, float* rows) {
  constexpr int kFew = W > 8 ? 8 : W;
  constexpr std::make_integer_sequence<int, 12> kMore{};
  if (t.sigma_x == 1 && t.sigma_y == 1) {
    t.step ? sample_plain<W, true>(t, first, last, rows) : sample_plain<W, false>(t, first, last, rows);
  } else if (t.taps_x < kFew) {
    sample_usual<kFew, W, 1, true>(t, first, last, rows, kMore);
  } else if (t.taps_x == kFew) {
    sample_usual<kFew, W, 1, false>(t, first, last, rows, kMore);
  } else if (W > 8 && t.taps_x <= W) {
    sample_usual<W, W, 1, true>(t, first, last, rows, kMore);
  } else if (t.taps_x <= 2 * W) {
    sample_usual<W, W, 2, true>(t, first, last, rows, kMore);
  } else {
    sample_antialiased<W, W, 0, 0, true>(t, first, last, rows);
  }
}

}  // namespace TILE_ISA
}  // namespace
}  // namespace lesionaug
