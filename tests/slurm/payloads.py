"""What jobs of tests do; in a module of its own, which their ranks can import."""

import os
from dataclasses import dataclass
from pathlib import Path

from vggdist.training.signals import StopSignal


@dataclass(frozen=True)
class NoteGpus:
    """Writes down which GPUs each rank may use."""

    folder: Path

    def run(self, stop: StopSignal) -> int:
        """Writes a file named after the rank."""
        (self.folder / os.environ["RANK"]).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
        return 0
