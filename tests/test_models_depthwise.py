"""Depthwise convolution: its values, its derivatives, and the gradient on every mesh that XLA gets wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lepton_jax import mesh
from lepton_jax.models.depthwise import Depthwise, filtered

strided = pytest.mark.parametrize("strides", [1, 2])


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def correlated(x: np.ndarray, kernel: np.ndarray, strides: int) -> np.ndarray:
    """In numpy: every window times the kernel, channel by channel."""
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))
    return np.einsum("bhwcij,ijc->bhwc", windows[:, ::strides, ::strides], kernel[:, :, 0])


@strided
def test_values_and_derivatives_are_those_of_the_sum_over_windows(strides, float64):
    x, kernel, dx, dkernel = draw(2, 7, 6, 4), draw(3, 3, 1, 4), draw(2, 7, 6, 4, seed=1), draw(3, 3, 1, 4, seed=2)
    (x, kernel), given = jax.tree.map(jnp.asarray, ((x, kernel), (dx, dkernel)))
    y, dy = jax.jvp(lambda x, k: filtered(strides, x, k), (x, kernel), given)
    np.testing.assert_allclose(y, correlated(np.asarray(x), np.asarray(kernel), strides), rtol=1e-12)
    # both arguments enter linearly, so the derivative is known in closed form
    expected = correlated(dx, np.asarray(kernel), strides) + correlated(np.asarray(x), dkernel, strides)
    np.testing.assert_allclose(dy, expected, rtol=1e-12, atol=1e-12)
    back_x, back_kernel = jax.vjp(lambda x, k: filtered(strides, x, k), x, kernel)[1](y)
    np.testing.assert_allclose(np.vdot(back_x, dx) + np.vdot(back_kernel, dkernel), np.vdot(y, dy), rtol=1e-12)


@strided
@pytest.mark.parametrize("size", [3, 5])
def test_the_layer_pads_half_its_size_on_every_side(size, strides):
    x = draw(2, 6, 7, 4).astype(np.float32)
    layer = Depthwise(size, strides, use_bias=True)
    params = {"kernel": draw(size, size, 1, 4), "bias": draw(4)}
    params = jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), params)
    padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    expected = correlated(padded, np.asarray(params["kernel"]), strides) + np.asarray(params["bias"])
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axes", ["8x1", "4x2", "2x4", "1x8", "data=2,fsdp=2,model=2"])
@pytest.mark.parametrize("split", [P(), P(None, None, None, "model")])
def test_the_gradient_of_the_kernel_is_the_same_on_every_mesh(axes, split, float64):
    """With images split over data and channels whole, XLA's own comes out once per device of the model axis."""
    x, kernel, weight = draw(8, 4, 4, 8), draw(3, 3, 1, 8), draw(8, 2, 2, 8)
    gradient = jax.grad(lambda k, x, w: jnp.sum(filtered(1, x, k) * w))
    over = mesh.make(axes)
    lie = (NamedSharding(over, split), *(mesh.batch_sharding(over),) * 2)
    expected = jax.jit(gradient)(kernel, x, weight)
    np.testing.assert_allclose(jax.jit(gradient, in_shardings=lie)(kernel, x, weight), expected, rtol=1e-12)


def test_a_gradient_per_example_adds_up_to_the_gradient():
    x, kernel = (jnp.asarray(draw(*shape), jnp.float32) for shape in ((4, 5, 5, 3), (3, 3, 1, 3)))

    def loss(kernel, x):
        return jnp.sum(filtered(1, x, kernel) ** 2)

    each = jax.vmap(jax.grad(loss), in_axes=(None, 0))(kernel, x[:, None])
    np.testing.assert_allclose(each.sum(0), jax.grad(loss)(kernel, x), rtol=1e-4)
