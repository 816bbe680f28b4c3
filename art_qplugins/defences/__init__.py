"""Training-time defences by name. Those of one training are applied together, in their order."""

from dataclasses import dataclass

from art_qplugins.domains import COUNT, FLAG, POSITIVE, Either, Maybe, Number, OneOf, Option, Rule, eps_number
from art_qplugins.registry import Entry, Registry

__all__ = [
    "ADAPTIVE_DIVERSITY",
    "ADVERSARIAL_TRAINING",
    "DATA_RANGE",
    "DEFENCES",
    "FEATURE_SQUEEZING",
    "FEEDBACK_LEARNING",
    "GAUSSIAN_NOISE",
    "PARSEVAL",
    "RANDOM_SELF_ENSEMBLE",
    "STOCHASTIC_WEIGHTS",
    "TRADES",
    "DefenceEntry",
]


@dataclass(frozen=True, kw_only=True)
class DefenceEntry(Entry):
    """One defence. Other packages may give a plain ``Entry``.

    :ivar deployed: it is a part of the network (:meth:`~art_qplugins.defences.base.Defence.network`), also without training.
    :ivar random: with it the network draws noise.
    """

    deployed: bool = False
    random: bool = False


#: The weight of a penalty beside cross-entropy. 0 trains without it, for comparison.
_WEIGHT = Number(0, 10)
#: A radius in Linf, or a step in it.
_EPS = Number(0, 1, above=True)
#: The part of a batch or of the rows of a weight.
_SHARE = Number(0, 1, above=True)
_STEPS = Number(1, 1000, whole=True)

ADVERSARIAL_TRAINING = DefenceEntry(
    name="adversarial-training",
    target="art_qplugins.defences.adversarial:AdversarialTraining",
    help="training on FGSM, R+FGSM or PGD images (Goodfellow et al. 2015, Tramer et al. 2018, Madry et al. 2018)",
    options={
        "method": Option("pgd", OneOf(("fgsm", "r+fgsm", "pgd"))),
        "eps": Option(8 / 255, _EPS, eps_number),
        "steps": Option(None, Maybe(Either(_STEPS, OneOf(("kurakin",))))),
        "step_size": Option(None, Maybe(_EPS), eps_number),
        "start": Option(None, Maybe(OneOf(("uniform", "sign", "none")))),
        "distribution": Option("fixed", OneOf(("fixed", "normal"))),
        "per": Option("image", OneOf(("image", "batch"))),
        "share": Option(1.0, _SHARE),
        "batch_norm": Option("eval", OneOf(("eval", "train"))),
    },
    rules=(
        *(
            Rule(("method", name), lambda method, _: method == "pgd", f'method = "pgd", or leave {name} out')
            for name in ("steps", "step_size", "start")
        ),
        Rule(("steps", "step_size"), lambda steps, _: steps != "kurakin", "one of them: kurakin steps are 1/255 long"),
        Rule(
            ("steps", "distribution", "per"),
            lambda steps, distribution, per: steps != "kurakin" or distribution == "fixed" or per == "batch",
            'per = "batch", because the number of steps depends on eps',
        ),
    ),
)

TRADES = DefenceEntry(
    name="trades",
    target="art_qplugins.defences.adversarial:Trades",
    help="beta KL(f(x) || f(x')) with x' crafted by PGD on it, beside clean images (Zhang et al. 2019)",
    options={
        "beta": Option(6.0, Number(0, 100)),
        "eps": Option(8 / 255, _EPS, eps_number),
        "steps": Option(10, _STEPS),
        "step_size": Option(None, Maybe(_EPS), eps_number),
    },
)

GAUSSIAN_NOISE = DefenceEntry(
    name="gaussian-noise",
    target="art_qplugins.defences.noise:GaussianNoise",
    help="training on images with Gaussian noise (Cohen et al. 2019)",
    options={"sigma": Option(0.1, Number(0, 1)), "share": Option(1.0, _SHARE)},
)

FEATURE_SQUEEZING = DefenceEntry(
    name="feature-squeezing",
    target="art_qplugins.defences.squeezing:FeatureSqueezing",
    help="fewer bits and a median filter before the network, trained and deployed (Xu et al. 2018)",
    options={"bits": Option(5, Number(1, 8, whole=True)), "window": Option(2, Number(1, 5, whole=True))},
    deployed=True,
)

