"""Shards: what other readers of the same format find in them."""

import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from nvidia.dali import fn, pipeline_def
from wds2idx import IndexCreator

from tests.prepare.miniature import jpeg
from vggdist.prepare.shards import ShardWriter, sample_extension, shard_name

FIRST = 7
"""Number of the first sample, as in a shard that is not the first."""


@pytest.fixture(scope="module")
def samples() -> list[tuple[bytes, int]]:
    """Images of lengths around a tar's block, among others, and their labels."""
    random = np.random.default_rng(0)
    encoded = [jpeg(random, 20 + 3 * i, 24) for i in range(12)]
    for i, length in ((3, -1), (5, 0), (7, 1)):
        encoded[i] += bytes(-len(encoded[i]) % 512 + 512 + length)  # DALI does not mind
    return [(content, (37 * i) % 1000) for i, content in enumerate(encoded)]


def write(path: Path, samples: list[tuple[bytes, int]]) -> list[int]:
    writer = ShardWriter(path)
    offsets = [
        writer.add(FIRST + i, "jpg", encoded, label) for i, (encoded, label) in enumerate(samples)
    ]
    writer.close()
    assert path.stat().st_size == writer.num_bytes
    return offsets


@pytest.fixture
def shard(tmp_path: Path, samples: list[tuple[bytes, int]]) -> Path:
    path = tmp_path / shard_name(3)
    write(path, samples)
    return path


def test_python_s_tarfile_finds_images_and_labels_in_webdataset_s_naming(shard, samples):
    with tarfile.open(shard, "r:") as file:
        members = file.getmembers()
        content = [file.extractfile(member).read() for member in members]
    assert shard.name == "shard-000003.tar"
    expected_names = [f"{FIRST + i:09d}.{s}" for i in range(len(samples)) for s in ("jpg", "cls")]
    assert [member.name for member in members] == expected_names
    assert content[0::2] == [encoded for encoded, _ in samples]
    assert [int(label) for label in content[1::2]] == [label for _, label in samples]


def test_an_offset_leads_to_the_bytes_of_the_image(tmp_path, samples):
    offsets = write(tmp_path / "a.tar", samples)
    content = (tmp_path / "a.tar").read_bytes()
    for offset, (encoded, _) in zip(offsets, samples, strict=True):
        assert content[offset : offset + len(encoded)] == encoded


def test_gnu_tar_lists_the_shard_without_a_word(shard, samples):
    listed = subprocess.run(["tar", "tf", shard], capture_output=True, text=True, check=True)
    assert len(listed.stdout.splitlines()) == 2 * len(samples)
    assert listed.stderr == ""


def test_the_index_is_the_one_that_dali_s_own_tool_writes(shard, tmp_path):
    with IndexCreator(str(shard), str(tmp_path / "dali.idx"), verbose=False) as creator:
        creator.create_index()
    assert shard.with_suffix(".idx").read_bytes() == (tmp_path / "dali.idx").read_bytes()


@pytest.mark.parametrize("with_index", [True, False])
def test_dali_s_reader_reads_the_shards(tmp_path, samples, with_index):
    paths = [tmp_path / shard_name(i) for i in range(2)]
    for path in paths:
        write(path, samples)

    @pipeline_def(batch_size=2 * len(samples), num_threads=1, device_id=None)
    def reading():
        indices = [str(path.with_suffix(".idx")) for path in paths] if with_index else None
        return tuple(
            fn.readers.webdataset(
                paths=[str(path) for path in paths], index_paths=indices, ext=["jpg", "cls"]
            )
        )

    pipeline = reading()
    pipeline.build()
    images, labels = pipeline.run()
    found = [
        (np.array(images.at(i)).tobytes(), int(np.array(labels.at(i)).tobytes()))
        for i in range(2 * len(samples))
    ]
    assert found == samples * 2


def test_a_shard_depends_on_its_samples_and_on_nothing_else(tmp_path, samples, shard):
    write(tmp_path / "again.tar", samples)
    assert (tmp_path / "again.tar").read_bytes() == shard.read_bytes()
    assert (tmp_path / "again.idx").read_bytes() == shard.with_suffix(".idx").read_bytes()
    with tarfile.open(shard) as file:
        for member in file:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (
                (0, 0, 0, "", "")
            )


def test_extensions_are_lower_case_and_jpeg_is_jpg():
    assert sample_extension("n01440764_18.JPEG") == "jpg"
    assert sample_extension("below/a.b.Png") == "png"
    assert sample_extension("a.jpg") == "jpg"
