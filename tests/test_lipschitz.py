"""Lipschitz constants: reference nets through every method, and dense operators written down by hand.

And what random degenerate nets do to the exact search."""
import math
from copy import deepcopy
from fractions import Fraction

import numpy as np, pytest, torch, torchvision
from hypothesis import given, settings, strategies as st
from torch import nn

from robustnb import lipschitz as lip, models
from robustnb.certify import certify
from robustnb.conv_norm import conv_norm_band
from robustnb.core import generator, seed_all
from robustnb.lip_bounds import chain_apply

few = settings(max_examples=25, deadline=None, derandomize=True)
ORDS = 1, 2, math.inf
UPPERS = 'exact', 'LipSDP', 'ECLipsE-Fast', 'product'


# --- reference nets

def hinge(first, bias, last): return [([[w] for w in first], list(bias)), ([list(last)], [0.])]

def kernel(weight, **options):
    "A net of one convolution without bias."
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], bias=False, **options)
    conv.weight.data = weight
    return nn.Sequential(conv, nn.Flatten())

copy = torch.zeros(1, 1, 3, 3)
copy[..., 1, 1] = 1
MATRIX = [[1., -2., 0.], [3., 4., 1.]]
MATRIX_NORM = np.linalg.norm(MATRIX, 2)
POSITIVE = [([[1., 2.], [3., 1.]], [0., 1.]), ([[1., 1.], [2., .5]], [.5, 0.])]
POSITIVE_WHOLE = np.array(POSITIVE[1][0])@POSITIVE[0][0]
REFERENCE = {  # net, shape of the input, constant for l1, l2 and linf, LipSDP, product in l2
    'identity convolution': (kernel(copy, padding=1), (1, 5, 5), (1., 1., 1.), 1., 1.),
    'ones at stride 2': (kernel(torch.ones(1, 1, 2, 2), stride=2), (1, 6, 6), (1., 2., 4.), 2., 2.),
    'rows 3e1 and 4e2': (kernel(torch.tensor([[3., 0.], [0., 4.]])[..., None, None], stride=2), (2, 5, 5),
                         (4., 4., 4.), 4., 4.),
    'linear layer': ([(MATRIX, [5., 6.])], (3,), (6., MATRIX_NORM, 8.), MATRIX_NORM, MATRIX_NORM),
    'all weights positive': (POSITIVE, (2,), tuple(np.linalg.norm(POSITIVE_WHOLE, o) for o in ORDS), None,
                             math.prod(np.linalg.norm(W, 2) for W, _ in POSITIVE)),
    '|x|': (hinge((1, -1), (0, 0), (1, 1)), (1,), (1., 1., 1.), 1., 2.),
    'relu(x) - relu(x - 1)': (hinge((1, 1), (0, -1), (1, -1)), (1,), (1., 1., 1.), None, 2.),
    'relu(x) - relu(-x)': (hinge((1, -1), (0, 0), (1, -1)), (1,), (1., 1., 1.), None, 2.),
    'relu(x) - relu(x)': (hinge((1, 1), (0, 0), (1, -1)), (1,), (0., 0., 0.), None, 2.)}

@pytest.mark.parametrize('name', REFERENCE)
def test_reference_net(name):
    net, shape, constants, sdp, product = REFERENCE[name]
    x = 2*torch.rand(64, *shape, generator=generator(0, 'reference')) - 1
    for ord, constant in zip(ORDS, constants):
        table = lip.sandwich(net, x, ord, box=(-2., 2.), seconds=10).set_index('method')
        assert table.status['exact'] == 'exact', table
        assert table.lower['greedy search'] == pytest.approx(constant, rel=1e-6, abs=1e-9)
        assert (table.lower <= constant*(1 + 1e-9)).all() and (table.upper >= constant*(1 - 1e-12)).all(), table
        assert table.upper['exact'] == pytest.approx(constant, rel=3e-6, abs=1e-8)
        assert table.status["paper's number"] == 'not a bound' and table.upper["paper's number"] == math.inf
        if ord != 2: continue
        assert table.upper['product'] == pytest.approx(product, rel=1.1e-3)
        if sdp: assert table.upper['LipSDP'] == pytest.approx(sdp, rel=1e-3)
        uppers = [table.upper[m] for m in UPPERS]
        assert all(a <= b*(1 + 3e-6) + 1e-8 for a, b in zip(uppers, uppers[1:])), table


