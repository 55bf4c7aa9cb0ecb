"""data.py - what we train on: the toy world's clips, folders of videos and images, and how they are met.
Paper    VideoDiT 4.1: clips at the video's own rate, about 25 a second, the long side at most 1080 before the
         crop; WebVid, Pexels, JourneyDB. Latte 4.1: 16 frames, mirrored at random, every 3rd (4.2);
         FaceForensics, SkyTimelapse, UCF101, Taichi-HD
Shapes   an item is {"video": (3,T,H,W) in [-1,1], "caption": str, "place": str}; a batch stacks them to
         (B,3,T,H,W)        B clips, T frames, C channels, H W pixels or latent size
Time     item(index, epoch) is a pure function of (seed, epoch, index) and of the files: there is no loader
         state to save, so any step can be resumed, on any number of ranks
Differs  Latte reads whole files, dies on a short one and calls 0,3,..,21,25,28 a stride of 3; here a broken
         or short file is skipped, counted and named, and a stride is a stride
Reads    after latte.py, before train.py
Run me   python data.py              # CPU, 5 s: two ranks share an epoch
         python data.py FOLDER       # what of a folder can be trained on, what cannot, and why

Training wants one thing of this file: a batch, at any step, on any of many machines, and the same one if the
run is started again.

    batch = {"video":   (B,3,T,H,W) in [-1,1],                an image is a video with T = 1
             "caption": ["a red cat jumping in snow", ...],   B texts
             "place":   ["cats/0017", ...]}                   where each lies: its class is a folder's name

People have another thing: a folder. Between the two lie four questions, and each is answered in one place, as
a function of numbers, never of luck: two runs that disagree about what they saw cannot be compared, and a
crash could not be undone.

    what is a video?                  folders.py    a file, or a folder of numbered frames
    what is said about it?            folders.py    a .txt beside it, a row of a table, its folder's name
    which frames of it, which crop?   read(index, rng), here: drawn anew on each visit
    in which order do clips come?     order.py      schedule: step, rank -> (index, epoch) of each clip

    step, rank -- schedule --> (index, epoch) -- item --> {"video", "caption", "place"} -- collate --> a batch
                                                   |
                                as it is, every visit another window (what the papers do)
                                or through the VAE once, and kept: latent_cache.py"""

from support.cli import FlagParser, UserError, polite    # first: see there

import dataclasses
import functools
import os
import re
import sys
from dataclasses import dataclass

import numpy as np

from support import folder_report, toy_world
from support.folders import (Captions, choose_caption, describe, list_classes, list_source, nothing_of,
                             open_image, stem_of)
from support.order import deal, log, mix
from support.shards import Shards
from support.video_io import (IMAGES, ROUNDING, VIDEOS, Unusable, crop_clip, nearest_in_time,
                              read_some, scan_times, to_video)


# -------------------------------------------------------------------------------------------- what a batch is

# A data set here is whatever has a length and item(index, epoch); a batch is some of its items, stacked. That
# is all that a training asks of it, so to look at what a network will see takes three lines:
#
#     clips = data.open_source("toy", data.ClipConfig(frames=16, size=64))
#     item = clips.item(7, epoch=0)                        # video (3,16,64,64), and what is said of it
#     batch = next(order.batches(clips, 4, start_step=100))     # video (4,3,16,64,64), the 101st of a run
#
# The toy world (toy_world.py) has no files: a clip is drawn when it is asked for, from its number. So it
# shows in its simplest form what every data set has to offer besides: words(index, epoch) for the caption
# alone, captions for all of them, and identity(), which says what the data are.

