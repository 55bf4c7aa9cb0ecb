"""video_io.py - videos and images on disk, in and out.
Paper    none of its own. VideoDiT 4.1 trains on clips at the video's own rate, about 25 frames a second, in
         square crops; Latte 4.2 on 16 frames, every 3rd. data.py chooses them, this file reads and writes them
Shapes   decoded frames are uint8 (T,H,W,3), 0..255; a network's video is float (3,T,H,W), -1..1
         B clips, T frames, C channels, H W pixels
Differs  Latte's loader reads whole videos into memory and dies on a damaged one. Here a video is entered
         where the clip begins, and damage costs frames, not the file, and never the run

What is a video? Not a stack of images: a minute of 512 x 512 would be 1.2 GB. Three things make it small,
and each is a trap for who wants its pixels back.

    clip.mp4   a container: what streams there are (video, sound, a cover), their packets, with times
       |
       |  demux       packets of the video     I p p p p p p p p p p p I p p p p p p p p p
       |              I: an image of its own (a key frame); p: how the image differs from its neighbours
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

import io
import math
import os
from fractions import Fraction
from pathlib import Path

from PIL import Image, ImageCms, ImageOps
import av
from av.video.reformatter import Interpolation, VideoReformatter
import numpy as np
import torch
from torch.utils.data import get_worker_info

from support.checkpoints import HOST, write_atomic
from support.cli import UserError


# The end of its name says what a file is: opening each of a hundred thousand only to see would take too long.
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif", ".m4v", ".mpg", ".mpeg", ".wmv", ".mts", ".ts",
          ".3gp", ".flv", ".ogv")
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# A small .png can unpack to gigabytes of one colour (a "decompression bomb"). The header tells the size
# before anything is unpacked; nobody trains on more than 8192 x 8192.
MAX_PIXELS = 1 << 26
# Brightness by another law: read as if it were ordinary video, HDR comes out grey and pale.
HDR = {16: "PQ", 18: "HLG"}
UNTAGGED, BT709 = 2, 1                     # FFmpeg's numbers of colour matrices
ROUNDING = 0.002                           # seconds: .mkv rounds time stamps to a thousandth
# FFmpeg resizes and converts colours in one go, quickly, and wrongly unless asked: without the last two of
# these, white comes out as 253 of 255, and a network learns that nothing is ever white.
EXACT = int(Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT)


class Unusable(Exception):
    """Why one file cannot be trained on: "9 frames, 16 needed". data.py makes it a skip."""


# ------------------------------------------------------------------------------------ two spellings of a clip

# On disk a pixel is three bytes side by side. A network wants floats around zero (its
# first layer's weights are drawn for inputs of about that size) with the channels first. 0 <-> -1, 255 <-> 1:
# on what a byte can say, the two functions are exact inverses, so a clip can change its spelling at no cost.
def to_video(frames):
    """uint8 (T,H,W,3), 0..255  ->  float (3,T,H,W), -1..1."""
    pixels = torch.from_numpy(np.array(frames, order="C"))       # (T,H,W,3)  copied: torch takes no mirrored
    return pixels.permute(3, 0, 1, 2).float() / 127.5 - 1                    # (3,T,H,W)


def to_bytes(video):
    """Floats of to_video as uint8, in their shape: what a loader hands to a GPU."""
    return ((video + 1) * 127.5).round().to(torch.uint8)


def from_bytes(video):
    """The way back, to the bit; floats pass through."""
    if video.dtype == torch.uint8:
        return video.float() / 127.5 - 1
    return video


def to_frames(video):
    """The way back, rounded and clipped. Arrays of uint8 pass through, so that savers take either."""
    if isinstance(video, np.ndarray):
        return video
    levels = (video.detach().float().cpu() + 1) * 127.5                      # rounding errors stay below 1/2
    return levels.round().clamp(0, 255).byte().permute(1, 2, 3, 0).numpy()   # (T,H,W,3)


# -------------------------------------------------------------------------------------------- decoding video

# PyAV is Python's door to FFmpeg, which knows every codec there is. We ask little of it: open, list the
# packets, decode them in order, seek. decord and torchcodec hide these steps, and with them what goes wrong;
# a folder of .jpg for each video needs no decoder, but much more disk.
#
# Most frames lean on their neighbours, so a frame in the middle costs all frames since the last key frame, 10
# to 250 of them. Training asks for 16 frames from anywhere in a video: it enters at the key frame before the
# clip and throws away what is early (read_some).
#
#     packets    I p p p p p p p p I p p p p p p p p I p
#     wanted                           x x x x
#     decoded                      . . x x x x             from the I before, and then stop

class VideoFile:
    """One video, opened: which stream, how large its frames become (see resized), its frames in order.

    file      a path, or the bytes of a file (data.py reads them out of a shard)
    Headers are believed in nothing but the frame's size: frame counts and rates are often absent or wrong."""

    def __init__(self, file, short=None, long=None):
        # "file:", or 12:30.mp4 would be a protocol
        source = io.BytesIO(file) if isinstance(file, bytes) else "file:" + str(file)
        try:
            self.container = av.open(source, metadata_errors="ignore")       # a title may be in any alphabet
        except (av.FFmpegError, OSError) as error:
            raise Unusable(f"cannot be opened ({error.strerror or error})")
        self.stream = self.find_stream()
        self.decoder = self.find_decoder()
        # FFmpeg decodes with all cores by itself; in one of many loader processes that would be a crowd.
        self.decoder.thread_type = "AUTO"
        self.decoder.thread_count = 1 if get_worker_info() else 0
        # Old television's pixels are oblongs (DV: 720 of them fill a width of 768); the file says how wide.
        width = self.stream.width * (self.stream.sample_aspect_ratio or 1)
        self.width, self.height = resized(width, self.stream.height, short, long)
        self.coded_size = None                                       # of the first frame, before any resizing
        self.scaler = VideoReformatter()                             # one for all frames: 2.5 times faster
        # Only these containers can be entered in the middle at a known frame; others are read from the start.
        self.seekable = any(name in self.container.format.name for name in ("mp4", "matroska"))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.container.close()

    def find_stream(self):
        """The first stream of moving images."""
        for stream in self.container.streams.video:
            if stream.codec_context is None:
                raise Unusable("its codec is unknown to this PyAV")
            is_cover = stream.disposition & av.stream.Disposition.attached_pic
            if not is_cover and stream.width:
                if stream.width * stream.height > MAX_PIXELS:
                    raise Unusable(f"frames of {stream.width} x {stream.height}: too large")
                return stream
        raise Unusable("holds no video stream")

    # VP8 and VP9 hide transparency beside each packet, where Google's own decoder alone looks for it: FFmpeg's
    # shows the colours below, mostly black.
    def find_decoder(self):
        """What turns the stream's packets into frames."""
        own = self.stream.codec_context
        google = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(own.name)
        if google and self.stream.metadata.get("alpha_mode") == "1":
            return av.CodecContext.create(google, "r")
        return own

    # A codec may send packets in another order than that of showing (a frame between two needs both), and the
    # decoder puts them right, so nothing here counts packets. A damaged packet is stepped over: the decoder
    # goes on, and the next key frame mends the image.
    def frames(self, start=None):
        """Frames in the order of showing, from the key frame before `start`. Damage loses frames only."""
        try:
            if start is not None:           # the first packet alone says which x264 wrote the file, and some
                next(self.frames(), None)   # (4:4:4) come out as garbage if that is not known
                self.container.seek(start, stream=self.stream)
                self.decoder.flush_buffers()
            for packet in self.container.demux(self.stream):
                try:
                    yield from self.decoder.decode(packet)
                except av.FFmpegError:
                    continue                                         # a damaged packet: go on with the next
        except (av.FFmpegError, OSError):
            return                                                   # a cut file: what came before is good

    # What would come out wrong, and look nearly right, is refused by name.
    def check(self, frame):
        """Unusable, if this frame's pixels would not be what a player shows."""
        size = frame.width, frame.height
        self.coded_size = self.coded_size or size
        if size != self.coded_size:
            raise Unusable("its frames change size, from {} x {} to {} x {}".format(*self.coded_size, *size))
        if frame.color_trc in HDR:
            raise Unusable(f"HDR ({HDR[frame.color_trc]}): convert it to BT.709 first")
        if frame.interlaced_frame:
            raise Unusable("interlaced, two moments in each frame: ffmpeg -i IN -vf bwdif OUT makes it whole")

    def pixels(self, frame):
        """uint8 (H,W,3) at our size. The cubic filter widens when it shrinks (no aliasing); PyAV reads the
        frame's own matrix and range, so BT.709, full-range and 10-bit video keep their colours."""
        self.check(frame)
        matrix = frame.colorspace
        if matrix == UNTAGGED and (frame.width >= 1280 or frame.height > 576):
            matrix = BT709                                           # what every player takes HD for
        has_alpha = any(component.is_alpha for component in frame.format.components)
        image = self.scaler.reformat(frame, self.width, self.height, "rgba" if has_alpha else "rgb24",
                                     src_colorspace=matrix, interpolation=EXACT, threads=1).to_ndarray()
        if has_alpha:
            image = np.asarray(over_white(Image.fromarray(image)))
        return upright(image, frame)                                                     # (H,W,3)


