"""Tests of latte.py: parity with the published networks, Tables 1 and 2, what Latte 3.2 and 3.3 promise."""

import math
from dataclasses import replace

import pytest
import torch
from einops import rearrange
from torch.testing import assert_close

import conftest
import latte
from demos import scrambled, show_latte
import pretrained
from support.cli import UserError
from support.ops import attend
from conftest import golden
from dit import DiT, DiTConfig, PixArt, PixArtConfig
from flow import DDPM, ddpm_terms, flow_loss, guided, velocity_of
from test_dit import count, outputs_of
from latte import (SIZES, Latte, LatteConfig, LatteV1, count_as_printed, frame_similarity, init_from_image,
                   temporal_mask)

LATTE_FILES = ["latte_uncond", "latte_class", "latte_text", "latte_img", "latte_img_class"]
SMALL = LatteConfig(depth=4, width=24, heads=2, frames=4, input_size=8, classes=5, context_dim=10,
                    pooled_dim=6)
OPTIONS = {
    "plain": {}, "class": {"condition": "class"}, "text": {"condition": "text"},
    "text, adaln_single": {"condition": "text", "conditioning": "adaln_single"},
    "all_tokens": {"conditioning": "all_tokens"},
    "all_tokens, class": {"conditioning": "all_tokens", "condition": "class"},
    "compression": {"patch_embed": "compression"}, "rope": {"temporal": "rope"},
    "temporal_mask": {"joint": "temporal_mask"}, "paper_count": {"v4": "paper_count"},
}
VARIANTS = pytest.mark.parametrize("variant", [1, 2, 3, 4])
# each variant with the plain options, and each option once, variants in turn
EACH = [(1, "plain"), (2, "plain"), (3, "plain"), (4, "plain"), (1, "class"), (2, "text"),
        (3, "text, adaln_single"), (4, "all_tokens"), (1, "all_tokens, class"), (2, "compression"), (3, "rope"),
        (4, "temporal_mask"), (4, "paper_count")]


# ---------------------------------------------------------------------------------------------------- helpers

