"""Every evasion attack of ART that takes a classifier, run against every family: a row per attack.

Budgets are minimal. A row says that the attack runs and keeps its contract, and not that it succeeds. The network is
constructed and not trained, so that nothing depends on the luck of a training.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import art.attacks.evasion
import numpy as np
import pytest
import torch
from art.attacks import EvasionAttack
from art.defences.postprocessor.postprocessor import Postprocessor
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_qplugins import DQClassifier, MuLawClassifier, SQEnsembleClassifier
from art_qplugins.models.convnet import ConvNet

SHAPE, CLASSES, EPS = (3, 16, 16), 4, 0.2

FAMILIES: dict[str, Callable[..., PyTorchClassifier]] = {
    "dq": lambda *a, **k: DQClassifier(*a, activation_bits=4, clip=2.0, **k),
    "mu-law": lambda *a, **k: MuLawClassifier(*a, weight_bits=4, mu=5.0, **k),
    "sq": lambda *a, **k: SQEnsembleClassifier(*a, activation_bits=3, draws=2, **k),
}
ARTS_OWN = {"art": lambda *a, **k: PyTorchClassifier(*a, clip_values=(0.0, 1.0), **k)}


# --- what the attacks are run on


def brightest_corner() -> ConvNet:
    """A network whose logits are ten times the mean brightness of the four corners; nothing of it is trained."""
    network = ConvNet(SHAPE, CLASSES, width=4).eval()
    with torch.no_grad():
        for name, p in network.named_parameters():
            p.fill_(1.0 if name in ("bn1.weight", "bn2.weight") else 0.0)
        network.conv1.weight[:, :, 1, 1] = 1 / 3  # each channel is the brightness
        network.conv2.weight.fill_(1 / 36)  # and here its mean over 3x3 pixels and the channels
        units = network.fc1.weight.view(CLASSES, 16, 8, 8, 8)  # corner, unit, channel, row, column
        for corner in range(CLASSES):
            row, column = 4 * (corner // 2), 4 * (corner % 2)
            units[corner, :, :, row : row + 4, column : column + 4] = 1 / 64  # twice the mean
            network.fc2.weight[corner, 16 * corner : 16 * (corner + 1)] = 10 / 2 / 16
        network.fc1.bias.copy_(torch.arange(16).div(40).repeat(CLASSES))  # units that round at different inputs
    return network


@pytest.fixture(scope="module")
def corners():
    """The network, and six noisy images of which one corner is brighter by 0.25: a gap of 2.5 between logits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x, y = 0.5 * torch.rand(6, *SHAPE), torch.arange(6) % CLASSES
    for i, label in enumerate(y):
        row, column = 8 * (label // 2), 8 * (label % 2)
        x[i, :, row : row + 8, column : column + 8] += 0.25
    network = brightest_corner()
    with torch.no_grad():
        assert (network(x).argmax(1) == y).all()
    return network, x.numpy(), y.numpy()


class Laid(nn.Module):
    """The same network on images that are laid out otherwise."""

    VIEWS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], dict[str, Any]]] = {
        "channels last": (lambda x: x.movedim(-1, 1), lambda x: np.moveaxis(x, 1, -1), {"channels_first": False}),
        "features": (lambda x: x.unflatten(1, SHAPE), lambda x: x.reshape(len(x), -1), {}),
        "frames": (
            lambda x: x.mean(1).movedim(-1, 1),
            lambda x: np.stack([np.moveaxis(x, 1, -1)] * 2, 1),
            {"channels_first": False},
        ),
        "small": (  # 1x8x8, for the attacks that ask once per pixel
            lambda x: nn.functional.interpolate(x, scale_factor=2).expand(-1, 3, -1, -1),
            lambda x: x[:, :1, ::2, ::2],
            {},
        ),
    }

    def __init__(self, network: nn.Module, layout: str) -> None:
        super().__init__()
        self.network, self.layout = network, layout

    def forward(self, x):
        return self.network(self.VIEWS[self.layout][0](x))


