"""The run of a preparation: from a source to class folders or shards, and their manifest.

One thread reads the source and writes shards, in order; the others hash, find sizes, resize and
write single files. A killed run continues after its last finished part, and the result is the same
as if it had not been killed.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from vggdist.artifacts.files import unpack_names
from vggdist.artifacts.paths import quote
from vggdist.data.manifest import Contents, Dataset, Manifest, Names, Shards
from vggdist.data.manifest_file import (
    MANIFEST_NAME,
    SPLITS,
    load_contents,
    load_manifest,
    save_manifest,
    write_classes,
)
from vggdist.data.survey import note_files
from vggdist.errors import DataError
from vggdist.prepare.journal import COLUMNS, Journal, Part, is_finished
from vggdist.prepare.packing import (
    PackedImage,
    Packing,
    pack_image,
    write_file,
    write_shard,
)
from vggdist.prepare.shards import shard_name
from vggdist.prepare.sources import Source, SourceImage
from vggdist.terminal import Progress

logger = logging.getLogger(__name__)

IMAGES_PER_PART = 4096
"""Of class folders; of ImageNet they have about as many bytes as a shard."""
_BYTES_AHEAD = 256 * 2**20
_IMAGES_AHEAD_PER_JOB = 8


@dataclass(frozen=True)
class Prepared:
    """What lies in a prepared folder."""

    folder: str
    form: str
    num_classes: int
    num_images: dict[str, int]
    """By split."""
    num_bytes: dict[str, int]
    """Of the encoded images, by split."""
    num_shards: dict[str, int]
    """By split; 0 for class folders."""
    num_unreadable: dict[str, int]
    """Images without a header that Pillow can read, by split."""
    resized: str
    """How images were made smaller; empty: they were not."""
    was_finished: bool
    """Whether an earlier run had done all of it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def prepare(source: Source, out: str | Path, packing: Packing, strict: bool = False) -> Prepared:
    """Writes train/, val/ and the manifest of a data set into a folder.

    Args:
        source: the images.
        out: the folder: new, empty, or left by a run with the same arguments, which is continued.
        packing: the form.
        strict: whether a source that differs from what is expected is an error.

    Raises:
        DataError: the source or the folder cannot be used; what is finished stays.
    """
    out = Path(out).expanduser().absolute()
    try:
        request = {
            "source": source.identity(),
            "contents": source.contents.to_dict(),
            **packing.identity(),
        }
        was_finished = is_finished(out, request)
        if was_finished:
            _compare_counts(source, load_manifest(out / MANIFEST_NAME, out), strict)
        else:
            with Journal(out, request) as journal:
                _pack(source, out, packing, journal)
                _finish(source, out, packing, journal, strict)
        return _described(out, packing.form, was_finished)
    except OSError as error:
        raise DataError(
            f"Preparing {quote(out)} stopped: {error}. What is finished stays there; once this is "
            "solved, the same command goes on."
        ) from error


def render_prepared(prepared: Prepared) -> str:
    """The result as text for a person."""
    lines = [f"{quote(prepared.folder)}: {prepared.num_classes:,} classes in {prepared.form}"]
    if prepared.was_finished:
        lines[0] += "; it was finished before and was left as it is"
    for split in SPLITS:
        line = f"{split:>7}: {prepared.num_images[split]:,} images, "
        line += f"{prepared.num_bytes[split] / 1e6:,.1f} MB"
        if prepared.num_shards[split]:
            line += f", shards: {prepared.num_shards[split]:,}"
        if prepared.num_unreadable[split]:
            line += f", {prepared.num_unreadable[split]:,} without a readable header"
        lines.append(line)
    if prepared.resized:
        lines.append(f"resized: {prepared.resized}")
    return "\n".join(lines)


def _pack(source: Source, out: Path, packing: Packing, journal: Journal) -> None:
    """Writes the images that are in no finished part."""

    def work(image: SourceImage) -> PackedImage:
        packed = pack_image(image, packing.resize)
        if packing.form == "folders":
            write_file(out / image.split / source.classes[image.label] / image.name, packed.encoded)
        return packed

    for split in SPLITS:
        (out / split).mkdir(exist_ok=True)
    if packing.form == "shards":
        write_classes(source.classes, out)
    progress = Progress(source.num_images, journal.num_images)
    images = _in_order(work, source.images(journal.num_images), packing.jobs, progress)
    with closing(images), closing(progress):
        for split, of_split in groupby(images, lambda image: image.split):
            for first in of_split:
                rest = chain([first], of_split)  # noqa: B031  # it goes on where the part begins
                if packing.form == "folders":
                    entries = [image.entry for image in islice(rest, IMAGES_PER_PART)]
                else:
                    parts = journal.of_split(split)
                    number = sum(len(part["labels"]) for part in parts)
                    shard = out / split / shard_name(len(parts))
                    entries = write_shard(shard, rest, number, packing.shard_megabytes)
                journal.commit(split, entries)


