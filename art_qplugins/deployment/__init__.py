"""Models as they are deployed: files, runtimes and interfaces that answer and have no gradient of their own."""
