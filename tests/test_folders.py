"""Tests of folders.py: what people's folders hold, told rightly or refused in a line."""

import json
import logging
import os
import re
import subprocess
import sys
import unicodedata

import pytest

import data
from support import toy_world
from support import folders
from support.cli import UserError
from conftest import clips_in, images_in, make_clip, make_image


def write(root, files):
    """{name: text or bytes} under root; a str is written as UTF-8."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def told(root, of):
    """[(first caption, its source), ...] of these files."""
    said = folders.Captions(root, folders.list_files(root), of)
    return [(captions[0], source) for captions, source in map(said.lookup, range(len(of)))]


# ----------------------------------------------------------------------------------------------------- files

def test_links_that_lead_in_circles_end_and_pipes_are_left_out(tmp_path, caplog):
    """Two links to "." are 2^40 paths, and a FIFO waits for ever for somebody to write. A link to a folder
    elsewhere is followed, once: data sets are linked into place."""
    write(tmp_path, {"a/x.mp4": "", "b/y.mp4": ""})
    for name in ("here", "a/up", "b/up"):
        os.symlink(tmp_path, tmp_path / name)
    os.symlink(tmp_path / "gone.txt", tmp_path / "x.txt")
    os.symlink("x.mp4", tmp_path / "x.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert folders.list_files(tmp_path) == ["a/x.mp4", "b/y.mp4"]
    assert f"left out 6 entries of {tmp_path}: pipe.mp4: not a regular file; x.mp4: a link to nothing" in caplog.text
    assert "here: a link to a folder that is read already" in caplog.text
    write(tmp_path, {"store/c.mp4": "", "set/d.mp4": ""})
    for name in ("one", "two"):
        os.symlink(tmp_path / "store", tmp_path / "set" / name)
    assert folders.list_files(tmp_path / "set") == ["d.mp4", "one/c.mp4"]


def test_names_that_are_not_utf8_and_closed_folders_are_left_out_with_a_reason(tmp_path, caplog):
    """They crash whatever prints them; a folder without permission must not vanish. Codes that a terminal
    would obey are shown instead."""
    make_image(tmp_path / "a.png")
    os.mkfifo(tmp_path / "\x1b[31mred.png")
    try:
        open(os.fsencode(tmp_path) + b"/b\xff.png", "wb").close()
    except OSError:
        pytest.skip("this file system keeps such names out itself")
    (tmp_path / "closed").mkdir(mode=0)
    assert folders.list_files(tmp_path) == ["a.png"]
    assert "its name is not UTF-8" in caplog.text
    assert "\\x1b[31mred.png: not a regular file" in caplog.text and "\x1b" not in caplog.text
    assert os.geteuid() == 0 or "closed: a folder that cannot be read" in caplog.text


def test_one_video_or_image_is_a_data_set(tmp_path):
    """With its .txt; what lies beside it is not its business."""
    make_clip(tmp_path / "my clip.mp4", 20)
    make_clip(tmp_path / "b.mp4", 20)
    make_image(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a red square")
    clips = clips_in(tmp_path / "my clip.mp4", 4, 16)
    assert clips.names == ["my clip.mp4"] and clips.captions == ["my clip"]
    assert data.open_source(tmp_path / "a.png", data.ClipConfig(1, 8)).item(0)["caption"] == "a red square"


def test_endings_of_cameras_and_discs_are_read_and_others_counted(tmp_path, capsys, monkeypatch):
    """Whatever is in them, PyAV looks; python data.py says what it passed by."""
    content = make_clip(tmp_path / "a.mp4", 20).read_bytes()
    endings = ["m4v", "mpg", "mpeg", "wmv", "MTS", "ts", "3gp", "flv", "ogv"]
    write(tmp_path, {f"b.{ending}": content for ending in endings} | dict.fromkeys(
        ["x.json", "y.json", "notes.txt", "README"], "?"))
    monkeypatch.setattr(sys, "argv", ["data.py", str(tmp_path)])
    data.main()
    said = capsys.readouterr().out
    assert "10 of 10 videos" in said and "passed by  2 .json, 1 no ending, 1 .txt" in said


def test_captions_that_all_are_equal_are_said(tmp_path, caplog):
    """Mostly a table was meant that is not found; one caption of one clip is none of these."""
    for name in ("videos/a.mp4", "videos/b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        make_clip(tmp_path / name, 20)
    clips_in(tmp_path / "videos/a.mp4", 4, 16)
    assert "captions" not in caplog.text
    clips_in(tmp_path, 4, 16)
    assert 'all of the captions looked at are "videos"; docs/data.md' in caplog.text


@pytest.mark.parametrize("make, words", [
    (lambda path: None, "is not there"), (lambda path: path.mkdir(), "found no file at all"),
    (lambda path: path.write_text("?"), "is no folder, video, image or .tar")])
def test_a_wrong_path_is_told_by_its_flag(tmp_path, make, words):
    """Before anything is trained."""
    make(tmp_path / "clips")
    with pytest.raises(UserError, match=f"--data: .*clips.*{words}"):
        data.check_source("--data", tmp_path / "clips")


# ------------------------------------------------------------------------------------- train and test, twice

@pytest.mark.parametrize("train, test", [
    ("sky_train/v/v_1", "sky_test/v/v_1"), ("train/videos", "test/videos"), ("a/Training", "a/val")])
def test_of_a_root_that_holds_train_and_test_one_is_taken_and_said(caplog, train, test):
    """SkyTimelapse, FaceForensics; an evaluation may ask for the other. Files of neither stay: tables."""
    names = [f"{folder}/{number}.png" for folder in (train, test) for number in range(3)] + ["metadata.csv"]
    kept, which = folders.choose_split("root", names)
    assert which == "train" and kept == names[:3] + names[6:]
    assert "train is taken, 4 of 7 files" in caplog.text
    other = "val" if "val" in test else "test"
    assert folders.choose_split("root", names, other) == (names[3:], other)
    with pytest.raises(UserError, match="root holds .* and .*, no "):
        folders.choose_split("root", names, "test" if other == "val" else "val")


def test_a_class_that_is_called_train_is_no_split():
    """Locomotives beside cars; and a folder of a split alone is the whole data set."""
    for names in (["train/1.mp4", "car/1.mp4"], ["sky_train/v/1.png", "sky_train/v/2.png"]):
        assert folders.choose_split("root", names) == (names, "")


def test_ucf101s_lists_choose_a_split(tmp_path):
    """trainlist01.txt and testlist01.txt, for videos and for folders of frames."""
    names = ["UCF-101/YoYo/v_YoYo_g01_c01.avi", "UCF-101/YoYo/v_YoYo_g08_c01.avi",
             "frames/YoYo/v_YoYo_g08_c01/1.jpg"]
    write(tmp_path, dict.fromkeys(names, "") | {"lists/trainlist01.txt": "YoYo/v_YoYo_g08_c01.avi 101\r\n",
                                                "lists/testlist01.txt": "YoYo/v_YoYo_g01_c01.avi\n"})
    listed = folders.list_files(tmp_path)
    train, test = (folders.choose_split(tmp_path, listed, split)[0] for split in ("train", "test"))
    media = [[name for name in kept if not name.endswith(".txt")] for kept in (train, test)]
    assert media == [["UCF-101/YoYo/v_YoYo_g08_c01.avi", "frames/YoYo/v_YoYo_g08_c01/1.jpg"], names[:1]]


def test_the_same_clips_as_videos_and_as_frames_are_refused(tmp_path):
    """FaceForensics as it is handed out: train/videos and train/images."""
    names = ["train/videos/1.mp4", "train/videos/2.mp4"]
    frames = [f"train/images/{clip}/{number}.png" for clip in (1, 2) for number in range(5)]
    write(tmp_path, dict.fromkeys(names + frames, ""))
    with pytest.raises(UserError, match="twice, as videos in train/videos and as frames in train/images"):
        folders.list_source(tmp_path)
    assert folders.list_source(tmp_path / "train/videos").videos == ["1.mp4", "2.mp4"]


# ------------------------------------------------------------------------------------ recipes of docs/data.md

def recipe(name):
    """The code under a headline of docs/data.md."""
    text = open("docs/data.md", encoding="utf-8").read()
    return re.search(rf"### {name}\n.*?```python\n(.*?)```", text, re.S)[1]


KINETICS = """label,youtube_id,time_start,time_end,split,is_cc
abseiling,lqciwm6gDrk,659,669,train,0
"playing drums",-3B32lodo2M,59,69,train,0
gone,xxxxxxxxxxx,1,11,train,0
"""
PANDA = """videoID,url,timestamp,caption,matching_score
--SaHe,u,"[['0:00:09.960', '0:00:26.720'], ['0:00:29.320', '0:00:32.480']]","['A man, blue.', 'He talks.']",x
"""


@pytest.mark.parametrize("name, tables, captions", [
    ("Kinetics", {"annotations/train.csv": KINETICS},
     {"train/lqciwm6gDrk_000659_000669": ["abseiling"],
      "train/-3B32lodo2M_000059_000069": ["playing drums"]}),
    ("Panda-70M", {"panda70m_training_2m.csv": PANDA},
     {"--SaHe": ["A man, blue.", "He talks."], "--SaHe_1": ["He talks."]}),
    ("CogVideoX", {"prompts.txt": "a cat\na dog, asleep\n", "videos.txt": "videos/0.mp4\nvideos/1.mp4\n"},
     {"videos/0": ["a cat"], "videos/1": ["a dog, asleep"]})])
def test_a_recipe_writes_the_captions_of_a_published_layout(tmp_path, name, tables, captions):
    """Run in the data set's folder, and once more. Kinetics' labels become classes, too."""
    write(tmp_path, tables)
    for place in captions:
        (tmp_path / place).parent.mkdir(exist_ok=True)
        make_clip(tmp_path / f"{place}.mp4", 12)
    for _ in range(2):
        subprocess.run([sys.executable, "-c", recipe(name)], cwd=tmp_path, check=True)
    clips = clips_in(tmp_path, 4, 16)
    found = {place.rpartition("/")[2]: clips.texts.lookup(index) for index, place in enumerate(clips.places)}
    assert found == {place.rpartition("/")[2]: (texts, "metadata.csv") for place, texts in captions.items()}
    if name == "Kinetics":
        assert clips.classes == ("abseiling", "playing drums")


# ------------------------------------------------------------------------------------------- what is a video

def test_images_in_one_series_are_a_video_and_photographs_are_not():
    """SkyTimelapse, Taichi-HD, UCF101 as frames; but for one odd file in ten."""
    sky = [f"v/v_1/v_frames_{n:08}.jpg" for n in range(95, 105)]
    names = sky + ["photos/cat1.jpg", "photos/dog2.jpg", "photos/fox3.jpg", "one/1.png"]
    assert folders.sort_media(names)[1:3] == ({"v/v_1": sky}, names)
    assert folders.series(["10.png", "2.png", "1.png"]) == ["1.png", "2.png", "10.png"]
    assert folders.series(sky + ["cover.jpg"]) == sky
    assert not folders.series(sky[:5] + ["cover.jpg"])


def test_images_beside_videos_are_covers():
    """One cover.jpg must not become the data set; nor one stray video among frames hide them."""
    videos, frames_in, images = folders.sort_media(
        ["a.mp4", "b.mp4", "a.jpg", "cover.jpg", "f/stray.mp4", *(f"f/{n}.jpg" for n in range(9))])
    assert videos == ["a.mp4", "b.mp4", "f/stray.mp4"] and list(frames_in) == ["f"]
    assert images == [f"f/{n}.jpg" for n in range(9)]


def test_frames_are_ordered_by_number():
    """2 before 10, per folder; with --frames 1 every image is a clip."""
    names = ["a/10.png", "a/2.png", "b/c/1.png"]
    assert folders.group_frames(names, 16) == [["a/2.png", "a/10.png"], ["b/c/1.png"]]
    assert folders.group_frames(names, 1) == [["a/10.png"], ["a/2.png"], ["b/c/1.png"]]


# -------------------------------------------------------------------------------------------------- captions

def test_captions_come_from_the_nearest_source(tmp_path):
    """Issue: .txt beside the file, else metadata at the root, else the folder's name, else the file's."""
    names = ["red_cat-1/a.png", "red_cat-1/b.png", "red_cat-1/c.png", "my_dog.png"]
    table = ('{"path": "red_cat-1/a.png", "prompt": "the .txt wins"}\n'
             '{"path": "./red_cat-1/b.png", "prompt": "from the table"}')
    write(tmp_path, dict.fromkeys(names, "") | {"red_cat-1/a.txt": "\ufeffein Käse\n", "metadata.jsonl": table})
    assert told(tmp_path, names) == [
        ("ein Käse", "a .txt beside it"), ("from the table", "metadata.jsonl"),
        ("red cat 1", "its folder's name"), ("my dog", "its own name")]


@pytest.mark.parametrize("text", ["text", "caption", "prompt"])
@pytest.mark.parametrize("file", ["file_name", "path", "video", "image"])
def test_metadata_columns_go_by_the_usual_names(tmp_path, file, text):
    """Issue: metadata.csv; commas in quotes; é spelt as macOS spells it."""
    make_image(tmp_path / "é.png")
    spelt = unicodedata.normalize("NFD", "é.png")
    (tmp_path / "metadata.csv").write_text(f'{file},{text}\n{spelt},"a cat, red"\n', "utf-8")
    assert images_in(tmp_path, 8).captions == ["a cat, red"]


@pytest.mark.parametrize("row", ["/data/train/sub/a.png", r"C:\clips\sub\a.png", r"sub\a.png", "./sub/a.png",
                                 "a.png", "../sub//a.png", "sub/a"])
def test_a_path_written_elsewhere_is_matched_from_its_end(tmp_path, row):
    """Absolute, with backslashes, or without the folder that the file has come to lie in."""
    write(tmp_path, {"sub/a.png": "", "b.png": "", "metadata.csv": f'file_name,text\n"{row}",a cat\n'})
    assert told(tmp_path, ["b.png", "sub/a.png"])[1] == ("a cat", "metadata.csv")


def test_a_row_that_fits_two_files_or_none_is_nobodys_and_that_is_said(tmp_path, caplog):
    """A caption on the wrong image is worse than none."""
    write(tmp_path, {"x/a.png": "", "y/a.png": "", "metadata.csv": "file,text\na.png,which?\nc.png,gone\n"})
    with caplog.at_level(logging.WARNING, logger="data"):
        said = told(tmp_path, ["x/a.png", "y/a.png"])
    assert said == [("x", "its folder's name"), ("y", "its folder's name")]
    assert "2 of 2 rows match no file here, or several (first: row 1: a.png)" in caplog.text


@pytest.mark.parametrize("content", [
    b"file_name, text\na.png, a cat\n", b"File_Name;Caption\r\na.png;a cat\r\n",
    b"path\ttext\na.png\ta cat\n", b"file|text\na.png|a cat",
    b"\xef\xbb\xbffile_name,text\na.png,\"a cat\"\n", b"id,file_name,text\n\n7,a.png,a cat\n\n  \n",
    b"file_name,text\na.png,a cat\n,\n , \n"])
def test_tables_are_read_as_people_write_them(tmp_path, content):
    """Spaces and capitals in the header, semicolons, tabs, Excel's mark, blank lines, rows of nothing."""
    write(tmp_path, {"a.png": "", "metadata.csv": content})
    assert told(tmp_path, ["a.png"]) == [("a cat", "metadata.csv")]


