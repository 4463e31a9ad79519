"""What the attack chapters cannot show in seconds.

That is processes killed, several processes, global state, and equality with pyautoattack.

The published code's defects that robustnb must not have are tests here or cells in 10a to 10f:
index error with few classes, global generators replaced, gradients left on weights, train mode accepted,
results that depend on batch size or order, images outside [0,1] clamped without a word,
probabilities, NaN and random models accepted, resume only between attacks, half precision unsupported.
"""
import copy, io, logging, os, random, signal, subprocess, sys, time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.testing import assert_close

from robustnb import attacks, conditions, data, evaluate, fab, models, square, train
from robustnb.core import generator, seed_all
from robustnb.oracle import Oracle, check_model
from robustnb.threat import distance

ROOT = Path(__file__).resolve().parents[1]
NORMS = dict(linf=(.1, 4/255), l2=(.5, .3))  # radius for digits, for FashionMNIST


@pytest.fixture(scope='module')
def digits():
    "A small CNN on 8x8 digits, 40 test images and labels."
    seed_all(0)
    images = data.load('digits')
    net = train.fit(models.SmallCNN(width=4), images, train.Config('adam', .005, 5, 64), device='cpu').model
    return net, data.to_float(images.x_test[:40]), images.y_test[:40]

def official(net, x, y, norm, eps, seed):
    "Survivors after each of pyautoattack's attacks, and its robust flags."
    from pyautoattack import AutoAttack
    log = logging.getLogger('auto-attack')
    counts = {}
    def count(record):
        "Of 'robust accuracy after ATTACK: NN.NN% ...' the images that are left."
        said = record.getMessage()
        if not said.startswith('robust accuracy after'): return
        words = said.split()
        attack = words[3][:-1].lower()
        percent = words[4][:-1]
        counts[attack] = round(float(percent)*len(x)/100)
    handler = logging.Handler()
    handler.emit = count
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    try:
        with redirect_stdout(io.StringIO()):
            attack = AutoAttack(net, norm=dict(linf='Linf', l2='L2')[norm], eps=eps, seed=seed, version='standard')
            _, label = attack.run_standard_evaluation(x, y, batch_size=250)
    finally: log.removeHandler(handler)
    return counts, label == y


def everything(net):
    "The state an attack has no business to touch."
    return dict(
        torch=torch.get_rng_state().tolist(), numpy=np.random.get_state()[1].tolist(), python=random.getstate(),
        grad_mode=torch.is_grad_enabled(), threads=torch.get_num_threads(), dtype=torch.get_default_dtype(),
        grads=[p.grad for p in net.parameters()], frozen=[p.requires_grad for p in net.parameters()],
        modes=[m.training for m in net.modules()],
        weights=[(v.tolist(), v.stride()) for v in net.state_dict().values()])

@pytest.mark.parametrize('norm', NORMS)
def test_nothing_global_is_touched(digits, norm):
    net, x, y = digits
    kept = x.clone()
    before = everything(net)
    attacks.autoattack(net, x[:8], y[:8], norm, .2, progress=False, certify=True)
    for attack in (attacks.fgsm, attacks.pgd, attacks.apgd, attacks.fab, attacks.deepfool):
        attack(net, x[:8], y[:8], norm, .2)
    after = everything(net)
    for what in before: assert before[what] == after[what], what
    assert torch.equal(x, kept)

@pytest.mark.parametrize('norm', NORMS)
def test_batch_size_and_order_do_not_matter(digits, norm):
    net, x, y = digits
    order = torch.randperm(len(x), generator=generator(0, 'order'))
    eps = NORMS[norm][0]
    for attack in (attacks.pgd, attacks.apgd, attacks.square):
        one = attack(net, x, y, norm, eps)
        two = attack(net, x[order], y[order], norm, eps, batch_size=7)
        assert (one.fooled[order] == two.fooled).float().mean() >= 1 - 1/40
        same = (one.x_adv[order] - two.x_adv).flatten(1).abs().amax(1) < 1e-4
        assert same.float().mean() > .8  # the draws are the same; a late rounding difference may lead a path elsewhere

