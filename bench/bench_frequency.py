"""Speed of the DCT, the filters and band-limited noise against the plain way, side by side in one run.

    python bench/bench_frequency.py [threads]

Each line gives the median time of both ways, measured in turns, and the ratios plain / robustnb of wall and of CPU
time.
"""
import statistics, sys
from functools import partial

import scipy.fft
import torch

from robustnb import data, models, train
from robustnb.core import Stopwatch, generator, keep_freed_memory, seed_all, set_threads
from robustnb.dct import dct2, dct_matrix, idct2
from robustnb.evaluate import logits
from robustnb.spectrum import band_masks, confine, filter_energy, filter_freq

THREADS = set_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
# as training does, for both ways: pages that come new from the system cost as much as the transform
keep_freed_memory()
G = generator(0, 'bench')


def compare(title, plain, ours, repeats=15, warmup=2):
    "Run both ways in turns; print median milliseconds and ratios; returns the two medians of wall and CPU time."
    times = {'plain': [], 'ours': []}
    for i in range(warmup + repeats):
        for name, f in ('plain', plain), ('ours', ours):
            with Stopwatch() as watch: f()
            if i >= warmup: times[name].append((watch.wall, watch.cpu))
    medians = lambda name: [statistics.median(column) for column in zip(*times[name])]
    pw, pc = medians('plain')
    ow, oc = medians('ours')
    print(f'{title:62} {1e3*pw:9.2f} {1e3*ow:9.2f} {1e3*pc:9.2f} {1e3*oc:9.2f} {pw/ow:7.2f} {pc/oc:7.2f}')


def plain_dct2(x):
    "Channel by channel, with an inverse computed anew where the transpose would do."
    C = dct_matrix(x.shape[-1])
    out = torch.empty_like(x)
    batch = lambda matrix: matrix.expand(len(x), -1, -1)
    for c in range(x.shape[1]):
        out[:, c] = torch.bmm(torch.bmm(batch(C), x[:, c]), batch(torch.linalg.inv(C)))
    return out

def plain_bands(shape, masks, var):
    "The noise of one band after the other: draw in pixels, transform, mask, transform back."
    for mask in masks: idct2(dct2(var**.5*torch.randn(shape, generator=G))*mask)

def bands(shape, masks, var):
    "The same from one draw of coefficients."
    white = torch.randn(shape, generator=G).mul_(var**.5)
    for mask in masks: confine(white, mask)


def main():
    torch.manual_seed(0)
    print(f'{THREADS} threads, times in ms')
    print(f'{"":62} {"plain":>9} {"robustnb":>9} {"plain":>9} {"robustnb":>9} {"ratio":>7} {"ratio":>7}')
    print(f'{"":62} {"wall":>9} {"wall":>9} {"cpu":>9} {"cpu":>9} {"wall":>7} {"cpu":>7}')

    x = torch.rand(2000, 3, 32, 32)
    compare('dct2 (2000,3,32,32): per channel, inverse recomputed', partial(plain_dct2, x), partial(dct2, x))
    for shape in (2000, 3, 32, 32), (6000, 1, 28, 28), (30, 3, 224, 224):
        x = torch.rand(shape)
        scipy_dct2 = partial(scipy.fft.dctn, x.numpy(), axes=(-2, -1), norm='ortho', workers=THREADS)
        compare(f'dct2 {shape}: scipy.fft.dctn(workers={THREADS})', scipy_dct2, partial(dct2, x))

    for shape in (500, 3, 32, 32), (1000, 1, 28, 28):
        masks = band_masks(shape[-1])
        compare(f'noise in 10 bands {shape}: each band drawn and transformed',
                partial(plain_bands, shape, masks, .01), partial(bands, shape, masks, .01), repeats=9)

    try: images = data.load('fashionmnist', download=False).subset(10_000, 1000)
    except FileNotFoundError: images = None
    if images is None: return print('fashionmnist is not there: the lines that train a model on it are left out')
    seed_all(0)
    net = models.TwoLayerCNN()
    x = images.x_train
    epoch = partial(train.fit, net, images, train.Config(epochs=1, precision='auto'), device='cpu')
    filtered = lambda f, p: torch.cat([f(part.float()/255, p) for part in x.split(1000)])
    for f in filter_freq, filter_energy:
        compare(f'one epoch (two-layer CNN, 10,000 images) : {f.__name__} of the same',
                epoch, partial(filtered, f, 50), repeats=2, warmup=1)
    x = images.x_test
    masks = band_masks(28)
    compare('forward passes (two-layer CNN, 10 bands) : making their noise', lambda: [logits(net, x) for _ in masks],
            partial(bands, x.shape, masks, .01), repeats=3, warmup=1)


if __name__ == '__main__': main()
