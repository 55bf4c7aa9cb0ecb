"""folders.py - what lies in people's folders: which files are videos, what is said of them, and their class.
Paper    VideoDiT 4.1 trains on WebVid, Pexels, JourneyDB; Latte 4.1 on FaceForensics, SkyTimelapse, UCF101
         and Taichi-HD. This file reads all of them as they are handed out, and yours (docs/data.md)
Shapes   names, relative to a folder, with / between; a caption is a str, a class a number
Safety   nothing here hangs; what is left out is said when the folder is opened, or (images beside videos, files
         of other kinds) counted by python data.py FOLDER
Differs  the published loaders want one layout each, prepared by scripts; a wrong layout is an empty list, a
         wrong row a caption that never arrives

    a folder, or a single clip.mp4 (of .tar shards: shards.py)
       |
       |  list_files      regular files with readable names; what is left out, and why
       |  choose_split    of a root that holds train and test: one of them
       v
    names -- sort_media --> videos | folders of numbered frames | images
       |
       +-- Captions    a .txt beside it > a row of a table > its folder's name > its own name
       +-- class_name  the folder it lies in, as a number: class_at, and label_of for what a person types

Why so much care for so dull a thing? Because here a mistake is not seen. A network trained on wrong captions
trains as well as one on right ones, its loss falls, its samples move; only that they do not do what they are
told, and that is found out after a week, and blamed on the network. So the rule of this file is: whatever is
read is read as it was meant, or refused with its name and its line, or left out and counted."""

import csv
import json
import logging
import os
import re
import unicodedata
import zlib
from collections import Counter, deque
from pathlib import Path

import numpy as np

from support.cli import UserError, printable
from support.video_io import IMAGES, VIDEOS, Unusable, read_image


log = logging.getLogger("data")


