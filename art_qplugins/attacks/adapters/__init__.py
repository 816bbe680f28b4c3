"""One adapter for each attack library. It translates settings; the loop stays in the library."""
