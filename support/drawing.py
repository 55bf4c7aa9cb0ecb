"""drawing.py - contact sheets, curves, heat maps and pages of them, with Pillow alone.

Everything here takes arrays or tensors and returns a PIL image (`heat`: an array for `page`), which is saved
where a path is given."""

import itertools
import math

from PIL import Image, ImageColor, ImageDraw, ImageFont
import numpy as np

from support.video_io import save_image, to_frames


# A video cannot be printed, so training's previews and sample.py lay its frames side by side. Enlarged by
# whole numbers only, each pixel a square: smoothing would hide just the faults that one looks for.
def contact_sheet(path, videos, labels=None, columns=8, side=96, gap=4):
    """A .png with a clip a row and `columns` of its frames, first to last, enlarged whole times to `side`.
    labels: a line of text above each row. Returns the image; path None: it is not saved."""
    rows = []
    for frames in map(to_frames, videos):
        zoom = math.ceil(side / max(frames.shape[1:3]))
        picks = np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)
        frames = frames[picks].repeat(zoom, axis=1).repeat(zoom, axis=2)                 # (columns,H,W,3)
        frames = np.pad(frames, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
        rows.append(np.concatenate(list(frames), axis=1)[:, :-gap])                      # (H,columns*W,3)
    return page(path, rows, labels, columns=1, gap=gap)


# ------------------------------------------------------------------------------------- what the lessons draw

# `python FILE.py` of every lesson ends by drawing its subject, with these three: curves in a frame (plot), a
# matrix as shades (heat), several such on one page (page). They need nothing but Pillow. It draws edges
# without smoothing them, so a plot is drawn 3 times too large and then each 3 x 3 pixels become their mean.
#
# The one idea in it is Axes.pixel, from a number to a pixel: subtract the least, divide by the range,
# multiply by the frame's size, and turn upside down, since an image counts its rows from the top.

FINE = 3
# Okabe and Ito's colours: colour-blind eyes tell them apart, and so does a grey print
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222")
GREY, PALE = "#666666", "#e2e2e2"


class Axes:
    """The frame of a plot: which numbers it shows, low to high, and where, in pixels of the image as it will be;
    (2,) each, x and y. It holds all of these points, with some room."""

    def __init__(self, points, size, square):
        low, high = points.min(0), points.max(0)
        room = np.where(high > low, high - low, np.maximum(np.abs(high), 1)) / 20
        self.low, self.high = low - room, high + room
        self.corner, self.extent = np.array([60, 60]), np.array(size) - [84, 106]
        if square:
            middle = (self.low + self.high) / 2
            half = ((self.high - self.low) / self.extent).max() * self.extent / 2
            self.low, self.high = middle - half, middle + half

    def pixel(self, at):
        """(n,2) numbers -> (n,2) pixels of the large drawing."""
        share = (at - self.low) / (self.high - self.low)
        upright = np.array([0, 1]) + [1, -1] * share
        return FINE * (self.corner + upright * self.extent)


def plot(path, curves, title="", x="", y="", *, size=(640, 400), square=False):
    """Draw curves in a frame; returns the image, and saves it unless path is None.

    curves    {name: (xs, ys)} or {name: (xs, ys, style)}: "-" a line, "~" a thin pale one, "." dots. A name
              that starts with "_" takes the colour of the one before it and stands in no legend: one of many
    x, y      what the axes show
    square    a unit is as long on both axes, as on a map"""
    lines = {name: np.stack([np.asarray(xs, np.float64), np.asarray(ys, np.float64)], 1)        # (n,2)
             for name, (xs, ys, *_) in curves.items()}
    axes = Axes(np.concatenate(list(lines.values())), size, square)

    image = Image.new("RGB", (FINE * size[0], FINE * size[1]), "white")
    pen = ImageDraw.Draw(image)
    draw_frame(pen, axes)
    write(pen, (16, 22), title, 17)
    write(pen, (16, 46), y, 12, GREY)
    write(pen, (size[0] - 24, size[1] - 12), x, 12, GREY, "rm")
    shown = [name for name in lines if name[:1] != "_"]
    inks = dict(zip(shown, itertools.cycle(COLOURS)))
    ink = COLOURS[0]
    for name, line in lines.items():
        ink = inks.get(name, ink)
        draw_curve(pen, axes.pixel(line), ink, *curves[name][2:])
    right = size[0] - 24
    for name in reversed(shown):                                             # the legend, from the right
        write(pen, (right, 46), name, 12, inks[name], "rm")
        right -= font(12).getlength(name) / FINE + 18
    return save_image(path, image.reduce(FINE))                                          # size: (w,h)


# A reader finds 2, 4, 6 at once, and 1.7, 3.4, 5.1 never. So the distance between marks is 1, 2 or 5 times a
# power of ten, the first of them that gives no more than six marks.
def round_numbers(low, high):
    """Where an axis gets its numbers: about five of them."""
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(digit for digit in (1, 2, 5, 10) if (high - low) / (step * digit) <= 6)
    marks = [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [mark for mark in marks if low <= mark <= high]


def draw_frame(pen, axes):
    """The grid and its numbers."""
    for axis, anchor, shift in ((0, "mt", (0, 6)), (1, "rm", (-6, 0))):
        for mark in round_numbers(axes.low[axis], axes.high[axis]):
            ends = np.stack([axes.low, axes.high])                                       # (2,2)
            ends[:, axis] = mark
            ends = axes.pixel(ends)                                                      # (2,2)
            pen.line(ends.ravel().tolist(), fill=PALE, width=FINE)
            write(pen, ends[0] / FINE + shift, f"{mark:.6g}", 12, GREY, anchor)
    frame = FINE * np.stack([axes.corner, axes.corner + axes.extent])                    # (2,2)
    pen.rectangle(frame.ravel().tolist(), outline="#999999", width=FINE)


def draw_curve(pen, points, ink, style="-"):
    """One curve, (n,2) in pixels."""
    wide = 2 * FINE
    if style == ".":
        for dot in points:
            pen.ellipse([*(dot - wide), *(dot + wide)], fill=ink)
        return
    if style == "~":
        ink = tuple(255 - (255 - level) * 2 // 5 for level in ImageColor.getrgb(ink))
        wide = FINE
    pen.line(points.ravel().tolist(), fill=ink, width=wide, joint="curve")


def font(points):
    return ImageFont.load_default(points * FINE)            # Pillow brings its own: the same everywhere


def write(pen, at, text, points=12, ink="#222222", anchor="lm"):
    pen.text((at[0] * FINE, at[1] * FINE), text, fill=ink, font=font(points), anchor=anchor)


def heat(matrix, cell=8, top=None):
    """(h,w) of numbers -> uint8 (h*cell,w*cell,3): 0 is white, `top` (None: the largest) the darkest blue.

    One hue, darker for more, so that it reads the same in grey; a rainbow shows edges that are not there."""
    share = np.clip(np.asarray(matrix, np.float64) / max(top or np.max(matrix), 1e-12), 0, 1)
    stops = [(255, 255, 255), (158, 202, 225), (33, 113, 181), (8, 29, 78)]
    colours = [np.interp(share, np.linspace(0, 1, 4), levels) for levels in zip(*stops)]
    return np.stack(colours, -1).round().astype(np.uint8).repeat(cell, 0).repeat(cell, 1)  # (h*cell,w*cell,3)


def page(path, images, labels=None, columns=2, gap=12):
    """Several images (of plot, of heat, uint8 (H,W,3)) on one .png, `columns` in a row, labels above."""
    images = [image if isinstance(image, Image.Image) else Image.fromarray(image) for image in images]
    head = 16 if labels else 0
    rows = [images[start:start + columns] for start in range(0, len(images), columns)]
    widths = [max(image.width for image in images[column::columns]) for column in range(len(rows[0]))]
    if labels:                                              # a label may be wider than its image
        words = [max(map(len, labels[column::columns])) for column in range(len(widths))]
        widths = [max(width, 6 * letters) for width, letters in zip(widths, words)]
    heights = [max(image.height for image in row) + head for row in rows]
    size = sum(widths) + gap * (len(widths) + 1), sum(heights) + gap * (len(rows) + 1)
    sheet = Image.new("RGB", size, "white")
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        left = sum(widths[:column]) + gap * (column + 1)
        top = sum(heights[:row]) + gap * (row + 1)
        sheet.paste(image, (left, top + head))
        if labels:
            ImageDraw.Draw(sheet).text((left + 2, top + 2), labels[number], fill="black")
    return save_image(path, sheet)
