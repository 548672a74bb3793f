"""All settings of a training, typed and frozen; the defaults are the paper's (arXiv:1409.1556v6).

A field states its unit, its range, the source of its default, and what it means for a run that
continues (`Knob`). Values derived from several fields or from the world size are functions at the
end of this file, never fields. `vggdist/config_file.py` reads and writes YAML.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from vggdist.artifacts.paths import expand_home, lies_in, quote, require_text
from vggdist.errors import ConfigError
from vggdist.model.configurations import (
    Configuration,
    Convolution,
    column_name,
    configuration_name,
    parse_configuration,
)
from vggdist.section import Fixed, Free, Inherited, Knob, Section, knobs_of

UserPath = Annotated[str, AfterValidator(expand_home)]
WeightsPath = Annotated[UserPath, AfterValidator(require_text)]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
PrecisionSetting = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
Exchange = Literal["auto", "all_reduce", "factors"]
Orientation = Literal["ignore", "apply"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Triple = tuple[float, float, float]
"""Numbers for red, green and blue."""
FULLY_CONNECTED = ("fc6", "fc7", "fc8")
NUM_IMAGENET_CLASSES = 1000

_LENGTH = Knob(
    lambda _, new: new.schedule.name != "cosine",
    rule="unless schedule.name is cosine, where every learning rate follows from the length",
)
_CLASSES = Knob(
    lambda _, new: new.model.num_classes is None, rule="to null, which follows the images"
)
_MICRO = Knob(
    lambda _, new: not new.model.batch_norm,
    rule="unless model.batch_norm is true, which sees one micro batch at a time",
)
_MORE = Knob(
    lambda old, new: new.schedule.num_decreases >= old.schedule.num_decreases, rule="to more"
)


class ModelConfig(Section):
    """The network: a column of Table 1 or custom blocks, and its initial weights."""

    configuration: Fixed[str | tuple[tuple[str, ...], ...]] = Field(
        "D",
        description="Column of Table 1 (A, A-LRN, B, C, D, E; also VGG11, VGG13, VGG16 and VGG19, "
        "which are A, B, D and E), or custom blocks, each a list of layers such as 3-64 (kernel "
        "size 3, 64 channels) or LRN; every block ends in a max-pooling.",
    )
    batch_norm: Fixed[bool] = Field(
        False, description="Batch normalization after every convolution (not in the paper)."
    )
    num_classes: Annotated[
        int | None,
        Knob(
            lambda _, new: new.model.num_classes is None, rule="to null, which follows the images"
        ),
    ] = Field(
        None,
        ge=1,
        description="Width of the last layer, fc8; null: the classes of the data set, or "
        "ImageNet's 1000 where there is none.",
    )
    fc_width: Fixed[int] = Field(4096, ge=1, description="Width of fc6 and fc7 (Table 1: 4096).")
    dropout: Fixed[float] = Field(
        0.5, ge=0.0, lt=1.0, description="Dropout ratio after fc6 and fc7 (section 3.1)."
    )
    initialization: Fixed[Literal["glorot", "gaussian", "kaiming"]] = Field(
        "glorot",
        description="How random weights are drawn (Glorot: the paper's own later advice, section "
        "3.1).",
    )
    initial_std: Fixed[float] = Field(
        0.1,
        gt=0.0,
        description="Standard deviation of gaussian initialization. The paper prints a variance of "
        "10^-2, which is 0.1; many ports use 0.01. Neither trains the deep configurations "
        "from scratch.",
    )
    initialize_from: Free[WeightsPath | None] = Field(
        None,
        description="Run folder, RUN@best or .safetensors file of a trained shallower network: its "
        "layers of equal shape are copied (section 3.1), the rest is drawn by `initialization`.",
    )

    @field_validator("configuration", mode="before")
    @classmethod
    def _known(cls, value: object) -> str | tuple[tuple[str, ...], ...]:
        # Before pydantic's own check, which has an error for each side of the union.
        if isinstance(value, str):
            return column_name(value)
        if not isinstance(value, list | tuple) or not all(
            isinstance(block, list | tuple) for block in value
        ):
            raise ValueError(
                f"configuration {value!r} is neither a column of Table 1 nor a list of blocks, "
                "each a list of layers, such as [[3-64], [3-128, 3-128]]."
            )
        blocks = tuple(tuple(block) for block in value)
        parse_configuration(blocks)
        return blocks

    @property
    def fc8_width(self) -> int:
        """Width of fc8: `num_classes`, or 1000 as long as no data set is known."""
        return self.num_classes or NUM_IMAGENET_CLASSES

    def blocks(self) -> Configuration:
        """The convolution blocks, of Table 1 or custom."""
        return parse_configuration(self.configuration)

    def weight_layers(self) -> tuple[str, ...]:
        """The paper's names of the weight layers, from the first, conv1_1, to the last, fc8."""
        counts = [sum(isinstance(layer, Convolution) for layer in b) for b in self.blocks()]
        convolutions = [
            f"conv{block}_{number}"
            for block, count in enumerate(counts, start=1)
            for number in range(1, count + 1)
        ]
        return (*convolutions, *FULLY_CONNECTED)


