"""Speed of the corruptions: all fifteen on 2,000 images, and each beside the package imagecorruptions in one run.

    python bench/bench_corruptions.py [threads]

The package works on one image at a time and needs at least 32 pixels; it takes the constants of 224 pixels at any
size, so at 32 pixels both ways do the same kind of work with other constants. Where it is not installed its columns
are left out. It needs
`pip install --no-deps imagecorruptions lazy_loader opencv-python-headless scikit-image`.
"""
import importlib, importlib.util, sys, types
from pathlib import Path

import numpy as np
import scipy.ndimage
import torch
from PIL import Image

from robustnb.core import Stopwatch, generator, keep_freed_memory, set_threads
from robustnb.corruptions import NAMES, corrupt

THREADS = set_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
SIZES = {32: (2000, 20), 224: (8, 2)}  # side: images of ours, images of the package
SEVERITY = 3


def package():
    "The package's module, with what it misses in newer libraries; None where it is not installed."
    found = importlib.util.find_spec('imagecorruptions')
    if not found: return None
    resources = types.ModuleType('pkg_resources')
    resources.resource_filename = lambda _, name: str(Path(found.origin).parent/name)
    interpolation = types.ModuleType('scipy.ndimage.interpolation')
    interpolation.map_coordinates = scipy.ndimage.map_coordinates
    sys.modules.update({'pkg_resources': resources, 'scipy.ndimage.interpolation': interpolation})
    if not hasattr(np, 'float_'): np.float_ = np.float64
    module = importlib.import_module('imagecorruptions.corruptions')
    smooth = importlib.import_module('skimage.filters').gaussian
    def gaussian(x, sigma, multichannel=False, **how):
        return smooth(x, sigma, channel_axis=-1 if multichannel else None, **how)
    module.gaussian = gaussian
    importlib.import_module('cv2').setNumThreads(THREADS)
    return module


def milliseconds(work, images):
    "CPU time an image; once before, for what is only done once."
    work(images[:1])
    with Stopwatch() as watch: work(images)
    return 1e3*watch.cpu/len(images)


def one_by_one(function):
    "The package's way: images as Pillow has them, stored as bytes."
    def work(images):
        for image in images:
            np.uint8(function(Image.fromarray(image.permute(1, 2, 0).numpy()), SEVERITY))
    return work


def compare(side, theirs):
    "Print CPU milliseconds an image of both ways, a line for each corruption and one for all."
    ours_n, their_n = SIZES[side]
    x = torch.randint(256, (ours_n, 3, side, side), dtype=torch.uint8, generator=generator(0, 'bench'))
    print(f'{side} pixels, severity {SEVERITY}: {ours_n} images, of the package {their_n}')
    print(f'{"":20} {"package":>9} {"robustnb":>9} {"ratio":>7}')
    total = {'package': 0., 'robustnb': 0.}
    for name in NAMES:
        ours = milliseconds(lambda images: corrupt(images, name, SEVERITY), x)
        plain = milliseconds(one_by_one(getattr(theirs, name)), x[:their_n]) if theirs else float('nan')
        total['package'] += plain
        total['robustnb'] += ours
        print(f'{name:20} {plain:9.2f} {ours:9.3f} {plain/ours:7.1f}')
    plain, ours = total.values()
    print(f'{"all":20} {plain:9.2f} {ours:9.3f} {plain/ours:7.1f}')
    print(f'all fifteen on 2,000 images: {2*total["robustnb"]:.1f} CPU s\n')


def main():
    print(f'{THREADS} threads, CPU times in ms an image')
    theirs = package()
    for side in SIZES: compare(side, theirs)


if __name__ == '__main__': main()