@pytest.mark.parametrize("name,text,words", [
    ("metadata.csv", "file_name,text\na.png,red, round ball\n", "row 1 .line 2.: not 2 cells.*quotes"),
    ("metadata.csv", 'file_name,text\na.png,cat\nb.png,"red\nc.png,dog\n', "row 2 .line 3.: unexpected"),
    ("metadata.csv", "file_name,text\na.png,caf\xe9".encode("latin-1"), "near row 1: not UTF-8"),
    ("metadata.jsonl", '{"file_name": "a.png", "text": "x"}\n{"file_name": ', "row 2"),
    ("metadata.jsonl", '{"file_name": "a.png", "text": {"en": "x"}}', "row 1: a caption must be"),
    ("metadata.csv", "file_name,text\na.png,cat\n ,dog\n", "row 2: names no file"),
    ("metadata.jsonl", '{"file_name": ["a.png"], "text": "x"}', "row 1: names no file"),
    ("results_2M.csv", "videoid,contentUrl,duration,page_dir,name\n1,u,P,d,a, b\n", "row 1 .line 2.: not 5")])
def test_a_broken_row_is_refused_with_its_number(tmp_path, name, text, words):
    """Never cut, swallowed or dropped silently."""
    write(tmp_path, {"a.png": "", name: text})
    with pytest.raises(UserError, match=f"{name}, {words}") as error:
        told(tmp_path, ["a.png"])
    assert "\n" not in str(error.value)


