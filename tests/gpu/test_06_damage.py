"""Damaged images: a GPU names those that a CPU names, and shows no grey in their place.

What a CPU's decoder takes for pixels it shows, whatever they mean, and nobody can tell; there a GPU
may be the wiser one.
"""

import io
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from vggdist.config import BatchSplit, DataConfig
from vggdist.data.dataset import open_images
from vggdist.data.header import image_size
from vggdist.data.loader import TrainingLoader
from vggdist.data.manifest import Manifest
from vggdist.data.plan import SamplePlan
from vggdist.data.probe import WindowProbe
from vggdist.data.whole_images import WholeImageLoader
from vggdist.errors import DataError
from vggdist.profiling.sample import photo

pytestmark = pytest.mark.gpu

NUM_GOOD, MICRO, NUM_STEPS = 12, 8, 6
UNSEEN = {"zeros", "a changed byte", "lost bytes", "an end too early"}
"""Damage that a CPU's decoder does not see."""


def encoded(seed: int, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    photo(500, 375, seed).save(buffer, kind, quality=90, **options)
    return buffer.getvalue()


def damaged() -> dict[str, bytes]:
    """Kind -> a photo with that damage."""
    good = encoded(100)
    middle = (good.rindex(b"\xff\xda") + len(good)) // 2
    noise = np.random.default_rng(0).bytes(4096)
    tables = good.index(b"\xff\xc4")

    def overwritten(other: bytes, place: int = middle) -> bytes:
        return good[:place] + other + good[place + len(other) :]

    return {
        "cut off": good[:middle],
        "cut off, then zeros": good[:middle] + bytes(len(good) - middle),
        "cut off, progressive": encoded(101, progressive=True)[:20_000],
        "noise": overwritten(noise),
        "another image's start": overwritten(b"\xff\xd8"),
        "an unknown marker": overwritten(b"\xff\x55"),
        "header of noise": overwritten(noise[:400], place=2),
        "tables of noise": overwritten(noise[:64], place=tables + 4),
        "impossible tables": overwritten(b"\xff" * 16, place=tables + 5),  # numbers of codes
        "a PNG, cut off": encoded(102, "PNG")[:100_000],
        "text": b"This is no image.\n" * 500,
        "empty": b"",
        "zeros": overwritten(bytes(4096)),
        "a changed byte": overwritten(bytes([good[middle] ^ 0x5A])),
        "lost bytes": good[:middle] + good[middle + 1000 :],
        "an end too early": good[:middle] + b"\xff\xd9",
    }


KINDS = tuple(damaged())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The damaged photos first, in the order of `KINDS`, then good ones."""
    root = tmp_path_factory.mktemp("damaged")
    contents = [*damaged().values(), *(encoded(seed) for seed in range(NUM_GOOD))]
    for number, content in enumerate(contents):
        path = root / "all" / f"{number:03d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return open_images(root)


@dataclass
class Shown:
    """What a training has been shown."""

    named: dict[str, str] = field(default_factory=dict)
    """Kind -> reason, of images found bad."""
    index: list[np.ndarray] = field(default_factory=list)
    """Images of each batch."""
    pixels: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    """(place in the run, image) -> crop."""


def train_on(images: Manifest, device: torch.device, share: float) -> Shown:
    data = DataConfig(hardware_decoder_share=share)
    plan = SamplePlan(images.num_images, data, MICRO, seed=0)
    split = BatchSplit(MICRO, MICRO, 1, 1)
    shown = Shown()
    with TrainingLoader(
        images, plan, data, split, device=device, last_step=NUM_STEPS, num_threads=2
    ) as loader:
        for step, batch in enumerate(loader):
            shown.named |= {KINDS[bad.image]: bad.reason for bad in batch.bad}
            shown.index.append(batch.index)
            for place, image in enumerate(batch.index.tolist()):
                shown.pixels[step * MICRO + place, image] = batch.pixels[place].cpu().float()
    return shown


@pytest.fixture(scope="module")
def on_a_cpu(images: Manifest) -> Shown:
    return train_on(images, torch.device("cpu"), 0.0)


def test_a_cpu_names_all_damage_but_that_which_looks_like_pixels(on_a_cpu, figure):
    for kind in KINDS:
        figure(kind, on_a_cpu.named.get(kind, "not seen"))
    assert set(on_a_cpu.named) == set(KINDS) - UNSEEN


@pytest.mark.parametrize("share", [0.0, 0.65, 1.0])
def test_a_gpu_names_what_a_cpu_names_and_shows_the_same_in_its_place(
    share, images, on_a_cpu, device, figure
):
    shown = train_on(images, device, share)
    missed = set(on_a_cpu.named) - set(shown.named)
    assert not missed, "passed without a word"
    more = set(shown.named) - set(on_a_cpu.named)
    figure("named by the GPU alone", ", ".join(sorted(more)) or "nothing")
    assert more <= UNSEEN
    if not more:
        assert all(
            (ours == theirs).all() for ours, theirs in zip(shown.index, on_a_cpu.index, strict=True)
        )
    bad = {KINDS.index(kind) for kind in shown.named}
    assert not bad & {image for _, image in shown.pixels}
    differences = {"good photos": 0.0}
    for place_and_image in shown.pixels.keys() & on_a_cpu.pixels.keys():
        image = place_and_image[1]
        kind = KINDS[image] if image < len(KINDS) else "good photos"
        ours, theirs = shown.pixels[place_and_image], on_a_cpu.pixels[place_and_image]
        mean = (ours - theirs).abs().mean().item()
        differences[kind] = max(mean, differences.get(kind, 0.0))
    for kind, mean in differences.items():
        figure(f"{kind}, largest mean difference from a CPU's", mean)
    assert differences["good photos"] < 1.0


@pytest.mark.parametrize("kind", sorted(set(KINDS) - UNSEEN))
def test_an_evaluation_on_a_gpu_ends_at_a_damaged_image_and_names_it(kind, images, device):
    number = KINDS.index(kind)
    loader = WholeImageLoader(
        images,
        DataConfig(),
        scales=(256,),
        group_size=4,
        device=device,
        only=[number, len(KINDS), len(KINDS) + 1],
    )
    with loader, pytest.raises(DataError, match=f"/{number:03d}.jpg: "):
        list(loader)


def test_what_a_decoder_finishes_in_grey_is_seen_by_the_look_at_the_file(device, figure):
    for kind, content in damaged().items():
        file = np.frombuffer(content, dtype=np.uint8)
        said = {"file": looked_at(file)}
        for name, where in (("CPU", None), ("GPU", device)):
            with WindowProbe(where) as probe:
                said[name] = "" if probe.decodes(file) else "does not decode"
        figure(kind, ", ".join(f"{name}: {text or 'well'}" for name, text in said.items()))
        assert said["file"] or said["GPU"] or kind in UNSEEN


def looked_at(file: np.ndarray) -> str:
    """What a reading thread says of a file before it is decoded; empty: it is well."""
    try:
        image_size(file)
    except Exception as error:
        return type(error).__name__
    return ""
