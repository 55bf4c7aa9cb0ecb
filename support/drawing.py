"""drawing.py - contact sheets, curves, heat maps and pages of them, with Pillow alone.

Everything here takes arrays or tensors and returns a PIL picture, which is saved where a path is given."""

import itertools
import math

from PIL import Image, ImageColor, ImageDraw, ImageFont
import numpy as np

from support.video_io import save_image, to_frames


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
    return save_image(path, sheet)


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
    return save_image(path, image.reduce(FINE))                                        # size: (w,h)


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
    return save_image(path, sheet)
