"""Examples on the page: which are shown, and that their images are the data's."""

import base64
import io
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lepton_jax import data
from lepton_jax.evaluate import Evaluation
from lepton_jax.report import examples, page
from tests.test_report import Tags, a_page

random = np.random.default_rng(0)


def evaluation(labels, scores):
    scores = np.asarray(scores, np.float64)
    return Evaluation({}, np.zeros((3, 3), int), [], scores, scores.argmax(axis=1), np.asarray(labels))


def case(number=60, shape=(8, 8, 1), classes=3, seed=0):
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (number, *shape), np.uint8)
    labels = draw.integers(0, classes, number)
    source = data.Arrays({"input": images, "label": labels})
    return source, evaluation(labels, draw.dirichlet(np.ones(classes), number)), tuple("abcdefgh"[:classes])


def opened(uri):
    head, content = uri.split(",")
    assert head == "data:image/png;base64"
    raw = base64.b64decode(content, validate=True)
    return raw, Image.open(io.BytesIO(raw))


def test_the_surest_mistakes_come_first_and_right_answers_are_right():
    source, found, classes = case()
    told = examples.shown(source, found, classes)
    wrong = [i for i in range(60) if found.predictions[i] != found.labels[i]]
    surest = sorted(wrong, key=lambda i: -found.scores[i].max())[:12]
    assert [e.position for e in told.wrong] == surest
    assert [e.probability for e in told.wrong] == [found.scores[i].max() for i in surest]
    assert (told.mistakes, told.hits) == (len(wrong), 60 - len(wrong))
    assert len({e.position for e in told.right}) == 12
    for e in (*told.wrong, *told.right):
        assert e.truth == classes[found.labels[e.position]]
        assert e.predicted == classes[found.predictions[e.position]]
        np.testing.assert_array_equal(np.asarray(opened(e.image)[1]), source[e.position]["input"][..., 0])
    assert all(e.truth == e.predicted for e in told.right)


def test_the_same_examples_are_shown_every_time():
    assert examples.shown(*case()) == examples.shown(*case())


def test_right_answers_are_drawn_from_all_of_the_data():
    source, found, classes = case(600)
    found = found._replace(labels=found.predictions)
    places = [e.position for e in examples.shown(source, found, classes).right]
    assert places != sorted(places)
    assert max(places) > 300 > min(places)


@pytest.mark.parametrize("right", [True, False])
def test_all_right_and_all_wrong(right):
    source, found, classes = case(5)
    found = found._replace(labels=found.predictions if right else (found.predictions + 1) % 3)
    told = examples.shown(source, found, classes)
    assert (len(told.right), len(told.wrong)) == ((5, 0) if right else (0, 5))
    words = Tags(page.render(a_page(examples=told))).words
    assert ("There are no mistakes." if right else "There are no right answers.") in words


def test_examples_without_weight_are_skipped_where_they_stand():
    source, found, classes = case(2500)
    weight = np.random.default_rng(1).integers(0, 2, 2500).astype(np.float32)
    source = data.Arrays({**source.columns, "weight": weight})
    kept = np.flatnonzero(weight)
    found = found._replace(**{name: getattr(found, name)[kept] for name in ("scores", "predictions", "labels")})
    told = examples.shown(source, found, classes)
    for e in (*told.wrong, *told.right):
        assert weight[e.position] == 1
        assert e.truth == classes[source[e.position]["label"]]
        np.testing.assert_array_equal(np.asarray(opened(e.image)[1]), source[e.position]["input"][..., 0])


@pytest.mark.parametrize("shape", [(4,), (8, 8), (8, 8, 2), (8, 8, 4), (2, 8, 8, 3)])
def test_inputs_that_are_no_images_have_no_examples(shape):
    assert examples.shown(*case(5, shape)) is None


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from([1, 3]),
    st.sampled_from(["noise", "flat"]),
)
@settings(max_examples=25, deadline=None)
def test_every_image_fits_and_small_ones_are_exact(height, width, channels, kind):
    shape = (height, width, channels)
    image = random.integers(0, 256, shape, np.uint8) if kind == "noise" else np.full(shape, 7, np.uint8)
    raw, read = opened(examples.uri(image))
    assert len(raw) <= examples.BYTES
    if image.size <= examples.BYTES // 2:
        np.testing.assert_array_equal(np.asarray(read).reshape(shape), image)
    ratio = (read.width / read.height) / (width / height)
    assert ratio == pytest.approx(1, abs=0.6 / min(read.size)) or min(read.size) == 1


def test_a_page_of_large_images_stays_small_and_loads_nothing():
    source, found, classes = case(60, (224, 224, 3))
    written = page.render(a_page(examples=examples.shown(source, found, classes)))
    read = Tags(written)
    sources = [value for name, value in read.attributes if name == "src"]
    assert len(sources) == 24
    assert sum(map(len, sources)) <= 200_000
    assert all(re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/=]+", value) for value in sources)
    policy = next(value for name, value in read.attributes if name == "content" and "default-src" in value)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert all(value for name, value in read.attributes if name == "alt")


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (np.linspace(0, 1, 256), np.arange(256)),
        (np.arange(256, dtype=np.uint8), np.arange(256)),
        (np.linspace(-3, 3, 256), np.arange(256)),  # standardized
        (np.arange(256, dtype=np.int32) * 257, np.arange(256)),  # 16 bits
        (np.array([np.nan, 0.5, 1.0]), [0, 128, 255]),
        (np.full(3, 7.0), [0, 0, 0]),
    ],
)
def test_pixels_of_every_type(values, shown):
    np.testing.assert_array_equal(examples.pixels(values.reshape(1, 1, -1, 1)).ravel(), shown)


def test_class_names_are_escaped():
    source, found, _ = case()
    hostile = '"><script>alert(1)</script>'
    read = Tags(page.render(a_page(examples=examples.shown(source, found, (hostile, "b", "\udcff")))))
    assert "script" not in read.seen
    assert hostile in read.words