PARSEVAL = DefenceEntry(
    name="parseval",
    target="art_qplugins.defences.parseval:Parseval",
    help="retraction of weights towards orthonormal rows after each step (Cisse et al. 2017)",
    options={"beta": Option(3e-4, Number(0, 0.1)), "rows": Option(1.0, _SHARE)},
)

FEEDBACK_LEARNING = DefenceEntry(
    name="feedback-learning",
    target="art_qplugins.defences.feedback:FeedbackLearning",
    help="training on images moved across the boundary (Song et al., arXiv 1909.05443; a reconstruction)",
    options={
        "epochs": Option(1, COUNT),
        "directions": Option(100, COUNT),
        "nearest": Option(40, COUNT),
        "largest": Option(None, Maybe(POSITIVE)),
        "weight": Option(1.0, _WEIGHT),
        "stall": Option(0.01, Number(0, 1)),
        "batch_size": Option(128, COUNT),
    },
    rules=(
        Rule(
            ("nearest", "directions"),
            lambda nearest, directions: nearest <= directions,
            "at most as many nearest as directions",
        ),
    ),
)

ADAPTIVE_DIVERSITY = DefenceEntry(
    name="adaptive-diversity",
    target="art_qplugins.defences.diversity:AdaptiveDiversity",
    help="members that are right and differ in other classes, ADP (Pang et al. 2019)",
    options={"alpha": Option(2.0, _WEIGHT), "beta": Option(0.5, _WEIGHT)},
)

RANDOM_SELF_ENSEMBLE = DefenceEntry(
    name="random-self-ensemble",
    target="art_qplugins.defences.random_self_ensemble:RandomSelfEnsemble",
    help="Gaussian noise before every convolution, trained and deployed, RSE (Liu et al. 2018)",
    options={"first": Option(0.2, _WEIGHT), "inner": Option(0.1, _WEIGHT)},
    deployed=True,
    random=True,
)

STOCHASTIC_WEIGHTS = DefenceEntry(
    name="stochastic-weights",
    target="art_qplugins.defences.stochastic_weights:StochasticWeights",
    help="weights drawn by stochastic rounding, trained and deployed: BinaryConnect (Courbariaux et al. 2015)",
    options={"num_bits": Option(1, Number(1, 8, whole=True)), "limit": Option(1.0, Maybe(POSITIVE))},
    deployed=True,
    random=True,
)

DATA_RANGE = DefenceEntry(
    name="data-range",
    target="art_qplugins.defences.ranges:DataRange",
    help="bins of stochastic layers that start where the training data lies (arXiv 2312.00105, reconstructed)",
    options={
        "low": Option(0.5, Number(0, 1, below=True)),
        "high": Option(0.999, _SHARE),
        "samples": Option(256, COUNT),
    },
    rules=(Rule(("low", "high"), lambda low, high: low < high, "a low below high"),),
)

DEFENCES: Registry[Entry] = Registry(
    "defence",
    [
        FEEDBACK_LEARNING,
        DefenceEntry(
            name="orthogonality",
            target="art_qplugins.defences.lipschitz:Orthogonality",
            help="penalty on W W^T - I, Defensive Quantization (Lin et al. 2019)",
            options={"beta": Option(2e-3, _WEIGHT)},
        ),
        DefenceEntry(
            name="convex-aggregation",
            target="art_qplugins.defences.aggregation:ConvexAggregation",
            help="convex weights of skip and residual, in networks with aggregation = true (Cisse et al. 2017)",
        ),
        DefenceEntry(
            name="mutual-information",
            target="art_qplugins.defences.information:MutualInformation",
            help="information kept by the deepest stochastic layer (arXiv 2312.00105, reconstructed)",
            options={
                "beta": Option(0.1, _WEIGHT),
                "of": Option("units", OneOf(("units", "channels", "members"))),
            },
        ),
        DefenceEntry(
            name="bin-spacing",
            target="art_qplugins.defences.information:BinSpacing",
            help="penalty on the bin spacing of stochastic layers (arXiv 2312.00105, reconstructed)",
            options={"weight": Option(1e-2, _WEIGHT), "relative": Option(False, FLAG)},
        ),
        DATA_RANGE,
        ADVERSARIAL_TRAINING,
        TRADES,
        GAUSSIAN_NOISE,
        FEATURE_SQUEEZING,
        PARSEVAL,
        ADAPTIVE_DIVERSITY,
        RANDOM_SELF_ENSEMBLE,
        STOCHASTIC_WEIGHTS,
    ],
    group="art_qplugins.defences",
)
