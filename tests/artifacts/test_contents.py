"""Equal contents, other contents, and not knowing."""

import numpy as np
import pytest

from vggdist.artifacts.contents import UNKNOWN, ContentsDigest

LENGTHS, TIMES = np.array([10, 20]), np.array([5, 6])
HASHES = np.arange(64, dtype=np.uint8).reshape(2, 32)
WHOLE = ContentsDigest.of(LENGTHS, TIMES, HASHES)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (ContentsDigest.of(LENGTHS, TIMES + 1, HASHES), True),
        (ContentsDigest.of(LENGTHS, TIMES, HASHES[::-1]), False),
        (ContentsDigest.of(LENGTHS, TIMES, None), True),
        (ContentsDigest.of(LENGTHS, TIMES + 1, None), None),
        (ContentsDigest.of(LENGTHS, None, None), None),
        (ContentsDigest.of(LENGTHS + 1, TIMES, None), False),
        (UNKNOWN, None),
    ],
    ids=["touched", "swapped", "as noted", "copied", "without times", "other lengths", "nothing"],
)
def test_hashes_decide_and_without_them_lengths_and_times(other, same):
    assert WHOLE.same_as(other) is same
    assert other.same_as(WHOLE) is same


def test_a_digest_comes_back_from_plain_values():
    assert ContentsDigest.from_mapping(WHOLE.to_dict("val_"), "val_") == WHOLE
    assert ContentsDigest.from_mapping({}) == UNKNOWN


def test_what_is_not_known_of_a_part_is_not_known_of_all():
    part = ContentsDigest.of(LENGTHS, None, HASHES[::-1])
    joined = ContentsDigest.joined([WHOLE, part])
    assert joined.times == ""
    assert joined.sha256
    assert joined != ContentsDigest.joined([part, WHOLE])
