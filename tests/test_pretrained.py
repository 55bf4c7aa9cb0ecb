"""Tests of pretrained.py: each released layout becomes our network, and what does not fit is named."""

import gzip
import json
import os
import re
from dataclasses import asdict
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

import pretrained
from support.checkpoints import read_state
from support.cli import UserError
from support.detectors import I3D, Inception
from conftest import GOLDEN, golden, released
from demos import scrambled
from dit import DiTConfig, PixArt, PixArtConfig
from latte import Latte, LatteConfig
from test_detectors import golden as refilled
from test_text import tiny_sd3
from test_vae import FILES, count, golden_vae, image
from vae import SD3, SD14

RELEASED = ["sd3.first_stage_model", "sd3.diffusers_vae", "sd1.first_stage_model", "sd_vae_ft.diffusers_vae"]


# ----------------------------------------------------------------------------------------- MMDiT, DiT, PixArt

@pytest.mark.parametrize("name", ["sd3_mmdit", "sd35m_mmditx"])
def test_golden_both_layouts_load_to_the_same_weights(name):
    """Names, stacked q k v and the four swapped tensors of Diffusers' layout."""
    nets = []
    for file in (name, f"{name}_diffusers"):
        weights, _, _, config = golden(file)
        nets.append(pretrained.mmdit(weights, head_dim=config["head_dim"]))
    assert asdict(nets[0].config) == asdict(nets[1].config)
    assert_close(nets[0].state_dict(), nets[1].state_dict(), atol=0, rtol=0)


def test_golden_weights_keep_their_dtype():
    """Half-precision files are not doubled in memory: their tensors are taken over, not copied."""
    weights, _, _, config = golden("sd3_mmdit")
    half = {name: tensor.half() for name, tensor in weights.items()}
    net = pretrained.mmdit(half, head_dim=config["head_dim"])
    name = "x_embedder.proj.weight"
    assert net.x_embedder.proj.weight.data_ptr() == half["model.diffusion_model." + name].data_ptr()
    assert {p.dtype for p in net.parameters()} == {torch.float16}


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
        pretrained.mmdit(weights, head_dim=config["head_dim"])


@pytest.mark.parametrize("name, depth, dual, qk_norm", [
    ("sd3_medium.diffusion_model", 24, 0, ""), ("sd3_medium.diffusers_transformer", 24, 0, ""),
    ("sd3.5_medium.diffusion_model", 24, 13, "rms"), ("sd3.5_large.diffusion_model", 38, 0, "rms")])
def test_golden_released_mmdit_keys_all_fit(name, depth, dual, qk_norm):
    """Released sizes: each key is used, none is missing, the config is right."""
    state, _ = released(name)
    config = pretrained.mmdit(state).config
    assert (config.depth, config.heads) == (depth, depth)
    assert (config.dual_attention, config.qk_norm) == (dual, qk_norm)
    assert (config.context_dim, config.pooled_dim, config.mlp_ratio) == (4096, 2048, 4.0)


