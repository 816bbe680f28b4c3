"""``python -m art_qplugins`` is ``artq``."""

from art_qplugins.cli import main

main()
