"""pages.py - what a person opens in a browser: OUT/report.html of a training, out/index.html of clips."""

import base64
import html
import json
import math
from pathlib import Path

from support.checkpoints import read_log, write_atomic
from support.cli import UserError


# ---------------------------------------------------------------------------------------------- the report

# A curve says whether a run learns, a row of previews says what. The page needs no library: an SVG polyline
# is a list of points, a picture is its bytes in base64, and a browser has drawn both for twenty years.

# What a look at the page tells. A loss that falls while previews stay grey: the sampler or the VAE. Norms
# that grow while the loss is flat: the rate is too high, divergence is near. A dit loss of 1.0 and no less:
# the network answers with the mean, its condition does not reach it. Waits that rise in steps: a slow disk.
# A loss that jumps back at each resume: the resumed run is not the same run, which here would be a bug.

def report(out):
    """OUT/report.html: of each stage its curves, previews, last numbers and settings, and what eval.py found.
    One file with all its pictures in it, without a script: it opens from a mail, in ten years, too."""
    out = Path(out)
    stages = sorted((path.parent for path in out.glob("*/log.jsonl")), key=lambda path: path.stat().st_mtime)
    if not stages:
        raise UserError(f"{out}: no stage's log.jsonl in it; give the --out of a training")
    name = html.escape(out.name)
    parts = [f"<!doctype html><meta charset=utf-8><title>{name}</title><style>{STYLE}</style><h1>{name}</h1>"]
    for folder in stages:
        lines = read_log(folder / "log.jsonl")
        parts.append(f"<h2>{html.escape(folder.name)}</h2>")
        if lines:
            last = {key: value for key, value in lines[-1].items() if isinstance(value, (int, float))}
            parts.append(table([last.keys(), [f"{value:.6g}" for value in last.values()]]))
            parts += [curve(key, [(line["step"], line.get(key)) for line in lines]) for key in lines[-1]
                      if key not in ("step", "eta_s", "skipped", "steps_per_s", "memory_gb")]
        shown = sorted(path for path in folder.glob("*.png") if path.stem.isdigit())
        for path in shown[::-1][::max(len(shown) // 12, 1)][::-1]:      # a dozen, the last among them
            picture = base64.b64encode(path.read_bytes()).decode()
            parts.append(f"<figure><img src='data:image/png;base64,{picture}'>"
                         f"<figcaption>step {int(path.stem)}</figcaption></figure>")
        if (folder / "settings.json").is_file():
            parts.append("<details><summary>settings</summary><pre>"
                         f"{html.escape((folder / 'settings.json').read_text('utf-8'))}</pre></details>")
    for path in sorted([*out.glob("*.json"), *out.glob("*/*.json")]):
        if path.name != "settings.json":
            parts.append(f"<h2>{html.escape(str(path.relative_to(out)))}</h2><pre>"
                         f"{html.escape(path.read_text('utf-8', errors='replace')[:4000])}</pre>")
    write_atomic(out / "report.html", lambda to: to.write_text("\n".join(parts), "utf-8"))
    print(f"{out / 'report.html'}: {len(stages)} stages")


# Wide enough for a curve with its numbers, three in a row on a laptop; previews as large as they were drawn.
STYLE = ("body{font:14px sans-serif;margin:2em;max-width:80em}td{padding:.1em .7em;text-align:right}"
         "figure,svg{display:inline-block;margin:.5em;vertical-align:top}img{max-width:38em}"
         "polyline{fill:none;stroke:#1f5fa8;stroke-width:1.3}text{font-size:11px;fill:#555}")


def table(rows):
    return "<table>" + "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}" for cell in row)
                               for row in rows) + "</table>"


# The line is thinned to 600 points, which is more than the picture has pixels across.

def curve(name, points, wide=340, high=170):
    """An inline SVG of (step, value or None), without the points that were not finite.

    Its corners say the smallest and largest value and the first and last step: enough to read a curve by."""
    real = [(x, y) for x, y in points if isinstance(y, (int, float)) and math.isfinite(y)]
    if not real:
        return ""
    thin = real[::max(len(real) // 600, 1)]
    (left, right), (low, top) = ((min(values), max(values)) for values in zip(*real))
    place = lambda x, y: (f"{40 + (x - left) / ((right - left) or 1) * (wide - 50):.1f},"
                          f"{high - 25 - (y - low) / ((top - low) or 1) * (high - 50):.1f}")
    return (f"<svg width={wide} height={high}><text x=40 y=14>{html.escape(name)}</text>"
            f"<text x=0 y={high - 25}>{low:.3g}</text><text x=0 y=30>{top:.3g}</text>"
            f"<text x=40 y={high - 8}>step {left}</text><text x={wide - 70} y={high - 8}>{right}</text>"
            f"<polyline points='{' '.join(place(x, y) for x, y in thin)}'/></svg>")


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>body{{font:15px/1.45 system-ui,sans-serif;margin:1.5rem;background:#fafafa;color:#222}}
main{{display:grid;grid-template-columns:repeat(auto-fill,minmax(260px,1fr));gap:1.2rem}}
figure{{margin:0}}video,img{{width:100%;border-radius:6px;background:#ddd;image-rendering:pixelated}}
small{{color:#666;word-break:break-word}}</style>
<h1>{title}</h1><main>
{cards}
</main></html>
"""


# The page is made anew from the .json files each time, so there is no second list that could disagree with
# the folder; a clip that was deleted by hand is gone from it, and one copied in from elsewhere is there.
def write_page(out):
    """out/index.html: every clip of the folder, newest first, from the files beside it; no script and no
    network, so that it plays from a disk, and is mailed by mailing the folder."""
    cards = []
    for path in out.glob("*.json"):
        try:
            about = json.loads(path.read_text("utf-8"))
            made, prompt = about["made"], about["prompt"]
        except (ValueError, KeyError, TypeError, OSError):
            continue                                        # not one of ours
        film, picture = path.with_suffix(".mp4"), path.with_suffix(".png")
        if film.is_file():
            shown = f'<video src="{film.name}" autoplay loop muted playsinline controls></video>'
        elif picture.is_file():
            shown = f'<img src="{picture.name}" alt="{html.escape(prompt)}" loading="lazy">'
        else:
            continue
        settings = ", ".join(f"{key} {value}" for key, value in about.items()
                             if key not in ("prompt", "torch", "index") and value not in ("", None, []))
        cards.append((made, path.name, f"<figure>{shown}<figcaption><b>{html.escape(prompt or path.stem)}</b>"
                                       f"<br><small>{html.escape(path.stem)}: {html.escape(settings)}</small>"
                                       "</figcaption></figure>"))
    text = PAGE.format(title=f"{len(cards)} clips", cards="\n".join(card for *_, card in sorted(cards)[::-1]))
    write_atomic(out / "index.html", lambda temporary: temporary.write_text(text, "utf-8"))
