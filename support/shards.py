"""shards.py - WebDataset shards: clips by the thousand in .tar files, read in place by an index of offsets.

A shard is what video2dataset writes: the files of a sample stand one after another, under one name but for
their endings, each behind a header of 512 bytes that says its name and its size:

    00000.tar    000000000.json  000000000.mp4  000000000.txt  000000001.json  000000001.mp4  ...
                                 ^ offset, size

Mostly shards are read as streams, in order, through a buffer that shuffles a little. That is quick on a
network's disks, but what a step sees then hangs on the buffer, the workers and all that went before, so a run
that was stopped cannot be taken up where it was. Here all headers are read once, at the start (10 to 25 seconds of
CPU for a million samples, shared by up to eight processes; on a cold disk about a seek for each sample). After
that a sample is a seek and a read, and item(index, epoch) is a function of numbers, as for files.

Kept are four whole numbers a sample, 32 bytes: where its video and its .txt lie, and how long they are. Of its
name nothing: it is read again where a message needs it."""

import logging
import mmap
import os
import signal
import struct
import sys
from multiprocessing import Pool

import numpy as np

from support.cli import UserError
from support.folders import CAPTION_BYTES, decode
from support.video_io import VIDEOS, Unusable

log = logging.getLogger("data")

BLOCK = 512
MAX_BYTES = 1 << 28               # of a sample's video, which is read whole


class Shards:
    """The samples of a root's .tar files: for each a name, captions, and the bytes of a video."""

    def __init__(self, root, names):
        self.root, self.shards = root, names
        found = []
        for name, (rows, problem) in zip(names, read_all_indexes(root, names)):          # (n,4)
            if problem:
                log.warning("%s/%s: %s; only the %d samples before are used", root, name, problem, len(rows))
            found.append(rows)
        self.rows = np.concatenate(found)                                                # (n,4)
        self.first = np.cumsum([0, *map(len, found)])                                    # (shards+1,)
        if not len(self.rows):
            raise UserError(f"no sample with a video in the {len(names)} shards (.tar) of {root}")

    def __len__(self):
        return len(self.rows)

    def shard_of(self, index):
        """The name of the shard that a sample lies in."""
        return self.shards[int(np.searchsorted(self.first, index, "right")) - 1]

    def __getitem__(self, index):
        """A sample's name, for messages: 00003.tar: 000003012.mp4."""
        try:
            header = self.read_at(index, self.rows[index, 0] - BLOCK, BLOCK)
        except Unusable:                                    # told where the sample itself is read
            header = b"?"
        return f"{self.shard_of(index)}: {header[:100].split(bytes(1))[0].decode(errors='replace')}"

    def read_at(self, index, offset, size):
        try:
            with open(os.path.join(self.root, self.shard_of(index)), "rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise Unusable(f"its shard cannot be read ({error.strerror})")

    def video(self, index):
        """The bytes of a sample's video."""
        offset, size = self.rows[index, :2]
        if size > MAX_BYTES:
            raise Unusable(f"{size >> 20} MB: too large")
        return self.read_at(index, offset, size)

    def lookup(self, index):
        """([captions], where they are from): its .txt, or nothing."""
        offset, size = self.rows[index, 2:]
        if not size:
            return [""], "nowhere"
        if size > CAPTION_BYTES:
            raise Unusable("its caption is too large")
        try:
            return [" ".join(decode(self.read_at(index, offset, size)).split())], "a .txt beside it"
        except ValueError as error:
            raise Unusable(f"its caption cannot be read ({error})")


# Python's tarfile knows every kind of .tar there is, and takes 50 microseconds a header for it: five minutes
# for the six million of a million samples. What WebDataset writes is one kind, whose header holds all that is
# wanted at fixed places, so they are read here, in three microseconds each.
HEADER = struct.Struct("100s 24x 11s 21x c 100x 5s")        # name; size, to the base 8; kind; "ustar"
SLOTS = {b"txt": 2} | {ending[1:].encode(): 0 for ending in VIDEOS}      # where in a sample's row


def read_all_indexes(root, names):
    """What read_index() says of each shard, in order."""
    paths = [os.path.join(root, name) for name in names]
    if len(paths) < 16:
        yield from map(read_index, paths)
        return
    with Pool(min(8, os.cpu_count()), be_quiet) as pool:
        yield from pool.imap(read_index, paths, 4)
        pool.close()               # not ended by SIGTERM, which they may have learned to note (cli.py)
        pool.join()


# Ctrl-C is for the process that asks, which then ends the others. If it is killed, a worker's answer finds
# nobody: that trace is hidden, too.
def be_quiet():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stderr = open(os.devnull, "w")


def read_index(path):
    """((n,4) offsets and sizes of video and text of each sample with a video, what is wrong or "")."""
    rows, last, problem = [], None, ""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if hasattr(mmap, "MADV_RANDOM"):              # else the system reads ahead: the whole shard
                data.madvise(mmap.MADV_RANDOM)
            for stem, slot, offset, size in members(data):
                if stem != last or rows[-1][slot + 1]:
                    last = stem
                    rows.append([0] * 4)
                rows[-1][slot:slot + 2] = offset, size
    except (OSError, ValueError) as error:
        problem = str(error)
    return np.array([row for row in rows if row[1]], np.int64).reshape(-1, 4), problem


def members(data):
    """(its sample's name, slot, offset, size) of each file of a .tar that we read. ValueError, and nothing after
    it is read: where it is cut, or no .tar, or a name is too long."""
    at, end = 0, len(data)
    while at + BLOCK <= end:
        name, size, kind, magic = HEADER.unpack_from(data, at)
        if not name[0]:                                       # a block of zeros: the end
            return
        if magic != b"ustar" or b"-" in size:
            raise ValueError(f"no .tar from byte {at} on")
        size, offset = int(size, 8), at + BLOCK
        at = offset + (size + BLOCK - 1) // BLOCK * BLOCK
        if at > end:
            raise ValueError(f"cut at byte {end}")
        # Notes on the next file (kind x: Python's, L: GNU's) may hold a name that its header cuts.
        if kind == b"L" or kind == b"x" and data.find(b" path=", offset, offset + size) >= 0:
            raise ValueError("a name that is too long, or not ASCII: give it a short one")
        if kind in (b"0", bytes(1)):
            stem, _, ending = name.rstrip(bytes(1)).rpartition(b".")
            slot = SLOTS.get(ending.lower())
            if slot is not None:
                yield stem, slot, offset, size
