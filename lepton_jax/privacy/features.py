"""Features that no data has taught, on which small private models are better than deep ones: a scattering transform.

Its filters are fixed, so it costs no privacy (Tramer and Boneh 2021, https://arxiv.org/abs/2011.11660; Bruna and Mallat
2013, https://arxiv.org/abs/1203.1513).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from lepton_jax.errors import InputError
from lepton_jax.models.inputs import unit
from lepton_jax.types import Key, Keys, Model, Variables

Images = Float[Array, "batch height width channels"]


def scattering(
    images: Images, scales: int = 2, angles: int = 8, order: int = 2, stride: int | None = None
) -> Float[Array, "batch rows columns features"]:
    """Averages of the images, of the moduli of wavelets, and of the moduli of wavelets of these.

    Morlet wavelets of so many octaves and angles, by Fourier transforms of the images mirrored at their edges; averages
    are taken at every `stride` pixels, 2^scales by default. Of L angles and J scales come channels * (1 + L J +
    L^2 J (J - 1) / 2) features, without the last term where `order` is 1. Raises InputError for images that have no
    such octaves.
    """
    height, width = images.shape[1:3]
    margin = 2**scales
    pixels = margin if stride is None else stride
    if min(scales, angles, pixels) < 1 or min(height, width) < max(margin, pixels):
        problem = f"images of {height}x{width} have no {scales} octaves, {angles} angles, or {pixels} pixels to average"
        raise InputError(problem, "take fewer, or greater images")
    around = ((0, 0), (0, 0), (margin, margin), (margin, margin))
    padded = jnp.pad(jnp.moveaxis(images, -1, 1), around, mode="symmetric")
    rows, columns = (averages(size, margin, pixels) for size in (height, width))
    waves = wavelets(*padded.shape[2:], scales, angles)

    def averaged(x: Array) -> Array:
        return jnp.einsum("ri,bnij,cj->brcn", rows, x, columns, precision="highest")

    def moduli(x: Array, scale: int) -> list[Array]:
        spectrum = jnp.fft.fft2(x)
        return [jnp.abs(jnp.fft.ifft2(spectrum * wave[None, None])) for wave in waves[scale]]

    features = [averaged(padded)]
    for scale in range(scales):
        for first in moduli(padded, scale):
            coarser = range(scale + 1, scales if order == 2 else 0)
            features += [averaged(x) for x in (first, *(x for other in coarser for x in moduli(first, other)))]
    return jnp.concatenate(features, -1)


def averages(size: int, margin: int, stride: int) -> Float[np.ndarray, "positions padded"]:
    """A Gaussian at every `stride` of `size` pixels with margins around them, as the matrix that averages over it."""
    padded = size + 2 * margin
    apart = np.arange(margin + stride // 2, margin + size, stride)[:, None] - np.arange(padded)
    near = np.minimum(apart % padded, -apart % padded)
    weights = np.exp(-(near**2) / (2 * (0.4 * stride) ** 2))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


@functools.lru_cache(maxsize=16)
def wavelets(height: int, width: int, scales: int, angles: int) -> Complex[np.ndarray, "scales angles height width"]:
    """Morlet wavelets as spectra, complex64; the finest with sigma 0.8 and frequency 3 pi / 4 (Bruna and Mallat)."""
    y, x = (np.fft.fftfreq(size, 1 / size) for size in (height, width))
    y, x = y[:, None], x[None, :]

    def wavelet(scale: int, number: int) -> np.ndarray:
        sigma, frequency, angle = 0.8 * 2**scale, 0.75 * math.pi / 2**scale, math.pi * number / angles
        along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        envelope = np.exp(-(along**2 + (4 / angles * across) ** 2) / (2 * sigma**2))
        envelope /= envelope.sum()
        wave = envelope * np.exp(1j * frequency * along)
        return wave - envelope * wave.sum()  # no answer to a constant image

    spectra = [[np.fft.fft2(wavelet(scale, number)) for number in range(angles)] for scale in range(scales)]
    return np.asarray(spectra, np.complex64)


def normed(features: Float[Array, "batch ..."], length: float) -> Float[Array, "batch numbers"]:
    """Each example's features with mean 0 and this Euclidean length. It sees one example at a time."""
    flat = features.reshape(len(features), -1)
    flat = flat - jnp.mean(flat, axis=1, keepdims=True)
    return flat * (length / jnp.maximum(jnp.linalg.norm(flat, axis=1, keepdims=True), 1e-6))


def featured(model: Model, features: Callable[[Images], Array]) -> Model:
    """The same model on features of raw images: uint8 in 0..255 or floating in [0, 1], channels last."""

    def init(key: Key, inputs: Any) -> Variables:
        return model.init(key, features(jnp.zeros(inputs.shape, jnp.float32)))

    def apply(variables: Variables, inputs: Any, train: bool, keys: Keys | None) -> tuple[Any, dict[str, Any]]:
        return model.apply(variables, features(unit(jnp.asarray(inputs))), train, keys)

    return Model(init, apply, model.rules)
