"""show_dit.py - what `python dit.py` shows: a known answer."""

import torch

from demos import scrambled
from dit import DiT, DiTConfig, MMDiT, MMDiTConfig, PixArt, PixArtConfig


def demo():
    """{claim: largest difference} of what holds for these networks before and after any training."""
    torch.manual_seed(0)
    mmdit = MMDiT(MMDiTConfig(in_channels=4, depth=3, heads=4, head_dim=16, context_dim=24, pooled_dim=12,
                              pos_grid=16, base_size=8))
    dit = DiT(DiTConfig(input_size=8, depth=2, width=32, heads=2))
    pixart = PixArt(PixArtConfig(depth=2, width=32, heads=2, caption_channels=24, sample_size=8))
    z, context, pooled = torch.randn(2, 4, 5, 8, 8), torch.randn(2, 7, 24), torch.randn(2, 12)
    t, steps, labels = torch.tensor([0.2, 0.7]), torch.tensor([3, 900]), torch.tensor([7, 1000])
    found = {}
    with torch.no_grad():
        outputs = {"DiT": dit(z[:, :, :1], steps, labels), "MMDiT": mmdit(z, t, context, pooled),
                   "PixArt": pixart(z[:, :, :1], steps, context)}
        for name, out in outputs.items():
            found[f"untrained {name}: answer"] = out.abs().max().item()
        scrambled(mmdit)
        backwards = mmdit(z.flip(2), t, context, pooled).flip(2)
        found["MMDiT: five frames backwards"] = (backwards - mmdit(z, t, context, pooled)).abs().max().item()
    return found


def main():
    for claim, difference in demo().items():
        print(f"{claim:40s} {difference:.1e}")
    print("(right ones answer 0, and differ by rounding below 1e-5)")
