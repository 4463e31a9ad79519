"Frequencies: properties over many random cases, too slow for the chapters."
import math

import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given, settings, strategies as st

from robustnb.core import generator
from robustnb.dct import dct, dct2, dct_matrix, idct, idct2, rounding
from robustnb.spectrum import (
    band_edges, band_masks, band_noise, energy, filter_energy, filter_freq, keep, mask_energy, mask_freq, radius)

SIDES = st.integers(1, 64)
SEEDS = st.integers(0, 10**6)
PERCENT = st.one_of(st.floats(0, 100), st.sampled_from([0, 10, 30, 50, 70, 90, 100]))
many = settings(max_examples=150, deadline=None, derandomize=True)


def images(seed, *shape, dtype=torch.float64):
    "Images of unlike spectra: white, and falling off by a random power of the frequency."
    g = generator(seed, 'images')
    slope = 3*torch.rand((), generator=g, dtype=torch.float64)
    return idct2(torch.randn(shape, generator=g, dtype=torch.float64)*(1 + radius(*shape[-2:]))**-slope).to(dtype)


@many
@given(SIDES, SIDES, SEEDS, st.sampled_from([torch.float32, torch.float64]))
def test_dct2_equals_scipy(h, w, seed, dtype):
    x = images(seed, 2, 3, h, w, dtype=dtype)
    expected = scipy.fft.dctn(x.double().numpy(), axes=(-2, -1), norm='ortho')
    limit = rounding(h, w, dtype=dtype)*np.linalg.norm(expected, axis=(-2, -1))
    assert (np.linalg.norm(dct2(x).numpy() - expected, axis=(-2, -1)) <= limit).all()
    back = idct2(torch.from_numpy(expected).to(dtype))
    # twice: SciPy's coefficients are rounded, too
    assert (np.linalg.norm(back.numpy() - x.numpy(), axis=(-2, -1)) <= 2*limit).all()


@many
@given(SIDES, SIDES, SEEDS, st.sampled_from([torch.float32, torch.float64]))
def test_round_trip_and_parseval(h, w, seed, dtype):
    x, y = images(seed, 2, 2, h, w, dtype=dtype)
    eps = rounding(h, w, dtype=dtype)
    wide = lambda a: a.double()  # sums of squares in float64
    for there_and_back in idct2(dct2(x)), dct2(idct2(x)), idct(dct(x, 1), 1):
        assert wide(there_and_back - x).norm() <= 2*eps*wide(x).norm()
    difference = (wide(dct2(x))*wide(dct2(y))).sum() - (wide(x)*wide(y)).sum()
    assert abs(difference) <= (2*eps + eps**2 + 2*x.numel()*2**-53)*wide(x).norm()*wide(y).norm()


@pytest.mark.parametrize('n', [512, 1000, 2048])
def test_large_matrices_stay_orthonormal(n):
    C = dct_matrix(n, torch.float64)
    # a sum of n products whose absolute values add up to 1 or less, of entries that are exact within 30 roundings:
    # C is far more exact than `rounding` says
    torch.testing.assert_close(C @ C.T, torch.eye(n, dtype=torch.float64), rtol=0, atol=(n + 100)*2**-53)
    x = np.random.default_rng(0).normal(size=n)
    difference = dct(torch.tensor(x)).numpy() - scipy.fft.dct(x, norm='ortho')
    assert np.linalg.norm(difference) <= rounding(n, dtype=torch.float64)*np.linalg.norm(x)


@many
@given(SIDES, SIDES, st.integers(1, 25))
def test_bands_are_a_partition_into_rings(h, w, n):
    masks = band_masks((h, w), n)
    rho, edges = radius(h, w), band_edges((h, w), n)
    assert masks.shape == (n, h, w) and (masks.sum(0) == 1).all()
    limits = [-1., *edges.tolist(), math.inf]
    for mask, low, high in zip(masks, limits, limits[1:]):
        assert ((rho >= low) & (rho < high) == mask).all()


@many
@given(SIDES, SIDES, SEEDS)
def test_bands_of_an_image_add_up(h, w, seed):
    x = images(seed, 3, h, w)
    masks = band_masks((h, w), 7)
    parts = torch.stack([keep(x, mask) for mask in masks])
    eps = rounding(h, w, dtype=torch.float64)
    assert (parts.sum(0) - x).norm() <= 8*eps*x.norm()  # one transform to coefficients, seven back
    assert abs(parts.square().sum() - x.square().sum()) <= (16*eps + 2*parts.numel()*2**-53)*x.square().sum()
    g = generator(seed, 'noise')
    noise = band_noise(x.shape, masks, 1., g)
    white = idct2(torch.randn(x.shape, generator=generator(seed, 'noise')))
    assert (noise.sum(0) - white).norm() <= 8*rounding(h, w)*white.norm()


@many
@given(SIDES, SIDES, PERCENT, SEEDS)
def test_filters_are_idempotent_and_commute_with_flips(h, w, p, seed):
    x = images(seed, 2, 3, h, w)
    for f in filter_freq, filter_energy:
        once = f(x, p)
        eps = 4*rounding(h, w, dtype=torch.float64)*x.norm()
        assert (f(once, p) - once).norm() <= eps
        for axis in -1, -2: assert (f(x.flip(axis), p) - once.flip(axis)).norm() <= eps
        assert once.norm() <= x.norm() + eps


@many
@given(SIDES, SIDES, st.integers(0, 1000), SEEDS)
def test_masks_follow_their_definitions(h, w, per_mille, seed):
    p = per_mille/10
    rho = radius(h, w)
    mask = mask_freq((h, w), p)
    if 0 < p < 100:
        grid = np.arange(2001)*(max(h, w)*math.sqrt(2)/2000)
        r = max(r for r in grid if 100*np.count_nonzero(rho.numpy() < r) < (100 - p)*h*w)
        assert torch.equal(mask, rho < r)
    else: assert mask.all() if p == 0 else not mask.any()
    X = dct2(images(seed, 2, 3, h, w)).abs().mean(1).flatten(1).numpy()
    expected = X >= np.quantile(X, p/100, axis=1, keepdims=True)*(1 - 1e-12)
    if p < 100:
        np.testing.assert_array_equal(mask_energy(images(seed, 2, 3, h, w), p).flatten(1), expected)


@pytest.mark.parametrize('p', [10, 50, 90])
def test_more_dropped_means_less_left(p):
    x = images(3, 20, 3, 28, 28)
    norms = lambda images: images.flatten(1).norm(dim=1)
    for f in filter_freq, filter_energy:
        assert (norms(f(x, p)) >= norms(f(x, p + 5))).all()
        assert (energy(f(x, p)) <= energy(x) + 1e-12).all()
