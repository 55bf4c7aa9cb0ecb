"""Tests of shards.py: what video2dataset writes is read in place, and a run on it can be stopped anywhere."""

import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time

import pytest
import torch

import data
from support import order, shards, toy_world, video_io
from support.cli import UserError
from conftest import clips_in, make_clip, same, script


def write_shard(path, samples):
    """{name: {ending: bytes}} -> a .tar as webdataset's TarWriter writes it: Python's default format, times
    that are no whole seconds (so each file has notes before it), endings in the order of the alphabet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, files in samples.items():
            for ending, content in sorted(files.items()):
                info = tarfile.TarInfo(f"{name}.{ending}")
                info.size, info.mtime, info.mode, info.uname = len(content), time.time(), 0o444, "bigdata"
                archive.addfile(info, io.BytesIO(content))


def clip_bytes(tmp_path, number, frames=12, size=32):
    path = tmp_path / f"clip{number}.mp4"
    video_io.save_video(path, toy_world.render(toy_world.sample_spec(0, number), frames, size), fps=25)
    return path.read_bytes()


def as_video2dataset(folder, tmp_path, count=3, each=3, **how):
    """Shards with what stands beside them: a table of each, and its statistics."""
    for shard in range(count):
        samples = {}
        for number in range(each):
            key = f"{shard:05}{number:04}"
            caption = toy_world.caption(toy_world.sample_spec(0, shard * each + number))
            about = {"url": "https://x", "key": key, "status": "success", "caption": caption, "error": None}
            samples[key] = {"mp4": clip_bytes(tmp_path, shard * each + number, **how),
                            "txt": caption.encode(), "json": json.dumps(about, indent=4).encode()}
        write_shard(folder / f"{shard:05}.tar", samples)
        (folder / f"{shard:05}.parquet").write_bytes(b"PAR1")
        (folder / f"{shard:05}_stats.json").write_text(json.dumps({"count": each, "successes": each}))
    return folder


def test_shards_give_what_their_files_unpacked_give(tmp_path):
    """Every clip and caption; workers too; what lies beside the shards is no sample."""
    root = as_video2dataset(tmp_path / "wds", tmp_path)
    for path in root.glob("*.tar"):
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path / "files", filter="data")
    packed, unpacked = (clips_in(folder, 4, 16) for folder in (root, tmp_path / "files"))
    assert len(packed) == len(unpacked) == 9 and packed.captions == unpacked.captions
    for epoch in range(2):
        for index in range(9):
            same(packed.item(index, epoch), unpacked.item(index, epoch))
    assert packed.item(5)["place"] == "00001.tar: 000010002"
    one, two = (next(order.batches(packed, 4, workers=workers)) for workers in (0, 2))
    torch.testing.assert_close(one["video"], two["video"], rtol=0, atol=0)
    assert clips_in(root / "00001.tar", 4, 16).captions == packed.captions[3:6]
    frames = data.open_source(root, data.ClipConfig(1, 16), kind="image")
    assert frames.item(0)["video"].shape == (3, 1, 16, 16)


def test_captions_are_of_the_txt_or_none(tmp_path):
    """A broken one skips its sample, by name; a sample without a video is none."""
    clip = clip_bytes(tmp_path, 0)
    write_shard(tmp_path / "wds/0.tar", {
        "a": {"mp4": clip, "txt": "ein Käse".encode(), "json": b"{}"}, "c": {"mp4": clip}, "d": {"json": b"{}", "txt": b"no video"}, "e": {"mp4": clip, "txt": b"caf\xe9"},
        "f": {"mp4": b"broken", "txt": b"a cat"}})
    clips = clips_in(tmp_path / "wds", 4, 16)
    assert [clips.words(index) for index in range(4)] == ["ein Käse", "", "", "a cat"]
    for index in range(4):
        clips.item(index)
    assert sorted(clips.skipped) == ["0.tar: e.mp4", "0.tar: f.mp4"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_is_read_up_to_a_long_name(tmp_path, form):
    """Offsets are those that Python's tarfile finds; a name that a header cuts is said."""
    names = ["./a.mp4", "./a.txt", "b.MP4", "b.txt"]
    if form != tarfile.USTAR_FORMAT:
        names.append("x" * 300 + ".mp4")
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 700 + number
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    with tarfile.open(tmp_path / "a.tar") as archive:
        true = [(member.offset_data, member.size) for member in archive.getmembers()[:4]]
    rows, problem = shards.read_index(tmp_path / "a.tar")
    assert len(rows) == 2 and (not problem) == (form == tarfile.USTAR_FORMAT)
    found = [tuple(row[at:at + 2]) for row in rows.tolist() for at in (0, 2) if row[at + 1]]
    assert sorted(found) == true


