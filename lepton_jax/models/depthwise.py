"""Convolution of each channel by itself, with a gradient that is right on every mesh.

XLA's partitioner counts the gradient of a depthwise kernel once per device of the "model" axis where images are split
over another axis and channels are whole (jax 0.10.2). So the derivative by the kernel is written out here.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from lepton_jax.models import layers

Maps = Float[Array, "batch height width channels"]
Kernel = Float[Array, "size size 1 channels"]
Filtered = Float[Array, "batch rows columns channels"]


class Depthwise(nn.Module):
    """A size x size convolution of each channel by itself, padded by size // 2 on every side.

    Chollet 2017, https://arxiv.org/abs/1610.02357.
    """

    size: int
    strides: int = 1
    use_bias: bool = False
    kernel_init: Any = nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # He et al. 2015; fan-in is size^2

    @nn.compact
    def __call__(self, x: layers.Images) -> Filtered:
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, 1, x.shape[-1]))
        dtype = jnp.promote_types(x.dtype, kernel.dtype)
        padding = ((0, 0), (self.size // 2,) * 2, (self.size // 2,) * 2, (0, 0))
        y = filtered(self.strides, jnp.pad(jnp.asarray(x, dtype), padding), kernel.astype(dtype))
        if not self.use_bias:
            return y
        return y + self.param("bias", nn.initializers.zeros, (x.shape[-1],)).astype(dtype)[None, None, None]


def _filtered(strides: int, x: Maps, kernel: Kernel) -> Filtered:
    """Each channel of x correlated with its own kernel, without padding, at every `strides`-th pixel."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


filtered = jax.custom_jvp(_filtered, nondiff_argnums=(0,))


@filtered.defjvp
def _filtered_jvp(
    strides: int, primals: tuple[Maps, Kernel], tangents: tuple[Maps, Kernel]
) -> tuple[Filtered, Filtered]:
    (x, kernel), (dx, dkernel) = primals, tangents
    y = filtered(strides, x, kernel)
    return y, filtered(strides, dx, kernel) + shifted(strides, x, dkernel, y.shape).astype(y.dtype)


def shifted(strides: int, x: Maps, kernel: Kernel, shape: tuple[int, ...]) -> Filtered:
    """The same as a sum of shifted images, each times one number per channel, in float32 or wider.

    Its transpose by the kernel is a sum over examples and pixels per shift, which partitions as any sum does.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    total = jnp.zeros(shape, wide)
    for row in range(kernel.shape[0]):
        for column in range(kernel.shape[1]):
            rows = slice(row, row + strides * (shape[1] - 1) + 1, strides)
            columns = slice(column, column + strides * (shape[2] - 1) + 1, strides)
            total += x[:, rows, columns].astype(wide) * kernel[row, column].astype(wide)[None, None]
    return total
