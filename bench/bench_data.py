"""Loading data: files of the published sizes (random pixels), read by robustnb.data.

Where it can read them, they are also read by torchvision's per-image way.

    python bench/bench_data.py
"""
import gzip, os, pickle, tempfile
from pathlib import Path

import numpy as np
import torch, torchvision
from PIL import Image
from scipy.io import savemat
from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

from robustnb import data
from robustnb.core import Stopwatch, cores

RNG = np.random.default_rng(0)


def pixels(*shape): return RNG.integers(0, 180, shape, dtype=np.uint8)
def labels(n, classes=10): return np.arange(n) % classes

def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, '>u4').tobytes()
    return head + array.astype(np.uint8).tobytes()

def write_mnist(root, compress):
    raw = root/'MNIST'/'raw'
    raw.mkdir(parents=True)
    for part, n in ('train', 60_000), ('t10k', 10_000):
        for kind, array in ('images-idx3', pixels(n, 28, 28)), ('labels-idx1', labels(n)):
            content = idx(array)
            if compress: (raw/f'{part}-{kind}-ubyte.gz').write_bytes(gzip.compress(content, 1))
            else: (raw/f'{part}-{kind}-ubyte').write_bytes(content)

def write_cifar10(root):
    folder = root/'cifar-10-batches-py'
    folder.mkdir()
    for name in [*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']:
        batch = dict(data=pixels(10_000, 3072), labels=labels(10_000).tolist())
        (folder/name).write_bytes(pickle.dumps(batch, protocol=4))

def write_npz(root, name, classes):
    (root/name).mkdir()
    for split, n in ('train', 50_000), ('test', 10_000):
        np.savez(root/name/f'{split}.npz', images=pixels(n, 32, 32, 3), labels=labels(n, classes))

def write_svhn(root):
    for split, n in ('train', 73_257), ('test', 26_032):
        images = np.asfortranarray(pixels(32, 32, 3, n))
        y = (labels(n) + 1).astype(np.uint8)[:, None]
        savemat(root/f'{split}_32x32.mat', dict(X=images, y=y), do_compression=True)

def write_tree(root, n=200):
    for split in 'train', 'val':
        for name in 'n01440764', 'n02102040':
            (root/'imagenette'/split/name).mkdir(parents=True)
            for i in range(n//4):
                small = Image.fromarray(pixels(50, 40, 3))
                small.resize((400, 500), Image.Resampling.BICUBIC).save(root/'imagenette'/split/name/f'{i}.jpg')


def plain_mnist(root):
    "Every image through PIL and ToTensor, as the usual DataLoader does in each epoch."
    for train in True, False:
        torch.stack([x for x, _ in torchvision.datasets.MNIST(root, train, transform=ToTensor())])

def plain_tree(root):
    "ImageFolder with the paper's transforms."
    way = Compose([Resize(256), CenterCrop(224), ToTensor()])
    for split in 'train', 'val':
        torch.stack([x for x, _ in torchvision.datasets.ImageFolder(root/'imagenette'/split, way)])


def measure(job, *args):
    with Stopwatch() as watch: job(*args)
    return watch

def main():
    print(f'torch threads {torch.get_num_threads()}, decoding threads {cores()}; file cache warm')
    print(f'{"files":34}{"CPU s":>8}{"wall s":>8}   '
          f'{"plain CPU s":>11}{"plain wall s":>13}{"CPU ratio":>11}{"wall ratio":>11}')
    cases = [('mnist, IDX', 'mnist', lambda root: write_mnist(root, False), plain_mnist),
             ('mnist, IDX in gzip', 'mnist', lambda root: write_mnist(root, True), None),
             ('cifar10, pickles', 'cifar10', write_cifar10, None),
             ('cifar10, npz', 'cifar10', lambda root: write_npz(root, 'cifar10', 10), None),
             ('cifar100, npz', 'cifar100', lambda root: write_npz(root, 'cifar100', 100), None),
             ('svhn, .mat', 'svhn', write_svhn, None),
             ('imagenette, 200 JPEG of 400x500', 'imagenette', write_tree, plain_tree)]
    data.load('digits')
    for title, name, write, plain in cases:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            own = measure(lambda: data.load(name, root=folder, download=False))
            line = f'{title:34}{own.cpu:8.2f}{own.wall:8.2f}'
            if plain:
                other = measure(plain, Path(folder))
                line += f'   {other.cpu:11.2f}{other.wall:13.2f}{other.cpu/own.cpu:11.1f}{other.wall/own.wall:11.1f}'
            print(line)


if __name__ == '__main__': main()
