"""Bad images: why one is bad, in a few words for the user, and what a loader does about it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Set
from dataclasses import dataclass

from vggdist.artifacts.paths import quote
from vggdist.data.manifest import Manifest
from vggdist.errors import DataError


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
        known: returns the bad images that were found elsewhere; called for every batch.
    """

    def __init__(
        self,
        manifest: Manifest,
        max_found: int = 0,
        hint: str = "An evaluation counts every image, so none takes its place.",
        known: Callable[[], Set[int]] = frozenset,
    ) -> None:
        self._manifest, self._max_found = manifest, max_found
        self._hint, self._known = hint, known
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
        sentence = bad.sentence(self._manifest)
        if self._max_found == 0:
            raise DataError(f"{sentence}. Replace it with a good copy. {self._hint}")
        if len(self._found) > self._max_found:
            raise too_many_bad(len(self._found), self._max_found, self._manifest, sentence)

    def take_new(self) -> tuple[BadImage, ...]:
        """The images found since the last call."""
        with self._lock:
            new, self._new = tuple(self._new), []
        return new


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
