"Margins: each theorem over a thousand random instances."
import itertools

import numpy as np, pytest

from robustnb.core import derive_seed
from robustnb.margins import (
    DUAL, adam_direction, angle, batch_square, follow, margin, margin_bound, radii, separator, size, steepest)

N = 1000


def separable(rng, n=6, d=4):
    "Random examples that some plane separates."
    w = rng.standard_normal(d)
    Z = rng.standard_normal((n, d))
    scores = Z @ w/(w @ w)
    return Z + np.outer(rng.uniform(.05, 1, n) - np.minimum(scores, 0), w)


@pytest.mark.parametrize('norm', DUAL)
def test_a_radius_is_reached_and_not_passed(norm):
    rng = np.random.default_rng(0)
    for _ in range(N):
        w, z = rng.standard_normal(5), rng.standard_normal(5)
        r = radii(w, z[None], norm)[0]
        moves = rng.standard_normal((50, 5))
        moves *= abs(r)/size(moves, norm)[:, None]
        assert ((z + .999999*moves) @ w*np.sign(r) > 0).all()  # within it no move turns the sign
        best = -np.sign(r)*steepest(w, norm)  # of length 1 in this norm
        np.testing.assert_allclose(size(best, norm), 1, rtol=1e-12)
        np.testing.assert_allclose((z + abs(r)*best) @ w, 0, rtol=0, atol=1e-12*(1 + abs(z @ w)))


@pytest.mark.parametrize('norm', DUAL)
def test_the_widest_margin_lies_between_and_the_program_finds_it(norm):
    rng = np.random.default_rng(1)
    for _ in range(N):
        Z = separable(rng)
        w = separator(Z, norm)
        widest = margin(w, Z, norm)
        np.testing.assert_allclose((Z @ w).min(), 1, rtol=1e-9)
        others = w + np.exp(rng.uniform(-6, 1))*rng.standard_normal((20, 4))
        assert (margin(others, Z, norm) <= widest*(1 + 1e-8)).all()
        alpha = rng.exponential(1, (20, 6))**rng.integers(1, 5)
        assert (margin_bound(Z, alpha, norm) >= widest*(1 - 1e-8)).all()
    touching = abs(Z @ w - 1) < 1e-7  # strong duality
    if norm == 'l2':
        alpha = np.zeros(6)
        alpha[touching] = np.linalg.lstsq(Z[touching].T, w, rcond=None)[0]
        np.testing.assert_allclose(margin_bound(Z, np.maximum(alpha, 0), norm), widest, rtol=1e-6)


@pytest.mark.parametrize('norm', DUAL)
def test_steepest_descent_keeps_its_guarantee(norm):
    rng = np.random.default_rng(2)
    Z = np.stack([separable(rng) for _ in range(N)])
    widest = np.array([margin(separator(z, norm), z, norm) for z in Z])
    rho = size(Z, DUAL[norm]).max(1)
    w = np.zeros((N, 4))
    first, second = np.zeros(N), np.zeros(N)
    rate = widest/rho**2*np.exp(rng.uniform(-1, .5, N))  # of the order that the guarantee likes
    told = 0
    for t in range(1, 401):
        step = rate/t**.3
        scores = np.einsum('knd,kd->kn', Z, w)
        alpha = np.exp(scores.min(1, keepdims=True) - scores)
        w = w + step[:, None]*steepest(np.einsum('kn,knd->kd', alpha, Z), norm)
        first = first + step
        second = second + step**2
        if t % 100: continue
        scores = np.einsum('knd,kd->kn', Z, w).min(1)
        bound = widest - (np.log(6) + rho**2*second/2)/first
        positive = scores > 0
        found = scores/size(w, norm)
        assert (found[positive] >= bound[positive] - 1e-9).all() and (bound[~positive] <= 1e-9).all()
        told += (bound > 0).sum()
    assert told > 100  # else nothing was tested


def test_the_mean_square_of_batches():
    rng = np.random.default_rng(3)
    for _ in range(N):
        n, d = rng.integers(2, 7), 3
        batch = int(rng.integers(1, n + 1))
        Z, alpha = rng.standard_normal((n, d)), rng.exponential(1, n)
        means = [alpha[list(b)] @ Z[list(b)]/batch for b in itertools.combinations(range(n), batch)]
        np.testing.assert_allclose(batch_square(Z, alpha, batch), np.square(means).mean(0), rtol=1e-9, atol=1e-14)


def test_one_row_makes_muon_normalised_descent():
    rng = np.random.default_rng(4)
    for _ in range(20):
        Z = separable(rng)
        _, w = follow(Z, 'muon', .1, 3, momentum=0., record=[0, 1, 2, 3], eps=0.)
        for a, b in zip(w[:-1, 0], w[1:, 0]):
            slopes = 1/(1 + np.exp(Z @ a))
            assert angle(b - a, slopes @ Z) < 1e-5
        lengths = size(np.diff(w[:, 0], axis=0), 'l2')
        np.testing.assert_allclose(lengths, lengths[0], rtol=1e-6)


def test_the_unit_of_the_gradients_changes_nothing():
    "Also where scores jump by hundreds between two changes of the unit."
    Z = separable(np.random.default_rng(5), 7)
    for name, options in ('adam', dict(eps=0.)), ('lion', {}), ('signsgd', {}), ('nadam', dict(eps=0.)):
        for batch in None, 2:
            a, b = (follow(Z, name, .2, 60, batch, seeds=2, scaled=s, **options)[1] for s in (True, False))
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


def test_batches_are_drawn_by_seed_and_far_ways_stay_finite():
    Z = separable(np.random.default_rng(6), 9)
    _, a = follow(Z, 'adam', .05, 40, 2, seeds=3)
    _, b = follow(Z, 'adam', .05, 40, 2, seeds=2)
    np.testing.assert_array_equal(a[:, :2], b)
    assert (a[-1, 0] != a[-1, 1]).any()
    _, w = follow(Z, 'signsgd', 1., 3000)
    assert np.isfinite(w).all() and (w[-1, 0] @ Z.T).min() > 700
    for beta in .9, .95:  # however large the rate, Adam's memory limits the margin's growth
        _, w = follow(Z, 'adam', 1., 3000, eps=0., betas=(.9, beta))
        np.testing.assert_allclose((w[-1, 0] @ Z.T).min(), -1500*np.log(beta), rtol=.1)
    assert np.isfinite(adam_direction(Z, 1, 1e4)).all()
    assert derive_seed(0, 'margins') != derive_seed(1, 'margins')


def test_what_no_plane_separates_is_refused():
    rng = np.random.default_rng(7)
    for _ in range(50):
        Z = separable(rng)
        Z = np.vstack([Z, -Z[rng.integers(6)]])
        for norm in DUAL:
            with pytest.raises(ValueError, match='no plane'): separator(Z, norm)