def make_printable(record):
    """A name or a table's cell may hold codes that a terminal obeys."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True


log.addFilter(make_printable)


# --------------------------------------------------------------------------------------------------- files

# Folders that grew over years hold everything: links that lead in circles, pipes that wait for ever for
# somebody to write, names in an encoding that nobody remembers, folders that one may not enter. None of it may
# stop a run or hang it, and none of it may vanish without a word. So there is one function that lists files:
# what it returns are regular files with readable names, and of the others it says how many there are, and why.

# Three traps are closed by looking before opening. A folder is known by its number on the disk (st_ino), so
# a link that leads back is seen to, whatever it is called. A pipe is told from a file by its kind, without
# touching it. And a name that is not UTF-8 is one that Python can hold and neither print nor store in JSON:
# better to say so once than to fail in the log line about it, in a worker, at night.

# Systems leave their notes beside people's files: .DS_Store, ._clip.mp4 (a Mac's notes on clip.mp4, with an
# ending that promises a video), __MACOSX from archives. A leading dot says "not for you", and is obeyed.

# Folders before links, links last: so a video that two ways lead to is called by its own name, whichever
# comes first in the alphabet, and on two machines by the same.
def list_files(root):
    """Every regular file at any depth under a folder: sorted, relative to the root. Hidden files and folders
    (.DS_Store, ._clip.mp4, __MACOSX) are nobody's data. Links are followed last, and no folder is entered
    twice: so links to "." end, and a file that two names lead to is called by its real one."""
    if not os.path.isdir(root):
        what = "no folder, video, image or .tar" if os.path.exists(root) else "not there"
        raise UserError(f"{root} is {what}; give the path of a folder (--data and --images take 'toy', "
                        "too, and several folders, PATH:WEIGHT each, weights above 0)")
    todo, entered, names, left_out = deque([""]), set(), [], {}
    while todo:
        folder = todo.popleft()
        try:
            state = os.stat(os.path.join(root, folder))
            if (state.st_dev, state.st_ino) in entered:
                left_out[folder] = "a link to a folder that is read already"
                continue
            entered.add((state.st_dev, state.st_ino))
            entries = sorted(os.scandir(os.path.join(root, folder)), key=lambda entry: entry.name)
        except OSError as error:
            left_out[folder or "."] = f"a folder that cannot be read ({error.strerror})"
            continue
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if re.search("[\ud800-\udfff]", name):         # Python's way to hold what no terminal or JSON takes
                left_out[ascii(name)] = "its name is not UTF-8"
            elif entry.is_symlink() and not os.path.exists(entry.path):         # or to itself
                left_out[name] = "a link to nothing"
            elif entry.is_dir() and entry.is_symlink():
                todo.append(name)
            elif entry.is_dir():
                todo.appendleft(name)
            elif entry.is_file():
                names.append(name)
            else:
                left_out[name] = "not a regular file"
    if left_out:
        first = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:5])
        log.warning("left out %d entries of %s: %s", len(left_out), root, first)
    return sorted(names)


# The commonest mistake of all is a wrong path, and "0 files found" helps nobody. The answer says where one
# has looked, for what, and what lies there instead: "found 360 other files (.jpg)" is a solution.
def nothing_of(root, names, extensions, what):
    """The error for a folder that holds nothing of what is asked for."""
    there = "no file at all"
    if names:
        kinds = sorted({os.path.splitext(name)[1].lower() or name for name in names})
        there = f"{len(names)} other files ({', '.join(kinds[:6])})"
    raise UserError(f"no {what} in {root} or below: looked for {' '.join(extensions)}, found {there}")


# A video comes as one file or, in SkyTimelapse, Taichi-HD and many a UCF101, as a folder of numbered images:
#
#     sky_train/VIDEO/VIDEO_1/VIDEO_frames_00000291.jpg      Archery/v_Archery_g01_c01/0001.jpg
#
# So the images of a folder are a video if they are one series: names that differ in their last number alone,
# but for one in ten. And an image beside videos is not the data set: where a folder holds at least as many
# videos as images, the images are covers; so is any that bears a video's name.

# "But for one in ten" is a choice: a cover or a thumbnail among 300 frames must not hide the video, and ten
# photographs of which six happen to be called IMG_1 to IMG_6 must not become one. Numbers are compared as
# numbers: as words, 10.jpg comes before 2.jpg, and a video plays 1, 10, 100, 101, 11. Nobody would notice in
# the loss.

def series(names):
    """These images of a folder in the order of their numbers, if they are one series; else []."""
    groups = {}
    for name in names:
        if match := re.fullmatch(r"(.*?)(\d+)(\D*)", name, re.DOTALL):
            before, number, after = match.groups()
            groups.setdefault((before, after.lower()), []).append((int(number), name))
    largest = max(groups.values(), key=len, default=[])
    if len(largest) < 2 or 10 * len(largest) < 9 * len(names):
        return []
    return [name for _, name in sorted(largest)]


# Which kind a folder is, is decided by itself, not by the tree: videos here and frames there are both found.
# And the sorting is by names alone, since a million files cannot be opened to see.
def sort_media(names):
    """(videos, {folder: its frames}, images) of list_files' names, covers left out. A folder's frames are among
    the images, too: which of the two they are is for the caller to say."""
    inside = {}                                                     # folder -> its videos and images
    for name in names:
        if name.lower().endswith(VIDEOS + IMAGES):
            inside.setdefault(name.rpartition("/")[0], []).append(name)

    videos, folders, images = [], {}, []
    for folder, media in inside.items():
        own_videos = [name for name in media if name.lower().endswith(VIDEOS)]
        stems = {stem_of(name) for name in own_videos}
        free = [name for name in media if stem_of(name) not in stems]
        videos += own_videos
        if len(free) > len(own_videos):
            images += free
            if frames := series(free):
                folders[folder or "."] = frames
    return videos, folders, images


def by_number(name):
    """Sorts 2.jpg before 10.jpg."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]


# eval.py measures folders of frames that samplers wrote, of any names at all: without videos beside them,
# every folder is a clip by agreement, and no series is looked for.
def group_frames(names, frames):
    """Images -> clips: those of one folder, in the order of their numbers (2.jpg comes before 10.jpg);
    frames=1: each is one."""
    folders = {}
    for name in names:
        folders.setdefault(name if frames == 1 else name.rpartition("/")[0], []).append(name)
    return [sorted(group, key=by_number) for group in folders.values()]


def stem_of(name):
    """A name without its ending, if that is one of a video or an image."""
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in VIDEOS + IMAGES else name


# A cache of latents, or of features, must know whether the data are still those it was made of. Reading them
# all to find out would cost more than making it anew; their names, sizes and times of writing are known to
# the file system, and change whenever a person changes a file. (A copy that loses its times is new data to
# us: a needless encoding, which is the better of the two errors.)
def describe(root, names):
    """A data set in a few letters that change when one of its videos, images or captions does: by name, by
    size, or by the time at which it was written."""
    names = [name for name in names if name.lower().endswith(VIDEOS + IMAGES + TABLES + (".txt", ".tar"))]
    return f"{Path(root).resolve().name}, {len(names)} files, {dated(root, names):08x}"


