"Optimizers and linear analysis: properties over random problems, and what a notebook can't show."
import io, itertools, tracemalloc

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st

from robustnb import optim
from robustnb.limits import gd_limit, sign_limit, sign_shift, sign_velocity
from robustnb.linear import (
    OPTIMIZERS, Problem, adversarial_risk, gd_errors, paper_problem, simulate, stable_rate, standard_risk)

few = settings(max_examples=20, deadline=None, derandomize=True)
ELEMENTWISE = sorted(optim.OPTIMIZERS.keys() - {'lbfgs', 'muon', 'soap'})


def random_problem(seed, d, batch=()):
    rng = np.random.default_rng(seed)
    return Problem(rng.standard_normal((*batch, d)), rng.uniform(.1, 1, (*batch, d)), rng.standard_normal((*batch, d)))


# --- optimizers

@few
@given(st.sampled_from(sorted(optim.OPTIMIZERS.keys() - {'lbfgs'})), st.integers(0, 10**6), st.sampled_from([0., .1]))
def test_stacked_models_move_as_single_ones(name, seed, weight_decay):
    rng = np.random.default_rng(seed)
    w = torch.as_tensor(rng.standard_normal((3, 4, 5)))
    lr = torch.as_tensor(10**rng.uniform(-3, -1, 3))
    g = torch.as_tensor(rng.standard_normal((6, 3, 4, 5)))
    together, state = w, {}
    single, states = list(w), [{} for _ in w]
    for step in g:
        together = optim.update(name, together, step, state, lr.reshape(3, 1, 1), weight_decay, stacked=1)
        single = [optim.update(name, p, q, s, r.item(), weight_decay) for p, q, s, r in zip(single, step, states, lr)]
    torch.testing.assert_close(together, torch.stack(single), rtol=1e-6, atol=1e-8)

@pytest.mark.parametrize('name', ELEMENTWISE)
def test_numpy_and_torch_agree(name):
    g = np.random.default_rng(0).standard_normal((50, 7))
    a, s = np.ones(7), {}
    b, z = torch.ones(7, dtype=torch.float64), {}
    for step in g:
        a = optim.update(name, a, step, s, .01, .1)
        b = optim.update(name, b, torch.as_tensor(step), z, .01, .1)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-13)

@pytest.mark.parametrize('name', sorted(optim.OPTIMIZERS.keys() - {'lbfgs'}))
def test_state_dict_resumes_to_the_bit(name):
    def train(net, optimizer, steps):
        for x in steps:
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    torch.manual_seed(0)
    data = torch.randn(24, 8, 4)
    make = lambda: torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    whole, half = make(), make()
    half.load_state_dict(whole.state_dict())
    train(whole, optim.create(name, whole.parameters(), .01), data)
    first = optim.create(name, half.parameters(), .01)
    train(half, first, data[:11])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = optim.create(name, half.parameters(), .01)
    second.load_state_dict(torch.load(file, weights_only=True))
    train(half, second, data[11:])
    for a, b in zip(whole.parameters(), half.parameters()): assert torch.equal(a, b)

@pytest.mark.parametrize('name', sorted(optim.OPTIMIZERS.keys() - {'lbfgs'}))
@pytest.mark.parametrize('lr', [1e9, 1e30])
def test_absurd_rates_diverge_without_an_exception(name, lr):
    p = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = optim.create(name, [p], lr)
    largest = 0.
    for _ in range(20):
        optimizer.zero_grad()
        (p**2).sum().backward()
        optimizer.step()
        largest = max(largest, abs(p).nan_to_num(torch.inf).max().item())
    assert largest > 1e5

def test_a_step_before_the_first_gradient_and_closures():
    for name in optim.OPTIMIZERS.keys() - {'lbfgs'}:
        p = torch.nn.Parameter(torch.ones(2))
        idle = torch.nn.Parameter(torch.ones(2))
        optimizer = optim.create(name, [dict(params=[p], lr=.5), dict(params=[idle])], .1)
        optimizer.step()
        assert torch.equal(p, torch.ones(2))
        def closure():
            optimizer.zero_grad()
            (loss := (p**2).sum()).backward()
            return loss
        assert optimizer.step(closure).item() == 2, name
        assert not torch.equal(p, torch.ones(2)), name
        assert torch.equal(idle, torch.ones(2)), name


# --- linear analysis

@few
@given(st.integers(1, 9), st.integers(0, 10**6))
def test_closed_form_is_the_loop(d, seed):
    problem = random_problem(seed, d)
    loop = simulate(problem, 'momentum', .3, 200, momentum=0.)
    np.testing.assert_allclose(loop.w, simulate(problem, 'gd', .3, 200).w, rtol=0, atol=1e-10)

