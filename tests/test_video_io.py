"""Tests of video_io.py: every container, codec and kind of pixel, damage, and the way out again."""

import math
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from support import drawing, video_io
from support.cli import UserError
from conftest import RED, clips_in, images_in, make_clip, make_image, numbers, pixel, read_video


def psnr(a, b):
    return 10 * np.log10(255 ** 2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


# ----------------------------------------------------------------------------------------------------- videos

@pytest.mark.parametrize("name,codec,pix", [
    ("a.mp4", "libx264", "yuv420p"), ("a.MOV", "mpeg4", "yuv420p"), ("a.avi", "mpeg4", "yuv420p"),
    ("b.avi", "libx264", "yuv420p"), ("a.mkv", "libx265", "yuv420p10le"), ("a.webm", "libvpx-vp9", "yuv420p"),
    ("c.avi", "mjpeg", "yuvj420p"), ("c.mov", "prores_ks", "yuv422p10le"), ("d.mp4", "libsvtav1", "yuv420p"),
    ("a.gif", "gif", "rgb8")])
def test_every_container_and_codec_gives_its_frames_in_order(tmp_path, name, codec, pix):
    """Issue: .mp4 .avi .mov .mkv .webm .gif, decoded by PyAV."""
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV cannot write {codec}")
    make_clip(tmp_path / name, codec=codec, pix=pix)
    clips = clips_in(tmp_path, 4, 16, stride=3)
    for epoch in range(6):
        shown = numbers(clips.item(0, epoch))
        near = 9 if name.endswith("gif") else 0                    # rgb8 has eight greys
        assert all(abs(b - a - 3) <= near for a, b in zip(shown, shown[1:]))


@pytest.mark.parametrize("name,codec", [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9")])
def test_seeking_reads_the_very_frames_that_reading_whole_does(tmp_path, name, codec):
    """From any key frame on; and the times beside the packets are those of the frames."""
    make_clip(tmp_path / name, 60, codec, g="10", bf="3")
    seconds, whole = video_io.read_all(tmp_path / name, 16)
    pts, times = video_io.scan_times(tmp_path / name)
    assert pts is not None and times.tolist() == seconds.tolist()
    for start in range(0, 50, 4):
        wanted = start + 2 * np.arange(5)
        assert (video_io.read_some(tmp_path / name, pts, wanted, 16) == whole[wanted]).all()


def test_h264_in_avi_has_its_frames_in_order_but_not_its_time_stamps(tmp_path):
    """Its frames come out stamped 1, 3, 4, 2: numbers over the stream's rate are used instead."""
    make_clip(tmp_path / "a.avi", bf="3")
    shown = numbers(clips_in(tmp_path, 8, 16, fps=12.5).item(0))
    assert [b - a for a, b in zip(shown, shown[1:])] == [2] * 7


def test_a_cut_mp4_gives_what_is_left_of_it(tmp_path):
    """Must show 7. Index in front: the frames before the cut. Index at the end: nothing, so it is skipped."""
    textured = np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), np.uint8)
    video_io.save_video(tmp_path / "front.mp4", textured)
    make_clip(tmp_path / "end.mp4")
    for name in ("front.mp4", "end.mp4"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-(tmp_path / name).stat().st_size // 2])
    clips = clips_in(tmp_path, 8, 16)
    assert 8 <= len(clips.times(1)[1]) < 40 and clips.item(1)["caption"] == "front"
    assert "cannot be opened" in clips.skipped["end.mp4"]                    # met first: its name is first


def test_damage_in_the_middle_loses_frames_not_the_file(tmp_path):
    """A corrupt packet is stepped over; every window still has its number of frames."""
    noise = np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), np.uint8)
    video_io.save_video(tmp_path / "a.mp4", noise)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    content[len(content) // 2:len(content) // 2 + 3000] = bytes(3000)
    (tmp_path / "a.mp4").write_bytes(content)
    clips = clips_in(tmp_path, 8, 16)
    assert all(clips.item(0, epoch)["video"].shape == (3, 8, 16, 16) for epoch in range(6))


def test_paths_may_hold_any_letters(tmp_path, monkeypatch):
    """Must show 7: non-ASCII, spaces, and the colon that FFmpeg takes for a protocol ("file2:a/b.mp4")."""
    monkeypatch.chdir(tmp_path)
    for folder, name in (("Fjörd 雪:2", "12:30 été.mp4"), ("file2:a", "b.mp4")):
        (tmp_path / folder).mkdir()
        make_clip(tmp_path / folder / name)
        item = clips_in(folder, 8, 16).item(0)
        assert len(numbers(item)) == 8 and item["caption"] == name[:-4].replace("12:30 ", "")


@pytest.mark.parametrize("a,b,c,d,shape,white", [
    (0, 1, -1, 0, (64, 32), (56, 16)), (0, -1, 1, 0, (64, 32), (8, 16)),      # quarter turns
    (-1, 0, 0, -1, (32, 64), (16, 8)), (-1, 0, 0, 1, (32, 64), (16, 8)),      # half a turn; a mirrored selfie
    (1, 0, 0, -1, (32, 64), (16, 56)), (0, 1, 1, 0, (64, 32), (56, 16))])  # upside down; the diagonal
def test_a_phones_video_is_shown_as_its_matrix_says(tmp_path, a, b, c, d, shape, white):
    """facts/performance.md 2.2: rotated phone video. x' = ax + cy, y' = bx + dy, in the track's header."""
    pixels = np.zeros((8, 32, 64, 3), np.uint8)
    pixels[:, :, 32:] = 255                                                  # right half white
    pixels[:, :8] = 128                                                      # a grey roof
    video_io.save_video(tmp_path / "a.mp4", pixels)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    row = lambda *values: b"".join((value << 16).to_bytes(4, "big", signed=True) for value in values)
    content[start:start + 20] = row(a, b) + bytes(4) + row(c, d)
    (tmp_path / "a.mp4").write_bytes(content)
    shown = read_video(tmp_path / "a.mp4")[0]
    assert shown.shape == (*shape, 3) and shown[white][0] > 200
    roof = 0 if c + d > 0 else -1                                            # where y = 0 comes to lie
    edge = shown[roof] if d else shown[:, roof]
    assert np.abs(edge.astype(int) - 128).max() < 30


def test_a_video_that_begins_below_zero_keeps_its_first_frames(tmp_path):
    """Matroska without avoid_negative_ts: the first packets have no stamp, and seeking never finds them."""
    with av.open(str(tmp_path / "a.mkv"), "w", options={"avoid_negative_ts": "disabled"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "12", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 25)
        for number in range(40):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 8 + 5 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number - 7, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    pts, times = video_io.scan_times(tmp_path / "a.mkv")
    seconds, whole = video_io.read_all(tmp_path / "a.mkv")
    assert len(times) == len(seconds) == 40
    assert (video_io.read_some(tmp_path / "a.mkv", pts, range(40)) == whole).all()


@pytest.mark.parametrize("width,height,short,long,want", [
    (1280, 720, 256, None, [455, 256]), (640, 360, 64, None, [114, 64]),           # Latte: the short side
    (1920, 1080, 256, 1080, [1080, 608]), (640, 360, 256, 1080, [640, 360]),    # VideoDiT 4.1: the long
    (300, 200, 256, 1080, [384, 256]), (4000, 500, 256, 1080, [2048, 256]),     # the crop must fit
    (640, 360, None, None, [640, 360])])
def test_a_video_is_resized_as_the_papers_say(width, height, short, long, want):
    """VideoDiT 4.1: "their longer edge does not exceed 1080 pixels", then the 256 crop; Latte 4.1."""
    assert video_io.resized(width, height, short, long) == want


PATCHES = ((255, 255, 255), (128, 128, 128), (200, 40, 40), (40, 160, 60), (224, 172, 140))


def patches(path, size, codec="libx264", pix="yuv420p", *, trc=2, matrix=2, made_by=1, full=1, **options):
    """Five patches side by side; tagged with `matrix`, whatever they are made by."""
    width, height = size
    frame = np.repeat(np.array(PATCHES, np.uint8), width // 5, axis=0)[None].repeat(height, 0)     # (H,W,3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pix
        stream.codec_context.color_trc, stream.codec_context.colorspace = trc, matrix
        stream.codec_context.color_range = full
        for _ in range(8):
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            image = image.reformat(format=pix, dst_colorspace=made_by, dst_color_range=full)
            image.colorspace, image.color_trc = matrix, trc
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("size, how", [
    ((1280, 720), dict(made_by=1)), ((640, 352), dict(made_by=5)), ((640, 352), dict(made_by=1, matrix=1)),
    ((1280, 720), dict(made_by=5, matrix=5)), ((160, 96), dict(made_by=1, matrix=1, full=2)),
    ((160, 96), dict(made_by=5, matrix=5, full=2, pix="yuv420p10le"))])
def test_colours_follow_the_videos_own_matrix_and_range(tmp_path, size, how):
    """BT.709 or BT.601, studio or full range, 8 or 10 bits; untagged HD is BT.709 and what is smaller
    BT.601, as every player takes them."""
    frame = read_video(patches(tmp_path / "a.mkv", size, **how))[0]
    for number, colour in enumerate(PATCHES):
        seen = frame[size[1] // 2, size[0] * (2 * number + 1) // 10]
        assert np.abs(seen.astype(int) - colour).max() <= 3


@pytest.mark.parametrize("trc, name", [(16, "PQ"), (18, "HLG")])
def test_hdr_is_refused_by_name(tmp_path, trc, name):
    """Read as ordinary video it would be pale."""
    patches(tmp_path / "a.mp4", (160, 96), "libx265", "yuv420p10le", trc=trc, matrix=9, made_by=9,
            **{"x265-params": "log-level=none"})
    with pytest.raises(video_io.Unusable, match=f"HDR .{name}.: convert it"):
        read_video(tmp_path / "a.mp4")


def test_transparent_vp9_is_shown_over_white(tmp_path):
    """Its transparency stands beside the packets, where only Google's decoder looks; also after a seek."""
    with av.open(str(tmp_path / "a.webm"), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=10, options={"g": "5", "auto-alt-ref": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuva420p"
        for _ in range(12):
            pixels = np.zeros((64, 64, 4), np.uint8)
            pixels[16:48, 16:48] = (*RED, 255)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba")))
        container.mux(stream.encode())
    pts, _ = video_io.scan_times(tmp_path / "a.webm")
    sought = video_io.read_some(tmp_path / "a.webm", pts, [7, 8])
    for frames in (read_video(tmp_path / "a.webm"), sought):
        assert (frames[:, 2, 2] > 250).all() and np.abs(frames[:, 32, 32].astype(int) - RED).max() <= 6


def test_interlaced_video_is_refused_with_the_way_out(tmp_path):
    """Each frame holds two moments, combed."""
    patches(tmp_path / "a.mp4", (160, 96), **{"flags": "+ildct+ilme"})
    with pytest.raises(video_io.Unusable, match="interlaced.*bwdif"):
        read_video(tmp_path / "a.mp4")


def test_a_size_that_changes_midway_is_refused(tmp_path):
    """A call's recording, when the phone is turned: VP8 says it in its packets, not in the file's header."""
    def packets(size):
        make_clip(tmp_path / "half.webm", 10, "libvpx", size=size)
        with av.open(str(tmp_path / "half.webm")) as half:
            return [bytes(packet) for packet in half.demux(video=0) if packet.size]

    both = [*packets((64, 48)), *packets((48, 64))]
    with av.open(str(tmp_path / "a.webm"), "w") as container:
        stream = container.add_stream("libvpx", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number, content in enumerate(both):
            packet = av.Packet(content)
            packet.stream, packet.pts, packet.dts = stream, number * 40, number * 40
            packet.time_base = Fraction(1, 1000)
            container.mux(packet)
    with pytest.raises(video_io.Unusable, match="change size, from 64 x 48 to 48 x 64"):
        read_video(tmp_path / "a.webm")


def test_a_tag_in_another_alphabet_harms_nobody(tmp_path):
    """A title in Latin-1; PyAV would raise on opening."""
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        container.metadata["title"] = "Caf_ cr_me"
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        black = np.zeros((32, 32, 3), np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(black, format="rgb24")))
        container.mux(stream.encode())
    content = (tmp_path / "a.mkv").read_bytes()
    assert content.count(b"Caf_ cr_me") == 1
    (tmp_path / "a.mkv").write_bytes(content.replace(b"Caf_ cr_me", b"Caf\xe9 cr\xe8me"))
    assert read_video(tmp_path / "a.mkv").shape == (1, 32, 32, 3)


def test_an_unknown_codec_is_skipped_and_counted(tmp_path):
    """Next year's codec, in this year's PyAV."""
    make_clip(tmp_path / "a.mp4", 20)
    make_clip(tmp_path / "b.mp4", 20)
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(content.replace(b"avc1", b"zzz9"))
    clips = clips_in(tmp_path, 4, 16)
    assert clips.item(0)["caption"] == "b" and "codec is unknown" in clips.skipped["a.mp4"]


@pytest.mark.parametrize("rate", [12, 25, 60])
def test_a_whole_video_is_read_at_the_rate_of_a_model(tmp_path, rate):
    """A bar that crosses in a second crosses in 25 frames, whatever the file's rate: --video and --extend."""
    frames = np.zeros((rate + 1, 32, 64, 3), np.uint8)
    for number in range(rate + 1):
        frames[number, :, round(56 * number / rate):][:, :8] = 255
    video_io.save_video(tmp_path / "a.mp4", frames, fps=rate)
    shown = video_io.read_at_rate(tmp_path / "a.mp4", 25)
    bars = (shown[:, 16, :, 0] > 128) @ np.arange(64) / 8 - 3.5                          # (T,)  left edges
    assert len(shown) == 26 and np.abs(bars - 56 * np.arange(26) / 25).max() <= 56 / rate / 2 + 1


@pytest.mark.parametrize("rate", [math.nan, math.inf, 0, -8])
def test_a_rate_that_no_video_has_is_refused(tmp_path, rate):
    with pytest.raises(UserError, match=f"--fps {rate}: "):
        video_io.save_video(tmp_path / "a.mp4", np.zeros((2, 8, 8, 3), np.uint8), fps=rate)
    assert list(tmp_path.iterdir()) == []


def test_white_stays_white_when_a_video_is_made_smaller(tmp_path):
    """FFmpeg's quick scaler would give 253."""
    video_io.save_video(tmp_path / "a.mp4", np.full((2, 64, 64, 3), 255, np.uint8))
    torch.testing.assert_close(clips_in(tmp_path, 2, 24).item(0)["video"], torch.ones(3, 2, 24, 24))


# -------------------------------------------------------------------------------------------------- images

@pytest.mark.parametrize("mode,colour,name,want", [
    ("L", 77, "a.png", [77] * 3), ("RGBA", (*RED, 255), "a.png", RED),
    ("RGBA", (0, 0, 0, 0), "a.png", [255] * 3), ("LA", (0, 127), "a.png", [128] * 3),
    ("P", 0, "a.png", [0] * 3), ("1", 1, "a.png", [255] * 3),
    ("I;16", 257 * 90, "a.png", [90] * 3), ("RGB", RED, "a.WebP", RED), ("RGB", RED, "a.bmp", RED),
    ("CMYK", (0, 255, 255, 0), "a.jpg", (255, 0, 0)), ("L", 77, "a.JPEG", [77] * 3)])
def test_images_of_every_kind_become_rgb(tmp_path, mode, colour, name, want):
    """Must show 7: grey, RGBA, palette, 16-bit, CMYK; transparent is white; odd sizes."""
    make_image(tmp_path / name, colour, (21, 13), mode)
    item = images_in(tmp_path, 8).item(0)
    assert item["video"].shape == (3, 1, 8, 8)
    assert np.abs(np.array(pixel(item)) - np.array(want)).max() <= 4


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (333, 7), (8, 8), (9, 500)])
def test_any_size_is_resized_to_cover_and_cropped(tmp_path, size):
    """Must show 7: odd-sized images, smaller and larger than asked for."""
    make_image(tmp_path / "a.png", size=size)
    item = images_in(tmp_path, 8).item(0)
    assert item["video"].shape == (3, 1, 8, 8) and pixel(item) == list(RED)


def test_a_thread_of_an_image_is_refused_before_it_is_enlarged(tmp_path):
    """1 x 2000 pixels, resized to 512, would be 512 x 1,024,000: 1.6 GB."""
    make_image(tmp_path / "a.png", size=(1, 2000))
    make_image(tmp_path / "b.png")
    images = images_in(tmp_path, 512)
    assert "would become 512 x 1024000: too large" in images.skipped["a.png"]


def test_exif_orientation_is_honoured(tmp_path):
    """Orientation 6: the camera was held sideways."""
    image, exif = Image.new("RGB", (32, 16), "black"), Image.Exif()
    image.paste("white", (0, 0, 16, 16))                                   # left half: the top, once turned
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    upright = video_io.read_image(tmp_path / "a.png")
    assert upright.shape == (32, 16, 3) and upright[4, 8, 0] == 255 and upright[28, 8, 0] == 0


def test_a_wider_screens_colours_become_srgb(tmp_path):
    """An ICC profile: the red of sRGB has other numbers on a screen of another red."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.new("RGB", (16, 16), RED)
    swapped = srgb.replace(b"s\0R\0G\0B", b"o\0d\0d\0!").replace(b"sRGB", b"odd!")
    for old, new in ((b"rXYZ", b"tXYZ"), (b"gXYZ", b"rXYZ"), (b"tXYZ", b"gXYZ")):
        swapped = swapped.replace(old, new)
    image.save(tmp_path / "a.png", icc_profile=swapped)
    image.save(tmp_path / "b.png", icc_profile=srgb)
    image.save(tmp_path / "c.png", icc_profile=b"broken")
    odd, plain, broken = (video_io.read_image(tmp_path / name)[4, 4] for name in ("a.png", "b.png", "c.png"))
    assert plain.tolist() == broken.tolist() == list(RED)
    assert np.abs(odd.astype(int) - (RED[1], RED[0], RED[2])).max() <= 3          # its red is our green


def test_resizing_does_not_alias(tmp_path):
    """One-pixel stripes must become grey; Latte's bilinear without antialias keeps them striped."""
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    video_io.save_video(tmp_path / "a.mkv.mp4", np.stack([stripes] * 2))
    for source in (images_in(tmp_path / "a.png", 32), clips_in(tmp_path, 2, 32)):
        assert source.item(0)["video"][..., 4:-4].abs().max() < 0.1


# ---------------------------------------------------------------------------------------------------- saving

def smooth(frames, height, width):
    """A soft moving image, as video is: codecs keep it well."""
    t, y, x = np.mgrid[:frames, :height, :width]
    waves = [127 + 100 * np.sin((x + shift * y + 2 * t) / 20) for shift in (0.3, 0.6, 0.9)]
    return np.stack(waves, -1).astype(np.uint8)


@pytest.mark.parametrize("height,width", [(64, 64), (64, 48), (63, 35), (16, 18)])
def test_a_saved_clip_is_read_back_nearly_unchanged(tmp_path, height, width):
    """H.264 yuv420p with even sides, the index in front; float and uint8 clips give the same file."""
    clip = smooth(10, height, width)
    for name, same in (("a.mp4", clip), ("b.mp4", video_io.to_video(clip)), ("c.mp4", clip), ("d.mp4", clip)):
        video_io.save_video(tmp_path / name, same)
        assert (tmp_path / name).read_bytes() == (tmp_path / "a.mp4").read_bytes()
    back, content = read_video(tmp_path / "a.mp4"), (tmp_path / "a.mp4").read_bytes()
    assert back.shape == (10, height + height % 2, width + width % 2, 3)
    assert psnr(back[:, :height, :width], clip) > 36 and content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_tiny_clips_are_enlarged_whole_times(tmp_path, name):
    """3 x 5 pixels become 18 x 30, so that every player shows them; a side can be asked for."""
    video_io.save_video(tmp_path / name, smooth(4, 3, 5))
    assert read_video(tmp_path / name).shape == (4, 18, 30, 3)
    video_io.save_video(tmp_path / name, smooth(4, 32, 32), side=64, fps=10)
    assert read_video(tmp_path / name).shape == (4, 64, 64, 3)


def test_a_contact_sheet_has_a_row_a_clip_and_a_column_a_frame(tmp_path):
    """Frames of 16 x 24 at side 48 are enlarged twice, four pixels apart; first and last are shown."""
    clips = [np.full((9, 16, 24, 3), 10, np.uint8), np.full((3, 16, 24, 3), 200, np.uint8)]
    clips[0][-1] = 90
    drawing.contact_sheet(tmp_path / "a.png", clips, columns=5, side=48)
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    assert sheet.shape == (4 + 2 * (32 + 4), 4 + 5 * (48 + 4), 3)
    assert sheet[5, 5, 0] == 10 and sheet[5, 4 + 4 * 52, 0] == 90        # the first clip's first and last
    assert sheet[42, 5, 0] == 200 and sheet[42, -60, 0] == 255           # the second has three frames
    drawing.contact_sheet(tmp_path / "a.png", clips, ["a", "雪"], columns=5, side=48)
    assert Image.open(tmp_path / "a.png").height == 4 + 2 * (32 + 4 + 16)


def test_floats_and_bytes_are_two_spellings_of_one_clip():
    """0 is -1, 255 is 1, and the way back is exact."""
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    clip = video_io.to_video(frames)
    assert clip.shape == (3, 1, 16, 16) and clip.min() == -1 and clip.max() == 1
    assert (video_io.to_frames(clip) == frames).all()
    assert (video_io.to_frames(clip.bfloat16() * 3) <= 255).all()


# --------------------------------------------------------------------------------------------------- drawing

def blue(image):
    """Where an image has the first curve's colour: rows, columns."""
    return np.argwhere(np.abs(np.asarray(image).astype(int) - (0, 114, 178)).max(2) < 40).T


def test_a_plotted_line_climbs_from_corner_to_corner(tmp_path):
    """Larger is to the right and above; what is saved is what is returned; equal calls, equal bytes."""
    curves = {"": ([1, 2], [5, 9])}
    drawn = [drawing.plot(tmp_path / name, curves, size=(300, 200)) for name in ("a.png", "b.png")]
    rows, columns = blue(drawn[0])
    assert np.corrcoef(rows, columns)[0, 1] < -0.99
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), np.asarray(drawn[0]))


def test_a_square_plot_keeps_a_circle_round():
    """As on a map: one unit is as long on both axes, however wide the image is."""
    angle = np.linspace(0, 6.3, 100)
    for square, ratio in ((True, 1), (False, (640 - 84) / (400 - 106))):
        rows, columns = blue(drawing.plot(None, {"": (np.cos(angle), np.sin(angle))}, square=square))
        assert np.ptp(columns) / np.ptp(rows) == pytest.approx(ratio, rel=0.03)


@pytest.mark.parametrize("low,high,marks", [
    (0.3, 9.7, [2, 4, 6, 8]), (-0.1, 0.1, [-0.1, -0.05, 0, 0.05, 0.1])])
def test_axes_are_marked_at_round_numbers(low, high, marks):
    """1, 2 or 5 times a power of ten."""
    assert drawing.round_numbers(low, high) == pytest.approx(marks)


def test_heat_darkens_with_the_number_and_a_page_holds_its_images(tmp_path):
    """0 is white; cells are squares; images stand in the asked columns, labels above."""
    cells = drawing.heat([[0, 1], [2, 4]], cell=3)
    assert cells.shape == (6, 6, 3) and cells[0, 0].tolist() == [255] * 3
    levels = cells[::3, ::3].astype(int).sum(2).ravel()
    assert list(levels) == sorted(levels, reverse=True) and len(set(levels)) == 4
    drawing.page(tmp_path / "a.png", [cells] * 3, columns=2, gap=5)
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    assert sheet.shape == (2 * 6 + 3 * 5, 2 * 6 + 3 * 5, 3)
    assert (sheet[5:11, 16:22] == cells).all() and (sheet[16:22, 5:11] == cells).all()
    drawing.page(tmp_path / "a.png", [cells] * 3, ["a", "b", "c"], columns=3)
    assert Image.open(tmp_path / "a.png").size == (3 * 6 + 4 * 12, 16 + 6 + 2 * 12)


# ------------------------------------------------------------------------------------------------------ demo
