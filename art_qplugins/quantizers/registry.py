"""The quantizers by name, and the choice of quantizers by the ``quantize`` table of a recipe.

The keys of a table are the arguments of :func:`~art_qplugins.quantize`. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from art_qplugins.domains import COUNT, MOST, TEXT, Either, ListOf, Number, OneOf
from art_qplugins.errors import InputError
from art_qplugins.registry import Entry, Registry

__all__ = [
    "ACTIVATION_FUNCTIONS",
    "ALSO",
    "EXEMPT",
    "LAYERS",
    "QUANTIZERS",
    "RANGES",
    "Quantizer",
    "switched_on",
    "weight_keys",
]

#: The functions that activations may become, with or without rounding: ReLU clipped at 6 or at 1, and tanh.
ACTIVATION_FUNCTIONS = ("relu6", "relu1", "tanh")
#: Layers: so many of the last ones, or a list of names and positions. A pattern such as ``"group3.*"`` stands for all names that
#: match it. Positions count from 0, and back from -1, the last.
_NAME = Either(TEXT, Number(-MOST, MOST, whole=True))
LAYERS = Either(COUNT, ListOf(_NAME, least=1))
#: Layers that are left out, by their names and positions.
EXEMPT = ListOf(_NAME)
#: The ranges of activations: by their function and ``clip``, or observed.
RANGES = ("fixed", "min-max", "percentile", "mse")
#: What is quantized only where it is asked for.
ALSO = ListOf(OneOf(("layer-norm", "softmax")))

#: A ``quantize`` table. A key that is ``None`` or absent is not given.
Table = Mapping[str, Any]

#: The settings of activations that not every quantizer has, each with its default.
_DEFAULTS: Mapping[str, float | None] = {"clip": 6.0, "alpha": None}


@dataclass(frozen=True, kw_only=True)
class Quantizer(Entry):
    """One quantizer. ``target`` makes the module. ``options`` are settings without a key in the table.

    Another package can add quantizers of activations. Each makes an
    :class:`~art_qplugins.quantizers.protocol.ActivationQuantizer` and is chosen by its name. Only this package quantizes
    weights.

    :ivar place: what it quantizes. A map on weights is registered as a parametrization and takes no ``options``.
    :ivar arguments: keys of the table that it takes, each with the name of the argument of ``target``.
    :ivar switch: keys that switch it on if all of them are given.
    :ivar layers: the key for the layers to which it applies, see :data:`LAYERS`; "" for all layers.
    :ivar exempt: the key for the layers to which it does not apply, see :data:`EXEMPT`; "" for none.
    :ivar zero_point: ``target`` also takes ``zero_point``. If it is true, 0 is a level, and the range can be observed.
    :ivar signed: ``target`` also takes ``low``, the lowest level. It is 0 by default.
    :ivar random: it draws noise. Its module is a :class:`~art_qplugins.StochasticQuantizer` or a subclass. ``target``
        also takes ``seed`` and ``layer``, and ``estimator`` also takes ``draws`` and ``options``.
    :ivar estimator: ``"package.module:attribute"`` of the ART estimator for its models; "" for the plain estimator. The
        first row of the registry that is switched on and has an estimator decides.
    :ivar line: describes the quantizer with the settings of a table in a few words.
    """

    place: Literal["activation", "weight"]
    arguments: Mapping[str, str]
    switch: tuple[str, ...]
    line: Callable[[Table], str]
    layers: str = ""
    exempt: str = ""
    zero_point: bool = False
    signed: bool = False
    random: bool = False
    estimator: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key of the table that it takes."""
        layers = "activation_layers" if self.place == "activation" else self.layers
        return (*self.arguments, *filter(None, (layers, self.exempt)))

    def is_on(self, table: Table) -> bool:
        return all(table.get(key) is not None for key in self.switch)

    def make(self, table: Table, **more: Any) -> Any:
        """The module that a table asks for.

        :param more: further arguments of ``target``.
        :raises InputError: where a value is out of range, or there is no such option.
        """
        given = {name: table[key] for key, name in self.arguments.items() if table.get(key) is not None}
        options = (table.get("options") or {}) if self.place == "activation" else {}
        return self.load()(**given, **self.resolve(options), **more)

    def load_estimator(self) -> Any:
        """The class of its ART estimator."""
        return dataclasses.replace(self, target=self.estimator).load()


