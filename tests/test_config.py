"""The oracle is the paper: arXiv:1409.1556v6, sections 3.1, 3.2 and 4."""

import itertools
from operator import attrgetter

import pytest
from pydantic import ValidationError

from vggdist.config import (
    KNOBS,
    BatchConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    scaled_learning_rate,
    split_batch,
    steps_of_epochs,
    total_steps,
)
from vggdist.errors import ConfigError
from vggdist.section import Free, Section, knobs_of

IMAGENET = 1_281_167
"""Training images of ILSVRC-2012."""


def test_the_defaults_are_the_papers() -> None:
    papers = {
        "model.configuration": "D",
        "model.batch_norm": False,
        "model.fc8_width": 1000,
        "model.fc_width": 4096,
        "model.dropout": 0.5,
        "model.initialization": "glorot",
        "data.train_scale_min": 256,
        "data.train_scale_max": 256,
        "data.evaluation_scale": 256,
        "data.crop_size": 224,
        "data.flip": True,
        "data.color_shift": 0.1,
        "batch.global_": 256,
        "optimizer.learning_rate": 1e-2,
        "optimizer.momentum": 0.9,
        "optimizer.weight_decay": 5e-4,
        "optimizer.gradient_clipping": 0.0,
        "schedule.name": "plateau",
        "schedule.warmup_epochs": 0.0,
        "schedule.factor": 0.1,
        "schedule.num_decreases": 3,
        "schedule.num_epochs": 74.0,
    }
    assert {key: attrgetter(key)(Config()) for key in papers} == papers


