"""The proof that moving code changed no result, to the bit. Not for pytest: it is run by hand, and goes away
at the end of the round that moves the code.

    python tests/equal_bits.py [BASE_COMMIT] [--only NAME ...] [--demos]

Each command of COMMANDS runs in a clone of the base commit and in this working tree, one at a time, a thread
each. All files that the two write are compared: tensors bit for bit, pictures and films by their bytes, JSON
by its values. What a command reads was made by the base, on both sides: so one difference does not make all
that follows differ, and new code reads old files. The clone and what the base wrote stay in
TEMP/equal-bits/COMMIT, which may be thrown away at any time; another run computes the new side alone.
"""

import argparse
import fnmatch
import hashlib
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open

TREE = Path(__file__).resolve().parents[1]

# -------------------------------------------------------------------------------- what a refactoring may edit

RENAMED = {                     # words in file names, keys and texts of the base's files -> what they are now
    "judge": "classifier", "Judge": "AttributeClassifier", "cfg": "guidance",
    "twins": "copies", "picture": "image", "picture_alone": "image_alone", "real": "real_clips", "fake": "fake_clips",
}
ALONE = (                       # patterns of files, and of keys in them, that one side alone may have
    "* lora",                   # a new flag, 0 by default
    "* recon_weight", "* valid_every", "* checkpoint_every",    # new flags; their defaults change nothing
    "* short", "* encode_batch", "*log.jsonl * tokens_per_s",   # flags and a number that are gone
    "*log.jsonl * valid_t*", "*log.jsonl * train_t*",           # the loss by its time
    "*state.pt rng",            # of a generator that no step draws from
    "*state.pt names *", "*state.pt data*",                    # of what, and from what, a state is
    "stdout.txt * key_psnr*", "stdout.txt * z_*",               # eval.py recon tells more
    "stdout.txt * each *", "stdout.txt * each", "stdout.txt * still",   # eval.py toy tells more, too
    "stdout.txt * reversed",
    "stdout.txt * alone", "stdout.txt * colour_drift", "stdout.txt * shape_drift",              # gone from it
    "stdout.txt * dpvae *",                                     # and leaves the VAE to recon
    "stdout.txt * kvd", "stdout.txt * kid", "stdout.txt * wins", "stdout.txt * losses",         # gone
    "stdout.txt * subjects *",
)
LEFT_OUT = {                    # keys whose values may differ: what a clock decides, then what was changed
    "made", "steps_per_s", "samples_per_s", "tokens_per_s", "wait", "eta_s", "memory_gb", "mfu",
    "workers",                  # the papers' presets load data by 8
}
WORDS = ("*.html", "stderr.txt")                                # files that may be worded otherwise

TOY, TINY = "{repo}/checkpoints/toy", "train.py --config tiny --out out --stage"
SD3 = "stand-ins/weights/sd3_medium_incl_clips_t5xxlfp16.safetensors"
SMALL = ("--data stand-ins/CLIPS --out out --steps 2 --save_every 1 --log_every 1 --preview_every 2 "
         "--warmup 1 --no-compile --no-bf16 --frames 4 --size 32 --batch 2")
RANKS = "-m torch.distributed.run --standalone --nproc-per-node 2"
STAND_INS = ("-c \"import os, sys; sys.path[:0] = ['{repo}', '{repo}/tests']; from pathlib import Path; "
             "os.environ['GOLDEN_DIR'] = '{repo}/tests/golden'; "
             "from stand_ins import stand_ins; stand_ins(Path())\"")

