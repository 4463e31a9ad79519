"""Corruptions against plain references for one image, and against imagecorruptions.

The references have the published constants typed in anew."""
import colorsys, importlib.util, io, math, sys, types
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage as ndi
import torch
from PIL import Image

from robustnb import corruptions, results
from robustnb.conditions import Corruption, mean_corruption, select
from robustnb.corruptions import CONSTANTS, GROUPS, NAMES, SEVERITIES, Batch, band_energy, corrupt
from robustnb.core import generator
from robustnb.data import resize, to_float
from robustnb.dct import dct2, idct2
from robustnb.evaluate import image_keys
from robustnb.spectrum import radius

SIDES = 32, 224


def pictures(side, n=2, channels=3, seed=0):
    "Images with the spectrum of photographs, (n,c,side,side) uint8: amplitudes fall off with frequency."
    white = torch.randn(n, channels, side, side, generator=generator(seed, 'pictures', side))
    white = white + 2*torch.randn(n, 1, side, side, generator=generator(seed, 'grey', side))
    smooth = idct2(white*(1 + radius(side, side).float())**-1)
    return (.45 + .25*smooth/smooth.std((1, 2, 3), keepdim=True)*.8).clamp(0, 1).mul(255).round().byte()


IMAGES = {side: pictures(side, 2 if side == 32 else 1) for side in SIDES}


# The references: functions of one image (h,w,3), float64 in [0,1], its draws, severity and side

def pick(side, severity, small, large): return (small if side == 32 else large)[severity - 1]


def gaussian_noise(x, draws, severity, side):
    sd = pick(side, severity, [.04, .06, .08, .09, .10], [.08, .12, .18, .26, .38])
    return x + sd*draws(torch.randn, 3, side, side).transpose(1, 2, 0)


def shot_noise(x, draws, severity, side):
    c = pick(side, severity, [500, 250, 100, 75, 50], [60, 25, 12, 5, 3])
    rates = torch.from_numpy(x).float().permute(2, 0, 1)*c
    return draws(lambda shape, generator: torch.poisson(rates, generator=generator)).transpose(1, 2, 0)/c


def impulse_noise(x, draws, severity, side):
    share = pick(side, severity, [.01, .02, .03, .05, .07], [.03, .06, .09, .17, .27])
    u = draws(torch.rand, 3, side, side).transpose(1, 2, 0)
    return np.where(u < share/2, 1, np.where(u < share, 0, x))


def defocus_blur(x, draws, severity, side):
    r, alias = pick(side, severity, [(.3, .4), (.4, .5), (.5, .6), (1, .2), (1.5, .1)],
                    [(3, .1), (4, .5), (6, .5), (8, .5), (10, .5)])
    grid = np.arange(-max(8, r), max(8, r) + 1)
    disk = (grid[:, None]**2 + grid**2 <= r**2).astype(float)
    disk = ndi.gaussian_filter(disk/disk.sum(), alias, mode='mirror', radius=1 if r <= 8 else 2)
    return np.stack([ndi.correlate(x[..., c], disk, mode='mirror') for c in range(3)], -1)


def glass_blur(x, draws, severity, side):
    sd, reach, rounds = pick(side, severity, [(.05, 1, 1), (.25, 1, 1), (.4, 1, 1), (.25, 1, 2), (.4, 1, 2)],
                             [(.7, 1, 2), (.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)])
    steps = np.floor(draws(torch.rand, rounds, 2, side, side)*2*reach).astype(int) - reach
    x = np.uint8(ndi.gaussian_filter(x, (sd, sd, 0), mode='nearest')*255 + 1e-3)
    for (down, right), i, j in product(steps, range(side - reach, reach, -1), range(side - reach, reach, -1)):
        x[i, j] = x[i + down[i, j], j + right[i, j]]
    return ndi.gaussian_filter(x/255, (sd, sd, 0), mode='nearest')


def streak(x, angle, radius, sd):
    weights = np.exp(-np.arange(2*radius + 1)**2/(2*sd**2))
    places = np.indices(x.shape[:2])
    total = 0
    for i, weight in enumerate(weights/weights.sum()):
        down = math.ceil(i*math.sin(angle) - .5)
        right = math.ceil(i*math.cos(angle) - .5)
        rows = np.clip(places[0] + down, 0, x.shape[0] - 1)
        columns = np.clip(places[1] + right, 0, x.shape[1] - 1)
        total = total + weight*x[rows, columns]
    return total