# --- convolutions

def by_hand(weight, size, stride, padding):
    "The operator's matrix, entry by entry."
    o, i, kh, kw = weight.shape
    rows, cols = ((n + 2*p - k)//s + 1 for n, p, k, s in zip(size, padding, (kh, kw), stride))
    A = np.zeros((o, rows, cols, i, *size))
    for a, b, d, e in np.ndindex(rows, cols, kh, kw):
        r = a*stride[0] - padding[0] + d
        c = b*stride[1] - padding[1] + e
        if 0 <= r < size[0] and 0 <= c < size[1]: A[:, a, b, :, r, c] += weight[:, :, d, e]
    return A.reshape(o*rows*cols, -1)

def pairs(low, high): return st.tuples(st.integers(low, high), st.integers(low, high))

@few
@given(st.integers(1, 3), st.integers(1, 3), pairs(1, 4), pairs(0, 6), pairs(1, 4), pairs(0, 3),
       st.sampled_from([1e-20, 1., 1e20]), st.integers(0, 10**6))
def test_norms_of_convolutions_with_ties(o, i, k, extra, stride, padding, scale, seed):
    "Kernels of -1, 0 and 1 have eigenvalues of high multiplicity, and some are zero."
    weight = np.random.default_rng(seed).integers(-1, 2, (o, i, *k)).astype(float)*scale
    size = tuple(max(1, n + e - 2*p) for n, e, p in zip(k, extra, padding))
    A = by_hand(weight, size, stride, padding)
    kernel = torch.as_tensor(weight)
    for ord in ORDS:
        exact = np.linalg.norm(A, ord)
        for certify in False, True:
            known = lip.conv_norm(kernel, size, stride, padding, ord, certify)
            assert known.lower <= exact*(1 + 1e-12) and exact <= known.upper*(1 + 1e-12), (known, exact)
            assert known.upper <= known.lower*1.0011 + 1e-100, known
            if certify: assert known.status in ('certified', 'exact')
    exact = np.linalg.norm(A, 2)
    reshaped = lip.conv_norm_reshaped(kernel)
    assert exact <= lip.conv_norm_circulant(kernel, size, stride, padding)*(1 + 1e-12)
    assert exact == 0 or not conv_norm_band(kernel, size, stride, padding, exact*(1 - 1e-6))
    whole_patch_inside = all(n >= m for n, m in zip(size, k)) and padding == (0, 0)
    if whole_patch_inside: assert reshaped <= exact*(1 + 1e-12)
    assert exact <= reshaped*math.sqrt(math.prod(-(-n//s) for n, s in zip(k, stride)))*(1 + 1e-12)


# --- networks

LAYERS = ['conv', 'stride', 'batch', 'relu', 'tanh', 'average', 'max', 'dropout', 'leaky']

@few
@given(st.lists(st.sampled_from(LAYERS), min_size=1, max_size=6), st.integers(0, 10**6))
def test_product_of_any_sequence_is_above_its_quotients(kinds, seed):
    seed_all(seed)
    make = dict(conv=lambda: nn.Conv2d(2, 2, 3, padding=1), stride=lambda: nn.Conv2d(2, 2, 2, stride=2),
                batch=lambda: nn.BatchNorm2d(2), relu=nn.ReLU, tanh=nn.Tanh,
                average=lambda: nn.AvgPool2d(3, 1, 1), max=lambda: nn.MaxPool2d(2, 1, 1),
                dropout=nn.Dropout, leaky=lambda: nn.LeakyReLU(2.))
    if sum(k in ('stride',) for k in kinds) > 2: kinds = [k for k in kinds if k != 'stride']
    net = nn.Sequential(*(make[k]() for k in kinds), nn.Flatten(), nn.LazyLinear(3)).double()
    net(torch.zeros(2, 2, 8, 8).double())
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(.1, 3)
            m.weight.data.normal_()
    net.eval()
    x = torch.randn(64, 2, 8, 8).double()
    y = x + torch.randn(64, 2, 8, 8).double()*10**torch.linspace(-4, 1, 64)[:, None, None, None].double()
    with torch.no_grad(): rise = net(x) - net(y)
    step = (x - y).flatten(1)
    for ord in ORDS:
        found = (torch.linalg.vector_norm(rise, ord, 1)/torch.linalg.vector_norm(step, ord, 1)).max().item()
        local = lip.jacobian_norms(lip.jacobians(net, x), ord).max().item()
        certified = lip.lip_product(net, (2, 8, 8), ord, seconds=0)
        assert max(found, local) <= certified.upper*(1 + 1e-9) and certified.status == 'certified'
        if ord == 2:
            probable = lip.lip_product(net, (2, 8, 8), ord, method='lanczos')
            assert certified.value <= probable.upper <= certified.upper*1.002

class Squared(nn.Module):
    def forward(self, x): return x*x

class Rectified(nn.ReLU):
    def forward(self, x): return x.relu()**2

UNKNOWN = {
    '1.0': (nn.Sequential(nn.Flatten(), nn.Sequential(Squared())), (1, 2, 2), 'Squared'),
    '1': (nn.Sequential(nn.Flatten(), Rectified()), (1, 2, 2), 'Rectified'),
    'a.b': (nn.Sequential(nn.ModuleDict()), (1, 2, 2), 'ModuleDict'),
    '0': (nn.Sequential(nn.ConvTranspose2d(1, 1, 2)), (1, 2, 2), 'ConvTranspose2d'),
    '2': (nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.GELU()), (1, 2, 2), 'GELU'),
    'norm': (nn.Sequential(nn.InstanceNorm2d(1)), (1, 2, 2), 'InstanceNorm2d'),
    'top': (torchvision.models.resnet18(), (3, 32, 32), 'ResNet'),
    'mode': (nn.Sequential(nn.Dropout()).train(), (1, 2, 2), 'Dropout')}

@pytest.mark.parametrize('place', UNKNOWN)
def test_unknown_layers_are_refused_by_name(place):
    net, shape, kind = UNKNOWN[place]
    bounds = (lambda: lip.lip_product(net, shape), lambda: lip.lip_product(net, shape, method='paper'),
              lambda: lip.lip_sdp(net, shape), lambda: lip.lip_eclipse(net, shape),
              lambda: lip.lip_exact(net, (0, 1), input_shape=shape),
              lambda: lip.lip_box(net, torch.zeros(shape), torch.ones(shape)))
    for refusing in bounds:
        with pytest.raises(ValueError, match=kind) as error: refusing()
        if place[0].isdigit(): assert f'layer {place} (' in str(error.value)

def test_layers_of_ones_own_can_be_given_a_bound():
    from robustnb.lip_bounds import HANDLERS, Factor
    class Halved(nn.Module):
        def forward(self, x): return x/2
    net = nn.Sequential(nn.Flatten(), Halved())
    with pytest.raises(ValueError, match='Halved'): lip.lip_product(net, (1, 2, 2))
    lip.handles(Halved)(lambda m, shape, name: Factor(name, 'plain', norms=lambda ord: lip.Interval(.5, .5, 'exact')))
    try: assert lip.lip_product(net, (1, 2, 2)).upper == pytest.approx(.5, rel=1e-12)
    finally: HANDLERS.pop(Halved)


# --- small ReLU nets

def integer_net(seed, sizes, biased):
    "Weights of -1, 0 and 1: many units coincide, are dead, or switch together."
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.integers(-1, 2, shape)
    return [(draw(b, a).astype(float), biased*draw(b)/2) for a, b in zip(sizes, sizes[1:])]

def sampled(net, box, ord, output=None, n=40_000):
    "Largest Jacobian norm at random points, which lie inside pieces almost surely."
    low, high = box
    x = torch.rand(n, net[0][0].shape[1], generator=generator(0, 'sampled'), dtype=torch.float64)*(high - low) + low
    return lip.jacobian_norms(lip.jacobians(lip.chain_module(net), x, output, batch=n), ord).max().item()

SIZES = [(1, 4, 1), (2, 5, 2), (2, 3, 3, 1), (2, 4, 3, 3, 2), (1, 3, 3, 3, 1)]

@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from(SIZES), st.booleans(), st.sampled_from([None, 0]))
def test_degenerate_nets(seed, sizes, biased, output):
    net = integer_net(seed, sizes, biased)
    box = (-1., 1.)
    last = net[-1][0] if output is None else net[-1][0][output]
    product = math.prod(np.linalg.norm(W, 2) for W, _ in net[:-1])*np.linalg.norm(last, 2)
    for ord, method in (2, 'search'), (math.inf, 'search'), (math.inf, 'milp'), (1, 'milp'):
        true = sampled(net, box, ord, output)
        known = lip.lip_exact(net, box, ord, output, method=method)
        a_solver_is_never_sure_of_0 = method == 'milp' and true < 1e-9
        assert known.status == ('unresolved' if a_solver_is_never_sure_of_0 else 'exact'), (known, true)
        assert known.lower <= true*(1 + 1e-6) + 1e-9, (known, true)
        assert true <= known.upper*(1 + 1e-9) + 1e-12, (known, true)
        assert known.upper <= true*(1 + 1e-5) + 1e-7, (ord, method, known, true)
        if ord != 2: continue
        searched = lip.lip_lower(net, torch.zeros(3, sizes[0]), 2, output, box=box, rounds=5)
        relaxed = lip.lip_sdp(net, output=output, rounds=200)
        chain = [searched.lower, known.upper, relaxed.upper, lip.lip_eclipse(net, output=output).upper, product]
        assert all(a <= b*(1 + 3e-6) + 1e-8 for a, b in zip(chain, chain[1:])), chain

def normal_net(seed, *sizes):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal((b, a))/math.sqrt(a), rng.standard_normal(b)/2) for a, b in zip(sizes, sizes[1:])]

