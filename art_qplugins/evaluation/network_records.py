"""The records of networks: how they were trained, how they answer to small changes, what their codes tell, what their files cost."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

from art_qplugins.evaluation.fields import Count, Interval, Norm, Record, Share, Size


class ClassMargin(Record):
    """The mean margin of a class along random directions, in L2; None where no margin was found."""

    level: Literal["high", "medium", "low"]
    mean: Size | None


class FeedbackRound(Record):
    """What a round of feedback learning measured as it began."""

    epochs: Annotated[int, Field(ge=0)]  # that were done
    mean: Size | None  # of the classes
    classes: list[ClassMargin]


class Measured(Record):
    """What defences have measured so far. Those of other packages may add their own."""

    model_config = ConfigDict(extra="allow")

    feedback_learning: list[FeedbackRound] = []


class TrainedEpoch(Record):
    """One epoch of a model's training. Accuracies are of the validation images; None where they were not measured."""

    epoch: Count  # from 1
    loss: Annotated[float, Field(ge=-1e30, le=1e30)]  # the mean with all terms
    learning_rate: Size
    validation_accuracy: Share | None = None
    robust_validation_accuracy: Share | None = None
    images_per_second: Size
    measured: Measured = Measured()


def _consecutive(curve: list[TrainedEpoch]) -> list[TrainedEpoch]:
    for place, told in enumerate(curve, 1):
        if told.epoch != place:
            raise ValueError(f"epoch {told.epoch} is in the place of epoch {place}")
    return curve


Curve = Annotated[list[TrainedEpoch], AfterValidator(_consecutive)]  # every epoch of a training, in its order


class Norms(Record):
    """By how much a layer can lengthen a change of its input, as :class:`~art_qplugins.sensitivity.norms.LayerNorm` says."""

    layer: str
    matrix: Size | None
    operator: Size
    gain: Size | None
    scaled: Size | None


class Distances(Record):
    """How far the images of a cell move what each layer reads (:func:`~art_qplugins.activation_distances`).

    ``layers`` has for each layer, in the order of the forward pass, the mean over images and its standard error. Images
    whose clean activations are all zero are left out; ``n`` counts the others in the worst layer.
    """

    cell: str
    n: Count
    layers: dict[str, tuple[Size, Size]]


class WeightChange(Record):
    """How far the weight of a layer is from the base's, as :class:`~art_qplugins.LayerChange` says."""

    layer: str
    matrix: Size
    operator: Size
    weight: Size


class Terms(Record):
    """The means over images of :class:`~art_qplugins.OutputTerms`, by layer in the order of the forward pass."""

    cell: str
    n: Count
    images: dict[str, Size]
    weights: dict[str, Size]
    both: dict[str, Size]
    total: dict[str, Size]
    error: Size  # the largest of all images and layers


class Logits(Record):
    """The logits of clean images: what an attack on cross-entropy starts from.

    :ivar margins: quantiles at 5, 25, 50, 75 and 95 % of the true class's logit less the largest other one.
    :ivar no_gradient: share of the images that are classified right whose gradient of cross-entropy is exactly zero; ``None``
        where none is.
    """

    n: Count
    margins: tuple[float, float, float, float, float]
    no_gradient: Share | None


class Sensitivity(Record):
    """How far a model carries a change of its input, and how far a change of weights after training carries it."""

    norms: list[Norms]  # in the order of the forward pass
    distances: list[Distances]
    logits: Logits | None = None
    base: str | None = None  # whose weights it has in another form
    gain: float | None = None  # of its logits over the base's, see LogitGain
    alignment: Annotated[float, Field(ge=-1.000001, le=1.000001)] | None = None
    changes: list[WeightChange] = []
    terms: list[Terms] = []
    # The reason of each measurement that failed: "norms", "logits", "gain", "changes", the id of a cell, or "terms of" such an id.
    skipped: dict[str, str] = {}


class ChangedInformation(Record):
    """What codes tell of images after a change, beside what they tell of the same images before, as :class:`~art_qplugins.sensitivity.Codes`.

    The score of an image is how far its information is from the mean over clean images.

    :ivar cell: id of the cell whose images they are; ``None`` of random noise of length ``eps``.
    :ivar information: between images and codes, and ``clean_information`` of the same images before.
    :ivar accuracy: of these images, and ``clean_accuracy`` of the same before.
    :ivar auroc: how well scores tell changed images from clean ones; 0.5 is chance. Its ``interval`` covers the images.
    :ivar detected: the share of changed images whose scores all but 5 % of the clean images are below.
    :ivar roc: that share where 0, 1, ..., 100 % of the clean images may be above.
    """

    cell: str | None = None
    norm: Norm
    eps: Size
    n: Count
    information: Share
    clean_information: Share
    accuracy: Share
    clean_accuracy: Share
    auroc: Share
    interval: Interval
    detected: Share
    roc: Annotated[list[Share], Field(min_length=101, max_length=101)]

    @property
    def gained(self) -> float:
        """The change of information, negative where codes tell less."""
        return self.information - self.clean_information

    @property
    def lost(self) -> float:
        """The change of accuracy, negative where fewer images are classified right."""
        return self.accuracy - self.clean_accuracy


class Information(Record):
    """What the codes of a model's deepest stochastic quantizer tell of clean images, attacked ones and noisy ones."""

    n: Count  # the first so many images; of a cell with a limit, its own first
    draws: Count  # of the earlier layers, over which everything is a mean
    information: Share | None  # between the clean images and their codes; None where it could not be measured
    accuracy: Share
    attacked: list[ChangedInformation]
    noisy: list[ChangedInformation]  # the control: noise of the same norm and eps
    # The reason of each measurement that failed: "clean", the id of a cell, or a norm with eps.
    skipped: dict[str, str] = {}


class Flips(Record):
    """A quantized activation of a file beside the same of its twin: the share of values on another level, and by how many."""

    layer: str
    flips: Share
    far: Count


class Agreed(Record):
    """The share of images with the same label from a file and from its twin; ``layers`` of the first batch, in their order."""

    n: Count
    same: Share
    interval: Interval
    layers: list[Flips] = []  # empty where not both can be looked into


class Speed(Record):
    """How long a file takes, as :class:`~art_qplugins.deployment.speed.Speed` says, in turn with its network in float32."""

    batch: Count
    seconds: Size  # of a call on one thread, median
    ratio: tuple[Size, Size, Size] | None = None  # of float32's time to its own: quartiles, the median between them
    energy: Size | None = None  # of float32's energy to its own; None where the machine does not tell


class Deployment(Record):
    """A model that is a file: what it costs, and where it differs from its twin."""

    of: str | None  # the model that it was exported from; None of a file that was given
    file: str  # its name
    size: Count  # in bytes
    float_size: Count | None = None  # of the same network in float32
    draws: Count = 0  # frozen members of a random network
    notes: list[str] = []  # what is not as in the network
    vnni: bool | None = None  # whether the processor multiplies bytes without saturating; None where it is not known
    speeds: list[Speed] = []
    clean: Agreed | None = None
    adversarial: Agreed | None = None  # on images of the strongest attack that saw them all
    skipped: dict[str, str] = {}  # the reason of each measurement that failed