class DataConfig(Section):
    """Images: where they are, and how they are processed for the network."""

    root: Free[UserPath | None] = Field(
        None, description="Folder with train/ and val/, each with one folder of images per class."
    )
    crop_size: Fixed[int] = Field(
        224, ge=32, multiple_of=32, description="Side of the network's input, in pixels."
    )
    train_scale_min: Fixed[int] = Field(
        256, ge=1, description="Smallest training scale S: the rescaled shorter side, pixels."
    )
    train_scale_max: Fixed[int] = Field(
        256, ge=1, description="Largest training scale S, pixels; S is drawn per image."
    )
    validation_scale: Fixed[int | None] = Field(
        None,
        ge=1,
        description="Shorter side Q in evaluations, pixels; null: 0.5 (train_scale_min + "
        "train_scale_max).",
    )
    orientation: Fixed[Orientation] = Field(
        "ignore",
        description="What is done about the EXIF orientation of photos: ignore shows them to the "
        "network as they are stored, like most readers of ImageNet; apply turns them as a viewer "
        "does. The weights file keeps it, so that evaluations and predictions do the same.",
    )
    flip: Fixed[bool] = Field(True, description="Mirror half of the training images (section 3.1).")
    color_shift: Fixed[float] = Field(
        0.1,
        ge=0.0,
        description="Standard deviation of the random RGB shift along the principal components of "
        "ImageNet's colours, in units of the eigenvalues of [0, 1] pixels (Krizhevsky "
        "2012: 0.1; 0 switches it off). At 0.1 the first component moves a pixel by 5.5 "
        "of 255 grey levels, one sigma.",
    )
    mean: Fixed[Triple] = Field(
        (123.68, 116.779, 103.939),
        description="Mean RGB of the training set, subtracted from every pixel, 0 to 255.",
    )
    std: Fixed[tuple[Positive, Positive, Positive]] = Field(
        (1.0, 1.0, 1.0),
        description="Divisors of red, green and blue after subtracting the mean, in grey "
        "levels; the paper does not divide. Third-party weights may need it.",
    )
    num_threads: Inherited[int | None] = Field(
        None,
        ge=1,
        description="Decoding threads of each rank; null: the node's cores divided by its ranks.",
    )
    prefetch: Inherited[int] = Field(
        2, ge=1, description="Finished micro batches queued for the network."
    )
    read_ahead: Inherited[int] = Field(
        8,
        ge=1,
        description="Micro batches whose files are read ahead of decoding, each by its own thread; "
        "more hide the latency of slow disks.",
    )
    hardware_decoder_share: Inherited[Fraction] = Field(
        0.65, description="Fraction of the JPEGs for a GPU's hardware decoder, if it has one."
    )
    policy: Free[Literal["substitute", "fail"]] = Field(
        "substitute",
        description="What a training does about a bad image: substitute replaces it with another, "
        "the same in every run; fail stops.",
    )
    max_unusable: Free[Fraction] = Field(
        1e-4,
        description="Largest fraction of the training images that may be found bad in a "
        "training; 10 images are always allowed.",
    )
    accept_changed: Free[bool] = Field(
        False,
        description="Whether a training is continued although images were replaced under their "
        "names since it was trained on them.",
    )
    local_folder: Free[UserPath | None] = Field(
        None,
        description="Folder on a local disk of each node, to which shards are copied at the start "
        "of a training; null: they are read where they are.",
    )

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _list_is_triple(cls, value: object) -> object:
        if not isinstance(value, list):
            return value
        if len(value) != 3:
            raise ValueError(f"{value!r} must be three numbers, red, green and blue.")
        return tuple(value)

    @model_validator(mode="after")
    def _scales_fit(self) -> Self:
        problems = []
        if self.train_scale_min > self.train_scale_max:
            problems.append(
                f"train_scale_min {self.train_scale_min} is above train_scale_max "
                f"{self.train_scale_max}; swap them, or set both to one fixed scale S."
            )
        for name, scale in (
            ("train_scale_min", self.train_scale_min),
            ("validation_scale", self.validation_scale),
        ):
            if scale is not None and scale < self.crop_size:
                problems.append(
                    f"{name} {scale} is below crop_size {self.crop_size}, so a crop would not fit "
                    f"into the rescaled image; set it to at least {self.crop_size}."
                )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def upright(self) -> bool:
        """Whether images are turned by their EXIF orientation."""
        return self.orientation == "apply"

    @property
    def evaluation_scale(self) -> int:
        """Shorter side Q of evaluations, pixels: 0.5 (S_min + S_max) unless set (section 4.1)."""
        return self.validation_scale or (self.train_scale_min + self.train_scale_max) // 2


