"""Look at a data set, and make a small one larger: python -m lepton_jax.data describe, preview or expand."""

from pathlib import Path
from typing import Annotated

import tyro

from lepton_jax import cli, data
from lepton_jax.errors import InputError

Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
Place = Annotated[Path, tyro.conf.Positional]


def describe(name: Name, data_dir: Path | None = None, seed: int = 0, image_size: int | None = None) -> None:
    """Tell what a data set holds: counts, classes, mean and deviation, duplicates, files that cannot be read.

    Args:
        name: digits, cifar10, folder, npz, idx, csv, jsonl, text, lines, or tfds:NAME.
        data_dir: Where the data lies.
        seed: Splits data that comes in one piece.
        image_size: Resize the images of a folder.
    """
    print(data.describe(data.load(name, data_dir, seed=seed, image_size=image_size, on_bad_image="skip")))


def preview(
    name: Name,
    out: Path,
    data_dir: Path | None = None,
    count: int = 16,
    policy: str = "basic",
    seed: int = 0,
    image_size: int | None = None,
) -> None:
    """Draw examples as stored, and as a model sees them after augmentation, under their class names.

    Args:
        name: digits, cifar10, folder, npz, idx, jsonl, or tfds:NAME.
        out: The PNG file to write; it must not exist.
        data_dir: Where the data lies.
        count: Examples to draw.
        policy: Augmentation: none, basic (crop, flip, mild color jitter), or a published policy.
        seed: What the augmentation draws.
        image_size: Resize the images of a folder.
    """
    if out.suffix.lower() != ".png" or out.exists() or not out.absolute().parent.is_dir():
        fault = "exists" if out.exists() else "is not a new .png file in a directory that exists"
        raise InputError(f"--out {str(out)!r} {fault}", "give the name of a new file, as in preview.png")
    from lepton_jax import augment
    from lepton_jax.data.sheet import check_images, sheet

    dataset = data.load(name, data_dir, seed=seed, image_size=image_size)
    check_images(dataset)
    title = f"{dataset.name}: as stored, and augmented ({policy})"
    drawn = sheet(dataset, augment.policy(policy, dataset.input_shape), title, count, seed)
    part = out.with_name(out.name + ".part")
    drawn.save(part, format="png")
    part.rename(out)
    print(f"{out}  {min(count, len(dataset.train))} examples, {drawn.width}x{drawn.height}")


def expand(
    source: Place,
    destination: Place,
    copies: int,
    policy: str = "basic",
    seed: int = 0,
    image_size: int | None = None,
) -> None:
    """Write a new data set: the originals and augmented copies of the training images, with provenance.json.

    Args:
        source: A directory of class folders, or a .npz file.
        destination: The directory to write; it must not exist.
        copies: Augmented copies of each training image.
        policy: Augmentation: basic (crop, flip, mild color jitter), or a published policy.
        seed: What the augmentation draws.
        image_size: Size of the copies, where the images of a folder have several.
    """
    from lepton_jax.data import expansion

    print(f"{expansion.expand(source, destination, policy, copies, seed, image_size)}  written, with provenance.json")


if __name__ == "__main__":
    cli.command(describe, preview, expand)
