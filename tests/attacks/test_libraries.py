"""Libraries are rows, of this package and of packages that are installed beside it."""

from __future__ import annotations

import importlib.metadata
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from art_qplugins import ATTACKS, InputError, Threat, plugins
from art_qplugins.attacks.catalogue import LIBRARIES, Attack, Library, current_id
from art_qplugins.attacks.catalogue.row import attack_of
from art_qplugins.attacks.craft import craft
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.evaluation.cell import CellSpec, cell_id
from art_qplugins.recipes.schema import Recipe
from art_qplugins.registry import Entry

EXTRA = Library(
    name="extra",
    target=f"{__name__}:invert",
    help="attacks of a test",
    norms=("Linf",),
    package="numpy",
    requires=("torch",),
    install="torch",
)
ROWS = [
    attack_of(EXTRA, "negative", "negative", "the negative of the image", {"strength": 1.0}, needs="nothing"),
    Attack(name="art:negative", upstream="negative", help="the same", norms=("Linf",), target=f"{__name__}:invert"),
    Attack(name="alone:negative", upstream="negative", help="the same", norms=("Linf",), target=f"{__name__}:invert"),
    Attack(name="alone:nothing", upstream="negative", help="nothing runs it", norms=("Linf",)),
    Attack(name="art:pgd", upstream="negative", help="a name that exists", norms=("Linf",)),
]


def invert(estimator, attack, x, y, *, threat, options, batch_size, seed):
    return (1 - x).clamp(x - threat.eps, x + threat.eps)


@pytest.fixture
def extra(monkeypatch):
    """A package that adds a library and attacks; a function changes its version."""
    package = SimpleNamespace(name="extra-attacks", version="1.0")

    def points(*, group):
        value = {"art_qplugins.libraries": "EXTRA", "art_qplugins.attacks": "ROWS"}.get(group)
        point = importlib.metadata.EntryPoint("extra", f"{__name__}:{value}", group)
        return [point._for(package)] if value else []

    def install(version="1.0"):
        package.version = version
        for registry in (ATTACKS, LIBRARIES):
            monkeypatch.setattr(registry, "_found", None)

    monkeypatch.setattr(plugins.importlib.metadata, "entry_points", points)
    monkeypatch.setattr(plugins, "_broken", [])
    install()
    return install


def key(attack):
    spec = CellSpec(model="m", source="m", attack=attack, norm="Linf", eps=0.1, seed=0)
    return cell_id(spec, target="t", source="t", data="d", batch_size=8)


@pytest.mark.parametrize("name", ["art", "torchattacks", "autoattack", "foolbox", "artq"])
def test_a_library_is_an_entry_and_says_what_its_attacks_share(name):
    row = LIBRARIES[name]
    assert isinstance(row, Entry) and row.name == name and row.help
    assert callable(row.load()) and row.package and row.plugin is None
    attacks = [a for a in ATTACKS.values() if a.library is row]
    assert attacks and all(a.name.split(":")[0] == name and callable(a.load()) for a in attacks)
    assert all(a.load() == row.load() for a in attacks if not a.target)


def test_every_attack_is_of_a_known_library():
    assert {attack.library.name for attack in ATTACKS.values()} == set(LIBRARIES)


@pytest.mark.parametrize("name", ["extra:negative", "art:negative", "alone:negative"])
def test_an_attack_of_another_package_is_crafted_like_any_other(extra, name):
    assert str(ATTACKS[name].plugin) == "extra-attacks 1.0"
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    x, y = torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)
    estimator = QuantizedClassifier(network, nn.CrossEntropyLoss(), (1, 4, 4), 3, device_type="cpu")
    crafted = craft(estimator, name, x, y, threat=Threat("Linf", 0.25))
    torch.testing.assert_close(crafted.x_adv, torch.full_like(x, 0.25))


def test_the_version_of_a_package_that_adds_an_attack_is_in_the_key_of_its_cells_and_of_no_others(extra):
    before = {name: key(name) for name in ("extra:negative", "alone:negative", "art:negative", "art:pgd")}
    extra("1.1")
    after = {name: key(name) for name in before}
    assert {name for name in before if before[name] != after[name]} == {*before} - {"art:pgd"}


def test_a_name_that_exists_stays_what_it_is_and_the_package_is_told(extra):
    assert ATTACKS["art:pgd"].plugin is None
    (broken,) = plugins.broken("art_qplugins.attacks")
    assert "attack 'art:pgd' exists already" in str(broken)


def test_an_attack_that_nothing_runs_says_so_in_one_line_and_stops_no_listing(extra):
    assert all(isinstance(row.missing(), str) for row in ATTACKS.values())
    with pytest.raises(InputError, match=r"^alone:nothing: no library has this name"):
        ATTACKS["alone:nothing"].load()


@pytest.mark.parametrize("name", ["art:pgd", "torchattacks:pgd", "autoattack:standard", "foolbox:pgd", "artq:clean"])
def test_the_version_of_the_library_is_in_the_key(name, monkeypatch):
    before = key(name)
    monkeypatch.setattr(importlib.metadata, "version", lambda package: f"{package} 0")
    assert key(name) != before


def test_a_start_is_refused_by_attacks_that_choose_their_own():
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    x, y = torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)
    estimator = QuantizedClassifier(network, nn.CrossEntropyLoss(), (1, 4, 4), 3, device_type="cpu")
    for name in ("art:pgd", "artq:pgd-margin", "autoattack:apgd-ce"):
        with pytest.raises(InputError, match=f"^{name} takes no start"):
            craft(estimator, name, x, y, threat=Threat("Linf", 0.1), start=x)


# --- Names of earlier versions


def test_an_old_id_works_with_a_warning_and_records_get_todays():
    with pytest.warns(FutureWarning, match="attack 'artq:shadow' is called 'artq:full-precision' now"):
        assert current_id("artq:shadow") == "artq:full-precision"
    with pytest.warns(FutureWarning, match="artq:shadow"):
        assert ATTACKS["artq:shadow"] is ATTACKS["artq:full-precision"]
    assert "artq:shadow" not in ATTACKS
    assert current_id("art:pgd") == "art:pgd" and current_id("no:such") == "no:such"


def test_a_recipe_with_an_old_id_is_a_recipe_with_todays():
    recipe = {
        "name": "old",
        "data": {"name": "digits"},
        "threat": {"eps": [0.1]},
        "claim": {"attack": "artq:shadow", "eps": 0.1},
        "models": [{"name": name, "quantize": {"activation_bits": 2}} for name in "ab"],
        "attacks": [{"id": "artq:shadow"}],
        "transfer": {"attack": "artq:shadow"},
    }
    with pytest.warns(FutureWarning, match="artq:shadow"):
        settings = Recipe.model_validate(recipe)
    assert settings.attacks[0].id == settings.claim.attack == settings.transfer.attack == "artq:full-precision"
