"""video.py - films and pictures on disk, in and out; and the few lines that draw a picture of a result.
Paper    none of its own. VideoDiT 4.1 trains on clips at the film's own rate, about 25 frames a second, cut
         square; Latte 4.2 on 16 frames, every 3rd. data.py chooses them, this file gets them off the disk
Shapes   decoded frames are uint8 (T,H,W,3), 0..255; a network's video is float (3,T,H,W), -1..1
         B clips, T frames, C channels, H W pixels
Differs  Latte's loader reads whole films into memory and dies on a damaged one. Here a film is entered where
         the clip begins, and damage costs frames, not the file, and never the run
Reads    after checkpoint.py and world.py, before data.py
Run me   python video.py       # CPU, 5 s: a clip is written and read back, what was lost is in out/video.png

What is a film? Not a stack of pictures: a minute of 512 x 512 would be 1.2 GB. Three things make it small,
and each is a trap for who wants its pixels back.

    clip.mp4   a container: what streams there are (film, sound, a cover picture), their packets, with times
       |
       |  demux       packets of the film      I p p p p p p p p p p p I p p p p p p p p p
       |              I: a picture of its own (a key frame); p: how the picture differs from its neighbours
       |  decode      frames, in the order of showing: brightness Y for every pixel, colour U, V for every
       |              2 x 2 of them, since eyes are keener on brightness ("4:2:0")
       |  convert     RGB, of the size that is asked for, upright
       v
    uint8 (T,H,W,3)  --- to_video --->  float (3,T,H,W)        and all the way back:  save_video

* p-frames lean on what came before, so frame 1,000 cannot be read by itself: see read_some().
* Times stand beside the packets, or do not, or are wrong, and a phone's rate wanders. "Every third frame" is
  a question of numbers, "10 a second" one of times: see scan_times().
* Colours come in several recipes (BT.601, BT.709; full or "studio" range), and the file says which, or not.

People's folders hold all of it, and broken files besides. So each function here either gives back the right
pixels or raises Unusable with a reason, in words a person can act on."""

import itertools
import math
import os
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps
from torch.utils.data import get_worker_info

from checkpoint import UserError, polite, write_atomic

# The end of its name says what a file is: opening each of a hundred thousand only to see would take too long.
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# A small .png can unpack to gigabytes of one colour (a "decompression bomb"). The header tells the size
# before anything is unpacked; nobody trains on more than 8192 x 8192.
MAX_PIXELS = 1 << 26
# FFmpeg resizes and converts colours in one go, quickly, and wrongly unless asked: without the last two of
# these, white comes out as 253 of 255, and a network learns that nothing is ever white.
EXACT = int(Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT)


class Unusable(Exception):
    """Why one file cannot be trained on: "9 frames, 16 needed". data.py makes it a skip."""


# ------------------------------------------------------------------------------------ two spellings of a clip

# On disk, and in a picture, a pixel is three bytes side by side. A network wants floats around zero (its
# first layer's weights are drawn for inputs of about that size) with the channels first. 0 <-> -1, 255 <-> 1:
# on what a byte can say, the two functions are exact inverses, so a clip can change its spelling at no cost.
def to_video(frames):
    """uint8 (T,H,W,3), 0..255  ->  float (3,T,H,W), -1..1."""
    pixels = torch.from_numpy(np.array(frames, order="C"))       # (T,H,W,3)  copied: torch takes no mirrored
    return pixels.permute(3, 0, 1, 2).float() / 127.5 - 1                    # (3,T,H,W)


def to_frames(video):
    """The way back, rounded and clipped. Arrays of uint8 pass through, so that savers take either."""
    if isinstance(video, np.ndarray):
        return video
    levels = (video.detach().float().cpu() + 1) * 127.5                      # rounding errors stay below 1/2
    return levels.round().clamp(0, 255).byte().permute(1, 2, 3, 0).numpy()   # (T,H,W,3)


