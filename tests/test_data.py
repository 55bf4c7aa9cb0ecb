"""Tests of data.py: what can go wrong with other people's files, and what must never depend on luck."""

import functools
import io
import itertools
import json
import logging
import sys
import unicodedata
import zipfile
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

import data
import world
from checkpoint import UserError

RED = (200, 40, 90)


def make_clip(path, frames=40, codec="libx264", pix="yuv420p", size=(64, 64), rate=25, times=None, **options):
    """A film whose frame n is flat grey 8 + 5n, so that a picture tells its number."""
    with av.open(str(path), "w") as container:
        quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        stream = container.add_stream(codec, rate=rate, options={**options, **quiet})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *size, pix, 2_000_000
        stream.codec_context.time_base = Fraction(1, 1000) if times else 1 / Fraction(rate)
        for number in range(frames):
            pixels = np.full((size[1], size[0], 3), (8 + 5 * number) % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(item):
    """The frame numbers that an item of make_clip's shows."""
    levels = (item["video"].mean((0, 2, 3)) + 1) * 127.5                                 # (T,)
    return [round((level.item() - 8) / 5) for level in levels]


def make_picture(path, colour=RED, size=(20, 14), mode="RGB"):
    Image.new(mode, size, colour).save(path)
    return path


def pixel(item):
    return ((item["video"][:, 0, 4, 4] + 1) * 127.5).round().int().tolist()


def same(a, b):
    """Two items with the same pixels and the same words."""
    torch.testing.assert_close(a["video"], b["video"], rtol=0, atol=0)
    assert a["caption"] == b["caption"]


def psnr(a, b):
    return 10 * np.log10(255 ** 2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


# ------------------------------------------------------------------------------------------------ real clips

@pytest.mark.parametrize("name,codec,pix", [
    ("a.mp4", "libx264", "yuv420p"), ("a.MOV", "mpeg4", "yuv420p"), ("a.avi", "mpeg4", "yuv420p"),
    ("b.avi", "libx264", "yuv420p"), ("a.mkv", "libx265", "yuv420p10le"), ("a.webm", "libvpx-vp9", "yuv420p"),
    ("c.avi", "mjpeg", "yuvj420p"), ("c.mov", "prores_ks", "yuv422p10le"), ("d.mp4", "libsvtav1", "yuv420p"),
    ("a.gif", "gif", "rgb8")])
def test_every_container_and_codec_gives_its_frames_in_order(tmp_path, name, codec, pix):
    """Issue: .mp4 .avi .mov .mkv .webm .gif, decoded by PyAV, kept whole or read by seeking."""
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV cannot write {codec}")
    make_clip(tmp_path / name, codec=codec, pix=pix)
    for memory in (0, 1 << 30):
        clips = data.ClipFolder(tmp_path, 4, 16, stride=3, memory=memory)
        for epoch in range(6):
            shown = numbers(clips.item(0, epoch))
            near = 9 if name.endswith("gif") else 0                # rgb8 has eight greys
            assert all(abs(b - a - 3) <= near for a, b in zip(shown, shown[1:]))


@pytest.mark.parametrize("name,codec", [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9")])
def test_seeking_reads_the_very_frames_that_reading_whole_does(tmp_path, name, codec):
    """Otherwise the training data would depend on how much memory there was."""
    make_clip(tmp_path / name, 60, codec, g="10", bf="3")
    whole, sought = (data.ClipFolder(tmp_path, 5, 16, stride=2, memory=memory) for memory in (1 << 30, 0))
    assert sought.film(0)[2] is None and whole.film(0)[2] is not None
    for epoch in range(12):
        same(sought.item(0, epoch), whole.item(0, epoch))


def test_parts_never_share_a_frame(tmp_path):
    """Must show 6: trained on (0, 0.75), tested on (0.75, 1)."""
    make_clip(tmp_path / "a.mp4", 41)
    seen = []
    for part in ((0, 0.75), (0.75, 1)):
        clips = data.ClipFolder(tmp_path, 5, 16, part=part)
        seen.append({number for epoch in range(60) for number in numbers(clips.item(0, epoch))})
    assert not seen[0] & seen[1] and seen[0] | seen[1] == set(range(41))


def test_fps_follows_time_stamps_not_frame_numbers(tmp_path):
    """facts/performance.md 2.2: variable rates; index sampling gives the wrong speed."""
    times = [*range(0, 1000, 50), *range(1000, 1400, 20)]                     # 20 a second, then 50
    make_clip(tmp_path / "a.mkv", 40, times=times)
    for memory in (0, 1 << 30):
        clips = data.ClipFolder(tmp_path, 10, 16, fps=10, memory=memory)
        for epoch in range(10):
            shown = [times[number] for number in numbers(clips.item(0, epoch))]
            assert all(abs(b - a - 100) <= 20 for a, b in zip(shown, shown[1:]))


def test_h264_in_avi_has_its_frames_in_order_but_not_its_time_stamps(tmp_path):
    """Its frames come out stamped 1, 3, 4, 2: numbers over the stream's rate are used instead."""
    make_clip(tmp_path / "a.avi", bf="3")
    shown = numbers(data.ClipFolder(tmp_path, 8, 16, fps=12.5).item(0))
    assert [b - a for a, b in zip(shown, shown[1:])] == [2] * 7


def test_stride_is_exact(tmp_path):
    """facts/latte.md 1.4: Latte's linspace gives 0,3,..,21,25 where stride 3 was asked for."""
    make_clip(tmp_path / "a.mp4", 46)
    assert numbers(data.ClipFolder(tmp_path, 16, 16, stride=3).item(0)) == list(range(0, 46, 3))


def test_a_short_clip_is_skipped_counted_named_and_replaced(tmp_path, caplog):
    """design.md 6: training goes on, and the replacement is the same every time."""
    for name, frames in (("a.mp4", 9), ("b.mp4", 30), ("c.mp4", 30)):
        make_clip(tmp_path / name, frames)
    with caplog.at_level(logging.WARNING):
        clips = data.ClipFolder(tmp_path, 16, 16)
    assert clips.skipped == {"a.mp4": "9 frames, 16 needed"}
    assert "a.mp4" in caplog.text and "1 of 3" in caplog.text
    again = data.ClipFolder(tmp_path, 16, 16)
    instead = [again.item(0, epoch) for epoch in reversed(range(8))][::-1]
    assert {item["caption"] for item in instead} == {"b", "c"}
    for epoch, item in enumerate(instead):
        same(item, clips.item(0, epoch))


def test_a_cut_mp4_gives_what_is_left_of_it(tmp_path):
    """Must show 7. Index in front: the frames before the cut. Index at the end: nothing, so it is skipped."""
    textured = np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), np.uint8)
    data.save_video(tmp_path / "front.mp4", textured)
    make_clip(tmp_path / "end.mp4")
    for name in ("front.mp4", "end.mp4"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-(tmp_path / name).stat().st_size // 2])
    for memory in (0, 1 << 30):
        clips = data.ClipFolder(tmp_path, 8, 16, memory=memory)
        assert 8 <= len(clips.film(1)[1]) < 40 and clips.item(1)["caption"] == "front"
        assert "cannot be opened" in clips.skipped["end.mp4"]                # met first: its name is first


def test_damage_in_the_middle_loses_frames_not_the_file(tmp_path):
    """A corrupt packet is stepped over; every window still has its number of frames."""
    data.save_video(tmp_path / "a.mp4", np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), np.uint8))
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    content[len(content) // 2:len(content) // 2 + 3000] = bytes(3000)
    (tmp_path / "a.mp4").write_bytes(content)
    for memory in (0, 1 << 30):
        clips = data.ClipFolder(tmp_path, 8, 16, memory=memory)
        assert all(clips.item(0, epoch)["video"].shape == (3, 8, 16, 16) for epoch in range(6))


@pytest.mark.parametrize("files,words", [
    ([], "found no file at all"), (["notes.txt", "x.pdf"], "found 2 other files (.pdf, .txt)"),
    ([".hidden.mp4"], "found no file at all"), (["broken.mp4"], "broken.mp4: cannot be opened")])
def test_a_folder_with_nothing_usable_says_what_was_there(tmp_path, files, words):
    """facts/performance.md 2.2: the message names the folder, what was looked for, what was found."""
    for name in files:
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(UserError) as error:
        data.open_source(tmp_path, 16, 16)
    assert words in str(error.value) and str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_folder_is_an_error_that_names_it(tmp_path):
    """design.md 6."""
    with pytest.raises(UserError, match="nowhere"):
        data.open_source(tmp_path / "nowhere", 16, 16)


def test_paths_may_hold_any_letters(tmp_path):
    """Must show 7: non-ASCII, spaces, and the colon that FFmpeg takes for a protocol."""
    folder = tmp_path / "Fjörd 雪:2"
    folder.mkdir()
    make_clip(folder / "12:30 été.mp4")
    item = data.ClipFolder(tmp_path, 8, 16).item(0)
    assert item["caption"] == "Fjörd 雪:2" and len(numbers(item)) == 8


def test_a_relative_path_may_look_like_a_protocol(tmp_path, monkeypatch):
    """FFmpeg reads "file2:a/b.mp4" as the protocol file2."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file2:a").mkdir()
    make_clip(tmp_path / "file2:a/b.mp4")
    assert len(numbers(data.ClipFolder("file2:a", 8, 16).item(0))) == 8


def test_a_phones_sideways_film_is_turned_upright(tmp_path):
    """facts/performance.md 2.2: rotated phone video. The matrix in the track header says: a quarter turn."""
    pixels = np.zeros((8, 32, 64, 3), np.uint8)
    pixels[:, :, 32:] = 255                                                  # right half white
    data.save_video(tmp_path / "a.mp4", pixels)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    one, zero = (1 << 16).to_bytes(4, "big"), bytes(4)
    turn = zero + one + zero + (-(1 << 16)).to_bytes(4, "big", signed=True) + zero
    content[start:start + 20] = turn                                         # clockwise by 90 degrees
    (tmp_path / "a.mp4").write_bytes(content)
    upright = data.read_video(tmp_path / "a.mp4")
    assert upright.shape == (8, 64, 32, 3) and upright[0, 56, 16, 0] > 200 and upright[0, 8, 16, 0] < 50


@pytest.mark.parametrize("matrix,full", [(1, 1), (1, 2), (5, 1), (5, 2)])
def test_colours_follow_the_films_own_matrix_and_range(tmp_path, matrix, full):
    """BT.709 or BT.601, studio or full range, in 10 bits: the same red."""
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p10le"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, full
        frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), RED, np.uint8), format="rgb24")
        frame = frame.reformat(format="yuv420p10le", dst_colorspace=matrix, dst_color_range=full)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert np.abs(data.read_video(tmp_path / "a.mkv")[0, 9, 9] - np.array(RED)).max() <= 3


def test_white_stays_white_when_a_film_is_made_smaller(tmp_path):
    """FFmpeg's quick scaler would give 253."""
    data.save_video(tmp_path / "a.mp4", np.full((2, 64, 64, 3), 255, np.uint8))
    torch.testing.assert_close(data.ClipFolder(tmp_path, 2, 24).item(0)["video"], torch.ones(3, 2, 24, 24))


def test_the_first_of_several_streams_is_the_film(tmp_path):
    """data/README: nasa_13013.mp4 holds several streams."""
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for stream, side in zip(streams, (32, 64)):
            stream.width = stream.height = side
        for stream in streams:
            for _ in range(8):
                black = np.zeros((stream.height, stream.width, 3), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(black, format="rgb24")))
            container.mux(stream.encode())
    assert data.read_video(tmp_path / "a.mp4").shape == (8, 32, 32, 3)


# -------------------------------------------------------------------------------------------------- captions

def test_captions_come_from_the_nearest_source(tmp_path):
    """Issue: .txt beside the file, else metadata at the root, else the folder's name, else the file's."""
    (tmp_path / "red_cat-1").mkdir()
    for name in ("red_cat-1/a.png", "red_cat-1/b.png", "red_cat-1/c.png", "my_dog.png"):
        make_picture(tmp_path / name)
    (tmp_path / "red_cat-1/a.txt").write_text("\ufeffein Käse\n", "utf-8")
    rows = [("red_cat-1/a.png", "the .txt wins"), ("./red_cat-1/b.png", "from the table")]
    lines = [json.dumps({"path": path, "prompt": prompt}) for path, prompt in rows]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    said = data.ImageFolder(tmp_path, 8)
    assert dict(zip(said.names, said.captions)) == {
        "red_cat-1/a.png": "ein Käse", "red_cat-1/b.png": "from the table", "red_cat-1/c.png": "red cat 1",
        "my_dog.png": "my dog"}


@pytest.mark.parametrize("text", ["text", "caption", "prompt"])
@pytest.mark.parametrize("file", ["file_name", "path", "video", "image"])
def test_metadata_columns_go_by_the_usual_names(tmp_path, file, text):
    """Issue: metadata.csv; commas in quotes; é spelt as macOS spells it."""
    make_picture(tmp_path / "é.png")
    spelt = unicodedata.normalize("NFD", "é.png")
    (tmp_path / "metadata.csv").write_text(f'{file},{text}\n{spelt},"a cat, red"\n', "utf-8")
    assert data.ImageFolder(tmp_path, 8).captions == ["a cat, red"]


@pytest.mark.parametrize("name,text", [
    ("metadata.csv", "who,what\na.png,cat\n"), ("metadata.jsonl", "{'a': 1}"), ("metadata.jsonl", "[1]")])
def test_a_broken_metadata_file_is_named_with_its_row(tmp_path, name, text):
    """design.md 6."""
    make_picture(tmp_path / "a.png")
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name}, row 1"):
        data.ImageFolder(tmp_path, 8)


