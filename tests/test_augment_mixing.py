"""mixup and CutMix: against the definitions and torchvision, in distribution, exact under padding and on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scipy import stats

import lepton_jax as lp
from lepton_jax import augment, data, losses
from lepton_jax.augment import mixing, partners
from lepton_jax.errors import InputError
from tests import laws

CLASSES = 10
RANDOM = np.random.default_rng(0)
MAKE = {"mixup": augment.mixup, "cutmix": augment.cutmix, "either": augment.mixup_or_cutmix}
COMBINATIONS = (
    ("mixup", "batch", "roll"),
    ("mixup", "example", "permutation"),
    ("cutmix", "batch", "flip"),
    ("cutmix", "example", "roll"),
    ("either", "batch", "permutation"),
    ("either", "example", "flip"),
)
MIXINGS = {" ".join(c): jax.jit(MAKE[c[0]](CLASSES, by=c[1], partner=c[2])) for c in COMBINATIONS}
each = pytest.mark.parametrize("mix", list(MIXINGS.values()), ids=list(MIXINGS))
FIRST_KEY = jax.random.key(0)


def batch_of(size=8, shape=(9, 7, 3), dtype=np.float32, weight=None):
    images = RANDOM.integers(0, 256, (size, *shape)).astype(np.uint8)
    batch = {"input": images if dtype == np.uint8 else (images / 255).astype(dtype)}
    batch["label"] = RANDOM.integers(0, CLASSES, size).astype(np.int32)
    batch["index"] = np.arange(100, 100 + size, dtype=np.int32)
    return batch if weight is None else {**batch, "weight": np.asarray(weight, np.float32)}


PAIRINGS = {
    name: jax.jit(lambda key, batch, pairing=pairing: partners.rows(pairing, key, batch))
    for name, pairing in partners.PAIRINGS.items()
}


@each
@pytest.mark.parametrize("dtype", [np.uint8, np.float16])
def test_inputs_keep_their_dtype_and_labels_become_distributions(mix, dtype):
    batch = batch_of(dtype=dtype, weight=[1, 0.5, 2, 1, 0, 1, 3, 1])
    mixed = mix(FIRST_KEY, batch)
    assert mixed["input"].dtype == dtype
    assert mixed["label"].shape == (8, CLASSES)
    np.testing.assert_allclose(mixed["label"].sum(axis=1), 1, atol=1e-6)
    assert (np.asarray(mixed["label"]) >= 0).all()
    for name in ("weight", "index"):
        np.testing.assert_array_equal(mixed[name], batch[name])


@pytest.mark.parametrize("by", ["batch", "example"])
@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_pixels_and_labels_share_alike(name, by):
    """Images that say which example they are: 1 in an own channel, so the share can be read off the pixels."""
    own = np.eye(8, dtype=np.float32)
    batch = {"input": np.broadcast_to(own[:, None, None], (8, 9, 7, 8)), "label": np.arange(8, dtype=np.int32)}
    mixed = jax.jit(MAKE[name](8, by=by))(jax.random.key(4), batch)
    pixels, shares = np.asarray(mixed["input"], np.float64), np.diagonal(mixed["label"])
    np.testing.assert_allclose(pixels.mean(axis=(1, 2)), mixed["label"], atol=1e-6)
    np.testing.assert_allclose(mixed["label"], own * shares[:, None] + np.roll(own, 1, 0) * (1 - shares)[:, None])
    assert (len(np.unique(shares)) == 1) == (by == "batch")
    assert 0 <= shares.min() < 1
    if name == "cutmix":
        assert set(np.unique(pixels)) == {0, 1}
        for image, before in zip(pixels, np.roll(np.arange(8), 1), strict=True):
            assert_is_a_box(image[..., before] == 1)
    else:
        assert np.ptp(pixels, axis=(1, 2)).max() == 0


def assert_is_a_box(pasted):
    rows, columns = pasted.any(axis=1), pasted.any(axis=0)
    np.testing.assert_array_equal(pasted, np.outer(rows, columns))
    for side in (rows, columns):
        assert np.abs(np.diff(side.astype(int))).sum() <= 2


def test_uint8_is_rounded_to_nearest():
    batch = batch_of(dtype=np.uint8)
    mixed = jax.jit(augment.mixup(CLASSES, by="example", partner="flip"))(FIRST_KEY, batch)
    shares = jax.jit(lambda b: mixing.DRAWN_BY["example"](mixing.beta_share(1.0), FIRST_KEY, b))(batch)
    share = np.asarray(shares.input, np.float64)
    exact = share * batch["input"] + (1 - share) * batch["input"][::-1]
    assert np.abs(np.asarray(mixed["input"]) - exact).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_torchvision_agrees_given_its_draw(name):
    """Their transform with our share, or box, put in the place of their draw."""
    torch = pytest.importorskip("torch")
    v2 = pytest.importorskip("torchvision.transforms.v2")
    batch, key = batch_of(), jax.random.key(11)
    mixed = jax.jit(MAKE[name](CLASSES))(key, batch)
    share = float(jax.jit(lambda b: mixing.DRAWN_BY["batch"](mixing.beta_share(1.0), key, b))(batch).label[0])
    theirs = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[name](num_classes=CLASSES)
    images, labels = torch.tensor(batch["input"].transpose(0, 3, 1, 2)), torch.tensor(batch["label"]).long()
    params = {"labels": labels, "batch_size": 8, "lam": share}
    if name == "cutmix":
        changed = np.asarray(mixed["input"] != batch["input"]).any(axis=(0, 3))
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        area = (box[2] - box[0]) * (box[3] - box[1])
        params |= {"box": tuple(map(int, box)), "lam_adjusted": 1 - area / (9 * 7)}
    expected = theirs.transform(images, params).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(mixed["input"], expected, atol=1e-6)
    np.testing.assert_allclose(mixed["label"], theirs.transform(labels, params).numpy(), atol=1e-6)


def draws_of(draw, count=20_000, shape=(16, 24, 3)):
    keys = jax.random.split(jax.random.key(1), count)
    return jax.device_get(jax.jit(jax.vmap(lambda key: draw(key, shape)))(keys))


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0, 3.0])
def test_shares_of_mixup_are_beta(alpha):
    """Each half by itself, from its own end, for 32 bits cannot tell apart the numbers next to 1."""
    shares = draws_of(mixing.beta_share(alpha), 100_000).label.astype(np.float64)
    assert ((shares >= 0) & (shares <= 1)).all()
    assert stats.binomtest(int((shares < 0.5).sum()), shares.size).pvalue > 1e-3
    low = shares[shares < 0.5]
    assert stats.kstest(low, lambda x: 2 * stats.beta(alpha, alpha).cdf(x)).pvalue > 1e-3
    high = 1 - shares[shares >= 0.5]
    assert stats.ks_2samp(np.round(low, 6), np.round(high, 6)).pvalue > 1e-3


def test_boxes_of_cutmix_are_those_of_the_paper():
    """Against torchvision's lines with numpy's numbers: height, width, place and share, by two-sample tests."""
    drawn = draws_of(mixing.pasted_box(1.0))
    random, height, width = np.random.default_rng(5), 16, 24
    share = random.beta(1.0, 1.0, len(drawn.label))
    across, down = random.integers(0, width, share.size), random.integers(0, height, share.size)
    half_across, half_down = (
        (0.5 * np.sqrt(1 - share) * width).astype(int),
        (0.5 * np.sqrt(1 - share) * height).astype(int),
    )
    left, right = np.maximum(across - half_across, 0), np.minimum(across + half_across, width)
    top, bottom = np.maximum(down - half_down, 0), np.minimum(down + half_down, height)
    pasted = drawn.input[..., 0] == 0
    rows, columns = pasted.any(axis=2), pasted.any(axis=1)
    some = (right > left) & (bottom > top)
    drawn_some = rows.any(axis=1)
    assert abs(some.mean() - drawn_some.mean()) < 0.01
    pairs = [
        (drawn.label, 1 - (right - left) * (bottom - top) / (height * width)),
        (rows.sum(axis=1)[drawn_some], (bottom - top)[some]),
        (columns.sum(axis=1)[drawn_some], (right - left)[some]),
        (rows.argmax(axis=1)[drawn_some], top[some]),
        (columns.argmax(axis=1)[drawn_some], left[some]),
    ]
    for ours, theirs in pairs:
        assert stats.ks_2samp(np.round(ours.astype(np.float64), 5), np.round(theirs, 5)).pvalue > 1e-3
    np.testing.assert_allclose(drawn.label, 1 - pasted.mean(axis=(1, 2)), atol=1e-6)


def test_the_choice_has_its_probability():
    batch = {"input": np.zeros((4000, 4, 4, 1), np.float32), "label": np.zeros(4000, np.int32)}
    batch["input"][::2] = 1
    mixed = jax.jit(augment.mixup_or_cutmix(CLASSES, p=0.3, by="example"))(FIRST_KEY, batch)
    pasted = np.isin(np.asarray(mixed["input"]), (0, 1)).all(axis=(1, 2, 3)).mean()
    assert abs(pasted - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 4000)


@given(counts=st.lists(st.booleans(), min_size=8, max_size=8), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_partners_are_a_permutation_of_those_that_count(counts, seed):
    counts = np.array(counts)
    batch = batch_of(weight=counts * 2.0)
    among = np.flatnonzero(counts)
    for pairing, order in (("roll", lambda rows: np.roll(rows, 1)), ("flip", lambda rows: rows[::-1])):
        rows = np.asarray(PAIRINGS[pairing](FIRST_KEY, batch))
        np.testing.assert_array_equal(rows[among], order(among))
    for pairing in partners.PAIRINGS:
        rows = np.asarray(PAIRINGS[pairing](jax.random.key(seed), batch))
        assert sorted(rows[among]) == list(among)
        np.testing.assert_array_equal(rows[~counts], np.flatnonzero(~counts))


def test_every_permutation_is_drawn_equally_often():
    batch = jax.tree.map(jnp.asarray, batch_of(4))
    permute = jax.jit(jax.vmap(lambda key: partners.rows(partners.permutation, key, batch)))
    drawn = np.asarray(permute(jax.random.split(jax.random.key(2), 4800)))
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


@each
@pytest.mark.parametrize("places", [slice(0, 8), [1, 2, 3, 5, 6, 8, 9, 11]])
def test_padding_is_mixed_into_nothing_and_changes_nothing(mix, places):
    """A batch among rows of weight 0 that hold nonsense comes out as it does alone."""
    batch = batch_of()
    nonsense = {"input": np.full((12, 9, 7, 3), np.nan, np.float32), "label": np.full(12, 3, np.int32)}
    nonsense |= {"index": np.arange(900, 912, dtype=np.int32), "weight": np.zeros(12, np.float32)}
    for name, column in {**batch, "weight": 1.0}.items():
        nonsense[name][places] = column
    alone, among = mix(jax.random.key(3), batch), mix(jax.random.key(3), nonsense)
    for name in ("input", "label"):
        np.testing.assert_array_equal(np.asarray(among[name])[places], alone[name])


@pytest.mark.parametrize("size", [1, 2])
@each
def test_small_batches(mix, size):
    batch = batch_of(size)
    mixed = mix(FIRST_KEY, batch)
    if size == 1:
        np.testing.assert_allclose(mixed["input"], batch["input"], atol=1e-6)
        np.testing.assert_allclose(mixed["label"], np.eye(CLASSES)[batch["label"]], atol=1e-6)
    assert not np.asarray(mix(FIRST_KEY, {**batch, "weight": np.zeros(size, np.float32)})["label"] > 1).any()


@each
def test_on_a_mesh_the_same_bits(mix):
    batch = batch_of(16, weight=[1] * 13 + [0] * 3)
    alone = mix(FIRST_KEY, batch)
    for devices in (2, 8):
        mesh = jax.make_mesh((devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices])
        spread = mix(FIRST_KEY, jax.device_put(batch, NamedSharding(mesh, P("data"))))
        for name in ("input", "label"):
            np.testing.assert_array_equal(spread[name], alone[name])


@pytest.mark.parametrize("draw", [mixing.beta_share(0.4), mixing.pasted_box(0.4)], ids=["mixup", "cutmix"])
def test_shares_do_not_depend_on_the_batch_around_an_example(draw):
    one = jax.jit(lambda batch: mixing.DRAWN_BY["example"](draw, FIRST_KEY, batch))
    whole = batch_of(13)
    parts = [
        {name: column[rows] for name, column in whole.items()} for rows in (slice(0, 5), slice(5, 6), slice(6, 13))
    ]
    together = jax.tree.map(lambda *x: np.concatenate(x), *[jax.device_get(one(part)) for part in parts])
    jax.tree.map(np.testing.assert_array_equal, together, jax.device_get(one(whole)))


def test_other_inputs_and_given_distributions():
    features = {"input": np.ones((4, 6), np.float32) * np.arange(4, dtype=np.float32)[:, None]}
    features["label"] = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    mixed = jax.jit(augment.mixup(3, partner="flip"))(FIRST_KEY, features)
    share = float(mixed["label"][1, 1])  # its partner has another label
    assert 0 < share < 1
    np.testing.assert_allclose(mixed["input"][:, 0], [3 - 3 * share, 2 - share, 1 + share, 3 * share], atol=1e-6)
    np.testing.assert_allclose(mixed["label"][0], [1, 0, 0], atol=1e-6)


def test_a_loss_of_mixed_examples_is_the_mean_over_both_labels():
    """By hand: share * loss with the own label + (1 - share) * loss with the partner's."""
    model = lp.Model(lambda key, x: {"params": 0}, lambda v, x, train, keys: (x @ v["params"], {}))
    loss = lp.supervised(model, lp.cross_entropy())
    batch = {"input": RANDOM.normal(size=(6, 4)).astype(np.float32), "label": np.array([0, 1, 2, 0, 2, 1], np.int32)}
    batch["weight"] = np.array([1, 2, 0.5, 0, 1, 1], np.float32)
    params = RANDOM.normal(size=(4, 3)).astype(np.float32)
    mix = augment.mixup(3, by="example")
    mean, _ = losses.mixed(loss, mix)(params, {}, batch, FIRST_KEY)
    mixed = mix(FIRST_KEY, batch)
    logits = np.asarray(mixed["input"], np.float64) @ params
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -(batch["weight"][:, None] * np.asarray(mixed["label"]) * logs).sum()
    np.testing.assert_allclose(mean.total, expected, rtol=1e-5)
    assert float(mean.weight) == 5.5