# A phone films sideways and leaves a note, which players obey: a matrix that says where a pixel at (x, y) is
# to be shown, x' = a x + c y, y' = b x + d y. A quarter turn has a = d = 0. FFmpeg also offers it as an
# angle, but selfies are mirrored, and no angle is a mirror: read as one, a video with a = -1, d = 1 would
# come out turned by 180 degrees, heads down.
def upright(pixels, frame):
    """The image (H,W,3) as the frame's display matrix wants it shown."""
    note = frame.side_data.get("DISPLAYMATRIX")
    if note is None:
        return pixels
    a, b, _, c, d = np.frombuffer(bytes(note), np.int32)[:5] / 65536
    if abs(b) > abs(a):                                              # x' comes of y, y' of x
        a, d, pixels = c, b, pixels.swapaxes(0, 1)                                       # (W,H,3)
    return pixels[::-1 if d < 0 else 1, ::-1 if a < 0 else 1]


# How large a frame is before it is cropped decides what the crop sees. Two protocols: the short side
# becomes the crop's (Latte 4.1: as much as it can see); the long side at most 1080 and then a crop of 256
# (VideoDiT 4.1, for the DP-VAE: a piece at its own resolution, whose texture a shrunken video has lost).
def resized(width, height, short=None, long=None):
    """(width, height) with the short side `short` long. long: instead, the long side at most that long, and
    the short side not below `short`. Neither: as it is."""
    scale = short / min(width, height) if short else 1
    if long:
        at_most = min(1, long / max(width, height))
        scale = max(at_most, scale) if short else at_most
    sides = [max(round(side * scale), 1) for side in (width, height)]
    if sides[0] * sides[1] > MAX_PIXELS:          # 1 x 2000 pixels, 512 wide, would be an image of 1.6 GB
        raise Unusable(f"{round(width)} x {height} pixels would become {sides[0]} x {sides[1]}: too large")
    return sides


