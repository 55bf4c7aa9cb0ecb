"""folder_report.py - python data.py FOLDER: how many hours, which sizes and rates, whence the captions,
and what is broken.

Each file is tried as training will try it, by the data sets of data.py, which are handed in."""

import itertools
import os
import textwrap
from collections import Counter

import numpy as np
from tqdm import tqdm

from support.cli import UserError
from support.drawing import contact_sheet
from support.folders import class_name, count_endings, list_source, open_image
from support.video_io import Unusable, VideoFile


# Hours come from time stamps and not from headers, whose lengths and rates are often guesses; a folder of
# frames has none, so it counts in frames alone.
def measure_video(dataset, index):
    """(frames, seconds or None, width, height)."""
    video = dataset.video(index)
    count = len(video.times)
    if dataset.names[index] in dataset.folders:
        height, width = open_image(dataset.path(index), video.frames[0]).shape[:2]
        return count, None, width, height
    with VideoFile(dataset.file(index)) as file:
        seconds = float(np.ptp(video.times)) * count / max(count - 1, 1)
        return count, seconds, file.width, file.height


def measure_image(dataset, index):
    height, width = open_image(dataset.root, dataset.names[index]).shape[:2]
    return 1, None, width, height


# Where a caption comes from is counted, because it cannot be seen in the loss: if 3,000 of 3,000 come from
# folders' names, a table was not found, and the model will learn to paint "videos".
def report(what, root, open_it, measure):
    """Try each file of one data set, print what was found; returns some clips with their labels."""
    try:
        dataset = open_it()
    except UserError as error:
        print(f"{what}: {error}")
        return []
    measured, sources, said, shown = [], Counter(), set(), []
    picked = set(np.linspace(0, len(dataset) - 1, 8).astype(int).tolist())
    for index in tqdm(range(len(dataset)), desc=f"{len(dataset)} files"):
        name = dataset.names[index]
        try:
            captions, source = dataset.texts.lookup(index)
            about = measure(dataset, index)
            item = dataset.read(index, np.random.default_rng([dataset.seed, 0, index, index]))
        except Unusable as reason:
            dataset.skipped[name] = str(reason)
            continue
        measured.append(about)
        sources[source] += 1
        said.update(captions)
        if index in picked:
            shown.append((item["video"], f"{name}: {captions[0]}"))
    print(f"{len(measured)} of {len(dataset)} {what} in {root} are usable")
    lines = {}
    if measured:
        lines |= numbers_of(measured)
        lines["captions"] = ", ".join(f"{count} from {source}" for source, count in sources.most_common())
        if len(said) == 1 and len(measured) > 1:
            lines["captions"] += f'; all of them are "{said.pop()[:60]}"'
        groups = sorted(set(map(class_name, dataset.places)) - {""})
        if groups:
            names = textwrap.shorten(", ".join(groups), 60)
            lines["classes"] = f"{len(groups)}, if folders are classes: {names}"
    for name, text in (lines | dataset.texts.tables).items():
        print(f"  {name:10} {text}")
    for name, reason in itertools.islice(dataset.skipped.items(), 20):
        print(f"  broken     {name}: {reason}")
    if len(dataset.skipped) > 20:
        print(f"  broken     {len(dataset.skipped) - 20} more")
    return shown


# A median beside the ends, since one video of three hours among clips of ten seconds says nothing about them.
# The commonest rates and sizes are counted: 60 frames a second among 25 is a --stride or --fps to think of,
# and 320 x 180 among 1080p is a video that a crop of 256 will enlarge.
def numbers_of(measured):
    """Hours, frames, rates and sizes, in words."""
    lines = {}
    timed = [(frames, seconds) for frames, seconds, *_ in measured if seconds]
    if timed:
        rates = Counter(f"{frames / seconds:.4g} a second" for frames, seconds in timed)
        total = sum(seconds for _, seconds in timed)
        lines["hours"] = f"{total / 3600:.3g} ({total:,.0f} seconds)"
        lines["rates"] = commonest(rates)
    counts = [frames for frames, *_ in measured]
    if max(counts) > 1:
        lines["frames"] = f"{min(counts)} to {max(counts)}, median {np.median(counts):g}"
    lines["sizes"] = commonest(Counter(f"{width} x {height}" for *_, width, height in measured))
    return lines


def commonest(counts):
    """In words: 25 a second (12), 30 a second (3)."""
    words = [f"{what} ({count})" for what, count in counts.most_common(6)]
    if len(counts) > 6:
        words.append("...")
    return ", ".join(words)


# A folder may hold videos, and images that are none of theirs: both are tried, as --data and --images would
# take them. What is in neither, and why, is printed last: nothing of a folder goes without a word.
def scan(root, split, open_clips, open_images, sheet):
    """Try every file of a folder; print what is usable, what is skipped and why; save a contact sheet."""
    source = list_source(root, split)
    source.refuse_empty()
    folders = source.folders
    if not os.path.isdir(source.root):                      # an archive is read as images
        folders = []
    in_folders = [name for name in source.images if (name.rpartition("/")[0] or ".") in folders]

    shown = []
    if source.split:
        print(f"of {root}, only what is for {source.split}; give one of its folders to choose another")
    if source.videos or folders or source.shards:
        shown += report("videos", root, open_clips, measure_video)
    if len(in_folders) < len(source.images) or source.covers and not source.images:
        shown += report("images", root, open_images, measure_image)
    elif in_folders:
        print(f"as --images, the frames of these {len(folders)} folders are {len(in_folders)} images")

    left_out = dict(source.left_out)
    if source.videos:
        left_out |= dict.fromkeys(source.covers, "an image beside videos")
    for name, reason in itertools.islice(left_out.items(), 20):
        print(f"  left out   {name}: {reason}")
    if others := source.passed_over():
        print(f"  passed by  {count_endings(others)}")
    if shown:
        clips, labels = zip(*shown)
        contact_sheet(sheet, clips, [textwrap.shorten(label, 90) for label in labels], side=64)
        print(f"some of them are in {sheet}")