class Softmax(Postprocessor):
    """Probabilities from logits and log-probabilities, for the attacks that are written for them."""

    @property
    def apply_fit(self):
        return False

    @property
    def apply_predict(self):
        return True

    def __call__(self, preds):
        return torch.from_numpy(preds).softmax(1).clamp_min(1e-7).numpy()  # above 0: their logarithm is taken


@pytest.fixture
def example(request, corners):
    """Estimator, images, labels, as the row wants them. Parameters: the row, the family."""
    row, family = request.param
    network, x, y = corners
    options = {"device_type": "cpu", **row.estimator}
    if row.layout:
        _, lay, more = Laid.VIEWS[row.layout]
        network, x, options = Laid(network, row.layout), lay(x), {**options, **more}
    others = np.roll(x, -1, axis=0)[: row.images]
    x, y = np.ascontiguousarray(x[: row.images]), y[: row.images]
    estimator = {**FAMILIES, **ARTS_OWN}[family](network, nn.CrossEntropyLoss(), x.shape[1:], CLASSES, **options)
    one_hot = np.eye(CLASSES, dtype=np.float32)
    return SimpleNamespace(
        estimator=estimator,
        x=x,
        y=y,
        one_hot=one_hot[y],
        targets=one_hot[(y + 1) % CLASSES],
        others=np.ascontiguousarray(others),  # images of the target classes
    )


# --- the table


def generate(attack, s):
    """What most attacks are called with: images and one-hot labels."""
    return attack.generate(s.x, s.one_hot)


def integers(attack, s):
    return attack.generate(s.x, s.y)


def predicted(attack, s):
    return attack.generate(s.x)


def targeted(attack, s):
    return attack.generate(s.x, s.targets)


def patched(attack, s):
    """Patches give (patch, mask) and are put on images by another call."""
    patch, mask = attack.generate(s.x, s.targets)
    assert patch.shape == np.broadcast_shapes(patch.shape, mask.shape)
    assert np.isfinite(patch).all() and patch.min() >= 0 and patch.max() <= 1
    return attack.apply_patch(s.x, scale=0.5)


@dataclasses.dataclass(frozen=True)
class Row:
    """One attack: its options, how it is called, and what it promises beyond images within the clip values.

    :param make: where the attack needs more than options, or other positional arguments than the estimator.
    :param eps: it promises to stay in this L-infinity ball.
    :param extra: an optional package that it imports.
    :param broken: what ART itself raises, on its own ``PyTorchClassifier`` just the same, and why.
    :param moves: it changes the images for certain; not where it gives back what it could not make adversarial, or worse.
    """

    attack: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    call: Callable[[EvasionAttack, SimpleNamespace], np.ndarray] = generate
    make: Callable[[type[EvasionAttack], SimpleNamespace], EvasionAttack] | None = None
    variant: str = ""
    images: int = 3
    layout: str = ""
    estimator: dict[str, Any] = dataclasses.field(default_factory=dict)
    eps: float | None = None
    extra: tuple[str, ...] = ()
    broken: tuple[type[Exception], str] | None = None
    moves: bool = True
    marks: tuple[pytest.MarkDecorator, ...] = ()

    def __str__(self) -> str:
        return self.attack + (f"-{self.variant}" if self.variant else "")


def quiet(**options: Any) -> dict[str, Any]:
    return {**options, "verbose": False}


def steps(**options: Any) -> dict[str, Any]:
    return quiet(eps=EPS, eps_step=0.1, max_iter=2, **options)


def short_list(attack, s):
    """AutoAttack's four, each with next to no budget; its own would take minutes."""
    e, a = s.estimator, art.attacks.evasion
    auto = [
        a.AutoProjectedGradientDescent(e, **steps(nb_random_init=1, loss_type=loss))
        for loss in ("cross_entropy", "difference_logits_ratio")
    ]
    return attack(
        e,
        eps=EPS,
        eps_step=0.1,
        attacks=[
            *auto,
            a.DeepFool(e, **quiet(max_iter=2, nb_grads=CLASSES)),
            a.SquareAttack(e, **quiet(eps=EPS, max_iter=2)),
        ],
    )


