"""Training speed against the plain way: DataLoader + ToTensor + torch.optim, one model at a time.

Real FashionMNIST and CIFAR-10 where ROBUSTNB_DATA holds them, random pixels of the same shapes elsewhere (speed does
not depend on the pixels).
"""
import copy, os, resource, subprocess, sys, time

import numpy as np, torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ToTensor

from robustnb import data, models, train
from robustnb.core import Stopwatch, seed_all
from robustnb.train_many import fit_many

THREADS = torch.get_num_threads()


class Plain(Dataset):
    "What most code does: a PIL image and ToTensor for each sample."
    def __init__(self, x, y):
        self.x = x.permute(0, 2, 3, 1).numpy()
        self.y = y
    def __len__(self): return len(self.y)
    def __getitem__(self, i): return ToTensor()(Image.fromarray(self.x[i].squeeze())), self.y[i]

def plain_fit(model, images, lr, optimizer, epochs=1, batch_size=128, seed=0):
    opt = optimizer(model.parameters(), lr=lr)
    for _ in range(epochs):
        order = torch.Generator().manual_seed(seed)
        for x, y in DataLoader(Plain(images.x_train, images.y_train), batch_size, shuffle=True, generator=order):
            opt.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            opt.step()

def load(name, n, shape):
    try: return data.load(name, download=False).subset(n, 1)
    except (OSError, ValueError):
        x = torch.randint(256, (n, *shape), dtype=torch.uint8)
        y = torch.arange(n) % 10
        return data.Data(name, x, y, x[:1], y[:1], tuple('0123456789'), 'random pixels')

def timed(f):
    with Stopwatch() as w: f()
    return w.cpu, w.wall

def report(what, plain, ours, n=None):
    rate = f'{n/ours[1]:10,.0f}/s' if n else ' '*12
    ratios = f'{plain[0]/ours[0]:7.2f}x {plain[1]/ours[1]:7.2f}x'
    print(f'{what:58} {plain[0]:8.2f} {ours[0]:8.2f} {ratios} {rate}', flush=True)

def once(kind, name, network, seed=0):
    """CPU and wall seconds of one epoch, in this process.

    `fit` changes how memory is kept, so each kind gets a process of its own."""
    images = load('fashionmnist', 5120, (1, 28, 28)) if name == 'fashionmnist' else load('cifar10', 256, (3, 32, 32))
    model = getattr(models, network)()
    small = images.subset(128, 1)
    def fit(images):
        if kind == 'plain': return plain_fit(model, images, .1, torch.optim.SGD)
        return train.fit(model, images, train.Config('sgd', .1, 1, precision=kind), device='cpu')
    fit(small)
    return timed(lambda: fit(images))

def compare(what, name, network, rounds=3):
    "Plain, fp32 and bf16 in turn, each in a process of its own, median of `rounds`."
    runs = {'plain': [], 'fp32': [], 'bf16': []}
    for _ in range(rounds):
        for kind in runs:
            command = [sys.executable, __file__, kind, name, network]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            runs[kind].append([float(v) for v in out.split()[-2:]])
    middle = {k: tuple(np.median(v, 0)) for k, v in runs.items()}
    n = 5120 if name == 'fashionmnist' else 256
    for p in 'fp32', 'bf16': report(f'{what}, {p}', middle['plain'], middle[p], n)

def many(rounds=1):
    digits = data.load('digits')
    adaptive = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
    rates = dict(sgd=[.01, .03, .1, .3, 1, 3], adam=adaptive, rmsprop=adaptive)
    plan = [(o, lr, s) for o in rates for lr in rates[o] for s in range(5)]
    configs = [train.Config(o, lr, 5, seed=s) for o, lr, s in plan]
    optimizers = dict(sgd=torch.optim.SGD, adam=torch.optim.Adam, rmsprop=torch.optim.RMSprop)
    def fresh(seed):
        seed_all(seed)
        return models.MLP()
    x, y = data.to_float(digits.x_train), digits.y_train
    def one(o, lr, s, epochs=5):
        model = fresh(s)
        opt = optimizers[o](model.parameters(), lr=lr)
        for _ in range(epochs):
            for i in torch.randperm(len(x)).split(128):
                opt.zero_grad()
                nn.functional.cross_entropy(model(x[i]), y[i]).backward()
                opt.step()
    plain = timed(lambda: [one(*p) for p in plan])
    ours = timed(lambda: fit_many([fresh(s) for _, _, s in plan], digits, configs, device='cpu'))
    report(f'{len(plan)} digits MLPs in one pass, tensors in memory both', plain, ours)

def filtered():
    images = load('fashionmnist', 5120, (1, 28, 28))
    as_float = copy.copy(images)
    object.__setattr__(as_float, 'x_train', data.to_float(images.x_train))
    config = train.Config('sgd', .1, 1, precision='bf16')
    fit = lambda d: timed(lambda: train.fit(models.TwoLayerCNN(), d, config, device='cpu'))
    a, b = np.median([(fit(images), fit(as_float)) for _ in range(5)], 0)
    report('training on filtered (float) images against uint8 ones', tuple(a), tuple(b), 5120)

MEMORY = """
import resource, torch
from robustnb import data, models, train
def random_pixels():
    x = torch.randint(256, (50000, 3, 32, 32), dtype=torch.uint8)
    zeros = torch.zeros(10000, 3, 32, 32, dtype=torch.uint8)
    names = tuple('0123456789')
    return data.Data('cifar10', x, torch.arange(50000) % 10, zeros, torch.arange(10000) % 10, names, 'random pixels')
d = data.load('cifar10', download=False) if {real} else random_pixels()
randperm = torch.randperm
torch.randperm = lambda n, **k: randperm(n, **k)[:512]
train.fit(models.PreActResNet18(), d, train.Config('adam', 1e-3, 1, augment='flip+crop'), device='cpu')
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6)
"""

def memory():
    try: real = bool(data.load('cifar10', download=False))
    except (OSError, ValueError): real = False
    command = [sys.executable, '-c', MEMORY.format(real=real)]
    gb = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    print(f'peak memory of PreActResNet18 (Adam, fp32, batch 128) on all of CIFAR-10: {float(gb):.2f} GB')

if __name__ == '__main__':
    if len(sys.argv) > 1: sys.exit(print(*once(*sys.argv[1:])))
    print(f'training, {THREADS} threads, median of 3 epochs; ratios are plain / ours')
    print(f'{"":58} {"CPU s":>8} {"CPU s":>8} {"CPU":>8} {"wall":>8}\n{"":58} {"plain":>8} {"ours":>8}')
    compare('two-layer CNN, FashionMNIST, sgd', 'fashionmnist', 'TwoLayerCNN')
    compare('PreActResNet18, 32x32, sgd', 'cifar10', 'PreActResNet18')
    many()
    filtered()
    memory()
