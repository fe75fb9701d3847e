"""What the server survives on its worst day: `tox run -e worst-day`.

Each module runs by itself, with `--help`, and says what it did and what was lost.
"""