# -------------------------------------------------------------------------------------------- decoding video

# PyAV is Python's door to FFmpeg, which knows every codec there is. We ask little of it: open, list the
# packets, decode them in order, seek. decord and torchcodec hide these steps, and with them what goes wrong;
# a folder of .jpg for each film needs no decoder, but much more disk.
#
# Most frames lean on their neighbours, so a frame in the middle costs all frames since the last key frame, 10
# to 250 of them. Training asks for 16 frames from anywhere in a film. Two ways out, both below, and data.py
# takes the first where memory allows: keep a whole film, resized, in memory (read_all); or enter at the key
# frame before the clip and throw away what is early (read_some).
#
#     packets    I p p p p p p p p I p p p p p p p p I p
#     wanted                           x x x x
#     decoded                      . . x x x x             from the I before, and then stop

class Film:
    """One video file, opened: which stream, how large its frames become (see resized), its frames in order.

    Headers are believed in nothing but the size of the picture: frame counts and rates are often absent or
    wrong."""

    def __init__(self, path, short=None, long=None):
        try:
            self.container = av.open("file:" + str(path))        # "file:", or 12:30.mp4 would be a protocol
        except (av.FFmpegError, OSError) as error:
            raise Unusable(f"cannot be opened ({error.strerror or error})")
        streams = [stream for stream in self.container.streams.video
                   if not stream.disposition & av.stream.Disposition.attached_pic]       # a cover is no film
        if not streams or not streams[0].width:
            self.container.close()
            raise Unusable("holds no video stream")
        self.stream = streams[0]
        if self.stream.width * self.stream.height > MAX_PIXELS:
            raise Unusable(f"frames of {self.stream.width} x {self.stream.height}: too large")
        # FFmpeg decodes with all cores by itself; in one of many loader processes that would be a crowd.
        self.stream.thread_type = "AUTO"
        self.stream.codec_context.thread_count = 1 if get_worker_info() else 0
        # Old television's pixels are oblongs (DV: 720 of them fill a picture of 768); the file says how wide.
        width = self.stream.width * (self.stream.sample_aspect_ratio or 1)
        self.width, self.height = resized(width, self.stream.height, short, long)
        self.scaler = VideoReformatter()                             # one for all frames: 2.5 times faster
        # Only these containers can be entered in the middle at a known frame; others are read from the start.
        self.seekable = any(name in self.container.format.name for name in ("mp4", "matroska"))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.container.close()

    # A codec may send packets in another order than that of showing (a frame between two needs both), and the
    # decoder puts them right, so nothing here counts packets. A damaged packet is stepped over: the decoder
    # goes on, and the next key frame mends the picture.
    def frames(self, start=None):
        """Frames in the order of showing, from the key frame before `start`. Damage loses frames only."""
        try:
            if start is not None:           # the first packet alone says which x264 wrote the file, and some
                next(self.frames(), None)   # (4:4:4) come out as garbage if that is not known
                self.container.seek(start, stream=self.stream)
            for packet in self.container.demux(self.stream):
                try:
                    yield from packet.decode()
                except av.FFmpegError:
                    continue                                         # a damaged packet: go on with the next
        except (av.FFmpegError, OSError):
            return                                                   # a cut file: what came before is good

    def picture(self, frame):
        """uint8 (H,W,3) at our size. The cubic filter widens when it shrinks (no aliasing); PyAV reads the
        frame's own matrix and range, so BT.709, full-range and 10-bit film keep their colours."""
        alpha = any(component.is_alpha for component in frame.format.components)
        pixels = self.scaler.reformat(frame, self.width, self.height, "rgba" if alpha else "rgb24",
                                      interpolation=EXACT, threads=1).to_ndarray()
        return upright(np.asarray(over_white(Image.fromarray(pixels))) if alpha else pixels, frame)


