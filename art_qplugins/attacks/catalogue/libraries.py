"""The attack libraries by name. An attack's id is ``library:name``.

A package adds a library by an entry point of the group ``art_qplugins.libraries`` that resolves to a :class:`Library`, and
its attacks by one of the group ``art_qplugins.attacks``.
"""

from __future__ import annotations

from dataclasses import dataclass

from art_qplugins.registry import Entry, Registry

__all__ = ["ART", "ARTQ", "AUTOATTACK", "FOOLBOX", "LIBRARIES", "TORCHATTACKS", "Library"]


@dataclass(frozen=True, kw_only=True)
class Library(Entry):
    """Settings that all attacks of a library share. ``target`` is its :class:`~art_qplugins.attacks.craft.Adapter`.

    :ivar norms: the norms of a row that has none.
    :ivar package: the distribution whose version can change the results. The version is part of a cell's key.
    :ivar requires: packages to import. An entry ``"this or that"`` needs one of the two.
    :ivar install: the argument of ``pip install`` if one of them is missing.
    :ivar keeps_best: its attacks return the best image that they visited. The path of other attacks is tracked, because
        they may visit an adversarial image and return another one.
    """

    norms: tuple[str, ...]
    package: str
    requires: tuple[str, ...] = ()
    install: str = ""
    keeps_best: bool = False


ART = Library(
    name="art",
    target="art_qplugins.attacks.adapters.art:run",
    help="the Adversarial Robustness Toolbox",
    norms=("Linf", "L2"),
    package="adversarial-robustness-toolbox",
    requires=("art",),
    install="adversarial-robustness-toolbox",
)
TORCHATTACKS = Library(
    name="torchattacks",
    target="art_qplugins.attacks.adapters.torchattacks:run",
    help="torchattacks",
    norms=("Linf",),
    package="torchattacks",
    requires=("torchattacks",),
    install="torchattacks",
)
AUTOATTACK = Library(
    name="autoattack",
    target="art_qplugins.attacks.adapters.autoattack:run",
    help="the published AutoAttack, from pyautoattack or autoattack",
    norms=("Linf", "L2", "L1"),
    package="pyautoattack",
    requires=("pyautoattack or autoattack",),
    install="pyautoattack",
    keeps_best=True,
)
FOOLBOX = Library(
    name="foolbox",
    target="art_qplugins.attacks.adapters.foolbox:run",
    help="Foolbox Native, an optional extra",
    norms=("Linf", "L2", "L1"),
    package="foolbox",
    requires=("foolbox",),
    install="'art_qplugins[foolbox]'",
)
ARTQ = Library(
    name="artq",
    target="art_qplugins.attacks.adapters.artq:run",
    help="this package's own attacks",
    norms=("Linf", "L2"),
    package="adversarial-robustness-toolbox",
    keeps_best=True,
)

LIBRARIES: Registry[Library] = Registry(
    "attack library",
    [ART, TORCHATTACKS, AUTOATTACK, FOOLBOX, ARTQ],
    group="art_qplugins.libraries",
    row=Library,
)
