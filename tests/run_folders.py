"""What a test reads from the run folder of a training, while it runs and afterwards."""

import json
import time
from pathlib import Path

from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def records(folder: Path, split: str = "train") -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["split"] == split]


def steps(folder: Path, split: str = "train") -> list[float]:
    return [record["step"] for record in records(folder, split)]


def numbers(folder: Path) -> list[tuple[float, ...]]:
    """What must be equal in every repetition of a training; times are not."""
    names = ("step", "epoch", "loss", "top1_error", "top5_error")
    both = records(folder) + records(folder, "validation")
    return [tuple(record[name] for name in names) for record in both]


def read_events(folder: Path) -> EventAccumulator:
    """All that TensorBoard shows of a run, by its name."""
    sizes = {"scalars": 0, "images": 0, "tensors": 0, "histograms": 0}
    events = folder / "tensorboard" / folder.name
    return EventAccumulator(str(events), size_guidance=sizes).Reload()


def wait_for_step(folder: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (folder / "metrics.jsonl").exists() and step in steps(folder):
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was never logged")


def last_checkpoint(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("step-*"))


def assert_equal_tensors(one: Path, other: Path) -> None:
    for name in ("weights.safetensors", "momentum.safetensors"):
        ours, theirs = load_file(one / name), load_file(other / name)
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            assert tensor.tobytes() == theirs[key].tobytes(), key