# -------------------------------------------------------------------------------------------------- pictures

@pytest.mark.parametrize("mode,colour,name,want", [
    ("L", 77, "a.png", [77] * 3), ("RGBA", (*RED, 255), "a.png", RED),
    ("RGBA", (0, 0, 0, 0), "a.png", [255] * 3), ("LA", (0, 127), "a.png", [128] * 3),
    ("P", 0, "a.png", [0] * 3), ("1", 1, "a.png", [255] * 3),
    ("I;16", 257 * 90, "a.png", [90] * 3), ("RGB", RED, "a.WebP", RED), ("RGB", RED, "a.bmp", RED),
    ("CMYK", (0, 255, 255, 0), "a.jpg", (255, 0, 0)), ("L", 77, "a.JPEG", [77] * 3)])
def test_pictures_of_every_kind_become_rgb(tmp_path, mode, colour, name, want):
    """Must show 7: grey, RGBA, palette, 16-bit, CMYK; transparent is white; odd sizes."""
    make_picture(tmp_path / name, colour, (21, 13), mode)
    item = data.ImageFolder(tmp_path, 8).item(0)
    assert item["video"].shape == (3, 1, 8, 8)
    assert np.abs(np.array(pixel(item)) - np.array(want)).max() <= 4


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (333, 7), (8, 8), (9, 500)])
def test_any_size_is_resized_to_cover_and_cropped(tmp_path, size):
    """Must show 7: odd-sized images, smaller and larger than asked for."""
    make_picture(tmp_path / "a.png", size=size)
    item = data.ImageFolder(tmp_path, 8).item(0)
    assert item["video"].shape == (3, 1, 8, 8) and pixel(item) == list(RED)


