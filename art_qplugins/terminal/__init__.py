"""The output of ``artq`` in a terminal of 80 columns, and in logs."""