class ToyClips:
    """Clips drawn on the fly (toy_world.py). count=None: a million, more than a run ever sees."""

    def __init__(self, kind="video", frames=16, size=64, count=None, seed=0, drop=0.4, *,
                 vocabulary="full"):
        self.kind = kind
        self.frames = frames
        self.size = size
        self.count = count or 1 << 20
        self.seed = seed
        self.drop = drop
        self.vocabulary = vocabulary
        self.classes = toy_world.VOCABULARIES[vocabulary].subjects

    def __len__(self):
        return self.count

    def item(self, index, epoch=0):
        """The index-th clip of the world. Another epoch says other words of the same clip."""
        spec, caption = self.describe(index, epoch)
        video = to_video(toy_world.render(spec, self.frames, self.size))                 # (3,T,H,W)
        return {"video": video, "caption": caption, "place": f"{spec.subject}/{index}", "spec": spec}

    def describe(self, index, epoch=0):
        """Spec and caption of the index-th clip, nothing drawn yet."""
        spec = toy_world.sample_spec(self.seed, index, self.kind, self.vocabulary)
        if self.frames == 1:
            spec = dataclasses.replace(spec, motion="")           # nobody sees motion in a still
        toss = int(np.random.default_rng([self.seed, epoch, index]).integers(1 << 31))
        return spec, toy_world.caption(spec, toss, self.drop)

    def words(self, index, epoch=0):
        """Its caption alone: what LatentCache asks for."""
        return self.describe(index, epoch)[1]

    @functools.cached_property
    def captions(self):
        return [self.words(index) for index in range(self.count)]

    def identity(self):
        """What these clips are: equal for two data sets that give equal clips."""
        about = {"data": f"toy {self.kind}", "clips": self.count, "frames": self.frames, "size": self.size,
                 "seed": self.seed, "drop": self.drop, "world": toy_world.VERSION}
        if self.vocabulary != "full":
            about["vocabulary"] = self.vocabulary
        return about


# ------------------------------------------------------------------------------------ what all files share

# What takes the place of a broken video? If the batch simply had one clip less, ranks would differ in size;
# if the next one were taken, a clip behind a broken one would be seen twice as often. So another is drawn,
# from the same key as everything else. After a thousand broken files in a row the folder is what is broken.
#
#     index 5, epoch 2:    5 is broken, the key's first draw is 91: broken, too; its second is 17: that is shown
#     index 5, epoch 3:    5 is broken, another key, another clip
#     index 17:            as often as ever, and now and then in another's place
class Files:
    """What ClipFolder and ImageFolder share. A subclass sets names (one a file), texts (lookup(index) gives its
    captions), what and decisive (see identity), and writes read(index, rng) -> {"video": (3,T,H,W), ...}."""

    def __init__(self, root, config):
        self.source = list_source(root, config.split)
        self.root, self.seed = self.source.root, config.seed
        self.config = dataclasses.replace(config)
        self.skipped = {}                                    # name -> why it cannot be used

    def check(self):
        """What is said of a folder when it is opened: nothing usable, or one caption for all of 32 files, which
        teaches no word; mostly a table was meant that has not been found."""
        self.item(0)
        some = {int(place) for place in np.linspace(0, len(self) - 1, 32)}
        said = {self.words(index) for index in some}
        if len(some) > 1 and len(said) == 1:
            log.warning('%s: all of the captions looked at are "%s"; docs/data.md says where others may stand',
                        self.root, said.pop()[:60])

    def __len__(self):
        return len(self.names)

    def item(self, index, epoch=0):
        """The item, or, when its file cannot be used, another one: which is drawn from (seed, epoch, index),
        so that every rank, worker and resumed run puts the same clip in its place."""
        seed = int(mix(self.seed, epoch, index)[0])
        candidate = index
        for turn in range(min(len(self) + 1, 1000)):
            rng = np.random.default_rng([self.seed, epoch, index, candidate])
            try:
                captions, _ = self.texts.lookup(candidate)
                caption = choose_caption(captions, [self.seed, epoch, candidate])
                place = stem_of(self.names[candidate])
                return {**self.read(candidate, rng), "caption": caption, "place": place}
            except Unusable as reason:
                self.skip(candidate, reason)
            candidate = int(deal([turn], len(self), seed)[0][0])        # another one, from the same key
        reasons = [f"{name}: {reason}" for name, reason in self.skipped.items()]
        raise UserError(f"nothing usable in {self.root}: all {len(reasons)} files tried were skipped; "
                        f"{'; '.join(reasons[:3])}")

    # A skipped file is tried again on its next visit: a damaged video may be whole in another window, and what
    # a visit shows must not depend on those before.
    def skip(self, index, reason):
        """Note it, and say it once."""
        name = self.names[index]
        if name not in self.skipped:
            self.skipped[name] = str(reason)
            log.warning("skipped %s in %s: %s (%d of %d files skipped so far)",
                        name, self.root, reason, len(self.skipped), len(self))

    # Previews and cached latents ask for words without the video. A caption that cannot be read has skipped
    # its video in training, where the reason is told; here it is only nothing to say.
    def captions_of(self, index):
        """All captions of a file; none where they cannot be read."""
        try:
            return self.texts.lookup(index)[0]
        except Unusable:
            return []

    def words(self, index, epoch=0):
        """The caption of this visit alone, without reading the video; "" where it cannot be read."""
        return choose_caption(self.captions_of(index) or [""], [self.seed, epoch, index])

    @functools.cached_property
    def captions(self):
        """All of them, of which a vocabulary is made."""
        return [caption for index in range(len(self)) for caption in self.captions_of(index)]

    @functools.cached_property
    def places(self):
        """Where each video lies: folders.py reads its class from that."""
        return [stem_of(name) for name in self.names]

    @functools.cached_property
    def classes(self):
        """The names of all classes; a label is a number of this list."""
        return list_classes(self.places)

    def identity(self):
        """What these clips are: equal for two data sets that give equal clips. A cache of latents is compared
        with it; lists for tuples, as JSON has them."""
        # "short" and "pictures" are older names: caches and states that bear them go on being taken up
        found = {"data": f"{self.what} {describe(self.source.root, self.source.names)}",
                 "short": self.config.size}
        if self.source.split:
            found["data"] += f", {self.source.split}"
        for name in self.decisive:
            value = getattr(self.config, name)
            found[name] = list(value) if isinstance(value, tuple) else value
        return found


