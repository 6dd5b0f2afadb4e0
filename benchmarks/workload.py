"""The reference workload: the augmentations of one fold of the paper.

62 lesions of 17 to 114 pixels, each in a crop of 3.3 d + 16, smooth texture and noise, 480 augmentations each:
29,760 patches of 64x64 float32, 488 MB.
"""

from __future__ import annotations

import numpy as np
import torch

import lesionaug as la

NUM_LESIONS = 62


def fold(device: torch.device, dtype: torch.dtype = torch.float32, num_lesions: int = NUM_LESIONS) -> la.RoiBatch:
    rng = np.random.default_rng(2018)
    diameters = np.exp(rng.uniform(np.log(17), np.log(114), num_lesions))
    images = []
    for d in diameters:
        n = int(3.3 * d + 16)
        y, x = np.mgrid[:n, :n] / d
        waves = sum(np.sin(rng.normal(scale=4) * x + rng.normal(scale=4) * y + rng.uniform(0, 6)) for _ in range(6))
        hu = 60 + 25 * waves + rng.normal(scale=12, size=(n, n))
        values = np.rint(hu) if dtype == torch.int16 else (hu + 160) / 400
        images.append(torch.from_numpy(values.astype(str(dtype).removeprefix("torch."))))
    centers = [[image.shape[1] / 2, image.shape[0] / 2] for image in images]
    return la.RoiBatch.from_images(images, centers, diameters).to(device)
