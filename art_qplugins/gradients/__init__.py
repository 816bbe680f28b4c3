"""What the gradient of a network is worth: measured, followed through the autograd graph, and repaired."""
