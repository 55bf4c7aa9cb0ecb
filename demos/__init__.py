"""demos/ - what `python X.py` shows: demos/show_X.py has a known answer and draws out/X.png.

A lesson imports its demo under `__main__` and nowhere else; so it can be read, or deleted, by itself."""
