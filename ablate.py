"""ablate.py - every ablation of both papers, as runs of train.py and eval.py that differ in one flag.
Paper    VideoDiT Tables 3-6 (4.3), 1 and 2 (our row); Latte Figs. 5, 7 (4.2), Tables 3, 5, the mask of 3.3.4
Shapes   none: this file only composes commands; --dry-run prints them, to be run by hand as well
Numbers  the paper's, as printed, beside ours. On the toy world ours are judged by the toy's judge and say so:
         the order of the rows may be compared with the paper's, the numbers may not
Differs  what rows have in common is trained once: the stages before theirs in OUT/CONFIG/base, and a run that
         several tables show, as most show the default, in one folder named by its flags
Reads    after eval.py, before bench.py
Run me   python ablate.py                                   # CPU, 3 s: the tables; do their flags exist?
         python ablate.py videodit-5 --config tiny          # CPU, 2 min: without 3D patchify, and with
         python ablate.py videodit-3 --config videodit-256 --train "--init SD3 --data CLIPS" --real UCF101
Stopped, the same command goes on: a row with a result.json is kept, a stage goes on where it was."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import presets
from checkpoint import FlagParser, UserError, polite, write_atomic
from presets import PRESETS, SIZES

HERE, SMALL = Path(__file__).parent, ("tiny", "toy")


class Row(NamedTuple):
    name: str
    flags: str             # of train.py: what this row is about
    paper: dict            # as printed; in words where it is a curve
    small: str = ""        # instead of `flags` in --config tiny and toy


class Table(NamedTuple):
    title: str
    model: str             # the stage that each row trains for itself; the stages before it are trained once
    rows: tuple
    needs: str = ""        # "data": shows nothing on the toy world


def scores(fvd, inception):
    return {"FVD": fvd, "IS": inception}


def quality(psnr, ssim, lpips):
    return {"PSNR": psnr, "SSIM": ssim, "LPIPS": lpips}


def latte_scores(faces, sky, ucf101, taichi, fid, inception):
    return {"FVD faces": faces, "sky": sky, "UCF101": ucf101, "Taichi": taichi, "FID faces": fid,
            "IS UCF101": inception}


def size_flags(depth, width, heads):
    return f"--latte.depth {depth} --latte.width {width} --latte.heads {heads} --joint_images 0"


TABLES = {
    "videodit-1": Table("Table 1: reconstruction", "dpvae", (
        Row("DP-VAE (ours)", "", quality(37.53, 0.980, 0.0444)),)),
    "videodit-2": Table("Table 2: zero-shot UCF101", "videodit", (
        Row("VideoDiT (ours)", "--p_video 0.8", scores(428.52, 33.04)),)),
    # VideoDiT 4.3: "p was set to 100%, except for the ablation of joint image-video training"
    "videodit-3": Table("Table 3: DP-VAE", "videodit", (
        Row("neither", "--p_video 1 --no-key_encoder --reg_weight 0",
            quality(35.57, 0.9706, 0.0963) | scores(683.76, 23.18)),
        Row("regularization", "--p_video 1 --no-key_encoder",
            quality(33.85, 0.9643, 0.1183) | scores(654.73, 22.37)),
        Row("2D VAE", "--p_video 1 --reg_weight 0", quality(38.18, 0.9849, 0.0380) | scores(645.28, 27.56)),
        Row("both", "--p_video 1", quality(37.53, 0.9806, 0.0444) | scores(556.42, 29.61)))),
    "videodit-4": Table("Table 4: what is made global", "videodit", (
        Row("2D and 3D, 4.15B", "--p_video 1 --attention 2d+3d", scores(563.24, 29.00)),
        Row("2D to 3D, 2.03B", "--p_video 1", scores(556.42, 29.61)))),
    "videodit-5": Table("Table 5: 3D patchify", "videodit", (
        Row("2D patchify", "--p_video 1 --no-patchify_3d", scores(756.25, 27.85)),
        Row("3D patchify", "--p_video 1", scores(556.42, 29.61)))),
    "videodit-6": Table("Table 6, Fig. 7: joint image-video training", "videodit", (
        Row("without", "--p_video 1", scores(556.42, 29.61) | {"pictures": "entirely compromised"}),
        Row("with", "--p_video 0.8", scores(543.18, 32.47) | {"pictures": "preserved"}))),
    # DEVIATES Latte 4.2: the paper's clips are unconditional faces, the toy's obey prompts.
    "latte-5a": Table("Fig. 5a: patch embedding", "latte", (
        Row("uniform", "--joint_images 0", {"FVD": "better"}),
        Row("compression", "--joint_images 0 --latte.patch_embed compression", {"FVD": "notably behind"}))),
    "latte-5b": Table("Fig. 5b: timestep and class", "latte", (
        Row("S-AdaLN", "--joint_images 0", {"FVD": "significantly better"}),
        Row("all tokens", "--joint_images 0 --latte.conditioning all_tokens", {"FVD": "worse"}))),
    "latte-5c": Table("Fig. 5c: temporal position", "latte", (
        Row("absolute", "--joint_images 0", {"FVD": "slightly better"}),
        Row("RoPE", "--joint_images 0 --latte.temporal rope", {"FVD": "slightly worse"}))),
    # DEVIATES: the toy has no DiT to start from, so at toy size the second row is the first.
    "latte-5d": Table("Fig. 5d: start from DiT", "latte", (
        Row("random", "--joint_images 0", {"FVD": "better in the end"}),
        Row("ImageNet", "--joint_images 0 --init DiT-XL-2-256x256.pt", {"FVD": "better at first"})), "data"),
    # ASSUMED: the intervals are in the figure alone; the paper goes on with 3.
    "latte-5e": Table("Fig. 5e: video sampling interval", "latte", tuple(
        Row(f"{stride}", f"--joint_images 0 --stride {stride}", {"FVD": "alike in the end"})
        for stride in (1, 3, 6)), "data"),
    "latte-5f": Table("Fig. 5f, Table 1: model variants", "latte", tuple(
        Row(f"Variant {number}", f"--joint_images 0 --latte.variant {number}",
            {"params (M)": params, "FVD": fvd})
        for number, params, fvd in ((1, 673.68, "best"), (2, 673.68, "behind 1 and 3"),
                                    (3, 676.33, "second"), (4, 676.44, "worst")))),
    # at toy size: a quarter of the width and about a quarter of the depth
    "latte-7": Table("Fig. 7, Table 2: model size", "latte", tuple(
        Row(f"Latte-{name}", size_flags(**SIZES[name]), {"params (M)": params, "FVD": "falls with size"},
            size_flags(*small))
        for name, params, small in (("S", 32.48, (4, 96, 3)), ("B", 129.54, (4, 192, 6)),
                                    ("L", 456.81, (6, 256, 8)), ("XL", 673.68, (8, 288, 9))))),
    "latte-3": Table("Tables 3, 5: joint image-video training", "latte", (
        Row("Latte", "--joint_images 0", latte_scores(34.00, 59.82, 477.97, 159.60, 5.02, 68.53)),
        Row("Latte+IMG", "--batch 32 --joint_images 8",
            latte_scores(27.08, 42.67, 202.23, 97.09, 3.87, 73.31), small="--joint_images 1"))),
    "latte-mask": Table("3.3.4: what pictures do in time (--config latte-t2v)", "latte", (
        Row("Only Video", "--latte.joint only_video", {"FVD": 705.72, "FID": 75.98}),
        Row("Temporal Mask", "--latte.joint temporal_mask", {"FVD": 589.86, "FID": 63.36}))),
}


# ------------------------------------------------------------------------------------------------ commands

class Job(NamedTuple):
    """A folder and the commands that fill it, each a list of words."""
    folder: Path
    training: list
    judging: list


def base(args):
    return Path(args.out) / args.config / "base"


def shared_job(args):
    """The stages before the rows' own, in the preset's order."""
    stages = PRESETS[args.config]["stages"]
    before = [stage for stage in ("judge", "vae", "dit", "dpvae") if stage in stages]
    commands = [train_command(args, stage, base(args), "") for stage in before]
    if "videodit" in stages and "dit" not in stages:            # published weights: prompts and latents, once
        commands.append(train_command(args, "cache", base(args), "--p_video 0.8"))      # 0.8: pictures, too
    return Job(base(args), commands, [])


def row_job(args, key, row):
    """Train what is the row's own, then judge what came out."""
    model, flags = TABLES[key].model, row.small if row.small and args.config in SMALL else row.flags
    own = [model] if model != "dpvae" else []                   # the base has one
    if re.search("key_encoder|reg_weight", flags):              # a DP-VAE of its own, and so its own latents
        own = ["dpvae", model] if "dit" in PRESETS[args.config]["stages"] else ["dpvae", "cache", model]
    name = re.sub(r"[^\w.]+", "-", f"{model} {flags}").strip("-")
    folder = base(args).with_name(name) if own else base(args)
    training = [train_command(args, stage, folder, flags) for stage in own]
    config = presets.parse(train_command(args, model, folder, flags)[1:])[0]
    return Job(folder, training, judge_commands(args, model, folder, config))