@pytest.mark.parametrize("read, name, config", [
    (pretrained.dit, "DiT-XL-2-256x256", DiTConfig()),
    (pretrained.dit, "DiT-XL-2-512x512", DiTConfig(input_size=64)),
    *((partial(pretrained.pixart, sample_size=size), f"PixArt-XL-2-{8 * size}.diffusers_transformer",
       PixArtConfig(sample_size=size, interpolation=max(size // 64, 1), micro_conditions=size == 128))
      for size in (32, 64, 128))])
def test_golden_released_dit_and_pixart_keys_all_fit(read, name, config):
    """The defaults are DiT-XL/2's of 256; PixArt's of 1024 has micro-conditions and squeezed positions."""
    assert read(released(name)[0]).config == config


def test_pixart_takes_the_original_file_too():
    """PixArt-alpha's own .pth: our names, plus a table and a null caption that we do not need."""
    config = PixArtConfig(depth=1, width=24, heads=2, caption_channels=6)
    net = scrambled(PixArt(config))
    extra = {"pos_embed": torch.zeros(1, 4, 24), "y_embedder.y_embedding": torch.zeros(120, 6)}
    loaded = pretrained.pixart({"state_dict": {**net.state_dict(), **extra}}, head_dim=12)
    assert_close(loaded.state_dict(), net.state_dict())


# ------------------------------------------------------------------------------------------------------ Latte

def test_golden_a_checkpoint_loads_out_of_every_container(tmp_path):
    """facts of the released files: `ema`, then `model`, then bare; DDP's and torch.compile's prefixes."""
    weights, _, _, config = golden("latte_class")
    head_dim = config["hidden_size"] // config["num_heads"]
    old = {name.replace("temp_embed", "time_embed"): tensor for name, tensor in weights.items()}
    wrong = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    for state in (weights, {"ema": weights, "model": wrong}, {"model": weights}, old,
                  {f"module.{name}": tensor for name, tensor in weights.items()},
                  {"ema": {f"module._orig_mod.{name}": tensor for name, tensor in old.items()}}):
        torch.save(state, tmp_path / "latte.pt")
        net = pretrained.latte(read_state(tmp_path / "latte.pt"), head_dim)
        assert_close(net.state_dict(), weights, atol=0, rtol=0)


def test_golden_released_latte_keys_all_fit():
    """Latte-XL/2 of UCF101: 293 tensors, 674,112,416 elements with both tables."""
    state, _ = released("Latte-XL-2-extras2")
    net = pretrained.latte(state)
    assert asdict(net.config) == asdict(LatteConfig(condition="class", context_dim=0))
    assert sum(tensor.numel() for tensor in net.state_dict().values()) == 674_112_416


def test_golden_released_text_to_video_keys_all_fit():
    """Latte-1: 28 spatial and 28 temporal blocks, 1,057.25 M parameters."""
    state, _ = released("Latte-1.diffusers_transformer")
    net = pretrained.latte_t2v(state)
    axes = [block.axes for block in net.blocks]
    assert axes == [("space",), ("time",)] * 28 and (net.config.heads, net.config.context_dim) == (16, 4096)
    assert count(net) == 1_057_246_880


@pytest.mark.parametrize("width, heads", [(384, 6), (768, 12), (1024, 16), (1152, 16)])
def test_a_released_file_knows_its_heads_by_its_width(width, heads):
    """Table 2: only XL has heads of 72; shapes do not tell."""
    with torch.device("meta"):
        state = Latte(LatteConfig(depth=2, width=width, heads=heads)).state_dict()
    assert pretrained.latte({"ema": state}).config.heads == heads


# ----------------------------------------------------------------------------------------------------- KL-VAE

@pytest.mark.parametrize("first, second", [FILES[:2], FILES[2:]])
@torch.no_grad()
def test_golden_both_layouts_give_one_network(first, second):
    """Stable Diffusion's names and Diffusers': the same tensors at the same places, so the same outputs."""
    ours, given, _, _ = golden_vae(first)
    theirs, _, _, _ = golden_vae(second)
    assert_close(theirs.state_dict(), ours.state_dict(), atol=0, rtol=0)
    assert_close(theirs.encode(image(given["x"])), ours.encode(image(given["x"])), atol=0, rtol=0)


@pytest.mark.parametrize("name", ["sd3_vae_16ch_diffusers", "sd_vae_kl_4ch_diffusers"])
def test_golden_old_attention_names_are_accepted(name):
    """sd-vae-ft-mse and -ema: query, key, value, proj_attn for to_q, to_k, to_v, to_out.0."""
    state, _, _, config = golden(name)
    old, groups = {}, config["norm_num_groups"]
    for key, tensor in state.items():
        for new_name, old_name in (("to_q.", "query."), ("to_k.", "key."), ("to_v.", "value."),
                                   ("to_out.0.", "proj_attn.")):
            key = key.replace(new_name, old_name)
        old[key] = tensor
    assert old.keys() != state.keys()
    assert_close(pretrained.kl_vae(old, groups).state_dict(),
                 pretrained.kl_vae(state, groups).state_dict(), atol=0, rtol=0)


@pytest.mark.parametrize("name", RELEASED)
def test_golden_released_keys_are_all_consumed(name):
    """Every tensor of the published files has its place, none is left without a value, at the real sizes."""
    state, config = released(name)
    more = dict.fromkeys(("loss.logvar", "model_ema.decay"), torch.ones(()))        # of an LDM's .ckpt
    vae = pretrained.kl_vae(state | more)
    assert len(vae.state_dict()) == len(state)
    assert vae.config == (SD3 if config["z_channels"] == 16 else SD14)
    assert (vae.config.scale, vae.config.shift) == (config["scaling_factor"], config["shift_factor"])


# ---------------------------------------------------------------------------------------------- text encoders

def test_golden_t5_embedding_under_either_name():
    """shared.weight and encoder.embed_tokens.weight are one tensor: one, the other or both may be stored."""
    weights = golden("t5_encoder")[0]
    table = weights.get("shared.weight", weights.get("encoder.embed_tokens.weight"))
    rest = {name: weight for name, weight in weights.items() if not re.search("shared|embed_tokens", name)}
    one, other = "shared.weight", "encoder.embed_tokens.weight"
    for names in ([one], [other], [one, other]):
        net = pretrained.t5({**rest, **{name: table for name in names}})
        assert torch.equal(net.shared.weight, table)


def test_golden_key_tables_of_the_released_encoders():
    """Names and shapes of CLIP-L, CLIP-G and T5-XXL, stored alone or in SD3's single file, fit strictly."""
    models = json.loads(gzip.open(GOLDEN / "checkpoint_keys.json.gz").read())["models"]
    for model in [models[name] for name in models if "clip" in name or "t5" in name]:
        want = model["config"]
        state = {key.split(".transformer.")[-1]: torch.empty(shape, device="meta")
                 for key, shape in model["tensors"].items()}
        if "d_model" in want:
            got = pretrained.t5(state).config
            assert (got.width, got.heads, got.head_dim) == (want["d_model"], want["num_heads"], want["d_kv"])
        else:
            old = dict.fromkeys(("text_model.embeddings.position_ids", "logit_scale"), torch.ones(()))
            got = pretrained.clip(state | old, act=want["hidden_act"]).config
            assert (got.width, got.heads, got.layers) == (
                want["hidden_size"], want["num_attention_heads"], want["num_hidden_layers"])


def save_in_shards(state, folder):
    """As Diffusers stores a large network: two files and an index that says which tensor is where."""
    folder.mkdir(parents=True)
    files = {key: f"model-{1 + number % 2}-of-2.safetensors" for number, key in enumerate(sorted(state))}
    for file in set(files.values()):
        save_file({key: state[key] for key in state if files[key] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def test_golden_all_layouts_on_disk_give_the_same_vectors(tmp_path):
    """One file, three files, these beside a transformer in SD3's own folder, and Diffusers' with shards."""
    (tmp_path / "tokenizer").symlink_to((GOLDEN / "t5_tokenizer").resolve())
    states, ids = tiny_sd3(), torch.tensor([[49406, 5, 49407]])
    save_file({f"text_encoders.{name}.transformer.{key}": value for name, state in states.items()
               for key, value in state.items()}, tmp_path / "one.safetensors")
    (tmp_path / "three").mkdir()
    for name, folder in (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2"),
                         ("t5xxl", "text_encoder_3")):
        save_file(states[name], tmp_path / "three" / f"{name}.safetensors")
        save_in_shards(states[name], tmp_path / "diffusers" / folder)
    (tmp_path / "sd3").mkdir()
    (tmp_path / "sd3/text_encoders").symlink_to(tmp_path / "three")
    save_file(golden("sd3_mmdit")[0], tmp_path / "sd3/sd3_medium.safetensors")
    assert pretrained.open_released(tmp_path / "sd3").kind == "mmdit"
    results = [pretrained.load_text(tmp_path / source).assemble(ids, ids, ids % 60)
               for source in ("one.safetensors", "three", "sd3", "diffusers")]
    for context, pooled in results[1:]:
        assert_close(context, results[0][0])
        assert_close(pooled, results[0][1])


# ------------------------------------------------------------------------------- what is missing or damaged

@pytest.mark.parametrize("path, told", [
    ("sd3_medium.safetensors", "4.34 GB, Stability.*: hf download stabilityai/stable-diffusion-3-medium "
                               '--include "sd3_medium.safetensors" --local-dir HERE$'),
    ("w/text_encoders/clip_l.safetensors", '"text_encoders/clip_l.safetensors" --local-dir HERE/w$'),
    ("w/clip_l.safetensors", '"text_encoders/clip_l.safetensors" --local-dir HERE/w$'),
    ("ucf101.pt", '2.7 GB, MIT.*: hf download maxin-cn/Latte --include "ucf101.pt" --local-dir HERE$'),
    ("DiT-XL-2-256x256.pt", "of https://github.com/facebookresearch/DiT .CC BY-NC 4.0.$"),
    ("sd-v1-4.ckpt", 'OpenRAIL-M.*: hf download CompVis/stable-diffusion-v-1-4-original --include "sd-v1'),
    ("stable-diffusion-v1-4/vae", 'hf download CompVis/stable-diffusion-v1-4 --include "vae/." '
                                  "--local-dir HERE/stable-diffusion-v1-4$"),
    ("PixArt-XL-2-512x512", 'hf download PixArt-alpha/PixArt-XL-2-512x512 --include "." --local-dir '
                            "HERE/PixArt-XL-2-512x512$"),
    ("mine.pt", "mine.pt; check the path$")])
def test_a_missing_path_of_a_known_family_is_told_where_it_is(tmp_path, path, told):
    """Repository, file, size and license where known, and the line that fetches it to where the path looks."""
    told = told.replace("HERE", re.escape(str(tmp_path)))
    with pytest.raises(UserError, match=f"no file or folder .*{told}"):
        pretrained.open_released(tmp_path / path)
    with pytest.raises(UserError, match="--local-dir [.]$"):
        pretrained.open_released("clip_l.safetensors")                  # in no folder at all


def diffusers_vae(folder, config):
    """A small published VAE with this config.json."""
    weights = golden("sd_vae_kl_4ch_diffusers")[0]
    (folder / "vae").mkdir()
    save_file(weights, folder / "vae" / "diffusion_pytorch_model.safetensors")
    (folder / "vae" / "config.json").write_text(config)


@pytest.mark.parametrize("config, message", [
    ("{", "describes no network"), ("[1]", "describes no network"), ("[" * 100_000, "describes no network"),
    ('{"scaling_factor": Infinity}', "scaling_factor cannot be inf"),
    ('{"video_length": 1000000000}', "video_length cannot be 1000000000")])
def test_golden_a_published_folder_is_not_believed(tmp_path, config, message):
    """What config.json says is of its kind, finite and within bounds, or the file is named."""
    diffusers_vae(tmp_path, config)
    with pytest.raises(UserError, match=message):
        pretrained.open_released(tmp_path).vae()


@pytest.mark.parametrize("name, tensor", [
    ("decoder.conv_in.weight", torch.tensor(1.0)), ("encoder.conv_in.weight", torch.zeros(0, 3, 3, 3)),
    ("encoder.conv_in.bias", torch.ones(16, dtype=torch.bool))])
def test_golden_tensors_of_another_shape_are_named(tmp_path, name, tensor):
    """A tensor without axes, one without channels, truths in the place of numbers."""
    weights = golden("sd_vae_kl_4ch")[0]
    save_file({**weights, f"first_stage_model.{name}": tensor}, tmp_path / "vae.safetensors")
    with pytest.raises(UserError, match="/vae.safetensors(: the VAE's weights does not| has not the shapes)"):
        pretrained.open_released(tmp_path / "vae.safetensors").vae()


def test_a_missing_shard_is_named_and_an_index_is_not_read(tmp_path):
    """weight_map is a stranger's list of paths; each shard says how many there are."""
    folder = tmp_path / "text_encoder"
    save_in_shards(tiny_sd3()["clip_l"], folder)
    index = folder / "model.safetensors.index.json"
    index.unlink()
    os.mkfifo(index)                                        # nobody writes into it: to open it waits for ever
    whole = pretrained.open_released(tmp_path).states["clip_l"]
    assert whole.keys() == tiny_sd3()["clip_l"].keys()
    save_file({"x": torch.zeros(1)}, folder / "model.fp16.safetensors")         # not as plain as the shards
    assert pretrained.open_released(tmp_path).states["clip_l"].keys() == whole.keys()
    (folder / "model-2-of-2.safetensors").unlink()
    with pytest.raises(UserError, match="text_encoder has 1 of 2 shards, model-1-of-2.safetensors for one"):
        pretrained.open_released(tmp_path)


def test_a_pickle_that_is_no_dict_is_refused(tmp_path):
    """A list of tensors, or numbers as names."""
    for number, state in enumerate(([torch.ones(2)], {1: torch.ones(2)}, {"ema": {1: torch.ones(2)}})):
        torch.save(state, tmp_path / f"{number}.pt")
        with pytest.raises(UserError, match="holds no (weights|network)"):
            pretrained.open_released(tmp_path / f"{number}.pt")


# ----------------------------------------------------------------------------------------- networks that look

@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_golden_shipped_lpips_heads_are_the_published_ones(net):
    """checkpoints/lpips holds version 0.1's heads, and none is negative: more difference is never nearer."""
    _, trunk, stored = refilled(f"lpips_{net}_fill")
    lpips = pretrained.lpips(trunk)                         # net is told from the shapes
    for i, head in enumerate(lpips.heads):
        assert head.min() >= 0
        torch.testing.assert_close(head.data, stored[f"weights.lin{i}.model.1.weight"], rtol=0, atol=0)


@pytest.mark.parametrize("cls, model", [(I3D, "i3d.rgb_imagenet"), (Inception, "fid_inception")])
def test_golden_released_files_have_our_keys(cls, model):
    """Every key and shape of the released file is ours and the other way round, batch counters aside."""
    state, _ = released(model)
    net = pretrained.detector(cls, state)                        # strict
    assert len(net.state_dict()) == sum(not key.endswith("num_batches_tracked") for key in state)


def test_a_missing_detector_says_where_it_is_published(tmp_path):
    """One line: the file, who has it, how big it is."""
    with pytest.raises(UserError, match="nowhere.pth; inception needs pt_inc.*95,628,359 bytes.*pytorch-fid"):
        pretrained.load_detector(tmp_path / "nowhere.pth", "inception")


def test_a_wrong_detector_file_is_named_with_its_keys(tmp_path):
    """A state dict of something else."""
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    for kind in pretrained.DETECTOR_FILES:
        with pytest.raises(UserError, match="other.pth does not fit .*missing.*unexpected: weight"):
            pretrained.load_detector(tmp_path / "other.pth", kind)


class EveryFlag(torch.nn.Module):
    """Called as StyleGAN-V's i3d_torchscript.pt is; its answer shows what it was given."""

    def forward(self, x, rescale: bool, resize: bool, return_features: bool):
        return x.mean((2, 3, 4)) if return_features and not (rescale or resize) else x


def test_torchscript_is_code_and_runs_only_when_trusted(tmp_path):
    """A TorchScript detector is taken as it is, but only if the user says so by name."""
    torch.jit.script(EveryFlag()).save(tmp_path / "i3d.pt")
    with pytest.raises(UserError, match="runs its code.*--trust-torchscript"):
        pretrained.load_detector(tmp_path / "i3d.pt", "i3d")
    net = pretrained.load_detector(tmp_path / "i3d.pt", "i3d", trust_torchscript=True)
    video = torch.rand(2, 3, 4, 56, 56)
    torch.testing.assert_close(net(video), video.mean((2, 3, 4)), rtol=0, atol=1e-5)


class Bytes(torch.nn.Module):
    """Called as StyleGAN-V's c3d_ucf101.pt is: bytes of 16 frames in, probabilities out."""

    def forward(self, x):
        assert x.dtype == torch.uint8 and x.shape[2] == 16
        return torch.stack([x.float().mean((1, 2, 3, 4)) / 255, 1 - x.float().mean((1, 2, 3, 4)) / 255], 1)


def test_torchscript_c3d_probabilities_become_logits(tmp_path):
    """The Inception Score takes a softmax of every detector's logits: it must give the probabilities back."""
    torch.jit.script(Bytes()).save(tmp_path / "c3d.pt")
    net = pretrained.load_detector(tmp_path / "c3d.pt", "c3d", trust_torchscript=True)
    video = torch.tensor([-1.0, 0.6]).view(2, 1, 1, 1, 1).expand(2, 3, 20, 8, 8)
    torch.testing.assert_close(net(video).softmax(1), torch.tensor([[0.0, 1.0], [0.8, 0.2]]))

