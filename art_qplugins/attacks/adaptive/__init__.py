"""Attacks that no library has, on one loop: Auto-PGD, image by image, over exchangeable objectives."""