# When is each frame shown? pts ("presentation time stamp") is a whole number of ticks; times time_base, the
# length of a tick, it is seconds. The header's frame count and rate are guesses made when recording began, so
# we list the stamps themselves. They are also the only safe name of a frame to seek to.
def scan_times(file):
    """(pts, seconds) of a video's frames in the order of showing; pts is None where seeking is not safe.

    mp4 and mkv name each frame's time beside its packet, so their list costs no decoding (a video of 280
    frames: 6 ms). Elsewhere we decode, once."""
    with VideoFile(file) as video:
        pts = list_stamps(video) if video.seekable else None
        if pts is not None:
            tick = video.stream.time_base
            return pts, pts * tick.numerator / tick.denominator              # as PyAV's frame.time has it
    with VideoFile(file) as video:
        return None, order_times(video, [frame.time for frame in video.frames()])


def list_stamps(video):
    """The stamps beside the packets, or None where they are not all there."""
    stamps = set()
    try:
        for packet in video.container.demux(video.stream):
            if packet.is_corrupt:               # a cut file: frames that lean on this piece are announced, and
                return None                     # absent
            if packet.size and not packet.is_discard:
                stamps.add(packet.pts)
    except av.FFmpegError:
        return None
    if None in stamps or not stamps:            # some without a stamp (.mkv that begins below zero): the list
        return None                             # would be short of frames
    return np.array(sorted(stamps))