def _uniform(table: Table) -> str:
    bits = f"{table['activation_bits']}-bit activations"
    if _observed(table):
        return f"{bits} on observed ranges ({table['ranges']})"
    return bits if table.get("activation_function") else f"{bits} on [0, {table['clip']:g}]"


def _learned(table: Table) -> str:
    return f"{table['activation_bits']}-bit activations, learned clip"


def _observed(table: Table) -> bool:
    return bool(table.get("ranges", "fixed") != "fixed")


#: By the rule of an ensemble, what it takes of its draws.
_RULES = {"mean-probability": "mean", "mean-logits": "mean logits", "majority-vote": "majority vote"}


def _stochastic(table: Table) -> str:
    bits, alpha, draws = table["activation_bits"], table["alpha"], table["draws"]
    of = f"{draws} fixed draws" if table.get("frozen") else f"{draws} draws"
    rule = _RULES[table.get("rule", "mean-probability")]
    return f"stochastic {bits}-bit activations (alpha = {alpha:g}), {rule} of {of}"


def _mu_law(table: Table) -> str:
    form = "normalized" if table.get("mu_normalize") else "raw"
    done = "scaled by the gain of the mu-law" if table.get("mu_gain_only") else "mu-law mapped"
    return f"{_layers(table['mu_layers'])} {done} (mu = {table['mu']:g}, {form})"


def _layers(layers: int | Sequence[str | int]) -> str:
    """In words."""
    if isinstance(layers, int):
        return "last layer" if layers == 1 else f"last {layers} layers"
    return ", ".join(layer if isinstance(layer, str) else f"layer {layer}" for layer in layers)


def _uniform_weight(table: Table) -> str:
    bits = table["weight_bits"]
    if not table["symmetric"]:
        levels = f"affine {'with' if table.get('zero_point') else 'without'} a zero point"
    elif bits == 1:
        levels = "symmetric: two levels"
    else:
        most = 2 ** (bits - 1) - 1
        levels = f"symmetric: {-most if table['narrow_range'] else -most - 1} to {most}"
    return f"{bits}-bit weights ({levels}, {table['granularity'].replace('_', ' ')})"


#: The order decides which row sets the estimator. It is also the order of the maps on weights: Q(F(W)).
QUANTIZERS: Registry[Quantizer] = Registry(
    "quantizer",
    [
        Quantizer(
            name="stochastic",
            target="art_qplugins.quantizers.stochastic:StochasticQuantizer",
            help="activations drawn from a distribution over bins (arXiv 2312.00105, reconstructed)",
            place="activation",
            arguments={"activation_bits": "num_bits", "clip": "clip", "alpha": "alpha"},
            switch=("activation_bits", "alpha"),
            line=_stochastic,
            signed=True,
            random=True,
            estimator="art_qplugins.estimators:SQEnsembleClassifier",
        ),
        Quantizer(
            name="mu-law",
            target="art_qplugins.quantizers.weight:MuLawMapping",
            help="weights of the last layers mapped by the mu-law (Song et al. 2021)",
            place="weight",
            arguments={"mu": "mu", "mu_normalize": "normalize", "mu_gain_only": "gain_only"},
            switch=("mu",),
            line=_mu_law,
            layers="mu_layers",
            estimator="art_qplugins.estimators:MuLawClassifier",
        ),
        Quantizer(
            name="uniform",
            target="art_qplugins.quantizers.activation:uniform_activation",
            help="activations clipped and rounded to even levels (Lin et al. 2019)",
            place="activation",
            arguments={"activation_bits": "num_bits", "clip": "clip"},
            switch=("activation_bits",),
            line=_uniform,
            zero_point=True,
            signed=True,
            estimator="art_qplugins.estimators:DQClassifier",
        ),
        Quantizer(
            name="learned-clip",
            target="art_qplugins.quantizers.activation:LearnedClipReLU",
            help="activations clipped at a learned level and rounded to even levels (PACT, Choi et al. 2018)",
            place="activation",
            arguments={"activation_bits": "num_bits", "clip": "clip"},
            switch=("activation_bits",),
            line=_learned,
            estimator="art_qplugins.estimators:DQClassifier",
        ),
        Quantizer(
            name="uniform-weight",
            target="art_qplugins.quantizers.weight:UniformWeightQuantizer",
            help="weights rounded to even levels",
            place="weight",
            arguments={
                "weight_bits": "num_bits",
                "symmetric": "symmetric",
                "granularity": "granularity",
                "narrow_range": "narrow_range",
                "zero_point": "zero_point",
            },
            switch=("weight_bits",),
            line=_uniform_weight,
            exempt="exempt",
        ),
    ],
    group="art_qplugins.quantizers",
    row=Quantizer,
)


