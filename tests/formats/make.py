"""Writes one of every file that vggdist keeps on disk, with the version at hand.

    python tests/formats/make.py FOLDER

`tests/formats/first` was written so by version 0.1 of November 2026 and stays as it is: what has
been written once is read by every later version. A format that changes gets a folder of its own
beside it.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

PROJECT = Path(__file__).resolve().parents[2]
CLASSES = ("blue", "green", "red")
TRAINING = (
    "model.configuration=[[3-8],[3-16]]",
    "model.batch_norm=true",
    "model.num_classes=3",
    "model.fc_width=8",
    "data.root=photos",
    "data.crop_size=32",
    "data.train_scale_min=32",
    "data.train_scale_max=40",
    "data.num_threads=1",
    "batch.global=8",
    "batch.micro=4",
    "optimizer.learning_rate=2e-4",
    "precision=fp32",
    "device=cpu",
    "exchange=all_reduce",
    "schedule.num_steps=6",
    "checkpoint.every_steps=6",
    "log.every_steps=1",
    "run.folder=run",
)
INTERRUPTED = """
from vggdist.prepare.journal import Journal
commit = Journal.commit
def commit_two(journal, *arguments):
    commit(journal, *arguments)
    if len(journal.parts) == 2:
        raise KeyboardInterrupt
Journal.commit = commit_two
from vggdist.cli import main
main()
"""
"""A command that ends once two shards are finished."""


def write_photos(root: Path) -> None:
    """train/ with 12 and val/ with 6 JPEGs of three colours, and a broken one in train/."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for channel, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                small = generator.integers(0, 100, (4, 4, 3), dtype=np.uint8)
                small[..., 2 - channel] += 120
                picture = Image.fromarray(small).resize((44, 40), Image.Resampling.BICUBIC)
                picture.save(folder / f"{number}.jpg", quality=80)
    (root / "train" / "red" / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")


def run(*words: str, check: bool = True) -> None:
    """One command of the project."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    subprocess.run((sys.executable, *words), check=check, env=environment)


def vggdist(*words: str) -> None:
    run("-m", "vggdist.cli", *words)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    os.chdir(folder)
    write_photos(Path("photos"))
    train = str(PROJECT / "launch" / "train.py")
    run(train, *TRAINING)
    vggdist("check", "photos")
    vggdist("prepare", "folder", "photos", "--out", "shards", "--shorter-side", "40")
    prepare = ("prepare", "folder", "photos", "--shard-megabytes", "0.004", "--out", "interrupted")
    run("-c", INTERRUPTED, *prepare, check=False)
    for request in (
        Path("shards/.vggdist-prepared.json"),
        Path("interrupted/.vggdist-prepare/request.json"),
    ):
        request.write_text(request.read_text().replace(str(Path.cwd()), "/data"))
    vggdist("export", "run", "--format", "safetensors", "--out", "weights.safetensors")
    for protocol in ("center-crop", "dense"):
        vggdist(
            *("evaluate", "run", "--data", "photos", "--protocol", protocol, "--scales", "32"),
            *("--out", "posteriors", "--json", f"{protocol}.json", "device=cpu", "precision=fp32"),
        )
    vggdist(
        *("features", "run", "--data", "photos/val", "--layer", "fc7", "--scales", "32"),
        *("--out", "features.npz", "device=cpu", "precision=fp32"),
    )
    for file in (Path("run/log.txt"), Path("run/predictions.png"), Path("run/lock")):
        file.unlink()  # for people to read, or of no further use


if __name__ == "__main__":
    main()
