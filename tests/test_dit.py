"""Tests of dit.py: parity with published image models, and what VideoDiT 3.2 promises of converting one."""

import copy
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import dit
from checkpoint import UserError, load_network, save_network
from conftest import golden, released
from dit import (DiT, DiTBlock, DiTConfig, MMDiT, MMDiTConfig, PixArt, PixArtBlock, VideoDiT, VideoDiTConfig,
                 scrambled)

SMALL = MMDiTConfig(in_channels=4, depth=3, heads=4, head_dim=12, context_dim=20, pooled_dim=10, pos_grid=12,
                    base_size=8)
MMDIT_FILES = ["sd3_mmdit", "sd3_mmdit_diffusers", "sd35_mmditx", "sd35m_mmditx", "sd35m_mmditx_diffusers"]
PIXART_FILES = ["pixart_diffusers", "pixart_cond_diffusers"]


def golden_pixart(name):
    weights, given, expected, config = golden(name)
    config = config["diffusers"]
    net = PixArt.from_state_dict(weights, config["attention_head_dim"], config["sample_size"],
                                 config.get("interpolation_scale"))
    sizes = {key: given[key] for key in ("resolution", "aspect_ratio") if key in given}
    return net, given, expected, sizes


def outputs_of(blocks, run):
    """What each block returns while run() runs, and what run() returns."""
    seen = []
    hooks = [block.register_forward_hook(lambda module, given, out: seen.append(out)) for block in blocks]
    with torch.no_grad():
        result = run()
    for hook in hooks:
        hook.remove()
    return seen, result


def close(actual, expected, atol=1e-5):
    assert_close(actual, expected, atol=atol, rtol=0)


def draw(frames=1, config=SMALL, height=8, width=12, batch=2, seed=0):
    """A clip, a time, and its text."""
    torch.manual_seed(seed)
    z = torch.randn(batch, config.in_channels, frames, height, width)
    return z, torch.rand(batch), {"context": torch.randn(batch, 5, config.context_dim),
                                  "pooled": torch.randn(batch, config.pooled_dim)}


def count(net):
    return sum(p.numel() for p in net.parameters())


# ---------------------------------------------------------------------------------------------- golden: MMDiT

@pytest.mark.parametrize("name", MMDIT_FILES)
def test_golden_mmdit_equals_the_published_network(name):
    """SD3, SD3.5-large and SD3.5-medium, original and Diffusers layout: every block and the output."""
    weights, given, expected, config = golden(name)
    net = MMDiT.from_state_dict(weights, head_dim=config["head_dim"])
    seen, out = outputs_of(net.joint_blocks,
                           lambda: net.forward_sd3(given["x"], given["t"], given["context"], given["y"]))
    for i, (context, x) in enumerate(seen):
        close(x, expected[f"block{i}.x"])
        if f"block{i}.context" in expected:
            close(context, expected[f"block{i}.context"])
    assert context is None
    close(out, expected["model_output"])


