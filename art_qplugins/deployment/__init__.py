"""What ships: networks as files of integers, and whatever answers from a file or behind an interface."""