# name: what is typed after python; or (in the base, in this tree), where None is nothing: what the base makes
# is then only read by others. A word that ends in .py is a file of the repository, which is {repo}; NAME/...
# lies in the folder that the command NAME left in the base.
COMMANDS = {
    "cat": "sample.py 'a cat' --out out",
    "latte": "sample.py 'a green car moving right at night' --model latte --out out",
    "image": "sample.py 'a purple mushroom at sunset' --image -n 2 --out out",
    "start": "sample.py 'a cat jumping' --start cat/out/0000-a-cat.png --steps 4 --out out",
    "between": "sample.py 'a cat jumping' --start cat/out/0000-a-cat.png --end cat/out/0000-a-cat.png "
               "--frames 8 --steps 4 --out out",
    "extend": "sample.py 'a cat' --extend cat/out/0000-a-cat.mp4 --frames 24 --steps 4 --out out",
    "anew": "sample.py 'a dog' --video cat/out/0000-a-cat.mp4 --strength 0.5 --steps 8 --out out",
    "several": tuple(f"sample.py 'a red fish moving left underwater' 'a blue car in snow' {guidance} 4 "
                     "--seed 3 --steps 8 --negative 'a dog' --gif --out out"
                     for guidance in ("--guidance", "--guidance")),

    "tiny": f"{TINY} all",
    "tiny-videodit": "sample.py 'a cat' --ckpt tiny/out --model videodit --out out",
    "tiny-ddpm": "sample.py 'a cat' --ckpt tiny/out --model latte --sampler ddpm --steps 20 --out out",
    "tiny-ddim": "sample.py 'a cat' --ckpt tiny/out --model latte --sampler ddim --steps 20 --out out",
    "muon": f"{TINY} all --muon 20 --accumulate 2 --steps 6 --log_every 1",
    "films": f"{TINY} all --steps 4 --log_every 1 --data stand-ins/CLIPS --images stand-ins/IMAGES",
    "two-ranks": f"{RANKS} {TINY} all --steps 3 --log_every 1",
    "two-shards": f"{RANKS} {TINY} dit --init tiny/out --shard --steps 3 --log_every 1",
    "half": (f"{TINY} all --steps 6", None),
    "resumed": f"{TINY} all --steps 12 --resume anyway",

    "eval-toy": "eval.py toy -n 2 --given 2 --nearest 1 --no-ceiling --steps 4 --sheet given.png",
    "eval-sample": f"eval.py sample {TOY} -n 6 --steps 4 --prompts toy:video_heldout --png -o clips",
    "eval-fvd": "eval.py fvd toy:video_heldout:1 eval-sample/clips --features toy --clips 6",
    "eval-fid": "eval.py fid toy:video_heldout:1 eval-sample/clips --features toy --clips 6",
    "eval-recon": f"eval.py recon {TOY} toy -n 3 --sheet recon.png --features toy",
    "eval-recon-films": f"eval.py recon {TOY} stand-ins/CLIPS -n 2 --frames 8 --features toy",

    "stand-ins": (STAND_INS, None),               # films, and the released files' layouts with random numbers
    "sd3-train": f"train.py --config videodit-256 --init {SD3} --lpips stand-ins/weights/vgg16-397923af.pth "
                 f"--long 0 --disc_start 1 --disc_warmup 1 --disc.width 8 --disc.layers 1 --accumulate 1 {SMALL}",
    "sd3-sample": f"sample.py 'a cat' --weights {SD3} --zero-shot-video --frames 4 --size 64 --steps 2 "
                  "--out out",
    "pixart-train": "train.py --config latte-t2v --init stand-ins/weights/PixArt-XL-2-512x512 --stride 1 "
                    "--latte.depth 2 --latte.width 72 --latte.heads 1 --latte.input_size 4 --latte.frames 4 "
                    f"--latte.context_dim 24 --previews 1 --joint_images 1 {SMALL}",
    "latte-1-sample": "sample.py 'a dog' --weights stand-ins/weights/Latte-1 --steps 2 --out out",
    "ucf101-sample": "sample.py 5 --weights stand-ins/weights/ucf101.pt --vae stand-ins/weights/sd-v1-4/vae "
                     "--steps 2 --out out",

    "golden": (None, "-m pytest -k golden -p no:cacheprovider"),
}
BEGINS = {"resumed": "half"}                        # it goes on from a copy of that one's folder
DEMOS = {f"demo-{name}": (f"{name}.py", f"{name}.py") for name in (         # their pictures, with --demos
    "data", "flow", "vae", "text", "dit", "videodit", "latte")}
BOTH = {name: typed if isinstance(typed, tuple) else (typed, typed)
        for name, typed in (COMMANDS | DEMOS).items()}

# ---------------------------------------------------------------------------------------------------- running