# A phone films sideways and leaves a note, which players obey: a matrix that says where a pixel at (x, y) is
# to be shown, x' = a x + c y, y' = b x + d y. A quarter turn has a = d = 0. FFmpeg also offers it as an
# angle, but selfies are mirrored, and no angle is a mirror: read as one, a film with a = -1, d = 1 would come
# out turned by 180 degrees, heads down.
def upright(pixels, frame):
    """The picture (H,W,3) as the frame's display matrix wants it shown."""
    note = frame.side_data.get("DISPLAYMATRIX")
    if note is None:
        return pixels
    a, b, _, c, d = np.frombuffer(bytes(note), np.int32)[:5] / 65536
    if abs(b) > abs(a):                                              # x' comes of y, y' of x
        a, d, pixels = c, b, pixels.swapaxes(0, 1)                                       # (W,H,3)
    return pixels[::-1 if d < 0 else 1, ::-1 if a < 0 else 1]


# How large a frame is before its square is cut out decides what the square sees. Three protocols: the short
# side becomes the square's (Latte 4.1: the most of the picture); the long side at most 1080 and then a square
# of 256 (VideoDiT 4.1, for the DP-VAE: a piece of film at its own resolution, whose texture a shrunken film
# has lost); or a short side somewhat larger than the square, so that a random crop has room.
def resized(width, height, short=None, long=None):
    """(width, height) with the short side `short` long. long: instead, the long side at most that long, and
    the short side not below `short`. Neither: as it is."""
    scale = short / min(width, height) if short else 1
    if long:
        scale = max(min(1, long / max(width, height)), scale if short else 0)
    sides = [max(round(side * scale), 1) for side in (width, height)]
    if sides[0] * sides[1] > MAX_PIXELS:          # 1 x 2000 pixels, 512 wide, would be a picture of 1.6 GB
        raise Unusable(f"{round(width)} x {height} pixels would become {sides[0]} x {sides[1]}: too large")
    return sides


# When is each frame shown? pts ("presentation time stamp") is a whole number of ticks; times time_base, the
# length of a tick, it is seconds. The header's frame count and rate are guesses made when recording began, so
# we list the stamps themselves. They are also the only safe name of a frame to seek to.
def scan_times(path):
    """(pts, seconds) of a film's frames in the order of showing; pts is None where seeking is not safe.

    mp4 and mkv name each frame's time beside its packet, so their list costs no decoding (a film of 280
    frames: 6 ms, and 800 with its last seconds decoded). But for a cut file: its last packet is a piece of
    one, and says so, and the frames that lean on it are announced and absent. Elsewhere we decode, once."""
    with Film(path) as film:
        if film.seekable:
            try:
                packets = [(packet.pts, packet.is_corrupt) for packet in film.container.demux(film.stream)
                           if packet.size and not packet.is_discard]
            except av.FFmpegError:
                packets = [(None, True)]
            pts, is_cut = {time for time, _ in packets}, any(corrupt for _, corrupt in packets)
            # some without a stamp (.mkv that begins below zero): the list would be short of frames
            pts = [] if None in pts else sorted(pts)
            tail = [frame.pts for frame in film.frames(pts[-1])] if pts and is_cut else pts[-1:]
            if tail and None not in tail:
                pts = np.array([time for time in pts if time <= max(tail)])
                return pts, pts * float(film.stream.time_base)
    with Film(path) as film:
        return None, order_times(film, [frame.time for frame in film.frames()])


def order_times(film, times):
    """Seconds for each decoded frame: its own stamp, or, where stamps are missing or out of order (H.264 in
    .avi), its number over the stream's rate."""
    if None in times or any(b <= a for a, b in zip(times, times[1:])):
        times = np.arange(len(times)) / float(film.stream.average_rate or 25)
    return np.array(times, dtype=np.float64)


