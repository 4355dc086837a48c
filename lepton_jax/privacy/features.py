"""Features that no data has taught, on which small private models are better than deep ones: a scattering transform.

Its filters are fixed, so it costs no privacy (Tramer and Boneh 2021, https://arxiv.org/abs/2011.11660; Bruna and Mallat
2013, https://arxiv.org/abs/1203.1513).
"""

import functools
import itertools
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
    padded = jnp.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    lowpass, wavelets = filters(padded.shape[1], padded.shape[2], scales, angles, pixels)

    def filtered(x: Array, spectrum: np.ndarray) -> Array:
        return jnp.fft.ifft2(jnp.fft.fft2(x, axes=(1, 2)) * spectrum[None, :, :, None], axes=(1, 2))

    def averaged(x: Array) -> Array:
        y = jnp.real(filtered(x, lowpass))[:, margin : margin + height, margin : margin + width]
        return y[:, pixels // 2 :: pixels, pixels // 2 :: pixels]

    features = [averaged(padded)]
    for scale, angle in itertools.product(range(scales), range(angles)):
        first = jnp.abs(filtered(padded, wavelets[scale, angle]))
        features.append(averaged(first))
        if order == 2:
            finer = itertools.product(range(scale + 1, scales), range(angles))
            features += [averaged(jnp.abs(filtered(first, wavelets[at]))) for at in finer]
    return jnp.concatenate(features, -1)


@functools.lru_cache(maxsize=16)
def filters(
    height: int, width: int, scales: int, angles: int, stride: int
) -> tuple[Complex[np.ndarray, "height width"], Complex[np.ndarray, "scales angles height width"]]:
    """(a Gaussian that averages over `stride` pixels, Morlet wavelets) as spectra, complex64.

    The finest wavelets have sigma 0.8 and frequency 3 pi / 4, as in Bruna and Mallat.
    """
    y, x = (np.fft.fftfreq(size, 1 / size) for size in (height, width))
    y, x = y[:, None], x[None, :]

    def gaussian(sigma: float, angle: float, slant: float) -> np.ndarray:
        along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        g = np.exp(-(along**2 + (slant * across) ** 2) / (2 * sigma**2))
        return g / g.sum()

    def wavelet(scale: int, number: int) -> np.ndarray:
        sigma, frequency, angle = 0.8 * 2**scale, 0.75 * math.pi / 2**scale, math.pi * number / angles
        envelope = gaussian(sigma, angle, 4 / angles)
        wave = envelope * np.exp(1j * frequency * (x * math.cos(angle) + y * math.sin(angle)))
        return wave - envelope * wave.sum()  # no answer to a constant image

    spectra = [[np.fft.fft2(wavelet(scale, number)) for number in range(angles)] for scale in range(scales)]
    lowpass = np.fft.fft2(gaussian(0.4 * stride, 0.0, 1.0))
    return lowpass.astype(np.complex64), np.asarray(spectra, np.complex64)


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
