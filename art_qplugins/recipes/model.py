"""The keys of a model in a recipe: its network, quantizers, defences, training and claim."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import model_validator

from art_qplugins.deployment.arguments import ASK
from art_qplugins.deployment.files import is_file
from art_qplugins.domains import ABSTAIN, COUNT, FINITE, FRACTION, MOST, POSITIVE, ListOf, Number, OneOf
from art_qplugins.quantizers import Quantizer
from art_qplugins.quantizers.registry import ACTIVATION_FUNCTIONS, ALSO, EXEMPT, RANGES, switched_on
from art_qplugins.recipes.facts import ENSEMBLE_KEYS, NOT_BUILT, kind
from art_qplugins.recipes.values import (
    Accuracy,
    AttackId,
    Bits,
    Count,
    Draws,
    Eps,
    Flag,
    Layers,
    Name,
    Norm,
    NotNegative,
    Positive,
    Precision,
    Reference,
    Seed,
    Settings,
    SomeNames,
    Word,
    within,
)
from art_qplugins.training.decay import WEIGHT_DECAY
from art_qplugins.training.presets import with_preset

__all__ = [
    "Architecture",
    "Ask",
    "Choice",
    "ClaimSettings",
    "ExportSettings",
    "GivenModel",
    "InputSettings",
    "ModelSettings",
    "Normalization",
    "Quantization",
    "Training",
]


class ClaimSettings(Settings):
    """The number under test: the accuracy under this attack at this eps. The diagnosis tries to refute it.

    :param norm: needed only if the attack runs at this eps in several norms.
    :param accuracy: the claimed accuracy in [0, 1], if it differs from the accuracy under the attack here.
    :param reference: the number of a paper for the accuracy under the attack. It is shown beside it, and tested by nobody.
    """

    attack: AttackId
    norm: Norm | None = None
    eps: Eps
    accuracy: Accuracy | None = None
    reference: Accuracy | None = None


class Quantization(Settings):
    """The arguments of :func:`art_qplugins.quantize`. ``options`` are those of the quantizer that ``activation`` names.

    ``calibration`` is a number of images of the train split, drawn by the seed. Ranges are observed with the weights that the
    training starts from, those of ``base``, and are stored with the weights. ``fold_batch_norm`` folds the batch norm of ``base``.
    """

    activation: Word | None = None
    activation_function: Annotated[str, within(OneOf(ACTIVATION_FUNCTIONS))] | None = None
    options: dict[str, Any] = {}
    activation_bits: Bits | None = None
    activation_layers: Layers | None = None
    ranges: Annotated[str, within(OneOf(RANGES))] = "fixed"
    calibration: Count | None = None
    percentile: Annotated[float, within(Number(50, 100, above=True))] = 99.99
    also: Annotated[list[str], within(ALSO)] = []
    functional: Flag = False
    fold_batch_norm: Flag = False
    weight_bits: Bits | None = None
    exempt: Annotated[list[str | int], within(EXEMPT)] = []
    clip: Positive = 6.0
    mu: Positive | None = None
    alpha: Annotated[float, within(Number(1))] | None = None
    mu_layers: Layers = 1
    mu_normalize: Flag = False
    mu_gain_only: Flag = False
    symmetric: Flag = True
    granularity: Literal["per_channel", "per_tensor"] = "per_channel"
    narrow_range: Flag = True
    zero_point: Flag = False

    @property
    def quantizers(self) -> list[Quantizer]:
        """The quantizers that it switches on, see :func:`~art_qplugins.quantizers.registry.switched_on`."""
        return switched_on(self.model_dump())

    @property
    def random(self) -> bool:
        return any(row.random for row in self.quantizers)


class Normalization(Settings):
    """The arguments of :class:`~art_qplugins.models.normalize.Normalize`, the first layer of a network: a number per channel."""

    mean: Annotated[list[float], within(ListOf(FRACTION, least=1, different=False))]
    std: Annotated[list[float], within(ListOf(POSITIVE, least=1, different=False))]


class Choice(Settings):
    """A registered name with options. Text is the name alone."""

    name: Word
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Architecture(Choice):
    """A network, or so many of it in one module: trained together, they answer with their mean probability."""

    members: Annotated[int, within(Number(1, 100, whole=True))] = 1


class Training(Settings):
    """The arguments of :func:`art_qplugins.train`.

    :param preset: the protocol of a paper, see :data:`PRESETS`, or ``"none"``. It gives what the table leaves out.
    """

    preset: Word | None = None
    epochs: Annotated[int, within(Number(0, COUNT.high, whole=True))] = 20
    batch_size: Count = 64
    optimizer: Choice = Choice(name="SGD")
    learning_rate: Positive = 0.05
    weight_decay: NotNegative = WEIGHT_DECAY
    decay_norm_and_bias: Flag = True
    schedule: Choice = Choice(name="cosine")
    warmup: NotNegative = 0
    augment: list[Choice] = []
    accumulate: Count = 1
    clip_norm: Positive | None = None
    ema: Annotated[float, within(Number(0, 1, above=True, below=True))] | None = None
    precision: Precision = "32-true"
    channels_last: Flag = False
    compile: Flag = False
    keep: Literal["last", "best"] = "last"

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, value: Any) -> Any:
        return with_preset(value) if isinstance(value, Mapping) else value

    def arguments(self) -> dict[str, Any]:
        """As :func:`art_qplugins.train` takes them."""
        named = {"optimizer": _pair(self.optimizer), "schedule": _pair(self.schedule)}
        return {
            **self.model_dump(exclude={"preset", "augment", *named}),
            **named,
            "augment": [_pair(one) for one in self.augment],
        }


def _pair(choice: Choice) -> tuple[str, dict[str, Any]]:
    return choice.name, choice.options


class Ask(Settings):
    """How an endpoint is asked: arguments of :class:`~art_qplugins.deployment.endpoint.Endpoint`."""

    batch_size: Count = 64
    queries: Count | None = None
    seconds: Positive | None = None
    retries: Annotated[int, within(ASK["retries"])] = 5
    backoff: NotNegative = 0.5
    concurrency: Annotated[int, within(ASK["concurrency"])] = 1
    cache: Word | None = None


class InputSettings(Settings):
    """What a deployed file does not say of its input; see :data:`~art_qplugins.deployment.inputs.INPUTS`."""

    layout: Literal["NCHW", "NHWC"] | None = None
    dtype: Literal["float32", "float16", "uint8", "int8"] | None = None
    scale: Positive | None = None
    zero_point: Annotated[int, within(Number(-MOST, MOST, whole=True))] | None = None
    mean: Annotated[list[float], within(ListOf(FINITE, least=1, different=False))] | None = None
    std: Annotated[list[float], within(ListOf(POSITIVE, least=1, different=False))] | None = None


class ExportSettings(Settings):
    """How :func:`art_qplugins.export` writes the file of a model. Text is ``to`` alone."""

    to: Literal["onnx"] = "onnx"
    bias: Literal["int", "float"] = "int"

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"to": value} if isinstance(value, str) else value


class GivenModel(Settings):
    """The facts that a recipe needs about an ART estimator from Python."""

    estimator: Word  # its class
    stochastic: Flag
    quantized: Flag  # it has activation quantizers


class ModelSettings(Settings):
    """One model: trained here, put together of other models (``members``), the file of another model (``export``), made by a
    function of the user (``factory``), one that only answers (``endpoint``), or given from Python.

    ``base`` starts from the trained weights of an earlier model (with epochs = 0: quantization after training). ``members``
    are earlier models too. A mixture of them is not trained itself: ``train.epochs = 0`` is implied. With ``export`` the
    model is the file that ``base`` is exported to, answered from by a runtime and attacked along the gradient of ``base``.
    """

    name: Name
    role: Literal["subject", "substitute"] = "subject"  # a substitute is only a source of transfer attacks
    architecture: Architecture = Architecture(name="convnet")  # or "package.module:function" of the user
    normalize: Normalization | None = None  # of pixels in [0, 1], inside the network
    base: Name | None = None
    members: SomeNames | None = None  # see art_qplugins.models.mixture.Mixture
    random: Flag = False  # of members: one of them is drawn for each image
    quantize: Quantization | None = None
    defences: list[Choice] = []
    train: Training = Training()
    # Of the ensemble, where the network draws noise. See art_qplugins.models.ensemble.StochasticEnsemble.
    draws: Draws = 8  # its members
    rule: Literal["mean-probability", "mean-logits", "majority-vote"] = "mean-probability"
    eot_draws: Draws | None = None
    eot_chunk: Count | None = None
    frozen: Flag = False
    checkpoint: Word | None = None  # weights to load instead of training
    unverified_checkpoint: bool = False  # take weights without a description of their model
    factory: Word | None = (
        None  # "package.module:function" that returns the network, or a file: .pt2, or a deployed one
    )
    endpoint: Word | None = None  # "package.module:function" that answers for images
    ask: Ask = Ask()  # how the endpoint is asked
    # Of a deployed model: a module and a name of "package.module:function" or of a model, whose gradient is followed.
    twin: Word | None = None
    twin_checkpoint: Word | None = None  # weights of a twin that a function returns
    labels_only: Flag = False  # it gives labels, or no more is looked at
    inputs: InputSettings | None = None  # of a file
    export: ExportSettings | None = None  # the model is the file of its base
    given: GivenModel | None = None
    # The output with which it rejects an image, from 0, beside those of the classes.
    abstain: Annotated[int | None, within(ABSTAIN)] = None
    claim: ClaimSettings | None = None  # in place of the recipe's
    # The model that it is compared with, image by image; of several seeds the name without a seed.
    baseline: Name | None = None
    # Numbers of a paper by "clean", the id of an attack, "ID from SOURCE", or "ID at any eps".
    reference: dict[Word, Reference] = {}
    seed: Seed | None = None  # of the training and of a random model's first draws; None takes the recipe's
    replicate_of: Name | None = None  # models with the same name here differ only in their seeds

    @property
    def trained(self) -> bool:
        """Whether its network is built here, and is no mixture of others."""
        return all(getattr(self, key) is None for key in NOT_BUILT)

    @property
    def deployed(self) -> bool:
        """Whether it is asked as it is deployed, and gets its gradient from elsewhere."""
        if self.factory is None:
            return self.endpoint is not None or self.export is not None
        return is_file(self.factory) or self.labels_only or self.twin is not None

    @property
    def parents(self) -> list[str]:
        """The models above it that its network is made of."""
        return self.members or ([] if self.base is None else [self.base])

    @property
    def stochastic(self) -> bool | None:
        """Whether it is random; ``None`` where only its network can tell."""
        return None if self.factory or self.endpoint else kind(self.model_dump())[0]

    @property
    def ensemble(self) -> dict[str, Any]:
        """The arguments of its ensemble that are not their defaults, without ``draws``."""
        return self.model_dump(include=set(ENSEMBLE_KEYS) - {"draws"}, exclude_defaults=True)