def test_seed_changes_the_draws(digits):
    net, x, y = digits
    one, two, again = (attacks.apgd(net, x, y, 'linf', .05, seed=s).x_adv for s in (0, 1, 0))
    assert torch.equal(one, again) and not torch.equal(one, two)

@pytest.mark.parametrize('norm', NORMS)
def test_several_processes_give_the_same(digits, norm):
    net, x, y = digits
    eps = NORMS[norm][0]
    alone = attacks.autoattack(net, x[:13], y[:13], norm, eps, progress=False)
    shared = attacks.autoattack(net, x[:13], y[:13], norm, eps, progress=False, workers=2)
    assert torch.equal(alone.robust, shared.robust)
    assert alone.survivors == shared.survivors
    assert shared.passes['apgd-t']['gradient'] > 0
    assert shared.cpu_s['square'] > 0

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_models(digits, dtype):
    net, x, y = digits
    half = copy.deepcopy(net).to(dtype)
    ev = attacks.autoattack(half, x[:10], y[:10], 'linf', .1, 'quick', progress=False)
    assert torch.equal(half(ev.x_adv.to(dtype)).argmax(1) == y[:10], ev.robust)
    assert ev.x_adv.dtype == torch.float32 and distance(ev.x_adv, x[:10], 'linf').max() <= .1 + 1e-6

def test_half_precision_may_add_up_in_another_order_for_another_batch(digits):
    "As a GPU's kernels do; that is no model whose answers depend on the rest of the batch."
    _, x, y = digits
    class Halves(nn.Linear):
        def forward(self, x):
            x = x.flatten(1)
            if len(x) > 1: return super().forward(x)
            left, right = (nn.functional.linear(part, w) for part, w in zip(x.split(32, 1), self.weight.split(32, 1)))
            return left + right + self.bias
    seed_all(0)
    model = Halves(64, 10).bfloat16().eval()
    images = x[:32].bfloat16()
    z, alone = model(images), model(images[:1])
    assert (alone - z[:1]).abs().max() > 1e-3*z.abs().max()
    assert check_model(model, images, y[:32]) == 10

def test_autocast_around_does_not_matter(digits):
    net, x, y = digits
    plain = attacks.autoattack(net, x, y, 'linf', .1, 'quick', progress=False)
    with torch.autocast('cpu', torch.bfloat16):
        inside = attacks.autoattack(net, x, y, 'linf', .1, 'quick', progress=False)
    assert torch.equal(plain.x_adv, inside.x_adv)

def test_dropout_and_batch_norm_in_train_mode_are_refused(digits):
    _, x, y = digits
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10)).eval()
    net[2].train()
    with pytest.raises(ValueError, match='model: 2 is in train mode'): attacks.autoattack(net, x, y)

def test_square_attacks_what_has_no_gradient(digits):
    net, x, y = digits
    with pytest.raises(ValueError, match='no gradient'):
        attacks.apgd(rounded_detached(net), x, y, 'linf', .2)
    flat = attacks.square(rounded_detached(net), x, y, 'linf', .2, queries=1000)
    assert flat.fooled.float().mean() > .5

def rounded_detached(net): return lambda x: net((x*255).round()/255).detach()


class EveryQuery(square.Stripes):
    "linf proposals that ask every question, known or not."
    def propose(self, size, at):
        self.before = torch.full_like(self.before, -1)
        return super().propose(size, at)

