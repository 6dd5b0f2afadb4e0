"""The map of Fig. 9: features of the classifier's last layer, by t-SNE. To look at; distances in it prove nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lesionaug.errors import ConfigError, DataError

FEWEST = 4  # rows; with fewer the perplexity below would be under 1, less than one neighbour each


def embed(features: npt.ArrayLike, *, seed: int, perplexity: float | None = None) -> npt.NDArray[np.float32]:
    """Place images on a plane, near those with like features (t-SNE, van der Maaten and Hinton 2008).

    The features are taken as they are, not standardised: they are one layer's activations, so that all have one unit,
    and the next layer sees them so. Standardising would make units that hardly ever answer as loud as the others, and
    divide by 0 where one never does. It begins from the first two principal components, which keeps the large-scale
    order, and runs on one thread: sums in another order lead to another map. So the same numbers give the same map on
    one machine, whatever its number of threads.

    Args:
        features: [N, d], one row per image, d >= 2: the 256 units of one split's classifier, never pooled over splits.
        seed: Of t-SNE.
        perplexity: Neighbours that count, roughly; at least 1, below N. When None, 30 or a third of the other rows,
            whichever is less.

    Returns:
        [N, 2] float32, no unit; turned and mirrored at will.

    Raises:
        ValueError: Not [N, d] with d >= 2.
        DataError: Too few rows, values that are not finite, rows that are all the same.
        ConfigError: A perplexity that does not fit the number of rows.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] < 2:
        raise ValueError(f"features must be [N, d] with d >= 2, got shape {x.shape}")
    if len(x) < FEWEST:
        raise DataError("features", f"t-SNE needs at least {FEWEST} rows, got {len(x)}", "Embed more images at once")
    broken = int((~np.isfinite(x).all(1)).sum())
    if broken:
        raise DataError(
            "features",
            f"{broken} of {len(x)} rows hold values that are not finite",
            "Look at the classifier: it failed",
        )
    if (x == x[0]).all():
        raise DataError(
            "features", f"all {len(x)} rows are the same", "Look at the classifier: its last layer says nothing"
        )
    if perplexity is None:
        perplexity = min(30.0, (len(x) - 1) / 3)
    elif not 1 <= perplexity < len(x):
        raise ConfigError(
            "perplexity", f"it must be at least 1 and below the {len(x)} rows, got {perplexity}", "Leave it out"
        )
    with threadpool_limits(1):
        placed = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(x)
    return np.asarray(placed, dtype=np.float32)
