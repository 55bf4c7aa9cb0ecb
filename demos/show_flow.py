"""show_flow.py - what `python flow.py` shows: a known answer, and out/flow.png."""

import math

import torch
import torch.nn as nn

from flow import euler, flow_loss, sample_times, sigmas
from support.drawing import page, plot


# ====================================================================================================== demo
# A data set so small that the right answers are known: eight points on a ring. out/flow.png shows the lines
# of training beside the paths of sampling. Lines cross, paths do not: they run to the middle first (at t=0
# the answer is "the mean of all data") and part late.


def circle(points=8):
    """The toy data set: `points` points on the unit circle."""
    angle = torch.arange(points) * 2 * math.pi / points                        # (points,)
    return torch.stack([angle.cos(), angle.sin()], 1)                          # (points,2)


def oracle(data):
    """The exact velocity for a finite data set: each point pulls as strongly as it is likely to be at the end
    of a line through x. A network with no training error would answer this."""
    def velocity(x, t):
        t = t[:, None]                                                         # (B,1)
        distance = (x[:, None] - t[..., None] * data).square().sum(-1)         # (B,points)
        weight = (-0.5 * distance / (1 - t) ** 2).softmax(1)                   # (B,points)
        return (weight @ data - x) / (1 - t)                                   # (B,2)
    return velocity


class Toy(nn.Module):
    """A network for points of the plane: t as waves of several lengths, three hidden layers."""

    def __init__(self, width=64):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2 + 1 + 12, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                                 nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x, t):
        t = t[:, None]                                                         # (B,1)
        waves = t * math.pi * 2 ** torch.arange(6)                             # (B,6)
        return self.net(torch.cat([x, t, waves.sin(), waves.cos()], 1))        # (B,2)


def train_toy(data, steps, batch=256):
    """All of training, in ten lines."""
    net = Toy()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x1 = data[torch.randint(len(data), (batch,))]                          # (B,2)
        t = sample_times(torch.randn(batch), mean=-0.5)   # (B,)  towards data, where eight points' lines part
        loss = flow_loss(net, x1, {}, t=t, noise=torch.randn_like(x1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net


def miss(samples, data):
    """Mean distance to the nearest data point, and the share of samples at the least visited point."""
    distance, nearest = torch.cdist(samples, data).min(1)                      # (B,) both
    return distance.mean().item(), (nearest.bincount(minlength=len(data)).min() / len(samples)).item()


def demo(path=None, steps=1200, seed=0):
    """Train a flow on the ring: (the oracle's miss, its own miss, share at its least visited point)."""
    torch.manual_seed(seed)
    data = circle()
    net, noise = train_toy(data, steps), torch.randn(1000, 2)                  # (1000,2)
    exact = miss(euler(oracle(data), noise, sigmas(50, shift=1.0)), data)[0]
    if path:
        plot_all(path, net, data, noise)
    return exact, *miss(euler(net, noise, sigmas(50, shift=1.0)), data)


def plot_all(path, net, data, noise):
    """out/flow.png, two panels."""
    ends = data[torch.randint(len(data), (24,))]                               # (24,2)
    lines = {f"_{i}": (*torch.stack([noise[i], ends[i]], 1), "~") for i in range(24)}
    maps = {"lines of training, noise to a random point": lines,
            "paths of sampling, 12 steps": paths(net, noise[:24])}
    points = {"data": (*data.T, ".")}
    panels = [plot(None, curves | points, title, square=True, size=(440, 440))
              for title, curves in maps.items()]
    page(path, panels, columns=2)


def paths(model, noise):
    """The paths of 12 Euler steps, with a dot where each step starts."""
    levels, path = sigmas(12, shift=1.0), [noise]
    for i in range(12):
        path.append(euler(model, path[-1], levels[i:i + 2]))
    path = torch.stack(path, 1)                                                # (B,13,2)
    return {"steps": (*path[:, :-1].flatten(0, 1).T, "."),
            **{f"_{i}": (*one.T, "~") for i, one in enumerate(path)}}


def main():
    exact, trained, rarest = demo("out/flow.png")
    print(f"mean distance to the eight points: oracle {exact:.6f} (right: 0), trained {trained:.3f} (< 0.1); "
          f"the least visited point has {rarest:.3f} of the samples (0.125). Drawn in out/flow.png")