def test_square_skips_only_what_is_known():
    """With whole-number weights and grey levels all sums are exact.

    So asking everything must give exactly the same images."""
    g = generator(0, 'whole')
    net = nn.Sequential(nn.Flatten(), nn.Linear(2*12*12, 24, bias=False), nn.ReLU(),
                        nn.Linear(24, 4, bias=False)).eval()
    with torch.no_grad():
        for p in net.parameters(): p.copy_(torch.randint(-3, 4, p.shape, generator=g))
    x = torch.randint(0, 257, (20, 2, 12, 12), generator=g)/256
    y = net(x).argmax(1)
    nets = Oracle(net, x, y), Oracle(net, x, y)
    kept, square.Stripes = square.Stripes, EveryQuery
    try: all_asked = square.square(nets[0], x, y, 'linf', 4/256, queries=3000)
    finally: square.Stripes = kept
    skipping = square.square(nets[1], x, y, 'linf', 4/256, queries=3000)
    assert torch.equal(all_asked.x_adv, skipping.x_adv) and torch.equal(all_asked.fooled, skipping.fooled)
    assert 0 < all_asked.fooled.sum() < 20
    assert nets[1].passes['forward'] < .95*nets[0].passes['forward']


@settings(deadline=None, derandomize=True, max_examples=60)
@given(seed=st.integers(0, 10**6), d=st.integers(1, 40), far=st.floats(0, 1.3),
       norm=st.sampled_from(['linf', 'l2']), grid=st.booleans())
