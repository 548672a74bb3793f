"""Bad images: all ranks know the same ones, and too many end the training."""

import logging
from collections.abc import Iterable, Set

from vggdist.data.bad_image import BadImage, too_many_bad
from vggdist.data.manifest import Manifest
from vggdist.distributed.process import gather

logger = logging.getLogger(__name__)

ALWAYS_ALLOWED = 10
"""Number of bad images that a training always tolerates, whatever their fraction."""


class KnownBad:
    """The set of bad images, which the plan replaces with others.

    Starts as the data set's quarantine. Images that a rank's loader finds later are shared with all
    ranks at the end of the step that needed them.

    Args:
        manifest: the training set.
        max_fraction: largest fraction of its images that may be found bad during a training.

    Attributes:
        found: images found bad during the training, without the quarantine.
        limit: how many are allowed.
    """

    def __init__(self, manifest: Manifest, max_fraction: float) -> None:
        self._manifest = manifest
        self.limit = max(ALWAYS_ALLOWED, int(max_fraction * manifest.num_images))
        # Replaced, never modified: the loader's thread may read it at any time.
        self.images: Set[int] = frozenset().union(*gather(manifest.quarantine))
        self.found: Set[int] = frozenset()
        self._new: list[BadImage] = []

    @property
    def has_new(self) -> bool:
        """Whether this rank has new bad images that others may not know."""
        return bool(self._new)

    def note(self, bad: Iterable[BadImage]) -> None:
        """Adds the bad images that this rank's loader has found."""
        self._new += bad

    def agree(self) -> None:
        """Shares every rank's new bad images with all ranks; collective.

        Raises:
            DataError: on all ranks, if more images are bad than allowed.
        """
        new = {bad.image: bad for found in gather(self._new) for bad in found}
        self._new = []
        for image in sorted(new.keys() - self.found):
            logger.warning("%s; the sample plan replaces it.", new[image].sentence(self._manifest))
        self.found |= new.keys()
        self.images |= new.keys()
        if new and len(self.found) > self.limit:
            last = new[max(new)].sentence(self._manifest)
            raise too_many_bad(len(self.found), self.limit, self._manifest, last)

    def state(self) -> list[int]:
        """The state for a checkpoint."""
        return sorted(self.found)

    def load(self, state: list[int]) -> None:
        """Continues from a checkpoint."""
        self.found = frozenset(state)
        self.images |= self.found
