"""Calls from Python: types and ranges of arguments are checked before any work, and the line names the argument."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import art_qplugins as aq
from art_qplugins.defences.lipschitz import Orthogonality
from art_qplugins.models import MODELS
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import QUANTIZERS

NAN, INF = float("nan"), float("inf")
X, Y = np.full((20, 1, 8, 8), 0.5, np.float32), np.arange(20) % 10
L = nn.CrossEntropyLoss()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def est(**more):
    return aq.QuantizedClassifier(net(), L, (1, 8, 8), 10, **more)


def random_net():
    return aq.quantize(net(), activation_bits=2, alpha=2.0)


def evaluate(**changes):
    arguments = {"estimators": est(), "data": (X, Y), "attacks": ["artq:clean"]} | changes
    return aq.evaluate(**arguments)


def diagnose(**changes):
    return aq.diagnose(**{"estimator": est(), "x": X, "y": Y, "level": 0} | changes)


ROWS = {
    # The threat
    "Threat-norm": (lambda: aq.Threat(5, 0.1), "norm"),
    "Threat-norm-none": (lambda: aq.Threat(None, 0.1), "norm"),
    "Threat-norm-list": (lambda: aq.Threat(["Linf"], 0.1), "norm"),
    "Threat-eps-nan": (lambda: aq.Threat("Linf", NAN), "eps"),
    "Threat-eps-text": (lambda: aq.Threat("Linf", "8/255"), "eps"),
    "Threat-eps-400-digits": (lambda: aq.Threat("Linf", 10**400), "eps"),
    "Threat-eps-array": (lambda: aq.Threat("Linf", np.array([0.1, 0.2])), "eps"),
    # evaluate
    "evaluate-threat": (lambda: evaluate(threat="Linf"), "threat"),
    "evaluate-threat-none": (lambda: evaluate(threat=None), "threat"),
    "evaluate-threat-number": (lambda: evaluate(threat=0.1), "threat"),
    "evaluate-threat-list": (lambda: evaluate(threat=[0.1]), "threat"),
    "evaluate-attack-of-one": (lambda: evaluate(attacks=[("art:fgsm",)]), "attacks"),
    "evaluate-attack-number": (lambda: evaluate(attacks=[5]), "attacks"),
    "evaluate-attacks-text": (lambda: evaluate(attacks="art:fgsm"), "attacks"),
    "evaluate-attacks-none": (lambda: evaluate(attacks=None), "attacks"),
    "evaluate-attack-options": (lambda: evaluate(attacks=[("art:pgd", 5)]), "attacks"),
    "evaluate-attack-nan": (lambda: evaluate(attacks=[("art:pgd", {"rel_eps_step": NAN})]), "rel_eps_step"),
    "evaluate-attack-nan-of-numpy": (
        lambda: evaluate(attacks=[("art:pgd", {"rel_eps_step": np.float32(NAN)})]),
        "rel_eps_step",
    ),
    "evaluate-attack-tensor": (
        lambda: evaluate(attacks=[("art:pgd", {"rel_eps_step": torch.tensor([0.1, 0.2])})]),
        "rel_eps_step",
    ),
    "evaluate-seed-none": (lambda: evaluate(seed=None), "seed"),
    "evaluate-seed-float": (lambda: evaluate(seed=0.5), "seed"),
    "evaluate-seed-30-digits": (lambda: evaluate(seed=10**30), "seed"),
    "evaluate-batch-size-0": (lambda: evaluate(batch_size=0), "batch_size"),
    "evaluate-batch-size-below-0": (lambda: evaluate(batch_size=-1), "batch_size"),
    "evaluate-batch-size-2**64": (lambda: evaluate(batch_size=2**64), "batch_size"),
    "evaluate-progress": (lambda: evaluate(progress=5), "progress"),
    "evaluate-level": (lambda: evaluate(level=9), "level"),
    "evaluate-budget": (lambda: evaluate(budget=NAN), "budget"),
    "evaluate-recipe": (lambda: evaluate(recipe=5), "recipe"),
    "evaluate-recipe-list": (lambda: evaluate(recipe=[("grid", 256)]), "recipe"),
    "evaluate-out": (lambda: evaluate(out=5), "out"),
    "evaluate-out-empty": (lambda: evaluate(out=""), "out"),
    "evaluate-claim": (lambda: evaluate(claim=5), "claim"),
    "evaluate-claimed-accuracy": (lambda: evaluate(claim="artq:clean", claimed_accuracy=NAN), "accuracy"),
    "evaluate-claimed-accuracy-alone": (lambda: evaluate(claimed_accuracy=0.5), "claimed_accuracy"),
    "evaluate-estimators-none": (lambda: evaluate(estimators=None), "estimators"),
    "evaluate-estimators-number": (lambda: evaluate(estimators=5), "estimators"),
    "evaluate-estimators-module": (lambda: evaluate(estimators=net()), "estimator"),
    "evaluate-estimators-by-number": (lambda: evaluate(estimators={5: est()}), "estimators"),
    "evaluate-data-none": (lambda: evaluate(data=None), "data"),
    "evaluate-data-array": (lambda: evaluate(data=X), "data"),
    "evaluate-data-of-three": (lambda: evaluate(data=(X, Y, Y)), "data"),
    "evaluate-data-nan": (lambda: evaluate(data=(X * NAN, Y)), "x"),
    "evaluate-labels-text": (lambda: evaluate(data=(X, [str(y) for y in Y])), "y"),
    "evaluate-executor": (lambda: evaluate(executor="rya"), "executor"),
    "evaluate-workers": (lambda: evaluate(executor="ray", workers=0), "workers"),
    # diagnose and run
    "diagnose-threat-list": (lambda: diagnose(threat=[aq.Threat()]), "threat"),
    "diagnose-threat-text": (lambda: diagnose(threat="Linf"), "threat"),
    "diagnose-level": (lambda: diagnose(level=9), "level"),
    "diagnose-level-float": (lambda: diagnose(level=1.5), "level"),
    "diagnose-budget": (lambda: diagnose(budget=NAN), "budget"),
    "diagnose-claimed-nan": (lambda: diagnose(claimed=NAN), "claimed"),
    "diagnose-claimed-52": (lambda: diagnose(claimed=52), "claimed"),
    "diagnose-claimed-true": (lambda: diagnose(claimed=True), "claimed"),
    "diagnose-claimed-of-one": (lambda: diagnose(claimed=("art:pgd",)), "claimed"),
    "diagnose-estimators": (lambda: diagnose(estimator=[est(), est()]), "estimator"),
    "diagnose-y-none": (lambda: diagnose(y=None), "y"),
    "diagnose-x-none": (lambda: diagnose(x=None), "x"),
    "run-number": (lambda: aq.run(5), "recipe"),
    "run-none": (lambda: aq.run(None), "recipe"),
    "run-executor": (lambda: aq.run("digits", executor=5), "executor"),
    "run-workers": (lambda: aq.run("digits", executor="ray", workers=-1), "workers"),
    "run-download": (lambda: aq.run("digits", download=5), "download"),
    "run-data-root": (lambda: aq.run("digits", data_root=5), "data_root"),
    # quantize and its parts
    "quantize-none": (lambda: aq.quantize(None), "model"),
    "quantize-class": (lambda: aq.quantize(nn.Linear), "model"),
    "quantize-estimator": (lambda: aq.quantize(est(), weight_bits=3), "model"),
    "quantize-granularity": (lambda: aq.quantize(net(), weight_bits=3, granularity=5), "granularity"),
    "quantize-bits-0": (lambda: aq.quantize(net(), weight_bits=0), "weight_bits"),
    "quantize-bits-float": (lambda: aq.quantize(net(), activation_bits=2.5), "activation_bits"),
    "quantize-bits-text": (lambda: aq.quantize(net(), activation_bits="2"), "activation_bits"),
    "quantize-bits-true": (lambda: aq.quantize(net(), activation_bits=True), "activation_bits"),
    "quantize-clip-nan": (lambda: aq.quantize(net(), activation_bits=2, clip=NAN), "clip"),
    "quantize-clip-inf": (lambda: aq.quantize(net(), activation_bits=2, clip=INF), "clip"),
    "quantize-mu-nan": (lambda: aq.quantize(net(), mu=NAN), "mu"),
    "quantize-mu-layers-99": (lambda: aq.quantize(net(), mu=255.0, mu_layers=99), "mu_layers"),
    "quantize-alpha-alone": (lambda: aq.quantize(net(), alpha=2.0), "alpha"),
    "quantize-alpha-nan": (lambda: aq.quantize(net(), activation_bits=2, alpha=NAN), "alpha"),
    "quantize-seed": (lambda: aq.quantize(net(), activation_bits=2, seed=None), "seed"),
    "QuantReLU": (lambda: aq.QuantReLU("x"), "bits"),
    "QuantReLU-clip": (lambda: aq.QuantReLU(2, NAN), "clip"),
    "QuantHardtanh": (lambda: aq.QuantHardtanh(2.5), "bits"),
    "MuLawMapping": (lambda: aq.MuLawMapping(NAN), "mu"),
    "UniformWeightQuantizer": (lambda: aq.UniformWeightQuantizer(3, granularity=5), "granularity"),
    "StochasticQuantizer": (lambda: aq.StochasticQuantizer(2, alpha=NAN), "alpha"),
    "StochasticEnsemble-rule": (lambda: StochasticEnsemble(random_net(), 4, rule=5), "rule"),
    "StochasticEnsemble-draws": (lambda: StochasticEnsemble(random_net(), 0), "draws"),
    "StochasticEnsemble-none": (lambda: StochasticEnsemble(None, 4), "network"),
    "quantizers-get": (lambda: QUANTIZERS[5], "5"),
    "models-get": (lambda: MODELS[None], "None"),
    "report-none": (lambda: aq.quantization_report(None), "model"),
    # constructors of estimators
    "Classifier-model": (lambda: aq.QuantizedClassifier(None, L, (1, 8, 8), 10), "model"),
    "Classifier-loss": (lambda: aq.QuantizedClassifier(net(), None, (1, 8, 8), 10), "loss"),
    "Classifier-shape": (lambda: aq.QuantizedClassifier(net(), L, "x", 10), "input_shape"),
    "Classifier-shape-0": (lambda: aq.QuantizedClassifier(net(), L, (0, 8, 8), 10), "input_shape"),
    "Classifier-classes": (lambda: aq.QuantizedClassifier(net(), L, (1, 8, 8), 2.5), "nb_classes"),
    "Classifier-classes-0": (lambda: aq.QuantizedClassifier(net(), L, (1, 8, 8), 0), "nb_classes"),
    "Classifier-optimizer": (lambda: est(optimizer="x"), "optimizer"),
    "Classifier-defences": (lambda: est(training_defences=[5]), "training_defences"),
    "Classifier-clip": (lambda: est(clip_values=(NAN, 1)), "clip_values"),
    "Classifier-clip-turned": (lambda: est(clip_values=(1, 0)), "clip_values"),
    "Classifier-device": (lambda: est(device_type=5), "device_type"),
    "DQ-bits": (lambda: aq.DQClassifier(net(), L, (1, 8, 8), 10, activation_bits="2"), "activation_bits"),
    "DQ-clip": (lambda: aq.DQClassifier(net(), L, (1, 8, 8), 10, activation_bits=2, clip=NAN), "clip"),
    "DQ-defences": (
        lambda: aq.DQClassifier(net(), L, (1, 8, 8), 10, activation_bits=2, training_defences=5),
        "training",
    ),
    "MuLaw-mu": (lambda: aq.MuLawClassifier(net(), L, (1, 8, 8), 10, mu=NAN), "mu"),
    "SQ-draws": (lambda: aq.SQEnsembleClassifier(random_net(), L, (1, 8, 8), 10, draws=0), "draws"),
    "SQ-draws-float": (lambda: aq.SQEnsembleClassifier(random_net(), L, (1, 8, 8), 10, draws=2.5), "draws"),
    # training, data, replay
    "train-none": (lambda: aq.train(None, aq.load("digits", "train")), "model"),
    "train-data": (lambda: aq.train(net(), 5), "data"),
    "train-epochs": (lambda: aq.train(net(), aq.load("digits", "train"), epochs=-1), "epochs"),
    "train-batch-size": (lambda: aq.train(net(), aq.load("digits", "train"), batch_size=0), "batch_size"),
    "train-rate": (lambda: aq.train(net(), aq.load("digits", "train"), learning_rate=NAN), "learning_rate"),
    "train-decay": (lambda: aq.train(net(), aq.load("digits", "train"), weight_decay=NAN), "weight_decay"),
    "train-defences": (lambda: aq.train(net(), aq.load("digits", "train"), [5]), "defences"),
    "Orthogonality-nan": (lambda: Orthogonality(beta=NAN), "beta"),
    "Orthogonality-below-0": (lambda: Orthogonality(beta=-1), "beta"),
    "load-none": (lambda: aq.load(None, "train"), "name"),
    "load-split": (lambda: aq.load("digits", 5), "split"),
    "load-root": (lambda: aq.load("mnist", "test", root=5), "root"),
    "replay-none": (lambda: aq.replay(None, net()), "path"),
    "replay-module": (lambda: aq.replay("e.npz", 5), "module"),
    "attack-of-no-kind": (lambda: aq.ATTACKS[5], "5"),
    "surrogate-of-no-kind": (lambda: aq.surrogate(net(), 5).__enter__(), "5"),
}


@pytest.mark.parametrize("row", ROWS)
def test_the_line_names_the_argument(row, python, refused):
    function, argument = ROWS[row]
    refused(python(function, seconds=5), argument)


@pytest.mark.parametrize("attack", ["artq:surrogates", "artq:bits", "artq:joint"])
def test_evaluate_knows_every_listed_attack(attack, python, refused):
    """What stops it is the label that the network has not, and not the attack's list of options."""
    refused(python(lambda: evaluate(attacks=[attack], data=(X, Y + 90))), "y")


def test_a_long_value_is_cut(python, refused):
    refused(python(lambda: aq.Threat("L" * 5000, 0.1)), "norm")
    refused(python(lambda: evaluate(seed=[0] * 5000)), "seed")
    refused(python(lambda: evaluate(recipe={"k" * 5000: 1})), "kkk")