@pytest.mark.parametrize("crop,lefts", [("center", {24}), ("random", set(range(49)))])
def test_crops_are_in_the_middle_or_anywhere(tmp_path, crop, lefts):
    """A picture of 16 x 64 whose columns are numbered; the crop sees its whole height."""
    numbered = np.arange(64, dtype=np.uint8)[None, :, None].repeat(16, 0).repeat(3, 2)
    Image.fromarray(numbered).save(tmp_path / "a.png")
    pictures = data.ImageFolder(tmp_path, 16, crop=crop)
    seen = {pixel(pictures.item(0, epoch))[0] - 4 for epoch in range(60)}
    assert seen <= lefts and len(seen) >= min(len(lefts), 20)


def test_flips_mirror_half_of_the_items(tmp_path):
    """Latte 4.1: horizontal flipping is the only augmentation; off unless asked for."""
    numbered = np.arange(16, dtype=np.uint8)[None, :, None].repeat(16, 0).repeat(3, 2)
    Image.fromarray(numbered).save(tmp_path / "a.png")
    for flip, mirrored in ((True, {4, 11}), (False, {4})):
        pictures = data.ImageFolder(tmp_path, 16, flip=flip)
        assert {pixel(pictures.item(0, epoch))[0] for epoch in range(20)} == mirrored