class BatchConfig(Section):
    """The images of a step, and how they are divided."""

    global_: Fixed[int] = Field(
        256, ge=1, alias="global", description="Images of one step over all ranks (paper: 256)."
    )
    micro: Annotated[int | None, _MICRO] = Field(
        None,
        ge=1,
        description="Images that a rank sends through the network at once; null: the largest "
        "divisor of its share that is at most 64, on a GPU at most 256 and such that memory "
        "suffices (at most 64 there too with model.batch_norm and with zero_stage).",
    )


class OptimizerConfig(Section):
    """SGD with momentum (section 3.1), or LARS for batches of many thousand images."""

    name: Fixed[Literal["sgd", "lars"]] = Field(
        "sgd",
        description="sgd, as in the paper; or lars, which gives each layer its own learning rate, "
        "from the norms of its weights and of their gradient (You, Gitman & Ginsburg 2017, "
        "arXiv:1708.03888), at stage 0.",
    )
    learning_rate: Fixed[float] = Field(
        0.01, gt=0.0, description="Learning rate at the start, after warm-up."
    )
    base_batch: Fixed[int | None] = Field(
        None,
        ge=1,
        description="Global batch for which learning_rate is meant: it is multiplied by "
        "batch.global / base_batch (linear scaling; Goyal et al. 2017, arXiv:1706.02677). null: "
        "not scaled.",
    )
    trust_coefficient: Fixed[float] = Field(
        0.001,
        gt=0.0,
        description="lars: a step's length as a share of the weights' norm, before the learning "
        "rate multiplies it.",
    )
    momentum: Fixed[float] = Field(0.9, ge=0.0, lt=1.0, description="Momentum.")
    weight_decay: Fixed[float] = Field(
        5e-4, ge=0.0, description="Factor of the weights added to their gradients."
    )
    gradient_clipping: Fixed[float] = Field(
        0.0, ge=0.0, description="Largest norm of the whole gradient; 0: no clipping."
    )
    trained_layers: Fixed[str | tuple[str, ...]] = Field(
        "all",
        description="Weight layers that are trained: all, fully-connected (fc6 to fc8), or a list "
        "such as [conv5_3, fc6, fc7, fc8]. The others keep their initial weights and the running "
        "statistics of their batch normalization.",
    )

    @field_validator("trained_layers", mode="before")
    @classmethod
    def _names(cls, value: object) -> str | tuple[str, ...]:
        if isinstance(value, str) and value in ("all", "fully-connected"):
            return value
        if isinstance(value, list | tuple) and value and all(isinstance(v, str) for v in value):
            return tuple(value)
        raise ValueError(
            f"{value!r} is neither all, fully-connected, nor a list of weight layers such as [fc8]."
        )


class ScheduleConfig(Section):
    """How the learning rate decreases, and when training ends."""

    name: Fixed[Literal["plateau", "step", "cosine"]] = Field(
        "plateau",
        description="plateau: divided when the validation error stops improving (section 3.1).",
    )
    num_epochs: Annotated[float, _LENGTH] = Field(
        74.0, gt=0.0, description="Length of the training in epochs (paper: 74, 370,000 steps)."
    )
    num_steps: Annotated[int | None, _LENGTH] = Field(
        None, ge=1, description="Length in steps, instead of num_epochs."
    )
    warmup_epochs: Fixed[float] = Field(
        0.0, ge=0.0, description="Epochs in which the learning rate rises linearly from 0."
    )
    factor: Fixed[Fraction] = Field(
        0.1, description="The learning rate is multiplied by this at each decrease."
    )
    patience: Fixed[int] = Field(
        5,
        ge=1,
        description="plateau: evaluations without a new lowest top-1 error before a decrease.",
    )
    num_decreases: Annotated[int, _MORE] = Field(
        3,
        ge=0,
        description="plateau: decreases before the next plateau ends the training (paper: 3).",
    )
    step_epochs: Fixed[float] = Field(30.0, gt=0.0, description="step: epochs between decreases.")


