"""Tests of videodit.py: what VideoDiT 3.2 and A.2 promise of an image model that becomes a video model."""

import copy
from dataclasses import asdict

import pytest
import torch
from torch.testing import assert_close

import dit
import videodit
from demos import scrambled, show_videodit
from support.checkpoints import load_network, read_state, save_network
from support.cli import UserError
from conftest import close, script
from dit import MMDiT, MMDiTConfig
from test_dit import SMALL, count, draw
from test_trainer import THREAD, differs, run, same, torchrun
from videodit import VideoDiT, VideoDiTConfig


def test_parameter_counts_are_the_papers():
    """Table 4, position tables not counted: 2.03B, and "2Dand3D" 4.15B, here with 24 + 23 zero projections;
    SD3-medium 2,028,328,000."""
    with torch.device("meta"):
        assert count(MMDiT(MMDiTConfig())) == 2_028_328_000
        assert count(VideoDiT(VideoDiTConfig())) == 2_030_788_672
        assert count(VideoDiT(VideoDiTConfig(patchify_3d=False))) == 2_028_328_000
        both = VideoDiT(VideoDiTConfig(attention="2d+3d"))
        assert count(both) == 4_150_599_232
    assert sum(p.numel() for p in both.parameters() if p.requires_grad) == 4_150_599_232 - 2_028_328_000


@pytest.mark.parametrize("attention", ["2d->3d", "2d+3d"])
@pytest.mark.parametrize("variant", [{}, {"qk_norm": "rms", "dual_attention": 1}])
def test_one_frame_video_is_an_image(attention, variant):
    """VideoDiT 3.2: at step 0 and T=1 the video model is the image model, SD3.5's blocks included. The image
    model is frozen where 2D+3D freezes it: torch folds a product with a frozen weight otherwise, and on some
    CPUs the last bit shows it."""
    image = scrambled(MMDiT(MMDiTConfig(**{**asdict(SMALL), **variant})))
    z, t, cond = draw(frames=1)
    video = VideoDiT.from_image(copy.deepcopy(image), attention)
    image.requires_grad_(attention == "2d->3d")
    assert_close(video(z, t, **cond), image(z, t, **cond), atol=0, rtol=0)


def test_the_3d_patchify_branch_adds_nothing_at_step_0():
    """A.2, Fig. 8: the zero projection; the converted model is the image model over all tokens (Fig. 2)."""
    image = scrambled(MMDiT(SMALL))
    z, t, cond = draw(frames=3)
    video = VideoDiT.from_image(copy.deepcopy(image))
    assert_close(video(z, t, **cond), image(z, t, **cond), atol=0, rtol=0)


def test_the_image_model_cannot_tell_the_order_of_frames_and_the_3d_patchify_can():
    """3.2: 2D positions do not encode time; the branch does, once its projection is not zero."""
    video = VideoDiT.from_image(scrambled(MMDiT(SMALL)))
    z, t, cond = draw(frames=4)
    backwards = lambda: video(z.flip(2), t, **cond).flip(2)
    close(backwards(), video(z, t, **cond), atol=1e-4)
    torch.nn.init.eye_(video.patchify_3d.zero.weight)
    assert (backwards() - video(z, t, **cond)).abs().max() > 1e-2


def test_2d_and_3d_attention_starts_as_separate_images():
    """A.2, Fig. 9: the frozen blocks see one frame each, the copies add nothing yet."""
    image = scrambled(MMDiT(SMALL))
    z, t, cond = draw(frames=3)
    images = torch.cat([image(z[:, :, i:i + 1], t, **cond) for i in range(3)], dim=2)
    close(VideoDiT.from_image(image, "2d+3d")(z, t, **cond), images)


def test_2d_and_3d_copies_start_equal_and_share_nothing():
    """A.2: "weights initialized by copying"; training a copy must leave the original alone."""
    video = VideoDiT.from_image(scrambled(MMDiT(SMALL)), "2d+3d")
    for original, copied in zip(video.image.joint_blocks, video.copies):
        assert_close(copied.block.state_dict(), original.state_dict())
        assert copied.block.x_block.attn.qkv.weight.data_ptr() != original.x_block.attn.qkv.weight.data_ptr()
    assert video.copies[-1].zero_context is None and video.copies[0].zero_context is not None


