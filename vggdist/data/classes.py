"""Checks that class folders fit a training, with hints if they do not."""

from __future__ import annotations

import shlex

from vggdist.artifacts.names import explain_twins, listed, sentences, spelled
from vggdist.artifacts.paths import quote
from vggdist.data.manifest import Manifest
from vggdist.errors import DataError


def require_same_classes(train: Manifest, val: Manifest) -> None:
    """Refuses splits with different class folders.

    Raises:
        DataError: lists them.
    """
    ours, theirs = set(train.classes), set(val.classes)
    if ours == theirs:
        return
    differences = [
        f"only {manifest.folder} has {listed(sorted(names))}"
        for manifest, names in ((train, ours - theirs), (val, theirs - ours))
        if names
    ]
    raise DataError(
        sentences(
            f"train/ and val/ have different class folders: {'; '.join(differences)}.",
            explain_twins(ours ^ theirs),
            explain_nesting(train) or explain_nesting(val),
            "A label is the place of a class among the folders, so both need the same ones. Add, "
            "rename or remove these folders.",
        )
    )


def require_several_classes(images: Manifest) -> None:
    """Refuses a single class, with which there is nothing to learn.

    Raises:
        DataError: says what the class folder holds, and gives a hint.
    """
    if len(images.classes) > 1:
        return
    (name,), folder = images.classes, images.folder
    hint = explain_nesting(images) or (
        f"It holds {images.num_images:,} images; put those of each further class into a folder "
        "beside it."
    )
    raise DataError(
        f"{folder} has a single class folder, {spelled(name)}, and a network tells at least two "
        f"classes apart. {hint}"
    )


def contradict_setting(given: int, images: Manifest, root: str) -> str:
    """What is wrong with a `model.num_classes` that the data set contradicts."""
    num_classes = len(images.classes)
    return (
        f"model.num_classes is {given}, but {quote(root)} has {num_classes} classes; set "
        f"model.num_classes={num_classes}, or leave it out."
    )


def explain_nesting(images: Manifest) -> str:
    """A hint if the classes are one folder too deep; empty if any class folder itself has
    images."""
    if images.names.packed.count(b"/") < images.num_images:
        return ""
    names = images.names.unpack()
    if not all("/" in name for name in names):
        return ""
    below = sorted({name.partition("/")[0] for name in names})
    example = shlex.quote(str(images.folder / images.classes[0]))
    return (
        f"All images lie in folders of the class folders: {listed(below)}. If these are the "
        f"classes, move them up, here and wherever they lie too deep: mv {example}/* "
        f"{shlex.quote(str(images.folder))} && rmdir {example}."
    )