@pytest.mark.parametrize('ord, method', [(2, 'search'), (math.inf, 'search'), (math.inf, 'milp'), (1, 'milp')])
def test_a_limit_widens_the_interval_and_nothing_else(ord, method):
    net = normal_net(1, 6, 9, 9, 1)
    true = lip.lip_exact(net, (-2, 2), ord)
    assert true.status == 'exact'
    for limits in dict(seconds=0.), dict(seconds=.05), dict(seconds=.3), dict(nodes=1), dict(nodes=20):
        known = lip.lip_exact(net, (-2, 2), ord, method=method, **limits)
        assert known.lower <= true.upper and true.lower <= known.upper, (limits, known, true)
        assert known.status in ('exact', 'unresolved', 'time limit', 'node limit')
        assert known.status != 'exact' or known.gap < 1e-5
        if 'seconds' in limits: assert known.cpu_s < limits['seconds'] + 5, known
    assert lip.lip_exact(net, (-2, 2), ord, method=method, nodes=1).status != 'exact'

def test_the_limits_of_bounds_and_searches():
    net = normal_net(2, 8, 20, 20, 3)
    shape = (8,)
    full = lip.lip_sdp(net)
    early = lip.lip_sdp(net, seconds=0)
    assert full.upper <= early.upper <= lip.lip_eclipse(net).upper*(1 + 1e-9)
    x = torch.randn(50, 8, generator=generator(0, 'x'))
    looked = lip.lip_lower(net, x, seconds=0)
    searched = lip.lip_lower(net, x)
    assert looked.lower <= searched.lower*(1 + 1e-9) and searched.lower <= full.upper
    seed_all(0)
    cnn = models.SmallCNN(width=4).eval()
    bounds = [lip.lip_product(cnn, (1, 8, 8), seconds=s) for s in (0, 10)]
    assert bounds[0].value <= bounds[1].upper <= bounds[0].upper and bounds[1].upper <= 1.001*bounds[1].value