def _in_order(
    work: Callable[[SourceImage], PackedImage],
    images: Iterator[SourceImage],
    jobs: int,
    progress: Progress,
) -> Generator[PackedImage, None, None]:
    """The results of `work`, done by threads a little ahead of the caller."""
    waiting: deque[tuple[int, Future[PackedImage]]] = deque()
    num_bytes = 0
    pool = ThreadPoolExecutor(jobs)
    try:
        # Pillow warns of large images and odd metadata; checking images is another command.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            while True:
                while (
                    len(waiting) <= _IMAGES_AHEAD_PER_JOB * jobs
                    and num_bytes <= _BYTES_AHEAD
                    and (image := next(images, None))
                ):
                    size = len(image.content) if isinstance(image.content, bytes) else 0
                    waiting.append((size, pool.submit(work, image)))
                    num_bytes += size
                if not waiting:
                    return
                size, future = waiting.popleft()
                num_bytes -= size
                yield future.result()
                progress.advance()
    finally:
        pool.shutdown(cancel_futures=True)


def _finish(source: Source, out: Path, packing: Packing, journal: Journal, strict: bool) -> None:
    """Writes the manifest, if the source is what it should be, and removes the journal."""
    resized = "; ".join(str(step) for step in (source.resized, packing.resize) if step)
    manifests, contents = [], {}
    for split in SPLITS:
        parts = journal.of_split(split)
        written = _listed(parts, out, split, source.classes, packing.form)
        manifest, contents[split] = note_files(*written)
        manifests.append(replace(manifest, resized=resized))
    dataset = Dataset(*manifests)
    _compare_counts(source, dataset, strict)
    save_manifest(dataset, [out / MANIFEST_NAME], contents)
    journal.finish()


def _listed(
    parts: Sequence[Part], out: Path, split: str, classes: tuple[str, ...], form: str
) -> tuple[Manifest, Contents]:
    """The images of a split's parts in the order that class folders have."""
    names = [name for part in parts for name in unpack_names(part["names"])]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
    by_name = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)
    order = by_name[np.argsort(columns["labels"][by_name], kind="stable")]
    columns = {name: column[order] for name, column in columns.items()}
    shards = None
    if form == "shards":
        files = tuple(shard_name(i) for i in range(len(parts)))
        lengths = [(out / split / file).stat().st_size for file in files]
        file = np.repeat(np.arange(len(parts), dtype=np.int32), [len(p["labels"]) for p in parts])
        shards = Shards(files, np.array(lengths, np.int64), file[order], columns["offsets"])
    manifest = Manifest(
        out / split,
        split,
        classes,
        columns["labels"],
        Names.pack(names[i] for i in order),
        num_bytes=columns["num_bytes"],
        shards=shards,
    )
    return manifest, Contents(columns["sizes"], columns["sha256"])


def _compare_counts(source: Source, dataset: Dataset, strict: bool) -> None:
    """Warns where a source is not what is expected; an error if `strict`."""
    num_classes = len(dataset.train.classes)
    surprises = source.surprises(
        {
            manifest.split: np.bincount(manifest.labels, minlength=num_classes)
            for manifest in (dataset.train, dataset.val)
        }
    )
    if surprises and strict:
        raise DataError(
            "\n  ".join(["The source is not what it should be:", *surprises])
            + "\nGet the missing images, or leave out --strict to accept it as it is; what was "
            "prepared is kept."
        )
    for surprise in surprises:
        logger.warning("%s", surprise)


def _described(out: Path, form: str, was_finished: bool) -> Prepared:
    """What the manifest of a finished folder says."""
    dataset = load_manifest(out / MANIFEST_NAME, out)
    contents = load_contents(out / MANIFEST_NAME, out) or {}
    splits = {manifest.split: manifest for manifest in (dataset.train, dataset.val)}
    num_bytes = {}
    for split, manifest in splits.items():
        assert manifest.num_bytes is not None
        num_bytes[split] = int(manifest.num_bytes.sum())
    return Prepared(
        folder=os.fspath(out),
        form=form,
        num_classes=len(dataset.train.classes),
        num_images={split: manifest.num_images for split, manifest in splits.items()},
        num_bytes=num_bytes,
        num_shards={
            split: len(manifest.shards.files) if manifest.shards else 0
            for split, manifest in splits.items()
        },
        num_unreadable={
            split: int((contents[split].sizes == 0).any(axis=1).sum()) for split in splits
        },
        resized=dataset.train.resized,
        was_finished=was_finished,
    )