def dated(root, names):
    """A number that changes when one of these files does."""
    mark = 0
    for name in names:
        state = os.stat(os.path.join(root, name))
        mark = zlib.crc32(f"{name} {state.st_size} {state.st_mtime_ns}\n".encode(), mark)
    return mark


def stamp(path):
    """describe() of a file of weights, or a folder of them: they are too large to be read for it."""
    path = Path(path).expanduser()
    names = [path.name]
    if path.is_dir():
        names = sorted(os.path.relpath(file, path.parent) for file in path.rglob("*.safetensors"))
    return f"{path.name} {dated(path.parent, names):08x}"


# Whatever can go wrong with one file becomes Unusable, with the reason: data.py skips the file, counts it,
# and goes on. A broken image makes decoders raise almost anything, hence the bare Exception, here alone.
def open_image(root, name, short=None, long=None):
    """read_image() of one of list_files' names, or Unusable."""
    try:
        return read_image(os.path.join(root, name), short, long)
    except Unusable:
        raise
    except Exception as error:          # a broken file makes a decoder raise almost anything
        raise Unusable(f"{name} is not a readable image ({error})")


# ------------------------------------------------------------------------------------------ a source of data

# Everything above, asked once: what --data or --images names, and what of it may be used.

class Source:
    """What lies under a root, sorted.

    root       a folder; of a single file, the one it lies in
    names      all files that may be read; of these videos and images
    folders    {folder: its numbered frames}: each is a video, too
    shards     .tar files of videos (shards.py), where no videos are
    split      which part was taken, of a root that holds several"""

    def __init__(self, root, split):
        self.root, self.split = root, ""
        if root.lower().endswith(VIDEOS + IMAGES + (".tar",)) and os.path.isfile(root):
            folder, name = os.path.split(root)
            self.root, self.names = folder or ".", [name]
            if os.path.isfile(stem_of(root) + ".txt"):
                self.names.append(stem_of(name) + ".txt")
        else:
            self.names = list_files(root)
            if split:
                self.names, self.split = choose_split(root, self.names, split)
        self.videos, self.folders, self.images = sort_media(self.names)
        self.shards = [name for name in self.names if name.lower().endswith(".tar")]
        if self.videos or self.folders or len(self.shards) <= len(self.images):
            self.shards = []
        refuse_duplicates(root, self.videos, self.folders)

    def passed_over(self):
        """{ending: how many} of the files that are no data, no captions and no tables."""
        used = {*self.videos, *self.images, *self.shards}
        used |= {stem_of(name) + ".txt" for name in (*used, *self.folders)}
        rest = [name for name in self.names if name not in used and not name.lower().endswith(TABLES)]
        return Counter(os.path.splitext(name)[1].lower() or "no ending" for name in rest)

    def refuse_empty(self):
        """UserError where nothing lies that can be trained on."""
        if not (self.videos or self.images or self.shards):
            nothing_of(self.root, self.names, VIDEOS + IMAGES, "videos or images")


def list_source(root, split="train"):
    """The Source behind a folder, or one video, image or shard. split: "train", "test", "val", or "" for all of
    a root that holds several. A Source is one already."""
    if isinstance(root, Source):
        return root
    return Source(os.path.expanduser(str(root)), split)


# Published sets come with what is kept for the test beside what is trained on: sky_train and sky_test, train
# and test, or UCF101's lists. Whoever names the root means to train on the first and to be measured on the
# second; to train on both is a mistake that makes every number better.
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test",
          "val": "val", "valid": "val", "validation": "val"}
UCF_LISTS = {"trainlist01.txt": "train", "testlist01.txt": "test"}