def test_a_search_stopped_at_once_has_its_witness_inside_a_piece():
    """In a symmetric box the middle of the two points that `lip_lower` finds is the origin.

    There a net without biases has its kinks."""
    line = hinge((1, -1), (0, 0), (1, -1))  # relu(x) - relu(-x) = x
    known = lip.lip_exact(line, (-1, 1), math.inf, seconds=0)
    assert known.status == 'time limit' and known.lower == pytest.approx(1, rel=1e-6)
    assert known.witness.shape == (1,) and known.witness != 0

def test_witnesses_attain_what_is_claimed():
    net = normal_net(3, 4, 7, 7, 2)
    x = torch.rand(30, 4, generator=generator(0, 'x'))
    for ord in ORDS:
        for options in {}, dict(output=1), dict(output=(0, 1)):
            found = lip.lip_lower(net, x, ord, box=(0., 1.), **options)
            a, b = found.witness.double()
            assert ((found.witness >= 0) & (found.witness <= 1)).all()
            chain = lip.relu_chain(net, output=options.get('output'))
            rise = chain_apply(chain, torch.stack([a, b])).diff(dim=0).flatten()
            ratio = (torch.linalg.vector_norm(rise, ord)/torch.linalg.vector_norm(a - b, ord)).item()
            assert found.lower <= ratio <= found.lower*(1 + 1e-6)
            if ord == 1 and not options: continue
            exact = lip.lip_exact(net, (0, 1), ord, **options)
            witness = exact.witness[None].double()
            jacobian = lip.jacobians(lip.chain_module(net), witness, options.get('output'))
            there = lip.jacobian_norms(jacobian, ord).item()
            assert exact.lower == pytest.approx(there, rel=1e-6) and found.lower <= exact.upper

