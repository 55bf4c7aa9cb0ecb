"""Tests of data.py: what can go wrong with other people's files, and what must never depend on luck."""

import functools
import itertools
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import data
from demos import show_data
from support import checkpoints, cli, folders, latent_cache, order
import presets
import train
from support import video_io
from support import toy_world
from support.checkpoints import read_config, save_network
from support.cli import UserError
from conftest import RED, clips_in, images_in, make_clip, make_image, numbers, pixel, same
from dit import MMDiT
from text import ToyText
from vae import DPVAE, KLVAE


# ------------------------------------------------------------------------------------------------ real clips

def test_parts_never_share_a_frame(tmp_path):
    """Must show 6: trained on (0, 0.75), tested on (0.75, 1)."""
    make_clip(tmp_path / "a.mp4", 41)
    seen = []
    for part in ((0, 0.75), (0.75, 1)):
        clips = clips_in(tmp_path, 5, 16, part=part)
        seen.append({number for epoch in range(60) for number in numbers(clips.item(0, epoch))})
    assert not seen[0] & seen[1] and seen[0] | seen[1] == set(range(41))


def test_fps_follows_time_stamps_not_frame_numbers(tmp_path):
    """facts/performance.md 2.2: variable rates; index sampling gives the wrong speed."""
    times = [*range(0, 1000, 50), *range(1000, 1400, 20)]                     # 20 a second, then 50
    make_clip(tmp_path / "a.mkv", 40, times=times)
    clips = clips_in(tmp_path, 10, 16, fps=10)
    for epoch in range(10):
        shown = [times[number] for number in numbers(clips.item(0, epoch))]
        assert all(abs(b - a - 100) <= 20 for a, b in zip(shown, shown[1:]))


def test_stride_is_exact(tmp_path):
    """facts/latte.md 1.4: Latte's linspace gives 0,3,..,21,25 where stride 3 was asked for."""
    make_clip(tmp_path / "a.mp4", 46)
    assert numbers(clips_in(tmp_path, 16, 16, stride=3).item(0)) == list(range(0, 46, 3))


def test_a_short_clip_is_skipped_counted_named_and_replaced(tmp_path, caplog):
    """design.md 6: training goes on, and the replacement is the same every time."""
    for name, frames in (("a.mp4", 9), ("b.mp4", 30), ("c.mp4", 30)):
        make_clip(tmp_path / name, frames)
    with caplog.at_level(logging.WARNING, logger="data"):
        clips = clips_in(tmp_path, 16, 16)
    assert clips.skipped == {"a.mp4": "9 frames, 16 needed"}
    assert "a.mp4" in caplog.text and "1 of 3" in caplog.text
    again = clips_in(tmp_path, 16, 16)
    instead = [again.item(0, epoch) for epoch in reversed(range(8))][::-1]
    assert {item["caption"] for item in instead} == {"b", "c"}
    for epoch, item in enumerate(instead):
        same(item, clips.item(0, epoch))


@pytest.mark.parametrize("files,words", [
    ([], "found no file at all"), (["notes.txt", "x.pdf"], "found 2 other files (.pdf, .txt)"),
    ([".hidden.mp4"], "found no file at all"), (["broken.mp4"], "broken.mp4: cannot be opened")])
