"""Gradients of networks: measurements, the ledger along the autograd graph, and repairs."""