def gradients(video, frames=2):
    """{name: largest gradient} after one backward pass."""
    z, t, cond = draw(frames)
    video(z, t, **cond).square().mean().backward()
    return {name: None if p.grad is None else p.grad.abs().max().item()
            for name, p in video.named_parameters()}


def test_in_2d_and_3d_only_zero_projections_learn_at_step_0_then_the_copies():
    """4.3, A.2: originals frozen, embedders and head too; a copy's own weights are reached through its zero
    projection, once moved."""
    video = VideoDiT.from_image(scrambled(MMDiT(SMALL)), "2d+3d")
    first = gradients(video)
    assert all(size is None for name, size in first.items() if name.startswith("image."))
    for name, size in first.items():
        if size is not None:
            assert (size > 0) == (".zero" in name), name
    torch.optim.SGD([p for p in video.parameters() if p.requires_grad], lr=1e-2).step()
    second = gradients(video)
    assert all(second[name] > 0 for name in second if name.startswith("copies") and name.endswith("weight"))


def test_in_2d_to_3d_every_old_weight_learns_and_the_branch_after_its_projection():
    """3.2: nothing is frozen; conv and positions of the branch wait for the zero projection to move."""
    video = VideoDiT.from_image(scrambled(MMDiT(SMALL)))
    first = gradients(video)
    weights = [name for name in first if name.startswith("image.") and name.endswith("weight")]
    assert all(first[name] > 0 for name in weights)
    assert first["patchify_3d.zero.weight"] > 0 and first["patchify_3d.conv.proj.weight"] == 0
    torch.nn.init.eye_(video.patchify_3d.zero.weight)
    assert gradients(video)["patchify_3d.conv.proj.weight"] > 0


def test_frames_see_each_other_in_both_variants():
    """3.2, Table 4: change the last frame and the first one's output changes."""
    for attention in ("2d->3d", "2d+3d"):
        video = scrambled(VideoDiT.from_image(MMDiT(SMALL), attention), std=0.1)
        z, t, cond = draw(frames=3)
        before = video(z, t, **cond)
        z[:, :, -1] += 1
        assert (video(z, t, **cond) - before)[:, :, 0].abs().max() > 1e-4


@pytest.mark.parametrize("attention", ["2d->3d", "2d+3d"])
def test_clips_of_a_batch_do_not_mix(attention):
    """Frames are folded into the batch and back, text and modulation with them: each clip keeps its own."""
    video = scrambled(VideoDiT.from_image(MMDiT(SMALL), attention), std=0.1)
    z, t, cond = draw(frames=3)
    both = video(z, t, **cond)
    for i in range(2):
        alone = video(z[i:i + 1], t[i:i + 1], **{name: tensor[i:i + 1] for name, tensor in cond.items()})
        close(alone, both[i:i + 1], atol=1e-4 * both.abs().max().item())


def test_a_network_without_3d_patchify_is_table_5s_ablation():
    """Table 5: no branch, no parameters of it, same forward."""
    image = scrambled(MMDiT(SMALL))
    video = VideoDiT.from_image(image, patchify_3d=False)
    z, t, cond = draw(frames=2)
    assert count(video) == count(image)
    assert_close(video(z, t, **cond), image(z, t, **cond))


@pytest.mark.parametrize("attention", ["2d->3d", "2d+3d"])
def test_a_saved_videodit_comes_back_whole(attention, tmp_path):
    """The config travels in the checkpoint; frozen stays frozen."""
    video = scrambled(VideoDiT.from_image(MMDiT(SMALL), attention))
    save_network(tmp_path / "video.safetensors", video)
    loaded = load_network(VideoDiT, tmp_path / "video.safetensors")
    assert loaded.config == video.config
    z, t, cond = draw(frames=2)
    assert_close(loaded(z, t, **cond), video(z, t, **cond))
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in video.parameters()]