def test_exif_orientation_is_honoured(tmp_path):
    """Orientation 6: the camera was held sideways."""
    picture, exif = Image.new("RGB", (32, 16), "black"), Image.Exif()
    picture.paste("white", (0, 0, 16, 16))                                   # left half: the top, once turned
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    upright = data.read_picture(tmp_path / "a.png")
    assert upright.shape == (32, 16, 3) and upright[4, 8, 0] == 255 and upright[28, 8, 0] == 0


def test_broken_pictures_and_bombs_are_skipped(tmp_path, monkeypatch):
    """facts/performance.md 2.2: the size is read from the header, before anything is unpacked."""
    make_picture(tmp_path / "good.png")
    make_picture(tmp_path / "bomb.png", size=(300, 300))
    (tmp_path / "cut.png").write_bytes((tmp_path / "bomb.png").read_bytes()[:60])
    (tmp_path / "text.jpg").write_text("not a picture")
    monkeypatch.setattr(data, "MAX_PIXELS", 10_000)
    pictures = data.ImageFolder(tmp_path, 8)
    assert all(pixel(pictures.item(index)) == list(RED) for index in range(4))
    assert sorted(pictures.skipped) == ["bomb.png", "cut.png", "text.jpg"]
    assert "too large" in pictures.skipped["bomb.png"]