# ----------------------------------------------------------------------------------------- a folder's videos

# Of a video of a minute, training sees a second. Which one, and which crop of it, is drawn anew on each
# visit: that is why a thousand videos are more than a thousand clips, and why the numbers (seed, epoch,
# index) are the key of the draw, so that the same visit shows the same clip for ever.
#
#     frames of a video   . . . . . . . . . . . . . . . . . . .
#     part = (0, 0.75)    \_____________________/                        what is left is for a test
#     stride 3, 4 frames        x     x     x     x                       by number: Latte 4.2
#     fps 10                    x   x    x    x                           by time stamp: any video's rate

REMEMBERED = 10_000       # videos whose frames' times are kept, in each process


@dataclass
class ClipConfig:
    """What a clip is, of a video that is longer and wider."""
    frames: int = 16
    size: int = 64
    stride: int = 1               # every stride-th frame as it comes
    fps: float | None = None      # instead: the frames nearest to that many a second, by time stamp
    part: tuple = (0.0, 1.0)      # of each video that may be seen: (0, 0.75) to train on, (0.75, 1) to test
    crop: str = "random"          # or "center": where in the frame the crop lies
    long: int | None = None       # the long side before the crop, at most (VideoDiT 4.1: 1080); None: the
                                  # short side is `size`, so that the crop sees all it can
    flip: bool = False            # mirror half of the clips
    seed: int = 0
    split: str = "train"          # of a root that holds train and test