def motion_blur(x, draws, severity, side):
    r, sd = pick(side, severity, [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
                 [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)])
    return streak(x, math.radians(90*float(draws(torch.rand, 1, purpose='angle')[0]) - 45), r, sd)


def zoomed(x, zoom):
    cut = math.ceil(len(x)/zoom)
    top = (len(x) - cut)//2
    x = ndi.zoom(x[top:top + cut, top:top + cut], (zoom, zoom, 1), order=1)
    return x


def zoom_blur(x, draws, severity, side):
    ends = [(1.06, .01), (1.11, .01), (1.16, .01), (1.21, .01), (1.26, .01)]
    ends_224 = [(1.11, .01), (1.16, .01), (1.21, .02), (1.26, .02), (1.31, .03)]
    end, step = pick(side, severity, ends, ends_224)
    zooms = np.arange(1, end, step)
    return (x + sum(zoomed(x, zoom)[:side, :side] for zoom in zooms))/(len(zooms) + 1)


def grey(x): return (x@[.299, .587, .114])[..., None]


def snow(x, draws, severity, side):
    mean, sd, zoom, least, r, blur, share = pick(
        side, severity,
        [(.1, .2, 1, .6, 8, 3, .95), (.1, .2, 1, .5, 10, 4, .9), (.15, .3, 1.75, .55, 10, 4, .9),
         (.25, .3, 2.25, .6, 12, 6, .85), (.3, .3, 1.25, .65, 14, 12, .8)],
        [(.1, .3, 3, .5, 10, 4, .8), (.2, .3, 2, .5, 12, 4, .7), (.55, .3, 4, .9, 12, 8, .7),
         (.55, .3, 4.5, .85, 12, 8, .65), (.55, .3, 2.5, .85, 12, 12, .55)])
    flakes = zoomed(mean + sd*draws(torch.randn, 1, side, side).transpose(1, 2, 0), zoom)
    trim = (len(flakes) - side)//2
    flakes = flakes[trim:trim + side, trim:trim + side]
    flakes = np.clip(np.where(flakes < least, 0, flakes), 0, 1)
    angle = math.radians(90*float(draws(torch.rand, 1, purpose='angle')[0]) - 135)
    fallen = np.round(255*streak(flakes, angle, r, blur))/255
    return share*x + (1 - share)*np.maximum(x, grey(x)*1.5 + .5) + fallen + np.rot90(fallen, 2)


def frost(x, draws, severity, side):
    image, share = pick(side, severity, [(1, .2), (1, .3), (.9, .4), (.85, .4), (.75, .45)],
                        [(1, .4), (.8, .6), (.7, .7), (.65, .7), (.6, .75)])
    falls = 1.2 if side == 32 else 1.7
    f = np.hypot(*np.indices((side, side)))
    f[0, 0] = np.inf
    amplitude = .09*np.sqrt(f**-falls/np.mean(f**-falls))
    amplitude[0, 0] = .15*side  # the coefficient of a constant is `side` times it
    texture = idct2(torch.from_numpy(amplitude)*torch.from_numpy(draws(torch.randn, 1, side, side)[0])).numpy()
    return image*x + share*np.clip(texture[..., None] + [.56, .65, .69], 0, 1)


def plasma(u, side, decay):
    "As published: wibble is halved in its square, rows and columns are filled one by one."
    height = np.zeros((side, side))
    wibble, step = 100., side
    u = iter(u)
    at = lambda i, j: height[i % side, j % side]
    while step >= 2:
        half = step//2
        centres = [(i + half, j + half) for i, j in product(range(0, side, step), repeat=2)]
        across = [(i, j + half) for i, j in product(range(0, side, step), repeat=2)]
        along = [(i + half, j) for i, j in product(range(0, side, step), repeat=2)]
        diagonal = [(-half, -half), (half, half), (-half, half), (half, -half)]
        straight = [(-half, 0), (half, 0), (0, half), (0, -half)]
        for points, around in (centres, diagonal), (across, straight), (along, straight):
            for i, j in points:
                mean = sum(at(i + a, j + b) for a, b in around)/4
                height[i, j] = mean + wibble*wibble*next(u)
        step = half
        wibble /= decay
    height -= height.min()
    return height/height.max()


