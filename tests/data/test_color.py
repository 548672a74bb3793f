"""The colour shift against Krizhevsky's formula, written out per image."""

import numpy as np

from vggdist.data.color import EIGENVALUES, EIGENVECTORS, color_shift, subtracted_mean


def test_shift_is_the_sum_of_eigenvectors_times_draw_times_eigenvalue_times_255():
    draws = np.random.default_rng(0).normal(0, 0.1, (20, 3)).astype(np.float32)
    for draw, shift in zip(draws, color_shift(draws), strict=True):
        expected = np.array(EIGENVECTORS) @ (draw * np.array(EIGENVALUES) * 255)
        np.testing.assert_allclose(shift, expected, atol=1e-5)


def test_one_sigma_of_the_first_component_moves_a_pixel_by_five_and_a_half_grey_levels():
    shift = color_shift(np.array([[0.1, 0, 0]], dtype=np.float32))
    assert abs(np.linalg.norm(shift) - 5.546) < 0.001


def test_the_components_are_those_of_imagenets_pixels():
    vectors = np.array(EIGENVECTORS)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=2e-4)
    deviation = np.sqrt(np.diag(vectors @ np.diag(EIGENVALUES) @ vectors.T))
    np.testing.assert_allclose(deviation, [0.2837, 0.2763, 0.2897], atol=2e-4)


def test_an_images_shift_has_the_same_bits_in_every_batch():
    draws = np.random.default_rng(1).normal(0, 0.1, (33, 3)).astype(np.float32)
    together = color_shift(draws)
    alone = np.concatenate([color_shift(draws[i : i + 1]) for i in range(33)])
    np.testing.assert_array_equal(together, alone)


def test_adding_the_shift_is_subtracting_less():
    draws = np.array([[0.1, -0.2, 0.3]], dtype=np.float32)
    mean = (123.68, 116.779, 103.939)
    expected = np.array(mean, dtype=np.float32) - color_shift(draws)
    np.testing.assert_array_equal(subtracted_mean(mean, draws), expected)