def test_a_zip_is_read_in_place_and_its_parts_told_apart(tmp_path):
    """cifar10_small.zip: train/CLASS/*.jpg and test/CLASS/*.jpg; "photos.zip!/train" is one of them."""
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), RED).save(buffer, "PNG")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for name in ("train/big_cat/0.png", "train/dog/0.png", "test/dog/1.png", "__MACOSX/dog/._0.png"):
            archive.writestr(name, buffer.getvalue())
    assert data.open_source(tmp_path / "photos.zip", 1, 8).captions == ["dog", "big cat", "dog"]
    train = data.open_source(f"{tmp_path}/photos.zip!/train", 1, 8)
    assert train.captions == ["big cat", "dog"] and pixel(train.item(1)) == list(RED)
    assert next(data.batches(train, 2, workers=2))["video"].shape == (2, 3, 1, 8, 8)
    with pytest.raises(UserError, match="no pictures in .*!/nothing"):
        data.ImageFolder(f"{tmp_path}/photos.zip!/nothing", 8)


def test_resizing_does_not_alias(tmp_path):
    """One-pixel stripes must become grey; Latte's bilinear without antialias keeps them striped."""
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    data.save_video(tmp_path / "a.mkv.mp4", np.stack([stripes] * 2))
    for source in (data.ImageFolder(tmp_path, 32), data.ClipFolder(tmp_path, 2, 32)):
        assert source.item(0)["video"][..., 4:-4].abs().max() < 0.1


# ----------------------------------------------------------------------------------------------------- order