class EvaluationConfig(Section):
    """Evaluations: during training, of one centre crop per image; afterwards, by any protocol."""

    every_epochs: Annotated[float, Knob(may_change=False, as_trained=True)] = Field(
        1.0, gt=0.0, description="Epochs between evaluations; there is always one at the end."
    )
    micro: Inherited[int | None] = Field(
        None, ge=1, description="Images per forward pass; null: as in training."
    )
    spatial_average: Inherited[Literal["logits", "posteriors"]] = Field(
        "logits",
        description="What is averaged over the positions of a dense score map: logits, before the "
        "soft-max, as in section 3.2; or posteriors, after it.",
    )
    max_megapixels: Inherited[float | None] = Field(
        None,
        gt=0.0,
        description="Most pixels, in millions, in the convolutions at once in a dense or "
        "multi-crop evaluation; bounds its memory. null: 0.4 on a CPU, 16 on a GPU.",
    )


class CheckpointConfig(Section):
    """When checkpoints are written, and how many are kept."""

    every_epochs: Free[float] = Field(
        1.0,
        gt=0.0,
        description="Epochs between checkpoints; there is always one at the end, and of a network "
        "with a new lowest validation error.",
    )
    every_steps: Free[int | None] = Field(
        None, ge=1, description="Steps between checkpoints, instead of every_epochs."
    )
    keep: Free[int] = Field(
        2,
        ge=2,
        description="Newest checkpoints kept; at least 2, so that there is one if the last is "
        "damaged.",
    )


class LogConfig(Section):
    """Logging of the training."""

    every_steps: Free[int] = Field(
        20, ge=1, description="Steps between points of the curves, and between log lines."
    )
    histogram_every_epochs: Free[float] = Field(
        5.0,
        ge=0.0,
        description="Epochs between histograms of weights and gradients in TensorBoard; the last "
        "of all steps has them, too. 0: none.",
    )
    num_images: Free[int] = Field(
        16,
        ge=0,
        description="Images of a batch that TensorBoard shows as the network is fed them; 0: none.",
    )
    images_every_epochs: Free[float] = Field(
        5.0, gt=0.0, description="Epochs between these pictures; the first is of the first step."
    )
    num_mistakes: Free[int] = Field(
        24,
        ge=0,
        description="Validation images on which the network errs most surely that TensorBoard "
        "shows after each evaluation; 0: none.",
    )


class RunConfig(Section):
    """The run folder of the training."""

    folder: Free[WeightsPath | None] = Field(
        None, description="Run folder; null: runs/vgg_ and the configuration's name."
    )
    resume: Free[WeightsPath] = Field(
        "auto",
        description="auto: continue from the newest good checkpoint of the run folder, if there is "
        "one; never: start anew, and refuse a folder that has a training; or the path of "
        "a checkpoint.",
    )