class ClipFolder(Files):
    """Clips of the videos and folders of frames at any depth under a root, another window on each visit."""
    what = "clips"
    decisive = ("frames", "size", "stride", "fps", "flip", "part", "crop", "long", "seed")

    def __init__(self, root, config):
        super().__init__(root, config)
        source = self.source
        self.remembered = {}                                 # index -> its frames' times
        if source.shards:
            self.names = self.texts = Shards(self.root, source.shards)
        else:
            self.names = sorted([*source.videos, *source.folders])
            self.texts = Captions(self.root, source.names, self.names)
        if not len(self.names):
            nothing_of(self.root, source.names, (*VIDEOS, "folders of numbered frames", ".tar"), "videos")
        self.check()

    # The whole way of a clip, in the order in which things are drawn, which must never change: the window
    # first, then the corner of the crop, then whether it is mirrored. All of a clip's frames share one crop
    # and one mirror: a crop that moved would be a camera that shakes.
    def read(self, index, rng):
        """One clip of one video, as rng has it, or Unusable."""
        pts, times = self.times(index)
        clip = self.decode(index, pts, self.window(times, rng))                          # (T,h,w,3)
        how = self.config
        return {"video": to_video(crop_clip(clip, how.size, how.crop, how.flip, rng))}   # (3,T,H,W)

    # By number or by time? Latte counts frames: every third, whatever their rate, so a video of 60 a second
    # moves at half the speed of one of 30. VideoDiT keeps "the original frame rate of approximately 25". With
    # fps the clip is asked for by the clock (video_io.py, nearest_in_time).
    def window(self, times, rng):
        """Numbers of the frames of one clip, drawn from our part of the video."""
        how = self.config
        first, last = (round(share * len(times)) for share in how.part)
        ours = times[first:last]
        if how.fps is None:
            span = (how.frames - 1) * how.stride
            if len(ours) <= span:
                raise Unusable(f"{len(ours)} frames, {span + 1} needed")
            start = rng.integers(len(ours) - span)
            return first + start + how.stride * np.arange(how.frames)                    # (T,)
        if times.dtype.kind == "i":
            raise Unusable("a folder of frames knows no seconds: give --stride instead of --fps")
        seconds = (how.frames - 1) / how.fps
        starts = np.flatnonzero(ours + seconds <= ours[-1:] + ROUNDING)
        if not len(starts):
            have = np.ptp(ours) if len(ours) else 0
            raise Unusable(f"{have:.2f} seconds, {seconds:.2f} needed")
        moments = ours[rng.choice(starts)] + np.arange(how.frames) / how.fps             # (T,)
        return first + nearest_in_time(ours, moments)                                    # (T,)

    def decode(self, index, pts, numbers):
        """These frames, of a file (pts: its time stamps) or of a folder."""
        short, long = self.config.size, self.config.long
        names = self.frames_of(index)
        if not names:
            return read_some(self.file(index), pts, numbers, short, long)                # (T,h,w,3)
        images = [open_image(self.root, names[number], short, long) for number in numbers]
        if len({image.shape for image in images}) > 1:
            raise Unusable("its frames differ in size")
        return np.stack(images)                                                          # (T,h,w,3)

    def frames_of(self, index):
        """The images of a folder of frames; None for a file."""
        if self.source.folders:
            return self.source.folders.get(self.names[index])

    def file(self, index):
        """What a VideoFile is made of: a path, or the bytes of a video in a shard."""
        if self.source.shards:
            return self.names.video(index)
        return os.path.join(self.root, self.names[index])

    # A video is looked at when it is first asked for, not when the folder is opened: a million files would take
    # a day to open. What was found is kept in a queue of bounded length: a million videos pass through it, and
    # what fell out is looked at again when its turn comes. A list of times is 16 bytes a frame: 7 kB for 18
    # seconds at 25 a second, so 7 GB for a million videos, in each of the loader's processes, if nothing were
    # ever forgotten. Pixels are not kept: a clip costs the frames since the last key frame, on each visit, and
    # --workers decode ahead.
    def times(self, index):
        """(pts, seconds) of a video's frames, as scan_times has them; of a folder's, whole numbers."""
        if index not in self.remembered:
            if len(self.remembered) >= REMEMBERED:
                self.remembered.pop(next(iter(self.remembered)))                         # the oldest
            if frames := self.frames_of(index):
                self.remembered[index] = None, np.arange(len(frames))
            else:
                self.remembered[index] = scan_times(self.file(index))
        return self.remembered[index]


# ---------------------------------------------------------------------------------------------------- images

# An image is a clip of one frame. Both papers train on them beside clips (VideoDiT A.2, Latte 3.3.4): an
# image costs a sixteenth of a clip, and there are more of them, and better described. There is no window to
# draw, only the crop and the mirror; everything else is a clip's way, with the same keys.

class ImageFolder(Files):
    """Images at any depth under a folder, as clips of one frame."""
    what = "pictures"
    decisive = ("size", "flip", "crop", "long", "seed")

    def __init__(self, root, config):
        super().__init__(root, config)
        self.names = self.source.images
        if not self.names:
            nothing_of(self.root, self.source.names, IMAGES, "images")
        self.texts = Captions(self.root, self.source.names, self.names)
        self.check()

    def read(self, index, rng):
        """One image, cropped as rng has it, or Unusable."""
        how = self.config
        image = open_image(self.root, self.names[index], how.size, how.long)             # (h,w,3)
        return {"video": to_video(crop_clip(image[None], how.size, how.crop, how.flip, rng))}    # (3,1,H,W)

    def frames_of(self, index):
        """The image, as a folder's frames are told by ClipFolder."""
        return [self.names[index]]


# ------------------------------------------------------------------------------ what --data and --images name

# One question decides what a folder is: does the caller want videos or images?
#
#     asked for by           frames   of a folder that holds both it takes
#     --data                 16       the videos
#     --data (stage vae)     1        the videos, and a random frame of each
#     --images               1        the images; the videos' frames if there are at least as many videos
def open_source(name, config, count=None, kind=None):
    """What --data (kind "video") and --images (kind "image") mean: "toy" or "toy-small", a folder, or several
    with their weights.

    One frame of --data is a frame of a video, as long as there are videos; --images are images, as long as
    there are more of them than videos: one cover.jpg beside a thousand videos is not a data set."""
    sources = split_sources(name)
    if len(sources) > 1:
        opened = [open_source(path, config, count, kind) for path, _ in sources]
        return Mixture(opened, [share for _, share in sources])
    if name in toy_world.WORLDS:
        return ToyClips("video" if config.frames > 1 else "image", config.frames, config.size, count,
                        config.seed, vocabulary=toy_world.WORLDS[name])
    if config.frames > 1:
        return ClipFolder(name, config)
    source = list_source(name, config.split)
    if kind == "video":
        as_videos = source.videos or source.folders or source.shards
    else:
        as_videos = len(source.videos + source.shards) >= len(source.images)
    if not as_videos:
        return ImageFolder(source, config)
    if kind != "video" and source.images:
        log.warning("%s holds %d videos or shards and %d images: single frames of the videos are taken", name,
                    len(source.videos + source.shards), len(source.images))
    return ClipFolder(source, config)