def choose_split(root, names, split="train"):
    """(names of this split and of none, the split) where a root holds folders of several splits, or UCF101's
    lists; else (all names, ""). It is said in the log."""
    found = folder_splits(names)                                    # {folder: its split}
    lists = {UCF_LISTS[os.path.basename(name)]: name                # split -> UCF101's list of it
             for name in names if os.path.basename(name) in UCF_LISTS}
    there = sorted(set(found.values()) or lists)
    if len(there) < 2:
        return names, ""
    if split not in there:
        raise UserError(f"{root} holds {' and '.join(there)}, no {split}")
    if found:
        others = tuple(f"{folder}/" for folder, which in found.items() if which != split)
        kept = [name for name in names if not name.startswith(others)]
    else:
        # DEVIATES from Latte's published loader: it trains on all of UCF101; here, where the lists lie in the
        # root, what testlist01 names is kept for the test.

        # its lines: Archery/v_Archery_g01_c01.avi 3
        lines = Path(root, lists[split]).read_text("utf-8-sig", "replace").split("\n")
        listed = {stem_of(line.split()[0]).rpartition("/")[2] for line in lines if line.strip()}
        kept = [name for name in names
                if not name.lower().endswith(VIDEOS + IMAGES) or listed & set(stem_of(name).split("/"))]
    log.warning("%s holds %s: %s is taken, %d of %d files; give one of its folders to choose another", root,
                " and ".join(there), split, len(kept), len(names))
    return kept, split


def folder_splits(names):
    """{folder: its split} where a folder of one split lies beside a folder of another."""
    found = {}                                                      # folder -> its split
    beside = {}                                                     # parent -> the splits of its folders
    media = VIDEOS + IMAGES + (".tar",)
    for folder in {name.rpartition("/")[0] for name in names if name.lower().endswith(media)}:
        while folder:
            parent, _, own = folder.rpartition("/")
            if which := SPLITS.get(re.split(r"[^a-z0-9]", own.lower())[-1]):           # sky_train -> train
                found[folder] = which
                beside.setdefault(parent, set()).add(which)
            folder = parent
    return {folder: which for folder, which in found.items() if len(beside[folder.rpartition("/")[0]]) > 1}


# The same clips once as videos and once as folders of frames would be seen twice as often as others, and one
# of the two has lost its captions.
def refuse_duplicates(root, videos, folders):
    """UserError where most folders of frames bear the name of a video."""
    homes = {os.path.basename(stem_of(name)): os.path.dirname(name) or "." for name in videos}
    twice = [name for name in folders if os.path.basename(name) in homes]
    if len(twice) > 1 and 2 * len(twice) > len(folders):
        parent, own = os.path.split(twice[0])
        raise UserError(f"{root} holds the same clips twice, as videos in {homes[own]} and as frames in "
                        f"{parent or '.'} (first: {own}); give one of the two folders")


# -------------------------------------------------------------------------------------------------- captions

# What is said about a video lies in one of four places, and the nearest wins: a .txt beside it; a row of a
# table at its root or above it; the name of its folder; its own name. Tables are written by everybody in
# another way: WebVid's .csv calls the file by `videoid` and `page_dir` and the caption `name`, JourneyDB's
# .jsonl by `img_path` and `prompt`, yours as you like. What they share: each row has a path and a text.
#
# A path in a table was right on the machine where it was written: /data/webvid/videos/a.mp4, C:\clips\a.mp4,
# or a.mp4 for what now lies in videos/. So a row and a file belong together if, read from the end, the
# shorter path is all of it found in the longer; if that leaves two files, the row is nobody's. Rows that
# match nothing are counted and said: half a caption table is how a model learns file names.
#
# And a table that is broken is refused with its line. The usual break is silent: an unquoted comma cuts
# "a red, round ball" to "a red", an open quote swallows the rows below it, and nobody looks at row 40,000.

TABLES = (".csv", ".tsv", ".jsonl")
FILE_COLUMNS = ("file_name", "filename", "file", "path", "video", "image", "img_path", "image_path",
                "video_path", "video_name", "videoid")
TEXT_COLUMNS = ("text", "caption", "captions", "prompt", "description")
CAPTION_BYTES = 1 << 20           # a text of more than a megabyte is no caption, whatever its name says


def decode(data):
    """UTF-8 with or without the mark that Windows puts in front; ValueError if it is not."""
    return data.decode("utf-8-sig")


# Tables are read as streams, a row at a time: WebVid's has 10 million rows and 2.7 GB, and of those only the
# rows are kept whose videos are here. What is not UTF-8 is an error and no guess. (A guess turns the é of
# "café" into a question mark, in silence, wherever a name has one.)
def read_rows(root, name):
    """(row's number, {column: value}) of each row of a table; ValueError at the first that is broken."""
    is_json = name.lower().endswith(".jsonl")
    # newline: a sentence may hold U+2028, which str.splitlines() would take for the end of a line
    with open(os.path.join(root, name), encoding="utf-8-sig", newline="\n" if is_json else "") as text:
        yield from json_rows(text) if is_json else csv_rows(text)


