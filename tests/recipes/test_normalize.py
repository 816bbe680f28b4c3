"""``normalize`` of a model: a first layer of the network that is attacked, trained and stored with it."""

from __future__ import annotations

import pytest
import torch

from art_qplugins.data import load
from art_qplugins.errors import InputError
from art_qplugins.fingerprint import fingerprint
from art_qplugins.models.normalize import Normalize
from art_qplugins.recipes.build import build_estimators, build_models
from art_qplugins.recipes.describe import describe
from art_qplugins.recipes.load import parse_recipe
from art_qplugins.runner.runner import Runner

CPU = torch.device("cpu")
NORMALIZE = {"mean": [0.3], "std": [0.4]}


def model(name="net", normalize=NORMALIZE, epochs=0, **more):
    table = {"name": name, "architecture": {"name": "convnet", "options": {"width": 4}}, "train": {"epochs": epochs}}
    return table | ({} if normalize is None else {"normalize": normalize}) | more


def recipe(*models, **more):
    table = {"name": "t", "data": {"name": "digits", "limit": 20}, "threat": {"eps": [0.1]}, "models": list(models)}
    return parse_recipe(table | {"attacks": [{"id": "art:fgsm"}]} | more)


@pytest.fixture(scope="module")
def train():
    return load("digits", "train")


def test_normalize_is_affine_in_each_channel():
    x = torch.rand(5, 3, 4, 4)
    mean, std = [0.1, 0.5, 0.9], [0.2, 1.0, 3.0]
    found = Normalize(mean, std)(x)
    for channel in range(3):
        torch.testing.assert_close(found[:, channel], (x[:, channel] - mean[channel]) / std[channel])


def test_it_is_the_first_layer_of_the_network(tmp_path, train):
    built = build_models(recipe(model("plain", None), model()), train, tmp_path, device=CPU)
    x = load("digits", "test").take(8, seed=0).x()
    inner = built["plain"]  # the same seed, so the same weights
    torch.testing.assert_close(built["net"](x), inner((x - 0.3) / 0.4))
    assert fingerprint(built["net"]) != fingerprint(inner)


def test_two_normalizations_of_the_same_weights_are_told_apart():
    assert fingerprint(Normalize([0.3], [0.4])) != fingerprint(Normalize([0.3], [0.5]))
    assert list(Normalize([0.3], [0.4]).state_dict()) == []


def test_a_trained_network_is_loaded_as_it_was(tmp_path, train):
    first = build_models(recipe(model(epochs=1)), train, tmp_path, device=CPU)["net"]
    again = build_models(recipe(model(epochs=1)), train, tmp_path, device=CPU)["net"]
    assert fingerprint(first) == fingerprint(again)
    file = next(tmp_path.glob("*.safetensors"))
    loaded = build_models(recipe(model(checkpoint=str(file))), train, tmp_path / "b", device=CPU)["net"]
    assert fingerprint(loaded) == fingerprint(first)


@pytest.mark.parametrize(
    "quantize",
    [
        {"activation_bits": 2},
        {"activation_bits": 2, "alpha": 2.0},
        {"weight_bits": 3, "mu": 255.0, "mu_normalize": True},
    ],
    ids=str,
)
def test_quantized_networks_and_their_bases_are_normalized_too(tmp_path, train, quantize):
    models = recipe(model(), model("small", base="net", quantize=quantize))
    estimators = build_estimators(models, train, tmp_path, device=CPU)
    x = load("digits", "test").take(8, seed=0).x()
    for estimator in estimators.values():
        layers = [part for part in estimator.model.modules() if isinstance(part, Normalize)]
        assert [(part.mean, part.std) for part in layers] == [((0.3,), (0.4,))]
        assert estimator.predict(x.numpy()).shape == (8, 10)


def test_a_run_says_so(tmp_path):
    run = Runner(recipe(model(), diagnose=False), out=tmp_path / "run").run()
    assert run.results.status == "success"
    assert describe(recipe(model()).models[0]) == "convnet; normalized by mean [0.3] and std [0.4]"
    assert run.results.models[0].description == describe(recipe(model()).models[0])


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (
            [model(normalize={"mean": [0.5, 0.5], "std": [1.0]})],
            "models.net.normalize: 2 means and 1 standard deviations",
        ),
        ([model(normalize={"mean": [2.0], "std": [1.0]})], "models.net.normalize.mean: it is .2.0.; give"),
        ([model(normalize={"mean": [0.5], "std": [0.0]})], "models.net.normalize.std: it is .0.0.; give"),
        ([model(normalize={"mean": [], "std": []})], "models.net.normalize.mean: it is"),
        ([model(normalize={"mean": 0.5, "std": 1.0})], "models.net.normalize.mean: it is 0.5; give"),
        ([model(normalize={"mean": [0.5]})], "models.net.normalize.std"),
        ([model("a", None), model("b", base="a")], "models.b.normalize: either this model or its base 'a' has none"),
        (
            [{"name": "f", "factory": "somewhere:net", "normalize": NORMALIZE}],
            "models.f.normalize: the network comes from its factory; leave normalize out",
        ),
    ],
)
def test_what_is_refused(models, message):
    with pytest.raises(InputError, match=f"^recipe: {message}"):
        recipe(*models)


def test_another_number_of_channels_is_refused_before_training(tmp_path):
    three = {"mean": [0.5] * 3, "std": [0.2] * 3}
    with pytest.raises(
        InputError, match=r"^models.net.normalize: 3 means, and the number of channels is 1; give one per channel$"
    ):
        Runner(recipe(model(normalize=three, epochs=1)), out=tmp_path / "run").prepare()