def order_times(video, times):
    """Seconds for each decoded frame: its own stamp, or, where stamps are missing or out of order (H.264 in
    .avi), its number over the stream's rate."""
    if None in times or any(b <= a for a, b in zip(times, times[1:])):
        times = np.arange(len(times)) / float(video.stream.average_rate or 25)
    return np.array(times, dtype=np.float64)


# Two ways to the pixels, which agree to the last bit (a test compares them): a whole video in order, and some
# frames of it.
def read_all(file, short=None, long=None):
    """(seconds (T,), frames uint8 (T,H,W,3)) of a whole video."""
    with VideoFile(file, short, long) as video:
        times, images = [], []
        for frame in video.frames():
            times.append(frame.time)
            images.append(video.pixels(frame))
        if not images:
            raise Unusable("no frame of it can be decoded")
        return order_times(video, times), np.stack(images)                               # (T,H,W,3)


def read_some(file, pts, wanted, short=None, long=None):
    """The frames with the numbers `wanted` (rising, repeats allowed): enters at the last key frame before.

    A number that never decodes shows what was on screen then, the frame before it."""
    with VideoFile(file, short, long) as video:
        images, number, shown = [], -1, None
        start = None if pts is None else int(pts[wanted[0]])
        for frame in video.frames(start):
            if pts is None:
                number += 1
            elif frame.pts is None:                                  # damaged: nobody knows when it was
                continue
            else:
                number = int(np.searchsorted(pts, frame.pts))
            if shown is None and number > wanted[0]:                 # entered too late: take the long way
                return read_some(file, None, wanted, short, long)
            while shown is not None and len(images) < len(wanted) and wanted[len(images)] < number:
                images.append(video.pixels(shown))
            if len(images) == len(wanted):
                return np.stack(images)                                                  # (T,H,W,3)
            shown = frame
        if shown is None or number < wanted[-1]:
            raise Unusable(f"frame {wanted[-1]} cannot be decoded")
        images += [video.pixels(shown) for _ in wanted[len(images):]]
        return np.stack(images)                                                          # (T,H,W,3)


# "10 frames a second" is asked of the clock: moments 1/fps apart, and for each the frame nearest to it, found
# by bisection between the frames' midpoints. That holds for phones, too, whose rate wanders.
#
#     frames, by their time stamps     |   |  |    |     |  |  |   |
#     moments                             ^     ^     ^     ^
#     taken                              |      |     |     |
def nearest_in_time(times, moments):
    """For each moment the number of the frame that is nearest to it."""
    return np.searchsorted((times[1:] + times[:-1]) / 2, moments)                        # (T,)


def read_at_rate(file, fps, short=None):
    """A whole video as a model of `fps` frames a second would have it: uint8 (T,H,W,3)."""
    times, images = read_all(file, short)
    count = int((times[-1] - times[0] + ROUNDING) * fps) + 1
    return images[nearest_in_time(times, times[0] + np.arange(count) / fps)]             # (T,H,W,3)


# A video is wide, a network's clip is square. Its short side has been resized to at least `size`, so that the
# crop sees as much as it can; here it is placed, once for all frames: a crop that jumps from frame to frame
# would look like a shaking camera, and be learned. rng is the caller's, so the same three numbers (seed,
# epoch, index) give the same crop for ever.
def crop_clip(clip, size, crop, flip, rng):
    """A crop of `size` out of every frame, at one random position or in the middle; perhaps mirrored."""
    height, width = clip.shape[1:3]
    down, across = rng.random(2) if crop == "random" else (0.5, 0.5)
    top, left = round(down * (height - size)), round(across * (width - size))
    clip = clip[:, top:top + size, left:left + size]                                     # (T,H,W,3)
    if flip and rng.random() < 0.5:
        clip = clip[:, :, ::-1]
    return clip


