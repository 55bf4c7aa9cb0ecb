"""folder_report.py - python data.py FOLDER: how many hours, which sizes and rates, whence the captions,
and what is broken.

Each file is tried as a training on clips of 16 frames will try it, by the data sets of data.py, which are
handed in, and which say themselves what they skip, and why."""

from collections import Counter

import numpy as np
from tqdm import tqdm

from support.cli import UserError, printable
from support.folders import open_image
from support.video_io import Unusable, VideoFile


# Hours come from time stamps and not from headers, whose lengths and rates are often guesses; a folder of
# frames has none, so it counts in frames alone.
def measure(dataset, index):
    """(frames, seconds or None, width, height)."""
    if frames := dataset.frames_of(index):
        height, width = open_image(dataset.root, frames[0]).shape[:2]
        return len(frames), None, width, height
    _, times = dataset.times(index)
    seconds = float(np.ptp(times)) * len(times) / max(len(times) - 1, 1)
    with VideoFile(dataset.file(index)) as file:
        return len(times), seconds, file.width, file.height


# Where a caption comes from is counted, because it cannot be seen in the loss: if 3,000 of 3,000 come from
# folders' names, a table was not found, and the model will learn to paint "videos".
def report(what, kind, source, how):
    """Try each file of one data set, print what was found, or why a training would not open it."""
    try:
        dataset = kind(source, how)
    except UserError as error:
        print(f"{what}: {error}")
        return
    measured, sources = [], Counter()
    for index in tqdm(range(len(dataset)), desc=f"{len(dataset)} files"):
        try:
            _, source = dataset.texts.lookup(index)
            about = measure(dataset, index)
            dataset.read(index, np.random.default_rng([dataset.seed, 0, index, index]))
        except Unusable as reason:
            dataset.skip(index, reason)
            continue
        measured.append(about)
        sources[source] += 1
    print(f"{len(measured)} of {len(dataset)} {what} in {dataset.root} are usable")
    timed = [(frames, seconds) for frames, seconds, *_ in measured if seconds]
    if timed:
        total = sum(seconds for _, seconds in timed)
        print(f"  hours      {total / 3600:.3g} ({total:,.0f} seconds)")
        print(f"  rates      {commonest(f'{frames / seconds:.4g} a second' for frames, seconds in timed)}")
    print(f"  sizes      {commonest(f'{width} x {height}' for *_, width, height in measured)}")
    told = ", ".join(f"{count} from {source}" for source, count in sources.most_common())
    print(f"  captions   {printable(told)}")


# The commonest rates and sizes are counted: 60 frames a second among 25 is a --stride or --fps to think of,
# and 320 x 180 among 1080p is a video that a crop of 256 will enlarge.
def commonest(values):
    """Six of them, in words: 25 a second (12), 30 a second (3)."""
    return ", ".join(f"{what} ({count})" for what, count in Counter(values).most_common(6))


# A folder may hold videos, and images that are none of theirs: both are tried, as --data and --images would
# take them. What is in neither is printed last: nothing of a folder goes without a word.
def scan(source, clips, images, how):
    """Try every file of a Source; print what is usable, and what is passed by."""
    source.refuse_empty()
    frames = {name for names in source.folders.values() for name in names}
    if source.videos or source.folders or source.shards:
        report("videos", clips, source, how)
    if set(source.images) - frames:
        report("images", images, source, how)
    elif frames:
        print(f"as --images, the frames of {len(source.folders)} folders are {len(frames)} images")
    if others := source.passed_over():
        told = ", ".join(f"{count} {ending}" for ending, count in others.most_common(8))
        print(f"  passed by  {printable(told)}")