def test_an_item_is_a_function_of_seed_epoch_and_index(tmp_path):
    """Style: no loader state anywhere. Same three numbers, same clip; another epoch, another window."""
    data.save_video(tmp_path / "a.mp4", world.render(world.draw(0, 0), 40, 32))
    folder = functools.partial(data.ClipFolder, tmp_path, 4, 16, flip=True, short=24, seed=3)
    for make in (folder, functools.partial(data.ToyClips, size=16)):
        first, second = make(), make()
        later = first.item(0, 7)                                             # asked for in another order
        same(first.item(0, 2), second.item(0, 2))
        same(later, second.item(0, 7))
    clips = data.ClipFolder(tmp_path, 4, 16)
    assert not torch.equal(clips.item(0, 2)["video"], clips.item(0, 3)["video"])


def test_ranks_share_the_batch_that_one_rank_sees():
    """design.md: split over ranks without overlap; the global batch does not depend on their number."""
    one, *two = [data.schedule(50, batch, seed=1, rank=rank, world_size=count)
                 for batch, rank, count in ((8, 0, 1), (4, 0, 2), (4, 1, 2))]
    for _ in range(30):
        assert next(one) == next(two[0]) + next(two[1])


def test_an_epoch_shows_every_item_once_and_each_epoch_is_shuffled_anew():
    """50 steps of 2 x 5 positions are exactly 5 epochs of 100."""
    ranks = [data.schedule(100, 5, seed=0, rank=rank, world_size=2) for rank in (0, 1)]
    rows = [row for _ in range(50) for rank in ranks for row in next(rank)]
    assert sorted(rows) == sorted(itertools.product(range(100), range(5)))
    assert [row[0] for row in rows[:100]] != [row[0] for row in rows[100:200]]


@pytest.mark.parametrize("start", [0, 1, 12, 13, 40])
def test_the_order_resumes_at_any_step(start):
    """Also across the end of an epoch (step 12 of 100 / 8)."""
    whole = list(itertools.islice(data.schedule(100, 8, seed=0), 50))
    resumed = data.schedule(100, 8, seed=0, start_step=start)
    assert list(itertools.islice(resumed, 50 - start)) == whole[start:]


def test_workers_change_nothing_but_the_waiting():
    """The same batches in the same order; and the training's random numbers are left alone."""
    toy = data.ToyClips(frames=2, size=16, count=10)
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    none, some = (data.batches(toy, 4, seed=5, start_step=2, workers=workers) for workers in (0, 2))
    for _ in range(4):
        first, second = next(none), next(some)
        assert first["video"].shape == (4, 3, 2, 16, 16)
        same(first, second)
    torch.testing.assert_close(torch.rand(3), want)


def test_fewer_items_than_a_batch_repeat_with_a_warning(caplog):
    """facts/performance.md 2.2: no endless epoch, no division by zero."""
    batch = next(data.batches(data.ToyClips(frames=1, size=16, count=3), 8))
    assert sorted(batch["index"].bincount().tolist()) == [2, 3, 3] and "repeats" in caplog.text


# --------------------------------------------------------------------------------------------- the toy world

def test_toy_images_are_never_captioned_with_a_motion():
    """A still shows none; and a video's caption drops each word now and then, another in another epoch."""
    stills, clips = data.ToyClips("any", 1, 16, drop=0), data.ToyClips(size=16, frames=2, drop=1.0)
    words = {word for index in range(40) for word in stills.item(index)["caption"].split()}
    assert not words & {"moving", "jumping", "growing", "spinning", "staying"}
    assert len({clips.item(0, epoch)["caption"] for epoch in range(30)}) > 3


# ------------------------------------------------------------------------------------------ the latent cache

def encode(batch):
    """A stand-in for a VAE: every 8th pixel. And token numbers, which must stay whole."""
    return {"latent": batch["video"][..., ::8, ::8], "tokens": batch["index"][:, None]}


def test_the_toy_says_other_words_of_a_cached_clip_in_another_epoch(tmp_path):
    """With the toy's captions the latents stay and the words change; without, the stored ones speak."""
    toy = data.ToyClips(frames=1, size=16, count=4, drop=1.0)
    data.write_cache(tmp_path, toy, encode, 2, "v1")
    stored, told = data.LatentCache(tmp_path), data.LatentCache(tmp_path, words=toy.words)
    assert {stored.item(2, epoch)["caption"] for epoch in range(20)} == {toy.captions[2]}
    assert {told.item(2, epoch)["caption"] for epoch in range(20)} == {
        toy.item(2, epoch)["caption"] for epoch in range(20)}
    assert len({told.item(2, epoch)["caption"] for epoch in range(20)}) > 2
    assert torch.equal(told.item(2, 7)["latent"], stored.item(2)["latent"])