@few
@given(st.integers(2, 6), st.integers(0, 10**6))
def test_irrelevant_weights_stand_still_under_gd_only(d, seed):
    rng = np.random.default_rng(seed)
    problem = Problem(rng.standard_normal(d), np.where(np.arange(d) < (d + 1)//2, 1., 0.), rng.standard_normal(d))
    for mode in 'population', 'sample':
        for name in 'gd', 'momentum', 'nesterov':
            end = simulate(problem, name, .05, 300, mode, n=50).w_final
            np.testing.assert_allclose(end[problem.irrelevant], problem.w0[problem.irrelevant], rtol=0, atol=1e-10)
    if d > 2:
        moved = abs(simulate(problem, 'signgd', .01, 300).w_final - problem.w0)
        assert moved[problem.irrelevant].max() > 1e-6

@few
@given(st.integers(0, 10**6), st.floats(-2, 2), st.floats(-1.5, 1.5))
def test_sign_limit(seed, size, log_ratio):
    rng = np.random.default_rng(seed)
    problem = Problem(rng.uniform(-1, 1, 3), [1, np.exp(log_ratio), 0], 2*rng.uniform(-1, 1, 3) + [size, 0, 0])
    end = simulate(problem, 'signgd', 1e-3, 15_000, record=2).w_final
    ratio = np.exp(2*log_ratio)
    assert (abs(end - sign_limit(problem)) < 3.5e-3*np.array([1, max(1, 1/ratio), max(1, ratio)])).all()

def test_no_initial_error_no_shift():
    for w_star in [1, 2, 0], [1, 5, 0]:
        problem = Problem(w_star, [1, .5, 0], [1, 0, .3])
        assert sign_shift(problem) == 0
        np.testing.assert_allclose(simulate(problem, 'signgd', 1e-3, 8000, record=2).w_final[2], .3, rtol=0, atol=.01)

@few
@given(st.integers(1, 12), st.integers(0, 10**6))
def test_velocity_is_one_step(d, seed):
    problem = random_problem(seed, d, (4,))
    step = simulate(problem, 'signgd', .1, 1).w_final - problem.w0
    np.testing.assert_allclose(step, .1*sign_velocity(problem.w0, problem), rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(step, axis=-1), .1*d**.5, rtol=1e-9)

def test_adversary_in_five_dimensions():
    problem = random_problem(1, 5)
    rng = np.random.default_rng(2)
    w = rng.standard_normal(5)
    x = rng.standard_normal((50_000, 5))*problem.sigma @ problem.basis
    corners = .2*np.array(list(itertools.product([-1, 1], repeat=5)))
    worst = ((x @ (problem.basis.T @ (w - problem.w_star)))[:, None] + corners @ (problem.basis.T @ w))
    worst = .5*(worst**2).max(1)
    assert abs(worst.mean() - adversarial_risk(w, problem, .2, 'linf')) < 4*worst.std()/50_000**.5

def test_another_basis_permutes_nothing_for_gd():
    basis = np.kron(*[np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]]*2)
    image = Problem(np.ones(9), np.linspace(0, 1, 9), np.zeros(9), basis)
    errors = simulate(image, 'momentum', .1, 50, momentum=0.).w_final - 1
    np.testing.assert_allclose(errors, gd_errors(image, .1, 50), rtol=0, atol=1e-12)
    assert adversarial_risk(np.ones(9), image, 1, 'linf') == pytest.approx(.5*abs(basis.T @ np.ones(9)).sum()**2)

@pytest.mark.parametrize('name', ['signgd', 'adam'])
def test_samples_depend_on_the_seed_and_nothing_else(name):
    problem = paper_problem()
    run = lambda **options: simulate(problem, name, .01, 1500, 'sample', n=20, **options)
    whole = run(seed=3)
    assert np.array_equal(whole.w_final, run(seed=3, record=5).w_final)
    assert not np.array_equal(whole.w_final, run(seed=4).w_final)
    both = run(seed=[4, 3])
    np.testing.assert_allclose(both.w[:, 1], whole.w, rtol=0, atol=1e-10)
    short = simulate(problem, name, .01, 700, 'sample', n=20, seed=3)
    np.testing.assert_allclose(short.w_final, run(seed=3, record=[700]).w[0], rtol=0, atol=0)

def test_samples_spread_like_one_over_root_n():
    def spread_of(n):
        w = simulate(paper_problem(), 'gd', 1., 2000, 'sample', n=n, seed=range(200), record=2).w_final
        return w[:, 0].std()
    spread = [spread_of(n) for n in (100, 10_000)]
    assert 7 < spread[0]/spread[1] < 14

def test_memory_does_not_grow_with_steps():
    def peak(steps):
        tracemalloc.start()
        simulate(paper_problem(), 'signgd', .01, steps, 'sample')
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top
    peak(100)
    assert peak(20_000) < 1.2*peak(2_000)

def test_stability_border():
    problem = Problem([1, 1, 1], [2, 1, .5], [0, 0, 0])
    rate = float(stable_rate(problem))
    assert rate == .5
    assert standard_risk(simulate(problem, 'gd', .99*rate, 5000).w_final, problem) < 1e-12
    assert not abs(simulate(problem, 'gd', 1.2*rate, 5000).w_final[0]) < 1e100
    assert simulate(problem, 'gd', 1.2*rate, 100_000).diverged
    assert stable_rate(Problem([1], [0], [1])) == np.inf
    np.testing.assert_array_equal(gd_limit(Problem([1, 2], [1, 0], [7, 8])), [1, 8])

def test_a_problem_keeps_its_own_arrays():
    sigma = np.array([1., 0])
    problem = Problem([1, 2], sigma, [0, 0])
    sigma[0] = 5
    assert problem.sigma[0] == 1

@pytest.mark.parametrize('name', OPTIMIZERS)
def test_zero_steps_is_the_start(name):
    run = simulate(paper_problem(), name, .01, 0)
    np.testing.assert_allclose(run.w_final, paper_problem().w0, rtol=0, atol=1e-14)
    assert run.t.tolist() == [0]
