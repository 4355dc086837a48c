"""The handwritten digits that come with scikit-learn: 1,797 images of 8x8, no files needed.

Alpaydin and Kaynak 1998, https://archive.ics.uci.edu/dataset/80
"""

import numpy as np

from lepton_jax.data.sources import Arrays, Dataset


def digits(seed: int = 0) -> Dataset:
    """uint8 [8, 8, 1] images, 0..16 scaled to 0..255, in a stratified 80/20 split drawn by `seed`."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=seed % 2**32)
    splits = [Arrays({"input": images[rows], "label": labels[rows]}) for rows in (train, test)]
    return Dataset("digits", splits[0], splits[1], tuple(str(digit) for digit in range(10)), (8, 8, 1))