# The two ways to the pixels. They must agree to the last bit (a test compares them): else what a model is
# trained on would depend on how much memory there happened to be.
def read_all(path, short=None, long=None):
    """(seconds (T,), frames uint8 (T,H,W,3)) of a whole film."""
    with Film(path, short, long) as film:
        times, pictures = [], []
        for frame in film.frames():
            times.append(frame.time)
            pictures.append(film.picture(frame))
        if not pictures:
            raise Unusable("no frame of it can be decoded")
        return order_times(film, times), np.stack(pictures)                              # (T,H,W,3)


def read_some(path, pts, wanted, short=None, long=None):
    """The frames with the numbers `wanted` (rising, repeats allowed): enters at the last key frame before.

    A number that never decodes shows what was on screen then, the frame before it."""
    with Film(path, short, long) as film:
        pictures, number, shown = [], -1, None
        for frame in film.frames(None if pts is None else int(pts[wanted[0]])):
            if pts is not None and frame.pts is None:                # damaged: nobody knows when it was
                continue
            number = number + 1 if pts is None else int(np.searchsorted(pts, frame.pts))
            if shown is None and number > wanted[0]:                 # entered too late: take the long way
                return read_some(path, None, wanted, short, long)
            while shown is not None and len(pictures) < len(wanted) and wanted[len(pictures)] < number:
                pictures.append(film.picture(shown))
            if len(pictures) == len(wanted):
                return np.stack(pictures)                                                # (T,H,W,3)
            shown = frame
        if shown is None or number < wanted[-1]:
            raise Unusable(f"frame {wanted[-1]} cannot be decoded")
        return np.stack(pictures + [film.picture(shown)] * (len(wanted) - len(pictures)))    # (T,H,W,3)


def read_video(path):
    """Every frame of a clip as uint8 (T,H,W,3)."""
    try:
        return read_all(path)[1]
    except Unusable as reason:
        raise UserError(f"{path} {reason}; give another video")


# A film is wide, a network's clip is square. Its short side has been resized to at least `size`, so that the
# square sees as much as it can; here it is placed, once for all frames: a crop that jumps from frame to frame
# would look like a shaking camera, and be learned. rng is the caller's, so the same three numbers (seed,
# epoch, index) give the same square for ever.
def cut(clip, size, crop, flip, rng):
    """A square of `size` out of every frame, at one random place or in the middle; perhaps mirrored."""
    height, width = clip.shape[1:3]
    place = rng.random(2) if crop == "random" else (0.5, 0.5)
    top, left = round(place[0] * (height - size)), round(place[1] * (width - size))
    clip = clip[:, top:top + size, left:left + size]                                     # (T,H,W,3)
    return clip[:, :, ::-1] if flip and rng.random() < 0.5 else clip


# -------------------------------------------------------------------------------------------------- pictures

# A picture is a film of one frame, and joint training (VideoDiT A.2, Latte 3.3) needs them as much. What goes
# wrong with pictures is their kinds of pixel: grey, palette, 16 bits, four inks (CMYK), transparent, and
# photos that lie on their side with a note to turn them (EXIF). All become RGB, upright, here and nowhere
# else.
#
# Resizing must average: a pixel of the small picture is the mean of all that it covers. Picking one of them
# instead (what torch's interpolate does unless told antialias=True, and Latte's loader with it) turns fine
# stripes into coarse ones that were never there. Pillow's BICUBIC averages; so does FFmpeg's, above.
def read_picture(file, short=None, long=None):
    """uint8 (H,W,3), resized(); upright, over white, whatever the file's own kind of pixels."""
    picture = Image.open(file)
    if picture.width * picture.height > MAX_PIXELS:                      # known before anything is decoded
        raise Unusable(f"{picture.width} x {picture.height} pixels: too large")
    resized(*picture.size, short, long)
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):                                         # 16-bit grey
        picture = Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    picture = over_white(picture)
    size = resized(*picture.size, short, long)                               # it may have been turned
    picture = picture if picture.size == tuple(size) else picture.resize(size, Image.BICUBIC)
    return np.asarray(picture)                                               # (H,W,3)