@pytest.mark.parametrize("name", list(MAKE))
@pytest.mark.parametrize("microbatches", [2, 4])
def test_mixed_outside_accumulation_mixes_the_whole_batch(name, microbatches):
    model, mix = laws.models()["mlp"](), MAKE[name](laws.CLASSES, by="example", partner="permutation")
    batch = laws.padded(data.Stream(laws.digits(), 13, 1).batch(0), 16)
    state = laws.beginning(model, laws.TECHNIQUES["plain"])
    gradient = lp.plain(lp.supervised(model, lp.cross_entropy()))

    def total(grad_fn):
        mean, aux = jax.jit(grad_fn)(state.params, state.stats, batch, jax.random.key(5))
        return mean.value(), aux.metrics["loss"].value()

    whole, parts = (total(losses.mixed(g, mix)) for g in (gradient, lp.accumulate(gradient, microbatches)))
    assert lp.tree.distance(parts, whole) < 1e-6


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: augment.mixup(CLASSES, alpha=0.0), "Beta(0.0, 0.0) is not defined"),
        (lambda: augment.cutmix(CLASSES, alpha=-1.0), "Beta(-1.0, -1.0) is not defined"),
        (lambda: augment.mixup(0), "0 classes"),
        (lambda: augment.mixup(CLASSES, by="pixel"), "unknown way to draw 'pixel'"),
        (lambda: augment.mixup(CLASSES, partner="neighbor"), "unknown pairing 'neighbor'"),
        (lambda: augment.mixup_or_cutmix(CLASSES, p=1.5), "CutMix with probability 1.5"),
        (lambda: augment.cutmix(CLASSES)(FIRST_KEY, batch_of(shape=(9,))), "CutMix of inputs of shape (9,)"),
        (lambda: augment.mixup(3)(FIRST_KEY, {**batch_of(4), "label": np.eye(4)}), "labels of shape (4, 4)"),
        (lambda: augment.mixup(3)(FIRST_KEY, {**batch_of(4), "input": np.zeros((4, 2), np.int32)}), "dtype int32"),
    ],
)
def test_bad_arguments_are_named(make, says):
    with pytest.raises(InputError) as error:
        make()
    assert says in error.value.problem