def test_a_folder_with_nothing_usable_says_what_was_there(tmp_path, caplog, files, words):
    """facts/performance.md 2.2: the message names the folder, what was looked for, what was found."""
    for name in files:
        (tmp_path / name).write_bytes(b"nothing")
    os.symlink(tmp_path / "gone", tmp_path / "video.mp4")
    with pytest.raises(UserError) as error:
        data.open_source(tmp_path, data.ClipConfig(16, 16))
    assert "video.mp4: a link to nothing" in caplog.text
    assert words in str(error.value) and str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def numbered(folder, frames, pattern="{:04}.png", size=(20, 14)):
    """A folder of frames whose frame n is flat grey 8 + 5n, as make_clip's are."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in frames:
        make_image(folder / pattern.format(number), (8 + 5 * number,) * 3, size)


def test_a_folder_of_frames_is_a_video_beside_videos(tmp_path):
    """Latte 4.1: SkyTimelapse's and Taichi-HD's trees; 2 before 10; a stray video hides nothing."""
    make_clip(tmp_path / "a.mp4", 20)
    numbered(tmp_path / "sky_train/v/v_1", range(20), "v_frames_{}.png")
    clips = clips_in(tmp_path, 6, 8, stride=3)
    assert clips.names == ["a.mp4", "sky_train/v/v_1"]
    for epoch in range(8):
        for index in (0, 1):
            shown = numbers(clips.item(index, epoch))
            assert [b - a for a, b in zip(shown, shown[1:])] == [3] * 5
    with pytest.raises(UserError, match="knows no seconds: give --stride instead of --fps"):
        clips_in(tmp_path / "sky_train", 6, 8, fps=10)
    assert numbers(clips_in(tmp_path / "sky_train/v/v_1", 20, 8).item(0)) == list(range(20))


def test_a_million_videos_pass_through_a_bounded_memory(tmp_path, monkeypatch):
    """What was remembered of each video (7 kB) was never forgotten. And forgetting changes no clip."""
    for number in range(6):
        make_clip(tmp_path / f"{number}.mp4", 60, g="10")
    plenty, little = clips_in(tmp_path, 4, 8), clips_in(tmp_path, 4, 8)
    want = [plenty.item(index, epoch) for epoch in range(2) for index in range(6)]
    monkeypatch.setattr(data, "REMEMBERED", 2)
    for number, item in enumerate(want):
        same(item, little.item(number % 6, number // 6))
    assert len(plenty.remembered) == 6 and len(little.remembered) == 2


def test_one_of_several_captions_is_drawn_on_each_visit(tmp_path):
    """Another visit, another of them; the same visit, the same one; words() says which, unread."""
    make_clip(tmp_path / "a.mp4", 8)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.mp4", "text": ["one", "two", "three"]}')
    clips, again = clips_in(tmp_path, 4, 8), clips_in(tmp_path, 4, 8)
    said = [clips.item(0, epoch)["caption"] for epoch in range(20)]
    assert set(said) == {"one", "two", "three"} == set(clips.captions)
    assert said == [again.item(0, epoch)["caption"] for epoch in range(20)]
    assert said == [again.words(0, epoch) for epoch in range(20)]


def test_long_crops_the_video_at_its_own_resolution(tmp_path):
    """VideoDiT 4.1. A ramp of 200 columns: a crop of 16 sees 16 of them; by default it sees 94."""
    ramp = np.arange(200, dtype=np.uint8)[None, None, :, None].repeat(4, 0).repeat(100, 1).repeat(3, 3)
    video_io.save_video(tmp_path / "a.mp4", ramp)
    reach = [float(np.ptp(clips_in(tmp_path, 4, 16, **how).item(0)["video"][0, 0, 8].numpy()) * 127.5)
             for how in ({"long": 1080}, {"long": 100}, {})]
    for seen, want in zip(reach, (15, 30, 94)):
        assert abs(seen - want) < 6


def test_one_cover_beside_videos_is_no_data_set(tmp_path):
    """Stage vae asks for single frames: of the videos, for --data as for --images; but photographs stay."""
    make_clip(tmp_path / "a.mp4", 8)
    make_image(tmp_path / "cover.jpg")
    for kind in ("video", "image"):
        assert isinstance(data.open_source(tmp_path, data.ClipConfig(1, 8), kind=kind), data.ClipFolder)
    for number in range(3):
        make_image(tmp_path / f"{'abc'[number]}.jpg")
    assert isinstance(data.open_source(tmp_path, data.ClipConfig(1, 8), kind="image"), data.ImageFolder)
    numbered(tmp_path / "frames", range(9))
    assert len(data.open_source(tmp_path, data.ClipConfig(1, 8), kind="video")) == 2


# ------------------------------------------------------------------------------------------ several sources

def two_sets(tmp_path):
    """--data as presets.py joins it: three videos with weight 3, two with weight 1."""
    for name in ("my set/cat/a", "my set/cat/b", "my set/cat/c", "other/dog/d", "other/dog/e"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        make_clip(tmp_path / f"{name}.mp4", 20)
    words = ["--config", "tiny", "--stage", "vae", "--data", f"{tmp_path}/my set:3", f"{tmp_path}/other:1"]
    return presets.parse(words)[0].data


def test_each_source_has_its_share_and_is_met_whole_before_any_of_it_again(tmp_path):
    """Six places of an epoch are the first's, two the second's; rounds of a source are its epochs, so that
    the same three numbers give the same clip; ranks share and workers change nothing."""
    name = two_sets(tmp_path)
    both = data.open_source(name, data.ClipConfig(4, 16))
    alone = [data.open_source(path, data.ClipConfig(4, 16)) for path, _ in data.split_sources(name)]
    assert len(both) == 8 and both.captions == ["cat"] * 3 + ["dog"] * 2
    assert both.classes == ("cat", "dog")
    for visit in range(12):
        same(both.item(visit % 6, visit // 6), alone[0].item(visit % 3, visit // 3))
        same(both.item(6 + visit % 2, visit // 2), alone[1].item(visit % 2, visit // 2))
        assert both.words(6, visit) == "dog"
    epoch = next(order.batches(both, 8, workers=2))
    assert epoch["caption"].count("cat") == 6
    ranks = [next(order.batches(both, 4, rank=rank, world_size=2)) for rank in (0, 1)]
    torch.testing.assert_close(torch.cat([batch["video"] for batch in ranks]), epoch["video"], rtol=0, atol=0)


def test_another_weight_or_another_file_of_any_source_is_other_data(tmp_path):
    name = two_sets(tmp_path)
    before = data.open_source(name, data.ClipConfig(4, 16)).identity()
    assert before == data.open_source(name, data.ClipConfig(4, 16)).identity()
    assert before != data.open_source(name.replace(":1", ":2"), data.ClipConfig(4, 16)).identity()
    os.utime(tmp_path / "other/dog/e.mp4", (1, 1))
    assert before["data"] != data.open_source(name, data.ClipConfig(4, 16)).identity()["data"]


@pytest.mark.parametrize("words, answer", [
    ("{0}/other:1 {0}/gone:1", "--data: .*/gone is not there"), ("{0}/other:1 toy:1", "toy:1 among several"),
    ("{0}/other:1 {0}/other:0", "other:0 among several"),
    ("{0}/other {0}/other", "several folders, PATH:WEIGHT each")])
def test_what_is_wrong_with_one_of_several_sources_is_said_by_its_name(tmp_path, words, answer):
    two_sets(tmp_path)
    with pytest.raises(UserError, match=answer):
        data.check_source("--data", words.format(tmp_path))


# -------------------------------------------------------------------------------------------------- images

@pytest.mark.parametrize("crop,lefts", [("center", {24}), ("random", set(range(49)))])
def test_crops_are_in_the_middle_or_anywhere(tmp_path, crop, lefts):
    """An image of 16 x 64 whose columns are numbered; the crop sees its whole height."""
    numbered = np.arange(64, dtype=np.uint8)[None, :, None].repeat(16, 0).repeat(3, 2)
    Image.fromarray(numbered).save(tmp_path / "a.png")
    images = images_in(tmp_path, 16, crop=crop)
    seen = {pixel(images.item(0, epoch))[0] - 4 for epoch in range(60)}
    assert seen <= lefts and len(seen) >= min(len(lefts), 20)


def test_flips_mirror_half_of_the_items(tmp_path):
    """Latte 4.1: horizontal flipping is the only augmentation; off unless asked for."""
    numbered = np.arange(16, dtype=np.uint8)[None, :, None].repeat(16, 0).repeat(3, 2)
    Image.fromarray(numbered).save(tmp_path / "a.png")
    for flip, mirrored in ((True, {4, 11}), (False, {4})):
        images = images_in(tmp_path, 16, flip=flip)
        assert {pixel(images.item(0, epoch))[0] for epoch in range(20)} == mirrored


def test_broken_images_and_bombs_are_skipped(tmp_path, monkeypatch):
    """facts/performance.md 2.2: the size is read from the header, before anything is unpacked."""
    make_image(tmp_path / "good.png")
    make_image(tmp_path / "bomb.png", size=(300, 300))
    (tmp_path / "cut.png").write_bytes((tmp_path / "bomb.png").read_bytes()[:60])
    (tmp_path / "text.jpg").write_text("not an image")
    monkeypatch.setattr(video_io, "MAX_PIXELS", 10_000)
    images = images_in(tmp_path, 8)
    assert all(pixel(images.item(index)) == list(RED) for index in range(4))
    assert sorted(images.skipped) == ["bomb.png", "cut.png", "text.jpg"]
    assert "too large" in images.skipped["bomb.png"]


# ----------------------------------------------------------------------------------------------------- order

def test_an_item_is_a_function_of_seed_epoch_and_index(tmp_path):
    """Style: no loader state anywhere. Same three numbers, same clip; another epoch, another window."""
    video_io.save_video(tmp_path / "a.mp4", toy_world.render(toy_world.sample_spec(0, 0), 40, 32))
    folder = functools.partial(clips_in, tmp_path, 4, 16, flip=True, seed=3)
    for make in (folder, functools.partial(data.ToyClips, size=16)):
        first, second = make(), make()
        later = first.item(0, 7)                                             # asked for in another order
        same(first.item(0, 2), second.item(0, 2))
        same(later, second.item(0, 7))
    clips = clips_in(tmp_path, 4, 16)
    assert not torch.equal(clips.item(0, 2)["video"], clips.item(0, 3)["video"])


def test_ranks_share_the_batch_that_one_rank_sees():
    """design.md: split over ranks without overlap; the global batch does not depend on their number."""
    one, *two = [order.schedule(50, batch, seed=1, rank=rank, world_size=count)
                 for batch, rank, count in ((8, 0, 1), (4, 0, 2), (4, 1, 2))]
    for _ in range(30):
        assert next(one) == next(two[0]) + next(two[1])


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100, 1009])
def test_the_cipher_deals_each_card_once(count):
    """A permutation of every deck, for every size of it, squares and primes too."""
    indices, epochs = order.deal(np.arange(3 * count), count, seed=5)
    assert (np.sort(indices.reshape(3, count)) == np.arange(count)).all()
    assert (epochs == np.arange(3).repeat(count)).all()


def test_the_order_looks_like_chance():
    """First cards of 4,000 decks of 10, and steps between neighbours: even as dice (chi-square, 99.9 %)."""
    decks = order.deal(np.arange(40_000), 10, seed=1)[0].reshape(4000, 10)
    for dealt in (decks[:, 0], decks[:, 9], (decks[:, 1] - decks[:, 0]) % 10 - 1):
        seen = np.bincount(dealt)
        assert ((seen - seen.mean()) ** 2 / seen.mean()).sum() < 27.9
    assert 0.45 < order.toss(3, np.arange(2000)).mean() < 0.55
    assert order.toss(3, [7])[0] == order.toss(3, range(8))[7]


def test_ten_million_videos_over_64_ranks_resume_at_once_in_bounded_memory():
    """No deck: 80 MB and a second for each of them. Ranks share no card; any step is as near as the first."""
    tracemalloc.start()
    started, seen = time.process_time(), []
    for rank in range(64):
        deck = order.schedule(10_000_000, 8, seed=0, start_step=1_234_567, rank=rank, world_size=64)
        seen += next(deck)
    assert time.process_time() - started < 1
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert len(set(seen)) == 512 and {epoch for _, epoch in seen} == {63}


@pytest.mark.parametrize("start", [0, 1, 12, 13, 40])
def test_the_order_resumes_at_any_step(start):
    """Also across the end of an epoch (step 12 of 100 / 8)."""
    whole = list(itertools.islice(order.schedule(100, 8, seed=0), 50))
    resumed = order.schedule(100, 8, seed=0, start_step=start)
    assert list(itertools.islice(resumed, 50 - start)) == whole[start:]


def test_workers_change_nothing_but_the_waiting():
    """The same batches in the same order; and the training's random numbers are left alone."""
    toy = data.ToyClips(frames=2, size=16, count=10)
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    none, some = (order.batches(toy, 4, seed=5, start_step=2, workers=workers) for workers in (0, 2))
    for _ in range(4):
        first, second = next(none), next(some)
        assert first["video"].shape == (4, 3, 2, 16, 16)
        same(first, second)
    torch.testing.assert_close(torch.rand(3), want)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_worker_is_one_line(tmp_path, workers):
    """torch hands on the worker's whole stack as the message."""
    make_clip(tmp_path / "a.mp4", 8, g="4")
    clips = clips_in(tmp_path, 4, 8)
    (tmp_path / "a.mp4").write_bytes(b"gone")
    with pytest.raises(UserError) as error:
        next(order.batches(clips, 1, workers=workers))
    assert str(error.value).startswith("nothing usable in") and "\n" not in str(error.value)


