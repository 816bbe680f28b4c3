"""One adapter for each attack library. It translates settings. The attack loop stays in the library."""
