"""The attacks as data, a file for each library. Nothing here imports one."""