# JSON lines are simpler: the format escapes a line's end inside a text, so one line is one row, always, and a
# broken one spoils no other.
def json_rows(lines):
    """A row a line, each an object {...}."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"row {number}: {error}")
            if not isinstance(row, dict):
                raise ValueError(f"row {number}: not an object {{...}}")
            yield number, {str(key).strip().lower(): value for key, value in row.items()}


# The rules of .csv are: a cell that holds a comma, a quote or a line's end stands in quotes, and a quote in
# it is doubled. Who writes "%s,%s" does not know them. Two checks find nearly all such tables: each row has
# as many cells as there are headings, and every quote that opens also closes.
def csv_rows(lines):
    """The header says by which of , ; tab | the cells are parted, and comes first, as a row of None. strict:
    an open quote is an error."""
    first = next(lines, "")
    delimiter = max(",;\t|", key=first.count)
    header = [cell.strip().lower() for cell in next(csv.reader([first], delimiter=delimiter), [])]
    yield 0, dict.fromkeys(header)
    rows = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    number, line = 0, 2
    try:
        for cells in rows:
            if any(cell.strip() for cell in cells):             # Excel ends a table with rows of nothing: ,,
                number += 1
                if len(cells) != len(header):
                    raise ValueError(f"row {number} (line {line}): not {len(header)} cells, as there are "
                                     f'headings; a caption with a {delimiter!r} needs "quotes" around it')
                yield number, dict(zip(header, cells))
            line = 2 + rows.line_num
    except csv.Error as error:
        raise ValueError(f"row {number + 1} (line {line}): {error}")


# Which column is which is told by its heading, as a person would: any of FILE_COLUMNS, any of TEXT_COLUMNS,
# the earlier before the later, capitals and spaces aside. ASSUMED: of JourneyDB's two texts, the prompt that
# made an image and the caption that a language model wrote of it, we take the prompt; VideoDiT does not say.
def read_table(root, name):
    """(row, path, [captions]) of each row of a table; UserError at the first that is broken or names no file.
    Unusable: it is a table of something else."""
    number, is_known = 0, False
    try:
        for number, row in read_rows(root, name):
            texts = (*TEXT_COLUMNS, "name") if "videoid" in row else TEXT_COLUMNS
            if not is_known and not (row.keys() & set(FILE_COLUMNS) and row.keys() & set(texts)):
                raise ValueError(f"no column for a file ({', '.join(FILE_COLUMNS[:6])}) or none for a text")
            is_known = True
            if not number:                                                       # the header
                continue
            file = next((row[key] for key in FILE_COLUMNS if row.get(key) not in (None, "")), "")
            if not isinstance(file, (str, int)) or not str(file).strip():        # a number: WebVid's in JSON
                raise ValueError(f"row {number}: names no file")
            if "videoid" in row:
                file = f"{row.get('page_dir') or ''}/{file}"
            captions = []
            for key in texts:                                           # the first column that says anything
                captions = captions or [*as_captions(row.get(key), number)]
            yield number, str(file), captions
    except (ValueError, OSError) as error:
        if isinstance(error, UnicodeDecodeError):
            error = f"near row {number + 1}: not UTF-8; save it as UTF-8"
        if not is_known:
            raise Unusable(f"is no table of captions ({error}); docs/data.md has recipes")
        raise UserError(f"{root}/{name}, {error}; each row needs a {FILE_COLUMNS[0]} (or path, video, image) "
                        f"and a {TEXT_COLUMNS[0]} (or caption, prompt)")


# A list of texts is a list of captions, of which one is drawn on each visit (data.py): several ways to say
# what is seen teach more than one. A number is its digits; {"en": "a cat"} is a question that only a person
# can answer, and so an error. A list that Python has printed into a cell (Panda-70M) is left alone: its texts
# speak of different moments.
def as_captions(value, number):
    """The captions in a text, a number or a list of them."""
    if value is None:
        return
    for text in value if isinstance(value, list) else [value]:
        if not isinstance(text, (str, int, float)):
            raise ValueError(f"row {number}: a caption must be a text or a list of texts")
        if str(text).startswith(("['", '["')):
            raise Unusable(f"row {number}: a list of captions in one cell; docs/data.md has a recipe")
        if text := " ".join(str(text).split()):
            yield text


# Letters, too, have two spellings: é is one sign, or e and an accent after it. macOS writes the second in
# file names, Linux the first, and to a computer "é.png" then is no "é.png". NFC makes both the first.
def path_parts(path):
    """One spelling of a path, in pieces: \\ is /, ./ is nothing, and macOS writes é as e + accent."""
    path = unicodedata.normalize("NFC", str(path).replace("\\", "/"))
    return [part for part in path.split("/") if part not in ("", ".")]


# Matching is by an index: the last piece of every file's path -> the files that end so. A row looks itself up
# there and compares the pieces before, from the end, with the few that it finds: 15 microseconds a row, so
# that WebVid's ten million take two or three minutes, once a start.
#
#     row    /data/webvid/videos/000001_000050/17.mp4       file   videos/000001_000050/17.mp4
#                              <------------------------------------------------------- compared from here
class Captions:
    """The captions of files (or folders of frames) of list_files' names, each with where it is from."""

    def __init__(self, root, names, of):
        self.root, self.of, self.rows = root, of, {}
        self.beside = {name for name in names if name.endswith(".txt")}
        tables = [name for name in names if name.lower().endswith(TABLES)]
        if tables:
            by_last = {}
            for number, name in enumerate(of):
                parts = path_parts(stem_of(name))
                by_last.setdefault(tuple(parts[-1:]), []).append((number, parts))
            for name in sorted(tables, key=lambda name: (not name.endswith(".jsonl"), name)):
                self.match(name, by_last)                               # .csv is read last, and wins

    def match(self, table, by_last):
        """Give a table's rows to the files that they mean. Two rows of one file are two captions of it."""
        lost, first, mine = 0, "", {}
        above = path_parts(table)[:-1]
        try:
            for rows, (row, path, captions) in enumerate(read_table(self.root, table), 1):
                numbers = self.files_of(path, above, by_last)
                for number in numbers:
                    mine.setdefault(number, []).extend(captions)
                if not numbers:
                    lost += 1
                    first = first or f"row {row}: {path}"
        except Unusable as reason:
            log.warning("%s/%s %s: not used", self.root, table, reason)
            return
        self.rows |= {number: (captions, table) for number, captions in mine.items() if captions}
        if lost:
            log.warning("%s/%s: %d of %d rows match no file here, or several (first: %s)", self.root, table,
                        lost, rows, first)

    def files_of(self, path, above, by_last):
        """Numbers of the files that a row's path means: the one at that path, else the one that ends so."""
        wanted, found = path_parts(stem_of(path.strip())), {}
        for number, parts in by_last.get(tuple(wanted[-1:]), ()):
            common = min(len(parts), len(wanted))
            if parts[-common:] == wanted[-common:]:
                found.setdefault(tuple(parts), []).append(number)
        if len(found) == 1:
            return found.popitem()[1]
        return found.get(tuple(above + wanted), [])

    # The .txt is read when it is asked for, not before: a million of them would take an hour at the start.
    # The folder's name is the last but one resort: it is the class of a data set of classes, and of others a
    # poor caption, so data.py FOLDER counts the sources, and 3,000 "from its folder's name" are a warning.
    def lookup(self, number):
        """([captions], where they are from) of a file. Unusable: a .txt that cannot be read."""
        stem = stem_of(self.of[number])
        if stem + ".txt" in self.beside and (text := self.read_text(stem + ".txt")):
            return [text], "a .txt beside it"
        if number in self.rows:
            return self.rows[number]
        if folder := class_name(stem):
            return [" ".join(folder.replace("_", " ").replace("-", " ").split())], "its folder's name"
        own = os.path.basename(os.path.abspath(os.path.join(self.root, stem)))
        words = own.replace("_", " ").replace("-", " ").split()
        # 19216241-hd_1280_30fps: numbers are a camera's, and nobody's words
        words = [word for word in words if not re.search(r"\d", word)] or words
        return [" ".join(words)], "its own name"

    def read_text(self, name):
        """A caption's .txt, on one line."""
        path = Path(self.root, name)
        try:
            if path.stat().st_size > CAPTION_BYTES:
                raise ValueError("too large")
            return " ".join(decode(path.read_bytes()).split())
        except (ValueError, OSError) as reason:
            raise Unusable(f"its caption {name}: {reason}")