def over_white(picture):
    """Transparent means white, as on a page; dropping the alpha instead shows the black below it."""
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


# ---------------------------------------------------------------------------------------------- saving clips

# Results have to play where a person looks at them: a browser, a phone, a slide. One form does everywhere:
# H.264 in an .mp4, 4:2:0, its index ("moov") in front of the data, so that playing begins at once. crf says
# how much may be lost: 0 nothing, 51 nearly all; x264's own default is 23. This file's picture shows 14
# beside 40, and that above some 36 dB more bytes buy nothing: what is left is the colours that 4:2:0 has
# averaged away. .gif plays in a README, but has only 256 colours.
def save_video(path, video, fps=12, crf=14, side=16):
    """Write (3,T,H,W) in [-1,1], or uint8 (T,H,W,3), as .mp4 or .gif, by the path's extension.

    H.264 in 4:2:0 with the index in front is what every browser plays. It wants even sides, so an odd one
    gets its last row or column twice. Clips smaller than `side` are enlarged whole times."""
    frames, path = to_frames(video), Path(path)
    zoom = math.ceil(side / min(frames.shape[1:3]))
    frames = frames.repeat(zoom, axis=1).repeat(zoom, axis=2)                            # (T,zoom*H,zoom*W,3)
    if path.suffix.lower() == ".gif":
        first, *rest = [Image.fromarray(frame) for frame in frames]
        return write_atomic(path, lambda to: first.save(to, format="GIF", save_all=True, append_images=rest,
                                                        duration=round(1000 / fps), loop=0))
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    write_atomic(path, lambda to: encode_h264(to, frames, fps, crf))


def encode_h264(path, frames, fps, crf):
    """BT.709, and tagged so: untagged colours are guessed, and players guess differently. Without x264's
    macroblock tree: below 100 pixels it reads memory it never wrote, and one clip gives many files."""
    with av.open("file:" + str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001),
                                      options={"crf": str(crf), "mbtree": "0"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1
        context.color_range = 1
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=1, dst_color_range=1,
                                                       interpolation=EXACT)))
        container.mux(stream.encode())


# Clips to be measured can be saved without loss (eval.py sample --png): else part of the distance is the
# codec's. A folder of frames is written under a hidden name and then renamed: whoever finds it finds it
# whole, and a sampling run that was interrupted goes on after the last whole clip.
def save_clip(path, clip, fps):
    """.mp4, .png of one frame, or a folder of .png: it appears whole or not at all."""
    if path.suffix == ".mp4":
        return save_video(path, clip, fps)
    frames = to_frames(clip)                                                                # (T,H,W,3)
    if path.suffix == ".png":
        return write_atomic(path, lambda temporary: Image.fromarray(frames[0]).save(temporary, "PNG"))
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    hidden.mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(hidden / f"{number:06d}.png")
    os.replace(hidden, path)


# A film cannot be printed, so training's previews and sample.py lay its frames side by side. Enlarged by
# whole numbers only, each pixel a square: smoothing would hide just the faults that one looks for.
def contact_sheet(path, videos, labels=None, columns=8, side=96, gap=4):
    """A .png with a clip a row and `columns` of its frames, first to last, enlarged whole times to `side`.
    labels: a line of text above each row. Returns the picture; path None: it is not saved."""
    rows, head = [], 16 if labels else 0
    for number, frames in enumerate(map(to_frames, videos)):
        zoom = math.ceil(side / max(frames.shape[1:3]))
        picks = np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)
        frames = frames[picks].repeat(zoom, axis=1).repeat(zoom, axis=2)                 # (columns,H,W,3)
        frames = np.pad(frames, ((0, 0), (head, gap), (0, gap), (0, 0)), constant_values=255)
        row = Image.fromarray(np.concatenate(list(frames), axis=1))
        if labels:
            ImageDraw.Draw(row).text((2, 2), labels[number], fill="black")
        rows.append(row)
    size = max(row.width for row in rows) + gap, sum(row.height for row in rows) + gap
    sheet = Image.new("RGB", size, "white")
    for number, row in enumerate(rows):
        sheet.paste(row, (gap, gap + sum(above.height for above in rows[:number])))
    return save_picture(path, sheet)


