"""docs/definitions.md once more, in float64 NumPy and plain Python: what the kernels are judged against.

Nothing here is shared with the package; it favours being obviously right over being fast.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np


def keys_kernel(t, a):
    t = np.abs(t)
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return np.where(t < 1, near, np.where(t < 2, far, 0.0))


def _axis(points, sigma, length, border, a):
    """Indices [P, K] (-1: fill) and weights [P, K] of the taps along one axis for sample points [P]."""
    if border == "renorm":
        points = np.clip(points, 0, length)
    reach = math.ceil(2 * sigma) + 1
    j = np.floor(points)[:, None] + np.arange(-reach, reach + 1)
    weights = keys_kernel((j + 0.5 - points[:, None]) / sigma, a)
    outside = (j < 0) | (j >= length)
    if border == "reflect":
        index = np.mod(j, 2 * length)
        index = np.where(index >= length, 2 * length - 1 - index, index)
    elif border == "replicate":
        index = np.clip(j, 0, length - 1)
    else:
        index = np.where(outside, -1, j)
        if border == "renorm":
            weights = np.where(outside, 0.0, weights)
    return index.astype(np.int64), weights


def resample(
    image, matrix, size, *, a=-0.5, antialias=True, border="reflect", fill=0.0, window=None, out_range=(0.0, 1.0)
):
    """One patch [size, size] in float64 of a 2-D image and a 2x3 patch_to_image matrix."""
    image = np.asarray(image, dtype=np.float64)
    matrix = np.asarray(matrix, dtype=np.float64)
    if window is not None:
        low, high = window
        image = np.clip((image - low) / (high - low), 0, 1)
        fill = float(np.clip((fill - low) / (high - low), 0, 1))
    sigma_x = max(1.0, math.hypot(*matrix[0, :2])) if antialias else 1.0
    sigma_y = max(1.0, math.hypot(*matrix[1, :2])) if antialias else 1.0
    column, row = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    points = np.stack([column.ravel(), row.ravel(), np.ones(size * size)])
    x, y = matrix @ points
    height, width = image.shape
    jx, wx = _axis(x, sigma_x, width, border, a)
    iy, wy = _axis(y, sigma_y, height, border, a)
    padded = np.full((height + 1, width + 1), fill)
    padded[:height, :width] = image  # index -1 reads the fill value
    out = np.empty(size * size)
    for p in range(size * size):
        taps = padded[np.ix_(iy[p], jx[p])]
        out[p] = wy[p] @ taps @ wx[p] / (wy[p].sum() * wx[p].sum())
    out = out.reshape(size, size)
    if window is not None:
        out = out_range[0] + np.clip(out, 0, 1) * (out_range[1] - out_range[0])
    return out


def patch_to_image(center, side, angle_deg, flip, shift, size, spacing=(1.0, 1.0)):
    """The matrix of docs/definitions.md section 1, flip folded in, in float64."""
    quarter = {0: (0, 1), 90: (1, 0), 180: (0, -1), 270: (-1, 0)}
    sine, cosine = quarter.get(angle_deg % 360, (math.sin(math.radians(angle_deg)), math.cos(math.radians(angle_deg))))
    smaller = min(spacing)
    aniso = np.diag([smaller / spacing[0], smaller / spacing[1]])
    turn = np.array([[cosine, -sine], [sine, cosine]])
    mirror = np.diag([-1.0 if flip & 1 else 1.0, -1.0 if flip & 2 else 1.0])
    linear = aniso @ turn @ mirror * (side / size)
    offset = np.asarray(center) - linear @ np.array([size / 2, size / 2]) - aniso @ turn @ mirror @ np.asarray(shift)
    return np.concatenate([linear, offset[:, None]], axis=1)


def philox(counter, key):
    """Philox4x32-10 on Python integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def lesion_words(lesion_id):
    key = int.from_bytes(hashlib.blake2b(lesion_id.encode()).digest()[:8], "little")
    return key & 0xFFFFFFFF, key >> 32


def plan_row(
    lesion_id,
    diameter,
    k,
    seed,
    n_flip=3,
    n_trans=7,
    n_scale=5,
    max_angle_deg=180,
    base_side=1.4,
    shift_fraction=0.1,
    max_shift_px=4.0,
    scale_low=0.1,
    scale_span=0.3,
):
    """(angle, flip, (shift x, shift y), side) of augmentation k, each rounded once to float32."""
    d = float(np.float32(diameter))
    low, high = lesion_words(lesion_id)
    key = (seed & 0xFFFFFFFF, seed >> 32)
    r, v = divmod(k, 1 + n_flip + n_trans + n_scale)

    def uniform(word):
        return (word >> 8) * 2.0**-24

    angle = np.float32(max_angle_deg * uniform(philox((0, r, low, high), key)[0]))
    flip, shift, side = 0, (0.0, 0.0), np.float32(base_side * d)
    words = philox((v, r, low, high), key)
    if 1 <= v <= n_flip:
        flip = {1: 2, 2: 1, 3: 3}[v]
    elif n_flip < v <= n_flip + n_trans:
        p = min(max_shift_px, shift_fraction * d)
        shift = tuple(np.float32((2 * uniform(word) - 1) * p) for word in words[:2])
    elif v > n_flip + n_trans:
        margin = d * (scale_low + scale_span * uniform(words[0]))
        side = np.float32(base_side * d + 2 * margin)
    return angle, flip, shift, side


def plan_order(lesion_id, seed, count=480):
    low, high = lesion_words(lesion_id)
    key = (seed & 0xFFFFFFFF, seed >> 32)
    return sorted(range(count), key=lambda k: (philox((k, 0xFFFFFFFF, low, high), key)[0], k))