def laser(attack, s):
    """The laser attack with a generator of our own: ART's only one is that of LaserBeamAttack."""
    from art.attacks.evasion.laser_attack.laser_attack import LaserBeam
    from art.attacks.evasion.laser_attack.utils import AdvObjectGenerator

    class Beams(AdvObjectGenerator):
        def random(self):
            return LaserBeam.from_array([500.0, np.random.uniform(0, 3), np.random.uniform(0, 16), 3.0])

        def update_params(self, params, **kwargs):
            return self.random()

    return attack(s.estimator, iterations=2, laser_generator=Beams())


def low_pro_fool(attack, s):
    return attack(s.estimator, n_steps=2).fit_importances(importance_array=np.ones(s.x.shape[1]))


def frame_saliency(attack, s):
    return attack(s.estimator, art.attacks.evasion.FastGradientMethod(s.estimator, eps=EPS), **quiet())


UNSET = "without labels it makes int64 one-hot ones, which the cross-entropy of the classifier it rebuilds refuses"
# Where a direction has zeros, as on quantized networks, it divides by them for a mean that it then only compares.
DIVIDES = pytest.mark.filterwarnings(
    "ignore:(invalid value|divide by zero) encountered in divide:RuntimeWarning:art.attacks.evasion.rescaling"
)
# It divides a random direction by its norm, which is zero where its mask is empty.
MASKED = pytest.mark.filterwarnings(
    "ignore:invalid value encountered in divide:RuntimeWarning:art.attacks.evasion.graphite.graphite_blackbox"
)
PROBABILITIES = {"postprocessing_defences": Softmax()}
GRAPHITE = {"net_size": (16, 16), "batch_size": 16, "rotation_range": (-1.0, 1.0), "gamma_range": (1.0, 1.1)}

