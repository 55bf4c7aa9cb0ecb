"""show_text.py - what `python text.py` shows: a known answer."""

import torch
import torch.nn.functional as F

from text import ToyText, t5_bucket
from support import toy_world
from support.checkpoints import TOY, load_network


# ---------------------------------------------------------------------------------- demo
# Which words does the shipped encoder find near? The cosine of their pooled vectors, less what all words
# share. If it had learned nothing, a word's nearest would be of its own kind (subject, colour, motion, scene)
# one time in four, 8 of 34.

def nearness(toy, kinds):
    """kinds {name: words} -> how many words' nearest is of their own kind, and how many words there are."""
    words, of = zip(*[(word, kind) for kind, members in kinds.items() for word in members])
    with torch.no_grad():
        pooled = toy(list(words))[1]                                            # (W,P)
    cosine = F.normalize(pooled - pooled.mean(0), dim=1)
    cosine = cosine @ cosine.T                                                  # (W,W)
    nearest = cosine.fill_diagonal_(-2).argmax(1).tolist()                      # (W,)
    return sum(of[nearest[n]] == of[n] for n in range(len(words))), len(words)


def demo():
    """Known answers: T5's buckets of some distances; how many words' nearest is of their own kind, of all."""
    kinds = {"subject": toy_world.SUBJECTS, "colour": tuple(toy_world.COLOURS), "motion": toy_world.MOTIONS,
             "scene": toy_world.SCENES}
    own, words = nearness(load_network(ToyText, TOY / "text.safetensors").eval(), kinds)
    return t5_bucket(torch.tensor([-200, -16, -8, -1, 0, 1, 8, 200])).tolist(), own, words


def main():
    buckets, own, words = demo()
    print(f"T5's buckets: {buckets}   (right: [15, 10, 8, 1, 0, 17, 24, 31])")
    print(f"{own} of {words} words have their nearest in their own kind (right: above 20; by chance 8)")
