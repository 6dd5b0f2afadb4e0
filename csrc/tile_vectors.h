// Vectors of 4, 8 or 16 floats and what the kernels do with them. A file includes this after defining TILE_ISA (a
// namespace of its own); everything here has internal linkage, for the reason given in tile.h.
#pragma once

#include "tile.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
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
    typedef uint32_t U __attribute__((vector_size(4 * W)));                         \
    typedef double D __attribute__((vector_size(8 * W)));                           \
    typedef int64_t L __attribute__((vector_size(8 * W)));                          \
    typedef float Loose __attribute__((vector_size(4 * W), aligned(4), may_alias)); \
    typedef uint16_t Shorts __attribute__((vector_size(2 * W)));                    \
    typedef uint8_t Bytes __attribute__((vector_size(W)));                          \
  }
TILE_VECTORS(2);
TILE_VECTORS(4);
TILE_VECTORS(8);
TILE_VECTORS(16);
#undef TILE_VECTORS
template <int W>
using F = typename Vectors<W>::F;
template <int W>
using I = typename Vectors<W>::I;
template <int W>
using U = typename Vectors<W>::U;
template <int W>
using D = typename Vectors<W>::D;
template <int W>
using L = typename Vectors<W>::L;

#define TILE_INLINE static inline __attribute__((always_inline))
#define TILE_INLINE_MEMBER inline __attribute__((always_inline))

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
TILE_INLINE F<W> at_least(F<W> v, float low) {  // where no NaN comes
#ifdef __AVX512F__
  if constexpr (W == 16) return _mm512_max_ps(v, _mm512_set1_ps(low));
#endif
#ifdef __AVX__
  if constexpr (W == 8) return _mm256_max_ps(v, _mm256_set1_ps(low));
#endif
#ifdef __x86_64__
  if constexpr (W == 4) return _mm_max_ps(v, _mm_set1_ps(low));
#endif
  return choose<W>(v > low, v, all<W>(low));
}

// a * b + c, rounded once where the processor can: the same in every place it stands.
template <int W>
TILE_INLINE F<W> fma(F<W> a, F<W> b, F<W> c) {
#ifdef __AVX512F__
  if constexpr (W == 16) return _mm512_fmadd_ps(a, b, c);
#endif
#ifdef __FMA__
  if constexpr (W == 8) return _mm256_fmadd_ps(a, b, c);
  if constexpr (W == 4) return _mm_fmadd_ps(a, b, c);
#endif
#ifdef __aarch64__
  if constexpr (W == 4) return reinterpret_cast<F<W>>(vfmaq_f32(c, a, b));
#endif
  return a * b + c;
}

// Every group of four of the result: elements P, Q, R and S of that group of u (0 to 3) and v (4 to 7).
template <int W, int P, int Q, int R, int S>
TILE_INLINE F<W> pick(F<W> u, F<W> v) {
#define TILE_FROM(e, group) ((e) + 4 * (group) + ((e) < 4 ? 0 : W - 4))
#define TILE_GROUP(group) TILE_FROM(P, group), TILE_FROM(Q, group), TILE_FROM(R, group), TILE_FROM(S, group)
  if constexpr (W == 4) {
    return TILE_SHUFFLE2(W, u, v, TILE_GROUP(0));
  } else if constexpr (W == 8) {
    return TILE_SHUFFLE2(W, u, v, TILE_GROUP(0), TILE_GROUP(1));
  } else {
    return TILE_SHUFFLE2(W, u, v, TILE_GROUP(0), TILE_GROUP(1), TILE_GROUP(2), TILE_GROUP(3));
  }
#undef TILE_GROUP
#undef TILE_FROM
}

// Turns every group of four of four vectors over: element q of vector k becomes element k of vector q.
template <int W>
TILE_INLINE void turn_groups(F<W>& a, F<W>& b, F<W>& c, F<W>& d) {
  const F<W> ab = pick<W, 0, 4, 1, 5>(a, b), ab_high = pick<W, 2, 6, 3, 7>(a, b);
  const F<W> cd = pick<W, 0, 4, 1, 5>(c, d), cd_high = pick<W, 2, 6, 3, 7>(c, d);
  a = pick<W, 0, 1, 4, 5>(ab, cd), b = pick<W, 2, 3, 6, 7>(ab, cd);
  c = pick<W, 0, 1, 4, 5>(ab_high, cd_high), d = pick<W, 2, 3, 6, 7>(ab_high, cd_high);
}

// Turns the groups of four of four vectors over: group q of vector k becomes group k of vector q.
template <int W>
TILE_INLINE void exchange_groups(F<W>& a, F<W>& b, F<W>& c, F<W>& d) {
  static_assert(W == 16, "four groups");
  const F<16> ab = TILE_SHUFFLE2(16, a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
  const F<16> cd = TILE_SHUFFLE2(16, c, d, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
  const F<16> ab_high = TILE_SHUFFLE2(16, a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  const F<16> cd_high = TILE_SHUFFLE2(16, c, d, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  a = TILE_SHUFFLE2(16, ab, cd, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
  b = TILE_SHUFFLE2(16, ab, cd, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  c = TILE_SHUFFLE2(16, ab_high, cd_high, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
  d = TILE_SHUFFLE2(16, ab_high, cd_high, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}

// In every group of four of the result: the sums of that group of a, b, c and d.
template <int W>
TILE_INLINE F<W> sum_groups(F<W> a, F<W> b, F<W> c, F<W> d) {
  const F<W> ab = pick<W, 0, 4, 1, 5>(a, b) + pick<W, 2, 6, 3, 7>(a, b);
  const F<W> cd = pick<W, 0, 4, 1, 5>(c, d) + pick<W, 2, 6, 3, 7>(c, d);
  return pick<W, 0, 1, 4, 5>(ab, cd) + pick<W, 2, 3, 6, 7>(ab, cd);
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
#ifdef __AVX512F__
  if constexpr (W == 16) {
    __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(p + offsets[Q]));
    v = _mm512_mask_broadcast_f32x4(v, 0x00F0, _mm_loadu_ps(p + offsets[Q + 4]));
    v = _mm512_mask_broadcast_f32x4(v, 0x0F00, _mm_loadu_ps(p + offsets[Q + 8]));
    return _mm512_mask_broadcast_f32x4(v, 0xF000, _mm_loadu_ps(p + offsets[Q + 12]));
  }
#endif
#ifdef __AVX__
  if constexpr (W == 8) {
    const __m256 low = _mm256_castps128_ps256(_mm_loadu_ps(p + offsets[Q]));
    return _mm256_insertf128_ps(low, _mm_loadu_ps(p + offsets[Q + 4]), 1);
  }
#endif
  if constexpr (W == 4) return load<4>(p + offsets[Q]);
  F<W> v{};
  for (int k = 0; k < W; ++k) v[k] = p[offsets[Q + k / 4 * 4] + k % 4];
  return v;
}

// The four floats at p, an aligned address, in every group of four.
template <int W>
TILE_INLINE F<W> load_repeated(const float* p) {
#ifdef __AVX512F__
  if constexpr (W == 16) return _mm512_broadcast_f32x4(_mm_load_ps(p));
#endif
  F<W> v{};
  for (int k = 0; k < W; ++k) v[k] = p[k % 4];
  return v;
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

}  // namespace TILE_ISA
}  // namespace
}  // namespace lesionaug
