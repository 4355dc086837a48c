"""Convolutions in the order that CPUs like: the same numbers, in loops too, and nothing in another order is left."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lp
from lepton_jax import convolutions

convolutions.in_order_on_cpus()  # as the first gradient that is made of a loss does

CASES = {
    "plain": {},
    "strided": {"window_strides": (2, 2)},
    "dilated": {"rhs_dilation": (2, 2)},
    "transposed": {"lhs_dilation": (2, 2), "window_strides": (1, 1)},
    "grouped": {"feature_group_count": 2},
}


def convolve(kernel, images, *, window_strides=(1, 1), feature_group_count=1, **options):
    """As layers have it."""
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        window_strides,
        [(1, 1), (1, 0)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=feature_group_count,
        **options,
    )


def by_hand(kernel, images, window_strides=(1, 1), rhs_dilation=(1, 1), lhs_dilation=(1, 1), feature_group_count=1):
    """The sum over the kernel's places of shifted images times the kernel there, with numpy's slices."""
    batch, height, width, features = images.shape
    spread = jnp.zeros((batch, (height - 1) * lhs_dilation[0] + 1, (width - 1) * lhs_dilation[1] + 1, features))
    spread = spread.at[:, :: lhs_dilation[0], :: lhs_dilation[1]].set(images)
    padded = jnp.pad(spread, ((0, 0), (1, 1), (1, 0), (0, 0)))
    reach = [(size - 1) * step + 1 for size, step in zip(kernel.shape[:2], rhs_dilation, strict=True)]
    rows, columns = (padded.shape[1 + i] - reach[i] + 1 for i in range(2))
    groups, total = feature_group_count, 0.0
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            top, left = i * rhs_dilation[0], j * rhs_dilation[1]
            seen = padded[:, top : top + rows : window_strides[0], left : left + columns : window_strides[1]]
            seen = seen.reshape(*seen.shape[:3], groups, -1)
            here = kernel[i, j].reshape(kernel.shape[2], groups, -1)
            total = total + jnp.einsum("bhwgi,igo->bhwgo", seen, here).reshape(*seen.shape[:3], -1)
    return total


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_sums_by_hand(case, float64):
    options, rng = CASES[case], np.random.default_rng(0)
    groups = options.get("feature_group_count", 1)
    images, kernel = rng.normal(size=(5, 7, 6, 4)), rng.normal(size=(3, 2, 4 // groups, 6))

    def loss(convolution):
        return jax.grad(lambda kernel, images: jnp.sum(jnp.sin(convolution(kernel, images, **options))), (0, 1))

    found = jax.jit(loss(convolve))(kernel, images)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-10), found, loss(by_hand)(kernel, images))
    each = jax.jit(jax.vmap(loss(convolve), (None, 0)))(kernel, images[:, None])
    one = [loss(by_hand)(kernel, image[None]) for image in images]
    np.testing.assert_allclose(each[0], np.stack([kernel for kernel, _ in one]), atol=1e-10)


@pytest.mark.parametrize("axes", [None, "1x1", "2x1"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_nothing_in_another_order_is_left_in_a_loop(rank, axes):
    letters = "DHW"[3 - rank :]
    orders = (f"N{letters}C", f"{letters}IO", f"N{letters}C")

    def step(kernel, images):
        def loss(kernel, images):
            return jnp.sum(
                jnp.sin(jax.lax.conv_general_dilated(images, kernel, [1] * rank, "SAME", None, None, orders))
            )

        gradient, back = jax.grad(loss, (0, 1))(kernel, images)
        return kernel - gradient, back

    images = jax.ShapeDtypeStruct((3, 4, *[8] * rank, 5), jnp.float32)
    kernel = jax.ShapeDtypeStruct((*[3] * rank, 5, 5), jnp.float32)
    mesh = jax.set_mesh(lp.mesh.make(axes)) if axes else contextlib.nullcontext()
    with mesh:
        lowered = jax.jit(lambda kernel, images: jax.lax.scan(step, kernel, images)).lower(kernel, images)
        text = lowered.compile().as_text()
    orders = set(re.findall(r"dim_labels=(\S+?)[,\s]", text))
    numbers = "0123"[:rank]
    assert orders == {f"b{numbers}f_{numbers}io->b{numbers}f"}