def test_the_cache_gives_back_what_was_encoded_with_its_constants(tmp_path):
    """design.md 2: raw latents; shift and scale stand beside them."""
    toy = data.ToyClips(frames=2, size=16, count=11)
    data.write_cache(tmp_path, toy, encode, 3, vae="v1", shift=0.5, scale=2.0, epochs=2, shard=4)
    cache = data.LatentCache(tmp_path, vae="v1")
    assert (len(cache), cache.shift, cache.scale, cache.source) == (22, 0.5, 2.0, toy.source)
    for row in range(22):
        item, want = cache.item(row), toy.item(row % 11, row // 11)
        torch.testing.assert_close(item["latent"], want["video"][..., ::8, ::8], rtol=1e-3, atol=1e-3)
        assert item["caption"] == want["caption"] and item["tokens"].tolist() == [row % 11]
    assert next(data.batches(cache, 5, workers=1))["latent"].shape == (5, 3, 2, 2, 2)


def test_an_interrupted_encoding_goes_on_where_it_stopped(tmp_path):
    """Finished shards are kept; a half-written one never has the final name; reading early is an error."""
    toy, calls = data.ToyClips(frames=1, size=16, count=12), []

    def dies(batch):
        calls.append(len(batch["caption"]))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return encode(batch)
    with pytest.raises(KeyboardInterrupt):
        data.write_cache(tmp_path, toy, dies, 2, vae="v1", shard=4)
    with pytest.raises(UserError, match="2 of 3 shards"):
        data.LatentCache(tmp_path)
    data.write_cache(tmp_path, toy, dies, 2, vae="v1", shard=4)
    assert len(calls) == 8 and len(data.LatentCache(tmp_path)) == 12         # 2 + 2 + 2, then 2 more


def test_ranks_write_the_cache_that_one_rank_writes(tmp_path):
    """Rank r takes every world_size-th shard."""
    toy = data.ToyClips(frames=1, size=16, count=10)
    for rank, count, name in ((0, 1, "one"), (1, 2, "two"), (0, 2, "two")):
        data.write_cache(tmp_path / name, toy, encode, 2, vae="v1", shard=3, rank=rank, world_size=count)
    one, two = (data.LatentCache(tmp_path / name) for name in ("one", "two"))
    assert one.captions == two.captions and one.made == two.made
    for row in range(10):
        torch.testing.assert_close(one.item(row)["latent"], two.item(row)["latent"], rtol=0, atol=0)


def test_latents_of_another_vae_are_refused(tmp_path):
    """The error names the folder, what differs, and the flag; so for writing on and for a cut shard."""
    toy = data.ToyClips(frames=1, size=16, count=4)
    nets = [torch.nn.Linear(2, 2) for _ in range(2)]
    marks = [data.fingerprint(net) for net in nets]
    assert marks[0] == data.fingerprint(nets[0]) != marks[1]
    data.write_cache(tmp_path, toy, encode, 2, vae=marks[0])
    with pytest.raises(UserError, match=f"{tmp_path.name}.*vae {marks[0]} instead of {marks[1]}.*--cache"):
        data.LatentCache(tmp_path, vae=marks[1])
    with pytest.raises(UserError, match="--cache"):
        data.write_cache(tmp_path, toy, encode, 2, vae=marks[1])
    shard = next(tmp_path.iterdir())
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(UserError, match="truncated"):
        data.LatentCache(tmp_path)


def test_latents_that_overflow_are_not_stored(tmp_path):
    """float16 ends at 65,504."""
    with pytest.raises(UserError, match="not finite"):
        data.write_cache(tmp_path, data.ToyClips(frames=1, size=16, count=2),
                         lambda batch: {"latent": batch["video"] * 1e9}, 2, vae="v1")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------- saving

def smooth(frames, height, width):
    """A soft moving picture, as film is: codecs keep it well."""
    t, y, x = np.mgrid[:frames, :height, :width]
    waves = [127 + 100 * np.sin((x + shift * y + 2 * t) / 20) for shift in (0.3, 0.6, 0.9)]
    return np.stack(waves, -1).astype(np.uint8)


@pytest.mark.parametrize("height,width", [(64, 64), (64, 48), (63, 35), (16, 18)])
def test_a_saved_clip_is_read_back_nearly_unchanged(tmp_path, height, width):
    """H.264 yuv420p with even sides, the index in front; float and uint8 clips give the same file."""
    clip = smooth(10, height, width)
    for name, same in (("a.mp4", clip), ("b.mp4", data.to_video(clip)), ("c.mp4", clip), ("d.mp4", clip)):
        data.save_video(tmp_path / name, same)
        assert (tmp_path / name).read_bytes() == (tmp_path / "a.mp4").read_bytes()
    back, content = data.read_video(tmp_path / "a.mp4"), (tmp_path / "a.mp4").read_bytes()
    assert back.shape == (10, height + height % 2, width + width % 2, 3)
    assert psnr(back[:, :height, :width], clip) > 36 and content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_tiny_clips_are_enlarged_whole_times(tmp_path, name):
    """3 x 5 pixels become 18 x 30, so that every player shows them; a side can be asked for."""
    data.save_video(tmp_path / name, smooth(4, 3, 5))
    assert data.read_video(tmp_path / name).shape == (4, 18, 30, 3)
    data.save_video(tmp_path / name, smooth(4, 32, 32), side=64, fps=10)
    assert data.read_video(tmp_path / name).shape == (4, 64, 64, 3)


def test_a_contact_sheet_has_a_row_a_clip_and_a_column_a_frame(tmp_path):
    """Frames of 16 x 24 at side 48 are enlarged twice, four pixels apart; first and last are shown."""
    clips = [np.full((9, 16, 24, 3), 10, np.uint8), np.full((3, 16, 24, 3), 200, np.uint8)]
    clips[0][-1] = 90
    data.contact_sheet(tmp_path / "a.png", clips, columns=5, side=48)
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    assert sheet.shape == (4 + 2 * (32 + 4), 4 + 5 * (48 + 4), 3)
    assert sheet[5, 5, 0] == 10 and sheet[5, 4 + 4 * 52, 0] == 90        # the first clip's first and last
    assert sheet[42, 5, 0] == 200 and sheet[42, -60, 0] == 255           # the second has three frames
    data.contact_sheet(tmp_path / "a.png", clips, ["a", "雪"], columns=5, side=48)
    assert Image.open(tmp_path / "a.png").height == 4 + 2 * (32 + 4 + 16)


def test_floats_and_bytes_are_two_spellings_of_one_clip():
    """0 is -1, 255 is 1, and the way back is exact."""
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    video = data.to_video(frames)
    assert video.shape == (3, 1, 16, 16) and video.min() == -1 and video.max() == 1
    assert (data.to_frames(video) == frames).all()
    assert (data.to_frames(video.bfloat16() * 3) <= 255).all()


# ---------------------------------------------------------------------------------------------- command line

def test_scanning_a_folder_tells_the_usable_from_the_skipped(tmp_path, capsys, monkeypatch, caplog):
    """python data.py FOLDER: counts, reasons, a contact sheet."""
    make_clip(tmp_path / "good.mp4", 20)
    make_clip(tmp_path / "short.mp4", 5)
    make_picture(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["data.py", ".", "--size", "16"])
    data.main()
    said = capsys.readouterr().out
    assert "1 of 2 videos" in said and "1 of 1 pictures" in said and "short.mp4" in caplog.text
    assert (tmp_path / "out/data.png").exists()


def test_the_demo_gives_its_known_answer():
    """Each clip once; more than 30 dB."""
    low, high, quality = data.demo()
    assert (low, high) == (1, 1) and quality > 30