# ---------------------------------------------------------------------------------------------------- images

# An image is a video of one frame, and joint training (VideoDiT A.2, Latte 3.3) needs them as much. What goes
# wrong with images is their kinds of pixel: grey, palette, 16 bits, four inks (CMYK), transparent, colours
# of a wider screen (an ICC profile), and photos that lie on their side with a note to turn them (EXIF). All
# become sRGB, upright, here and nowhere else.
#
# Resizing must average: a pixel of the small image is the mean of all that it covers. Picking one of them
# instead (what torch's interpolate does unless told antialias=True, and Latte's loader with it) turns fine
# stripes into coarse ones that were never there. Pillow's BICUBIC averages; so does FFmpeg's, above.
def read_image(file, short=None, long=None):
    """uint8 (H,W,3), resized(); upright, over white, whatever the file's own kind of pixels."""
    image = Image.open(file)
    if image.width * image.height > MAX_PIXELS:                          # known before anything is decoded
        raise Unusable(f"{image.width} x {image.height} pixels: too large")
    profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):                                           # 16-bit grey
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    elif profile:
        image = to_srgb(image, profile)
    image = over_white(image)
    size = resized(*image.size, short, long)
    return np.asarray(image.resize(size, Image.BICUBIC))                     # (H,W,3)


# The same three bytes are another red on a phone's screen (Display P3) than on the web's (sRGB): a profile in
# the file says which. A profile that is broken is ignored, as browsers do.
def to_srgb(image, profile):
    """The image with the colours that its profile means, in sRGB."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(profile).lower():
            return image
        if image.mode in ("P", "PA"):
            image = image.convert("RGBA")
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image


def over_white(image):
    """Transparent means white, as on a page; dropping the alpha instead shows the black below it."""
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


# ---------------------------------------------------------------------------------------------- saving clips

# Results have to play where a person looks at them: a browser, a phone, a slide. One form does everywhere:
# H.264 in an .mp4, 4:2:0, its index ("moov") in front of the data, so that playing begins at once. crf says
# how much may be lost: 0 nothing, 51 nearly all; x264's own default is 23. Above some 36 dB more
# bytes buy nothing: what is left is the colours that 4:2:0 has averaged away. .gif plays in a README, but has
# only 256 colours.
def save_video(path, video, fps=12, crf=14, side=16):
    """Write (3,T,H,W) in [-1,1], or uint8 (T,H,W,3), as .mp4 or .gif, by the path's extension.

    H.264 in 4:2:0 with the index in front is what every browser plays. It wants even sides, so an odd one
    gets its last row or column twice. Clips smaller than `side` are enlarged whole times."""
    if not 0 < fps < math.inf:                              # nan is not, either
        raise UserError(f"--fps {fps}: a video has a number of frames a second; give one, such as 12")
    frames, path = to_frames(video), Path(path)
    zoom = math.ceil(side / min(frames.shape[1:3]))
    frames = frames.repeat(zoom, axis=1).repeat(zoom, axis=2)                            # (T,zoom*H,zoom*W,3)
    if path.suffix.lower() == ".gif":
        first, *rest = [Image.fromarray(frame) for frame in frames]
        write_atomic(path, lambda to: first.save(to, format="GIF", save_all=True, append_images=rest,
                                                 duration=round(1000 / fps), loop=0))
        return
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
        return save_image(path, Image.fromarray(frames[0]))
    hidden = path.with_name(f".{path.name}.{HOST}.{os.getpid()}.tmp")
    hidden.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(hidden / f"{number:06d}.png")
    os.replace(hidden, path)


def save_image(path, image):
    """Write a Pillow image as .png, whole or not at all; returns it. path None: it is not written."""
    if path:
        write_atomic(path, lambda to: image.save(to, format="PNG"))
    return image
