"""pages.py - what a person opens in a browser: OUT/report.html of a training, out/index.html of clips.

Both are one file without a script and without a network: it opens from a disk, a mail, and in ten years, too.
In light and dark, as the person's browser asks for; on a phone as on a screen."""

import base64
import contextlib
import html
import json
import math
from pathlib import Path
from urllib.parse import quote

from support.checkpoints import read_log, write_atomic
from support.cli import UserError


# Without colours of its own a page takes the browser's, light or dark; these few are seen on both.
STYLE = """
:root { color-scheme: light dark; --soft: #7b858f; --edge: #8885; --line: #2b8acb; --pale: #2b8acb66 }
body { margin: 0 auto; padding: 1.5rem clamp(.8rem, 3vw, 2rem); max-width: 1200px;
       font: 15px/1.5 system-ui, sans-serif }
h2 { margin: 0 0 .6rem } .soft, small, summary { color: var(--soft) }
section { margin: 1.2rem 0; padding: 1rem; border: 1px solid var(--edge); border-radius: 8px }
figure { margin: 0; min-width: 0 } figcaption { overflow-wrap: anywhere }
img, video { display: block; max-width: 100%; border-radius: 4px; image-rendering: pixelated }
.clips img, .clips video { width: 100% }
.clips, .curves, .previews { display: grid; gap: 1.2rem; margin-top: 1rem;
       grid-template-columns: repeat(auto-fill, minmax(min(100%, 240px), 1fr)) }
.previews { grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)) }
.curves figure { display: flex; flex-direction: column } .curves figcaption { flex: 1 }
.plot, .steps { display: flex; gap: .4rem; font-size: 12px; color: var(--soft); line-height: 1.2 }
.plot div { display: flex; flex-direction: column; justify-content: space-between; text-align: right }
.plot svg { flex: 1; min-width: 0; height: 80px; border: 1px solid var(--edge); border-radius: 4px }
.loss svg { height: 240px !important } .steps { justify-content: space-between }
polyline { fill: none; stroke: var(--line); stroke-width: 1.6; vector-effect: non-scaling-stroke }
polyline.each { stroke: var(--pale); stroke-width: 1 } polyline.beside { stroke-dasharray: 6 3 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px }
"""


def write_html(path, title, body):
    text = (f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style>\n'
            f"<h1>{html.escape(title)}</h1>\n" + "\n".join(body) + "\n</html>\n")
    write_atomic(path, lambda to: to.write_bytes(text.encode("utf-8", "replace")))


