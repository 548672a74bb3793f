"""Images that cannot be used: every rank knows the same ones, and too many end the training."""

import logging
from collections.abc import Iterable, Set

from vggdist.data.manifest import Manifest
from vggdist.data.producer import too_many_bad
from vggdist.data.unusable import BadImage
from vggdist.distributed.process import gather

logger = logging.getLogger(__name__)

ALWAYS_ALLOWED = 10
"""Images that may break during a training whatever their share is."""


class KnownBad:
    """The set of images for which the plan takes others.

    Begins as the data set's quarantine. What a rank's loader finds afterwards becomes common
    knowledge at the end of the step that wanted the image.

    Args:
        manifest: the training set.
        max_fraction: the largest share of its images that may break during a training.

    Attributes:
        found: images that broke during the training, quarantine not included.
        limit: how many may.
    """

    def __init__(self, manifest: Manifest, max_fraction: float) -> None:
        self._manifest = manifest
        self.limit = max(ALWAYS_ALLOWED, int(max_fraction * manifest.num_images))
        # Replaced as a whole, never changed: the loader's thread reads it at any time.
        self.images: Set[int] = frozenset().union(*gather(manifest.quarantine))
        self.found: Set[int] = frozenset()
        self._news: list[BadImage] = []

    @property
    def has_news(self) -> bool:
        """Whether this rank knows of images that others may not know of."""
        return bool(self._news)

    def note(self, bad: Iterable[BadImage]) -> None:
        """Takes in what this rank's loader has found."""
        self._news += bad

    def agree(self) -> None:
        """Makes every rank's news known to all; collective.

        Raises:
            DataError: on all ranks, more images are bad than may be.
        """
        news = {bad.image: bad for one in gather(self._news) for bad in one}
        self._news = []
        for image in sorted(news.keys() - self.found):
            logger.warning(
                "%s; the plan's substitute takes its place.", news[image].sentence(self._manifest)
            )
        self.found |= news.keys()
        self.images |= news.keys()
        if news and len(self.found) > self.limit:
            last = news[max(news)].sentence(self._manifest)
            raise too_many_bad(len(self.found), self.limit, self._manifest, last)

    def state(self) -> list[int]:
        """What a checkpoint keeps."""
        return sorted(self.found)

    def load(self, state: list[int]) -> None:
        """Continues from a checkpoint."""
        self.found = frozenset(state)
        self.images |= self.found