def reads(name):
    """The commands whose files this one reads."""
    return {first for first in re.findall(r" ([\w-]+)/", BOTH[name][0] or "") if first in BOTH}


def key(name):
    """Changes where a base's result would: with what is typed, what it reads, Python and torch."""
    before = sorted(map(key, reads(name) | {*filter(None, [BEGINS.get(name)])}))
    about = repr((BOTH[name][0], before, torch.__version__, sys.version))
    return hashlib.sha256(about.encode()).hexdigest()[:8]


def execute(name, typed, repo, folder, cache):
    """Run what is typed in `folder`, with what it reads there; returns the exit code."""
    if name in BEGINS:
        shutil.copytree(run_base(BEGINS[name], cache), folder)
    folder.mkdir(exist_ok=True)
    for other in reads(name):
        (folder / other).symlink_to(run_base(other, cache))
    words = [str(repo / word) if word.endswith(".py") else word.replace("{repo}", str(repo))
             for word in shlex.split(typed)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(folder / "stdout.txt", "w") as out, open(folder / "stderr.txt", "w") as err:
        return subprocess.run([sys.executable, *words], cwd=repo if "pytest" in words else folder, env=env,
                              stdout=out, stderr=err, timeout=1200).returncode


def run_base(name, cache):
    """The folder that the base wrote; it is run if that is not there."""
    folder = cache / "base" / f"{name}-{key(name)}"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=cache) as place:
            here = Path(place) / name
            if execute(name, BOTH[name][0], cache / "repo", here, cache):
                sys.exit(f"{name} fails in the base: {(here / 'stderr.txt').read_text('utf-8')[-2000:]}")
            here.rename(folder)
    return folder


def clone(commit):
    """The folder of all that is kept for a commit, with a clone of it in repo/."""
    git = lambda *words: subprocess.check_output(["git", "-C", *words], text=True).strip()
    commit = git(TREE, "rev-parse", "--short=12", commit + "^{commit}")
    cache = Path(tempfile.gettempdir()).resolve() / "equal-bits" / commit
    (cache / "base").mkdir(parents=True, exist_ok=True)
    if not (cache / "repo").is_dir():
        with tempfile.TemporaryDirectory(dir=cache) as place:
            git(place, "clone", "-q", "--no-checkout", TREE, "repo")
            git(f"{place}/repo", "checkout", "-q", commit)
            os.rename(f"{place}/repo", cache / "repo")
    return cache


# -------------------------------------------------------------------------------------------------- comparing

def now(text):
    """What a text of the base's would be in this tree. Of eval.py's cached features the hash may differ."""
    text = re.sub(r"\b[0-9a-f]{24}\b", "HASH", text)
    return RENAMED.get(text) or re.sub(r"\w+", lambda word: RENAMED.get(word[0], word[0]), text)


def parsed(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def leaves(value, repo, at=""):
    """{place: tensor or text} of a nest of dicts and lists; JSON in a text is opened, too."""
    if isinstance(value, str):
        inner = parsed(value)
        text = now(value.replace(str(repo), "{repo}"))
        value = inner if isinstance(inner, (dict, list)) else text
    if not isinstance(value, (dict, list, tuple)) or not value:
        return {at: value if torch.is_tensor(value) else repr(value)}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return {place: leaf for name, inner in pairs if name not in LEFT_OUT
            for place, leaf in leaves(inner, repo, f"{at} {now(str(name))}").items()}


def content(path, repo):
    """What of a file is compared: {place: tensor or text}."""
    look = lambda value: leaves(value, repo)
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return look([{name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}])
    if path.suffix == ".pt":
        return look(torch.load(path, map_location="cpu", weights_only=True))
    if path.suffix == ".json":
        return look(json.loads(path.read_text("utf-8")))
    if path.suffix == ".jsonl":
        return look([json.loads(line) for line in path.read_text("utf-8").splitlines()])
    if path.name == "stdout.txt":                           # figures are also printed as a line of JSON
        lines = map(parsed, path.read_text("utf-8").splitlines())
        return look([line for line in lines if isinstance(line, dict)])
    if any(fnmatch.fnmatch(path.name, pattern) for pattern in WORDS):
        return {}
    return {"": f"bytes {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"}


def different(a, b):
    """Why two leaves are not equal to the bit; "" if they are."""
    if not (torch.is_tensor(a) and torch.is_tensor(b)):
        return "" if type(a) is type(b) and a == b else f"{str(a)[:60]}, now {str(b)[:60]}"
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return f"{a.dtype} {tuple(a.shape)}, now {b.dtype} {tuple(b.shape)}"
    if torch.equal(*(x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b))):
        return ""
    return f"{(a != b).sum()} of {a.numel()} numbers, by up to {(a.double() - b.double()).abs().max():.2g}"