def weight_keys() -> frozenset[str]:
    """The keys of a table that say how weights are quantized."""
    return frozenset(key for row in QUANTIZERS.values() if row.place == "weight" for key in row.keys)


def switched_on(table: Table) -> list[Quantizer]:
    """The quantizers that a table asks for, in the order of the registry. At most one of them quantizes activations.

    :param table: ``activation`` names a quantizer of activations. By default it is "stochastic" if ``alpha`` is given,
        and else "uniform".
    :raises InputError: where the name is unknown, keys or ``options`` do not belong to the quantizer, or two keys
        contradict each other.
    """
    function = table.get("activation_function")
    if function is not None and table.get("clip", _DEFAULTS["clip"]) != _DEFAULTS["clip"]:
        raise InputError(f"clip: the activation function {function!r} has a range of its own; leave clip out")
    chosen = _activation(table)
    return [row for row in QUANTIZERS.values() if (row.is_on(table) if row.place == "weight" else row.name == chosen)]


def _activation(table: Table) -> str | None:
    """The name of the quantizer of activations, ``None`` where activations stay in float."""
    name, options = table.get("activation"), table.get("options") or {}
    if table.get("activation_bits") is None:
        if table.get("alpha") is not None:
            raise InputError(
                "alpha makes activations stochastic, and needs activation_bits; add e.g. activation_bits = 2"
            )
        functional = table.get("functional") and table.get("activation_function") is None
        asked = {"ranges": _observed(table), "also": table.get("also"), "functional": functional}
        for key, given in asked.items():
            if given:
                raise InputError(f"{key}: there are no activations to quantize; add e.g. activation_bits = 4")
        if name is not None or options:
            raise InputError("activation and options need activation_bits; add e.g. activation_bits = 4")
        return None
    row = QUANTIZERS[_by_default(table) if name is None else name]
    _check(row, table, options)
    return row.name


def _by_default(table: Table) -> str:
    return "uniform" if table.get("alpha") is None else "stochastic"


def _check(row: Quantizer, table: Table, options: Mapping[str, Any]) -> None:
    if row.place != "activation":
        names = [known.name for known in QUANTIZERS.values() if known.place == "activation"]
        raise InputError(f"activation: {row.name!r} quantizes weights; there is: {', '.join(sorted(names))}")
    for key in row.switch:
        if table.get(key) is None:
            raise InputError(f"quantizer {row.name!r} needs {key}; give it too")
    for key, default in _DEFAULTS.items():
        if table.get(key, default) != default and key not in row.arguments:
            raise InputError(f"quantizer {row.name!r} has no {key}; leave it out")
    for key, given in {"ranges": _observed(table), "also": table.get("also")}.items():
        if given and not row.zero_point:
            raise InputError(
                f"{key}: quantizer {row.name!r} has no zero point, so only 'uniform' takes it; leave it out"
            )
    if _observed(table) and table.get("clip", _DEFAULTS["clip"]) != _DEFAULTS["clip"]:
        raise InputError("clip: ranges are observed; leave clip out")
    if options and not row.options:
        raise InputError(f"quantizer {row.name!r} has no options; leave out {', '.join(options)}")
    row.resolve(options)