def test_hyperplane_step(seed, d, far, norm, grid):
    """On the hyperplane where it can be reached, in the box, and no longer than a bisection says.

    The bisection finds the multiplier in float64."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(5, d, generator=g)
    w = torch.randn(5, d, generator=g)
    if grid:
        x = x.round()
        w = (w*2).round()/2
    sign = torch.randint(0, 2, (5,), generator=g)*2. - 1
    room = torch.where(sign[:, None]*w < 0, 1 - x, x)*(w != 0)
    reach = (w.abs()*room).sum(1)
    c = sign*reach*far
    step = fab.hyperplane_step(x, w, c, norm)
    assert (x + step).min() >= -1e-6 and (x + step).max() <= 1 + 1e-6
    X, W, C, R = x.double(), w.double(), c.double().abs(), room.double()
    low, high = torch.zeros(5).double(), torch.full((5,), 1e6).double()
    move = lambda lam: torch.minimum(lam[:, None]*(W.abs() if norm == 'l2' else torch.ones_like(W)), R)
    for _ in range(200):
        middle = (low + high)/2
        short = (W.abs()*move(middle)).sum(1) < C
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    expected = move(high if far <= 1 else torch.full((5,), 1e6).double())
    assert_close(step.abs().double()*(W != 0), expected*(W != 0)*(C[:, None] > 0), rtol=1e-3, atol=2e-5)
    if far <= .999: assert_close((w*step).sum(1), -c, rtol=1e-4, atol=1e-5)

@pytest.mark.parametrize('norm', NORMS)
def test_hyperplane_step_is_the_published_projection(norm):
    projections = pytest.importorskip('pyautoattack.fab_projections')
    g = generator(0, 'published')
    x = torch.rand(200, 784, generator=g)
    w = torch.randn(200, 784, generator=g)
    x[:, ::3] = x[:, ::3].round()
    c = torch.randn(200, generator=g)*5
    theirs = dict(linf=projections.projection_linf, l2=projections.projection_l2)[norm](x, w, (w*x).sum(1) - c)
    assert_close(fab.hyperplane_step(x, w, c, norm), theirs, rtol=0, atol=2e-6)


KILLED = '''
import sys, torch
from robustnb import attacks, cascade
torch.set_num_threads(1)
net, x, y = torch.load(sys.argv[1], weights_only=False)
assert cascade.SavedState.every
cascade.SavedState.every = 0.
ev = attacks.autoattack(net, x, y, 'linf', .1, progress=False, state=sys.argv[2])
torch.save((ev.by, ev.x_adv), sys.argv[3])
'''

def test_killed_and_resumed(digits, tmp_path):
    "SIGKILL in mid-evaluation, three times; the result is that of an undisturbed run."
    net, x, y = digits
    work, state, result = (tmp_path/name for name in ('work.pt', 'state.safetensors', 'result.pt'))
    torch.save((net, x, y), work)
    command = [sys.executable, '-c', KILLED, *map(str, (work, state, result))]
    start = lambda: subprocess.Popen(command, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    waiting = lambda: not state.exists() or state.stat().st_mtime_ns == seen
    seen = 0
    for _ in range(3):
        process = start()
        while process.poll() is None and waiting(): time.sleep(.02)
        time.sleep(.3)
        if process.poll() is None: process.send_signal(signal.SIGKILL)
        process.wait()
        assert state.exists()
        seen = state.stat().st_mtime_ns
    assert not result.exists() or seen
    assert start().wait() == 0
    by, x_adv = torch.load(result)
    whole = attacks.autoattack(net, x, y, 'linf', .1, progress=False)
    assert torch.equal(by < 0, whole.by < 0) and (by == whole.by).float().mean() > .9


@pytest.fixture(scope='module')
def fashion():
    "The small CNN, trained by SGD and by Adam on FashionMNIST, and 200 test images."
    try: images = data.load('fashionmnist')
    except FileNotFoundError as e: pytest.skip(f'no FashionMNIST: {e}')
    nets = {}
    for name, lr in ('sgd', .1), ('adam', 1e-3):
        seed_all(0)
        net = nn.Sequential(nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
                            nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10))
        nets[name] = train.fit(net, images, train.Config(name, lr, 3), device='cpu').model
    return nets, data.to_float(images.x_test[:200]), images.y_test[:200]

@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('optimizer', ['sgd', 'adam'])
def test_survivors_are_those_of_pyautoattack(fashion, optimizer, norm, seed):
    nets, x, y = fashion
    net = nets[optimizer]
    eps = NORMS[norm][1]
    counts, robust = official(net, x, y, norm, eps, seed)
    ev = attacks.autoattack(net, x, y, norm, eps, seed=seed, progress=False)
    assert set(counts) == set(attacks.ATTACKS['standard'])
    for attack, n in counts.items():
        assert abs(ev.survivors[attack] - n) <= 1, (attack, ev.survivors, counts)
    assert (ev.robust != robust).sum() <= 1

@pytest.mark.slow
@pytest.mark.parametrize('optimizer', ['sgd', 'adam'])
def test_proofs_change_no_verdict(fashion, optimizer):
    nets, x, y = fashion
    attack = lambda certify: attacks.autoattack(nets[optimizer], x, y, 'linf', 4/255, certify=certify, progress=False)
    plain, proved = attack(False), attack(True)
    assert torch.equal(plain.robust, proved.robust)
    assert 0 < proved.certified.sum() <= plain.robust.sum() and not (proved.certified & ~plain.robust).any()

def test_digits_survivors_are_those_of_pyautoattack(digits):
    pytest.importorskip('pyautoattack')
    net, x, y = digits
    for norm, (eps, _) in NORMS.items():
        counts, robust = official(net, x, y, norm, eps, 0)
        ev = attacks.autoattack(net, x, y, norm, eps, progress=False)
        assert all(abs(ev.survivors[a] - n) <= 1 for a, n in counts.items()) and (ev.robust != robust).sum() <= 1


# ---- one rule for a right answer

@pytest.mark.parametrize('norm, eps', [('linf', .1), ('l2', 1.)])
def test_logits_that_are_not_finite_are_a_wrong_answer_to_every_attack(norm, eps):
    def overflows(x):
        "Class 0 everywhere, less surely the brighter the image is; and no finite logits for those that are too bright."
        bright = x.flatten(1).mean(1)
        z = torch.stack([1 - bright, *[torch.zeros_like(bright)]*3], 1)
        return z.masked_fill((bright > .55)[:, None], torch.nan)
    x = torch.full((3, 1, 8, 8), .5)
    y = torch.zeros(3, dtype=torch.long)
    for attack in attacks.pgd, attacks.apgd, attacks.fab, attacks.square:
        assert attack(overflows, x, y, norm, eps).fooled.all(), attack
    assert attacks.deepfool(overflows, x, y, norm).fooled.all()
    assert not attacks.autoattack(overflows, x, y, norm, eps, 'quick', progress=False).robust.any()


# --- who asks, and how

def every_attack(net, x, y):
    "Results of all attacks, each with its doubts."
    with_gradient = attacks.fgsm, attacks.pgd, attacks.apgd, attacks.deepfool, attacks.fab
    return {**{attack.__name__: attack(net, x, y, 'linf', .1) for attack in with_gradient},
            'square': attacks.square(net, x, y, 'linf', .1, queries=50),
            'minimal_norm': attacks.minimal_norm(net, x, y, 'linf', 1),
            'autoattack': attacks.autoattack(net, x, y, 'linf', .1, 'quick', progress=False)}

def test_inference_mode_and_images_with_a_gradient_change_nothing(digits):
    net, x, y = digits
    x, y = x[:8], y[:8]
    usual = every_attack(net, x, y)
    with torch.inference_mode(): inside = every_attack(net, x.clone(), y.clone())
    wanting = every_attack(net, x.clone().requires_grad_(), y)
    with torch.inference_mode(): made_inside = copy.deepcopy(net)
    for others in inside, wanting, every_attack(made_inside, x, y):
        for name, found in others.items():
            assert torch.equal(found.x_adv, usual[name].x_adv), name
            assert not found.x_adv.requires_grad

class Rounds(nn.Module):
    "Rounds images to five grey levels: no gradient anywhere."
    def forward(self, x): return (4*x).round()/4

class Saturates(nn.Module):
    "Logits of -1 and 4 only, as a sigmoid on large numbers gives them."
    def forward(self, z): return 5*(1e4*(z - z.amax(1, keepdim=True) + 1e-3)).sigmoid() - 1

class Faint(nn.Module):
    "Logits so small that their gradients cannot be followed."
    def forward(self, z): return 1e-20*z

@pytest.mark.filterwarnings('ignore:.*vanished')
@pytest.mark.parametrize('mask', ['rounds', 'saturates', 'faint'])
def test_every_attack_that_sees_no_gradient_says_so(digits, mask):
    net, x, y = digits
    kinds = dict(rounds=nn.Sequential(Rounds(), net), saturates=nn.Sequential(net, Saturates()),
                 faint=nn.Sequential(net, Faint()))
    masked = kinds[mask].eval()
    right = masked(x).argmax(1) == y
    assert right.sum() > 20
    for name, found in every_attack(masked, x[right], y[right]).items():
        seeing = ('square', 'autoattack') if mask == 'faint' else ('square',)  # dlr measures logits by their own scale
        if name not in seeing: assert found.doubts and 'vanished' in found.doubts[0], name
    for name, found in every_attack(net, x[right], y[right]).items():
        assert found.doubts == (), name

class Straight(nn.Module):
    "Rounds to so many steps, and passes the gradient straight through."
    def __init__(self, steps):
        super().__init__()
        self.steps = steps
    def forward(self, x): return x + ((self.steps*x).round()/self.steps - x).detach()

class Partly(nn.Module):
    "Keeps most of its input from the gradient."
    def forward(self, x): return .8*x.detach() + .2*x

@pytest.mark.filterwarnings('ignore:.*a small step', 'ignore:.*square')
@pytest.mark.parametrize('mask', ['rounds', 'rounds logits', 'detached', 'one image', 'half precision'])
def test_every_attack_whose_gradients_mislead_says_so(digits, mask):
    net, x, y = digits
    first = dict(detached=Partly()).get(mask, Straight(4))
    masked = nn.Sequential(net, Straight(1)) if mask == 'rounds logits' else nn.Sequential(first, net)
    if mask == 'half precision': net, masked = (copy.deepcopy(m).bfloat16() for m in (net, masked))
    dtype = next(net.parameters()).dtype
    n = 1 if mask == 'one image' else 12
    right = (masked.eval()(x.to(dtype)).argmax(1) == y).nonzero()[:n, 0]
    for name, found in every_attack(masked, x[right], y[right]).items():
        assert name == 'square' or any('a small step' in doubt for doubt in found.doubts), name
    for name, found in every_attack(net, x[right], y[right]).items():
        assert found.doubts == (), name

@pytest.mark.filterwarnings('ignore:.*a small step')
def test_what_a_state_knows_of_gradients_outlives_a_break(digits, tmp_path):
    net, x, y = digits
    masked = nn.Sequential(Straight(4), net).eval()
    attack = lambda **kw: attacks.autoattack(masked, x[:8], y[:8], 'linf', .05, 'quick', progress=False, **kw)
    first = attack(state=tmp_path/'state')
    again = attack(state=tmp_path/'state')
    shared = attack(workers=2)
    assert first.doubts == again.doubts
    assert 'a small step' in first.doubts[0]
    assert 'a small step' in shared.doubts[0]

@pytest.mark.parametrize('kind', ['hot', 'cold', 'clamps', 'smooth', 'double', 'bfloat16'])
def test_honest_gradients_raise_no_doubt(digits, kind):
    net, x, y = digits
    class Scaled(nn.Module):
        def __init__(self, by):
            super().__init__()
            self.by = by
        def forward(self, z): return self.by*z
    class Clamped(nn.Module):
        def forward(self, x): return x.clamp(0, 1)
    smooth = copy.deepcopy(net)
    for parent in smooth.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU): setattr(parent, name, nn.GELU().eval())
    kinds = dict(hot=nn.Sequential(net, Scaled(1e4)), cold=nn.Sequential(net, Scaled(1e-4)),
                 clamps=nn.Sequential(Clamped(), net), smooth=smooth,
                 double=copy.deepcopy(net).double(), bfloat16=copy.deepcopy(net).bfloat16())
    model = kinds[kind].eval()
    for attack in attacks.fgsm, attacks.deepfool, attacks.fab:
        for n in 1, 40:
            doubts = attack(model, x[:n], y[:n]).doubts
            assert not any('a small step' in doubt for doubt in doubts), (attack.__name__, n)

def test_a_doubt_is_a_field_of_the_row(digits):
    net, x, y = digits
    asked = [conditions.Attack('quick', 'linf', eps) for eps in (.05, .1)]
    with pytest.warns(UserWarning, match='vanished'):
        rows = conditions.measure(nn.Sequential(Rounds(), net).eval(), x, y, asked)[1:]
    assert len(rows) == 2 and all('dlr_targeted' in r['doubt'] for r in rows)
    assert not any('doubt' in r for r in conditions.measure(net, x, y, asked[:1]))

@pytest.mark.parametrize('other', ['gain', 'activation', 'callable'])
def test_a_state_belongs_to_a_function_not_to_weights(digits, tmp_path, other):
    net, x, y = digits
    x, y = x[:8], y[:8]
    path = tmp_path/'state'
    class Scaled(nn.Module):
        gain = 1.
        def __init__(self):
            super().__init__()
            self.net = net
        def forward(self, x): return self.net((x - .1)*self.gain)
    model = Scaled().eval()
    if other == 'callable': model = model.forward
    attack = lambda model: attacks.autoattack(model, x, y, 'linf', .1, 'quick', state=path, progress=False)
    first = attack(model)
    assert torch.equal(attack(model).by, first.by)  # its own state it does accept
    if other == 'gain': model.gain = .97
    elif other == 'callable':
        Scaled.gain = .97
    else:
        model = copy.deepcopy(model)
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.ReLU): setattr(parent, name, nn.LeakyReLU(.1).eval())
    with pytest.raises(ValueError, match='other logits'): attack(model)

def test_a_failing_model_is_not_called_a_wrong_size(digits):
    net, x, y = digits
    with pytest.raises(ValueError, match='cannot take images of 1x4x8 .*such as 1x8x8'):
        attacks.fgsm(net, x[:, :, :4], y)
    with pytest.raises(ValueError, match='cannot take images of 3x8x8 .*such as 1x8x8'):
        attacks.fgsm(net, x.expand(-1, 3, -1, -1), y)
    errors = RuntimeError('size of the pipe'), TypeError('no'), IndexError('shape'), torch.OutOfMemoryError('too large')
    for error in errors:
        def fails(x): raise error
        with pytest.raises(ValueError) as raised: attacks.fgsm(fails, x, y)
        assert str(raised.value).startswith('model: failed on') and str(error) in str(raised.value)

def test_a_state_of_a_model_with_more_than_tensors(digits, tmp_path):
    net, x, y = digits
    class Noted(nn.Sequential):
        def get_extra_state(self): return {'version': 2}
        def set_extra_state(self, state): pass
    model = Noted(net).eval()
    def attacked():
        return attacks.autoattack(model, x[:4], y[:4], 'linf', .1, 'quick', state=tmp_path/'state', progress=False)
    first, again = attacked(), attacked()
    assert torch.equal(first.by, again.by)

def test_complex_logits_and_labels_that_are_no_numbers_of_classes(digits):
    net, x, y = digits
    for ask in attacks.fgsm, evaluate.accuracy:
        with pytest.raises(ValueError, match='complex64'):
            ask(nn.Sequential(net, Imaginary()).eval(), x, y)
    for wrong in y + .5, y.float(), y.bool():
        with pytest.raises(ValueError, match=f'y: got labels of {wrong.dtype}, accepted: whole numbers'):
            evaluate.accuracy(net, x, wrong)
    assert evaluate.accuracy(net, x, y.int()) == evaluate.accuracy(net, x, y) > .5

class Imaginary(nn.Module):
    def forward(self, z): return z + 0j


# --- the nearest misclassified image

def shares(net, x, y, norm, peers):
    "Where `minimal_norm` is no farther than each of foolbox's attacks but for rounding, and both means."
    foolbox = pytest.importorskip('foolbox')
    right = net(x).argmax(1) == y
    x, y = x[right], y[right]
    near = attacks.minimal_norm(net, x, y, norm)
    assert (net(near.x_adv).argmax(1) != y).all()
    assert near.x_adv.min() >= 0
    assert near.x_adv.max() <= 1
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device='cpu')
    for name, options in peers:
        x_adv, _, found = getattr(foolbox.attacks, name)(**options)(model, x, y, epsilons=None)
        theirs = distance(x_adv, x, norm).masked_fill(~found, torch.inf)
        yield (near.radius <= theirs*(1 + 1e-5) + 1e-7).float().mean(), near.radius.mean(), theirs.mean()

FOOLBOX = dict(
    l2=[('DDNAttack', {}), ('DDNAttack', dict(steps=1000)), ('L2CarliniWagnerAttack', dict(steps=1000)),
        ('L2FMNAttack', {})],
    linf=[('LInfFMNAttack', {})])

@pytest.mark.slow
@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('optimizer, rows', [('sgd', slice(60)), ('adam', slice(60, 120))])
def test_minimal_norm_is_nearer_than_foolbox(fashion, norm, optimizer, rows):
    nets, x, y = fashion
    for share, ours, theirs in shares(nets[optimizer], x[rows], y[rows], norm, FOOLBOX[norm]):
        assert share >= .9 and ours < theirs

@pytest.mark.slow
@pytest.mark.parametrize('norm', NORMS)
def test_minimal_norm_is_nearer_than_foolbox_on_digits(digits, norm):
    for share, ours, theirs in shares(*digits, norm, FOOLBOX[norm]):
        assert share >= .9
        assert ours < theirs