def test_lists_numbers_and_line_separators_in_json_are_read_rightly(tmp_path):
    """U+2028 is no end of a row; a number is its digits; a list is several captions."""
    rows = [{"file_name": "a.png", "text": ["one", "two"]}, {"file_name": "b.png", "text": 3},
            {"file_name": "c.png", "text": "a\u2028b"}, {"file_name": "d.png", "text": None}]
    write(tmp_path, {"metadata.jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
                     **{f"{letter}.png": "" for letter in "abcd"}})
    said = folders.Captions(tmp_path, folders.list_files(tmp_path), [f"{letter}.png" for letter in "abcd"])
    assert [said.lookup(number)[0] for number in range(4)] == [["one", "two"], ["3"], ["a b"], ["d"]]
    assert {folders.choose_caption(said.lookup(0)[0], [epoch]) for epoch in range(20)} == {"one", "two"}


def test_webvid_and_journeydb_are_read_as_they_come(tmp_path):
    """VideoDiT 4.1: WebVid's videoid, page_dir, name; JourneyDB's img_path, prompt. A video twice is a video
    with two captions."""
    webvid = ("videoid,contentUrl,duration,page_dir,name\n11,https://x,P,000001_000050,\"Rain, on a roof\"\n"
              "12,https://y,P,000001_000050,A cat\n11,https://x,P,000001_000050,Rain\n")
    videos = ["11.mp4", "videos/000001_000050/12.mp4"]
    write(tmp_path / "w", {**dict.fromkeys(videos, ""), "results_10M_train.csv": webvid})
    said = folders.Captions(tmp_path / "w", folders.list_files(tmp_path / "w"), videos)
    assert [said.lookup(number)[0] for number in (0, 1)] == [["Rain, on a roof", "Rain"], ["A cat"]]
    write(tmp_path / "j", {"train/imgs/000/a.jpg": "", "train/train_anno.jsonl": json.dumps(
        {"img_path": "./000/a.jpg", "prompt": "a fox", "Task2": {"Caption": "It shows a fox."}})})
    assert told(tmp_path / "j", ["train/imgs/000/a.jpg"]) == [("a fox", "train/train_anno.jsonl")]


