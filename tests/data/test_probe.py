"""The probe: what DALI decodes, one image at a time, however the one before it ended."""

import numpy as np
import pytest

from tests.prepare.odd_images import bad_images, encoded, good_images, picture
from vggdist.data.probe import WindowProbe


def as_array(content: bytes) -> np.ndarray:
    return np.frombuffer(content, dtype=np.uint8)


def test_every_good_image_is_decoded():
    with WindowProbe() as probe:
        failed = [name for name, one in good_images().items() if not probe.decodes(as_array(one))]
    assert failed == []


@pytest.mark.parametrize(
    "name", ["empty.jpg", "random.jpg", "header only.jpg", "gif.jpg", "cut at 90.jpg", "cut.png"]
)
def test_after_a_failure_the_next_image_is_decoded(name):
    good, bad = as_array(encoded(picture())), as_array(bad_images()[name][0])
    with WindowProbe() as probe:
        for _ in range(3):
            assert not probe.decodes(bad)
            assert probe.decodes(good)


@pytest.mark.parametrize("percent", [60, 80, 95, 99])
def test_a_jpeg_is_decoded_to_its_very_end(percent):
    content = encoded(picture(300, 200))
    with WindowProbe() as probe:
        assert not probe.decodes(as_array(content[: len(content) * percent // 100]))


def test_a_closed_probe_can_be_asked_again():
    probe = WindowProbe()
    for _ in range(2):
        assert probe.decodes(as_array(encoded(picture())))
        probe.close()