TABLE = [
    Row("FastGradientMethod", {"eps": EPS}, eps=EPS),
    Row("FastGradientMethod", {"eps": EPS, "eps_step": 0.1, "minimal": True}, variant="minimal", eps=EPS),
    Row("BasicIterativeMethod", steps(), eps=EPS),
    Row("MomentumIterativeMethod", steps(), eps=EPS),
    Row("ProjectedGradientDescent", steps(num_random_init=1), call=predicted, eps=EPS),
    Row("ProjectedGradientDescentNumpy", steps(), call=integers, eps=EPS),
    Row("ProjectedGradientDescentPyTorch", steps(targeted=True), call=targeted, eps=EPS),
    Row("AutoProjectedGradientDescent", steps(nb_random_init=1), eps=EPS),
    Row("AutoProjectedGradientDescent", steps(nb_random_init=1, loss_type="cross_entropy"), variant="ce", eps=EPS),
    Row(
        "AutoProjectedGradientDescent",
        steps(nb_random_init=1, loss_type="difference_logits_ratio"),
        variant="dlr",
        eps=EPS,
    ),
    Row("AutoConjugateGradient", steps(nb_random_init=1), call=integers, eps=EPS),
    Row("AutoConjugateGradient", steps(nb_random_init=1, loss_type="cross_entropy"), variant="ce", eps=EPS),
    Row(
        "AutoConjugateGradient",
        steps(nb_random_init=1, loss_type="cross_entropy"),
        variant="ce-integers",
        call=integers,
        eps=EPS,
    ),
    Row(
        "AutoConjugateGradient",
        steps(nb_random_init=1, loss_type="cross_entropy"),
        variant="ce-predicted",
        call=predicted,
        broken=(RuntimeError, UNSET),
    ),
    Row("AutoConjugateGradient", steps(nb_random_init=1, loss_type="difference_logits_ratio"), variant="dlr", eps=EPS),
    Row("RescalingAutoConjugateGradient", steps(nb_random_init=1), call=integers, eps=EPS, marks=(DIVIDES,)),
    Row(
        "RescalingAutoConjugateGradient",
        steps(nb_random_init=1, loss_type="cross_entropy"),
        variant="ce",
        eps=EPS,
        marks=(DIVIDES,),
    ),
    Row(
        "RescalingAutoConjugateGradient",
        steps(nb_random_init=1, loss_type="cross_entropy"),
        variant="ce-integers",
        call=integers,
        eps=EPS,
        marks=(DIVIDES,),
    ),
    Row(
        "RescalingAutoConjugateGradient",
        steps(nb_random_init=1, loss_type="cross_entropy"),
        variant="ce-predicted",
        call=predicted,
        broken=(RuntimeError, UNSET),
    ),
    Row(
        "RescalingAutoConjugateGradient",
        steps(nb_random_init=1, loss_type="difference_logits_ratio"),
        variant="dlr",
        eps=EPS,
        marks=(DIVIDES,),
    ),
    Row("AutoAttack", make=short_list, eps=EPS),
    Row(
        "CarliniL2Method",
        quiet(max_iter=5, binary_search_steps=2, initial_const=100.0, learning_rate=0.2, batch_size=3),
    ),
    Row(
        "CarliniLInfMethod", quiet(max_iter=5, initial_const=10.0, largest_const=15.0, learning_rate=0.2, batch_size=3)
    ),
    Row(
        "CarliniL0Method",
        quiet(max_iter=5, binary_search_steps=1, initial_const=100.0, learning_rate=0.2, batch_size=3),
    ),
    Row("ElasticNet", quiet(max_iter=5, binary_search_steps=2, initial_const=100.0, learning_rate=0.2, batch_size=3)),
    Row("DeepFool", quiet(max_iter=2, nb_grads=CLASSES, batch_size=3), call=predicted),
    Row("DeepFool", quiet(max_iter=2, nb_grads=2), call=predicted, variant="two-gradients"),
    Row("NewtonFool", quiet(max_iter=2, batch_size=3), estimator=PROBABILITIES),
    Row("SaliencyMapMethod", quiet(theta=0.2, gamma=0.02, batch_size=3), call=targeted),
    Row("FrameSaliencyAttack", make=frame_saliency, layout="frames", eps=EPS),
    Row(
        "BrendelBethgeAttack",
        {"steps": 2, "binary_search_steps": 2},
        call=lambda attack, s: attack.generate(s.x, s.one_hot, x_adv_init=s.others),
        extra=("numba",),
        marks=(pytest.mark.slow,),  # numba compiles it for 20 seconds
    ),
    Row("ShadowAttack", quiet(nb_steps=2, batch_size=4), call=predicted, images=1),
    Row(
        "Wasserstein",
        quiet(
            max_iter=2,
            kernel_size=3,
            conjugate_sinkhorn_max_iter=3,
            projected_sinkhorn_max_iter=3,
            batch_size=3,
            eps=0.1,
        ),
        moves=False,
    ),
    Row("LowProFool", make=low_pro_fool, call=targeted, layout="features", moves=False),
    Row("OverTheAirFlickeringPyTorch", quiet(max_iter=2, batch_size=3), layout="frames"),
    Row("CompositeAdversarialAttackPyTorch", quiet(max_iter=1, max_inner_iter=2, batch_size=3), extra=("kornia",)),
    Row(
        "VirtualAdversarialMethod",
        quiet(max_iter=1, batch_size=3, finite_diff=0.01),
        call=predicted,
        estimator=PROBABILITIES,
        layout="small",
    ),
    Row(
        "UniversalPerturbation",
        # FGSM at 0.2 turns a corner that is brighter by 0.25 into one that is darker by 0.15: it always succeeds.
        quiet(attacker="fgsm", attacker_params={"eps": EPS}, max_iter=1, eps=EPS),
        eps=EPS,
    ),
    Row(
        "TargetedUniversalPerturbation",
        {"attacker": "fgsm", "attacker_params": {"eps": 0.1, "targeted": True}, "max_iter": 1, "eps": EPS},
        call=targeted,
        eps=EPS,
        moves=False,
    ),
    Row("SquareAttack", quiet(eps=EPS, max_iter=3), eps=EPS, moves=False),
    Row("SquareAttack", quiet(eps=2.0, norm=2, max_iter=3), variant="l2", moves=False),
    Row("BoundaryAttack", quiet(targeted=False, max_iter=2, num_trial=2, sample_size=2, init_size=50)),
    Row("HopSkipJump", quiet(max_iter=1, max_eval=20, init_eval=5, init_size=50)),
    Row("HopSkipJump", quiet(max_iter=1, max_eval=20, init_eval=5, init_size=50, norm=np.inf), variant="linf"),
    Row("GeoDA", quiet(max_iter=400, sub_dim=4), broken=(AttributeError, "np.mat, which it calls, is not in NumPy 2")),
    Row("SignOPTAttack", quiet(targeted=False, num_trial=5, max_iter=1, query_limit=200, k=5)),
    Row("ZooAttack", quiet(max_iter=2, nb_parallel=8, use_resize=False, use_importance=False), moves=False),
    Row("SimBA", quiet(max_iter=5, epsilon=0.3), estimator=PROBABILITIES, moves=False),
    Row(
        "SimBA",
        quiet(max_iter=5, epsilon=0.3, attack="px", order="diag"),
        variant="px",
        estimator=PROBABILITIES,
        moves=False,
    ),
    Row("PixelAttack", quiet(th=3, es=1, max_iter=1), layout="small", moves=False),
    Row("ThresholdAttack", quiet(th=30, es=1, max_iter=1), layout="small", moves=False),
    Row("SpatialTransformation", quiet(max_translation=20, num_translations=2, max_rotation=20, num_rotations=2)),
    Row("AdversarialPatch", quiet(max_iter=2, rotation_max=10.0, patch_shape=(3, 8, 8)), call=patched),
    Row(
        "AdversarialPatchNumpy",
        quiet(max_iter=2, rotation_max=10.0),
        call=patched,
        broken=(AttributeError, "under NumPy 2 half of clip_values is a float32, which it does not take for a float"),
    ),
    Row("AdversarialPatchPyTorch", quiet(max_iter=2, rotation_max=10.0, patch_shape=(3, 8, 8)), call=patched),
    Row(
        "GRAPHITEWhiteboxPyTorch",
        # It goes on as long as it reaches min_tr: for ever, where a rotated image is of the target class already.
        {**GRAPHITE, "num_xforms": 2, "steps": 1, "first_steps": 2, "blur_kernels": [0], "min_tr": 1.0},
        moves=False,
        call=targeted,
        images=1,
        extra=("kornia", "cv2"),
    ),
    Row(
        "GRAPHITEBlackbox",
        {
            **GRAPHITE,
            "noise_size": (16, 16),
            "heat_patch_size": (6, 6),
            "heat_patch_stride": (2, 2),
            "num_xforms_mask": 1,
            "num_xforms_boost": 1,
            "num_boost_queries": 25,
            "blur_kernels": [0],
        },
        call=lambda attack, s: attack.generate(s.x, s.targets, x_tar=s.others),
        moves=False,
        images=1,
        extra=("cv2",),
        marks=(MASKED,),
    ),
    Row("LaserAttack", make=laser, layout="channels last", call=integers, moves=False),
    Row(
        "LaserBeamAttack",
        {"iterations": 2, "max_laser_beam": (780.0, 3.14, 32.0, 32)},
        layout="channels last",
        call=integers,
        broken=(AttributeError, "np.asfarray, which it calls, is not in NumPy 2"),
    ),
    Row(
        "FeatureAdversariesPyTorch",
        quiet(delta=EPS, layer=0, max_iter=2, step_size=0.1),
        call=lambda attack, s: attack.generate(s.x, s.others),
        eps=EPS,
    ),
    Row(
        "FeatureAdversariesNumpy",
        {"delta": EPS, "layer": 0},
        call=lambda attack, s: attack.generate(s.x, s.others, maxiter=1),
        images=1,
        layout="small",
        eps=EPS,
        moves=False,
    ),
]