def test_numbers_in_a_files_own_name_are_not_its_words(tmp_path):
    """Else a vocabulary learns "1280" and "30fps"; a folder's name is left as it is, it may be a class."""
    names = ["19216241-hd_1280_720_30fps.mp4", "nasa_13013.mp4", "007.mp4", "clip 7/1.mp4"]
    write(tmp_path, dict.fromkeys(names, ""))
    said = told(tmp_path, names)
    assert [caption for caption, _ in said] == ["hd", "nasa", "007", "clip 7"]


def test_a_table_of_something_else_is_left_alone_and_said(tmp_path, caplog):
    """statistics.csv is nobody's caption."""
    write(tmp_path, {"a.png": "", "statistics.csv": "step,loss\n1,0.3\n", "log.csv": b"\xff\x00\x80,,",
                     "a.jsonl": "[1]", "b.jsonl": "{'a': 1}"})
    with caplog.at_level(logging.WARNING, logger="data"):
        assert told(tmp_path, ["a.png"]) == [("a", "its own name")]
    assert "statistics.csv is no table of captions (no column for a file" in caplog.text
    assert "log.csv is no table of captions (near row 1: not UTF-8" in caplog.text


def test_a_caption_that_cannot_be_read_skips_its_clip(tmp_path):
    """Not UTF-8, or 600 MB of it: the clip is skipped and counted, the run goes on."""
    for name in ("a.png", "b.png", "c.png"):
        make_image(tmp_path / name)
    long = b"x" * (folders.CAPTION_BYTES + 1)
    write(tmp_path, {"a.txt": "caf\xe9".encode("latin-1"), "b.txt": long})
    images = images_in(tmp_path, 8)
    assert images.item(1)["caption"] == "c" and sorted(images.skipped) == ["a.png", "b.png"]
    assert "'utf-8' codec can't decode" in images.skipped["a.png"] and "too large" in images.skipped["b.png"]
    assert images.captions == ["c"] and [images.words(index) for index in range(3)] == ["", "", "c"]