# A wrong path is told before anything is trained, by the flag that holds it.
def check_source(flag, name):
    """UserError if nothing to train on lies there."""
    try:
        for path, _ in split_sources(name):
            if path not in toy_world.WORLDS:
                list_source(path).refuse_empty()
    except UserError as error:
        raise UserError(f"{flag}: {error}")


# ------------------------------------------------------------------------------------------- several sources

# One set is large and its videos small, another the reverse (WebVid and Pexels in VideoDiT 4.1), and a run
# may want of each a share that is not its size. Nothing is tossed for it. An epoch has places for each
# source, in the ratio of the weights, and as many as let every source be met whole; order.py shuffles the
# places. What stands in them is the source's items in turn, round and round, each round an epoch of its own:
#
#     --data A:3 B:1                        A has 4 videos, B has 2
#     places of an epoch    0 1 2 3 4 5 | 6 7
#     of them in epoch 0    A's 0 1 2 3 0 1 | B's 0 1
#     of them in epoch 1    A's 2 3 0 1 2 3 | B's 0 1
SOURCE = re.compile(r"(?:^| )(.+?):(\d+\.?\d*|\.\d+)(?= |$)")       # PATH:WEIGHT, separated by spaces


def split_sources(name):
    """[(path, share), ...] of "A:3 B:1"; of a single path, that one."""
    found = SOURCE.findall(str(name))
    if len(found) < 2 or os.path.exists(name):
        return [(name, 1.0)]
    total = sum(float(weight) for _, weight in found)
    for path, weight in found:
        if path in toy_world.WORLDS or float(weight) == 0:
            raise UserError(f"{path}:{weight} among several: each is a folder with a weight above 0")
    return [(path, float(weight) / total) for path, weight in found]


class Mixture:
    """Several data sets as one, each with its share of an epoch's items."""

    def __init__(self, sources, shares):
        self.sources, self.shares = sources, shares
        length = max(len(source) / share for source, share in zip(sources, shares))
        self.counts = [round(length * share) for share in shares]            # places of each in an epoch
        self.ends = np.cumsum(self.counts)

    def __len__(self):
        return int(self.ends[-1])

    def find(self, index, epoch):
        """(source, index in it, its epoch) of an item."""
        number = int(np.searchsorted(self.ends, index, "right"))
        source, count = self.sources[number], self.counts[number]
        visit = epoch * count + index - int(self.ends[number]) + count
        return source, visit % len(source), visit // len(source)

    def item(self, index, epoch=0):
        source, own_index, own_epoch = self.find(index, epoch)
        return source.item(own_index, own_epoch)

    def words(self, index, epoch=0):
        source, own_index, own_epoch = self.find(index, epoch)
        return source.words(own_index, own_epoch)

    @functools.cached_property
    def captions(self):
        return [caption for source in self.sources for caption in source.captions]

    @functools.cached_property
    def classes(self):
        return tuple(sorted({name for source in self.sources for name in source.classes}))

    def identity(self):
        """What these clips are: every source's, and its share."""
        each = [source.identity() for source in self.sources]
        told = [f"{share:.4g} of {about['data']}" for share, about in zip(self.shares, each)]
        return {"data": "; ".join(told), "sources": each}


# ---------------------------------------------------------------------------------------- a folder's report

# Before a week on eight GPUs one wants to know what is in the folder. So each file is tried, as training will
# try it, by the same functions (support/folder_report.py): what is called usable there is usable here.
def main():
    parser = FlagParser(description="what of a folder can be trained on")
    parser.add_argument("folder", help="videos, folders of frames, images or .tar shards at any depth, or "
                        "a single file of these")
    source = list_source(parser.parse_args().folder)
    folder_report.scan(source, ClipFolder, ImageFolder, ClipConfig())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        polite(main)
    else:
        from demos.show_data import main as show

        polite(show)
