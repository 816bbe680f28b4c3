"""Adaptive attacks on quantized and random networks: one loop, Auto-PGD, over objectives that no library has.

``auto_pgd`` is the loop. ``objectives`` are the functions that it maximizes. ``run`` keeps the best images over several
runs of the loop. ``attacks`` is the table of attacks. ``repaired_gradients`` lists the other backward passes that a network
can have. ``full_precision`` removes its quantization.
"""
