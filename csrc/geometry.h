// Where a patch looks: docs/definitions.md section 1, once, in float64.
//
// Points are (x, y) with the origin at the top-left corner of the image; the centre of pixel (row i, column j) is
// (j + 0.5, i + 0.5). A map takes a patch point to an image point and is never flipped: a flip changes only the
// address a value is stored at, so an image and its flips have the same bits.
#pragma once

#include "portable.h"

namespace lesionaug {

struct Map {
  double m00, m01, m02;
  double m10, m11, m12;
};

enum class Status : int { kOk, kIndexOutOfRange, kNotFinite, kSigmaTooLarge };

// Sine and cosine of an angle in degrees, exact at multiples of 90.
LA_HD void sincos_degrees(double degrees, double& sine, double& cosine) {
  const double turn = fmod(degrees, 360.0);
  const double quarter = rint(turn / 90.0);
  const double rest = (turn - 90.0 * quarter) * 0.017453292519943295;
  const double s = sin(rest), c = cos(rest);
  switch (int(quarter) & 3) {
    case 0: sine = s, cosine = c; break;
    case 1: sine = c, cosine = -s; break;
    case 2: sine = -s, cosine = -c; break;
    default: sine = -c, cosine = s; break;
  }
}

struct Placement {
  double center_x, center_y;    // of the lesion, in pixels of its image
  double spacing_x, spacing_y;  // mm
  float angle;                  // degrees, positive turns the picture counter-clockwise
  uint8_t flip;                 // bit 0 left-right, bit 1 up-down
  float shift_x, shift_y;       // along the patch's axes, in pixels of the smaller spacing
  float side;                   // of the square that becomes the patch, in pixels of the smaller spacing
};

// image = c + A R(angle) F ((patch - n/2) S/n - t), for unflipped patch coordinates q = n/2 + F (patch - n/2).
LA_HD Map place(const Placement& p, int size) {
  double sine, cosine;
  sincos_degrees(p.angle, sine, cosine);
  const double smaller = p.spacing_x < p.spacing_y ? p.spacing_x : p.spacing_y;
  const double ax = smaller / p.spacing_x, ay = smaller / p.spacing_y;
  const double zoom = double(p.side) / size;
  const double half = 0.5 * size * zoom;
  const double u = -half - ((p.flip & 1) ? -double(p.shift_x) : double(p.shift_x));
  const double v = -half - ((p.flip & 2) ? -double(p.shift_y) : double(p.shift_y));
  return {ax * cosine * zoom, -ax * sine * zoom,  p.center_x + ax * (cosine * u - sine * v),
          ay * sine * zoom,   ay * cosine * zoom, p.center_y + ay * (sine * u + cosine * v)};
}

// The map from flipped patch coordinates, as users see it.
LA_HD Map fold_flip(Map m, uint8_t flip, int size) {
  if (flip & 1) {
    m.m02 += m.m00 * size, m.m00 = -m.m00;
    m.m12 += m.m10 * size, m.m10 = -m.m10;
  }
  if (flip & 2) {
    m.m02 += m.m01 * size, m.m01 = -m.m01;
    m.m12 += m.m11 * size, m.m11 = -m.m11;
  }
  return m;
}

}  // namespace lesionaug