def train_command(args, stage, folder, flags):
    """Latents are cached once for all rows that share a VAE: a cache is named by the VAE's weights. But not
    where the rows cut their clips differently."""
    cache = folder if "--stride" in flags else base(args)
    return ["train.py", "--config", args.config, "--stage", stage, *shlex.split(flags), "--out", str(folder),
            "--cache", str(cache / "cache"), *shlex.split(args.train)]


def judge_commands(args, model, folder, config):
    """eval.py: reconstruction where there is a DP-VAE, and clips where there is a transformer."""
    n, clips, toy = str(args.n), str(folder / "samples"), config.data == "toy"
    judge = ["--features", "toy", "--judge", str(folder / "judge.safetensors")]
    films = ["toy", "-n", n, *judge]
    if not toy:                                                 # VideoDiT 4.1: 50 films of 64 frames
        films = [args.films or config.data, "--frames", "64", "--size", "512"]
    recon, made = [["recon", str(folder), *films]] if model != "latte" else [], []
    features = ["--cache", str(base(args) / "features")]        # of the real clips, which all rows share
    if model == "dpvae":
        pass
    elif toy:
        shape = ["--clips", n, "--frames", str(config.frames), "--size", str(config.size)]
        made = [["toy", "--ckpt", str(folder), "-n", n, "--model", model],
                ["sample", str(folder), "-n", n, "-o", clips, "--png", "--model", model],
                ["fvd", "toy:video", clips, *judge, *shape, *features]]
    else:
        real, asked = args.real or config.data, ["--prompts", args.real] if args.real else []
        weights = ["--weights", config.init] if model == "videodit" and config.init else []
        if model == "latte" and config.latte.condition == "none":
            asked = ["--cfg", "1", "--steps", "250"]
        protocol = ["--protocol", "videodit" if model == "videodit" else "latte", "--clips", n]
        made = [["sample", str(folder), "-n", n, "-o", clips, "--model", model, *asked, *weights],
                ["fvd", real, clips, *protocol, *features], ["is", clips, *protocol]]
    return [["eval.py", *words] for words in recon + made]


