"""Writes a data set, as class folders or as shards, and the manifest that tells all about it.

One thread takes the images from the source and stores the results, in order; the others hash,
look at sizes, resize and write single files. A killed run goes on after its last finished part, and
what it writes in the end is the same as if nothing had happened.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vggdist.artifacts.paths import quote
from vggdist.data.manifest import Contents, Dataset, Manifest, Names, Shards
from vggdist.data.manifest_file import (
    MANIFEST_NAME,
    SPLITS,
    load_contents,
    load_manifest,
    save_manifest,
)
from vggdist.data.survey import note_files
from vggdist.errors import DataError
from vggdist.prepare.journal import Entry, Journal, is_finished
from vggdist.prepare.packing import PackedImage
from vggdist.prepare.shards import shard_name
from vggdist.prepare.sources import Source, SourceImage
from vggdist.prepare.writers import Packing, Writer, writer_of
from vggdist.terminal import Progress

logger = logging.getLogger(__name__)

_BYTES_IN_FLIGHT = 256 * 2**20
_IMAGES_IN_FLIGHT_PER_JOB = 8


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
        out: the folder: new, empty, or left by a run with the same arguments, which then goes on.
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
                _pack(source, writer_of(source.classes, out, packing, journal), packing, journal)
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


def _pack(source: Source, writer: Writer, packing: Packing, journal: Journal) -> None:
    """Writes the images that no finished part lists."""
    progress = Progress(source.num_images, journal.num_images)
    entries: list[Entry] = []
    split = ""

    def end_part() -> None:
        writer.end_part()
        journal.commit(split, entries)
        entries.clear()

    try:
        for image in _in_order(writer, source.images(journal.num_images), packing.jobs):
            if entries and image.source.split != split:
                end_part()
            split = image.source.split
            entries.append(_entry(image, writer.store(image)))
            progress.advance()
            if writer.part_is_full(len(entries)):
                end_part()
        if entries:
            end_part()
    finally:
        writer.abandon_part()
        progress.close()


def _in_order(writer: Writer, images: Iterator[SourceImage], jobs: int) -> Iterator[PackedImage]:
    """The images after the writer's work, which goes on in threads a little ahead."""
    flying: deque[tuple[int, Future[PackedImage]]] = deque()
    flying_bytes = 0
    pool = ThreadPoolExecutor(jobs)
    try:
        # Pillow warns of large images and odd metadata; checking images is another command.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for image in images:
                size = len(image.content) if isinstance(image.content, bytes) else 0
                flying.append((size, pool.submit(writer.work, image)))
                flying_bytes += size
                while (
                    len(flying) > _IMAGES_IN_FLIGHT_PER_JOB * jobs
                    or flying_bytes > _BYTES_IN_FLIGHT
                ):
                    size, landing = flying.popleft()
                    flying_bytes -= size
                    yield landing.result()
            while flying:
                yield flying.popleft()[1].result()
    finally:
        pool.shutdown(cancel_futures=True)


def _entry(image: PackedImage, offset: int) -> Entry:
    return Entry(
        image.source.label,
        image.source.name,
        image.width,
        image.height,
        len(image.encoded),
        image.sha256,
        offset,
    )


def _finish(source: Source, out: Path, packing: Packing, journal: Journal, strict: bool) -> None:
    """Writes the manifest, if the source is what it should be, and removes the journal."""
    resized = "; ".join(str(step) for step in (source.resized, packing.resize) if step)
    manifests, contents = [], {}
    for split in SPLITS:
        listed = _listed(journal, out, split, source.classes, packing.form)
        manifest, contents[split] = note_files(*listed)
        manifests.append(replace(manifest, resized=resized))
    dataset = Dataset(*manifests)
    _compare_counts(source, dataset, strict)
    save_manifest(dataset, [out / MANIFEST_NAME], contents)
    journal.finish()


def _listed(
    journal: Journal, out: Path, split: str, classes: tuple[str, ...], form: str
) -> tuple[Manifest, Contents]:
    """What the journal says of a split, in the order that class folders have."""
    parts = journal.of_split(split)
    names = [name for part in parts for name in part.names.unpack()]
    by_name = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)
    labels = np.concatenate([part.labels for part in parts])
    order = by_name[np.argsort(labels[by_name], kind="stable")]
    shards = None
    if form == "shards":
        files = tuple(shard_name(i) for i in range(len(parts)))
        lengths = [(out / split / file).stat().st_size for file in files]
        file = np.repeat(np.arange(len(parts), dtype=np.int32), [len(p.labels) for p in parts])
        offsets = np.concatenate([part.offsets for part in parts])
        shards = Shards(files, np.array(lengths, dtype=np.int64), file[order], offsets[order])
    manifest = Manifest(
        out / split,
        split,
        classes,
        labels[order],
        Names.pack(names[i] for i in order),
        num_bytes=np.concatenate([part.num_bytes for part in parts])[order],
        shards=shards,
    )
    sizes = np.concatenate([part.sizes for part in parts])[order]
    return manifest, Contents(sizes, np.concatenate([part.sha256 for part in parts])[order])


def _compare_counts(source: Source, dataset: Dataset, strict: bool) -> None:
    """Warns where a source is not what is expected; an error if `strict`."""
    num_classes = len(dataset.train.classes)
    surprises = source.surprises(
        {
            one.split: np.bincount(one.labels, minlength=num_classes)
            for one in (dataset.train, dataset.val)
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
    contents = load_contents(out / MANIFEST_NAME, out)
    num_bytes, num_shards, num_unreadable = {}, {}, {}
    for one in (dataset.train, dataset.val):
        assert contents is not None
        assert one.num_bytes is not None
        num_bytes[one.split] = int(one.num_bytes.sum())
        num_shards[one.split] = len(one.shards.files) if one.shards else 0
        num_unreadable[one.split] = int((contents[one.split].sizes == 0).any(axis=1).sum())
    return Prepared(
        folder=os.fspath(out),
        form=form,
        num_classes=len(dataset.train.classes),
        num_images={one.split: one.num_images for one in (dataset.train, dataset.val)},
        num_bytes=num_bytes,
        num_shards=num_shards,
        num_unreadable=num_unreadable,
        resized=dataset.train.resized,
        was_finished=was_finished,
    )
