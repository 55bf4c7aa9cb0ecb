"""Tests of dit.py: parity with the published image models, and the parts they are made of."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

import dit
from demos import scrambled, show_videodit
import pretrained
from conftest import close, golden
from dit import AdaLN, DiT, DiTConfig, FinalLayer, MMDiT, MMDiTConfig, PatchEmbed, SingleFinalLayer
from flow import guided

SMALL = MMDiTConfig(in_channels=4, depth=3, heads=4, head_dim=12, context_dim=20, pooled_dim=10, pos_grid=12,
                    base_size=8)
MMDIT_FILES = ["sd3_mmdit", "sd3_mmdit_diffusers", "sd35_mmditx", "sd35m_mmditx", "sd35m_mmditx_diffusers"]
PIXART_FILES = ["pixart_diffusers", "pixart_cond_diffusers"]


def golden_pixart(name):
    weights, given, expected, config = golden(name)
    config = config["diffusers"]
    net = pretrained.pixart(weights, config["attention_head_dim"], config["sample_size"],
                           config.get("interpolation_scale"))
    sizes = {key: given[key] for key in ("resolution", "aspect_ratio") if key in given}
    return net, given, expected, sizes


def still(z):
    """(B,C,H,W) of the published image models: ours is a video of one frame."""
    return z.unsqueeze(2)


def outputs_of(blocks, run):
    """What each block returns while run() runs, and what run() returns."""
    seen = []
    hooks = [block.register_forward_hook(lambda module, given, out: seen.append(out)) for block in blocks]
    with torch.no_grad():
        result = run()
    for hook in hooks:
        hook.remove()
    return seen, result


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
    net = pretrained.mmdit(weights, head_dim=config["head_dim"])
    z, t, cond = still(given["x"]), given["t"], (given["context"], given["y"])
    seen, out = outputs_of(net.joint_blocks, lambda: net.forward_sd3(z, t, *cond))
    for i, (context, x) in enumerate(seen):
        close(x, expected[f"block{i}.x"])
        if f"block{i}.context" in expected:
            close(context, expected[f"block{i}.context"])
    assert context is None
    close(out, still(expected["model_output"]))


@pytest.mark.parametrize("name", MMDIT_FILES)
def test_golden_sincos_table_of_mmdit(name):
    """The formula of the table: columns first, each half [sin|cos]."""
    _, _, expected, config = golden(name)
    grid = torch.arange(config["pos_embed_max_size"]) * config["base_size"] / config["pos_embed_max_size"]
    close(dit.sincos_2d(config["hidden_size"], grid, grid).flatten(0, 1)[None], expected["sincos_pos_embed"])


def test_golden_time_runs_the_other_way_in_sd3():
    """VideoDiT Eq. 5 against SD3: t = 1 - sigma, v = -v_SD3, and one Euler step lands on the same point."""
    weights, given, _, config = golden("sd3_mmdit")
    net = pretrained.mmdit(weights, head_dim=config["head_dim"])
    z, cond = still(given["x"]), (given["context"], given["y"])
    sigma = given["t"] / 1000
    v, v_sd3 = net(z, 1 - sigma, *cond), net.forward_sd3(z, given["t"], *cond)
    close(v, -v_sd3)
    dt = 0.25                                                   # time goes up by dt, sigma down
    close(z + dt * v, z + (-dt) * v_sd3)


# ------------------------------------------------------------------------------------- golden: DiT and PixArt

def test_golden_dit_equals_the_published_network():
    """DiT (Peebles & Xie): time embedding, every block, output."""
    weights, given, expected, config = golden("dit")
    net = pretrained.dit(weights, head_dim=config["hidden_size"] // config["num_heads"])
    seen, out = outputs_of(net.blocks, lambda: net(still(given["x"]), given["t"], given["y"]))
    for i, x in enumerate(seen):
        close(x, expected[f"block{i}"])
    close(net.t_embedder(given["t"]), expected["t_embed"])
    close(out, still(expected["model_output"]))


def test_golden_dit_guides_three_of_four_channels():
    """DiT's forward_with_cfg, quirk included, by flow.guided: each half of its batch is one model, and the
    halves' unguided channels are their own."""
    weights, given, expected, config = golden("dit")
    net = pretrained.dit(weights, head_dim=config["hidden_size"] // config["num_heads"])
    half = len(given["cfg_x"]) // 2
    x, t = still(given["cfg_x"][:half]), given["cfg_t"][:half]
    labelled, free = given["cfg_y"].chunk(2)
    want = still(expected["cfg_output"])
    with torch.no_grad():
        predict = guided(net, {"labels": labelled}, given["cfg_scale"].item(), {"labels": free}, channels=3)
        out = predict(x, t)
        close(out, want[:half], atol=4e-5)
        close(out[:, :3], want[half:, :3], atol=4e-5)
        close(net(x, t, free)[:, 3:], want[half:, 3:], atol=4e-5)


@pytest.mark.parametrize("name", PIXART_FILES)
def test_golden_pixart_equals_the_published_network(name):
    """PixArt-alpha with text mask, without, and with micro-conditions: every block and the output."""
    net, given, expected, sizes = golden_pixart(name)
    text, mask = given["text"], given["text_mask"]
    z = still(given["x"])
    seen, out = outputs_of(net.blocks, lambda: net(z, given["t"], text, mask, **sizes))
    for i, x in enumerate(seen):
        close(x, expected[f"block{i}"])
    close(out, still(expected["model_output"]))
    with torch.no_grad():
        close(net(z, given["t"], text, **sizes), still(expected["model_output_nomask"]))


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


def test_a_deepened_network_answers_as_before():
    """Zero-gated copies between blocks that stay; both streams, SD3.5's second attention, too."""
    for config in (SMALL, dataclasses.replace(SMALL, qk_norm="rms", dual_attention=1)):
        net = scrambled(MMDiT(config))
        z, t, cond = draw(frames=2)
        before, parameters = net(z, t, **cond), sum(p.numel() for p in net.parameters())
        dit.deepen(net, config.depth + 3)
        assert net.config.depth == len(net.joint_blocks) == config.depth + 3
        assert [block.last for block in net.joint_blocks[-2:]] == [False, True]
        assert sum(p.numel() for p in net.parameters()) > parameters
        assert_close(net(z, t, **cond), before, atol=0, rtol=0)


def test_zeros_open_one_after_the_other():
    """adaLN-Zero learns from zeros: the head alone, then gates and patch embedding, then everything."""
    net = DiT(DiTConfig(input_size=4, depth=2, width=16, heads=2, classes=3))
    z, noise, t = torch.randn(2, 4, 1, 4, 4), torch.randn(2, 8, 1, 4, 4), torch.tensor([5, 900])
    labels = torch.arange(2)
    optimizer, learning = torch.optim.SGD(net.parameters(), lr=1.0), []
    for _ in range(3):
        optimizer.zero_grad()
        (net(z, t, labels) - noise).square().mean().backward()
        learning.append({name for name, p in net.named_parameters() if p.grad.abs().max() > 0})
        optimizer.step()
    head = {"final_layer.linear.weight", "final_layer.linear.bias"}
    assert learning[0] == head
    assert {name.split(".")[-3] for name in learning[1] - head} == {"adaLN_modulation", "x_embedder"}
    assert learning[2] == {name for name, _ in net.named_parameters()}


def test_a_larger_image_moves_no_token():
    """Coordinates are centred, so 320 -> 512 keeps the meaning of every position; SD3: (p - 64) / 4."""
    assert_close(dit.centred(20, 192, 64), (torch.arange(86, 106) - 64) / 4)
    assert_close(dit.centred(32, 192, 64)[6:26], dit.centred(20, 192, 64))
    net = MMDiT(SMALL)
    assert_close(net.positions(8, 10)[2:6, 1:9], net.positions(4, 8))


@pytest.mark.parametrize("head", [FinalLayer(12, 8), SingleFinalLayer(12, 8)])
def test_one_condition_for_many_rows_is_that_condition_repeated(head):
    """Modulating once per clip must not change the result."""
    scrambled(head, std=0.3)
    x, c = torch.randn(6, 5, 12), torch.randn(2, 12)
    assert_close(head(x, c), head(x, c.repeat_interleave(3, dim=0)))


def test_attention_that_is_watched_is_the_attention_that_was_used():
    """Rows sum to 1, every block is seen, and nothing is left changed."""
    net, (z, t, cond) = scrambled(MMDiT(SMALL), 0.2), draw(batch=1)
    with torch.no_grad():
        before = net(z, t, **cond)
        weights = show_videodit.watch_attention(net, lambda: assert_close(net(z, t, **cond), before))
    assert weights.shape == (3, 5 + 24, 5 + 24)
    assert_close(weights.sum(-1), torch.ones(3, 29))
    assert not any("queries_keys_values" in vars(block.x_block.attn) for block in net.joint_blocks)


def test_autocast_does_not_reach_what_modulates():
    """Shift, scale and gate are float32's, rounded once: bf16 weights would be rounded before the product."""
    torch.manual_seed(0)
    adaln, c = AdaLN(64, 6), torch.randn(2, 64).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = adaln(c)
    assert got.dtype == torch.bfloat16
    assert_close(got, adaln[1](F.silu(c.float())).bfloat16(), atol=0, rtol=0)
    got.sum().backward()
    assert adaln[1].weight.grad.dtype == torch.float32


def test_tokens_lie_in_memory_channel_by_channel():
    """A convolution's answer turned over is not contiguous, and all blocks would copy it for each norm."""
    assert PatchEmbed(4, 8, 2)(torch.randn(2, 4, 3, 8, 8)).is_contiguous()
