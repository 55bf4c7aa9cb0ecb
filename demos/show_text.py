"""show_text.py - what `python text.py` shows: a known answer, and out/text.png."""

import torch
import torch.nn.functional as F

from text import ToyText, t5_bucket
from support import toy_world
from support.checkpoints import TOY, load_network
from support.drawing import FINE, heat, page, plot, write


# ---------------------------------------------------------------------------------- demo
# Which words does the shipped encoder find near? The cosine of their pooled vectors, less what all words
# share. If it had learned nothing, a word's nearest would be of its own kind (subject, colour, motion, scene)
# one time in four, 8 of 34.

def nearness(toy, kinds):
    """kinds {name: words} -> (words, cosines (W,W), how many words' nearest is of their own kind)."""
    words, of = zip(*[(word, kind) for kind, members in kinds.items() for word in members])
    with torch.no_grad():
        pooled = toy(list(words))[1]                                            # (W,P)
    cosine = F.normalize(pooled - pooled.mean(0), dim=1)
    cosine = cosine @ cosine.T                                                  # (W,W)
    nearest = cosine.clone().fill_diagonal_(-2).argmax(1).tolist()              # (W,)
    return words, cosine, sum(of[nearest[n]] == of[n] for n in range(len(words)))


def draw_nearness(words, cosine):
    """The matrix with its words, as a picture."""
    from PIL import Image, ImageDraw

    cell, left = 17, 104
    side = cell * len(words)
    sheet = Image.new("RGB", (FINE * (left + side + 12), FINE * (side + 48)), "white")
    cells = Image.fromarray(heat(cosine.clamp(min=0).numpy(), cell * FINE, top=0.7))
    sheet.paste(cells, (FINE * left, FINE * 36))
    pen = ImageDraw.Draw(sheet)
    write(pen, (12, 18), "nearness of words, as the toy's encoder learned it", 15)
    for n, word in enumerate(words):
        write(pen, (left - 8, 36 + cell * (n + 0.5)), word, 12, anchor="rm")
    return sheet.reduce(FINE)                                                   # (h,w) of FINE*h, FINE*w


def demo(picture=None):
    """Known answers: T5's buckets of some distances; how many words' nearest is of their own kind, of all."""
    kinds = {"subject": toy_world.SUBJECTS, "colour": tuple(toy_world.COLOURS), "motion": toy_world.MOTIONS,
             "scene": toy_world.SCENES}
    words, cosine, own = nearness(load_network(ToyText, TOY / "text.safetensors").eval(), kinds)
    if picture:
        far = torch.arange(-160, 161)                                           # (321,)
        curve = plot(None, {"keys behind": (far[:160], t5_bucket(far[:160])),
                            "keys ahead": (far[161:], t5_bucket(far[161:]))},
                     "T5's buckets of distance", "key's place - query's place", "bucket", size=(520, 420))
        page(picture, [draw_nearness(words, cosine), curve])
    return t5_bucket(torch.tensor([-200, -16, -8, -1, 0, 1, 8, 200])).tolist(), own, len(words)


def main():
    buckets, own, words = demo("out/text.png")
    print(f"T5's buckets: {buckets}   (right: [15, 10, 8, 1, 0, 17, 24, 31])")
    print(f"{own} of {words} words have their nearest in their own kind (right: above 20; by chance 8). "
          "Drawn in out/text.png")