class Config(Section):
    """The complete configuration of a training."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    run: RunConfig = RunConfig()
    precision: Annotated[
        PrecisionSetting,
        Knob(
            lambda _, new: new.precision == "auto", rule="to auto, which keeps it", as_trained=True
        ),
    ] = Field(
        "auto",
        description="Arithmetic of the network; the weights are kept in fp32. auto: bf16 if the "
        "device computes it natively (a CPU is also measured), fp16 on older GPUs, else fp32; a "
        "resumed run keeps its precision. fp32 is exact; tf32 rounds operands to 10 bits "
        "on GPUs from Ampere on, and is fp32 elsewhere. Products are always "
        "added in fp32.",
    )
    device: Inherited[Device] = Field("auto", description="auto: cuda if there is a GPU, else cpu.")
    seed: Fixed[int] = Field(
        0, ge=0, lt=2**63, description="All randomness of a run derives from this number."
    )
    zero_stage: Free[Literal[0, 1, 2]] = Field(
        0,
        description="DeepSpeed ZeRO stage: 0 keeps the whole optimizer on each rank, 1 and 2 "
        "partition it.",
    )
    exchange: Free[Exchange] = Field(
        "auto",
        description="How ranks exchange the gradients of fully connected layers at stage 0: "
        "all_reduce sends the matrices; factors sends their factors, the layer's inputs and "
        "output gradients; auto measures links and device for a second and takes, for each "
        "layer, the way with which a step ends soonest; a resumed run keeps it. "
        "Convolutions are always all-reduced; at stages 1 and 2 DeepSpeed exchanges all.",
    )
    exchange_precision: Free[Literal["compute", "fp32", "bf16"]] = Field(
        "compute",
        description="Precision in which gradients are sent at stage 0: compute, that of "
        "`precision`; fp32; or bf16, half the bytes if the arithmetic is fp32 (processors without "
        "fast bf16).",
    )
    compile: Free[bool] = Field(
        False,
        description="Train with the convolutions compiled by torch.compile, a minute or so at the "
        "start: faster on many GPUs, losses equal up to rounding. Where it cannot be done, a "
        "sentence says why, and the training goes on without.",
    )
    cuda_graph: Free[bool] = Field(
        False,
        description="Capture the step as a CUDA graph, which the host launches at once instead of "
        "kernel by kernel: faster where the host cannot keep up with a GPU; at stage 0. The same "
        "losses, bit for bit. Without effect on a CPU.",
    )

    @model_validator(mode="after")
    def _nothing_is_written_among_the_images(self) -> Self:
        root = self.data.root
        for key, folder in (
            ("run.folder", self.run_folder),
            ("data.local_folder", self.data.local_folder),
        ):
            if root is None or folder is None:
                continue
            among = any(lies_in(folder, f"{root}/{split}") for split in ("train", "val"))
            if among or (lies_in(folder, root) and lies_in(root, folder)):
                raise ValueError(
                    f"{key} {quote(folder)} lies among the images of data.root {quote(root)}, and "
                    f"nothing is written among them; set {key} to a folder outside."
                )
        return self

    @model_validator(mode="after")
    def _stage_allows_factors(self) -> Self:
        if self.exchange == "factors" and self.zero_stage:
            raise ValueError(
                f"exchange is factors, but at zero_stage {self.zero_stage} DeepSpeed exchanges all "
                "gradients itself; set zero_stage to 0, or exchange to auto."
            )
        return self

    @model_validator(mode="after")
    def _stage_allows_graphs(self) -> Self:
        if self.cuda_graph and self.zero_stage:
            raise ValueError(
                f"cuda_graph is true, but at zero_stage {self.zero_stage} DeepSpeed waits for the "
                "GPU in every step, which a graph cannot; set zero_stage to 0, or cuda_graph to "
                "false."
            )
        return self

    @model_validator(mode="after")
    def _stage_knows_layers(self) -> Self:
        if self.optimizer.name == "lars" and self.zero_stage:
            raise ValueError(
                f"optimizer.name is lars, but at zero_stage {self.zero_stage} the optimizer sees "
                "flat shares of the weights and no layers; set zero_stage to 0."
            )
        return self

    @model_validator(mode="after")
    def _trained_layers_exist(self) -> Self:
        names, wanted = self.model.weight_layers(), self.optimizer.trained_layers
        unknown = () if isinstance(wanted, str) else [name for name in wanted if name not in names]
        if unknown:
            raise ValueError(
                f"optimizer.trained_layers: this network has no weight layer {', '.join(unknown)}; "
                f"it has {', '.join(names)}."
            )
        return self

    @property
    def resolved_precision(self) -> Precision:
        """The precision after `auto` has been resolved for the device."""
        assert self.precision != "auto", "resolve_precision (distributed/precision.py) comes first"
        return self.precision

    @property
    def sent_precision(self) -> Precision:
        """The type of all-reduced gradients at stage 0; TF32 is arithmetic, not a type."""
        chosen = self.exchange_precision
        precision = self.resolved_precision if chosen == "compute" else chosen
        return "fp32" if precision == "tf32" else precision

    @property
    def factor_precision(self) -> Precision:
        """The type of factors sent at stage 0: never more bits than they are computed in."""
        precision = self.resolved_precision
        return self.sent_precision if precision in ("fp32", "tf32") else precision

    @property
    def updates_by_blocks(self) -> bool:
        """Whether weights are updated block by block from the factors of their gradient.

        The gradient is then never in memory as a whole; clipping, LARS and fp16's loss scaler need
        it first.
        """
        optimizer = self.optimizer
        is_plain = optimizer.name == "sgd" and optimizer.gradient_clipping == 0
        return is_plain and self.resolved_precision != "fp16"

    @property
    def set_precision(self) -> Precision | None:
        """The precision, unless it is still to be chosen."""
        return None if self.precision == "auto" else self.precision

    @property
    def micro_follows_memory(self) -> bool:
        """Whether a GPU's memory decides the micro batch (`model/fitting.py`).

        Batch normalization computes with it, and DeepSpeed's buffers at ZeRO are not counted.
        """
        return self.batch.micro is None and not self.model.batch_norm and self.zero_stage == 0

    @property
    def run_folder(self) -> str:
        """The run folder: as configured, or named after the configuration."""
        if self.run.folder is not None:
            return self.run.folder
        name = configuration_name(self.model.configuration)
        return f"runs/vgg_{name.lower().replace('-', '_')}" + (
            "_bn" if self.model.batch_norm else ""
        )


KNOBS = knobs_of(Config)
"""`section.key` -> what it means for a run that continues."""


@dataclass(frozen=True)
class BatchSplit:
    """How a step's images are divided: global batch = micro x accumulation steps x world size."""

    global_batch: int
    micro: int
    accumulation_steps: int
    world_size: int

    @property
    def per_rank(self) -> int:
        """Images of one step on one rank."""
        return self.micro * self.accumulation_steps


