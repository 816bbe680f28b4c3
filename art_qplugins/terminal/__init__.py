"""What ``artq`` shows in a terminal, at 80 columns and where nobody watches."""