def test_a_cut_shard_gives_its_whole_samples_and_that_is_said(tmp_path, caplog):
    """A download that broke off; a file that is no .tar; nothing else."""
    root = as_video2dataset(tmp_path / "wds", tmp_path, count=2)
    content = (root / "00001.tar").read_bytes()
    (root / "00001.tar").write_bytes(content[:len(content) // 2])
    (root / "00002.tar").write_bytes(b"<html>not found</html>" * 100)
    (root / "00003.tar").write_bytes(b"")
    clips = clips_in(root, 4, 16)
    assert 3 < len(clips) < 6 and "00001.tar: cut at byte" in caplog.text
    assert f"only the {len(clips) - 3} samples before are used" in caplog.text
    assert "00002.tar: no .tar from byte 0 on" in caplog.text and "00003.tar" in caplog.text
    for name in ("00000.tar", "00001.tar"):
        (root / name).unlink()
    with pytest.raises(UserError, match="no sample with a video in the 2 shards"):
        clips_in(root, 4, 16)


def test_beside_videos_a_tar_is_passed_over_and_counted(tmp_path):
    """A folder holds shards or files."""
    write_shard(tmp_path / "labels.tar", {"a": {"mp4": clip_bytes(tmp_path, 0)}})
    (tmp_path / "clip0.mp4").unlink()
    make_clip(tmp_path / "b.mp4", 20)
    clips = clips_in(tmp_path, 4, 16)
    assert clips.names == ["b.mp4"] and clips.source.passed_over() == {".tar": 1}


@pytest.mark.slow
def test_a_run_on_shards_that_is_killed_goes_on_to_the_bit(tmp_path):
    """By a real SIGKILL after the save of step 4; the weights after step 8 are those of a run that was left
    alone."""
    root = as_video2dataset(tmp_path / "wds", tmp_path, frames=12, size=40)
    words = ["--config", "tiny", "--stage", "vae", "--data", root, "--steps", 8, "--save_every", 4,
             "--log_every", 1, "--workers", 1, "--lpips_weight", 0]
    whole = script("train.py", *words, "--out", tmp_path / "whole")
    assert whole.code == 0, whole.err
    killed = subprocess.Popen([sys.executable, "train.py", *map(str, words), "--out", str(tmp_path / "cut")],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while killed.poll() is None and not list((tmp_path / "cut").glob("vae/*4")):
        time.sleep(0.01)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    resumed = script("train.py", *words, "--out", tmp_path / "cut")
    assert resumed.code == 0, resumed.err
    whole, cut = ((tmp_path / name / "vae.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


@pytest.mark.slow
def test_a_million_samples_are_found_in_seconds_and_bounded_memory(tmp_path):
    """A thousand links to one shard of a thousand. The first batch comes with it. What they cost is held against
    what Python's tarfile costs on the same machine: some fourteen times as much."""
    clip = clip_bytes(tmp_path, 0)
    (tmp_path / "clip0.mp4").unlink()
    write_shard(tmp_path / "wds/00000.tar", {f"{number:09}": {"mp4": clip, "txt": b"a cat", "json": b"{}"}
                                             for number in range(1000)})
    for number in range(1, 1000):
        os.link(tmp_path / "wds/00000.tar", tmp_path / f"wds/{number:05}.tar")
    before = time.process_time()
    with tarfile.open(tmp_path / "wds/00000.tar") as archive:
        assert len(archive.getmembers()) == 3000
    by_tarfile = 1000 * (time.process_time() - before)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    before = os.times()
    clips = clips_in(tmp_path / "wds", 4, 16)
    batch = next(order.batches(clips, 16))
    after = os.times()
    assert len(clips) == 1_000_000 and batch["video"].shape == (16, 3, 4, 16, 16)
    own, others = (sum(after[at:at + 2]) - sum(before[at:at + 2]) for at in (0, 2))
    assert own < by_tarfile / 50 and others < by_tarfile / 5     # CPU time; the others are up to eight processes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200 << 10