# --------------------------------------------------------------------------------------------------- classes

def test_class_names_become_prompts(tmp_path):
    """VideoDiT 4.2: UCF101 without training on it."""
    assert folders.class_prompt("ApplyEyeMakeup") == "apply eye makeup"
    assert folders.class_prompt("YoYo") == "yo yo" and folders.class_prompt("TaiChi") == "tai chi"
    write(tmp_path, {f"{name}/a.avi": "" for name in ("BabyCrawling", "Archery")})
    prompt = toy_world.prompt_at(str(tmp_path))
    assert [prompt(index) for index in range(3)] == ["archery", "baby crawling", "archery"]


@pytest.mark.parametrize("place,name", [
    ("Archery/v_Archery_g01_c01", "Archery"), ("train/v_YoYo_g02_c03", "YoYo"), ("v_YoYo_g02_c03_7", "YoYo"),
    ("train/Archery/v_Archery_g01_c01/0003", "Archery"), ("jump rope/7", "jump rope"), ("7", "")])
def test_a_class_is_the_folder_or_ucf101s_own_name(place, name):
    """UCF101 as it comes, flat, or as frames; anybody's folders."""
    assert folders.class_name(place) == name


def test_a_frame_takes_the_class_of_the_folder_above_it():
    """Latte 3.3.4 with classes: images of Archery/clip 7/0001.jpg are Archery."""
    classes = folders.list_classes(["YoYo/b", "Archery/a", "Archery/c"])
    assert classes == ("Archery", "YoYo") and folders.class_at("YoYo/clip 7/0001", classes) == 1
    with pytest.raises(UserError, match="photos/a lies in no folder whose name is one of the 2 classes"):
        folders.class_at("photos/a", classes)
    with pytest.raises(UserError, match="^a lies in no folder"):
        folders.list_classes(["b/c", "a"])