NOT_FOR_CLASSIFIERS_OF_IMAGES = {
    "AdversarialPatchTensorFlowV2": "TensorFlow",
    "FeatureAdversariesTensorFlowV2": "TensorFlow",
    "ProjectedGradientDescentTensorFlowV2": "TensorFlow",
    "ProjectedGradientDescentCommon": "the base of the PGD classes, without a generate of its own",
    "PixelThreshold": "the base of PixelAttack and ThresholdAttack",
    "MalwareGDTensorFlow": "executables as bytes, TensorFlow",
    "AdversarialTexturePyTorch": "object tracking",
    "CarliniWagnerASR": "speech recognition",
    "ImperceptibleASR": "speech recognition",
    "ImperceptibleASRPyTorch": "speech recognition",
    "DPatch": "object detection",
    "RobustDPatch": "object detection",
    "OverloadPyTorch": "object detection (YOLO)",
    "SNAL": "object detection",
    "DecisionTreeAttack": "scikit-learn's decision trees",
    "HighConfidenceLowUncertainty": "Gaussian processes of GPy",
}


def installed() -> dict[str, type[EvasionAttack] | None]:
    """Every evasion attack in ART's package by name; ``None`` where an optional package is missing."""
    found: dict[str, type[EvasionAttack] | None] = {}
    for info in pkgutil.walk_packages(art.attacks.evasion.__path__, "art.attacks.evasion."):
        try:
            module = importlib.import_module(info.name)
        except ModuleNotFoundError as error:
            if (info.name, error.name) != ("art.attacks.evasion.brendel_bethge", "numba"):
                raise
            found["BrendelBethgeAttack"] = None
            continue
        attacks = inspect.getmembers(module, lambda c: inspect.isclass(c) and issubclass(c, EvasionAttack))
        found.update({name: c for name, c in attacks if c is not EvasionAttack})
    return found