def save_picture(path, picture):
    """Write a Pillow picture as .png, whole or not at all; returns it. path None: it is not written."""
    if path:
        write_atomic(path, lambda to: picture.save(to, format="PNG"))
    return picture


# ----------------------------------------------------------------------------------- pictures that files draw

# `python FILE.py` of every file here ends by drawing its subject, with these three: curves in a frame (plot),
# a matrix as shades (heat), several such on one page (page). They need nothing but Pillow. It draws edges
# without smoothing them, so a plot is drawn 3 times too large and then each 3 x 3 pixels become their mean.
#
# The one idea in it is `place`, from a number to a pixel: subtract the least, divide by the range, multiply
# by the frame's size, and turn upside down, since a picture counts its rows from the top.

FINE = 3
# Okabe and Ito's colours: colour-blind eyes tell them apart, and so does a grey print
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222")
GREY, PALE = "#666666", "#e2e2e2"


def plot(path, curves, title="", x="", y="", log="", size=(640, 400), square=False):
    """Draw curves in a frame; returns the picture, and saves it unless path is None.

    curves    {name: (xs, ys)} or {name: (xs, ys, style)}: "-" a line, "~" a thin pale one, "--" dashes,
              "." dots. A name that starts with "_" takes the colour of the one before it and stands in no
              legend: one of many
    x, y      what the axes show
    log       "x", "y" or "xy": these axes go by factors of ten, and what is not above zero is left out
    square    a unit is as long on both axes, as on a map"""
    lines = {name: np.stack([np.asarray(values, np.float64) for values in curve[:2]], 1)
             for name, curve in curves.items()}                                          # (n,2)
    by_tens = np.array(["x" in log, "y" in log])
    for line in lines.values():
        line[:, by_tens] = np.log10(np.where(line > 0, line, np.nan))[:, by_tens]
    every = np.concatenate(list(lines.values()))
    every = every[np.isfinite(every).all(1)]
    every = every if len(every) else np.array([[0.0, 0.0], [1.0, 1.0]])                  # an empty frame
    low, high = every.min(0), every.max(0)
    room = np.where(high > low, high - low, np.maximum(np.abs(high), 1)) / 20
    low, high, corner, extent = low - room, high + room, np.array([60, 60]), np.array(size) - [84, 106]
    if square:
        half = ((high - low) / extent).max() * extent / 2
        low, high = (low + high) / 2 - half, (low + high) / 2 + half
    # to pixels; a picture counts its rows from the top
    place = lambda at: FINE * (corner + (np.array([0, 1]) + [1, -1] * (at - low) / (high - low)) * extent)

    image = Image.new("RGB", (FINE * size[0], FINE * size[1]), "white")
    draw = ImageDraw.Draw(image)
    draw_frame(draw, place, low, high, by_tens)
    write(draw, (16, 22), title, 17)
    write(draw, (16, 46), y, 12, GREY)
    write(draw, (size[0] - 24, size[1] - 12), x, 12, GREY, "rm")
    shown, right, ink = [name for name in lines if name[:1] != "_"], size[0] - 24, COLOURS[0]
    inks = dict(zip(shown, itertools.cycle(COLOURS)))
    for name, line in lines.items():
        ink = inks.get(name, ink)
        draw_curve(draw, place(line), (*curves[name], "-")[2], ink)
    for name in reversed(shown):                                             # the legend, from the right
        write(draw, (right, 46), name, 12, inks[name], "rm")
        right -= font(12).getlength(name) / FINE + 18
    return save_picture(path, image.reduce(FINE))                                        # size: (w,h)


