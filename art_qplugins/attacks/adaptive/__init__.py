"""Adaptive attacks on quantized and random networks: one loop, Auto-PGD, over objectives that no library has.

``auto_pgd`` is the loop and ``objectives`` what it maximizes; ``run`` keeps the best images over several passes of it;
``attacks`` are the attacks as a table. ``repaired_gradients`` says which other backward passes a network can have,
``full_precision`` undoes its quantization.
"""
