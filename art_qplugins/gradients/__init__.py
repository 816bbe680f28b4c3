"""What a gradient says of its network: measured, followed through the autograd graph, and repaired."""
