"""What holds for every transform: determinism, replay, independence, dtype, and the same pixels on every mesh."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax import augment, mesh

TRANSFORMS = {
    "identity": augment.identity,
    "random_crop": augment.random_crop(10, padding=2),
    "random_crop reflect": augment.random_crop((9, 11), padding=(2, 1), mode="reflect"),
    "random_horizontal_flip": augment.random_horizontal_flip(),
    "random_vertical_flip": augment.random_vertical_flip(0.3),
    "color_jitter": augment.color_jitter(0.4, 0.4, 0.4, 0.1),
    "random_rotation": augment.random_rotation(30),
    "random_rotation bilinear": augment.random_rotation((-90, 45), "bilinear", fill=0.5),
    "deterministic": augment.deterministic(lambda image: augment.functional.grayscale(image, 3)),
    "random_affine": augment.random_affine(20, (0.2, 0.1), (0.8, 1.2), 10),
    "random_affine bilinear": augment.random_affine(20, (0.2, 0.1), (0.8, 1.2), 10, "bilinear", fill=0.5),
    "random_perspective": augment.random_perspective(0.6, p=0.8),
    "random_elastic": augment.random_elastic(20, 1),
    "random_resized_crop": augment.random_resized_crop((9, 11)),
    # of the policies' operations a few, which compile sooner; tests/test_augment_policies.py has them all
    "randaugment": augment.randaugment(2, 20, operations=("rotate", "contrast", "equalize")),
    "randaugment_timm": augment.randaugment_timm(operations=("solarize_add", "sharpness_increasing", "translate_x")),
    "trivialaugment": augment.trivialaugment(operations=("shear_x", "posterize", "brightness")),
    "autoaugment": augment.autoaugment([[("color", 0.6, 7), ("equalize", 0.5, 0)], [("translate_y", 1.0, 5)]]),
    "augmix": augment.augmix(width=2, depth=2, operations=("rotate", "solarize")),
}
TRANSFORMS["compose"] = augment.compose(
    TRANSFORMS["random_crop"],
    TRANSFORMS["random_horizontal_flip"],
    TRANSFORMS["color_jitter"],
    TRANSFORMS["random_rotation bilinear"],
)
TRANSFORMS["compose with a policy"] = augment.compose(
    TRANSFORMS["random_horizontal_flip"], TRANSFORMS["trivialaugment"], TRANSFORMS["random_crop"]
)
each = pytest.mark.parametrize("transform", list(TRANSFORMS.values()), ids=list(TRANSFORMS))
dtypes = pytest.mark.parametrize("dtype", ["uint8", pytest.param("float32", marks=pytest.mark.long)])


def pictures(count=8, shape=(12, 14, 3), dtype="uint8", seed=0):
    levels = np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)
    return jnp.asarray(levels if dtype == "uint8" else levels / np.asarray(255, dtype), dtype)


def keys_of(seed, count=8):
    return jax.random.split(jax.random.key(seed), count)


@each
def test_apply_of_sample_is_the_call_and_keeps_the_dtype(transform):
    image, key = pictures(1)[0], jax.random.key(3)
    parameters = jax.jit(lambda key: transform.sample(key, image.shape))(key)
    once, again = jax.jit(transform)(key, image), jax.jit(transform)(key, image)
    replayed = jax.jit(transform.apply)(parameters, image)
    np.testing.assert_array_equal(once, again)
    np.testing.assert_array_equal(once, replayed)
    assert once.dtype == image.dtype


@each
def test_an_example_depends_on_its_key_and_not_on_its_batch(transform):
    images, keys = jnp.broadcast_to(pictures(1, dtype="float32"), (8, 12, 14, 3)), keys_of(5)
    run = jax.jit(augment.batched(transform))
    together = np.asarray(run(keys, images))
    np.testing.assert_array_equal(run(keys[:3], images[:3]), together[:3])
    order = np.array([7, 0, 3, 1, 2, 6, 5, 4])
    np.testing.assert_array_equal(run(keys[order], images), together[order])
    is_random = jax.tree.leaves(transform.sample(keys[0], images.shape[1:])) != []
    assert (len({image.tobytes() for image in together}) > 1) == is_random


PARTS = [TRANSFORMS[name] for name in ("random_crop", "random_horizontal_flip", "random_rotation")]
COMPOSED = jax.jit(augment.compose(*PARTS))
PARTS_JITTED = [jax.jit(part) for part in PARTS]


@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=20, deadline=None)
def test_compose_is_its_parts_in_order_each_with_its_own_key(seed):
    image, key = pictures(1)[0], jax.random.key(seed)
    expected = image
    for position, part in enumerate(PARTS_JITTED):
        expected = part(jax.random.fold_in(key, position), expected)
    np.testing.assert_array_equal(COMPOSED(key, image), expected)


def test_compose_tells_each_part_the_shape_that_reaches_it():
    seen = []
    spy = augment.Transform(lambda key, shape: seen.append(shape) or (), lambda parameters, image: image)
    augment.compose(spy, augment.random_crop((5, 7)), spy).sample(jax.random.key(0), (12, 14, 3))
    assert seen == [(12, 14, 3), (5, 7, 3)]


def test_compose_of_nothing_and_nested():
    image, key = pictures(1)[0], jax.random.key(0)
    np.testing.assert_array_equal(augment.compose()(key, image), image)
    nested = augment.compose(augment.compose(augment.identity), augment.random_crop(4))
    assert nested(key, image).shape == (4, 4, 3)


# policies know by `jax.set_mesh`, as in `step.compile`, whose rows are whose; nothing else depends on it
ON_MESHES = {f"{name}, {how}": (name, how) for name in TRANSFORMS for how in ("set", "not set")}
ON_MESHES = {case: (name, how) for case, (name, how) in ON_MESHES.items() if how == "set" or not TRANSFORMS[name].batch}


@pytest.mark.parametrize("case", ON_MESHES)
@dtypes
def test_on_a_mesh_the_same_bits_without_communication(case, dtype):
    (name, how), images, keys = ON_MESHES[case], pictures(16, dtype=dtype), keys_of(9, 16)
    here, run = mesh.make("8x1"), augment.batched(TRANSFORMS[name])
    split = mesh.batch_sharding(here)
    spread = jax.device_put(images, split), jax.device_put(keys, split)
    with jax.set_mesh(here) if how == "set" else contextlib.nullcontext():
        compiled = jax.jit(lambda images, keys: run(keys, images)).lower(*spread).compile()
    traffic = re.findall(r"all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter", str(compiled.as_text()))
    assert not traffic
    output = compiled(*spread)
    assert output.dtype == images.dtype
    assert output.sharding.is_equivalent_to(split, output.ndim)
    np.testing.assert_array_equal(output, jax.jit(run)(keys, images))
