"The dynamics of many frequencies: each theorem over a thousand random instances."
import math

import numpy as np, pytest

from robustnb.dynamics import (
    adam_flow, adam_speed, decay, exponent, fit_path, gradient_square, least_norm, mean_path, nearest_interpolator,
    power_law, sign_path)
from robustnb.linear import Problem, adversarial_risk, simulate, standard_risk

N = 1000


def random_problems(seed, d=7, n=N):
    "As many problems as trajectories, in frequency coordinates."
    rng = np.random.default_rng(seed)
    sigma = np.exp(rng.uniform(-2, 1, (n, d)))
    return Problem(rng.standard_normal((n, d)), sigma, rng.standard_normal((n, d)), np.eye(d)), rng


def one_of(problems, i):
    return Problem(problems.w_star[i], problems.sigma[i], problems.w0[i], problems.basis)


@pytest.mark.parametrize('k', [0., .5, 1, 2])
def test_a_preconditioned_step_is_a_small_part_of_the_decay(k):
    problems, rng = random_problems(0)
    ahead = decay(problems, 1e-6, k)
    P = problems.sigma**(k - 2)
    step = problems.w0 - 1e-6*P*problems.sigma**2*(problems.w0 - problems.w_star)
    np.testing.assert_allclose(ahead, step, rtol=0, atol=1e-9)  # (1e-6 sigma^2)^2 |e|/2, with rounding
    further = decay(Problem(problems.w_star, problems.sigma, decay(problems, .7, k), problems.basis), .4, k)
    np.testing.assert_allclose(further, decay(problems, 1.1, k), rtol=0, atol=1e-12)
    progress = -np.log(np.abs((decay(problems, .1, k) - problems.w_star)/(problems.w0 - problems.w_star)))
    found = [exponent(one_of(problems, i), progress[i]) for i in range(N)]
    np.testing.assert_allclose(found, k, rtol=0, atol=1e-8)


def test_sign_descent_moves_all_alike():
    problems, _ = random_problems(1)
    for tau in .1, .6, 3:
        run = simulate(problems, 'signgd', .002, round(tau/.002), record=2).w_final
        np.testing.assert_allclose(run, sign_path(problems, tau), rtol=0, atol=.002*(1 + 1e-9))


def test_the_mean_square_of_a_batch():
    problems, rng = random_problems(2, d=3)
    batch, noise = 3, .5
    draws = 4000
    x = rng.standard_normal((draws, N, batch, 3), dtype=np.float32)*problems.sigma[:, None].astype(np.float32)
    error = (problems.w0 - problems.w_star).astype(np.float32)
    r = np.einsum('tnbd,nd->tnb', x, error) - noise*rng.standard_normal((draws, N, batch), dtype=np.float32)
    g = np.einsum('tnbd,tnb->tnd', x, r)/batch
    square = g.astype(float)**2
    z = (square.mean(0) - gradient_square(problems, problems.w0, batch, noise))/(square.std(0)/draws**.5)
    # squares are skewed, z nearly normal
    assert abs(z).max() < 7
    assert abs(z.mean()) < .2
    assert .8 < z.std() < 1.3


def test_adam_is_never_faster_than_a_sign_and_the_dial_has_its_threshold():
    problems, rng = random_problems(3)
    error = problems.w0 - problems.w_star
    power = (problems.sigma**2*error**2).sum(-1, keepdims=True)
    for batch, noise in (1, 0.), (9, .3), (1000, 2.), (math.inf, 1.):
        speed = adam_speed(problems, problems.w0, batch, noise)
        share = problems.sigma**2*error**2/(power + noise**2)
        assert (abs(speed) <= 1 + 1e-12).all() and (speed*error < 0).all()
        if batch == math.inf: expected = np.ones_like(share)
        else: expected = np.sqrt(batch*share/(1 + (batch + 1)*share))
        np.testing.assert_allclose(abs(speed), expected, rtol=1e-10)


