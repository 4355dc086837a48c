"""Policies: operations and magnitudes, distributions, and the same pixels alone, in batches and on meshes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from lepton_jax import augment, losses, mesh
from lepton_jax import keys as lp_keys
from lepton_jax.augment import functional, policies
from lepton_jax.augment.policies import operations, spaces, timm
from lepton_jax.augment.policies.autoaugment import parsed
from lepton_jax.errors import InputError
from lepton_jax.types import Aux, Mean

# every operation in the first; of the others a few, which compile sooner
POLICIES = {
    "randaugment": policies.randaugment(),
    "bilinear": policies.randaugment(3, 30, operations=("rotate", "contrast"), interpolation="bilinear", fill=1),
    "trivialaugment": policies.trivialaugment(operations=("shear_x", "posterize")),
    "autoaugment": policies.autoaugment([[("color", 0.6, 7), ("equalize", 0.5, 0)], [("translate_y", 1.0, 5)]]),
    "augmix": policies.augmix(width=2, operations=("rotate", "solarize")),
    "randaugment_timm": policies.randaugment_timm(operations=("solarize_add", "sharpness_increasing", "translate_x")),
}
each = pytest.mark.parametrize("policy", list(POLICIES.values()), ids=list(POLICIES))
SPACES = {
    "RandAugment": spaces.RANDAUGMENT,
    "TrivialAugmentWide": spaces.TRIVIALAUGMENT,
    "AutoAugment": spaces.AUTOAUGMENT,
    "AugMix": spaces.AUGMIX,
}
SHAPE = (9, 11, 3)
DRAWS = 100_000


def pictures(count=16, shape=SHAPE, dtype="uint8", seed=0):
    levels = np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)
    return jnp.asarray(levels if dtype == "uint8" else levels / np.asarray(255, dtype), dtype)


def keys_of(seed, count=16):
    return jax.random.split(jax.random.key(seed), count)


def drawn(policy, count=DRAWS, shape=(32, 48, 3), seed=0):
    sample = jax.jit(jax.vmap(lambda key: policy.sample(key, shape)))
    return jax.tree.map(np.asarray, sample(keys_of(seed, count)))


def parameters_of(policy, keys, images):
    return jax.vmap(lambda key: policy.sample(key, images.shape[1:]))(keys)


# One image, many images, many devices


@pytest.mark.parametrize(
    ("name", "dtype"), [("randaugment", "uint8"), *((name, "float32") for name in list(POLICIES)[1:])]
)
def test_a_batch_is_its_images_one_by_one_in_any_company(name, dtype):
    policy, images, keys = POLICIES[name], pictures(dtype=dtype), keys_of(3)
    oracle = np.asarray(jax.jit(jax.vmap(policy))(keys, images))
    assert oracle.dtype == images.dtype
    parameters = jax.jit(parameters_of, static_argnums=0)(policy, keys, images)
    batch = jax.jit(policy.batch)
    np.testing.assert_array_equal(batch(parameters, images), oracle)
    order = np.array([5, 0, 9])
    part = jax.tree.map(lambda leaf: leaf[order], parameters)
    np.testing.assert_array_equal(batch(part, images[order]), oracle[order])


@pytest.mark.parametrize(("name", "dtype"), [("bilinear", "uint8"), ("augmix", "float32")])
def test_the_same_bits_on_any_number_of_devices_without_communication(name, dtype):
    policy, images, keys = POLICIES[name], pictures(8, dtype=dtype), keys_of(3, 8)
    parameters = parameters_of(policy, keys, images)
    alone = np.asarray(jax.jit(policy.batch)(parameters, images))
    for axes in ("2x1", "4x2", "8x1"):
        here = mesh.make(axes)
        rows = jax.device_put((parameters, images), mesh.batch_sharding(here))
        with jax.set_mesh(here):
            compiled = jax.jit(policy.batch).lower(*rows).compile()
            output = compiled(*rows)
        assert not re.findall(r"all-gather|all-to-all|all-reduce|collective-permute", str(compiled.as_text()))
        assert output.sharding.is_equivalent_to(mesh.batch_sharding(here), output.ndim)
        np.testing.assert_array_equal(output, alone)


def test_a_batch_inside_shard_map_and_one_that_does_not_divide():
    policy, images, keys = POLICIES["trivialaugment"], pictures(), keys_of(4)
    parameters = parameters_of(policy, keys, images)
    oracle = np.asarray(jax.jit(jax.vmap(policy.act))(parameters, images))
    with jax.set_mesh(mesh.make("8x1")):
        inside = jax.jit(jax.shard_map(policy.batch, in_specs=P("data"), out_specs=P("data")))
        np.testing.assert_array_equal(inside(parameters, images), oracle)
        five = jax.tree.map(lambda leaf: leaf[:5], (parameters, images))
        np.testing.assert_array_equal(jax.jit(policy.batch)(*five), oracle[:5])


def test_compose_and_losses_act_on_batches_by_the_policys_own_way():
    seen = []
    counted = augment.Transform(
        lambda key, shape: jnp.zeros(()),
        lambda drawn, image: image,
        batch=lambda drawn, images: seen.append(1) or images,
    )
    parts = (augment.random_horizontal_flip(), POLICIES["trivialaugment"], counted, augment.random_crop(6, padding=1))
    composed, images, keys = augment.compose(*parts), pictures(), keys_of(7)
    oracle = np.asarray(jax.jit(jax.vmap(composed))(keys, images))
    assert not seen
    np.testing.assert_array_equal(jax.jit(augment.batched(composed))(keys, images), oracle)
    assert seen == [1]
    spy = losses.augmented(lambda params, stats, batch, key: (Mean(batch["input"], 1.0), Aux({}, {})), composed)
    batch = {"input": images, "index": jnp.arange(16)}
    augmented = jax.jit(lambda key: spy({}, {}, batch, key)[0].total)(jax.random.key(0))
    assert seen == [1, 1]
    expected = jax.jit(jax.vmap(composed))(lp_keys.per_example(jax.random.key(0), batch, "augment"), images)
    np.testing.assert_array_equal(augmented, expected)


def test_one_compilation_over_100_steps():
    traces = 0
    policy, images = POLICIES["bilinear"], pictures(4)

    @jax.jit
    def step(key, images):
        nonlocal traces
        traces += 1
        return policy.batch(parameters_of(policy, jax.random.split(key, 4), images), images)

    outputs = {np.asarray(step(jax.random.key(n), images)).tobytes() for n in range(100)}
    assert traces == 1
    assert len(outputs) > 90


@each
def test_keys_decide_and_nothing_else(policy):
    image = pictures(1)[0]
    act = jax.jit(policy)
    once = np.asarray(act(jax.random.key(0), image))
    np.testing.assert_array_equal(act(jax.random.key(0), image), once)
    assert any((np.asarray(act(jax.random.key(n), image)) != once).any() for n in range(1, 9))


# The operations

ALL = operations.NAMES
RUN = {name: jax.jit(kernel) for name, kernel in zip(ALL, operations.kernels(ALL, "nearest", 0), strict=True)}
AMOUNTS = {"shear_x": 0.3, "shear_y": -0.3, "translate_x": 4, "translate_y": -3, "rotate": 30, "posterize": 4}
AMOUNTS |= {"brightness": 1.5, "color": 0.2, "contrast": 1.9, "sharpness": 0.1, "solarize": 99, "solarize_add": 40}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_operation_on_gray_and_color_and_both_dtypes(name, channels):
    levels = pictures(1, (24, 20, channels))[0]
    levels = levels // 2 + 50 if name == "autocontrast" else levels  # which leaves alone what has black and white
    floats = levels.astype(jnp.float32) / 255
    amount = jnp.float32(AMOUNTS.get(name, 0))
    one, other = RUN[name](levels, amount), RUN[name](floats, amount)
    assert (one.shape, one.dtype, other.shape, other.dtype) == (levels.shape, "uint8", levels.shape, "float32")
    changed = (one != levels).any()
    assert bool(changed) == (name not in ("identity", "color" if channels == 1 else ""))
    # floats keep what uint8 truncates; posterize rounds to 16 levels, on other scales
    tolerance = {"posterize": 17, "contrast": 3}.get(name, 2)
    np.testing.assert_allclose(np.asarray(other) * 255, np.asarray(one, np.float32), atol=tolerance)


def test_solarize_add_is_pillows_table():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    for addend in (0, 40, 110, 128):
        expected = [min(255, level + addend) if level < 128 else level for level in range(256)]
        added = RUN["solarize_add"](jnp.asarray(levels), jnp.float32(addend))
        np.testing.assert_array_equal(np.asarray(added).reshape(-1), expected)


@pytest.mark.parametrize("name", list(operations.MOVES))
def test_moves_are_torchvisions_affine_maps(name):
    image, amount = pictures(1, (24, 20, 3))[0], AMOUNTS[name]
    degrees = np.rad2deg(np.arctan(amount))
    expected = {
        "shear_x": lambda: functional.affine(image, shear=(degrees, 0), center=(0, 0)),
        "shear_y": lambda: functional.affine(image, shear=(0, degrees), center=(0, 0)),
        "translate_x": lambda: functional.affine(image, translate=(amount, 0)),
        "translate_y": lambda: functional.affine(image, translate=(0, amount)),
        "rotate": lambda: functional.rotate(image, amount),
    }[name]()
    moved = RUN[name](image, jnp.float32(amount))
    assert (np.asarray(moved) != np.asarray(expected)).mean() <= 0.002


def test_boxes_and_masks_move_with_the_image():
    policy = policies.randaugment(1, 20, operations=("translate_x", "translate_y"))
    image = jnp.zeros((16, 16, 1), jnp.uint8).at[6:9, 5:9].set(200)
    boxes = augment.boxes(jnp.array([[5.0, 6.0, 9.0, 9.0]]), (16, 16))
    for key in keys_of(1, 6):
        parameters = policy.sample(key, image.shape)
        moved = np.asarray(policy.apply(parameters, image))[..., 0] > 0
        mask = np.asarray(policy.apply(parameters, augment.Mask(image[..., 0])).array) > 0
        np.testing.assert_array_equal(mask, moved)
        box = policy.apply(parameters, boxes)
        assert bool(box.valid[0]) == moved.any()
        if moved.any():
            rows, columns = np.nonzero(moved)
            np.testing.assert_allclose(
                box.corners[0], [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], atol=1e-4
            )


# Distributions, over 1e5 draws


def even(counts):
    return scipy.stats.chisquare(counts).pvalue > 1e-4


def test_randaugment_draws_operations_and_signs_evenly_and_independently():
    chain = drawn(policies.randaugment())
    names = list(spaces.RANDAUGMENT)
    pairs = np.bincount(chain.operation[:, 0] * 14 + chain.operation[:, 1], minlength=196)
    assert even(pairs)
    amounts = spaces.table(spaces.RANDAUGMENT, names, 31, (32, 48))[:, :, 9]
    for place in range(14):
        here = chain.amount[chain.operation == place]
        assert set(here) == set(amounts[place])
        if len(set(here)) == 2:
            assert even([(here == amount).sum() for amount in amounts[place]])


def test_trivialaugment_draws_levels_evenly():
    chain = drawn(policies.trivialaugment())
    names = list(spaces.TRIVIALAUGMENT)
    assert even(np.bincount(chain.operation[:, 0], minlength=14))
    turns = chain.amount[chain.operation == names.index("rotate")]
    levels = np.round(np.abs(turns) / 4.5).astype(int)
    assert even(np.bincount(levels, minlength=31))
    assert scipy.stats.binomtest(int((turns < 0).sum()), int((turns != 0).sum())).pvalue > 1e-4
    # a fine grid of levels is nearly a continuous uniform distribution
    fine = drawn(policies.trivialaugment(bins=100_001, operations=("rotate",)), 20_000)
    assert scipy.stats.kstest(np.abs(fine.amount[:, 0]), scipy.stats.uniform(0, 135).cdf).pvalue > 1e-4


@pytest.mark.parametrize("name", ["imagenet", "cifar10", "svhn"])
def test_autoaugment_draws_subpolicies_evenly_with_their_probabilities(name):
    table = parsed(name)
    assert len(table) == 25
    assert all(len(subpolicy) == 2 for subpolicy in table)
    chain = drawn(policies.autoaugment(name))
    names = sorted({part[0] for subpolicy in table for part in subpolicy} | {"identity"})
    expected = np.zeros((len(names), len(names)))
    for (one, p, _), (other, q, _) in table:
        for first, chance in ((one, p), ("identity", 1 - p)):
            for second, luck in ((other, q), ("identity", 1 - q)):
                expected[names.index(first), names.index(second)] += chance * luck / 25
    seen = np.zeros_like(expected)
    np.add.at(seen, (chain.operation[:, 0], chain.operation[:, 1]), 1)
    assert seen[expected < 1e-9].sum() == 0
    used = expected >= 1e-9
    assert scipy.stats.chisquare(seen[used], expected[used] * DRAWS).pvalue > 1e-4


@pytest.mark.parametrize("draws", [DRAWS // 5, pytest.param(DRAWS, marks=pytest.mark.long)])
def test_augmix_draws_depths_levels_and_shares(draws):
    mixture = drawn(policies.augmix(alpha=0.7), draws)
    operation, amount = mixture.chains
    assert operation.shape == (draws, 3, 3)
    depth = (operation < 13).sum(-1)
    assert even(np.bincount(depth.reshape(-1), minlength=4)[1:])
    assert even(np.bincount(operation[..., 0].reshape(-1), minlength=13))
    names = list(spaces.AUGMIX)
    turns = np.abs(amount[operation == names.index("rotate")])
    assert even(np.bincount(np.round(turns * 9 / 30).astype(int), minlength=3))
    assert turns.max() < 7  # the third of ten levels
    np.testing.assert_allclose(mixture.shares.sum(1) + mixture.kept, 1, atol=1e-5)
    assert scipy.stats.kstest(mixture.kept, scipy.stats.beta(0.7, 0.7).cdf).pvalue > 1e-4
    among = mixture.shares[:, 0] / mixture.shares.sum(1)
    certain = mixture.shares.sum(1) > 1e-6
    assert scipy.stats.kstest(among[certain], scipy.stats.beta(0.7, 1.4).cdf).pvalue > 1e-4
    assert (drawn(policies.augmix(depth=2), 100).chains.operation < 13).all()


def test_timms_levels_are_normal_and_operations_skipped():
    chain = drawn(policies.randaugment_timm(1, 5, 1.0, 0.7, operations=("rotate", "shear_x")))
    assert scipy.stats.chisquare(np.bincount(chain.operation[:, 0]), np.array([0.35, 0.35, 0.3]) * DRAWS).pvalue > 1e-4
    turns = chain.amount[chain.operation == 0]
    assert (
        scipy.stats.kstest(np.abs(turns) / 3, scipy.stats.norm(5, 1).cdf).pvalue > 1e-4
    )  # clipped to 0..10, 5 deviations away
    assert even([(turns > 0).sum(), (turns < 0).sum()])
    uniform = drawn(policies.randaugment_timm(1, 8, float("inf"), 1.0, operations=("rotate",)))
    assert scipy.stats.kstest(np.abs(uniform.amount[:, 0]), scipy.stats.uniform(0, 24).cdf).pvalue > 1e-4


# timm and torchvision themselves, where installed


@pytest.mark.parametrize("level", [0, 1, 3.7, 9, 10])
def test_timms_amounts(level):
    reference = pytest.importorskip("timm.data.auto_augment")
    part, size = jnp.float32(level) / 10, (32, 48)
    theirs = {"color": "Color", "translate_x": "TranslateXRel", "translate_y": "TranslateYRel", "autocontrast": None}
    theirs |= {
        "equalize": None,
        "invert": None,
        "shear_x": "ShearX",
        "shear_y": "ShearY",
        "solarize_add": "SolarizeAdd",
    }
    for name, rule in timm.RULES.items():
        word = theirs.get(name, "".join(part.capitalize() for part in name.split("_")))
        function = reference.LEVEL_TO_ARG[word] if word else None
        if function is None:
            continue
        drawn = {float(rule.amount(part, jnp.float32(sign), size)) for sign in (1, -1)}
        scale = {"translate_x": 48, "translate_y": 32}.get(name, 1)
        possible = {function(level, {})[0] * scale for _ in range(64)}
        np.testing.assert_allclose(sorted(drawn), sorted(possible), atol=1e-4)


@pytest.mark.parametrize("policy", list(SPACES))
@pytest.mark.parametrize("size", [(32, 32), (224, 331), (97, 640)])
def test_magnitudes_are_torchvisions(policy, size):
    theirs = getattr(pytest.importorskip("torchvision.transforms.v2"), policy)._AUGMENTATION_SPACE
    space = SPACES[policy]
    names = {name.replace("_", ""): name for name in space}
    assert {name.lower() for name in theirs} == set(names)
    bins = 31 if policy in ("RandAugment", "TrivialAugmentWide") else 10
    for name, (levels, signed) in theirs.items():
        ours, magnitudes = space[names[name.lower()]](bins, size), levels(bins, *size)
        if magnitudes is None:
            assert not ours.any()
            continue
        values = magnitudes.numpy().astype(np.float64)
        values = np.stack([values, -values]) if signed else np.stack([values, values])
        if "Translate" in name:
            values = np.trunc(values)
        elif name in ("Brightness", "Color", "Contrast", "Sharpness"):
            values = 1 + values
        elif name == "Solarize":
            values = 255 * values
        np.testing.assert_allclose(ours, values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["imagenet", "cifar10", "svhn"])
def test_tables_are_torchvisions(name):
    v2 = pytest.importorskip("torchvision.transforms.v2")
    theirs = v2.AutoAugment(v2.AutoAugmentPolicy(name))._policies
    ours = [[(part.replace("_", ""), p, level) for part, p, level in row] for row in parsed(name)]
    assert ours == [[(part.lower(), p, level or 0) for part, p, level in row] for row in theirs]


@pytest.mark.parametrize("name", [name for name in ALL if name != "solarize_add"])
@pytest.mark.parametrize("shape", [(33, 45, 3), (40, 32, 1)])
def test_operations_are_torchvisions(name, shape):
    v2, torch = pytest.importorskip("torchvision.transforms.v2"), pytest.importorskip("torch")
    levels = np.asarray(pictures(1, shape))[0]
    kernel = v2.RandAugment()._apply_image_or_video_transform
    words = {word.lower(): word for word in v2.AutoAugment._AUGMENTATION_SPACE} | {"identity": "Identity"}
    bins = spaces.table(spaces.TRIVIALAUGMENT, [name], 31, shape[:2])[0]
    factors = ("brightness", "color", "contrast", "sharpness")
    # moves on Pillow's images, whose rule for the nearest pixel is ours; colors on tensors
    picture = (
        PIL.Image.fromarray(levels.squeeze()) if name in operations.MOVES else torch.tensor(levels).permute(2, 0, 1)
    )
    for amount in bins[:, [1, 9, 20, 30]].reshape(-1):
        magnitude = amount - 1 if name in factors else amount / 255 if name == "solarize" else amount
        theirs = kernel(picture, words[name.replace("_", "")], float(magnitude), "nearest", {type(picture): None})
        theirs = theirs.permute(1, 2, 0).numpy() if isinstance(theirs, torch.Tensor) else np.asarray(theirs)
        ours = np.asarray(RUN[name](jnp.asarray(levels), jnp.float32(amount)))
        different = np.abs(ours.astype(int) - theirs.reshape(shape).astype(int))
        if name in operations.MOVES:
            assert (different > 0).mean() <= 0.002
        else:
            assert different.max() <= 1


# What cannot be used


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: policies.randaugment(0), "empty"),
        (lambda: policies.randaugment(operations=()), "no operations"),
        (lambda: policies.randaugment(operations=("rotat",)), "rotate"),
        (lambda: policies.randaugment(2, 31), "0 (weakest) to 30"),
        (lambda: policies.randaugment(2, -1), "0 (weakest) to 30"),
        (lambda: policies.randaugment(interpolation="cubic"), "cubic"),
        (lambda: policies.trivialaugment(bins=1), "at least 2 bins"),
        (lambda: policies.autoaugment("cifar"), "cifar10"),
        (lambda: policies.autoaugment([]), "no sub-policies"),
        (lambda: policies.autoaugment([[]]), "no operations"),
        (lambda: policies.autoaugment([[("rotate", 0.5, 10)]]), "0 (weakest) to 9"),
        (lambda: policies.autoaugment([[("rotate", 1.5, 1)]]), "outside [0, 1]"),
        (lambda: policies.augmix(severity=11), "1..10"),
        (lambda: policies.augmix(width=0), "empty"),
        (lambda: policies.augmix(depth=0), "empty"),
        (lambda: policies.augmix(alpha=0), "alpha above 0"),
        (lambda: policies.randaugment_timm(magnitude=11), "outside [0, 10]"),
        (lambda: policies.randaugment_timm(deviation=-1), "negative"),
        (lambda: policies.randaugment_timm(p=2), "outside [0, 1]"),
        (lambda: policies.randaugment()(jax.random.key(0), jnp.zeros((4, 4, 2), jnp.uint8)), "channels"),
        (lambda: policies.randaugment()(jax.random.key(0), jnp.zeros((4, 4, 3), jnp.int32)), "dtype"),
    ],
)
def test_bad_input_says_what_and_what_to_do(wrong, words):
    with pytest.raises(InputError, match=re.escape(words)):
        wrong()


@given(bins=st.integers(2, 64), end=st.floats(0, 700))
@settings(max_examples=50, deadline=None)
def test_levels_are_even_and_reach_both_ends(bins, end):
    steps = spaces.linspace(0, end, bins)
    np.testing.assert_allclose(steps, np.linspace(0, end, bins), atol=1e-4)
    assert (steps[0], steps[-1]) == (0, np.float32(end))
    torch = pytest.importorskip("torch")
    np.testing.assert_allclose(steps, torch.linspace(0.0, end, bins).numpy(), rtol=0, atol=0)
