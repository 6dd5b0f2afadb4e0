// The paper's augmentation parameters from counter-based random numbers (paper III-A; docs/definitions.md, section 3).
#pragma once

#include "portable.h"

namespace lesionaug {

// Philox4x32-10 (Salmon et al. 2011): four random words for any counter, in any order, on any device.
struct Words {
  uint32_t w[4];
};

LA_HD Words philox(uint64_t seed, Words counter) {
  uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t(0xD2511F53u) * counter.w[0];
    const uint64_t product1 = uint64_t(0xCD9E8D57u) * counter.w[2];
    counter = {{uint32_t(product1 >> 32) ^ counter.w[1] ^ key0, uint32_t(product1),
                uint32_t(product0 >> 32) ^ counter.w[3] ^ key1, uint32_t(product0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

LA_HD double uniform(uint32_t word) { return double(word >> 8) * 5.9604644775390625e-08; }  // [0, 1) in steps of 2^-24

// Rounded products and sums, so that no compiler contracts them: the same bits on every device.
#ifdef __CUDA_ARCH__
LA_HD double mul(double x, double y) { return __dmul_rn(x, y); }
LA_HD double add(double x, double y) { return __dadd_rn(x, y); }
#else
LA_HD double mul(double x, double y) { return x * y; }  // host files are compiled with -ffp-contract=off
LA_HD double add(double x, double y) { return x + y; }
#endif

struct PlanArgs {
  uint64_t seed;
  int64_t num_rois;
  const int64_t* lesion_keys;               // [num_rois]
  const float* diameters;                   // [num_rois], pixels
  int32_t n_rot, n_flip, n_trans, n_scale;  // together less than 2^31 augmentations of a lesion
  double max_angle, base_side, shift_fraction, max_shift, scale_low, scale_span;
  // The rows of `plan_row`.
  int64_t num_rows, num_indices;
  const int64_t* lesions;  // [num_rows], the lesion of each row, or null: num_indices rows for each, in order
  const int64_t* indices;  // augmentation index: [num_indices] for every lesion, or [num_rows], or null: 0, 1, ...
  int32_t index_per_row;   // 1: `indices` is [num_rows]
  // Results, [num_rows].
  int64_t* roi;
  float* angle;
  uint8_t* flip;
  float* shift;  // [num_rows, 2]
  float* side;
};

// How one patch is made of its lesion.
struct Draw {
  float angle, shift_x, shift_y, side;
  uint8_t flip;
};

LA_HD uint32_t variants(const PlanArgs& args) { return uint32_t(1 + args.n_flip + args.n_trans + args.n_scale); }

LA_HD bool in_plan(const PlanArgs& args, int64_t lesion, int64_t k) {
  return lesion >= 0 && lesion < args.num_rois && k >= 0 && k < int64_t(variants(args)) * args.n_rot;
}

LA_HD Words draw_words(const PlanArgs& args, int64_t lesion, uint32_t v, uint32_t r) {
  const uint64_t key = uint64_t(args.lesion_keys[lesion]);
  return philox(args.seed, {{v, r, uint32_t(key), uint32_t(key >> 32)}});
}

// The angle that all variants of rotation `r` share.
LA_HD float draw_angle(const PlanArgs& args, int64_t lesion, uint32_t r) {
  return float(mul(args.max_angle, uniform(draw_words(args, lesion, 0, r).w[0])));
}

LA_HD Draw draw_variant(const PlanArgs& args, int64_t lesion, uint32_t r, uint32_t v, float angle) {
  const double d = args.diameters[lesion];
  Draw drawn{angle, 0, 0, float(mul(args.base_side, d)), 0};
  if (v == 0) return drawn;
  if (v <= uint32_t(args.n_flip)) {  // up-down, left-right, both
    drawn.flip = v == 1 ? 2 : v == 2 ? 1 : 3;
    return drawn;
  }
  const Words words = draw_words(args, lesion, v, r);
  const double u0 = uniform(words.w[0]), u1 = uniform(words.w[1]);
  if (v <= uint32_t(args.n_flip + args.n_trans)) {
    const double p = fmin(args.max_shift, mul(args.shift_fraction, d));
    drawn.shift_x = float(mul(add(mul(2, u0), -1), p));
    drawn.shift_y = float(mul(add(mul(2, u1), -1), p));
  } else {
    const double margin = mul(d, add(args.scale_low, mul(args.scale_span, u0)));
    drawn.side = float(add(mul(args.base_side, d), mul(2, margin)));
  }
  return drawn;
}

// Augmentation `k` of `lesion`; NaN where there is no such lesion or augmentation, so that its patch is NaN and never a
// stray read.
LA_HD Draw draw(const PlanArgs& args, int64_t lesion, int64_t k) {
  if (!in_plan(args, lesion, k)) return {NAN, 0, 0, NAN, 0};
  const uint32_t r = uint32_t(k) / variants(args), v = uint32_t(k) % variants(args);
  return draw_variant(args, lesion, r, v, draw_angle(args, lesion, r));
}

// Which lesion and augmentation `row` is.
struct PlanRow {
  int64_t lesion, k;
};

LA_HD PlanRow plan_row(const PlanArgs& args, int64_t row) {
  const int64_t position = row % args.num_indices;
  return {args.lesions ? args.lesions[row] : row / args.num_indices,
          !args.indices ? position : args.indices[args.index_per_row ? row : position]};
}

LA_HD void store_row(const PlanArgs& args, int64_t row, int64_t lesion, const Draw& drawn) {
  args.roi[row] = lesion;
  args.angle[row] = drawn.angle;
  args.flip[row] = drawn.flip;
  args.shift[2 * row] = drawn.shift_x;
  args.shift[2 * row + 1] = drawn.shift_y;
  args.side[row] = drawn.side;
}

}  // namespace lesionaug