def read_prompts(file):
    """The lines of a text file."""
    try:
        text = decode(Path(os.path.expanduser(file)).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"--prompts {file}: cannot be read ({error}); give a UTF-8 text, a prompt a line")
    return [line.strip() for line in text.split("\n") if line.strip()]


# Several captions of one file are as good as each other: which is read on a visit, is drawn by its key.
def choose_caption(captions, key):
    """One of a list of captions, the same for the same key."""
    return captions[int(np.random.default_rng(key).integers(len(captions)))]


# --------------------------------------------------------------------------------------------------- classes

# Latte on UCF101 is told a class, and a class is a folder's name: Archery/v_Archery_g01_c01.avi. That is
# simple until somebody types one, or an image lies a folder deeper: a label is a number, a number always
# fits, and a network that is told the wrong one learns it without complaint. So a name is a class only if it
# can be no other; "jump" beside "jump rope", folders called 1 to 101, "archery" for Archery: each finds its
# own, and what could be two is refused.

UCF = re.compile(r"(?:^|/)v_([A-Za-z]+)_g\d+_c\d+")     # UCF101's file names carry their class


def class_name(place):
    """The class that a place tells: UCF101's v_CLASS_gNN_cNN, else the folder it lies in, "" at the root."""
    if named := UCF.findall(place):
        return named[-1]
    return place.rpartition("/")[0].rpartition("/")[2]


