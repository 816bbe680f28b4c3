"""Fingerprints of networks that keep odd things. None of them ends a run."""

from __future__ import annotations

from torch import nn

from art_qplugins.fingerprint import fingerprint


class Odd(nn.Linear):
    """Its settings hold themselves, and its state is no tensor."""

    def __init__(self, note=1, version=1):
        super().__init__(2, 2)
        nn.init.zeros_(self.weight), nn.init.zeros_(self.bias)
        self.settings, self.version = [note], version
        self.settings.append(self.settings)
        self.table = {"note": [self.settings]}
        self.table["self"] = self.table

    def get_extra_state(self):
        return {"version": self.version}

    def set_extra_state(self, state):
        self.version = state["version"]


def test_what_holds_itself_is_followed_once_and_counts():
    assert fingerprint(Odd()) == fingerprint(Odd())
    assert len({fingerprint(Odd()), fingerprint(Odd(note=2)), fingerprint(Odd(version=2))}) == 3