def shown(command):
    return shlex.join(["python", *command])


# ------------------------------------------------------------------------------------------------- running

def run(args, command):
    """Run one command; its last line if that is JSON, else {}. Progress, on stderr, is seen as it comes."""
    print(f"\n{shown(command)}", flush=True)
    launcher = shlex.split(args.launch) if args.launch and command[0] == "train.py" else [sys.executable]
    words = [*launcher, str(HERE / command[0]), *command[1:]]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        raise UserError(f"stopped: this command failed: {shown(command)}")
    last = (done.stdout.strip().splitlines() or [""])[-1]
    return json.loads(last) if last.startswith("{") else {}


def run_row(args, job, shared):
    """{eval.py's command: what it says of the row}, made or found."""
    path, commands = job.folder / "result.json", [shown(command) for command in job.training + job.judging]
    if path.is_file():
        found = json.loads(path.read_text("utf-8"))
        if found["commands"] != commands:
            raise UserError(f"{path} is of other commands; delete {job.folder}, or give another --out")
        return found["ours"]
    for name in ("judge", "vae", "dit", "text", "dpvae"):
        theirs, ours = (folder / f"{name}.safetensors" for folder in (shared.folder, job.folder))
        if theirs.exists() and not ours.exists():
            write_atomic(ours, lambda temporary: shutil.copy(theirs, temporary))
    for command in job.training:
        run(args, command)
    measured = {command[1]: found for command in job.judging if (found := run(args, command))}
    found = {"commands": commands, "ours": measured}
    write_atomic(path, lambda temporary: temporary.write_text(json.dumps(found, indent=1), "utf-8"))
    return measured


def run_table(args, key):
    """What eval.py says of each row, after everything that can be wrong has been looked at."""
    table = TABLES[key]
    jobs, shared = [row_job(args, key, row) for row in table.rows], shared_job(args)
    configs = [presets.parse(command[1:])[0] for job in (shared, *jobs) for command in job.training]
    missing = [config.init for config in configs if config.init and not Path(config.init).exists()]
    if missing:
        raise UserError(f"{key} starts from {missing[0]}, and there is none; give --init in --train")
    if table.needs == "data" and configs[-1].data in ("", "toy"):
        raise UserError(f'{key} shows nothing on the toy world; give --train "--data FOLDER_OF_FILMS"')
    if not all((job.folder / "result.json").is_file() for job in jobs):
        for command in shared.training:
            run(args, command)
    return [run_row(args, job, shared) for job in jobs]


