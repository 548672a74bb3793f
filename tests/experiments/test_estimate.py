"""What an experiment will take, by arithmetic that others have done too."""

from pathlib import Path

import pytest

from vggdist.experiments.estimate import Estimate, StageEstimate, estimate
from vggdist.experiments.schema import load_experiment
from vggdist.experiments.stages import Experiment

PAPER = Path(__file__).parents[2] / "configs" / "experiments" / "paper.yaml"


@pytest.fixture(scope="module")
def paper() -> Experiment:
    return load_experiment(PAPER, ["data=/nowhere/imagenet"])


def estimate_all(experiment: Experiment, world_size: int = 1, speed: float = 400.0) -> Estimate:
    return estimate(experiment, list(experiment.stages), world_size, True, speed)


def by_name(result: Estimate) -> dict[str, StageEstimate]:
    return {stage.stage: stage for stage in result.stages}


def test_74_epochs_of_d_take_8_80_exaflop_and_its_74_evaluations_a_hundredth_more(
    paper: Experiment,
) -> None:
    """3 x 15.47 G multiply-adds x 2 x 1,281,167 images x 74, and 2 x 15.47 G x 50,000 x 74."""
    d = by_name(estimate_all(paper))["d_256"]
    training, evaluations = 92.82e9 * 1_281_167 * 74, 30.94e9 * 50_000 * 74
    assert training / 1e18 == pytest.approx(8.80, abs=0.005)
    assert d.petaflop == pytest.approx((training + evaluations) / 1e15, rel=1e-3)
    assert d.device_hours == pytest.approx(d.petaflop / 0.4 / 3600)
    assert d.num_epochs == 74


def test_two_checkpoints_of_d_are_weights_and_momentum_in_fp32(paper: Experiment) -> None:
    assert by_name(estimate_all(paper))["d_256"].num_bytes == 2 * 2 * 4 * 138_357_544


def test_posteriors_of_three_scales_are_150_million_numbers(paper: Experiment) -> None:
    stages = by_name(estimate_all(paper))
    assert stages["evaluate_d_256"].num_bytes == 3 * 50_000 * 1000 * 4
    assert stages["evaluate_d_jitter"].num_bytes == 2 * stages["evaluate_d_256"].num_bytes


def test_a_frozen_layer_costs_a_forward_pass(paper: Experiment) -> None:
    """Fully connected layers are 123.6 M of D's 15.47 G multiply-adds."""
    stages = by_name(estimate_all(paper))
    ratio = stages["d_jitter_fc"].petaflop / stages["d_jitter"].petaflop
    images, evaluated = 1_281_167 * 74, 50_000 * 74
    only_fc = images * (15.470 + 2 * 0.1236) + evaluated * 15.470
    assert ratio == pytest.approx(only_fc / (3 * images * 15.470 + evaluated * 15.470), rel=1e-3)


def test_a_dense_pass_at_the_crop_size_on_square_images_would_be_two_crops(
    paper: Experiment,
) -> None:
    """Images are taken to be 4:3: 256 x 341 pixels, 2 x 4 places, 1.735 crops' convolutions."""
    flop = by_name(estimate_all(paper))["evaluate_a_256"].petaflop * 1e15 / 50_000
    convolutions, rest = 7.609e9 - 0.1236e9, 0.1236e9
    # A map loses the odd pixels of its image: 341 becomes 170, 85, 42, 21.
    area = 256 * 336 / 224**2
    low, high = (2 * 2 * (convolutions * a + 8 * rest) for a in (area, 256 * 341 / 224**2))
    assert low <= flop <= high


def test_stages_that_wait_for_each_other_add_up_and_others_do_not(paper: Experiment) -> None:
    result = estimate_all(paper, world_size=8)
    hours = {name: stage.device_hours / 8 for name, stage in by_name(result).items()}
    chain = ("a_256", "e_256", "e_384", "e_jitter", "evaluate_e_jitter")
    assert result.longest_hours == pytest.approx(sum(hours[name] for name in chain))
    assert result.device_hours == pytest.approx(8 * sum(hours.values()))
    assert hours["report"] == 0


def test_only_what_is_wanted_is_counted(paper: Experiment) -> None:
    result = estimate(paper, ["d_384", "submission"], 1, True)
    assert [stage.stage for stage in result.stages] == ["d_384", "submission"]
    assert result.to_dict()["jobs"] == 2
    assert result.teraflops == 100


def test_images_are_imagenet_s_where_there_is_no_data_and_counted_where_there_is_some(
    paper: Experiment, tiny_dataset: Path
) -> None:
    images = estimate_all(paper).images
    assert (images.num_train, images.num_val) == (1_281_167, 50_000)
    assert images.note == "ImageNet's, since /nowhere/imagenet is not to be seen from here"
    images = estimate_all(load_experiment(PAPER)).images
    assert images.note == "ImageNet's, since no data set is named"
    images = estimate_all(load_experiment(PAPER, [f"data={tiny_dataset}"])).images
    assert (images.num_train, images.num_val) == (20, 7)
    assert images.note == f"counted in {tiny_dataset}"


def test_a_length_in_steps_is_one_in_epochs(tiny_dataset: Path) -> None:
    overrides = [f"data={tiny_dataset}", "set.schedule.num_steps=30", "set.batch.global=4"]
    experiment = load_experiment(PAPER, overrides)
    assert by_name(estimate_all(experiment))["a_256"].num_epochs == 6