@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from(['linf', 'l2']), st.sampled_from([.01, .2, 3.]),
       st.sampled_from([2, math.inf]))
def test_local_constants_hold_in_the_whole_ball(seed, norm, radius, ord):
    net = normal_net(seed, 3, 5, 4, 2)
    rng = np.random.default_rng(seed)
    x = torch.as_tensor(rng.random(3)).round(decimals=int(rng.integers(0, 3)))  # 0 decimals: a corner of the box
    steps = torch.as_tensor(rng.standard_normal((4000, 3)))
    size = steps.abs().amax(1) if norm == 'linf' else steps.norm(dim=1)
    points = (x + radius*steps*torch.as_tensor(rng.random(4000)/size.numpy())[:, None])
    points = points[((points > 0) & (points < 1)).all(1)]
    there = lip.jacobian_norms(lip.jacobians(lip.chain_module(net), points), ord).max().item()
    known = lip.lip_local(net, x, radius, ord, norm=norm)
    assert there <= known.upper*(1 + 1e-9) and known.lower <= known.upper
    a, b = (known.witness if known.witness.dim() == 2 else known.witness.expand(2, 3)).double()
    for point in a, b:
        away = (point - x).abs().max() if norm == 'linf' else (point - x).norm()
        assert away <= radius*(1 + 1e-9) and ((point >= 0) & (point <= 1)).all()

def test_nothing_is_changed_in_the_model():
    seed_all(0)
    net = models.SmallCNN(width=2, norm='batch').eval()
    x = torch.rand(4, 1, 8, 8)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    lip.sandwich(net, x, seconds=1)
    lip.lip_local(net, x[0], .01, output=(3, 5), seconds=1)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and not net.training
    assert all(p.requires_grad and p.grad is None and p.dtype == torch.float32 for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)

NET = normal_net(0, 3, 4, 2)
BAD = {
    'box': lambda: lip.lip_exact(NET, (0, [1, 1, 0])),
    'box: shape': lambda: lip.lip_exact(NET, (0, [1., 1.])),
    'output': lambda: lip.lip_exact(NET, (0, 1), output=2),
    'nodes': lambda: lip.lip_exact(NET, (0, 1), nodes=0),
    'method': lambda: lip.lip_exact(NET, (0, 1), method='guess'),
    'ord': lambda: lip.sandwich(NET, torch.zeros(1, 3), 'l3'),
    'hidden units': lambda: lip.lip_exact_shallow(normal_net(0, 30, 21, 1)),
    'net': lambda: lip.lip_exact_shallow(normal_net(0, 3, 2, 2, 1)),
    'children': lambda: lip.lip_lower(NET, torch.zeros(1, 3), children=0),
    'rounds': lambda: lip.lip_sdp(NET, rounds=-1),
    'norm': lambda: lip.lip_local(NET, torch.zeros(3), .1, norm='l1'),
    'radius': lambda: lip.lip_local(NET, torch.zeros(3), math.nan),
    'low': lambda: lip.lip_box(NET, torch.ones(3), torch.zeros(3)),
    'stride': lambda: lip.conv_norm(copy, 5, stride=(1, 2, 3)),
    'padding': lambda: lip.conv_norm(copy, 5, padding=-1)}

@pytest.mark.parametrize('name, call', BAD.items(), ids=lambda v: v if isinstance(v, str) else '')
def test_bad_input_is_named(name, call):
    with pytest.raises(ValueError, match=name.partition(':')[0]): call()


# --- long ones