def fog(x, draws, severity, side):
    strength, decay = pick(side, severity, [(.2, 3), (.5, 3), (.75, 2.5), (1, 2), (1.5, 1.75)],
                           [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)])
    size = 32 if side == 32 else 256
    land = plasma(2*draws(torch.rand, size**2) - 1, size, decay)[:side, :side, None]
    return np.clip((x + strength*land)*x.max()/(x.max() + strength), 0, 1)


def brightness(x, draws, severity, side):
    more = pick(side, severity, [.05, .1, .15, .2, .3], [.1, .2, .3, .4, .5])
    def brighter(pixel):
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        return colorsys.hsv_to_rgb(h, s, min(v + more, 1))
    return np.array([brighter(pixel) for pixel in x.reshape(-1, 3)]).reshape(x.shape)


def contrast(x, draws, severity, side):
    share = pick(side, severity, [.75, .5, .4, .3, .15], [.4, .3, .2, .1, .05])
    return x.mean((0, 1)) + share*(x - x.mean((0, 1)))


def read_at(x, rows, columns, mode):
    read = lambda channel: ndi.map_coordinates(channel, [rows, columns], order=1, mode=mode)
    return np.stack([read(x[..., c]) for c in range(3)], -1)


def elastic_transform(x, draws, severity, side):
    shift, sd, affine = pick(side, severity,
                             [(0, 0, .08), (.05, .2, .07), (.08, .06, .06), (.1, .04, .05), (.1, .03, .03)],
                             [(250*.005*a, .01, 0) for a in (.05, .065, .085, .1, .12)])
    u = 2*draws(torch.rand, 6 + 2*side*side).astype(float) - 1
    square = side//3
    middle = side//2
    source = np.array([[middle + square]*2, [middle + square, middle - square], [middle - square]*2], float)
    target = source + affine*side*u[:6].reshape(3, 2)
    matrix = np.linalg.solve(np.c_[source, np.ones(3)], target)  # (x, y, 1) @ matrix is where a point goes
    rows, columns = np.indices((side, side))
    back = (np.stack([columns, rows], -1) - matrix[2])@np.linalg.inv(matrix[:2])
    x = read_at(x, back[..., 1], back[..., 0], 'mirror')
    smooth = lambda f: side*shift*ndi.gaussian_filter(f, side*sd, mode='reflect', truncate=3)
    down, right = map(smooth, u[6:].reshape(2, side, side))
    return read_at(x, rows + down, columns + right, 'reflect')


def pixelate(x, draws, severity, side):
    share = pick(side, severity, [.95, .9, .85, .75, .65], [.6, .5, .4, .3, .25])
    image = Image.fromarray(np.uint8(np.round(x*255))).resize((int(side*share),)*2, Image.BOX)
    return np.asarray(image.resize((side, side), Image.BOX if side == 32 else Image.NEAREST))/255


def jpeg_compression(x, draws, severity, side):
    file = io.BytesIO()
    quality = pick(side, severity, [80, 65, 58, 50, 40], [25, 18, 15, 10, 7])
    Image.fromarray(np.uint8(np.round(x*255))).save(file, 'JPEG', quality=quality)
    return np.asarray(Image.open(file))/255


def draws_of(image, name):
    "Function (kind, *shape) -> the draws that `corrupt` makes for the image."
    b = Batch(image[None], name)
    return lambda kind, *shape, **how: b.draw(kind, *shape, **how)[0].numpy()


def as_levels(x): return np.uint8(np.clip(x, 0, 1)*255 + 1e-3)


def compare(ours, expected, name):
    "Within one grey level, and nearly everywhere equal: differences of float32 show at the edge between two levels."
    differ = np.abs(ours.astype(int) - expected.astype(int))
    assert differ.max() <= 1 and (differ > 0).mean() < .01, (name, differ.max(), (differ > 0).mean())


@pytest.mark.parametrize('side', SIDES)
@pytest.mark.parametrize('name', NAMES)
def test_published(name, side):
    assert len(SEVERITIES) == 5
    for severity in SEVERITIES:
        found = corrupt(IMAGES[side], name, severity).permute(0, 2, 3, 1).numpy()
        for image, ours in zip(IMAGES[side], found):
            x = image.permute(1, 2, 0).double().numpy()/255
            compare(ours, as_levels(globals()[name](x, draws_of(image, name), severity, side)), (name, severity))


