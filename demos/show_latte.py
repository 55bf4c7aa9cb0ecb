"""show_latte.py - what `python latte.py` shows: a known answer, and out/latte.png."""

import math

import torch

from demos import scrambled
from latte import CHOICES, Latte, LatteConfig, Shared, count_as_printed
from support.drawing import heat, page

TABLE_1 = {  # (params in M, operations in G) as printed. Variant 4 is counted at patch 4: see count_as_printed
    "Variant 1": (LatteConfig(), 673.68, 5572.69),
    "Variant 2": (LatteConfig(variant=2), 673.68, 5572.69),
    "Variant 3": (LatteConfig(variant=3), 676.33, 6153.15),
    "Variant 4": (LatteConfig(variant=4, patch=4, v4="paper_count"), 676.44, 1545.15),
}


def demo():
    """[(name, our params, the paper's, our operations, the paper's, one clip)], then the largest output of
    four small untrained Lattes, which must be 0."""
    rows = []
    for name, (config, params, ops) in TABLE_1.items():
        count = count_as_printed(config)
        millions = math.floor(count["params"] / 1e4) / 100              # digits cut off, not rounded, as printed
        billions = math.floor(count["ops"] / 1e7) / 100
        rows.append((name, millions, params, billions, ops, count["clip"] / 1e9))
    largest = 0.0
    for variant in CHOICES["variant"]:
        net = Latte(LatteConfig(variant, depth=4, width=48, heads=4, frames=4, input_size=8))
        out = net(torch.randn(2, 4, 4, 8, 8), torch.tensor([3, 900]))
        largest = max(largest, out.abs().max().item())
    return rows, largest


# out/latte.png. Which tokens attend to which is not drawn from an idea of it: one token of a block's input is
# changed, and every token of its output that differs is marked; so for each block of each variant, and for
# all of them in turn. Row i: what token i depends on; 3 frames of 4 patches. Squares are frames, stripes are
# places. A token depends on 4 or 3 tokens of 12 after one block of 1 or 2, on both, 6, after one of Variant
# 4, and on all after one of Variant 3, in two steps; and in 2 no frame depends on another before the middle
# of the network.

@torch.no_grad()
def dependence(block, c, clip, shape):
    """(T*N,T*N) bool: does token i of the block's output depend on token j of its input? In float64, where
    rounding is a thousand times smaller than the faintest dependence."""
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).double()     # (1,T,N,D)
    count = shape[0] * shape[1]
    touched = x.repeat(count + 1, 1, 1, 1)              # (T*N+1,T,N,D)  the last one stays as it is
    for j in range(count):
        touched[j].view(count, -1)[j, 0] += 3           # one channel: added to all, the norm would undo it
    out = block(touched, c.expand(count + 1, -1, -1), clip)                             # (T*N+1,T,N,D)
    change = (out[:-1] - out[-1]).abs().amax(-1).flatten(1)                             # (T*N,T*N)
    return change.T > 1e-12 * out.abs().max()                                           # (T*N,T*N)


def patterns(variant, frames=3):
    """{name: (T*N,T*N)} for each block of a small Latte with random weights, and for all of them in turn."""
    config = LatteConfig(variant, depth=4, width=16, heads=2, frames=frames, input_size=4, in_channels=1)
    net = scrambled(Latte(config), std=0.2).double()
    c = torch.ones(1, 1, 16).double()
    whole = torch.eye(4 * frames)
    found = {}
    for i, block in enumerate(net.blocks):
        name = f"{i} " + "+".join(block.axes)
        found[name] = dependence(block, c, Shared(frames), (frames, 4, 16))
        whole = found[name].float() @ whole             # by way of all that this block attends to
    found["all"] = whole > 0
    return found


def dependence_page(found, prefix=""):
    """patterns side by side, each 108 pixels high."""
    squares = [heat(matrix.float().numpy(), cell=108 // len(matrix), top=1.6) for matrix in found.values()]
    return page(None, squares, [prefix + name for name in found], 10)


def draw_page(path):
    """out/latte.png; returns {variant: patterns}."""
    found = {variant: patterns(variant) for variant in CHOICES["variant"]}
    rows = [dependence_page(found[variant], f"V{variant}: ") for variant in found]
    page(path, rows, None, 1)
    return found


def main():
    rows, largest = demo()
    print("           params (M)  printed    ops (G)  printed   one clip, all counted (G)")
    for row in rows:
        print("{:10s} {:10.2f} {:8.2f} {:10.2f} {:8.2f} {:12.1f}".format(*row))
    print(f"largest output of an untrained Latte: {largest}   (a right one: 0.0)")
    found = draw_page("out/latte.png")
    print("tokens of 12 that a token attends to in its first block:")
    for variant, seen in found.items():
        first = next(iter(seen.values()))               # (T*N,T*N)
        print(f"  variant {variant}: {first.sum(1).max()}")
    print("(right: 4, 4, 12 and 6). Drawn in out/latte.png")