@pytest.mark.parametrize("name", ["sd3_mmdit", "sd35_mmditx", "sd35m_mmditx"])
def test_golden_conditions_and_positions_of_mmdit(name):
    """[cos|sin] time embedding; the table is cropped in its centre."""
    weights, given, expected, config = golden(name)
    net = MMDiT.from_state_dict(weights, head_dim=config["head_dim"])
    close(net.t_embedder(given["t"]), expected["t_embed"])
    close(net.y_embedder(given["y"]), expected["y_embed"])
    h, w = (n // config["patch_size"] for n in config["latent_hw"])
    close(net.positions(h, w).flatten(0, 1)[None], expected["pos_embed_cropped"])


@pytest.mark.parametrize("name", MMDIT_FILES)
def test_golden_sincos_table_of_mmdit(name):
    """The formula of the table: columns first, each half [sin|cos]."""
    _, _, expected, config = golden(name)
    grid = torch.arange(config["pos_embed_max_size"]) * config["base_size"] / config["pos_embed_max_size"]
    close(dit.sincos_2d(config["hidden_size"], grid, grid).flatten(0, 1)[None], expected["sincos_pos_embed"])


@pytest.mark.parametrize("name", ["sd3_mmdit", "sd35m_mmditx"])
def test_golden_both_layouts_load_to_the_same_weights(name):
    """Names, stacked q k v and the four swapped tensors of Diffusers' layout."""
    nets = []
    for file in (name, f"{name}_diffusers"):
        weights, _, _, config = golden(file)
        nets.append(MMDiT.from_state_dict(weights, head_dim=config["head_dim"]))
    assert asdict(nets[0].config) == asdict(nets[1].config)
    assert_close(nets[0].state_dict(), nets[1].state_dict(), atol=0, rtol=0)


def test_golden_time_runs_the_other_way_in_sd3():
    """VideoDiT Eq. 5 against SD3: t = 1 - sigma, v = -v_SD3, and one Euler step lands on the same point."""
    weights, given, _, config = golden("sd3_mmdit")
    net = MMDiT.from_state_dict(weights, head_dim=config["head_dim"])
    z, cond = given["x"].unsqueeze(2), (given["context"], given["y"])
    sigma = given["t"] / 1000
    v, v_sd3 = net(z, 1 - sigma, *cond), net.forward_sd3(z, given["t"], *cond)
    close(v, -v_sd3)
    dt = 0.25                                                   # time goes up by dt, sigma down
    close(z + dt * v, z + (-dt) * v_sd3)


def test_golden_other_networks_in_the_file_are_ignored():
    """sd3_medium.safetensors also holds the VAE and text encoders."""
    weights, _, _, config = golden("sd3_mmdit")
    extra = dict.fromkeys(("first_stage_model.conv_in.bias", "text_encoders.clip_l.x"), torch.zeros(1))
    net = MMDiT.from_state_dict({**weights, **extra}, head_dim=config["head_dim"])
    assert net.config.depth == config["depth"]


def test_golden_weights_keep_their_dtype_unless_told():
    """Half-precision files are not doubled in memory: their tensors are taken over, not copied."""
    weights, _, _, config = golden("sd3_mmdit")
    half = {name: tensor.half() for name, tensor in weights.items()}
    net = MMDiT.from_state_dict(half, head_dim=config["head_dim"])
    name = "x_embedder.proj.weight"
    assert net.x_embedder.proj.weight.data_ptr() == half["model.diffusion_model." + name].data_ptr()
    assert {p.dtype for p in net.parameters()} == {torch.float16}
    assert MMDiT.from_state_dict(half, config["head_dim"], torch.float32).pos_embed.dtype == torch.float32


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_golden_a_wrong_key_is_named(change):
    """A missing, unexpected or wrongly shaped key is an error that lists it."""
    weights, _, _, config = golden("sd3_mmdit")
    prefix, name = "model.diffusion_model.", "joint_blocks.0.x_block.attn.proj.bias"
    if change == "missing":
        del weights[prefix + name]
    else:
        name = name if change == "shape" else "joint_blocks.0.surprise"
        weights[prefix + name] = torch.zeros(3)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        MMDiT.from_state_dict(weights, head_dim=config["head_dim"])


def test_weights_of_another_network_are_refused_by_name():
    """A clear line, not a KeyError."""
    for cls in (MMDiT, DiT, PixArt):
        with pytest.raises(UserError, match=cls.__name__):
            cls.from_state_dict({"conv1.weight": torch.zeros(2, 2)})


# ------------------------------------------------------------------------------------- golden: DiT and PixArt

def test_golden_dit_equals_the_published_network():
    """DiT (Peebles & Xie): time embedding, every block, output."""
    weights, given, expected, config = golden("dit")
    net = DiT.from_state_dict(weights, head_dim=config["hidden_size"] // config["num_heads"])
    seen, out = outputs_of(net.blocks, lambda: net(given["x"], given["t"], given["y"]))
    for i, x in enumerate(seen):
        close(x, expected[f"block{i}"])
    close(net.t_embedder(given["t"]), expected["t_embed"])
    close(out, expected["model_output"])


def test_golden_dit_guides_three_of_four_channels():
    """DiT's forward_with_cfg, quirk included."""
    weights, given, expected, config = golden("dit")
    net = DiT.from_state_dict(weights, head_dim=config["hidden_size"] // config["num_heads"])
    with torch.no_grad():
        out = net.forward_with_cfg(given["cfg_x"], given["cfg_t"], given["cfg_y"], given["cfg_scale"].item())
    close(out, expected["cfg_output"], atol=3e-5)


def test_golden_dit_reads_its_config_off_the_shapes():
    """What shapes cannot tell is an argument."""
    weights, _, _, config = golden("dit")
    found = DiT.from_state_dict(weights, head_dim=config["hidden_size"] // config["num_heads"]).config
    for ours, theirs in (("depth", "depth"), ("width", "hidden_size"), ("heads", "num_heads"),
                         ("input_size", "input_size"), ("learn_sigma", "learn_sigma")):
        assert getattr(found, ours) == config[theirs], ours


@pytest.mark.parametrize("name", PIXART_FILES)
def test_golden_pixart_equals_the_published_network(name):
    """PixArt-alpha with text mask, without, and with micro-conditions: every block and the output."""
    net, given, expected, sizes = golden_pixart(name)
    text, mask = given["text"], given["text_mask"]
    seen, out = outputs_of(net.blocks, lambda: net(given["x"], given["t"], text, mask, **sizes))
    for i, x in enumerate(seen):
        close(x, expected[f"block{i}"])
    close(out, expected["model_output"])
    with torch.no_grad():
        close(net(given["x"], given["t"], text, **sizes), expected["model_output_nomask"])


@pytest.mark.parametrize("name", PIXART_FILES)
def test_golden_pixart_positions(name):
    """Not in the checkpoint: computed from the training size and the interpolation."""
    net, _, expected, _ = golden_pixart(name)
    side = net.config.sample_size // net.config.patch
    close(net.positions(side, side).flatten(0, 1)[None], expected["pos_embed"])


@pytest.mark.parametrize("name", PIXART_FILES)
def test_golden_pixart_hidden_text_is_not_read(name):
    """The text mask: changing a padded token changes nothing, changing a real one does."""
    net, given, _, sizes = golden_pixart(name)
    padded = given["text"] + 3 * (1 - given["text_mask"]).unsqueeze(-1)
    real = given["text"] + 3 * given["text_mask"].unsqueeze(-1)
    with torch.no_grad():
        out, same, other = (net(given["x"], given["t"], text, given["text_mask"], **sizes)
                            for text in (given["text"], padded, real))
    close(out, same)
    assert not torch.allclose(out, other, atol=1e-3)


# -------------------------------------------------------------------------------------- released sizes (meta)

@pytest.mark.parametrize("name, depth, dual, qk_norm", [
    ("sd3_medium.diffusion_model", 24, 0, ""), ("sd3_medium.diffusers_transformer", 24, 0, ""),
    ("sd3.5_medium.diffusion_model", 24, 13, "rms"), ("sd3.5_large.diffusion_model", 38, 0, "rms")])
def test_golden_released_mmdit_keys_all_fit(name, depth, dual, qk_norm):
    """Released sizes: each key is used, none is missing, the config is right."""
    state, _ = released(name)
    config = MMDiT.from_state_dict(state).config
    assert (config.depth, config.heads) == (depth, depth)
    assert (config.dual_attention, config.qk_norm) == (dual, qk_norm)
    assert (config.context_dim, config.pooled_dim, config.mlp_ratio) == (4096, 2048, 4.0)


@pytest.mark.parametrize("name, size", [("DiT-XL-2-256x256", 32), ("DiT-XL-2-512x512", 64)])
def test_golden_released_dit_keys_all_fit(name, size):
    """DiT-XL/2: the defaults of DiTConfig are the released 256 model."""
    state, _ = released(name)
    assert DiT.from_state_dict(state).config == DiTConfig(input_size=size)


@pytest.mark.parametrize("name, size, micro", [("256", 32, False), ("512", 64, False), ("1024", 128, True)])
def test_golden_released_pixart_keys_all_fit(name, size, micro):
    """PixArt-XL/2 in Diffusers' layout; the 1024 model has micro-conditions and interpolated positions."""
    state, _ = released(f"PixArt-XL-2-{name}.diffusers_transformer")
    config = PixArt.from_state_dict(state, sample_size=size).config
    scale = max(size // 64, 1)
    assert config == dit.PixArtConfig(sample_size=size, interpolation=scale, micro_conditions=micro)


def test_pixart_takes_the_original_file_too():
    """PixArt-alpha's own .pth: our names, plus a table and a null caption that we do not need."""
    config = dit.PixArtConfig(depth=1, width=24, heads=2, caption_channels=6)
    net = scrambled(PixArt(config))
    extra = {"pos_embed": torch.zeros(1, 4, 24), "y_embedder.y_embedding": torch.zeros(120, 6)}
    loaded = PixArt.from_state_dict({"state_dict": {**net.state_dict(), **extra}}, head_dim=12)
    assert_close(loaded.state_dict(), net.state_dict())


def test_parameter_counts_are_the_papers():
    """Table 4: 2.03B, and "2Dand3D" 4.15B, here with 24 + 23 zero projections; SD3-medium 2,028,328,000."""
    with torch.device("meta"):
        assert count(MMDiT(MMDiTConfig())) == 2_028_328_000
        assert count(VideoDiT(VideoDiTConfig())) == 2_030_788_672
        assert count(VideoDiT(VideoDiTConfig(patchify_3d=False))) == 2_028_328_000
        both = VideoDiT(VideoDiTConfig(attention="2d+3d"))
        assert count(both) == 4_150_599_232
    assert sum(p.numel() for p in both.parameters() if p.requires_grad) == 4_150_599_232 - 2_028_328_000


# --------------------------------------------------------------------------------------------- VideoDiT (3.2)

@pytest.mark.parametrize("attention", ["2d->3d", "2d+3d"])
@pytest.mark.parametrize("variant", [{}, {"qk_norm": "rms", "dual_attention": 1}])
def test_one_frame_video_is_an_image(attention, variant):
    """VideoDiT 3.2: at step 0 and T=1 the video model is the image model, SD3.5's blocks included."""
    image = scrambled(MMDiT(MMDiTConfig(**{**asdict(SMALL), **variant})))
    z, t, cond = draw(frames=1)
    video = VideoDiT.from_image(copy.deepcopy(image), attention)
    assert_close(video(z, t, **cond), image(z, t, **cond), atol=0, rtol=0)


def test_the_3d_patchify_branch_is_silent_at_step_0():
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


def test_2d_and_3d_attention_starts_as_separate_pictures():
    """A.2, Fig. 9: the frozen blocks see one frame each, the twins are silent."""
    image = scrambled(MMDiT(SMALL))
    z, t, cond = draw(frames=3)
    pictures = torch.cat([image(z[:, :, i:i + 1], t, **cond) for i in range(3)], dim=2)
    close(VideoDiT.from_image(image, "2d+3d")(z, t, **cond), pictures)


def test_2d_and_3d_twins_start_as_copies_and_share_nothing():
    """A.2: "weights initialized by copying"; training a twin must leave the original alone."""
    video = VideoDiT.from_image(scrambled(MMDiT(SMALL)), "2d+3d")
    for original, twin in zip(video.image.joint_blocks, video.twins):
        assert_close(twin.block.state_dict(), original.state_dict())
        assert twin.block.x_block.attn.qkv.weight.data_ptr() != original.x_block.attn.qkv.weight.data_ptr()
    assert video.twins[-1].zero_context is None and video.twins[0].zero_context is not None


def gradients(video, frames=2):
    """{name: largest gradient} after one backward pass."""
    z, t, cond = draw(frames)
    video(z, t, **cond).square().mean().backward()
    return {name: None if p.grad is None else p.grad.abs().max().item()
            for name, p in video.named_parameters()}


def test_in_2d_and_3d_only_zero_projections_learn_at_step_0_then_the_twins():
    """A.2: originals frozen; a twin's own weights are reached through its zero projection, once moved."""
    video = VideoDiT.from_image(scrambled(MMDiT(SMALL)), "2d+3d")
    first = gradients(video)
    assert all(size is None for name, size in first.items() if name.startswith("image."))
    for name, size in first.items():
        if size is not None:
            assert (size > 0) == (".zero" in name), name
    torch.optim.SGD([p for p in video.parameters() if p.requires_grad], lr=1e-2).step()
    second = gradients(video)
    assert all(second[name] > 0 for name in second if name.startswith("twins") and name.endswith("weight"))


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


def test_a_clip_of_another_length_and_size_runs():
    """4.1: trained at 320, continued at 512; images between the videos."""
    video = VideoDiT.from_image(scrambled(MMDiT(SMALL)))
    for frames, height, width in ((1, 24, 24), (7, 4, 16), (2, 6, 2)):
        z, t, cond = draw(frames, height=height, width=width)
        assert video(z, t, **cond).shape == z.shape


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


def test_the_image_model_can_be_taken_out_again():
    """Joint training (3.2): the image model in a video model has a config of its own."""
    video = VideoDiT(VideoDiTConfig(**asdict(SMALL)))
    assert type(video.image.config) is MMDiTConfig
    assert VideoDiT.from_image(video.image, "2d+3d").image is video.image


def test_a_video_of_a_half_precision_image_model_is_all_half_precision():
    """from_image: the new layers take the image model's dtype."""
    video = VideoDiT.from_image(MMDiT(SMALL).bfloat16(), "2d+3d")
    assert {p.dtype for p in video.parameters()} == {torch.bfloat16}
    z, t, cond = draw(frames=2)
    half = {name: tensor.bfloat16() for name, tensor in cond.items()}
    assert video(z.bfloat16(), t, **half).dtype == torch.bfloat16


def test_wrong_requests_are_explained():
    """An unknown attention, a size that does not divide, a picture larger than the table."""
    video = VideoDiT(VideoDiTConfig(**asdict(SMALL)))
    with pytest.raises(UserError, match="4d"):
        VideoDiT(VideoDiTConfig(**{**asdict(SMALL), "attention": "4d"}))
    for size, words in ((7, "divide"), (26, "table of 12")):
        z, t, cond = draw(height=size, width=size)
        with pytest.raises(UserError, match=words):
            video(z, t, **cond)


# ------------------------------------------------------------------------------------------------- the parts

def test_a_new_network_predicts_zero_and_its_blocks_change_nothing():
    """DiT 3.2, adaLN-Zero."""
    net = MMDiT(SMALL)
    z, t, cond = draw(frames=2)
    x, c = net.embed(z), net.condition(t, cond["pooled"])
    context = net.context_embedder(cond["context"])
    after = net.joint_blocks[0](context, x, c)
    assert_close(after, (context, x), atol=0, rtol=0)
    assert net(z, t, **cond).abs().max() == 0
    assert abs(net.t_embedder.mlp[0].weight.std().item() - 0.02) < 2e-3


def test_patches_are_put_back_where_they_were_cut():
    """SD3: (p,q,c) out, row-major tokens, frames outermost."""
    z = torch.randn(2, 3, 4, 6, 8)
    patches = z.unfold(3, 2, 2).unfold(4, 2, 2).permute(0, 2, 3, 4, 5, 6, 1)    # (B,T,h,w,p,q,C)
    assert_close(dit.unpatchify(patches.reshape(2, 4 * 3 * 4, 12), z, 2), z)


def test_the_patch_convolution_reads_the_same_squares():
    """SD3: tokens are row-major; a one-hot kernel picks one pixel of each square."""
    z, embed = torch.randn(2, 3, 4, 6, 8), dit.PatchEmbed(3, 1, 2)
    torch.nn.init.zeros_(embed.proj.weight)
    torch.nn.init.zeros_(embed.proj.bias)
    embed.proj.weight.data[0, 2, 1, 0] = 1
    assert_close(embed(z)[..., 0], z[:, 2, :, 1::2, 0::2])


def test_a_larger_picture_moves_no_token():
    """Coordinates are centred, so 320 -> 512 keeps the meaning of every position; SD3: (p - 64) / 4."""
    assert_close(dit.centred(20, 192, 64), (torch.arange(86, 106) - 64) / 4)
    assert_close(dit.centred(32, 192, 64)[6:26], dit.centred(20, 192, 64))
    net = MMDiT(SMALL)
    assert_close(net.positions(8, 10)[2:6, 1:9], net.positions(4, 8))


def test_the_branch_and_the_table_agree_where_a_token_is():
    """sincos_3d shares the coordinates of the 2D table, for any even width."""
    for width in (2, 6, 48, 64, 98):
        table = dit.sincos_3d(width, torch.arange(3), dit.centred(4, 12, 8), dit.centred(6, 12, 8))
        assert table.shape == (3, 4, 6, width) and table.isfinite().all()
    table = dit.sincos_3d(48, torch.arange(3), dit.centred(4, 12, 8), dit.centred(6, 12, 8))
    assert_close(table[2, 1, 5, :16], dit.sincos(torch.tensor([2]), 16)[0])
    assert_close(table[2, 1, 5, 16:32], dit.sincos(dit.centred(4, 12, 8)[1:2], 16)[0])
    assert_close(table[2, 1, 5, 32:], dit.sincos(dit.centred(6, 12, 8)[5:], 16)[0])


@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_attention_by_hand_and_fused_agree_with_the_formula(dtype, atol):
    """softmax(q k^T / sqrt(d)) v, with and without a mask, whichever kernel is chosen."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8).to(dtype) for n in (5, 7, 7))
    mask = torch.rand(2, 1, 1, 7) > 0.3
    mask[..., 0] = True
    for hide in (None, mask):
        scores = q.double() @ k.double().transpose(-2, -1) / 8 ** 0.5
        scores = scores if hide is None else scores.masked_fill(~hide, -1e9)
        close(dit.attend(q, k, v, hide).double(), scores.softmax(-1) @ v.double(), atol=atol)


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


@pytest.mark.parametrize("block", [DiTBlock(12, 2), PixArtBlock(12, 2, cross=False)])
def test_one_condition_for_many_rows_is_that_condition_repeated(block):
    """Modulating once per clip must not change the result."""
    scrambled(block, std=0.3)
    x, c = torch.randn(6, 5, 12), torch.randn(2, 12 if isinstance(block, DiTBlock) else 72)
    assert_close(block(x, c), block(x, c.repeat_interleave(3, dim=0)))


def test_text_is_shared_by_the_rows_of_a_clip():
    """Cross-attention is per token, so the frames of a clip read one text without copies of it."""
    block = scrambled(PixArtBlock(12, 2), std=0.3)
    x, c6, text = torch.randn(6, 5, 12), torch.randn(2, 72), torch.randn(2, 4, 12)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    repeated = [tensor.repeat_interleave(3, dim=0) for tensor in (c6, text, mask)]
    assert_close(block(x, c6, text, mask), block(x, *repeated))


def test_labels_are_dropped_in_training_only():
    """Classifier-free guidance: a tenth become "no class", the extra row."""
    embed = dit.LabelEmbedder(5, 4, dropout=0.25)
    labels = torch.zeros(4000, dtype=torch.long)
    null = embed.embedding_table.weight[5]
    dropped = (embed(labels) == null).all(dim=1).float().mean()
    assert abs(dropped - 0.25) < 0.05
    assert (embed.eval()(labels) == embed.embedding_table.weight[0]).all()


def test_configs_explain_every_field():
    """Each config field has a comment."""
    lines = Path(dit.__file__).read_text().splitlines()
    for field in fields(VideoDiTConfig):
        assert any(line.strip().startswith(field.name + ":") for line in lines), field.name


def test_demo_changes_nothing_at_step_0():
    """python dit.py prints these numbers."""
    found = dit.demo()
    assert len(found) == 4 and max(found.values()) < 1e-5