# Moments

@pytest.mark.parametrize('severity', SEVERITIES)
def test_noise_has_its_moments(severity):
    "Of cut bytes, so half a level below."
    n = 3*32*32*40
    flat = torch.full((40, 3, 32, 32), 102, dtype=torch.uint8)
    # equal images have equal noise: two differ
    flat += torch.arange(40, dtype=torch.uint8).remainder(2)[:, None, None, None]
    flat[:, 0, 0, 0] = torch.arange(40, dtype=torch.uint8)
    sd = [.04, .06, .08, .09, .10][severity - 1]
    photons = [500, 250, 100, 75, 50][severity - 1]
    share = [.01, .02, .03, .05, .07][severity - 1]
    level = flat.double()/255
    flips = (level**2 + (1 - level)**2).mean()
    expected = dict(gaussian_noise=sd**2, shot_noise=level.mean()/photons, impulse_noise=share/2*flips)
    for name, variance in expected.items():
        found = to_float(corrupt(flat, name, severity)).double() - level
        if name != 'impulse_noise': found += .5/255
        mean = share*.1 if name == 'impulse_noise' else 0
        rel = 4/math.sqrt(share*n) if name == 'impulse_noise' else .05
        assert abs(found.mean().item() - mean) < 4*math.sqrt(variance/n)
        assert found.square().mean().item() == pytest.approx(float(variance), rel=rel)


def test_noise_is_white():
    "Each band of frequencies gets the share of energy that it has of the coefficients, within sampling error."
    x = torch.full((200, 1, 32, 32), 120, dtype=torch.uint8)
    x[:, 0, 0] = torch.arange(32, dtype=torch.uint8) + torch.arange(200, dtype=torch.uint8)[:, None] % 100
    bands = band_energy(to_float(corrupt(x, 'gaussian_noise', 1)) - to_float(x) + .5/255)
    # a band has a tenth of them within 2%
    assert bands.numpy() == pytest.approx(.04**2/10, rel=4*math.sqrt(2/20_000) + .03)


def test_frost_has_the_spectrum_that_it_says():
    x = torch.randint(256, (500, 3, 32, 32), dtype=torch.uint8)
    squares = dct2(corruptions._frosted_glass(Batch(x, 'frost'))).square().mean((0, 1))
    rho = radius(32, 32)
    inner, outer = (squares[(rho > a) & (rho < b)].mean().item() for a, b in ((3, 4), (12, 16)))
    assert math.log(inner/outer)/math.log(14/3.5) == pytest.approx(1.2, abs=.1)


# Draws