@pytest.mark.slow
@pytest.mark.parametrize('sizes', [(16, 16, 16, 1), (8, 24, 24, 1)])
def test_integer_programming_and_search_agree_on_larger_nets(sizes):
    net = normal_net(0, *sizes)
    searched, programmed = (lip.lip_exact(net, (-3, 3), math.inf, method=m, seconds=300) for m in ('search', 'milp'))
    assert searched.status == 'exact'
    assert searched.lower <= programmed.upper
    assert programmed.lower <= searched.upper
    assert programmed.status != 'exact' or programmed.upper == pytest.approx(searched.upper, rel=1e-5)

@pytest.mark.slow
def test_certificates_of_the_paper_architecture_lie_above_lanczos():
    seed_all(0)
    net = models.PreActResNet18().eval()
    paper = lip.lip_product(net, (3, 32, 32), method='paper')
    probable = lip.lip_product(net, (3, 32, 32), method='lanczos')
    certified = lip.lip_product(net, (3, 32, 32))
    assert paper.value < probable.value <= probable.upper*(1 + 1e-9) and probable.value*(1 - 1e-9) <= certified.upper
    assert len(certified.parts) == 22 and all(part[2].lower <= part[2].upper for part in certified.parts)


def interior_point(weights):
    """LipSDP-Neuron as it is written down, by cvxpy and Clarabel.

    It is the smallest sqrt(rho) for which the block matrix is positive semidefinite."""
    cvxpy = pytest.importorskip('cvxpy', reason='cvxpy is for this comparison only: pip install cvxpy')
    rho = cvxpy.Variable()
    taus = [cvxpy.Variable(len(W), nonneg=True) for W in weights[:-1]]
    sizes = [weights[0].shape[1], *(len(W) for W in weights[:-1])]
    row = lambda a: [np.zeros((a, b)) for b in sizes]
    rows = [row(a) for a in sizes]
    rows[0][0] = rho*np.eye(sizes[0])
    for l, (W, tau) in enumerate(zip(weights, taus), 1):
        rows[l][l - 1] = -cvxpy.diag(tau)@W
        rows[l - 1][l] = rows[l][l - 1].T
        rows[l][l] = 2*cvxpy.diag(tau)
    rows[-1][-1] = rows[-1][-1] - weights[-1].T@weights[-1]
    whole = cvxpy.bmat(rows)
    problem = cvxpy.Problem(cvxpy.Minimize(rho), [(whole + whole.T)/2 >> 0])
    problem.solve(solver='CLARABEL')
    assert problem.status == 'optimal'
    return math.sqrt(rho.value)


@pytest.mark.slow
@pytest.mark.parametrize('sizes', [(8, 16, 1), (8, 16, 16, 1), (16, 24, 24, 10), (10, 20, 20, 20, 5), (64, 32, 32, 10)])
def test_lipsdp_is_within_a_fifth_of_a_percent_of_an_interior_point_method(sizes):
    g = generator(0, 'interior', *sizes)
    draw = lambda a, b: torch.randn(b, a, generator=g).double()/math.sqrt(a)
    net = [(draw(a, b), torch.zeros(b).double()) for a, b in zip(sizes, sizes[1:])]
    ours = lip.lip_sdp(net).upper
    theirs = interior_point([W.numpy() for W, _ in net])
    print(f'{sizes}: ours {ours:.6g}, interior point {theirs:.6g}, ratio {ours/theirs:.6f}')
    assert theirs*(1 - 1e-5) <= ours <= theirs*1.002

def test_weights_that_overflow_leave_the_bound_open():
    huge = [(1e160*torch.eye(2).double(), torch.zeros(2))]*2
    assert lip.lip_sdp(huge).upper == math.inf and lip.lip_sdp(huge).lower == 0


# --- weights of very different size

def rescaled(net, exponents):
    "The same function, its hidden layers measured in other units: powers of two."
    scaled = []
    before = 0
    for (W, b), e in zip(net, [*exponents, 0]):
        scaled.append((np.ldexp(W, e - before), np.ldexp(b, e)))
        before = e
    return scaled