NUMBERS = tuple(sorted(map(str, range(1, 102))))          # 1, 10, 100, 101, 11, ...


@pytest.mark.parametrize("prompt,classes,want", [
    ("jump rope", ("jump", "jump rope"), 1), ("jump", ("jump", "jump rope"), 0),
    ("101", NUMBERS, 3), ("3", NUMBERS, 24), ("3", ("a", "b", "c", "d"), 3),
    ("ARCHERY", ("Archery", "Yo"), 0),
    ("apply_eye-makeup", ("X", "ApplyEyeMakeup"), 1), ("Jump", ("Jump", "jump"), 0), ("雪", ("火", "雪"), 1)])
def test_a_name_is_the_class_that_a_person_means(prompt, classes, want):
    """By name, in other letters, by number where no name is one."""
    assert folders.label_of(prompt, classes) == want


@pytest.mark.parametrize("prompt,classes,words", [
    ("JUMP", ("Jump", "jump"), "may be Jump or jump"),
    ("102", NUMBERS, "is no class"), ("0", ("1", "2"), "is no class"),
    ("tiger", ("cat",), "is no class of this model; it knows cat"), ("", ("cat",), "is no class")])
def test_what_could_be_two_classes_or_none_is_refused(prompt, classes, words):
    """Never silently another class."""
    with pytest.raises(UserError, match=words):
        folders.label_of(prompt, classes)