def test_fewer_items_than_a_batch_repeat_with_a_warning(caplog):
    """facts/performance.md 2.2: no endless epoch, no division by zero."""
    batch = next(order.batches(data.ToyClips(frames=1, size=16, count=3), 8))
    assert sorted(Counter(batch["place"]).values()) == [2, 3, 3] and "repeats" in caplog.text


# --------------------------------------------------------------------------------------------- the toy world

def test_toy_images_are_never_captioned_with_a_motion():
    """A still shows none; and a video's caption drops each word now and then, another in another epoch."""
    stills, clips = data.ToyClips("any", 1, 16, drop=0), data.ToyClips(size=16, frames=2, drop=1.0)
    words = {word for index in range(40) for word in stills.words(index).split()}
    assert not words & {"moving", "jumping", "growing", "spinning", "staying"}
    assert len({clips.words(0, epoch) for epoch in range(30)}) > 3


# ------------------------------------------------------------------------------------------ the latent cache

def encode(batch):
    """A stand-in for a VAE: every 8th pixel. And token numbers, which must stay whole."""
    return {"latent": batch["video"][..., ::8, ::8], "tokens": torch.tensor([[len(c)] for c in batch["caption"]])}


def test_the_cache_gives_back_what_was_encoded_with_its_constants(tmp_path):
    """design.md 2: raw latents; shift and scale stand beside them. The toy's words may change by the epoch."""
    toy = data.ToyClips(frames=2, size=16, count=11, drop=1.0)
    latent_cache.write_cache(tmp_path, toy, encode, 3, vae="v1", shift=0.5, scale=2.0, epochs=2, shard=4)
    cache, told = latent_cache.LatentCache(tmp_path), latent_cache.LatentCache(tmp_path, words=toy.words)
    assert (len(cache), cache.made["shift"], cache.made["scale"]) == (22, 0.5, 2.0)
    assert cache.made.items() >= toy.identity().items()
    for row in range(22):
        item, want = cache.item(row), toy.item(row % 11, row // 11)
        torch.testing.assert_close(item["latent"], want["video"][..., ::8, ::8], rtol=1e-3, atol=1e-3)
        assert item["caption"] == want["caption"] and item["tokens"].tolist() == [len(want["caption"])]
    sent = pickle.loads(pickle.dumps(cache))                # as to a loader's process
    assert next(order.batches(sent, 5))["latent"].shape == (5, 3, 2, 2, 2)
    for epoch in range(9):
        assert told.item(2, epoch)["caption"] == toy.item(2, epoch)["caption"]
        assert cache.item(2, epoch)["caption"] == toy.captions[2]


@pytest.mark.parametrize("made", ["{", "[1]", "[" * 100_000])
def test_a_damaged_cache_is_a_clear_error(tmp_path, made):
    """What its metadata say is text that a broken disk or another program may have written."""
    path = tmp_path / "00000-of-00001.safetensors"
    save_file({"latent": torch.zeros(1)}, path, {"made": made, "captions": "[]", "places": "[]"})
    with pytest.raises(UserError, match="no latent cache .*delete it and encode again"):
        latent_cache.cache_made(path)


def test_ranks_write_the_cache_that_one_rank_writes(tmp_path):
    """Rank r takes every world_size-th shard."""
    toy = data.ToyClips(frames=1, size=16, count=10)
    for rank, count, name in ((0, 1, "one"), (1, 2, "two"), (0, 2, "two")):
        latent_cache.write_cache(tmp_path / name, toy, encode, 2, vae="v1", shard=3, rank=rank,
                                 world_size=count)
    one, two = (latent_cache.LatentCache(tmp_path / name) for name in ("one", "two"))
    assert one.captions == two.captions and one.made == two.made
    for row in range(10):
        torch.testing.assert_close(one.item(row)["latent"], two.item(row)["latent"], rtol=0, atol=0)


def test_latents_of_another_vae_are_refused(tmp_path):
    """The error names the folder, what differs, and the flag; so does that for a cut shard."""
    toy = data.ToyClips(frames=1, size=16, count=4)
    nets = [torch.nn.Linear(2, 2) for _ in range(2)]
    marks = [latent_cache.fingerprint(net) for net in nets]
    assert marks[0] == latent_cache.fingerprint(nets[0]) != marks[1]
    latent_cache.write_cache(tmp_path, toy, encode, 2, vae=marks[0])
    with pytest.raises(UserError, match=f"{tmp_path.name}.*vae {marks[0]} instead of {marks[1]}.*--cache"):
        latent_cache.write_cache(tmp_path, toy, encode, 2, vae=marks[1])
    shard = next(tmp_path.iterdir())
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(UserError, match="truncated"):
        latent_cache.LatentCache(tmp_path)


def test_a_process_that_dies_inside_a_shard_harms_nobody(tmp_path):
    """By a real signal. What it leaves is no shard; another process finishes, and encodes no finished one
    again."""
    folder, whole = tmp_path / "cache", tmp_path / "whole"
    toy, encoded = data.ToyClips(frames=1, size=16, count=12), []

    def encode(batch):
        encoded.extend(batch["caption"])
        return {"latent": batch["video"][..., ::8, ::8]}
    honest, written = checkpoints.write_atomic, []

    def write_atomic(path, write):                     # the third shard is half written when the signal comes
        def half(temporary):
            write(temporary)
            written.append(path)
            if len(written) == 3:
                os.truncate(temporary, os.path.getsize(temporary) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        honest(path, half)

    def dies():
        checkpoints.write_atomic = write_atomic
        latent_cache.write_cache(folder, toy, encode, 2, "v1", shard=2)
    child = multiprocessing.get_context("fork").Process(target=dies)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert list(folder.glob(".*/00002-of-00006.safetensors"))            # half of it, where no reader looks
    with pytest.raises(UserError, match="2 of 6 shards"):
        latent_cache.LatentCache(folder)
    for place, count in ((folder, 8), (whole, 8 + 12)):
        latent_cache.write_cache(place, toy, encode, 2, "v1", shard=2)
        assert len(encoded) == count
    one, two = latent_cache.LatentCache(folder), latent_cache.LatentCache(whole)
    assert one.made == two.made and one.captions == two.captions
    assert all(torch.equal(one.item(row)["latent"], two.item(row)["latent"]) for row in range(12))


def test_two_runs_that_write_one_cache_at_once_are_refused(tmp_path):
    """The other's shard came after this one had looked: it was kept, and trained on."""
    toy, other = (data.ToyClips(frames=1, size=16, count=4, seed=seed) for seed in (0, 1))

    def meanwhile(batch):
        if not list(tmp_path.glob("00001*")):
            latent_cache.write_cache(tmp_path / "other", other, encode, 2, "v1", shard=2)
            os.rename(tmp_path / "other/00001-of-00002.safetensors", tmp_path / "00001-of-00002.safetensors")
        return encode(batch)
    with pytest.raises(UserError, match="seed 1 instead of 0"):
        latent_cache.write_cache(tmp_path, toy, meanwhile, 2, "v1", shard=2)


def test_text_encoders_are_known_by_their_files(tmp_path):
    """Other weights under the same name are others."""
    (tmp_path / "text").mkdir()
    file = tmp_path / "text/clip_l.safetensors"
    file.write_bytes(b"one")
    marks = [folders.stamp(tmp_path / "text"), folders.stamp(file)]
    file.write_bytes(b"other")
    assert marks != [folders.stamp(tmp_path / "text"), marks[1]] and folders.stamp(file) != marks[1]


@pytest.mark.parametrize("change,words", [
    ({"frames": 8}, "frames 4 instead of 8"), ({"crop": "center"}, "crop random instead of center"),
    ({"fps": 10}, "fps None instead of 10"), ({"part": (0, 0.5)}, "part .0.0, 1.0. instead of .0, 0.5."),
    ("video", "data clips "), ("words", "data clips ")])
def test_a_cache_of_other_data_is_refused_by_what_differs(tmp_path, change, words):
    """Also where a video was replaced under its name, or a caption rewritten: the mark knows their times."""
    videos = tmp_path / "videos"
    videos.mkdir()
    make_clip(videos / "a.mp4", 30)
    (videos / "a.txt").write_text("a cat")
    clips = clips_in(videos, 4, 16)
    for _ in range(2):                                                       # its own cache is taken up
        latent_cache.write_cache(tmp_path / "cache", clips, encode, 2, "v1")
    if change == "video":
        make_clip(videos / "a.mp4", 31)
    if change == "words":
        (videos / "a.txt").write_text("a dog")
    how = {"frames": 4, "size": 16, **(change if isinstance(change, dict) else {})}
    other = clips_in(videos, **how)
    with pytest.raises(UserError, match=f"made differently: .*{words}"):
        latent_cache.write_cache(tmp_path / "cache", other, encode, 2, "v1")


def test_text_is_encoded_once_for_each_different_caption_in_bounded_batches(tmp_path):
    """Eight windows of a video share its caption's vectors (1.3 MB for SD3); another encoder is refused."""
    toy, asked = data.ToyClips(frames=1, size=16, count=40, drop=1.0), []

    def text(captions):
        asked.append(captions)
        return {"context": torch.tensor([[len(caption), ord(caption[2])] for caption in captions]).float()}
    for _ in range(2):                                                 # the second time all is there
        latent_cache.write_cache(tmp_path, toy, encode, 3, "v1", epochs=3, shard=16, text=text,
                                 identity=toy.identity() | {"text": "T5"})
    said = [caption for captions in asked for caption in captions]
    assert len(said) == len(set(said)) < 120 and max(map(len, asked)) <= 3
    cache = latent_cache.LatentCache(tmp_path)
    for row in (0, 57, 119):
        item = cache.item(row)
        assert item["context"].tolist() == [len(item["caption"]), ord(item["caption"][2])]
    with pytest.raises(UserError, match="text T5 instead of CLIP"):
        latent_cache.write_cache(tmp_path, toy, encode, 3, "v1", epochs=3, shard=16, text=text,
                                 identity=toy.identity() | {"text": "CLIP"})


def test_a_signal_stops_an_encoding(tmp_path, monkeypatch):
    """It is heard after every batch; what goes on where it stopped is tested above."""
    monkeypatch.setattr(cli, "STOP", [15])
    with pytest.raises(UserError, match="stopped by a signal during the encoding"):
        latent_cache.write_cache(tmp_path, data.ToyClips(frames=1, size=16, count=4), encode, 2, vae="v1")


def test_latents_that_overflow_are_not_stored(tmp_path):
    """float16 ends at 65,504."""
    with pytest.raises(UserError, match="not finite"):
        latent_cache.write_cache(tmp_path, data.ToyClips(frames=1, size=16, count=2),
                         lambda batch: {"latent": batch["video"] * 1e9}, 2, vae="v1")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- a step of training on each layout

@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run's folder with untrained VAEs and text encoder, which the transformers' stages stand on."""
    out = tmp_path_factory.mktemp("made")
    config = presets.parse(["--config", "tiny", "--stage", "vae"])[0]
    torch.manual_seed(0)
    image = KLVAE(config.vae)
    save_network(out / "vae.safetensors", image)
    save_network(out / "dpvae.safetensors", DPVAE.from_image(image, window=8, overlap=0))
    save_network(out / "text.safetensors", ToyText(config.text))
    save_network(out / "dit.safetensors", MMDiT(presets.parse(["--config", "tiny", "--stage", "dit"])[0].dit))
    return out


def step_on(made, tmp_path, stage, *flags):
    """One step of a stage of the tiny preset, with a finite loss; returns the run's folder."""
    out = shutil.copytree(made, tmp_path / "out")
    (out / f"{stage}.safetensors").unlink(missing_ok=True)                   # it begins at nothing
    config, = presets.parse(["--config", "tiny", "--stage", stage, "--steps", "1", "--log_every", "1",
                             "--previews", "1", "--out", str(out), *map(str, flags)])
    train.train(config)
    line = json.loads((out / stage / "log.jsonl").read_text().splitlines()[-1])
    assert line["step"] == 1 and all(np.isfinite(value) for value in line.values() if type(value) is float)
    return out


def drawn(folder, frames=10, size=40):
    """A folder of frames of the toy world, numbered from 291 as SkyTimelapse's are."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(toy_world.render(toy_world.sample_spec(0, frames), frames, size), 291):
        Image.fromarray(frame).save(folder / f"{folder.name}_frames_{number:08}.jpg")


@pytest.mark.slow
def test_latte_trains_on_skytimelapses_and_taichis_trees(made, tmp_path):
    """Latte 4.1: unconditional, a folder of frames a video, two levels down; images are its frames."""
    for name in ("sky_train/0HLZ/0HLZ_1", "sky_train/0HLZ/0HLZ_2", "sky_train/2Fr6/2Fr6_1"):
        drawn(tmp_path / "sky" / name)
    for cached in ("--cached", "--no-cached"):
        step_on(made, tmp_path / cached, "latte", "--data", tmp_path / "sky", "--images", tmp_path / "sky",
                "--latte.condition", "none", "--latte.context_dim", 0, "--latte.pooled_dim", 0,
                "--crop", "center", "--batch", 2, cached)


@pytest.mark.slow
def test_latte_trains_on_ucf101s_classes_videos_and_frames(made, tmp_path):
    """Clips from videos, images from its frames: the same class folders, a folder deeper."""
    for name in ("Archery", "YoYo"):
        drawn(tmp_path / "frames" / name / f"v_{name}_g01_c01")
        (tmp_path / "videos" / name).mkdir(parents=True)
        video_io.save_video(tmp_path / "videos" / name / f"v_{name}_g01_c01.mp4",
                         toy_world.render(toy_world.sample_spec(0, 1), 10, 40))
    flags = ("--images", tmp_path / "frames", "--latte.condition", "class", "--latte.context_dim", 0,
             "--latte.pooled_dim", 0, "--joint_images", 2, "--batch", 2)
    for kind in ("videos", "frames"):
        out = step_on(made, tmp_path / f"{kind}_run", "latte", "--data", tmp_path / kind, *flags)
        assert read_config(out / "latte.safetensors")["classes"] == ["Archery", "YoYo"]


@pytest.mark.slow
def test_videodit_trains_on_webvid_and_journeydb(made, tmp_path):
    """VideoDiT 4.1: WebVid's clips with their .csv, JourneyDB's images with their .jsonl, A.2's mixture."""
    rows = ["videoid,contentUrl,duration,page_dir,name"]
    (tmp_path / "webvid/videos/000001_000050").mkdir(parents=True)
    for number in range(3):
        video_io.save_video(tmp_path / f"webvid/videos/000001_000050/{number}.mp4",
                         toy_world.render(toy_world.sample_spec(0, number), 12, 40))
        rows.append(f'{number},https://x,P,000001_000050,"a {("red", "blue", "green")[number]} cat, jumping"')
    (tmp_path / "webvid/results_2M_train.csv").write_text("\n".join(rows))
    (tmp_path / "journeydb/imgs/000").mkdir(parents=True)
    for number in range(4):
        make_image(tmp_path / f"journeydb/imgs/000/{number}.jpg", size=(60, 40))
    (tmp_path / "journeydb/train_anno_realease_repath.jsonl").write_text("\n".join(
        json.dumps({"img_path": f"./000/{number}.jpg", "prompt": f"a house number {number}"})
        for number in range(4)))
    source = data.open_source(tmp_path / "webvid", data.ClipConfig(8, 32))
    assert source.captions[1] == "a blue cat, jumping"
    for p in (1, 0):
        step_on(made, tmp_path / f"p{p}", "videodit", "--data", tmp_path / "webvid", "--images",
                tmp_path / "journeydb", "--p_video", p, "--batch", 2, "--init", made / "dit.safetensors")


# ---------------------------------------------------------------------------------------------- command line

def test_scanning_a_folder_tells_the_usable_from_the_skipped(tmp_path, capsys, monkeypatch, caplog):
    """python data.py FOLDER: hours, rates, sizes, captions by source, and what is broken; frames are counted
    as videos, photographs as images, and a cover is passed by."""
    make_clip(tmp_path / "good.mp4", 20)
    make_clip(tmp_path / "short.mp4", 5)
    make_image(tmp_path / "cover.png")
    numbered(tmp_path / "frames", range(20))
    (tmp_path / "more").mkdir()
    make_image(tmp_path / "more/a cat.png")
    monkeypatch.setattr(sys, "argv", ["data.py", str(tmp_path)])
    data.main()
    said = capsys.readouterr().out
    for words in ("2 of 3 videos", "0.000222 (1 seconds)", "25 a second (1)", "20 x 14 (1), 64 x 64 (1)",
                  "2 from its own name", "21 of 21 images", "1 .png"):
        assert words in said
    assert "short.mp4" in caplog.text and "5 frames, 16 needed" in caplog.text


def test_videos_that_no_training_would_open_leave_the_images_to_be_counted(tmp_path, capsys, monkeypatch):
    """Photographs beside one clip that is too short; and a folder of frames is said to be images, too."""
    numbered(tmp_path / "videos/v_1", range(20))
    numbered(tmp_path / "photos", range(2), "{}. cat.png")
    make_clip(tmp_path / "photos/short.mp4", 5)
    for name, words in (("videos", ("1 of 1 videos", "the frames of 1 folders are 20 images")),
                        ("photos", ("videos: nothing usable in", "1 folders are 2 images"))):
        monkeypatch.setattr(sys, "argv", ["data.py", str(tmp_path / name)])
        data.main()
        said = capsys.readouterr().out
        assert all(part in said for part in words)


def test_the_demo_gives_its_known_answer():
    """Each clip once."""
    assert show_data.demo() == (1, 1)