# The numbers are given out in alphabetical order, as Latte's loader does, so that the labels of its released
# UCF101 checkpoint are ours: 0 is ApplyEyeMakeup, 100 is YoYo. A checkpoint of ours carries the names.
def list_classes(places):
    """All of them, in alphabetical order (Latte's numbers, too); a clip without one is an error."""
    first = {class_name(place): place for place in reversed(places)}           # the first place of each
    if "" in first:
        raise UserError(f"{first['']} lies in no folder, so it has no class; put each class's clips into a "
                        "folder of that name")
    return tuple(sorted(first))


# For images beside clips (Latte 3.3.4) the same question is asked of a deeper place: the frame 0001.jpg lies
# in the folder of its video, and that in the folder of its class. So one goes up until a folder is a class.
def class_at(place, classes):
    """The number of a place's class. A frame may lie deeper than its class: Archery/v_Archery_g01/0001.jpg,
    or Archery/clip 7/0001.jpg: the nearest folder above it that is a class says which."""
    for name in [class_name(place), *reversed(place.split("/")[:-1])]:
        if name in classes:
            return classes.index(name)
    raise UserError(f"{place} lies in no folder whose name is one of the {len(classes)} classes "
                    f"({', '.join(classes[:5])} ...); give images in folders of these names")


# Names are compared as words, and a capital begins one: ApplyEyeMakeup is apply, eye, makeup, as a prompt or
# a folder called apply_eye_makeup has it. Letters of other scripts stay together.
def split_words(name):
    """ApplyEyeMakeup, apply_eye-makeup -> [apply, eye, makeup]."""
    pieces = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_A-Za-z]+", name)
    return [piece.casefold() for piece in pieces]


# VideoDiT 4.2 is measured on UCF101 "zero-shot": the model never saw the set and is given each class as a
# prompt. Other papers write sentences for it ("a person is ..."), which moves the numbers; here it is the
# bare name, in words.
def class_prompt(name):
    """ApplyEyeMakeup -> apply eye makeup. ASSUMED: the paper only says that it is zero-shot."""
    return " ".join(split_words(name))


# What a person types goes through two sieves, and the first that holds something decides: the very name; the
# name but for capitals, blanks, - and _ (so UCF101's "HandstandPushups" is found although its own files
# say HandStandPushups). A number is one only where no class is called by a number: in folders 1 to 101, "3"
# is the folder 3, not the fourth.
def label_of(prompt, classes):
    """The number of the class that a person means: its name as it stands, or in other letters ("apply eye
    makeup"), or its number. Never one of two."""
    if prompt in classes:
        return classes.index(prompt)
    plain = "".join(split_words(prompt))
    found = [number for number, name in enumerate(classes) if "".join(split_words(name)) == plain]
    names_are_numbers = any(name.isdecimal() for name in classes)
    if not found and prompt.isdecimal() and not names_are_numbers and int(prompt) < len(classes):
        found = [int(prompt)]
    if len(found) == 1:
        return found[0]
    what = "is no class"
    if found:
        what = "may be " + " or ".join(classes[number] for number in found[:5])
    more = " ..." if len(classes) > 20 else ""
    raise UserError(f'"{prompt}" {what} of this model; it knows {", ".join(classes[:20])}{more}')
