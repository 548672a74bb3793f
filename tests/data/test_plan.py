"""The plan as a pure function of seed and position: order, shares, epochs, distributions."""

from dataclasses import fields

import numpy as np
import pytest

from vggdist.config import DataConfig
from vggdist.data.plan import SamplePlan, Samples, evaluation_samples, evaluation_share

JITTER = DataConfig(train_scale_min=256, train_scale_max=512)

# Written down once: another numpy, machine or edit must not change what a seed means.
GOLDEN_IMAGE = [1, 7, 6, 9, 8, 3, 0, 5, 2, 4, 2, 3]
GOLDEN_SCALE = [319, 420, 266, 357]
GOLDEN_POSITION = [[32777, 8296], [14588, 13806]]
GOLDEN_FLIP = [True, True, False, True, True, False]
GOLDEN_KEY = [5858248097538172043]
GOLDEN_DRAW = [-0.00785, 0.0588534, -0.0081214]


def assert_same(one: Samples, other: Samples) -> None:
    for field in fields(Samples):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def joined(parts: list[Samples]) -> Samples:
    return Samples(
        *(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Samples))
    )


@pytest.mark.parametrize("num_images", [1, 2, 7, 100, 1009])
def test_each_epoch_shows_each_image_once_also_when_batches_span_epochs(num_images):
    plan = SamplePlan(num_images, JITTER, global_batch=16, seed=5)
    num_epochs = 4
    num_steps = -(-num_epochs * num_images // 16)
    images = np.concatenate([plan.batch(step).image for step in range(num_steps)])
    epochs = images[: num_epochs * num_images].reshape(num_epochs, num_images)
    for epoch in epochs:
        assert sorted(epoch) == list(range(num_images))
    if num_images >= 100:
        assert not (epochs[0] == epochs[1]).all()


def test_slices_of_any_size_are_the_batch_bit_for_bit():
    plan = SamplePlan(1000, JITTER, global_batch=600, seed=1)
    whole = plan.batch(3)
    for size in (1, 7, 64, 600):
        parts = [plan.batch(3, i, min(i + size, 600)) for i in range(0, 600, size)]
        assert_same(joined(parts), whole)


def test_a_step_does_not_depend_on_the_steps_before_it():
    walked = SamplePlan(50, JITTER, global_batch=20, seed=9)
    for step in range(30):
        walked.batch(step)
    assert_same(walked.batch(30), SamplePlan(50, JITTER, global_batch=20, seed=9).batch(30))


def test_the_plan_of_a_seed_never_changes():
    samples = SamplePlan(10, JITTER, global_batch=12, seed=3).batch(1000)
    assert samples.image.tolist() == GOLDEN_IMAGE
    assert samples.scale.tolist()[:4] == GOLDEN_SCALE
    assert samples.position.tolist()[:2] == GOLDEN_POSITION
    assert samples.flip.tolist()[:6] == GOLDEN_FLIP
    assert samples.dropout_key.tolist()[:1] == GOLDEN_KEY
    np.testing.assert_allclose(samples.color_draw[0], GOLDEN_DRAW, rtol=1e-5)


def test_seeds_and_positions_have_draws_of_their_own():
    one = SamplePlan(4000, JITTER, global_batch=4000, seed=0).batch(0)
    other = SamplePlan(4000, JITTER, global_batch=4000, seed=1).batch(0)
    assert (one.dropout_key != other.dropout_key).all()
    assert (one.image != other.image).mean() > 0.99
    assert len(set(one.dropout_key.tolist())) == 4000
    assert (one.dropout_key >= 0).all()


def test_draws_have_the_stated_distributions():
    n = 100_000
    samples = SamplePlan(n, JITTER, global_batch=n, seed=7).batch(0)
    counts = np.bincount(samples.scale, minlength=513)[256:]
    assert counts.sum() == n
    assert len(counts) == 257
    # Chi-square with 256 degrees of freedom: mean 256, standard deviation 22.6.
    assert ((counts - n / 257) ** 2 / (n / 257)).sum() < 256 + 5 * 22.6
    assert 0 <= samples.position.min() < 10
    assert 65525 < samples.position.max() < 65536
    np.testing.assert_allclose(samples.position.mean(axis=0), 32767.5, atol=5 * 18919 / n**0.5)
    assert abs(samples.flip.mean() - 0.5) < 5 * 0.5 / n**0.5
    np.testing.assert_allclose(samples.color_draw.mean(axis=0), 0, atol=5 * 0.1 / n**0.5)
    np.testing.assert_allclose(samples.color_draw.std(axis=0), 0.1, rtol=0.02)
    inside = (np.abs(samples.color_draw) < 0.1).mean(axis=0)
    np.testing.assert_allclose(inside, 0.6827, atol=0.01)
    columns = np.column_stack(
        [samples.scale, samples.position, samples.flip, samples.color_draw, samples.image]
    )
    correlation = np.corrcoef(columns.T) - np.eye(columns.shape[1])
    assert np.abs(correlation).max() < 0.02


def test_augmentations_can_be_switched_off():
    data = DataConfig(train_scale_min=300, train_scale_max=300, flip=False, color_shift=0.0)
    samples = SamplePlan(100, data, global_batch=100, seed=0).batch(0)
    assert not samples.flip.any()
    assert (samples.color_draw == 0).all()
    assert (samples.scale == 300).all()


def test_an_evaluation_takes_the_centre_unchanged():
    samples = evaluation_samples([4, 2], 384)
    assert samples.image.tolist() == [4, 2]
    assert samples.scale.tolist() == [384, 384]
    assert (samples.position == 32768).all()
    assert not samples.flip.any()
    assert not samples.color_draw.any()
    assert not samples.dropout_key.any()


@pytest.mark.parametrize("num_images", [1, 2, 3, 97, 1009])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_ranks_shares_are_the_set_each_image_once(num_images, world_size):
    shares = [evaluation_share(num_images, rank, world_size) for rank in range(world_size)]
    assert sorted(np.concatenate(shares)) == list(range(num_images))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_a_bad_image_is_replaced_and_nothing_else_changes():
    plan = SamplePlan(40, JITTER, global_batch=16, seed=3)
    for step in range(8):
        before, after = plan.batch(step), plan.batch(step, known_bad={7, 11})
        bad = np.isin(before.image, [7, 11])
        assert not np.isin(after.image, [7, 11]).any()
        np.testing.assert_array_equal(after.image[~bad], before.image[~bad])
        for field in fields(Samples):
            if field.name != "image":
                np.testing.assert_array_equal(
                    getattr(after, field.name), getattr(before, field.name)
                )


def test_the_substitute_of_a_slice_is_that_of_the_batch():
    plan = SamplePlan(10, JITTER, global_batch=60, seed=1)
    whole = plan.batch(2, known_bad={1, 4})
    parts = [plan.batch(2, i, i + 7 if i < 56 else 60, {4, 1}) for i in range(0, 60, 7)]
    assert_same(joined(parts), whole)


def test_finding_bad_images_one_after_another_ends_where_knowing_them_all_does():
    """A substitute that turns out bad gives way to the next: the order of discovery is nothing."""
    plan, bad = SamplePlan(6, JITTER, global_batch=90, seed=8), {0, 2, 3, 5}
    known: set[int] = set()
    while True:
        images = plan.batch(0, known_bad=known).image
        found = next((int(i) for i in images if i in bad), None)
        if found is None:
            break
        known.add(found)
    assert known == bad
    np.testing.assert_array_equal(images, plan.batch(0, known_bad=bad).image)


def test_substitutes_are_drawn_evenly():
    plan = SamplePlan(5, JITTER, global_batch=5000, seed=2)
    counts = np.bincount(plan.batch(0, known_bad={0, 1}).image, minlength=5)
    assert counts[:2].tolist() == [0, 0]
    assert (abs(counts[2:] - 5000 / 3) < 150).all()