def test_wrong_requests_are_explained():
    """An unknown attention, a size that does not divide, an image larger than the table."""
    video = VideoDiT(VideoDiTConfig(**asdict(SMALL)))
    with pytest.raises(UserError, match="4d"):
        VideoDiT(VideoDiTConfig(**{**asdict(SMALL), "attention": "4d"}))
    for size, words in ((7, "divide"), (26, "table of 12")):
        z, t, cond = draw(height=size, width=size)
        with pytest.raises(UserError, match=words):
            video(z, t, **cond)


def test_the_branch_and_the_table_agree_where_a_token_is():
    """sincos_3d shares the coordinates of the 2D table, for any even width."""
    for width in (2, 6, 48, 64, 98):
        table = videodit.sincos_3d(width, torch.arange(3), dit.centred(4, 12, 8), dit.centred(6, 12, 8))
        assert table.shape == (3, 4, 6, width) and table.isfinite().all()
    table = videodit.sincos_3d(48, torch.arange(3), dit.centred(4, 12, 8), dit.centred(6, 12, 8))
    assert_close(table[2, 1, 5, :16], dit.sincos(torch.tensor([2]), 16)[0])
    assert_close(table[2, 1, 5, 16:32], dit.sincos(dit.centred(4, 12, 8)[1:2], 16)[0])
    assert_close(table[2, 1, 5, 32:], dit.sincos(dit.centred(6, 12, 8)[5:], 16)[0])


@pytest.mark.parametrize("variant", [{}, {"qk_norm": "rms", "dual_attention": 1}])
def test_bf16_autocast_stays_close_to_fp32(variant):
    """Training: bf16 autocast over fp32 weights is how the model trains."""
    video = VideoDiT.from_image(scrambled(MMDiT(MMDiTConfig(**{**asdict(SMALL), **variant}))))
    z, t, cond = draw(frames=2)
    exact = video(z, t, **cond)
    with torch.autocast("cpu", torch.bfloat16):
        rough = video(z, t, **cond)
    rough.float().sum().backward()
    assert (rough - exact).abs().max() < 0.03 * exact.abs().max()


@pytest.mark.parametrize("attention", ["2d->3d", "2d+3d"])
def test_checkpointing_gives_the_same_gradients(attention):
    """Training: only memory and time change."""
    video = scrambled(VideoDiT.from_image(MMDiT(SMALL), attention))
    plain = gradients(video)
    video.zero_grad(set_to_none=True)
    video.checkpointing = True
    assert gradients(video) == pytest.approx(plain)


def test_in_2d_a_frame_is_alone_and_in_3d_without_times_all_frames_are_alike():
    """What out/videodit.png shows of the toy: Fig. 2's sets, and Table 5's reason for 3D patchify."""
    alone, timeless, trained = show_videodit.draw_toy(None)
    assert abs(alone) < 1e-6                                        # 1 - the sum of a softmax, which rounds
    assert abs(timeless - 0.75) < 0.03 and 0.1 < trained < 0.75


# ------------------------------------------------------------------------------------------------------ LoRA

def with_lora(rank=2, moved=True, dtype=torch.float32):
    """A VideoDiT whose adapters and 3D patchify have learned something, or not."""
    video = scrambled(VideoDiT.from_image(MMDiT(SMALL)), std=0.1)
    videodit.add_lora(video, rank, dtype)
    if moved:
        for name, parameter in video.named_parameters():
            if parameter.requires_grad:
                parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return video