# A reader finds 2, 4, 6 at once, and 1.7, 3.4, 5.1 never. So the distance between marks is 1, 2 or 5 times a
# power of ten, the first of them that gives no more than six marks. Where an axis goes by factors of ten, the
# place of a number is its logarithm, so equal distances are equal ratios: x^3 is a straight line there, and a
# loss that halves every 500 steps falls as evenly at 0.01 as at 1.
def round_numbers(low, high, by_tens):
    """Where an axis gets its numbers: at 1, 2 or 5 times powers of ten, about five of them."""
    if by_tens:
        digits, every = (1, 2, 5) if high - low < 2 else (1,), math.ceil((high - low) / 8)
        marks = [power + math.log10(digit) for power in range(math.floor(low), math.ceil(high) + 1)
                 if power % every == 0 for digit in digits]
    else:
        step = 10.0 ** math.floor(math.log10((high - low) / 4))
        step *= next(digit for digit in (1, 2, 5, 10) if (high - low) / (step * digit) <= 6)
        marks = [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [mark for mark in marks if low <= mark <= high]


def draw_frame(draw, place, low, high, by_tens):
    """The grid and its numbers."""
    for axis, anchor, shift in ((0, "mt", (0, 6)), (1, "rm", (-6, 0))):
        for mark in round_numbers(low[axis], high[axis], by_tens[axis]):
            ends = np.stack([low, high])                                                 # (2,2)
            ends[:, axis] = mark
            ends = place(ends)                                                           # (2,2)
            draw.line(ends.ravel().tolist(), fill=PALE, width=FINE)
            text = f"{10 ** mark if by_tens[axis] else mark:.6g}"
            write(draw, ends[0] / FINE + shift, text, 12, GREY, anchor)
    draw.rectangle([*place(np.array([low[0], high[1]])), *place(np.array([high[0], low[1]]))],
                   outline="#999999", width=FINE)


def draw_curve(draw, points, style, ink):
    """One curve, (n,2) in pixels. What is not a number leaves a gap, as a step whose loss was NaN should."""
    gaps, wide = ~np.isfinite(points).all(1), FINE if style == "~" else 2 * FINE
    if style == "~":
        ink = tuple(255 - (255 - level) * 2 // 5 for level in ImageColor.getrgb(ink))
    if style == ".":
        for dot in points[~gaps]:
            draw.ellipse([*(dot - wide), *(dot + wide)], fill=ink)
        return
    for part in np.split(points, np.flatnonzero(gaps)):
        part = pieces = part[np.isfinite(part).all(1)]
        if len(part) < 2:
            continue
        if style == "--":
            # Pillow knows no dashes: walk along the curve, 7 pixels on, 5 off, wherever its points may lie.
            run = np.append(0, np.cumsum(np.hypot(*np.diff(part, axis=0).T)))            # (n,)  length so far
            dashes = np.arange(0, run[-1], 12 * FINE)[:, None] + np.linspace(0, 7 * FINE, 8)    # (dashes,8)
            pieces = np.stack([np.interp(dashes, run, part[:, axis]) for axis in (0, 1)], -1)   # (dashes,8,2)
        for piece in pieces.reshape(-1, pieces.shape[-2], 2):
            draw.line(piece.ravel().tolist(), fill=ink, width=wide, joint="curve")


def font(points):
    return ImageFont.load_default(points * FINE)            # Pillow brings its own: the same everywhere


def write(draw, place, text, points=12, ink="#222222", anchor="lm"):
    draw.text((place[0] * FINE, place[1] * FINE), text, fill=ink, font=font(points), anchor=anchor)


def heat(matrix, cell=8, top=None):
    """(h,w) of numbers -> uint8 (h*cell,w*cell,3): 0 is white, `top` (None: the largest) the darkest blue.

    One hue, darker for more, so that it reads the same in grey; a rainbow shows edges that are not there."""
    share = np.clip(np.asarray(matrix, np.float64) / max(top or np.max(matrix), 1e-12), 0, 1)
    stops = [(255, 255, 255), (158, 202, 225), (33, 113, 181), (8, 29, 78)]
    colours = [np.interp(share, np.linspace(0, 1, 4), levels) for levels in zip(*stops)]
    return np.stack(colours, -1).round().astype(np.uint8).repeat(cell, 0).repeat(cell, 1)  # (h*cell,w*cell,3)


def page(path, pictures, labels=None, columns=2, gap=12):
    """Several pictures (of plot, of heat, uint8 (H,W,3)) on one .png, `columns` in a row, labels above."""
    pictures = [picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
                for picture in pictures]
    head = 22 if labels else 0
    rows = [range(start, min(start + columns, len(pictures))) for start in range(0, len(pictures), columns)]
    widths = [max(picture.width for picture in pictures[column::columns]) for column in range(len(rows[0]))]
    heights = [max(pictures[number].height for number in row) + head for row in rows]
    size = sum(widths) + gap * (len(widths) + 1), sum(heights) + gap * (len(rows) + 1)
    sheet = Image.new("RGB", size, "white")
    for line, row in enumerate(rows):
        for column, number in enumerate(row):
            left, top = gap + sum(widths[:column]) + gap * column, gap + sum(heights[:line]) + gap * line
            sheet.paste(pictures[number], (left, top + head))
            if labels:
                ImageDraw.Draw(sheet).text((left, top + 4), labels[number], fill="#222222",
                                           font=ImageFont.load_default(13))
    return save_picture(path, sheet)


# ------------------------------------------------------------------------------------------------------ demo

def demo():
    """Write a clip and read it back: PSNR of what came back."""
    return back_and_forth(14)[2]


# The codec's loss is measured on a clip of the toy world, by PSNR (metrics.py), here by hand:
#     PSNR = 10 log10(255^2 / mean squared error)
def back_and_forth(crf):
    """(clip, what is read back, PSNR in dB, bytes on the disk) of one clip saved as .mp4."""
    import world                       # here, since only the demo needs it: reading films needs no toy world
    clip = world.render(world.draw(0, 0), 16, 64)                                        # (T,H,W,3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        save_video(path, clip, crf=crf)
        back, weight = read_video(path), path.stat().st_size                             # (T,H,W,3)
    error = np.mean((back - clip.astype(np.float64)) ** 2)
    return clip, back, 10 * math.log10(255 ** 2 / error), weight


def draw(path):
    """A clip, what two .mp4 give back of it, 4 times the error around grey; what each decibel costs."""
    rows, labels = [back_and_forth(14)[0]], ["written: 16 frames, 8 shown"]
    for crf in (14, 40):
        clip, back, psnr, weight = back_and_forth(crf)
        error = (128 + 4 * (back.astype(int) - clip)).clip(0, 255).astype(np.uint8)      # (T,H,W,3)
        rows += [back, error]
        labels += [f"read back from .mp4, crf {crf}: {psnr:.1f} dB, {weight:,} bytes", "4 x the error"]
    levels, weights = zip(*(back_and_forth(crf)[2:] for crf in range(8, 48, 4)))
    curve = plot(None, {"crf 44 to 8": (weights, levels), "_": (weights, levels, ".")}, "What quality costs",
                 "bytes on the disk", "PSNR, dB", size=(480, 400))
    page(path, [contact_sheet(None, rows, labels, side=64), curve])


def main():
    print(f"a clip came back from .mp4 at {demo():.1f} dB (right: above 30)")
    draw("out/video.png")
    print("what was lost, and what each decibel costs, is drawn in out/video.png")


if __name__ == "__main__":
    polite(main)