# ------------------------------------------------------------------------------------------- what came out

def summary(ours):
    """{eval.py's command: its JSON} as one line of a table."""
    recon, line = ours.get("recon", {}), {}
    for key, name in (("psnr", "PSNR"), ("ssim", "SSIM"), ("lpips", "LPIPS"), ("toy_lpips", "toy LPIPS")):
        line |= {name: recon[key]} if key in recon else {}
    for key in ("fvd", "is"):                           # metric: "fvd", or by the toy's judge "toy fvd"
        line |= {ours[key]["metric"].replace(key, key.upper()): ours[key][key]} if key in ours else {}
    scored = ours.get("toy", {})
    for name, row in (("clips", "video_seen"), ("new clips", "video_heldout"), ("pictures", "image_seen")):
        line |= {f"toy {name} %": 100 * mean(scored[row].values())} if row in scored else {}
    return line | ({"toy motion %": 100 * scored["video_seen"]["motion"]} if scored else {})


def show(key, results):
    """Row, the paper's numbers, ours."""
    columns = [{"row": row.name} | {f"paper's {name}": value for name, value in row.paper.items()} |
               {f"our {name}": f"{value:.4g}" for name, value in summary(ours).items()}
               for row, ours in zip(TABLES[key].rows, results)]
    names = list(dict.fromkeys(name for column in columns for name in column))
    widths = [max(len(name), *(len(str(column.get(name, "-"))) for column in columns)) for name in names]
    print(f"\n{key}: {TABLES[key].title}")
    for cells in (names, *([str(column.get(name, "-")) for name in names] for column in columns)):
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths)))


def dry_run(args, key):
    print(f"\n{key}: {TABLES[key].title}")
    for row in TABLES[key].rows:
        job = row_job(args, key, row)
        for command in job.training + job.judging:
            print(f"  {row.name:16}{shown(command)}")


# -------------------------------------------------------------------------------------------- command line

def parse(argv):
    flags = FlagParser(prog="ablate.py", description="a table of a paper, row by row; without one: a list")
    add = flags.add_argument
    add("table", choices=[*TABLES, "all"])
    add("--config", default="toy", help="of train.py: tiny, toy; as published: videodit-256, latte-ffs")
    add("--out", default="runs/ablate", help="folder; it holds CONFIG/RUN/result.json")
    add("--train", default="", help="further flags of train.py for every row, in quotes")
    add("--launch", default="", help='instead of python for train.py: "torchrun --nproc-per-node 8"')
    add("--real", default="", help="folder of the real clips of FVD, such as UCF101; default: --data")
    add("--films", default="", help="folder of the films to be reconstructed; default: --data")
    add("-n", type=int, default=0, help="clips to judge; 0: 256, and 2048 as published")
    add("--dry-run", action="store_true", help="print the commands of every row, run none")
    args = flags.parse_args(argv)
    if args.config not in PRESETS:
        raise UserError(f"--config {args.config}: must be one of {', '.join(PRESETS)}")
    stages = PRESETS[args.config]["stages"]
    model = TABLES[args.table].model if args.table != "all" else ""
    if model and model not in stages:
        fitting = [name for name, preset in PRESETS.items() if model in preset["stages"]]
        raise UserError(f"--config {args.config} has no stage {model}; give {' or '.join(fitting)}")
    args.n = args.n or {"tiny": 16, "toy": 256}.get(args.config, 2048)
    if args.n < 2:
        raise UserError(f"-n {args.n}: must be at least 2")
    return args


def tables(args):
    """The tables that were asked for; of all, those whose stages the preset has."""
    stages = PRESETS[args.config]["stages"]
    return [key for key in TABLES if TABLES[key].model in stages] if args.table == "all" else [args.table]


def demo():
    """{table: rows whose commands train.py understands}. An unknown flag raises."""
    args = parse(["all"])
    return {key: len([row_job(args, key, row) for row in TABLES[key].rows]) for key in tables(args)}


def main(argv):
    if not argv:
        for key, rows in demo().items():
            print(f"{key:12}{rows} row{'s' if rows > 1 else ' '}   {TABLES[key].title}")
        return
    args = parse(argv)
    if args.dry_run:
        print("\n".join(f"  {'once':16}{shown(command)}" for command in shared_job(args).training))
    for key in tables(args):
        if args.dry_run:
            dry_run(args, key)
        else:
            show(key, run_table(args, key))


if __name__ == "__main__":
    polite(lambda: main(sys.argv[1:]))
