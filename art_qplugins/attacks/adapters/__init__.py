"""One adapter for each library of attacks. It translates settings; the loop stays in the library."""