def test_lora_changes_nothing_at_first_and_merged_answers_as_it_did():
    """Hu et al. 2021, 4.1: U is zero at first, W + U D needs no branch, and the file is a VideoDiT's."""
    plain = scrambled(VideoDiT.from_image(MMDiT(SMALL)), std=0.1)
    z, t, cond = draw(frames=3)
    assert_close(with_lora(moved=False)(z, t, **cond), plain(z, t, **cond), atol=1e-5, rtol=0)
    learned = with_lora()
    kept = learned.image.joint_blocks[0].x_block.mlp.fc1.weight.clone()
    plain.load_state_dict(learned.export(learned.state_dict()))                 # strict: no adapter is left
    answer = learned(z, t, **cond)
    assert (answer - with_lora(moved=False)(z, t, **cond)).abs().max() > 0.1
    assert_close(plain(z, t, **cond), answer, atol=1e-4, rtol=1e-4)
    assert_close(learned.image.joint_blocks[0].x_block.mlp.fc1.weight, kept, atol=0, rtol=0)


def test_with_lora_adapters_and_3d_patchify_learn_and_nothing_else():
    """The image model is frozen, its blocks in bf16; every trained parameter gets a gradient."""
    video = with_lora(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        sizes = gradients(video)
    learns = {name for name, size in sizes.items() if size is not None}
    assert learns == {name for name in sizes if name.endswith((".up", ".down")) or "patchify_3d" in name}
    assert {p.dtype for p in video.image.joint_blocks.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in video.parameters() if p.requires_grad)
    assert all(tensor.dtype == torch.float32 for tensor in video.export(video.state_dict()).values())


def test_lora_of_rank_16_trains_a_hundredth_of_stable_diffusion_3():
    """18.6 M adapters for 2.03 B, and the 3D patchify, 2.5 M."""
    with torch.device("meta"):
        video = VideoDiT(VideoDiTConfig())
        videodit.add_lora(video, 16, torch.bfloat16)
    learns = {name: p.numel() for name, p in video.named_parameters() if p.requires_grad}
    branch = sum(size for name, size in learns.items() if name.startswith("patchify_3d"))
    assert (branch, sum(learns.values()) - branch) == (2_460_672, 18_579_456)
    with pytest.raises(UserError, match="--lora"):
        videodit.add_lora(VideoDiT(VideoDiTConfig(**asdict(SMALL), attention="2d+3d")), 2, torch.float32)


@pytest.mark.slow
def test_lora_trains_resumes_and_leaves_a_plain_videodit(tiny, tmp_path):
    """Adapters are in state.pt, to be gone on with to the bit; they are not in videodit.safetensors."""
    whole, halves = tiny.fork(tmp_path / "whole"), tiny.fork(tmp_path / "halves")
    once = run(whole, "videodit", "--lora", 2, "--steps", 4, "--warmup", 0)
    run(halves, "videodit", "--lora", 2, "--steps", 2, "--warmup", 0)
    assert differs(once, run(halves, "videodit", "--lora", 2, "--steps", 4, "--warmup", 0)) == []
    saved, image = read_state(whole / "videodit.safetensors"), read_state(whole / "dit.safetensors")
    assert same(saved, read_state(halves / "videodit.safetensors"))
    load_network(VideoDiT, whole / "videodit.safetensors")
    moved = {name for name in image if not torch.equal(image[name], saved[f"image.{name}"])}
    assert moved and all(name.endswith(".weight") and (".attn." in name or ".mlp." in name) for name in moved)
    assert any(name.endswith(".up") for name in once["players"]["videodit"])


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--shard",)])
def test_lora_on_two_ranks_is_lora_on_one(tiny, tmp_path, flags):
    """Whole networks and sharded ones: to 1e-5 after 4 steps."""
    one, two = tiny.fork(tmp_path / "one"), tiny.fork(tmp_path / "two")
    words = "--lora", 2, "--steps", 4, "--warmup", 0
    alone = run(one, "videodit", *words)
    command = torchrun("train.py", "--config", "tiny", "--stage", "videodit", "--out", two, *words, *flags)
    done = script(*command, extra=THREAD)
    assert done.code == 0, done.err[-4000:]
    assert_close(read_state(two / "videodit/state.pt")["players"], alone["players"], atol=1e-5, rtol=0)
    saved = [read_state(out / "videodit.safetensors") for out in (two, one)]
    assert_close(*saved, atol=1e-5, rtol=0)