@pytest.mark.parametrize('ord, method', [(2, 'search'), (math.inf, 'search'), (math.inf, 'milp'), (1, 'milp')])
@pytest.mark.parametrize('exponents', [(-28, 0), (-31, 0), (300, -300)])
def test_units_do_not_change_the_constant(exponents, ord, method):
    net = normal_net(2, 2, 4, 4, 1)
    plain = lip.lip_exact(net, (-1., 1.), ord, method=method)
    other = lip.lip_exact(rescaled(net, exponents), (-1., 1.), ord, method=method)
    assert plain.status == other.status == 'exact'
    assert (plain.lower, plain.upper) == (other.lower, other.upper)

def test_preactivation_bounds_of_rescaled_nets_hold():
    "A linear program leaves out coefficients below 1e-9."
    g = torch.Generator().manual_seed(60)
    sizes = 2, 3, 3, 3, 1
    draw = lambda *shape: torch.randn(*shape, generator=g).double().numpy()
    net = [(draw(b, a), draw(b)*.5) for a, b in zip(sizes, sizes[1:])]
    known = lip.lip_exact(rescaled(net, (-31, 0, 0)), (-1., 1.))
    assert known.status == 'exact' and known.upper >= sampled(net, (-1., 1.), 2)

@pytest.mark.parametrize('size', [1e-9, 1e-150, 1e150])
@pytest.mark.parametrize('method', ['search', 'milp'])
def test_exact_is_relative(size, method):
    net = normal_net(2, 2, 4, 4, 1)
    known = lip.lip_exact([*net[:-1], (net[-1][0]*size, net[-1][1])], (-1., 1.), math.inf, method=method)
    assert known.status == 'exact' and known.upper <= known.lower*(1 + 3e-6)
    assert known.upper == pytest.approx(lip.lip_exact(net, (-1., 1.), math.inf).upper*size, rel=1e-5)

@pytest.mark.parametrize('method', ['search', 'milp'])
def test_slopes_that_cancel_are_known(method):
    "All units are active, and what is left of the weights is about 1e-12."
    rng = np.random.default_rng(0)
    W1 = rng.random((3, 1)) + .5
    W2 = rng.random((3, 3)) + .5
    h = W2@W1
    W3 = np.array([[1., .7, -(h[0, 0] + .7*h[1, 0])/h[2, 0]*(1 + 1e-12)]])
    exact = lambda M: np.vectorize(Fraction, otypes=[object])(M)
    true = abs((exact(W3)@exact(W2)@exact(W1))[0, 0])
    net = [(W1, np.full(3, 9.)), (W2, np.full(3, 9.)), (W3, np.zeros(1))]
    known = lip.lip_exact(net, (-1., 1.), math.inf, method=method)
    assert Fraction(known.lower) <= true <= Fraction(known.upper)
    assert known.status == ('exact' if method == 'search' else 'unresolved')

def test_layers_in_a_row_that_cancel_are_multiplied_exactly():
    e = 2.**-30
    net = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1)).double().requires_grad_(False)
    for layer, weight in (net[0], [[1 - e], [-1.]]), (net[1], [[1 + e, 1.]]), (net[3], [[1.]]):
        layer.weight.copy_(torch.tensor(weight, dtype=torch.float64))
        layer.bias.zero_()
    known = lip.lip_exact(net, (-1., 1.))
    assert known.status == 'exact' and known.lower <= 2.**-60 <= known.upper
    assert lip.lip_sdp(net).upper >= 2.**-60

def test_the_ends_of_float64():
    eye = np.eye(2)
    small = [(eye*1e-170, np.zeros(2)), (np.ones((1, 2))*1e-170, np.zeros(1))]
    for known in lip.lip_exact_shallow(small), lip.lip_exact(small, (-1., 1.)):
        assert known.status == 'unresolved' and 0 == known.lower < known.upper < 1e-300
    large = [(np.full((1, 1), v), np.zeros(1)) for v in (1e200, 1e200, 1e-300)]
    known = lip.lip_exact(large, (-1., 1.))
    assert known.status == 'exact' and known.upper == pytest.approx(1e100)
    apart = [(np.array([[1e-200]]), np.array([1e200])), (np.ones((1, 1)), np.zeros(1))]
    with pytest.raises(ValueError, match='layer 1'): lip.lip_exact(apart, (-1., 1.))


# --- models that are no functions, and settings that leave no bound

class Noisy(nn.Linear):
    def forward(self, x): return super().forward(x) + torch.randn(len(x), 1)

