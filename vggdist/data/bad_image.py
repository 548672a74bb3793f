"""Bad images: why one is bad, in a few words for the user, and what a loader does about it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

from vggdist.artifacts.paths import quote
from vggdist.data.manifest import Manifest
from vggdist.data.manifest_file import find_manifest
from vggdist.errors import DataError

EVERY_IMAGE_COUNTS = "An evaluation counts every image, so none takes its place."
_MOST_NAMED = 100


@dataclass(frozen=True)
class BadImage:
    """An image that a loader could not use."""

    image: int
    """Its number in the manifest."""
    reason: str
    """Why it cannot be used."""

    def sentence(self, manifest: Manifest) -> str:
        """The beginning of a message: the image and the reason."""
        return f"The image {manifest.described(self.image)} cannot be used: {self.reason}"


class BadImages:
    """The bad images that a loader replaces, and how many it may; shared by its threads.

    Args:
        manifest: the images.
        max_found: how many the loader may find and replace; one more is an error.
        hint: end of the error message if `max_found` is 0.
        search: finds all bad images, to name them at once if `max_found` is 0.
        known: returns the bad images that were found elsewhere; called for every batch.
    """

    def __init__(
        self,
        manifest: Manifest,
        max_found: int = 0,
        hint: str = EVERY_IMAGE_COUNTS,
        known: Callable[[], Set[int]] = frozenset,
        search: Callable[[Manifest], Sequence[BadImage]] | None = None,
    ) -> None:
        self._manifest, self._max_found = manifest, max_found
        self._hint, self._known, self._search = hint, known, search
        self._refusal: DataError | None = None
        self._searching = threading.Lock()
        self._found: set[int] = set()
        self._new: list[BadImage] = []
        self._lock = threading.Lock()  # of these two

    def numbers(self) -> Set[int]:
        """All images to replace.

        Raises:
            DataError: there is no other image.
        """
        with self._lock:
            numbers = self._found | self._known()
        if len(numbers) == self._manifest.num_images:
            raise DataError(
                f"No image in {quote(self._manifest.folder)} can be used. Check the disk, and "
                f"list the reasons with `vggdist check {quote(self._manifest.folder.parent)}`."
            )
        return numbers

    def add(self, bad: BadImage) -> None:
        """Replaces an image from now on.

        Raises:
            DataError: it must not be replaced, or too many have been.
        """
        with self._lock:
            if bad.image not in self._found:
                self._found.add(bad.image)
                self._new.append(bad)
        if self._max_found == 0:
            raise self._refuse(bad)
        sentence = bad.sentence(self._manifest)
        if len(self._found) > self._max_found:
            raise too_many_bad(len(self._found), self._max_found, self._manifest, sentence)

    def _refuse(self, bad: BadImage) -> DataError:
        with self._searching:  # once, whichever thread finds a bad image first
            if self._refusal is None:
                search = self._search or (lambda _: [])
                found = {image.image: image for image in search(self._manifest)}
                found.setdefault(bad.image, bad)
                self._refusal = refuse_bad({self._manifest: list(found.values())}, self._hint)
            return self._refusal

    def take_new(self) -> tuple[BadImage, ...]:
        """The images found since the last call."""
        with self._lock:
            new, self._new = tuple(self._new), []
        return new


def refuse_bad(sets: Mapping[Manifest, Sequence[BadImage]], hint: str) -> DataError:
    """The error for images that must all be usable: names every one, and what to do.

    Args:
        sets: the bad images of each, of which there are some.
        hint: why no other image takes their place.
    """
    count, manifest = sum(map(len, sets.values())), next(iter(sets))
    them, copies = ("it", "a good copy") if count == 1 else ("them", "good copies")
    otherwise = f", or delete {them}"
    if manifest.shards is not None:
        otherwise = " in the source, and prepare the shards again"
    elif manifest.split and find_manifest(root := manifest.folder.parent) is not None:
        otherwise += f" and run `vggdist check {quote(root)} --accept-changes`"
    said = [_list_bad(images, bad) for images, bad in sets.items() if bad]
    gap = " " if count == 1 else "\n"
    return DataError(
        "\n".join(said) + f"{gap}Replace {them} with {copies}{otherwise}. {hint}",
    )


def _list_bad(images: Manifest, bad: Sequence[BadImage]) -> str:
    if len(bad) == 1:
        return f"{bad[0].sentence(images)}."
    folder = quote(images.folder)
    lines = [f"{len(bad)} of the {images.num_images} images in {folder} cannot be used:"]
    for image in sorted(bad, key=lambda image: image.image)[:_MOST_NAMED]:
        lines.append(f"  {images.described(image.image)}: {image.reason}")
    if (more := len(bad) - _MOST_NAMED) > 0:
        lines.append(f"  and {more} more, which `vggdist check` lists")
    return "\n".join(lines)


def too_many_bad(found: int, allowed: int, manifest: Manifest, last: str) -> DataError:
    """The error for more bad images than a training allows."""
    return DataError(
        f"{found} of {manifest.num_images} images could not be used, more than the {allowed} that "
        f"data.max_unusable allows. {last}. Check the disk, and list all bad images "
        f"with `vggdist check {quote(manifest.folder.parent)}`."
    )


def reading_problem(error: Exception) -> str:
    """Why an image's bytes could not be read."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "it may not be read (permission denied)"
    if isinstance(error, IsADirectoryError):
        return "it is no regular file"
    return getattr(error, "strerror", None) or str(error)