def test_74_epochs_are_the_papers_370_thousand_steps() -> None:
    """Section 3.1 rounds: "the learning was stopped after 370K iterations (74 epochs)"."""
    assert total_steps(Config(), IMAGENET) == pytest.approx(370_000, rel=1e-3)
    assert total_steps(Config(), IMAGENET) == -(-74 * IMAGENET // 256)


@pytest.mark.parametrize(
    ("epochs", "images", "batch", "steps"),
    [
        (1.0, 1000, 10, 100),
        (1.0, 1001, 10, 101),  # the last one begins the next epoch
        (0.1, 1000, 10, 10),
        (0.3, 1000, 10, 30),  # 0.3 x 1000 / 10 is a little above 30 in binary
        (0.7, 10, 1, 7),
        (0.0001, 10, 10, 1),
    ],
)
def test_epochs_are_rounded_up_to_steps(epochs: float, images: int, batch: int, steps: int) -> None:
    assert steps_of_epochs(epochs, images, batch) == steps


def test_a_number_of_steps_takes_the_place_of_epochs() -> None:
    config = Config(schedule=ScheduleConfig(num_steps=7, num_epochs=3.0))
    assert total_steps(config, IMAGENET) == 7


@pytest.mark.parametrize(
    ("smallest", "largest", "validation", "expected"),
    [(256, 256, None, 256), (256, 512, None, 384), (384, 384, None, 384), (256, 512, 300, 300)],
)
def test_the_evaluation_scale_is_the_middle_of_the_training_scales(
    smallest: int, largest: int, validation: int | None, expected: int
) -> None:
    """Section 4.1: Q = S for fixed S, and Q = 0.5 (S_min + S_max) for jittered S."""
    data = DataConfig(
        train_scale_min=smallest, train_scale_max=largest, validation_scale=validation
    )
    assert data.evaluation_scale == expected


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8, 16, 64, 256])
@pytest.mark.parametrize("global_batch", [1, 6, 8, 251, 256, 1024])
@pytest.mark.parametrize("micro", [None, 1, 2, 3, 64])
def test_a_batch_is_cut_without_rest_or_refused(
    global_batch: int, world_size: int, micro: int | None
) -> None:
    batch = BatchConfig(global_=global_batch, micro=micro)
    possible = global_batch % world_size == 0 and (
        micro is None or (global_batch // world_size) % micro == 0
    )
    if not possible:
        with pytest.raises(ConfigError, match=r"batch\.global \d+"):
            split_batch(batch, world_size)
        return
    split = split_batch(batch, world_size)
    assert split.micro * split.accumulation_steps * split.world_size == global_batch
    assert split.per_rank == global_batch // world_size
    if micro is None:
        divisors = [m for m in range(1, 65) if split.per_rank % m == 0]
        assert split.micro == divisors[-1]
    else:
        assert split.micro == micro


def test_an_impossible_batch_is_refused_with_the_nearest_possible() -> None:
    with pytest.raises(ConfigError) as caught:
        split_batch(BatchConfig(), 7)
    assert str(caught.value) == (
        "batch.global 256 cannot be shared equally by 7 ranks; set it to 252 or 259, or change the "
        "number of ranks."
    )
    with pytest.raises(ConfigError, match=r"by 512 ranks; set it to 512, or change the number"):
        split_batch(BatchConfig(), 512)
    with pytest.raises(ConfigError) as caught:
        split_batch(BatchConfig(micro=48), 2)
    assert str(caught.value) == (
        "batch.micro 48 does not divide the 128 images of each rank (batch.global 256 / 2 ranks), "
        "so gradient accumulation would be uneven; set batch.micro to 32, for example."
    )


def test_a_configuration_cannot_be_changed() -> None:
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.model.dropout = 0.1
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize(
    ("section", "key"),
    [
        (OptimizerConfig, "learning_rate"),
        (OptimizerConfig, "weight_decay"),
        (OptimizerConfig, "gradient_clipping"),
        (ScheduleConfig, "num_epochs"),
        (ScheduleConfig, "warmup_epochs"),
        (DataConfig, "color_shift"),
    ],
)
def test_infinity_and_nan_are_no_numbers(section: type, key: str, value: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        section(**{key: value})


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (OptimizerConfig, "momentum", 1.0),
        (OptimizerConfig, "weight_decay", -1e-9),
        (ModelConfig, "num_classes", 0),
        (DataConfig, "crop_size", 100),
        (DataConfig, "crop_size", 0),
        (ScheduleConfig, "patience", 0),
        (ScheduleConfig, "factor", 1.1),
        (ScheduleConfig, "num_steps", 0),
        (RunConfig, "resume", ""),
        (Config, "seed", 2**63),
    ],
)
def test_a_value_outside_its_range_is_refused(section: type, key: str, value: object) -> None:
    with pytest.raises(ValidationError):
        section(**{key: value})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("F", "configuration 'F' is not in Table 1; use one of A, A-LRN, B, C, D, E."),
        (5, "configuration 5 is neither a column of Table 1 nor a list of blocks, each a list"),
        (["3-64"], "configuration .* is neither a column of Table 1 nor a list of blocks"),
        ([["2-64"]], "layer '2-64' is neither KERNEL-CHANNELS with an odd kernel size"),
        ([[64]], "layer 64 is neither KERNEL-CHANNELS"),
        ([], "a configuration has 1 to 5 blocks, this one has 0"),
    ],
)
def test_an_unknown_network_is_one_error(value: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        ModelConfig.model_validate({"configuration": value})
    assert caught.value.error_count() == 1


def test_blocks_of_ones_own_may_be_lists_or_tuples() -> None:
    as_lists = ModelConfig.model_validate({"configuration": [["3-8"], ["3-8", "LRN"]]})
    as_tuples = ModelConfig(configuration=(("3-8",), ("3-8", "LRN")))
    assert as_lists == as_tuples
    assert len(as_lists.blocks()) == 2


def test_every_scale_below_the_crop_is_named_in_one_error() -> None:
    with pytest.raises(ValidationError) as caught:
        DataConfig(train_scale_min=200, train_scale_max=100, validation_scale=64)
    text = str(caught.value)
    assert "train_scale_min 200 is above train_scale_max 100; swap them" in text
    assert "train_scale_min 200 is below crop_size 224" in text
    assert "validation_scale 64 is below crop_size 224" in text
    assert "set it to at least 224." in text


def test_run_folders_are_named_after_the_network() -> None:
    names = {
        Config(model=ModelConfig(configuration=name, batch_norm=bn)).run_folder
        for name, bn in itertools.product(("A", "A-LRN"), (False, True))
    }
    assert names == {"runs/vgg_a", "runs/vgg_a_bn", "runs/vgg_a_lrn", "runs/vgg_a_lrn_bn"}
    own = ModelConfig(configuration=(("3-8",),))
    assert Config(model=own).run_folder == "runs/vgg_custom"
    assert Config(run=RunConfig(folder="elsewhere")).run_folder == "elsewhere"


def test_the_learning_rate_scales_linearly_from_its_base_batch() -> None:
    """Goyal et al.: 0.1 for 256 images is 3.2 for 8192."""
    batch = BatchConfig(global_=8192)
    scaled = Config(batch=batch, optimizer=OptimizerConfig(learning_rate=0.1, base_batch=256))
    assert scaled_learning_rate(scaled) == pytest.approx(3.2)
    assert scaled_learning_rate(Config(batch=batch)) == 0.01


@pytest.mark.parametrize("stage", [1, 2])
def test_what_needs_stage_0_is_refused_elsewhere(stage: int) -> None:
    with pytest.raises(ValidationError) as refused:
        Config(zero_stage=stage, exchange="factors")
    assert (
        f"exchange is factors, but at zero_stage {stage} DeepSpeed exchanges all gradients itself; "
        "set zero_stage to 0, or exchange to auto."
    ) in str(refused.value)
    with pytest.raises(ValidationError) as refused:
        Config(zero_stage=stage, optimizer=OptimizerConfig(name="lars"))
    assert (
        f"optimizer.name is lars, but at zero_stage {stage} the optimizer sees flat shares of the "
        "weights and no layers; set zero_stage to 0."
    ) in str(refused.value)
    assert Config(zero_stage=stage).exchange == "auto"


def test_gradients_are_sent_in_the_compute_type_unless_fp32_is_asked_for() -> None:
    assert Config(precision="bf16").sent_precision == "bf16"
    assert Config(precision="fp16").sent_precision == "fp16"
    tf32 = Config(precision="tf32")
    assert (tf32.sent_precision, tf32.factor_precision) == ("fp32", "fp32")
    fp32 = Config(precision="bf16", exchange_precision="fp32")
    assert (fp32.sent_precision, fp32.factor_precision) == ("fp32", "bf16")
    halves = Config(precision="fp32", exchange_precision="bf16")
    assert (halves.sent_precision, halves.factor_precision) == ("bf16", "bf16")


FREE = {
    *("model.initialize_from", "device", "exchange", "exchange_precision", "zero_stage"),
    *("compile", "cuda_graph"),
    *("run.folder", "run.resume", "log.every_steps", "log.num_images"),
    *("log.images_every_epochs", "log.num_mistakes"),
    "log.histogram_every_epochs",
    *("checkpoint.every_epochs", "checkpoint.every_steps", "checkpoint.keep"),
    *("evaluation.micro", "evaluation.spatial_average", "evaluation.max_megapixels"),
    *("data.root", "data.num_threads", "data.prefetch", "data.read_ahead", "data.policy"),
    *("data.hardware_decoder_share", "data.max_unusable", "data.accept_changed"),
    "data.local_folder",
}
AS_TRAINED = {
    *("data.num_threads", "data.prefetch", "data.read_ahead", "data.hardware_decoder_share"),
    *("evaluation.every_epochs", "evaluation.micro", "evaluation.spatial_average"),
    *("evaluation.max_megapixels", "precision", "device"),
}


def test_each_key_says_whether_a_resumed_training_may_change_it() -> None:
    assert {key for key, knob in KNOBS.items() if knob.may_change is True} == FREE
    depends = {key for key, knob in KNOBS.items() if callable(knob.may_change)}
    lengths = {"schedule.num_epochs", "schedule.num_steps", "schedule.num_decreases"}
    assert depends == {"model.num_classes", "precision", "batch.micro", *lengths}
    assert all(KNOBS[key].rule for key in depends)


def test_each_key_says_whether_an_evaluation_takes_it_over_from_its_training() -> None:
    assert {key for key, knob in KNOBS.items() if knob.as_trained} == AS_TRAINED


def test_a_key_that_says_neither_is_an_error_at_import() -> None:
    class Forgetful(Section):
        said: Free[int] = 1
        forgotten: int = 1

    with pytest.raises(TypeError, match=r"^data\.forgotten has no knob; annotate it as Fixed\["):
        knobs_of(Forgetful, "data.")