def test_the_flow_follows_the_speed():
    problems, rng = random_problems(4, n=20)
    for i in range(20):
        problem = one_of(problems, i)
        batch, noise = rng.integers(1, 300), rng.uniform(0, 2)
        tau, w = adam_flow(problem, [1., 1. + 1e-4], batch, noise)
        change = (w[1] - w[0])/(tau[1] - tau[0])
        np.testing.assert_allclose(change, adam_speed(problem, w[0], batch, noise), rtol=2e-3, atol=2e-5)


def test_nothing_is_smaller_than_the_front():
    problems, rng = random_problems(5)
    for i in range(N):
        problem = one_of(problems, i)
        risk = float(standard_risk(np.zeros(7), problem)*rng.uniform(.01, .99))
        best = least_norm(problem, risk)
        np.testing.assert_allclose(standard_risk(best, problem), risk, rtol=1e-6)
        other = (best - problem.w_star)*np.exp(rng.uniform(.01, 1)*rng.standard_normal(7))
        other = problem.w_star + other*math.sqrt(risk/standard_risk(problem.w_star + other, problem))
        assert np.linalg.norm(other) > np.linalg.norm(best)
        for eps in .1, 2.:
            assert adversarial_risk(other, problem, eps) > adversarial_risk(best, problem, eps)


def price(problems, u):
    "Norm paid for each unit of risk, by steps from 0 along u."
    gained = (problems.sigma**2*problems.w_star*u).sum(-1)
    return np.linalg.norm(u, axis=-1)/gained


def test_the_price_at_the_start_falls_with_the_exponent():
    problems, rng = random_problems(6)
    start = Problem(problems.w_star, problems.sigma, np.zeros(7), problems.basis)
    prices = np.array([price(start, start.sigma**k*start.w_star) for k in (0, .3, .7, 1, 1.5, 1.9, 2)])
    assert (np.diff(prices, axis=0) < 0).all()
    assert (price(start, start.sigma**2.3*start.w_star) > prices[-1]).all()  # past gradient descent it rises
    assert (price(start, np.sign(start.w_star)) > prices[-1]).all()
    for k, expected in (2, prices[-1]), (1, prices[3]):  # of the very paths
        w = decay(start, 1e-7, k)
        found = np.linalg.norm(w, axis=-1)/(standard_risk(start.w0, start) - standard_risk(w, start))
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_fixed_preconditioner_ends_at_the_nearest_interpolator():
    rng = np.random.default_rng(7)
    for _ in range(N):
        n, d = rng.integers(1, 6), rng.integers(6, 12)
        X = rng.standard_normal((n, d))
        y = rng.standard_normal(n)
        w0 = rng.standard_normal(d)
        P = np.exp(rng.uniform(-1, 1, d))
        w = nearest_interpolator(X, y, w0, P)
        free = rng.standard_normal(d)
        free -= np.linalg.pinv(X) @ (X @ free)
        np.testing.assert_allclose(X @ w, y, rtol=0, atol=1e-8)
        length = lambda w: ((w - w0)**2/P).sum()
        for other in w + free, w - 1e-3*free: assert length(other) > length(w)
        np.testing.assert_allclose(fit_path(X, y, 1e12, w0, P), w, rtol=0, atol=1e-7)


def test_noise_enters_by_the_weak_frequencies():
    rng = np.random.default_rng(8)
    for _ in range(N):
        d, n = rng.integers(2, 6), 12
        k, s = rng.uniform(.2, 2), rng.uniform(.1, 9)
        problem = power_law(int(d), rng.uniform(.5, 2), w_star=rng.standard_normal(d), w0=rng.standard_normal(d))
        X = np.linalg.qr(rng.standard_normal((n, d)))[0]*problem.sigma*n**.5
        # a path is affine in the labels: each basis vector of the noise gives its part of the mean
        of = lambda y: fit_path(X, y, s, problem.w0, problem.sigma**(k - 2))
        clean = of(X @ problem.w_star)
        parts = np.array([of(X @ problem.w_star + e) - clean for e in np.eye(n)])
        risk, size = mean_path(problem, [s], n, .7, k)
        noise = .49*(parts**2).sum(0)
        np.testing.assert_allclose(risk, standard_risk(clean, problem) + (problem.sigma**2*noise).sum()/2, rtol=1e-8)
        np.testing.assert_allclose(size, (clean**2).sum() + noise.sum(), rtol=1e-8)
