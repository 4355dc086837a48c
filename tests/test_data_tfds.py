"""Data prepared by TensorFlow Datasets, read without TensorFlow."""

import json
import re
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lepton_jax.data import gather, load
from lepton_jax.errors import InputError


def pixels(i, shape=(6, 5, 3)):
    return np.random.default_rng(i).integers(0, 256, shape, np.uint8)


def prepare(directory, version="1.0.0", shape=(6, 5, 3), splits=("train", "test"), label=None, name="tiny"):
    """A prepared data set of 10 training and 4 held-out images; returns where it lies."""
    tfds: Any = pytest.importorskip("tensorflow_datasets")
    base: Any = tfds.core.GeneratorBasedBuilder

    class Tiny(base, skip_registration=True):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
        VERSION = tfds.core.Version(version)
        url_infos = None  # nothing to download; looking for it needs a package that TFDS does not ask for

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=shape),
                "label": label or tfds.features.ClassLabel(names=["left", "right"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(10 if split == "train" else 4) for split in splits}

        def _generate_examples(self, examples):
            for i in range(examples):
                made = pixels(i) if None not in shape else pixels(i, (6 + i, 8, 3))
                yield i, {"image": Image.fromarray(made), "label": i % 2}

    Tiny.name = name
    builder = Tiny(data_dir=directory, file_format="array_record")
    builder.download_and_prepare()
    return builder.data_path


def labels_and_images(source):
    """The examples as a set, as TFDS shuffles them when it prepares."""
    rows = gather(source, range(len(source)))
    return sorted((int(label), image.tobytes()) for label, image in zip(rows["label"], rows["input"], strict=True))


def test_a_prepared_data_set_is_read(tmp_path):
    place = prepare(tmp_path)
    for directory in (tmp_path, place):
        made = load("tfds:tiny", directory)
        assert (made.name, made.classes, made.input_shape) == ("tfds:tiny", ("left", "right"), (6, 5, 3))
        assert labels_and_images(made.train) == sorted((i % 2, pixels(i).tobytes()) for i in range(10))
        assert labels_and_images(made.test) == sorted((i % 2, pixels(i).tobytes()) for i in range(4))


def test_the_newest_version_is_read_unless_one_is_named(tmp_path):
    prepare(tmp_path, "1.9.0")
    prepare(tmp_path, "1.10.0", shape=(None, None, 3))
    assert load("tfds:tiny", tmp_path, image_size=6).input_shape == (6, 6, 3)
    assert load("tfds:tiny:1.9.0", tmp_path).input_shape == (6, 5, 3)
    with pytest.raises(InputError, match=r"'tiny:2.0.0' is not prepared"):
        load("tfds:tiny:2.0.0", tmp_path)


def test_images_of_several_sizes_need_one(tmp_path):
    prepare(tmp_path, shape=(None, None, 3))
    with pytest.raises(InputError, match=r"'tiny' have different sizes\n.*--image-size"):
        load("tfds:tiny", tmp_path)


def test_validation_stands_in_for_test(tmp_path):
    prepare(tmp_path, splits=("train", "validation"))
    made = load("tfds:tiny", tmp_path)
    assert (len(made.test), made.validation) == (4, None)
    prepare(tmp_path / "two", splits=("train", "validation", "test"))
    both = load("tfds:tiny", tmp_path / "two")
    assert both.validation is not None
    prepare(tmp_path / "none", splits=("train",))
    with pytest.raises(InputError, match="'tiny' has the splits train"):
        load("tfds:tiny", tmp_path / "none")


def test_cifar10_is_read_as_tfds_prepared_it(tmp_path):
    prepare(tmp_path, name="cifar10", version="3.0.2")
    made = load("cifar10", tmp_path)
    assert (made.name, len(made.train), len(made.test)) == ("cifar10", 10, 4)


def test_labels_must_be_classes(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    prepare(tmp_path, label=tfds.features.Scalar(dtype=np.int64))
    with pytest.raises(InputError, match="labels 'label' of 'tiny' are not classes"):
        load("tfds:tiny", tmp_path)


def test_what_is_not_prepared_is_not_downloaded(tmp_path):
    (tmp_path / "tiny" / "incomplete.1.0.0").mkdir(parents=True)
    with pytest.raises(
        InputError, match=r"'mnist' is not prepared in .*does not download\n.*tfds build mnist --file_format"
    ):
        load("tfds:mnist", tmp_path)
    with pytest.raises(InputError, match="'tiny' is not prepared"):
        load("tfds:tiny", tmp_path)
    with pytest.raises(InputError, match=r"'../secrets' is not a TFDS name"):
        load("tfds:../secrets", tmp_path)


def test_several_configurations_must_be_told_apart(tmp_path):
    place = prepare(tmp_path)
    for name in ("plain", "noisy"):
        copy = tmp_path / "two" / "tiny" / name / "1.0.0"
        copy.mkdir(parents=True)
        for path in place.iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="several configurations\nname one of: tiny/noisy, tiny/plain"):
        load("tfds:tiny", tmp_path / "two")
    assert len(load("tfds:tiny/noisy", tmp_path / "two").train) == 10


def test_a_format_that_needs_tensorflow_says_so(tmp_path):
    path = prepare(tmp_path) / "dataset_info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fileFormat": "tfrecord"}))
    with pytest.raises(
        InputError, match=r"can only be read with TensorFlow: .*TFRECORD.*\nprepare it with --file_format"
    ):
        load("tfds:tiny", tmp_path)


@pytest.mark.parametrize("damaged", ["dataset_info.json", "features.json"])
def test_a_damaged_description_is_named(tmp_path, damaged):
    place = prepare(tmp_path)
    (place / damaged).write_text("{")
    with pytest.raises(InputError, match=re.escape(f"{str(place)!r} cannot be read by TFDS")):
        load("tfds:tiny", tmp_path)


def test_the_extra_is_named_where_it_is_not_installed(tmp_path, monkeypatch):
    place = tmp_path / "tiny" / "1.0.0"
    place.mkdir(parents=True)
    (place / "dataset_info.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(
        InputError, match=re.escape("not installed\ninstall the extra 'tfds': pip install 'lepton-jax[tfds]'")
    ):
        load("tfds:tiny", tmp_path)