@pytest.mark.parametrize('name', NAMES)
def test_an_image_is_corrupted_alike_in_any_company(name):
    x = pictures(32, 7, seed=3)
    whole = corrupt(x, name, 3)
    assert torch.equal(corrupt(x.flip(0), name, 3).flip(0), whole)
    assert torch.equal(torch.cat([corrupt(part, name, 3) for part in x.split(2)]), whole)
    assert torch.equal(corrupt(x.repeat(60, 1, 1, 1), name, 3), whole.repeat(60, 1, 1, 1))  # 420 images: in two parts
    for dtype in torch.float32, torch.float64:
        found = corrupt(x.to(dtype)/255, name, 3)
        assert found.dtype == dtype and torch.equal((found*255).round().byte(), whole)
    drawn = name not in ('defocus_blur', 'zoom_blur', 'brightness', 'contrast', 'pixelate', 'jpeg_compression')
    assert torch.equal(corrupt(x, name, 3, seed=1), whole) == (not drawn)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    corrupt(x, name, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_grey_image_is_the_colour_image_of_equal_channels(monkeypatch):
    "Its draws belong to it, and are others than the colour image's: here they are given the same ones."
    x = pictures(32, 2, 1)
    keys = image_keys(to_float(x))
    monkeypatch.setattr('robustnb.corruptions.image_keys', lambda images: keys)
    for name in ('defocus_blur', 'motion_blur', 'zoom_blur', 'snow', 'fog', 'brightness', 'contrast',
                 'elastic_transform', 'pixelate'):
        one, three = (corrupt(images, name, 3).int() for images in (x, x.expand(-1, 3, -1, -1)))
        assert (one - x.int()).abs().max() > 1, name
        assert (one - three).abs().max() <= 1, name


def test_images_that_are_not_square():
    x = pictures(64, 1)[..., :40, :]
    for name in NAMES: assert corrupt(x, name, 5).shape == x.shape
    assert torch.equal(corrupt(x, 'defocus_blur', 4).transpose(2, 3), corrupt(x.transpose(2, 3), 'defocus_blur', 4))


def test_lengths_scale_with_the_side():
    "The disk of radius 1 is one of 2 on 64 pixels; on 112 half of 224's 8; below 32 it stays."
    def dot(side):
        x = torch.zeros(1, 1, side, side, dtype=torch.uint8)
        x[0, 0, side//2, side//2] = 255
        return x
    lit = lambda side, severity: int((corrupt(dot(side), 'defocus_blur', severity) > 1).sum())
    assert [lit(side, 4) for side in (8, 28, 32)] == [5, 5, 5]
    assert lit(64, 4) == 13  # pixels within 2


# The package imagecorruptions, at 224 pixels

class Fed:
    "numpy.random as the package sees it: gives what it is fed."
    def __init__(self, **gives): self.__dict__.update(gives)


def package():
    "Its module, with what it misses in newer libraries."
    found = importlib.util.find_spec('imagecorruptions')
    if not found: pytest.skip('imagecorruptions is not installed')
    folder = Path(found.origin).parent
    resources = types.ModuleType('pkg_resources')
    interpolation = types.ModuleType('scipy.ndimage.interpolation')
    resources.resource_filename = lambda _, name: str(folder/name)
    interpolation.map_coordinates = ndi.map_coordinates
    sys.modules.setdefault('pkg_resources', resources)
    sys.modules['scipy.ndimage.interpolation'] = interpolation
    if not hasattr(np, 'float_'): np.float_ = np.float64
    from imagecorruptions import corruptions as module
    smooth = importlib.import_module('skimage.filters').gaussian
    def gaussian(x, sigma, multichannel=False, **how):
        return smooth(x, sigma, channel_axis=-1 if multichannel else None, **how)
    module.gaussian = gaussian
    return module


def fed(image, name):
    "What each corruption is to draw from numpy.random, so that it draws as ours does."
    draws = draws_of(image, name)
    side = image.shape[-1]
    last = lambda x: x.transpose(1, 2, 0)
    angle = lambda low, high: low + (high - low)*float(draws(torch.rand, 1, purpose='angle')[0])
    if name == 'gaussian_noise':
        return Fed(normal=lambda size, scale: scale*last(draws(torch.randn, 3, side, side)))
    if name == 'shot_noise':
        def count(rates):
            rates = torch.from_numpy(rates.transpose(2, 0, 1)).float()
            return lambda shape, generator: torch.poisson(rates, generator=generator)
        return Fed(poisson=lambda rates: last(draws(count(rates))))
    if name == 'motion_blur': return Fed(uniform=angle)
    if name == 'snow':
        normal = lambda size, loc, scale: loc + scale*draws(torch.randn, 1, side, side)[0]
        return Fed(normal=normal, uniform=angle)
    if name == 'fog':
        u = iter(2*draws(torch.rand, 256**2).astype(float) - 1)
        def uniform(low, high, shape):
            n = math.prod(shape)
            return high*np.fromiter(u, float, n).reshape(shape) if n > 0 else None
        return Fed(uniform=uniform)
    if name == 'elastic_transform':
        fields = iter(2*draws(torch.rand, 6 + 2*side*side)[6:].astype(float).reshape(2, side, side)[::-1] - 1)
        return Fed(uniform=lambda low, high, size: high*next(fields))
    return None


# the others draw otherwise; glass_blur below
ORACLE = [name for name in NAMES if name not in ('impulse_noise', 'glass_blur', 'frost')]


@pytest.mark.slow
@pytest.mark.parametrize('name', ORACLE)
def test_equals_imagecorruptions(name, monkeypatch):
    module = package()
    image = IMAGES[224][0]
    for severity in SEVERITIES:
        feed = fed(image, name)
        if feed:
            monkeypatch.setattr(module, 'np', types.SimpleNamespace(**{**vars(np), 'random': feed}))
        expected = np.uint8(getattr(module, name)(Image.fromarray(image.permute(1, 2, 0).numpy()), severity))
        ours = corrupt(image[None], name, severity)[0].permute(1, 2, 0).numpy()
        differ = np.abs(ours.astype(int) - expected.astype(int))
        assert differ.max() <= 1 and (differ > 0).mean() < .05, (name, severity)


@pytest.mark.slow
def test_glass_blur_equals_imagecorruptions(monkeypatch):
    "Whose loop draws pixel by pixel."
    module = package()
    image = IMAGES[224][0]
    for severity, (_, reach, rounds) in zip(SEVERITIES, CONSTANTS['glass_blur'][224]):
        steps = np.floor(draws_of(image, 'glass_blur')(torch.rand, rounds, 2, 224, 224)*2*reach).astype(int) - reach
        inside = slice(224 - reach, reach, -1)
        order = iter(steps[:, ::-1, inside, inside].transpose(0, 2, 3, 1).reshape(-1, 2))
        feed = Fed(randint=lambda low, high, size: next(order))
        monkeypatch.setattr(module, 'np', types.SimpleNamespace(**{**vars(np), 'random': feed}))
        expected = np.uint8(module.glass_blur(Image.fromarray(image.permute(1, 2, 0).numpy()), severity))
        ours = corrupt(image[None], 'glass_blur', severity)[0].permute(1, 2, 0).numpy()
        assert np.abs(ours.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.slow
def test_salt_and_pepper_as_imagecorruptions(monkeypatch):
    "Its share, and that both are alike often."
    module = package()
    image = IMAGES[224][0]
    for severity in SEVERITIES:
        theirs = np.uint8(module.impulse_noise(Image.fromarray(image.permute(1, 2, 0).numpy()), severity))
        ours = corrupt(image[None], 'impulse_noise', severity)[0].permute(1, 2, 0).numpy()
        for level in (0, 255):
            a, b = ((found == level).mean() for found in (theirs, ours))
            assert abs(a - b) < 5*math.sqrt(2*a/ours.size)


# From a sweep file to the page

def test_corruptions_in_a_sweep_and_for_kept_weights(tmp_path, robustnb):
    (tmp_path/'mine.toml').write_text(
        'experiment = "fig01_robustness"\nkeep_weights = true\n[fixed]\nepochs = 2\nn_train = 200\nn_test = 60\n'
        'conditions = [{kind = "corruption", name = ["fog", "snow"], severity = [1, 5]}]\n'
        '[axes]\noptimizer = ["sgd", "adam"]')
    out, err = robustnb('sweep', 'mine.toml', '--workers', 1).communicate()
    assert '2 done now' in out, err
    done = [results.load(p) for p in results.find(tmp_path/'runs'/'fig01_robustness')]
    listed = [dict(kind='corruption', name=['fog', 'snow'], severity=[1, 5])]
    assert [c for c in done[0]['config']['conditions']] == listed
    asked = [(r.get('corruption'), r.get('severity')) for r in done[0]['metrics'] if r['metric'] == 'accuracy']
    assert asked == [(None, None), ('fog', 1), ('fog', 5), ('snow', 1), ('snow', 5)]
    means = mean_corruption(results.table(done))
    assert list(means.conditions) == [4, 4] and means['mean'].equals(means.weather)
    page = next((tmp_path/'runs'/'reports').glob('*/report.html')).read_text(encoding='utf-8')
    assert 'Accuracy under corruptions, mean over severities 1, 5 and over 1 seed, 60 test images.' in page
    assert '<th>fog 5</th>' in page  # as few as these have columns
    (tmp_path/'more.toml').write_text(
        'conditions = [{kind = "corruption", severity = 5}, {kind = "corruption", name = "fog", severity = 1}]')
    out, err = robustnb('measure', 'runs/fig01_robustness', '--conditions', 'more.toml', '--workers', 1).communicate()
    assert '2 done now' in out, err
    again = results.table(results.find(tmp_path/'runs'/'measure'))
    assert list(mean_corruption(again).conditions) == [16, 16]
    for optimizer in 'sgd', 'adam':  # the same model, images and draws
        hits = lambda t: select(t[t.optimizer == optimizer], Corruption('fog', 1)).hits.item()
        same = [hits(t) for t in (results.table(done), again)]
        assert same[0] == same[1]
