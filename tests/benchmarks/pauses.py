#!/usr/bin/env python
"""Measures how long checkpoints and evaluations keep a training from its steps; prints a table.

    python tests/benchmarks/pauses.py --ranks 2
    python tests/benchmarks/pauses.py --device cpu data.crop_size=64 data.train_scale_min=64

Trains configuration D for a few short epochs on made photos, with a checkpoint, and then an
evaluation, after each of them. The numbers are medians; `section.key=value` changes the training.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.ranks import leave_world, run_in_ranks
from vggdist import pretrain
from vggdist.artifacts import checkpoint
from vggdist.config_file import load_config
from vggdist.distributed.process import Process
from vggdist.profiling.sample import save_photo
from vggdist.training.loop import Training
from vggdist.training.pictures import Pictures

Result = dict[str, float]
SHAPES = ((500, 375), (375, 500), (500, 333))
"""Width and height of the photos."""


class Stopwatch:
    """Seconds of each pause of a training, by name."""

    def __init__(self) -> None:
        """From now on, all trainings of this process are timed."""
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        self.megabytes = 0.0
        self._evaluation_began_at = 0.0
        begin_save, save = Training._begin_save, checkpoint.save
        evaluate, until_stopped = Training._evaluate, pretrain.until_stopped

        def begin_alone(training: Training, last: bool = False) -> None:
            training._wait_for_checkpoint()  # epochs are too short here for what they hide
            self.megabytes = training.engine.checkpoint_bytes / 1e6
            return self._timed("save", begin_save)(training, last)

        def begin_evaluation(training: Training, stop: Any) -> bool:
            self._evaluation_began_at = time.perf_counter()
            return self._timed("evaluation", evaluate)(training, stop)

        def until_first(*arguments: Any) -> Iterator[Any]:
            for number, batch in enumerate(until_stopped(*arguments)):
                if number == 0:
                    self._add("start", self._evaluation_began_at)
                yield batch

        Training._begin_save = begin_alone  # type: ignore[method-assign]
        Training._evaluate = begin_evaluation  # type: ignore[method-assign]
        checkpoint.save = self._timed("write", save)
        pretrain.until_stopped = until_first
        Pictures.show_errors = self._timed("pictures", Pictures.show_errors)  # type: ignore[method-assign]

    def result(self) -> Result:
        """Medians, without the first checkpoint and the first evaluation, which stand beside them:
        they take the memory and open the files that later ones use again."""
        found = {"megabytes": self.megabytes}
        for name, (first, *later) in self.seconds.items():
            found |= {f"first_{name}": first, name: statistics.median(later)}
        return found

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            began_at = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self._add(name, began_at)

        return timed

    def _add(self, name: str, began_at: float) -> None:
        self.seconds[name].append(time.perf_counter() - began_at)


def measure_pauses(
    overrides: Sequence[str],
    rounds: int,
    world_size: int = 1,
    num_photos: int = 32,
    shapes: Sequence[tuple[int, int]] = SHAPES,
) -> Result:
    """Seconds of the main rank, and `megabytes` of a checkpoint.

    `save` is what a checkpoint takes of the step's thread, `write` what is behind it; `start` an
    evaluation until its first batch, `evaluation` a whole one, `pictures` the drawing of its worst
    mistakes; `first_save` and so on are the first ones.

    Args:
        overrides: of the training; its data are made photos.
        rounds: how many there are after the first ones.
        world_size: ranks.
        num_photos: in the training set and in the validation set.
        shapes: width and height of the photos.
    """
    with tempfile.TemporaryDirectory() as folder:
        for number in range(num_photos):
            for part in ("train", "val"):
                path = Path(folder, part, f"class{number % 2}", f"{number:03d}.jpg")
                save_photo(path, *shapes[number % len(shapes)], seed=number)
        given = [
            *overrides,
            "optimizer.learning_rate=1e-9",  # no network may diverge
            f"data.root={folder}",
            f"run.folder={folder}/run",
            f"schedule.num_epochs={rounds + 1}",
        ]
        device = load_config(None, given).device
        fresh = torch.cuda.is_available()
        main, *_ = run_in_ranks(_measure, world_size, given, device=device, fresh=fresh)
    found: Result = main
    return found


def _measure(process: Process, overrides: list[str]) -> Result:
    leave_world()
    watch = Stopwatch()
    with contextlib.redirect_stdout(sys.stderr):  # the table of the training is not ours
        assert pretrain.run(load_config(None, overrides)) == 0
    return watch.result() if process.is_main else {}


def rows(result: Result) -> list[tuple[str, str]]:
    """Results and numbers, as docs/performance.md has them."""
    megabytes = f"{result['megabytes']:.0f} MB"
    return [
        (
            f"a checkpoint of {megabytes}: seconds of the step's thread / of the write",
            f"{result['save']:.3f} / {result['write']:.2f}; the first one "
            f"{result['first_save']:.2f} / {result['first_write']:.2f}",
        ),
        (
            "an evaluation's start, first / later",
            f"{result['first_start']:.3f} / {result['start']:.3f} s",
        ),
        (
            "a whole evaluation / the pictures after it",
            f"{result['evaluation']:.2f} / {result['pictures']:.2f} s",
        ),
    ]


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    overrides = [f"device={arguments.device}", "batch.global=16", *arguments.overrides]
    result = measure_pauses(overrides, arguments.rounds, arguments.ranks)
    sys.stdout.write("| result | number |\n|---|---|\n")
    for name, number in rows(result):
        sys.stdout.write(f"| {name} | {number} |\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