def alone(base, new, file=""):
    """A line for each key of one dict that the other lacks."""
    places = {f"{file}{place}": "the base" if place in base else "this tree" for place in {*base} ^ {*new}}
    return [f"{place}: only {side} has it" for place, side in sorted(places.items())
            if not any(fnmatch.fnmatch(place, pattern) for pattern in ALONE)]


def compare(base, new, repo):
    """(number of tensors, of files, [what differs, a line a file]) of two folders."""
    def files(side):                        # an old name that was given and left alone counts as the new one
        found = sorted(str(path.relative_to(side)) for path in side.rglob("*") if path.is_file())
        return {now(name): side / name for name in sorted(found, key=lambda name: now(name) == name)}
    old, here = files(base), files(new)
    tensors, differs = 0, alone(old, here)
    for name in sorted({*old} & {*here}):
        a, b = content(old[name], repo), content(here[name], TREE)
        pairs = [(place, different(a[place], b[place])) for place in a if place in b]
        lines = alone(a, b, name) + [f"{name}{place}: {why}" for place, why in pairs if why]
        differs += [f"{lines[0]}; {len(lines) - 1} more in it"] if lines[1:] else lines
        tensors += sum(map(torch.is_tensor, b.values()))
    return tensors, len(here), differs


def check(name, fresh, cache):
    """(is it equal?, what to say of it, CPU seconds) of a command, run in this tree."""
    typed, new = BOTH[name]
    spent = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    base, folder, before = run_base(name, cache) if typed else None, fresh / name, spent()
    code = execute(name, new, TREE, folder, cache)
    took = spent() - before
    said = "\n".join((folder / f"{stream}.txt").read_text("utf-8").strip() for stream in ("stderr", "stdout"))
    if code:
        return False, f"fails with exit code {code}: {said[-3000:]}", took
    if not base:
        return True, said.splitlines()[-1], took
    tensors, files, differs = compare(base, folder, cache / "repo")
    if differs:
        return False, "\n    ".join([f"{len(differs)} files differ", *differs[:12]]), took
    return True, f"equal: {tensors} tensors, {files} files", took


def main():
    flags = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    flags.add_argument("base", nargs="?", default="fa23182", metavar="BASE_COMMIT")
    flags.add_argument("--only", nargs="+", default=[], metavar="NAME",
                       help="names of COMMANDS; 'eval-*' is several")
    flags.add_argument("--demos", action="store_true", help="compare the lessons' pictures, too")
    args = flags.parse_args()
    known = [name for name, (_, new) in BOTH.items() if new]
    wanted = args.only or (["*"] if args.demos else [*COMMANDS])
    for pattern in args.only:
        if not fnmatch.filter(known, pattern):
            flags.error(f"--only {pattern}: give of {', '.join(known)}")
    names = [name for name in known if any(fnmatch.fnmatch(name, pattern) for pattern in wanted)]
    cache = clone(args.base)
    fresh, bad, seconds = Path(tempfile.mkdtemp(prefix="new-", dir=cache)), [], 0.0
    for name in names:
        equal, verdict, took = check(name, fresh, cache)
        bad, seconds = bad + [name] * (not equal), seconds + took
        print(f"{name:18}{took:6.1f} s  {verdict}", flush=True)
    if bad:
        sys.exit(f"{len(bad)} of {len(names)} differ: {', '.join(bad)}; what they wrote is in {fresh} and "
                 f"{cache / 'base'}")
    shutil.rmtree(fresh)
    print(f"all {len(names)} equal; the new side took {seconds:.0f} s of CPU")


if __name__ == "__main__":
    main()
