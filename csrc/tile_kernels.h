// The vector kernels, written once for vectors of 4, 8 or 16 floats. A file includes this after defining TILE_ISA (a
// namespace of its own); everything here has internal linkage, for the reason given in tile.h.
//
// Classic bicubic (both sigmas 1): a pixel's 4x4 neighbours are four loads of four floats; a vector holds those of one
// to four pixels. Positions are split into whole pixels and a rest in [0, 1) (tables for the columns, a pair for the
// row), so float32 loses nothing in large images. Antialiased: a pixel's row of taps is a vector, weighed by row.
#include "tile.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lesionaug {
namespace {
namespace TILE_ISA {

template <int W>
struct Vectors;
#define TILE_VECTORS(W)                                                             \
  template <>                                                                       \
  struct Vectors<W> {                                                               \
    typedef float F __attribute__((vector_size(4 * W)));                            \
    typedef int32_t I __attribute__((vector_size(4 * W)));                          \
    typedef float Loose __attribute__((vector_size(4 * W), aligned(4), may_alias)); \
  }
TILE_VECTORS(4);
TILE_VECTORS(8);
TILE_VECTORS(16);
#undef TILE_VECTORS
template <int W>
using F = typename Vectors<W>::F;
template <int W>
using I = typename Vectors<W>::I;

#define TILE_INLINE static inline __attribute__((always_inline))

#ifdef __clang__
#define TILE_SHUFFLE1(W, v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#define TILE_SHUFFLE2(W, u, v, ...) __builtin_shufflevector(u, v, __VA_ARGS__)
#else
#define TILE_SHUFFLE1(W, v, ...) __builtin_shuffle(v, I<W>{__VA_ARGS__})
#define TILE_SHUFFLE2(W, u, v, ...) __builtin_shuffle(u, v, I<W>{__VA_ARGS__})
#endif

template <int W>
TILE_INLINE F<W> load(const float* p) {
  return *reinterpret_cast<const typename Vectors<W>::Loose*>(p);
}

template <int W>
TILE_INLINE F<W> all(float value) {
  return F<W>{} + value;
}

template <int W>
TILE_INLINE F<W> choose(I<W> mask, F<W> yes, F<W> no) {
  return reinterpret_cast<F<W>>((reinterpret_cast<I<W>>(yes) & mask) | (reinterpret_cast<I<W>>(no) & ~mask));
}

template <int W>
TILE_INLINE F<W> positive(F<W> v) {  // max(v, 0)
  return reinterpret_cast<F<W>>(reinterpret_cast<I<W>>(v) & (v > 0));
}

// Element Q of every group of four, four times.
template <int W, int Q>
TILE_INLINE F<W> spread_in_groups(F<W> v) {
  if constexpr (W == 4) {
    return TILE_SHUFFLE1(4, v, Q, Q, Q, Q);
  } else if constexpr (W == 8) {
    return TILE_SHUFFLE1(8, v, Q, Q, Q, Q, Q + 4, Q + 4, Q + 4, Q + 4);
  } else {
    return TILE_SHUFFLE1(16, v, Q, Q, Q, Q, Q + 4, Q + 4, Q + 4, Q + 4, Q + 8, Q + 8, Q + 8, Q + 8, Q + 12, Q + 12,
                         Q + 12, Q + 12);
  }
}

// In every group of four of the result: the sums of that group of a, b, c and d.
template <int W>
TILE_INLINE F<W> sum_groups(F<W> a, F<W> b, F<W> c, F<W> d) {
  if constexpr (W == 4) {
    const F<4> ab = TILE_SHUFFLE2(4, a, b, 0, 4, 1, 5) + TILE_SHUFFLE2(4, a, b, 2, 6, 3, 7);
    const F<4> cd = TILE_SHUFFLE2(4, c, d, 0, 4, 1, 5) + TILE_SHUFFLE2(4, c, d, 2, 6, 3, 7);
    return TILE_SHUFFLE2(4, ab, cd, 0, 1, 4, 5) + TILE_SHUFFLE2(4, ab, cd, 2, 3, 6, 7);
  } else if constexpr (W == 8) {
    const F<8> ab =
        TILE_SHUFFLE2(8, a, b, 0, 8, 1, 9, 4, 12, 5, 13) + TILE_SHUFFLE2(8, a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    const F<8> cd =
        TILE_SHUFFLE2(8, c, d, 0, 8, 1, 9, 4, 12, 5, 13) + TILE_SHUFFLE2(8, c, d, 2, 10, 3, 11, 6, 14, 7, 15);
    return TILE_SHUFFLE2(8, ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) + TILE_SHUFFLE2(8, ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
  } else {
    const F<16> ab = TILE_SHUFFLE2(16, a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
                     TILE_SHUFFLE2(16, a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    const F<16> cd = TILE_SHUFFLE2(16, c, d, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
                     TILE_SHUFFLE2(16, c, d, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    return TILE_SHUFFLE2(16, ab, cd, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
           TILE_SHUFFLE2(16, ab, cd, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  }
}

// The sum of all elements of each of W vectors.
template <int W>
TILE_INLINE F<W> sum_each(const F<W>* v) {
  const F<W> first = sum_groups<W>(v[0], v[1], v[2], v[3]);
  if constexpr (W == 4) {
    return first;
  } else if constexpr (W == 8) {
    const F<8> second = sum_groups<8>(v[4], v[5], v[6], v[7]);
    return TILE_SHUFFLE2(8, first, second, 0, 1, 2, 3, 8, 9, 10, 11) +
           TILE_SHUFFLE2(8, first, second, 4, 5, 6, 7, 12, 13, 14, 15);
  } else {
    const F<16> second = sum_groups<16>(v[4], v[5], v[6], v[7]);
    const F<16> third = sum_groups<16>(v[8], v[9], v[10], v[11]);
    const F<16> fourth = sum_groups<16>(v[12], v[13], v[14], v[15]);
    const F<16> left = TILE_SHUFFLE2(16, first, second, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                       TILE_SHUFFLE2(16, first, second, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    const F<16> right = TILE_SHUFFLE2(16, third, fourth, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                        TILE_SHUFFLE2(16, third, fourth, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    return TILE_SHUFFLE2(16, left, right, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           TILE_SHUFFLE2(16, left, right, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  }
}

// Four floats each from offsets[Q], offsets[Q + 4], ... behind p, one group after the other.
template <int W, int Q>
TILE_INLINE F<W> load_groups(const float* p, const int32_t* offsets) {
  if constexpr (W == 4) {
    return load<4>(p + offsets[Q]);
#ifdef __AVX512F__
  } else if constexpr (W == 16) {
    __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(p + offsets[Q]));
    v = _mm512_mask_broadcast_f32x4(v, 0x00F0, _mm_loadu_ps(p + offsets[Q + 4]));
    v = _mm512_mask_broadcast_f32x4(v, 0x0F00, _mm_loadu_ps(p + offsets[Q + 8]));
    return _mm512_mask_broadcast_f32x4(v, 0xF000, _mm_loadu_ps(p + offsets[Q + 12]));
#endif
#ifdef __AVX__
  } else if constexpr (W == 8) {
    const __m256 low = _mm256_castps128_ps256(_mm_loadu_ps(p + offsets[Q]));
    return _mm256_insertf128_ps(low, _mm_loadu_ps(p + offsets[Q + 4]), 1);
#endif
  }
}

// The first `count` floats at p, zeros after them; nothing else is read.
template <int W>
TILE_INLINE F<W> load_first(const float* p, int count, I<W> mask) {
  (void)count, (void)mask;
#ifdef __AVX512F__
  if constexpr (W == 16) return _mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p);
#endif
#ifdef __AVX__
  if constexpr (W == 8) return _mm256_maskload_ps(p, reinterpret_cast<__m256i>(mask));
#endif
  F<W> v{};
  for (int k = 0; k < count; ++k) v[k] = p[k];
  return v;
}

struct Split {
  int32_t whole;
  float rest;
};

TILE_INLINE Split split(double value) {
  const double whole = __builtin_floor(value);
  const float rest = float(value - whole);
  return rest < 1.0f ? Split{int32_t(whole), rest} : Split{int32_t(whole) + 1, 0.0f};
}

void prepare(const Tile& t) {
  for (int j = 0; j < t.padded; ++j) {
    const double column = (j < t.size ? j : t.size - 1) + 0.5;
    const Split x = split(t.m00 * column), y = split(t.m10 * column);
    t.whole_x[j] = x.whole, t.rest_x[j] = x.rest;
    t.whole_y[j] = y.whole, t.rest_y[j] = y.rest;
  }
}

// A column's position plus a row's: whole pixels and the rest in [0, 1).
template <int W>
TILE_INLINE void add_split(const int32_t* whole, const float* rest, Split row, I<W>& sum, F<W>& fraction) {
  fraction = *reinterpret_cast<const F<W>*>(rest) + row.rest;
  const I<W> carry = fraction >= 1.0f;  // -1 where so
  sum = *reinterpret_cast<const I<W>*>(whole) + row.whole - carry;
  fraction -= reinterpret_cast<F<W>>(carry & reinterpret_cast<I<W>>(all<W>(1.0f)));
}

// Places W pixels of a row: their first taps as `offsets`, the rest along x as `rest_x`; returns the rest along y.
template <int W>
TILE_INLINE F<W> place_pixels(const Tile& t, int column, Split x, Split y, int32_t* offsets, float* rest_x) {
  I<W> whole_x, whole_y;
  F<W> along_x, along_y;
  add_split<W>(t.whole_x + column, t.rest_x + column, x, whole_x, along_x);
  add_split<W>(t.whole_y + column, t.rest_y + column, y, whole_y, along_y);
  *reinterpret_cast<I<W>*>(offsets) = whole_y * t.stride + whole_x;
  *reinterpret_cast<F<W>*>(rest_x) = along_x;
  return along_y;
}

template <int W>
struct PlainWeights {  // Keys' weights of the four taps along x as polynomials of the rest, one tap in each element
  F<W> c0, c1, c2, c3;
  explicit PlainWeights(float a) {
    const float table[4][4] = {{0, 1, 0, 0}, {a, 0, -a, 0}, {-2 * a, -(a + 3), 2 * a + 3, a}, {a, a + 2, -(a + 2), -a}};
    for (int k = 0; k < W; ++k)
      c0[k] = table[0][k % 4], c1[k] = table[1][k % 4], c2[k] = table[2][k % 4], c3[k] = table[3][k % 4];
  }
  F<W> at(F<W> t) const { return ((c3 * t + c2) * t + c1) * t + c0; }
};

// The 4x4 sums of W pixels, Q of each four consecutive ones in this call.
template <int W, int Q>
TILE_INLINE F<W> four_by_four(const float* plane, int32_t stride, const int32_t* offsets, F<W> tx,
                              const float (*wy)[kTileColumns], const PlainWeights<W>& weights) {
  const F<W> x = weights.at(spread_in_groups<W, Q>(tx));
  const auto line = [&](int row) __attribute__((always_inline)) {
    return load_groups<W, Q>(plane + row * int64_t(stride), offsets) *
           spread_in_groups<W, Q>(*reinterpret_cast<const F<W>*>(wy[row]));
  };
  return (line(0) + line(1) + line(2) + line(3)) * x;
}

template <int W>
void sample_plain(const Tile& t, int first, int last, float* rows) {
  alignas(64) int32_t offsets[kTileColumns];
  alignas(64) float tx[kTileColumns], wy[4][kTileColumns];
  const PlainWeights<W> weights{float(t.a)};
  const float a = float(t.a);
  for (int i = first; i < last; ++i) {
    Split x = split(t.m01 * (i + 0.5) + t.m02 - 0.5), y = split(t.m11 * (i + 0.5) + t.m12 - 0.5);
    x.whole -= t.origin_x + 1, y.whole -= t.origin_y + 1;  // to the first of the four taps
    for (int j = 0; j < t.padded; j += kTileColumns, rows += kTileColumns) {
      const int used = t.size - j < kTileColumns ? t.size - j : kTileColumns;
      for (int k = 0; k < used; k += W) {
        const F<W> r = place_pixels<W>(t, j + k, x, y, offsets + k, tx + k);
        const F<W> u = 1.0f - r, ar = a * r, au = a * u;
        const F<W> w0 = ar * u * u, w3 = au * r * r;
        const F<W> w1 = ((a + 2) * r - (a + 3)) * r * r + 1.0f;
        *reinterpret_cast<F<W>*>(wy[0] + k) = w0;
        *reinterpret_cast<F<W>*>(wy[1] + k) = w1;
        *reinterpret_cast<F<W>*>(wy[2] + k) = ((a + 2) * u - (a + 3)) * u * u + 1.0f;
        *reinterpret_cast<F<W>*>(wy[3] + k) = w3;
      }
      asm volatile("" ::: "memory");  // or the compiler turns loads of what was just stored into shuffles
      for (int k = 0; k < used; k += W) {
        const auto* y_weights = reinterpret_cast<const float (*)[kTileColumns]>(wy[0] + k);
        const F<W> rest = *reinterpret_cast<const F<W>*>(tx + k);
        const F<W> q0 = four_by_four<W, 0>(t.plane, t.stride, offsets + k, rest, y_weights, weights);
        const F<W> q1 = four_by_four<W, 1>(t.plane, t.stride, offsets + k, rest, y_weights, weights);
        const F<W> q2 = four_by_four<W, 2>(t.plane, t.stride, offsets + k, rest, y_weights, weights);
        const F<W> q3 = four_by_four<W, 3>(t.plane, t.stride, offsets + k, rest, y_weights, weights);
        *reinterpret_cast<F<W>*>(rows + k) = sum_groups<W>(q0, q1, q2, q3);
      }
    }
  }
}

// Keys' kernel of any distances, without branches: with v = max(2 - |t|, 0) and u = max(1 - |t|, 0) it is
// a (1 - v) v^2 + (3 + 4 a - 2 u) u^2.
template <int W>
TILE_INLINE F<W> keys_kernel(F<W> t, float a) {
  const F<W> distance = reinterpret_cast<F<W>>(reinterpret_cast<I<W>>(t) & 0x7FFFFFFF);
  const F<W> v = positive<W>(2.0f - distance), u = positive<W>(1.0f - distance);
  return (a - a * v) * (v * v) + ((3 + 4 * a) - 2.0f * u) * (u * u);
}

// The sum of a pixel's rows of W taps, each times its weight (kTileColumns apart); `Partial`: of the first `count`
// only.
template <int W, bool Partial>
TILE_INLINE F<W> weighted_rows(const float* row, int32_t stride, int taps, const float* weights, int count, I<W> mask) {
  const auto line = [&](const float* p) __attribute__((always_inline)) {
    if constexpr (Partial) return load_first<W>(p, count, mask);
    return load<W>(p);
  };
  F<W> even{}, odd{};
  int k = 0;
  for (; k + 1 < taps; k += 2, row += 2 * int64_t(stride), weights += 2 * kTileColumns) {
    even += line(row) * weights[0];
    odd += line(row + stride) * weights[kTileColumns];
  }
  if (k < taps) even += line(row) * weights[0];
  return even + odd;
}

template <int W>
void sample_antialiased(const Tile& t, int first, int last, float* rows) {
  alignas(64) int32_t offsets[kTileColumns];
  alignas(64) float rest_x[kTileColumns], sum_y[kTileColumns], wy[kTileTaps][kTileColumns];
  const float a = float(t.a), step_x = float(1 / t.sigma_x), step_y = float(1 / t.sigma_y);
  F<W> tap;
  for (int k = 0; k < W; ++k) tap[k] = float(k + 1);
  const int chunks = (t.taps_x + W - 1) / W, tail = t.taps_x - (chunks - 1) * W;
  I<W> tail_mask;
  for (int k = 0; k < W; ++k) tail_mask[k] = k < tail ? -1 : 0;
  for (int i = first; i < last; ++i) {
    Split x = split(t.m01 * (i + 0.5) + t.m02 - 0.5 - 2 * t.sigma_x);
    Split y = split(t.m11 * (i + 0.5) + t.m12 - 0.5 - 2 * t.sigma_y);
    x.whole -= t.origin_x - 1, y.whole -= t.origin_y - 1;  // to the first tap
    for (int j = 0; j < t.padded; j += kTileColumns, rows += kTileColumns) {
      const int used = t.size - j < kTileColumns ? t.size - j : kTileColumns;
      for (int k = 0; k < used; k += W) {
        const F<W> r = place_pixels<W>(t, j + k, x, y, offsets + k, rest_x + k);
        F<W> sum{};
        for (int tap_y = 0; tap_y < t.taps_y; ++tap_y) {
          const F<W> w = keys_kernel<W>((float(tap_y + 1) - r) * step_y - 2.0f, a);
          *reinterpret_cast<F<W>*>(wy[tap_y] + k) = w;
          sum += w;
        }
        *reinterpret_cast<F<W>*>(sum_y + k) = sum;
      }
      asm volatile("" ::: "memory");
      for (int k = 0; k < used; k += W) {
        F<W> totals[W], weights[W];
        for (int p = 0; p < W; ++p) {
          const float* source = t.plane + offsets[k + p];
          F<W> total{}, weight{};
          for (int c = 0; c < chunks; ++c, source += W) {
            const F<W> w = keys_kernel<W>((tap + (float(c * W) - rest_x[k + p])) * step_x - 2.0f, a);
            const float* weights_y = &wy[0][k + p];
            total += (c == chunks - 1 && tail < W
                          ? weighted_rows<W, true>(source, t.stride, t.taps_y, weights_y, tail, tail_mask)
                          : weighted_rows<W, false>(source, t.stride, t.taps_y, weights_y, tail, tail_mask)) *
                     w;
            weight += w;
          }
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
    *reinterpret_cast<F<W>*>(values + k) = start + v * span;
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

template <int W>
void sample(const Tile& t, int first, int last, float* rows) {
  if (t.sigma_x == 1 && t.sigma_y == 1) {
    sample_plain<W>(t, first, last, rows);
  } else if (W > 8 && t.taps_x <= 8) {
    sample_antialiased<(W > 8 ? 8 : W)>(t, first, last, rows);
  } else {
    sample_antialiased<W>(t, first, last, rows);
  }
}

template <int W>
const TileKernels* kernels(const char* name) {
  static const TileKernels table = {name, prepare, sample<W>, window<W>, copy<W>, fence};
  return &table;
}

}  // namespace TILE_ISA
}  // namespace
}  // namespace lesionaug
