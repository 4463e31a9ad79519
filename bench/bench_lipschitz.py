"""Lipschitz constants: CPU seconds and tightness, each beside its target.

One thread; about three minutes, most of them the 180-second certificate.

    python bench/bench_lipschitz.py [--seeds 3]

Nets of the exact search are trained on the digits, averaged to as many pixels as they have inputs and standardised,
over the box [-3, 3]; of several seeds the slowest is shown. What is tight is judged by the `lower` end of Lanczos'
intervals, which is proven.
"""
import argparse, math

import torch
from torch import nn

from robustnb import data, lipschitz, models, train
from robustnb.core import Stopwatch, seed_all, set_threads


def line(what, cpu, cpu_target, tight='', tight_target=''):
    missed = cpu > cpu_target or (tight_target and not tight <= tight_target)
    shown = f'{tight:12.5f}{tight_target:10g}' if tight_target else f'{tight:>12}{"":10}'
    print(f'{what:62}{cpu:9.2f}{cpu_target:8g}{shown}   {"MISSED" if missed else "ok"}', flush=True)


def small_net(shape, sizes, seed, outputs):
    "An MLP on standardised digits averaged to `shape` pixels; one output tells digits below 5 from the others."
    images = data.load('digits')
    pixels = nn.functional.adaptive_avg_pool2d(data.to_float(images.x_train), shape).flatten(1)
    pixels = (pixels - pixels.mean(0))/pixels.std(0).clamp(min=.05)
    seed_all(seed)
    layers = [m for a, b in zip(sizes, sizes[1:]) for m in (nn.Linear(a, b), nn.ReLU())][:-1]
    net = nn.Sequential(*layers)
    labels = images.y_train
    optimizer = torch.optim.Adam(net.parameters(), .01)
    for step in range(600):
        at = torch.randint(len(pixels), (128,))
        y = net(pixels[at])
        if outputs > 1: loss = nn.functional.cross_entropy(y, labels[at])
        else: loss = nn.functional.binary_cross_entropy_with_logits(y[:, 0], (labels[at] >= 5).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()

def exact(shape, sizes, ord, seeds, target, output=None):
    "The slowest of several nets; a net that was not solved counts as infinite."
    nets = (small_net(shape, sizes, seed, sizes[-1]) for seed in range(seeds))
    found = [lipschitz.lip_exact(net, (-3, 3), ord, output, seconds=120) for net in nets]
    name = '-'.join(map(str, sizes)) + (f', logits {output}' if output else '')
    slowest = max(k.cpu_s if k.status == 'exact' else math.inf for k in found)
    line(f'exact {"l2" if ord == 2 else "linf"}, {name}', slowest, target, max(k.gap for k in found), 1e-5)


def images(n_train):
    "Part of FashionMNIST; None where it is not there."
    try: return data.load('fashionmnist', download=False).subset(n_train, 1000)
    except FileNotFoundError:
        print('fashionmnist is not there: random images and untrained networks in its place')
        return None

def trained(net, part):
    if part: train.fit(net, part, train.Config('adam', 1e-3, 2), device='cpu')
    return net.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, default=3)
    seeds = parser.parse_args().seeds
    print(f'Lipschitz constants, torch threads {set_threads(1)}')
    print(f'{"":62}{"CPU s":>9}{"target":>8}{"tightness":>12}{"target":>10}')

    seed_all(0)
    net = models.PreActResNet18().eval()
    true = lipschitz.lip_product(net, (3, 32, 32), method='lanczos')
    for seconds, tight in (15, 1.3), (180, 1.04):
        known = lipschitz.lip_product(net, (3, 32, 32), seconds=seconds)
        name = f'PreActResNet18 product, certified / true, seconds={seconds}'
        line(name, known.cpu_s, seconds, known.upper/true.value, tight)
    shape_of = lambda m, size: (m.in_channels, m.out_channels, m.kernel_size, m.stride, size)
    convs = {shape_of(m, size): (m, size) for m, size in convolutions(net, torch.zeros(1, 3, 32, 32))}
    known = [lipschitz.conv_norm(m.weight, size, m.stride, m.padding) for m, size in convs.values()]
    name = f'conv norms by Lanczos, its {len(convs)} layer shapes, widest gap'
    line(name, sum(k.cpu_s for k in known), 4, max(k.gap for k in known), 1e-3)

    exact((4, 4), (16, 16, 16, 1), math.inf, seeds, 15)
    exact((8, 8), (64, 16, 10), math.inf, seeds, 15, (3, 8))
    exact((2, 4), (8, 16, 16, 1), 2, seeds, 10)

    part = images(10_000)
    seed_all(0)
    mlp = trained(models.MLP(input_size=28, width=64, depth=3), part)
    known = lipschitz.lip_sdp(mlp, (1, 28, 28))
    fast = lipschitz.lip_eclipse(mlp, (1, 28, 28))
    line(f'LipSDP, 784-64-64-64-10 ({known.upper:.4g}; ECLipsE-Fast {fast.upper:.4g})', known.cpu_s, 10)
    seed_all(0)
    cnn = trained(models.TwoLayerCNN(), part)
    x = data.to_float(part.x_test) if part else torch.rand(1000, 1, 28, 28)
    known = lipschitz.lip_lower(cnn, x, box=(0., 1.))
    line(f'lower bound, two-layer CNN, {len(x):,} images ({known.lower:.4g})', known.cpu_s, 60)


def convolutions(net, x):
    "(module, input size) of each convolution."
    found = []
    def note(module, args, _): found.append((module, tuple(args[0].shape[2:])))
    hooks = [m.register_forward_hook(note) for m in net.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad(): net(x)
    for hook in hooks: hook.remove()
    return found


if __name__ == '__main__': main()
