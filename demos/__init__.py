"""demos/ - what `python X.py` shows: demos/show_X.py has a known answer, and most draw out/X.png.

A lesson imports its demo under `__main__` and nowhere else; so it can be read, or deleted, by itself."""

import torch


def scrambled(net, std=0.05, seed=0):
    """net with random weights everywhere: a stand-in for a trained network, nothing zero by design."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data.normal_(std=std, generator=generator)
    return net
