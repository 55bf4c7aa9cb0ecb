"""What a person opens in a browser: complete, readable, and not harmed by what else lies in the folder."""

import json
import os
import shutil

import pytest

from support import pages
from support.cli import UserError


def test_the_report_is_one_page_with_curves_images_and_settings(tiny, tmp_path):
    """Without a script, and with nothing beside it; the loss comes first, previews under their stage."""
    out = tmp_path / "run"
    for stage in ("dit", "vae"):
        (out / stage).mkdir(parents=True)
        for name in ("log.jsonl", "settings.json"):
            shutil.copy(tiny.folder / stage / name, out / stage / name)
        shutil.copy(next((tiny.folder / stage).glob("*.png")), out / stage)
    pages.report(out)
    page = (out / "report.html").read_text()
    assert page.count("<svg") >= 6 and page.count("data:image/png;base64") == 2 and "<script" not in page
    assert "step 20" in page and "&quot;batch&quot;: 8" in page
    dit = page[page.index('id="dit"'):]
    assert dit.index("<b>loss</b>") < dit.index("learning rate") < dit.index("<img")
    assert "<b>t = 0.44</b>" in dit and "held out" in dit       # by its time, beside the held-out loss
    with pytest.raises(UserError, match="no stage's log.jsonl in it"):
        pages.report(tmp_path / "nowhere")


def test_a_curve_passes_over_numbers_that_are_none():
    """null in the log is a step that was left out."""
    drawn = pages.curve("loss", [(1, 2.0), (2, None), (3, 1.0)])
    assert drawn.count(",") == 2 and "step 1" in drawn and pages.curve("loss", [(1, None)]) == ""


@pytest.mark.parametrize("value, text", [
    (0.123456, "0.123"), (3e-4, "0.0003"), (240512.3, "240,512"), (-0.0, "0"), (0, "0"), ("euler", "euler")])
def test_numbers_have_three_digits_and_zero_no_sign(value, text):
    assert pages.short(value) == text


def a_clip(out, name, **about):
    """What sample.py leaves of an image; its .json holds what is said here, too."""
    (out / f"{name}.png").write_bytes(b"")
    (out / f"{name}.json").write_text(json.dumps({"prompt": "a cat", "made": "2025", "seed": 3} | about))


def test_the_page_shows_every_clip_newest_first(tmp_path):
    """The files beside it; prompts, settings and file names as text and not as HTML, no script."""
    a_clip(tmp_path, "0000-a-b-cat-b", prompt="a <b>cat</b>", made="2024")
    a_clip(tmp_path, "0001-a-dog")
    a_clip(tmp_path, 'x"><script>alert(1)<')
    pages.write_page(tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert page.index("0001-a-dog.png") < page.index("0000-a-b-cat-b.png")
    assert "a &lt;b&gt;cat&lt;/b&gt;" in page and "seed 3" in page and page.count("<figure>") == 3
    assert "<script" not in page and "http" not in page


def test_another_programs_json_spoils_no_page(tmp_path):
    """A number for a prompt, JSON 100,000 deep, a list, a FIFO, half a file, half a letter (a surrogate)."""
    a_clip(tmp_path, "0000-a-cat")
    a_clip(tmp_path, "0001-half-a-letter", prompt="a \udcff cat")
    a_clip(tmp_path, "five", prompt=5)
    for name, text in (("deep", "[" * 100_000), ("list", "[1]"), ("half", '{"prompt": "a'), ("null", "null")):
        (tmp_path / f"{name}.json").write_text(text)
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "fifo.json")
    pages.write_page(tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert page.count("<figure>") == 2 and "0000-a-cat.png" in page and "five" not in page
