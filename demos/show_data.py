"""show_data.py - what `python data.py` shows: a known answer, and out/data.png."""

import tempfile
from pathlib import Path

import numpy as np

from data import ClipConfig, ClipFolder
from support import toy_world
from support.drawing import contact_sheet, page
from support.order import schedule
from support.video_io import save_video


def demo():
    """Deal one epoch to two ranks. Returns the times that the rarest and the commonest clip were seen."""
    decks = [schedule(60, batch=6, seed=0, rank=rank, world_size=2) for rank in (0, 1)]
    seen = [index for _ in range(5) for deck in decks for index, _ in next(deck)]
    counts = np.bincount(seen, minlength=60)
    return int(counts.min()), int(counts.max())


# What does a crop see? The same video under three protocols, and the difference is no detail: the DP-VAE of
# VideoDiT 4.1 is shown pieces of the video at full sharpness and learns texture; a transformer that learns
# from prompts should see as much of the frame as the prompt speaks of.
PROTOCOLS = {"Latte 4.1: the short side to 48, the middle": ClipConfig(8, 48, crop="center"),
             "short 48, anywhere, on another visit elsewhere": ClipConfig(8, 48, crop="random"),
             "VideoDiT 4.1, the DP-VAE: at its own resolution": ClipConfig(8, 48, long=1080)}


def draw_page(path):
    """What the protocols see of one wide video."""
    two = [toy_world.render(toy_world.sample_spec(0, number), 16, 96) for number in (0, 5)]
    wide = np.concatenate(two, 2)                                                        # (T,96,192,3)
    with tempfile.TemporaryDirectory() as folder:
        save_video(Path(folder, "clip.mp4"), wide, fps=25)
        crops = [ClipFolder(folder, how).item(0, 1)["video"] for how in PROTOCOLS.values()]
    video = contact_sheet(None, [wide], ["a video of 192 x 96"], side=96, columns=3)
    seen = contact_sheet(None, crops, list(PROTOCOLS), side=72)
    page(path, [video, seen], columns=1)


def main():
    low, high = demo()
    print(f"two ranks saw each of 60 clips between {low} and {high} times (right: 1 and 1)")
    draw_page("out/data.png")
    print("what a crop sees of a video is drawn in out/data.png")
