"""show_text.py - what `python text.py` shows: a known answer."""

import torch

from text import t5_bucket


def demo():
    """Known answers: T5's buckets of some distances."""
    return t5_bucket(torch.tensor([-200, -16, -8, -1, 0, 1, 8, 200])).tolist()


def main():
    print(f"T5's buckets: {demo()}   (right: [15, 10, 8, 1, 0, 17, 24, 31])")