def accepts(attack: type[EvasionAttack], estimator: type) -> bool:
    """How ART asks, in art/attacks/attack.py: by inheritance, a tuple within the requirements being a choice."""
    return all(
        any(r in estimator.__mro__ for r in (choice if isinstance(choice, tuple) else (choice,)))
        for choice in attack._estimator_requirements
    )


def test_the_table_is_complete():
    found, rows = installed(), {row.attack for row in TABLE}
    assert not rows & set(NOT_FOR_CLASSIFIERS_OF_IMAGES)
    assert rows | set(NOT_FOR_CLASSIFIERS_OF_IMAGES) == set(found)
    for name, attack in found.items():
        if attack is not None and name in rows:
            assert all(accepts(attack, c) for c in (DQClassifier, MuLawClassifier, SQEnsembleClassifier)), name
    assert len({str(row) for row in TABLE}) == len(TABLE)


def cases():
    for row in TABLE:
        families = [*FAMILIES, *(ARTS_OWN if row.broken else ())]  # what is broken is so on ART's own classifier too
        marks = list(row.marks)
        if row.broken:
            error, reason = row.broken
            marks.append(pytest.mark.xfail(strict=True, raises=error, reason=f"ART 1.20.1: {reason}"))
        for family in families:
            yield pytest.param((row, family), id=f"{row}-{family}", marks=marks)


@pytest.mark.parametrize("example", list(cases()), indirect=True)
def test_attack(example, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # GeoDA leaves a file where it runs
    row, _ = request.node.callspec.params["example"]
    for package in row.extra:
        pytest.importorskip(package, reason=f"{row.attack} imports {package}, which is not among our requirements")
    x, y, targets = example.x.copy(), example.y.copy(), example.targets.copy()
    attack = installed()[row.attack]
    attack = row.make(attack, example) if row.make else attack(example.estimator, **row.options)
    x_adv = row.call(attack, example)
    assert isinstance(x_adv, np.ndarray) and np.issubdtype(x_adv.dtype, np.floating)
    assert x_adv.shape == x.shape
    assert np.isfinite(x_adv).all()
    assert x_adv.min() >= -1e-6 and x_adv.max() <= 1 + 1e-6
    if row.eps is not None:
        assert np.abs(x_adv - x).max() <= row.eps + 1e-6
    np.testing.assert_array_equal(example.x, x)
    np.testing.assert_array_equal(example.y, y)
    np.testing.assert_array_equal(example.targets, targets)
    if row.moves:
        assert np.abs(x_adv - x).max() > 1e-3