LARGEST_AUTOMATIC_MICRO = 64
"""Where a GPU's memory does not decide (`model/fitting.py`)."""


def split_batch(batch: BatchConfig, world_size: int) -> BatchSplit:
    """Divides the global batch among `world_size` ranks and micro batches.

    Raises:
        ConfigError: the numbers do not divide; the message has all three and the nearest that do.
    """
    per_rank, rest = divmod(batch.global_, world_size)
    if rest or per_rank == 0:
        below, above = per_rank * world_size, (per_rank + 1) * world_size
        nearest = f"{below} or {above}" if below else f"{above}"
        raise ConfigError(
            f"batch.global {batch.global_} cannot be shared equally by {world_size} ranks; set it "
            f"to {nearest}, or change the number of ranks."
        )
    micro = batch.micro or divisors(per_rank, LARGEST_AUTOMATIC_MICRO)[-1]
    if per_rank % micro:
        raise ConfigError(
            f"batch.micro {micro} does not divide the {per_rank} images of each rank (batch.global "
            f"{batch.global_} / {world_size} ranks), so gradient accumulation would be uneven; set "
            f"batch.micro to {divisors(per_rank, micro)[-1]}, for example."
        )
    return BatchSplit(batch.global_, micro, per_rank // micro, world_size)


def divisors(number: int, largest: int) -> list[int]:
    """The divisors up to `largest`, from 1 up."""
    return [divisor for divisor in range(1, min(number, largest) + 1) if number % divisor == 0]


def with_classes(config: Config, num_classes: int) -> Config:
    """The configuration with the classes of its data set, unless `model.num_classes` is set."""
    if config.model.num_classes is not None:
        return config
    model = config.model.model_copy(update={"num_classes": num_classes})
    return config.model_copy(update={"model": model})


def scaled_learning_rate(config: Config) -> float:
    """The learning rate after warm-up, for the global batch of this training."""
    base = config.optimizer.base_batch
    scale = 1.0 if base is None else config.batch.global_ / base
    return config.optimizer.learning_rate * scale


def steps_of_epochs(num_epochs: float, num_images: int, global_batch: int) -> int:
    """Steps that show `num_images` `num_epochs` times, rounded up, at least one."""
    return max(1, math.ceil(num_epochs * num_images / global_batch - 1e-9))


def total_steps(config: Config, num_images: int) -> int:
    """Steps of the whole training: `schedule.num_steps`, or from `schedule.num_epochs`."""
    if config.schedule.num_steps is not None:
        return config.schedule.num_steps
    return steps_of_epochs(config.schedule.num_epochs, num_images, config.batch.global_)


def trained_layers(config: Config) -> tuple[str, ...]:
    """The weight layers that are trained, from the first to the last."""
    names, wanted = config.model.weight_layers(), config.optimizer.trained_layers
    if wanted == "all":
        return names
    chosen = FULLY_CONNECTED if wanted == "fully-connected" else wanted
    return tuple(name for name in names if name in chosen)
