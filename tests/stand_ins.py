"""Small stand-ins for what README's commands name: CLIPS, IMAGES, UCF101 and weights/ in the exact layouts
of the released files, with random numbers in small networks. test_readme.py runs README on them."""

import json
import shutil

import torch
from PIL import Image
from safetensors.torch import save_file

from support import toy_world
from conftest import GOLDEN, golden, write_sd3
from demos import scrambled
from dit import DiT, DiTConfig, PixArt, PixArtConfig
from support.detectors import LPIPS
from latte import Latte, LatteConfig
from text import T5Config, T5Encoder
from vae import KLVAE, KLVAEConfig
from support.video_io import save_video


def data(root):
    """Videos in a folder and images in another; UCF101 in the tree that it comes in."""
    for folder in ("CLIPS", "IMAGES", "UCF101/Archery", "UCF101/JumpRope"):
        (root / folder).mkdir(parents=True)
    for number, name in enumerate(("cockatoo", "newtonscradle", "a slow train")):
        video = toy_world.render(toy_world.sample_spec(7, number), 96, 64)
        save_video(root / "CLIPS" / f"{name}.mp4", video, 25)
        Image.fromarray(video[0]).save(root / "IMAGES" / f"{name}.png")
    for number in range(2):
        for name in ("Archery", "JumpRope"):
            save_video(root / "UCF101" / name / f"v_{name}_g01_c0{number}.avi.mp4",
                       toy_world.render(toy_world.sample_spec(9, number), 60, 48), 25)


def t5_files(folder, shards=1):
    """T5's encoder with the tokenizer of the fixtures, small; in shards with an index if asked."""
    vocab = json.loads((GOLDEN / "t5_tokenizer.json").read_text())["total_with_extra_ids"]
    state = T5Encoder(T5Config(vocab, 24, 1, 2, 8, 16)).state_dict()
    for part in ("text_encoder", "tokenizer"):
        (folder / part).mkdir(parents=True)
    shutil.copy(GOLDEN / "t5_tokenizer/spiece.model", folder / "tokenizer/spiece.model")
    names = sorted(state)
    files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    where = {name: files[i % shards] for i, name in enumerate(names)}
    for file in files:
        part = {name: state[name] for name in names if where[name] == file}
        save_file(part, folder / "text_encoder" / file)
    (folder / "text_encoder/model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def random_state(net, std=0.05):
    torch.manual_seed(0)
    return scrambled(net, std).state_dict()


def latte_1(folder, vae):
    """Diffusers' folder, a part in each subfolder, sizes that shapes do not tell in config.json."""
    tensors, _, _, config = golden("latte_t2v_diffusers")
    config, transformer = config["diffusers"], folder / "transformer"
    transformer.mkdir(parents=True)
    first = "caption_projection.linear_1.weight"
    narrow = config["caption_channels"]
    tensors[first] = torch.nn.functional.pad(tensors[first], (0, 24 - narrow))      # of our small T5
    save_file(tensors, transformer / "diffusion_pytorch_model.safetensors")
    (transformer / "config.json").write_text(json.dumps(config))
    t5_files(folder, shards=2)
    shutil.copytree(vae, folder / "vae")


def weights(root):
    """Released names, small networks: sizes that the loaders read off the shapes."""
    root.mkdir()
    single, _ = write_sd3(root)
    single.rename(root / "sd3_medium_incl_clips_t5xxlfp16.safetensors")
    vae = KLVAE(KLVAEConfig(4, ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, quant_conv=True))
    (root / "sd-v1-4/vae").mkdir(parents=True)
    save_file(vae.state_dict(), root / "sd-v1-4/vae/diffusion_pytorch_model.safetensors")
    state = {f"first_stage_model.{name}": tensor for name, tensor in vae.state_dict().items()}
    torch.save({"state_dict": state}, root / "sd-v1-4.ckpt")
    dit = DiT(DiTConfig(input_size=4, width=72, depth=2, heads=1, classes=1000))
    torch.save(random_state(dit), root / "DiT-XL-2-256x256.pt")
    for name, more in (("ffs", {}), ("ucf101", {"condition": "class", "classes": 101})):
        net = Latte(LatteConfig(depth=2, width=64, heads=1, frames=4, input_size=4, **more))
        torch.save({"ema": random_state(net)}, root / f"{name}.pt")
    latte_1(root / "Latte-1", root / "sd-v1-4/vae")
    pixart = PixArt(PixArtConfig(width=72, depth=1, heads=1, caption_channels=24, sample_size=4))
    place = root / "PixArt-XL-2-512x512"
    (place / "transformer").mkdir(parents=True)
    save_file(random_state(pixart), place / "transformer/diffusion_pytorch_model.safetensors")
    shutil.copytree(root / "sd-v1-4/vae", place / "vae")
    t5_files(place)
    vgg = {name: tensor for name, tensor in LPIPS("vgg").state_dict().items() if name.startswith("features.")}
    torch.save(vgg, root / "vgg16-397923af.pth")


def stand_ins(root):
    torch.manual_seed(0)
    data(root)
    weights(root / "weights")
