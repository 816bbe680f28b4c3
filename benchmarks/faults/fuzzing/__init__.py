"""The inputs that ``fuzz.py`` tries, and what must not come of them. The tests share strategies and processes."""