@pytest.mark.parametrize('net', [nn.Sequential(nn.Linear(3, 4), nn.RReLU(), nn.Linear(4, 2)), Noisy(3, 2).eval()])
def test_random_models_have_no_lower_bound(net):
    with pytest.raises(ValueError, match='two passes|in train mode'): lip.lip_lower(net, torch.rand(5, 3))

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_lower_bounds_of_half_precision(dtype):
    seed_all(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).to(dtype).eval()
    assert 0 < lip.lip_lower(net, torch.rand(5, 3)).lower <= lip.lip_sdp(net).upper

def test_a_lower_bound_needs_a_point():
    with pytest.raises(ValueError, match='x: got no points'): lip.lip_lower(NET, torch.zeros(0, 3))

def altered(layer, **parts):
    for name, value in parts.items(): setattr(layer, name, value)
    return layer

UNFIT = {
    'two outputs': (nn.MaxPool2d(2, return_indices=True), (1, 4, 4)),
    'eps is 0': (nn.GroupNorm(1, 1, eps=0), (1, 4, 4)),
    'eps is -1': (nn.LayerNorm(3, eps=-1), (3,)),
    'variance plus eps': (altered(nn.BatchNorm1d(3), running_var=-torch.ones(3)), (3,)),
    'running mean': (altered(nn.BatchNorm1d(3), running_mean=None), (3,)),
    'not a finite number': (nn.LeakyReLU(math.nan), (3,))}

@pytest.mark.parametrize('why', UNFIT)
def test_settings_without_a_bound_are_refused_by_name(why):
    layer, shape = UNFIT[why]
    with pytest.raises(ValueError, match=rf'layer 0 \({type(layer).__name__}\): .*{why}'):
        lip.lip_product(nn.Sequential(layer).eval(), shape)

def test_pooling_takes_lists():
    both = (nn.MaxPool2d([2, 3], [1, 2]), nn.MaxPool2d((2, 3), (1, 2))), (nn.AvgPool2d([2]), nn.AvgPool2d(2))
    for listed, plain in both:
        bounds = (lip.lip_product(nn.Sequential(m).eval(), (1, 6, 6)).upper for m in (listed, plain))
        assert len({*bounds}) == 1


# --- layers that are not quite what their class says

def test_boxes_of_layers_whose_weights_are_computed_anew():
    "As by torch's weight_norm: the same bound as with the same weights kept."
    seed_all(0)
    plain = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
    with torch.no_grad():
        plain[0].weight.copy_(torch.tensor([[-1.], [-1.]]))
        plain[0].bias.copy_(torch.tensor([1., -1.]))
        plain[2].weight.copy_(torch.tensor([[1., -1.]]))
    made = deepcopy(plain)
    nn.utils.parametrizations.weight_norm(made[0])
    ends = -2*torch.ones(1), 2*torch.ones(1)
    expected = lip.lip_box(plain, *ends).upper
    assert expected >= 1
    assert math.isclose(lip.lip_box(made, *ends).upper, expected, rel_tol=1e-6)
    assert made(ends[1][None]).allclose(plain(ends[1][None]))


def test_a_softplus_that_jumps_is_refused():
    net = nn.Sequential(nn.Linear(1, 1), nn.Softplus(threshold=1.), nn.Linear(1, 1)).eval()
    for bound in lip.lip_product, lip.lip_sdp, lip.lip_eclipse:
        with pytest.raises(ValueError, match='threshold of 20'): bound(net, (1,))
    usual = nn.Sequential(nn.Linear(1, 1), nn.Softplus(), nn.Linear(1, 1)).eval()
    assert lip.lip_sdp(usual, (1,)).upper <= lip.lip_product(usual, (1,)).upper*(1 + 1e-6)


def test_a_convolution_that_changes_what_forward_calls_is_refused():
    class Louder(nn.Conv2d):
        def _conv_forward(self, x, weight, bias): return 50*super()._conv_forward(x, weight, bias)
    net = nn.Sequential(Louder(1, 2, 3), nn.Flatten(), nn.Linear(18, 2)).eval()
    with pytest.raises(ValueError, match='Louder'): lip.lip_product(net, (1, 5, 5))
    with pytest.raises(ValueError, match='Louder'): certify(net, torch.rand(2, 1, 5, 5), torch.zeros(2).long())