def short(value):
    """A number as a person reads it: three digits, above 1000 all whole ones; and no minus before a zero."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return str(value)
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    return f"{value:z.3g}"                                  # z: -0 is 0


# ---------------------------------------------------------------------------------------------- the report

# A curve says whether a run learns, a row of previews says what. What a look at the page tells: a loss that
# falls while previews stay grey: the sampler or the VAE. Norms that grow while the loss is flat: the learning
# rate is too high, divergence is near. A dit loss of 1.0 and no less: the network answers with the mean, its
# condition does not reach it. Waits that rise in steps: a slow disk. A loss that jumps back at each resume:
# the resumed run is not the same run, which here would be a bug.

# What the columns of log.jsonl are. The first that is no bookkeeping is the stage's loss.
BOOKKEEPING = {
    "lr": "learning rate", "norm": "gradient norm, before it is clipped", "skipped": "steps left out so far",
    "wait": "share of the time spent waiting for data", "steps_per_s": "steps a second",
    "samples_per_s": "clips or images a second", "memory_gb": "GB, the peak", "eta_s": "seconds to the end"}
LOSSES = {
    "mse": "squared error of the pixels", "kl": "KL divergence of the latents from N(0,1)",
    "lpips": "perceptual distance", "gan": "the discriminator's verdict, as a loss",
    "disc": "the discriminator's own loss", "key": "squared error of the key frames by D_k",
    "stat": "VideoDiT Eq. 3: z's statistics against z_k's", "vb": "L_vlb, in bits",
    "words": "which words are in the prompt, asked of the text encoder"}
MEANING = BOOKKEEPING | LOSSES
BY_TIME = ("train_t", "valid_t")                            # train.py: the loss in eighths of the path


def report(out):
    """OUT/report.html: of each stage its curves, previews and settings."""
    out = Path(out)
    stages = sorted((path.parent for path in out.glob("*/log.jsonl")), key=lambda path: path.stat().st_mtime)
    if not stages:
        raise UserError(f"{out}: no stage's log.jsonl in it; give the --out of a training")
    body = ['<p class="soft">In the order of training. Of a curve, pale is what each line of the log says, '
            "dark the mean of its neighbours; the number is where that ends.</p>"]
    for stage in stages:
        body += [f'<section id="{quote(stage.name)}">', *stage_report(stage), "</section>"]
    write_html(out / "report.html", out.resolve().name, body)
    print(f"{out / 'report.html'}: {len(stages)} stages")


def stage_report(folder):
    """The parts of a stage, as HTML."""
    lines = read_log(folder / "log.jsonl")
    name = html.escape(folder.name)
    if not lines:
        return [f"<h2>{name}</h2><p>nothing logged yet</p>"]
    last = lines[-1]
    parts = [f'<h2>{name} <span class="soft">step {short(last["step"])}</span></h2>']

    def points(key):
        return [(line["step"], line.get(key)) for line in lines]

    losses = [key for key in last if key not in ("step", *BOOKKEEPING) and not key.startswith(BY_TIME)]
    if losses:
        parts.append(f'<div class="loss">{curve("loss", points(losses[0]))}</div>')
    drawn = losses[1:] + [key for key in BOOKKEEPING if key in last]
    parts.append('<div class="curves">' + "".join(curve(key, points(key)) for key in drawn) + "</div>")
    times = {key.partition("_t")[2] for line in lines for key in line if key.startswith(BY_TIME)}
    if times:
        parts.append("<p>The loss by the time t, of training and, dashed, on clips that no step sees:</p>"
                     '<div class="curves">')
        parts += [curve(f"t = {time}", points(f"train_t{time}"), points(f"valid_t{time}"))
                  for time in sorted(times, key=float)]
        parts.append("</div>")
    parts += previews(folder)
    if (folder / "settings.json").is_file():
        settings = html.escape((folder / "settings.json").read_text("utf-8", errors="replace"))
        parts.append(f"<details><summary>settings</summary><pre>{settings}</pre></details>")
    return parts


def previews(folder):
    """A dozen at most, the last one among them: an image is its bytes in base64."""
    shown = sorted(path for path in folder.glob("*.png") if path.stem.isdigit() and path.is_file())
    if not shown:
        return []
    every = math.ceil(len(shown) / 12)
    figures = []
    for path in shown[::-1][::every][::-1]:
        data = base64.b64encode(path.read_bytes()).decode()
        figures.append(f'<figure><img src="data:image/png;base64,{data}" alt="">'
                       f"<figcaption><small>step {int(path.stem):,}</small></figcaption></figure>")
    return ['<div class="previews">', *figures, "</div>"]


# A curve is an SVG polyline: a list of points. What it says in words stands beside it, outside the drawing,
# which may then be stretched to any width. Losses of diffusion are noisy, most of them is noise that nobody
# could predict: so each point is drawn pale, and over it the mean of its neighbours, which sets the frame.

def finite(points):
    return [(x, y) for x, y in points if isinstance(y, (int, float)) and math.isfinite(y)]


def curve(name, points, beside=(), wide=600, high=200):
    """A figure of (step, value or None), without the values that were not finite; beside it, dashed, another
    curve in the same frame."""
    real, beside = finite(points), finite(beside)
    if not real:
        return ""
    real = real[::max(len(real) // wide, 1)]
    around = len(real) // 40
    means = []
    for i, (x, _) in enumerate(real):
        near = [y for _, y in real[max(i - around, 0):i + around + 1]]
        means.append((x, sum(near) / len(near)))
    heights = [y for _, y in means + beside]
    low, top = min(heights), max(heights)
    first, last = real[0][0], real[-1][0]

    def line(points, kind):
        places = []
        for x, y in points:
            right = (x - first) / ((last - first) or 1) * wide
            down = (top - y) / ((top - low) or 1) * (high - 10) + 5
            places.append(f"{right:.1f},{down:.1f}")
        return f'<polyline class="{kind}" points="{" ".join(places)}"/>'

    lines = line(means, "mean")
    if around:
        lines = line(real, "each") + lines
    lines += line(beside, "beside")
    meaning = f" <small>{MEANING[name]}</small>" if name in MEANING else ""
    if beside:
        meaning = f" <small>held out {short(beside[-1][1])}</small>"
    return (f"<figure><figcaption><b>{html.escape(name)}</b> {short(means[-1][1])}{meaning}</figcaption>"
            f'<div class="plot"><div><span>{short(top)}</span><span>{short(low)}</span></div>'
            f'<svg viewBox="0 0 {wide} {high}" preserveAspectRatio="none">{lines}</svg></div>'
            f'<div class="steps"><span>step {short(first)}</span><span>{short(last)}</span></div></figure>')


# ------------------------------------------------------------------------------------------- a folder's clips

# The page is made anew from the .json files each time, so there is no second list that could disagree with
# the folder; a clip that was deleted by hand is gone from it, and one copied in from elsewhere is there. What
# else lies in the folder, whatever it is, is passed over: another program's .json must not end all pages.
def write_page(out):
    """out/index.html: every clip of the folder, newest first, from the files beside it: who mails the folder
    mails the page."""
    cards = []
    for path in out.glob("*.json"):
        about = settings_of(path)
        if about and (shown := player(path, about["prompt"])):
            cards.append((about["made"], path.name, card(path, about, shown)))
    cards = [card for _, _, card in sorted(cards)[::-1]]
    write_html(out / "index.html", "clips", ['<main class="clips">', *cards, "</main>"])


def settings_of(path):
    """What sample.py wrote of a clip; None if the file is something else."""
    with contextlib.suppress(ValueError, RecursionError, OSError):
        if path.is_file() and path.stat().st_size <= 1 << 20:
            about = json.loads(path.read_text("utf-8"), parse_int=float)      # no number of 400 digits
            if isinstance(about, dict) and all(isinstance(about.get(key), str) for key in ("prompt", "made")):
                return about
    return None


def player(path, prompt):
    """The clip or image that lies beside its settings, as HTML; "" if there is none."""
    source = quote(path.stem, errors="replace")
    if path.with_suffix(".mp4").is_file():
        return f'<video src="{source}.mp4" autoplay loop muted playsinline controls></video>'
    if path.with_suffix(".png").is_file():
        return f'<img src="{source}.png" alt="{html.escape(prompt)}" loading="lazy">'
    return ""


COMPARED = ("ckpt", "model", "sampler", "steps", "guidance", "cfg", "temperature", "seed", "negative")


def card(path, about, shown):
    """A clip with its prompt, its name, and what one compares clips by; the rest is in the .json beside it."""
    told = [f"{key} {short(about[key])[:200]}" for key in COMPARED if about.get(key) not in ("", None, [])]
    return (f"<figure>{shown}<figcaption><b>{html.escape(about['prompt'] or path.stem)}</b>"
            f"<br><small>{html.escape(', '.join(told))}<br>{html.escape(path.stem)}</small>"
            "</figcaption></figure>")