def golden_latte(name):
    """The network, what it is called with, and its published output; clips are (B,F,C,H,W) in the file."""
    weights, given, expected, config = golden(name)
    net = pretrained.latte(weights, head_dim=config["hidden_size"] // config["num_heads"])
    cond = {"images": config["use_image_num"]}
    if "y" in given:
        cond["labels"] = given["y"][:, None]
    if "y_image" in given:
        cond["labels"] = torch.cat([cond["labels"], given["y_image"]], 1)
    if "text_embedding" in given:
        cond["pooled"] = given["text_embedding"].flatten(1)
    return net, given["x"].transpose(1, 2), given["t"], cond, given, expected, config


def golden_t2v():
    weights, given, expected, config = golden("latte_t2v_diffusers")
    config = config["diffusers"]
    net = pretrained.latte_t2v(weights, config["attention_head_dim"], config["sample_size"],
                              config["video_length"])
    return net, given, expected


def close(actual, expected, atol=3e-5):
    """Latte's fixtures round by 1e-5 themselves: 1e-5 and twice that."""
    conftest.close(actual, expected, atol)


def in_their_layout(x, block):
    """(B,T,N,D) as the published code keeps it: frames, or patches, in the batch."""
    return rearrange(x, "b t n d -> (b t) n d" if block.axes == ("space",) else "b t n d -> (b n) t d")


def make(variant=1, option="plain", seed=0, **changes):
    torch.manual_seed(seed)
    return Latte(replace(SMALL, variant=variant, **{**OPTIONS[option], **changes}))


def trained(variant=1, option="plain", **changes):
    """As if trained: no weight is zero by design."""
    return scrambled(make(variant, option, **changes), std=0.2).eval()


def draw(net, batch=2, frames=4, height=8, width=8, images=0, seed=1):
    """A clip, its time and its conditions, with images after it."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(batch, *shape, generator=generator)

    cond = {"images": images}
    if net.config.condition == "class":
        cond["labels"] = torch.arange(batch) % net.config.classes
    if net.config.condition == "text":
        cond["context"] = normal(3, net.config.context_dim)
        cond["pooled"] = normal(net.config.pooled_dim)
    z = normal(net.config.in_channels, frames + images, height, width)
    return z, torch.arange(batch) * 400 + 7., cond


# ------------------------------------------------------------------------------------------ Variant 1, whole

def test_variant_1_in_one_piece_is_latte_with_the_default_config():
    """The file's first section: the same weights from the same seed, and the same output to the bit."""
    torch.manual_seed(0)
    whole = LatteV1(SMALL)
    net = make()
    assert_close(whole.state_dict(), net.state_dict(), rtol=0, atol=0)
    whole.load_state_dict(scrambled(net, std=0.2).state_dict())
    z, t, _ = draw(net)
    with torch.no_grad():
        out = whole(z, t)
        assert out.abs().min() > 0 and torch.equal(out, net(z, t))


# ----------------------------------------------------------------------------------- golden: the published V1

@pytest.mark.parametrize("name", LATTE_FILES)
def test_golden_latte_equals_the_published_network(name):
    """Unconditional, class, text vector, Only Video joint training: every block and the output."""
    net, x, t, cond, _, expected, config = golden_latte(name)
    video = config["num_frames"]
    seen, out = outputs_of(net.blocks, lambda: net(x, t, **cond))
    for i, (block, h) in enumerate(zip(net.blocks, seen)):
        h = h[:, :video] if block.axes == ("time",) else h
        close(in_their_layout(h, block), expected[f"block{i}"])
    close(out.transpose(1, 2), expected["model_output"])


@pytest.mark.parametrize("name, key", [("latte_class", "labels"), ("latte_text", "pooled")])
def test_golden_guidance_is_on_the_noise_and_not_on_the_variance(name, key):
    """Latte's forward_with_cfg by flow.guided: C channels guided, the variance each half's own."""
    net, _, _, _, given, expected, config = golden_latte(name)
    rows = given["cfg_y"] if "cfg_y" in given else given["cfg_text_embedding"].flatten(1)
    half, C = len(rows) // 2, config["in_channels"]
    x, t = given["cfg_x"][:half].transpose(1, 2), given["cfg_t"]
    predict = guided(net, {key: rows[:half]}, given["cfg_scale"].item(), {key: rows[half:]}, channels=C)
    want = expected["cfg_output"].transpose(1, 2)
    with torch.no_grad():
        out = predict(x, t[:half])
        close(out, want[:half], atol=7e-5)
        close(out[:, :C], want[half:, :C], atol=7e-5)
        close(net(x, t[half:], **{key: rows[half:]})[:, C:], want[half:, C:])


def test_golden_text_to_video_equals_the_published_network():
    """Latte-T2V in Diffusers' layout: 28 + 28 blocks there, spatial and temporal in turn here."""
    net, given, expected = golden_t2v()
    seen, out = outputs_of(net.blocks, lambda: net(given["x"], given["t"], context=given["text"]))
    for i, (block, h) in enumerate(zip(net.blocks, seen)):
        close(in_their_layout(h, block), expected[f"{'spatial' if i % 2 == 0 else 'temporal'}{i // 2}"])
    close(out, expected["model_output"])
    close(net.pos_embed, expected["pos_embed"])
    close(net.temp_embed, expected["temp_pos_embed"])


def test_golden_text_to_video_of_images_alone_skips_the_temporal_blocks():
    """Only Video: frames that are all images never meet a temporal block."""
    net, given, expected = golden_t2v()
    net.config.joint = "only_video"
    with torch.no_grad():
        out = net(given["x"], given["t"], context=given["text"], images=given["x"].shape[2])
    close(out, expected["model_output_no_temporal"])


# --------------------------------------------------------------------------------------------- Tables 1 and 2

@pytest.mark.parametrize("size, params, ops", [
    ("S", 32_480_672, 265.728), ("B", 129_547_040, 1061.988), ("L", 456_815_648, 3774.399),
    ("XL", 673_681_568, 5572.695)])
def test_table_2_sizes_to_the_digit(size, params, ops):
    """Latte Table 2: 32.48, 129.54, 456.81, 673.68 M."""
    counted = count_as_printed(LatteConfig(**SIZES[size]))
    assert counted["params"] == params
    assert round(counted["ops"] / 1e9, 3) == ops


@pytest.mark.parametrize("name", show_latte.TABLE_1)
def test_table_1_variants_to_the_digit(name):
    """Latte Table 1, digits cut off as printed; the honest cost of a clip stands beside it."""
    config, params, ops = show_latte.TABLE_1[name]
    counted = count_as_printed(config)
    assert math.floor(counted["params"] / 1e4) / 100 == params
    assert math.floor(counted["ops"] / 1e7) / 100 == ops
    clip = {1: 1893.5, 2: 1893.5, 3: 2110.2, 4: 519.5}[config.variant]
    assert counted["clip"] / 1e9 == pytest.approx(clip, abs=0.1)


def test_half_heads_give_variant_4_the_budget_of_variant_1():
    """Read literally, half of the heads on each axis: 673.71 M parameters and within 2 % of the cost."""
    with torch.device("meta"):
        assert count(Latte(LatteConfig(variant=4))) == 673_713_824
    ours, first = (count_as_printed(LatteConfig(variant=v))["clip"] for v in (4, 1))
    assert ours / 1e9 == pytest.approx(1923.8, abs=0.1) and abs(ours / first - 1) < 0.02
    counted = count_as_printed(LatteConfig(variant=4, v4="paper_count"))["clip"]     # at patch 2: as Variant 3
    assert counted / 1e9 == pytest.approx(2109.9, abs=0.1)


# ------------------------------------------------------------------------------------------- before training

@pytest.mark.parametrize("variant, option", EACH)
def test_an_untrained_latte_predicts_zero(variant, option):
    """adaLN-Zero: the head is 0, whatever the variant and the option."""
    net = make(variant, option)
    z, t, cond = draw(net, images=2)
    out = net(z, t, **cond)
    assert out.shape == (2, 8, 6, 8, 8) and out.abs().max() == 0


@pytest.mark.parametrize("variant, option", [pair for pair in EACH if pair[1] != "compression"])
def test_frames_start_independent(variant, option):
    """At step 0 nothing passes between frames: the other frames can be anything."""
    net = make(variant, option)
    torch.nn.init.normal_(net.final_layer.linear.weight)
    z, t, cond = draw(net)
    other = z.clone()
    other[:, :, 1:] = torch.randn_like(other[:, :, 1:])
    with torch.no_grad():
        close(net(other, t, **cond)[:, :, 0], net(z, t, **cond)[:, :, 0], atol=1e-6)
        assert net(z, t, **cond).abs().max() > 0.1


@pytest.mark.parametrize("variant, option", [
    (1, "class"), (1, "temporal_mask"), (1, "text, adaln_single"), (2, "all_tokens, class"),
    (2, "compression"), (3, "text"), (4, "rope")])
def test_variants_and_options_train(variant, option):
    """A few steps of DDPM's loss at a fixed time and noise, images beside the clip: it falls, and every
    parameter has a gradient."""
    net, ddpm = make(variant, option), DDPM()
    z, _, cond = draw(net, images=2)
    noise, t = torch.randn_like(z), torch.tensor([300, 700])
    optimizer, losses = torch.optim.Adam(net.parameters(), lr=5e-3), []
    for _ in range(6):
        loss = ddpm_terms(ddpm, net, z, cond, t=t, noise=noise)["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in net.parameters())
    assert losses[-1] < 0.95 * losses[0], losses


def test_latte_also_trains_as_a_rectified_flow():
    """flow.velocity_of mirrors time and takes the first C channels: at init v = 0, the loss E|x1-x0|^2."""
    net = make(1, "class").eval()
    z, _, cond = draw(net)
    noise = torch.randn_like(z)
    loss = flow_loss(velocity_of(net), z, cond, t=torch.tensor([0.2, 0.9]), noise=noise)
    close(loss, (z - noise).square().mean())


# --------------------------------------------------------------------------------------- clips, images, sizes

@pytest.mark.parametrize("variant, option", [(1, "plain"), (2, "rope"), (3, "all_tokens"), (4, "compression")])
def test_a_clip_of_other_length_and_size_runs(variant, option):
    """Neither the frame count nor the resolution is frozen in the weights."""
    net = trained(variant, option)
    for frames, height, width in ((6, 8, 8), (2, 8, 12), (4, 12, 4)):
        z, t, cond = draw(net, frames=frames, height=height, width=width)
        with torch.no_grad():
            out = net(z, t, **cond)
        assert out.shape == (2, 8, frames, height, width) and out.isfinite().all()


def test_a_longer_clip_counts_on_and_a_larger_frame_spans_the_same():
    """Times of a longer clip begin with those of training; rows of a larger frame end where they did."""
    net = make()
    zero = torch.zeros(1, 9, 1, 24)
    assert_close(net.add_time(zero, 9)[0, :4, 0], net.temp_embed[0])
    assert_close(net.position_embedding(8, 8)[::2, ::2], net.position_embedding(4, 4))


def test_a_size_that_does_not_divide_is_named():
    """One line, with the way out."""
    for option, shape, word in (("plain", (1, 4, 4, 7, 8), "multiples"),
                                ("compression", (1, 4, 3, 8, 8), "frames")):
        with pytest.raises(UserError, match=word):
            make(1, option)(torch.zeros(shape), torch.zeros(1))


@VARIANTS
@pytest.mark.parametrize("option", ["temporal_mask", "plain"])
def test_no_frame_sees_an_image_and_no_image_sees_a_frame(variant, option):
    """Latte 3.3.4: perturb one image and only it moves; perturb one frame and only the clip moves."""
    net = trained(variant, option)
    z, t, _ = draw(net, images=3)
    with torch.no_grad():
        before = net(z, t, images=3)
        for touched, moves in ((5, [5]), (0, [0, 1, 2, 3])):
            other = z.clone()
            other[:, :, touched] += 1
            change = (net(other, t, images=3) - before).abs().amax((0, 1, 3, 4))
            still = [i for i in range(7) if i not in moves]
            assert change[still].max() == 0 and change[moves].min() > 1e-4


def test_temporal_mask_lets_images_train_the_temporal_blocks():
    """That is its whole point; with Only Video their loss has no gradient there."""
    for option, reached in (("temporal_mask", True), ("plain", False)):
        net = trained(1, option)
        z, t, _ = draw(net, images=2)
        net(z, t, images=2)[:, :, 4:].sum().backward()
        gradient = net.blocks[1].attn.proj.weight.grad
        assert reached == (gradient is not None and gradient.abs().max().item() > 0)


def test_the_mask_is_a_square_for_the_clip_and_a_diagonal_for_the_images():
    """Latte Fig. 4."""
    assert temporal_mask(2, 2).int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("option", ["plain", "temporal_mask", "compression"])
def test_an_image_beside_a_clip_is_an_image_alone(option):
    """An image is a clip of one frame: no time, and no neighbour."""
    net = trained(1, option)
    z, t, _ = draw(net, images=1)
    with torch.no_grad():
        close(net(z[:, :, 4:], t), net(z, t, images=1)[:, :, 4:], atol=1e-4)
        close(net(z[:, :, :4], t), net(z, t, images=1)[:, :, :4], atol=1e-4)


@pytest.mark.parametrize("variant, option", [
    (1, "class"), (2, "text"), (3, "text, adaln_single"), (4, "all_tokens, class")])
def test_images_may_have_conditions_of_their_own(variant, option):
    """One row more an image: with the clip's in all nothing changes, with another that image does."""
    net = trained(variant, option)
    z, t, cond = draw(net, images=2)
    images = cond.pop("images")
    rows = {name: value[:, None].expand(-1, 3, *value.shape[1:]).clone() for name, value in cond.items()}
    with torch.no_grad():
        before = net(z, t, **cond, images=images)
        close(net(z, t, **rows, images=images), before, atol=1e-4)
        for value in rows.values():
            value[:, 2] = value[:, 2] + 1
        change = (net(z, t, **rows, images=images) - before).abs().amax((0, 1, 3, 4))
    assert change[:5].max() < 1e-4 < 1e-3 < change[5]


def test_padded_text_is_not_read():
    """mask (B,L): a hidden token can be anything."""
    net = trained(1, "text")
    z, t, cond = draw(net)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    other = {**cond, "context": cond["context"] + 5 * (1 - mask)[..., None]}
    with torch.no_grad():
        close(net(z, t, **other, mask=mask), net(z, t, **cond, mask=mask), atol=0)


def test_what_the_model_needs_is_asked_for():
    """A missing condition is named, with its shape."""
    for option, name in (("class", "labels"), ("text", "pooled"), ("all_tokens, class", "labels")):
        with pytest.raises(UserError, match=name):
            make(1, option)(torch.zeros(1, 4, 4, 8, 8), torch.zeros(1))


@pytest.mark.parametrize("change", [{"variant": 9}, {"joint": "both"}, {"depth": 3}, {"width": 25},
                                    {"variant": 4, "heads": 3, "width": 36}])
def test_a_config_that_cannot_be_is_named(change):
    """The field, its value, and what to choose instead."""
    with pytest.raises(UserError, match=list(change)[0] if len(change) == 1 else "heads"):
        Latte(replace(SMALL, **change))


# -------------------------------------------------------------------------------------------------- the parts

def test_rotary_positions_are_relative():
    """RoPE: q k^T depends on how far apart two frames are; shift all and attention stays."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 5, 8, dtype=torch.float64)
    w = 10000 ** (-torch.arange(4) / 4)
    now, later = (torch.arange(5)[:, None].add(shift) * w for shift in (0, 7))
    attended = [attend(latte.rotate(q, a), latte.rotate(k, a), v) for a in (now, later)]
    assert_close(*attended, atol=1e-6, rtol=0)
    assert (attend(q, k, v) - attended[0]).abs().max() > 0.01


def test_without_positions_frames_have_no_order_and_rope_gives_them_one():
    """Reverse the clip: without temporal positions the output is reversed, with RoPE it is not."""
    net = trained(1, "rope")
    z, t, _ = draw(net)
    with torch.no_grad():
        assert (net(z.flip(2), t).flip(2) - net(z, t)).abs().max() > 1e-3
        net.describe = lambda *given: Latte.describe(net, *given)._replace(angles=None)
        close(net(z.flip(2), t).flip(2), net(z, t), atol=1e-4)


def test_compression_makes_one_token_of_two_frames():
    """Latte 3.3.1: n_t = F/s tokens in time, and a transposed convolution of 8*8*s + 8 weights back to F."""
    net = make(1, "compression")
    seen, out = outputs_of([net.x_embedder], lambda: net(torch.randn(2, 4, 4, 8, 8), torch.zeros(2)))
    assert seen[0].shape == (2, 2, 4, 4, 24) and out.shape == (2, 8, 4, 8, 8)
    assert count(net.upsample) == 8 * 8 * 2 + 8
    frames = torch.randn(1, 8, 2, 4, 4)
    assert_close(net.upsample(frames), frames.repeat_interleave(2, dim=2))


def test_temporal_positions_are_added_once_where_time_first_matters():
    """Before block 1 in Variant 1 as released, half way in 2, at the input in 3 and 4."""
    for variant, first in ((1, 1), (2, 2), (3, 0), (4, 0)):
        net, seen, times = make(variant), [], []
        add = net.add_time
        net.add_time = lambda x, video: times.append(len(seen)) or add(x, video)
        for block in net.blocks:
            block.register_forward_hook(lambda *_: seen.append(1))
        net(*draw(net)[:2])
        assert times == [first]


@pytest.mark.parametrize("variant", [1, 4])
def test_saving_memory_changes_no_gradient(variant):
    """Blocks run twice, results once."""
    net, grads = trained(variant, "text"), []
    z, t, cond = draw(net)
    for net.checkpointing in (False, True):
        net.zero_grad()
        net(z, t, **cond).square().mean().backward()
        grads.append([p.grad.clone() for p in net.parameters()])
    assert_close(*grads)


# ----------------------------------------------------------------------------------- from an image model

def dit_of(depth=4):
    torch.manual_seed(0)
    return scrambled(DiT(DiTConfig(input_size=8, depth=depth, width=24, heads=2, classes=3)), 0.2).eval()


@pytest.mark.parametrize("variant, depth", [(1, 8), (2, 8), (3, 5), (4, 5)])
def test_a_latte_from_dit_with_time_at_zero_is_dit_on_each_frame(variant, depth):
    """3.3.4: positions replicated, labels dropped and zeroed; what is temporal at zero: DiT on each frame."""
    image = dit_of(depth=4)
    image.y_embedder.embedding_table.weight.data.zero_()
    net = make(variant, "class", depth=depth, v4="paper_count", temporal="rope")
    init_from_image(net, image, "zero")
    z, t, cond = draw(net)
    with torch.no_grad():
        frames = [image(z[:, :, i:i + 1], t, torch.zeros(2, dtype=torch.long)) for i in range(4)]
        close(net.eval()(z, t, **cond), torch.cat(frames, dim=2), atol=1e-4)
    assert net.y_embedder.embedding_table.weight.abs().max() == 0


def test_all_blocks_from_dit_take_the_block_of_their_number():
    """As the published loader does by name, temporal blocks too."""
    image = dit_of()
    net = init_from_image(make(1), image, "all")
    assert_close(net.blocks.state_dict(), image.blocks.state_dict())
    assert_close(net.pos_embed, image.pos_embed)


def test_text_to_video_starts_as_pixart_on_each_frame():
    """4.5: spatial blocks from PixArt-alpha; our temporal ones are zero-initialised."""
    torch.manual_seed(0)
    config = PixArtConfig(depth=2, width=24, heads=2, caption_channels=10, sample_size=8)
    image = scrambled(PixArt(config), 0.2)
    net = make(1, "text, adaln_single", temporal="rope", pooled_dim=0)
    init_from_image(net, image, "zero").eval()
    z, t, cond = draw(net)
    with torch.no_grad():
        frames = [image(z[:, :, i:i + 1], t, cond["context"]) for i in range(4)]
        close(net(z, t, **cond), torch.cat(frames, dim=2), atol=1e-4)


def test_an_image_model_that_does_not_fit_is_refused():
    """The names that differ and what to choose."""
    for changes in ({"width": 48}, {"conditioning": "adaln_single"}):
        with pytest.raises(UserError, match="does not fit"):
            init_from_image(make(1, **changes), dit_of())


# ------------------------------------------------------------------------------------ Figs. 6 and 8, the demo

def test_equal_frames_are_alike_and_opposite_ones_are_not():
    """Worked value of the diagnostic: cosine 1 and -1, half of the nearer frames less alike."""
    x = torch.randn(1, 1, 3, 5)
    matrix = latte.cosines(torch.cat([x, x, -x], 1), torch.cat([x, x, -x], 1))
    assert_close(matrix, torch.tensor([[1., 1, -1], [1, 1, -1], [-1, -1, 1]]))
    mean, variance, inverted = latte.summary(matrix)
    assert mean == pytest.approx(-1 / 3) and variance == pytest.approx(8 / 9) and inverted == 0


def test_variant_4_shows_its_two_attentions():
    """Fig. 8: spatial, temporal, and between them, of each block."""
    net = trained(4)
    z, t, cond = draw(net)
    found = frame_similarity(net, z, t, cond)
    assert len(found) == 4 * 4 and "0 space with time" in found and "3 space+time" in found
    assert all(matrix.shape == (4, 4) for matrix in found.values())


def test_a_block_attends_to_its_row_its_column_or_both():
    """Latte 3.2, Fig. 2, of real blocks: 4 patches of a frame, 3 frames of a place, both, or everything."""
    frame, place = torch.arange(12) // 4, torch.arange(12) % 4
    space, time = frame[:, None] == frame, place[:, None] == place
    found = {variant: list(show_latte.patterns(variant).values()) for variant in (1, 2, 3, 4)}
    assert all(torch.equal(seen, want) for seen, want in zip(found[1], [space, time, space, time]))
    assert all(torch.equal(seen, want) for seen, want in zip(found[2], [space, space, time, time]))
    assert all(seen.all() for seen in found[3]) and torch.equal(found[4][0], space | time)
    assert all(seen[-1].all() for seen in found.values())
