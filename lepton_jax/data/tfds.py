"""Data sets that TensorFlow Datasets has prepared, read without TensorFlow.

Only prepared data is read (array_record or parquet) and nothing is ever downloaded: the builder comes from
the files in the data directory, not from the catalog's code.
"""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from lepton_jax.data import images
from lepton_jax.data.paths import existing, reason
from lepton_jax.data.sources import Dataset, Source, decoded
from lepton_jax.errors import InputError

NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[\w.+-]+))?(:(?P<version>\d+\.\d+\.\d+))?")
VERSION = re.compile(r"\d+\.\d+\.\d+")


class Prepared:
    """One prepared split as a source: inputs fitted to `image_size` where one is given, labels int32."""

    def __init__(self, records: Any, keys: tuple[str, str], image_size: int | None, place: str):
        self.records, self.keys, self.image_size, self.place = records, keys, image_size, place

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> dict[str, Any]:
        try:
            record = self.records[i]
        except ImportError as error:
            raise _needs_tensorflow(self.place, error) from error
        except Exception as error:  # what a damaged record raises depends on where it is damaged
            raise InputError(
                f"example {i} of {self.place} cannot be read: {reason(error)}", "prepare it again"
            ) from error
        inputs = np.asarray(record[self.keys[0]])
        if inputs.dtype == np.uint16:
            inputs = images.eight_bits(inputs)
        if inputs.ndim == 3:
            inputs = images.fit(inputs, self.image_size)
        return {"input": inputs, "label": np.int32(record[self.keys[1]])}


def prepared(root: Path, name: str, config: str | None = None, version: str | None = None) -> list[Path]:
    """The directories under `root` that hold NAME prepared, the newest version of each configuration."""
    places = [root.resolve(), *(root / name).glob("*"), *(root / name).glob("*/*")]
    newest: dict[Path, Path] = {}
    for place in places:
        if not (place / "dataset_info.json").is_file() or not VERSION.fullmatch(place.name):
            continue
        parent, wanted = place.parent, (config or place.parent.name, version or place.name)
        if name not in (parent.name, parent.parent.name) or (parent.name, place.name) != wanted:
            continue
        if parent not in newest or _number(place) > _number(newest[parent]):
            newest[parent] = place
    return sorted(newest.values())


def _number(place: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in place.name.split("."))


def tfds(name: str, directory: str | os.PathLike[str] | None, image_size: int | None = None) -> Dataset:
    """The data set NAME, NAME/CONFIG or NAME/CONFIG:VERSION as TFDS has prepared it under `directory`.

    The newest version unless one is named. The splits are train and test (or validation, without a test).
    Decoded into memory where that takes at most 2 GiB. Raises InputError where it is not prepared, is stored
    in a form that needs TensorFlow, has no labels, or has images of several sizes without `image_size`.
    """
    place = _place(name, directory)
    builder, sources = _open(place)
    keys = builder.info.supervised_keys or ("image", "label")
    features = builder.info.features
    if len(keys) != 2 or any(not isinstance(key, str) or key not in features for key in keys):
        raise InputError(f"{name!r} has no input with a label (its features: {', '.join(features)})", "use another")
    if not hasattr(features[keys[1]], "num_classes"):
        raise InputError(f"the labels {keys[1]!r} of {name!r} are not classes", "use a classification data set")
    held_out = [split for split in ("test", "validation") if split in sources]
    if "train" not in sources or not held_out:
        raise InputError(f"{name!r} has the splits {', '.join(sources)}", "train, and test or validation, are needed")

    def source(split: str) -> Source:
        _check_shape(name, features[keys[0]].shape, image_size)
        return decoded(Prepared(sources[split], keys, image_size, f"{split} in {str(place)!r}"))

    train, test = source("train"), source(held_out[0])
    validation = source(held_out[1]) if len(held_out) > 1 else None
    classes = tuple(str(label) for label in features[keys[1]].names)
    return Dataset(f"tfds:{name}", train, test, classes, train[0]["input"].shape, validation)


def _place(name: str, directory: str | os.PathLike[str] | None) -> Path:
    match = NAME.fullmatch(name)
    if match is None:
        raise InputError(
            f"{name!r} is not a TFDS name", "write tfds:NAME, tfds:NAME/CONFIG or tfds:NAME/CONFIG:VERSION"
        )
    layout = f"{match['name']}/VERSION as prepared by TFDS"
    root = existing(f"tfds:{name}", directory, layout)
    places = prepared(root, match["name"], match["config"], match["version"])
    if not places:
        raise InputError(
            f"{name!r} is not prepared in {str(directory)!r}, and Lepton does not download",
            "where there is a network and TensorFlow: "
            f"tfds build {match['name']} --file_format=array_record --data_dir={directory}",
        )
    if len(places) > 1:
        choices = ", ".join(f"{match['name']}/{place.parent.name}" for place in places)
        raise InputError(f"{name!r} has several configurations", f"name one of: {choices}")
    return places[0]


def _open(place: Path) -> tuple[Any, dict[str, Any]]:
    """The builder of a prepared directory and its splits. Raises InputError where they cannot be read."""
    try:
        import tensorflow_datasets
    except ImportError:
        raise InputError(
            "reading TFDS data needs tensorflow-datasets, which is not installed",
            "install the extra 'tfds': pip install 'lepton-jax[tfds]'",
        ) from None
    try:
        builder = tensorflow_datasets.builder_from_directory(str(place))
        sources: Any = builder.as_data_source()
        return builder, dict(sources)
    except (ImportError, NotImplementedError) as error:
        raise _needs_tensorflow(repr(str(place)), error) from error
    except Exception as error:  # TFDS raises many types for directories that are damaged or half written
        raise InputError(f"{str(place)!r} cannot be read by TFDS: {reason(error)}", "prepare it again") from error


def _needs_tensorflow(place: str, error: Exception) -> InputError:
    return InputError(
        f"{place} can only be read with TensorFlow: {reason(error)}",
        "prepare it with --file_format=array_record (tfds build, or tfds convert_format from another format)",
    )


def _check_shape(name: str, shape: tuple[int | None, ...], image_size: int | None) -> None:
    if image_size is not None and (len(shape) != 3 or shape[-1] not in (1, 3)):
        raise InputError(f"the inputs of {name!r} have shape {shape} and cannot be resized", "leave --image-size out")
    if image_size is None and None in shape:
        raise InputError(f"the images of {name!r} have different sizes", "give all one size: --image-size N")
