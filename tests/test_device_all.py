"""Every public function that takes a model or images takes either on any device, and answers as on the CPU."""
import copy, importlib, inspect, math, pkgutil
from dataclasses import dataclass, fields, is_dataclass, replace

import numpy as np
import pytest
import torch

import card
import robustnb
from robustnb import (
    attacks, audit, audit_page, bands, bases, budget, certify, conditions, conv_norm, corruptions, data, dct, evaluate,
    interop, kernels, layers, linear, lip_bounds, lip_exact, lip_lower, lipschitz, models, spectrum, train,
    trajectories)
from robustnb.core import seed_all

N = 40  # images


@dataclass(frozen=True)
class Given:
    "What a case gets: a model, its chain of matrices' model, images with labels; on whatever devices."
    model: torch.nn.Module    # convolutions, trained
    mlp: torch.nn.Module      # 64 inputs, one hidden layer of 6 units
    x: torch.Tensor           # float32 (N,1,8,8)
    y: torch.Tensor           # (N,)
    def put(self, model, images):
        "The same on other devices: of the models, and of the images."
        moved = dict(model=copy.deepcopy(self.model).to(model), mlp=copy.deepcopy(self.mlp).to(model))
        return replace(self, **moved, x=self.x.to(images), y=self.y.to(images))
    @property
    def first(self): return self.model[0].weight.detach()
    @property
    def flat(self): return self.x.flatten(1)
    @property
    def points(self): return self.flat[:, :2].double()


@pytest.fixture(scope='module')
def given():
    digits = data.load('digits').subset(400, N)
    seed_all(0)
    model = models.SmallCNN(in_channels=1, input_size=8, width=4)
    train.fit(model, digits, train.Config('adam', 1e-2, 4, batch_size=50), device='cpu')
    mlp = torch.nn.Sequential(torch.nn.Linear(64, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)).eval()
    return Given(model.eval(), mlp, data.to_float(digits.x_test), digits.y_test)


# The table: name -> (function of a Given, where its tensors lie: 'cpu', or the device of the 'model' or the 'images')

VAR = .05
CONDITIONS = [conditions.Gaussian(VAR, draws=2), conditions.Band(VAR, 2, 4),
              conditions.Attack('quick', 'linf', .2, n=4), conditions.Corruption('frost', 3),
              conditions.Proof('linf', .01, n=20), conditions.Proof('l2', .05, n=20)]
STILL = dict(seconds=0)  # no proof that depends on how fast the machine is


def chain(g): return [(g.mlp[i].weight.detach(), g.mlp[i].bias.detach()) for i in (0, 2)]


def small_chain(g):
    (W, b), *others = [(W.double(), b.double()) for W, b in chain(g)]
    return [(W[:, :2], b), *others]


def matrices(g): return [W.double() for W, _ in chain(g)]


def jacobian(g): return lip_lower.jacobians(g.model, g.x[:3])


def table_of(t):
    return t.drop(columns='cpu_s').astype(object).where(t.notna(), 'none').values.tolist()


def program(g):
    "A .pt2 file's program, on the device of the model."
    return copy.deepcopy(PROGRAMS[0]).to(evaluate.takes(g.model)[0])


def direction(J):
    "Found on the CPU: the sign of a singular vector is free, and another processor's may be the other one."
    return lip_lower.worst_direction(J[0].cpu()).to(J.device)


def ends(found):
    "Without the witness: where two are equally steep, either may be it."
    return found.lower, found.upper


def attack(name, **kw):
    def run(g):
        found = getattr(attacks, name)(g.model, g.x[:6], g.y[:6], eps=.08, **kw)
        return found.x_adv, found.fooled
    return run


def crown(g):
    bounds = certify.Crown(g.model, g.x[:9], 'linf', .02)
    return [*bounds.out, bounds.margins(g.y[:9])]


def _on_the_way(given):
    return trajectories.Trajectory(given.x, given.y, given.x[:5], given.y[:5], CONDITIONS[:2], [1])


CASES = {
    # evaluate
    'evaluate.logits': (lambda g: evaluate.logits(g.model, g.x), 'cpu'),
    'evaluate.logits of bytes': (lambda g: evaluate.logits(g.model, (255*g.x).byte(), batch_size=7), 'cpu'),
    'evaluate.correct': (lambda g: [evaluate.correct(g.model, g.x, g.y, k) for k in (1, 3)], 'cpu'),
    'evaluate.accuracy': (lambda g: evaluate.accuracy(g.model, g.x, g.y), 'cpu'),
    'evaluate.noise_correct': (lambda g: evaluate.noise_correct(g.model, g.x, g.y, VAR, batch_size=9), 'cpu'),
    'evaluate.noise_accuracy': (lambda g: evaluate.noise_accuracy(g.model, g.x, g.y, VAR, repeats=2), 'cpu'),
    'evaluate.noise_curve': (lambda g: evaluate.noise_curve(g.model, g.x, g.y, [0., VAR]), 'cpu'),
    'evaluate.ask': (lambda g: evaluate.ask(g.model, g.x, evaluate.takes(g.model)).detach(), 'model'),
    'evaluate.plain_tensor': (lambda g: evaluate.plain_tensor(g.x), 'images'),
    'evaluate.image_keys': (lambda g: evaluate.image_keys(g.x), 'cpu'),
    # corruptions: a number that falls between two bytes may fall to the other on a real card
    **{f'corruptions.corrupt {name}': (lambda g, name=name: corruptions.corrupt(g.x[:8], name, 3), 'images')
       for name in corruptions.NAMES},
    'corruptions.corrupt of bytes': (lambda g: corruptions.corrupt((255*g.x).byte(), 'fog', 5), 'images'),
    'corruptions.band_energy': (lambda g: corruptions.band_energy(g.x), 'cpu'),
    # bands
    'bands.band_accuracy': (lambda g: bands.band_accuracy(g.model, g.x, g.y, VAR, 4, 2, batch_size=9), 'cpu'),
    'bands.sensitivity_map': (lambda g: bands.sensitivity_map(g.model, g.x, g.y, step=4), 'cpu'),
    'bands.removed_at_test': (lambda g: bands.removed_at_test(g.model, g.x, g.y), 'cpu'),
    # spectra
    **{f'dct.{f}': (lambda g, f=f: getattr(dct, f)(g.x), 'images') for f in ('dct', 'idct', 'dct2', 'idct2')},
    'dct.check_float': (lambda g: dct.check_float(g.x.half(), 2), 'images'),
    'dct.sandwich': (lambda g: dct.sandwich(*(m.to(g.x.device) for m in (torch.ones(2, 8), g.x, torch.ones(8, 3)))),
                     'images'),
    'spectrum.confine': (lambda g: spectrum.confine(g.x, spectrum.band_masks(8)[1]), 'images'),
    'spectrum.keep': (lambda g: spectrum.keep(g.x, spectrum.band_masks(8)[3]), 'images'),
    'spectrum.filter_freq': (lambda g: spectrum.filter_freq(g.x, 30.), 'images'),
    'spectrum.mask_energy': (lambda g: spectrum.mask_energy(g.x, 30.), 'images'),
    'spectrum.filter_energy': (lambda g: spectrum.filter_energy(g.x, 30.), 'images'),
    'spectrum.energy': (lambda g: spectrum.energy(g.x), 'images'),
    'linear.from_images': (lambda g: linear.from_images(g.x, g.y).w_star, 'cpu'),
    # certify and conditions
    'certify.plain_layers': (lambda g: len(certify.plain_layers(g.model)), 'cpu'),
    'certify.check_precision': (lambda g: certify.check_precision(g.model) is None, 'cpu'),
    'certify.Crown': (crown, 'model'),
    'certify.certify_batch': (lambda g: certify.certify_batch(g.model, g.x, g.y, 'l2', .1), 'model'),
    'certify.certify': (lambda g: [certify.certify(g.model, g.x, g.y, *ball)
                                   for ball in (('linf', .01), ('l2', .1))], 'cpu'),
    'conditions.measure': (lambda g: conditions.measure(g.model, g.x, g.y, CONDITIONS), 'cpu'),
    'trajectories.Trajectory': (lambda g: _on_the_way(g)(g.model, [dict(loss=1., weight_norm=1.)])['trajectory'],
                                'cpu'),
    'conditions.Condition.hits': (lambda g: [c.hits(g.model, g.x[:9], g.y[:9]) for c in CONDITIONS[:2]], 'cpu'),
    # layers and bounds of them
    'conv_norm.conv_norm_reshaped': (lambda g: [conv_norm.conv_norm_reshaped(g.first, ord) for ord in (1, 2, math.inf)],
                                     'cpu'),
    'conv_norm.certified_psd': (lambda g: conv_norm.certified_psd(torch.eye(3).double().to(g.first.device)), 'model'),
    'conv_norm.largest_eigenvalue': (lambda g: conv_norm.largest_eigenvalue(matrices(g)[0]@matrices(g)[0].T), 'cpu'),
    'conv_norm.matrix_norm': (lambda g: [conv_norm.matrix_norm(g.first.flatten(1), ord) for ord in (1, 2, math.inf)],
                              'cpu'),
    'conv_norm.Convolution': (lambda g: conv_norm.conv_geometry(g.first, 8, 2, 1).forward(g.x.to(g.first), g.first),
                              'model'),
    'conv_norm.conv_geometry': (lambda g: list(conv_norm.conv_geometry(g.first, 8, 2, 1)), 'model'),
    'conv_norm.conv_matrix': (lambda g: conv_norm.conv_matrix(g.first, 6, 2, 1), 'model'),
    'conv_norm.conv_norm_circulant': (lambda g: conv_norm.conv_norm_circulant(g.first, 8, 1, 1), 'cpu'),
    'conv_norm.conv_norm_band': (lambda g: [conv_norm.conv_norm_band(g.first, 8, 1, 1, guess) for guess in (.1, 100.)],
                                 'cpu'),
    'conv_norm.conv_norm_certified': (lambda g: conv_norm.conv_norm_certified(g.first, 8, 1, 1), 'cpu'),
    'conv_norm.conv_norm': (lambda g: [conv_norm.conv_norm(g.first, 8, 1, 1, ord) for ord in (1, 2, math.inf)], 'cpu'),
    'conv_norm.conv_norm proven': (lambda g: conv_norm.conv_norm(g.first, 8, 1, 1, certify=True), 'cpu'),
    'layers.kind_of': (lambda g: layers.kind_of(g.model[0]).role, 'cpu'),
    'layers.role_of': (lambda g: layers.role_of(g.model[0]), 'cpu'),
    'layers.positive': (lambda g: layers.positive(g.model[0]).weight.detach(), 'model'),
    'layers.plain_copy': (lambda g: layers.plain_copy(g.model[0]).weight.detach(), 'model'),
    'layers.flux': (lambda g: layers.flux(g.model[0]), 'cpu'),
    'layers.in_flux': (lambda g: layers.in_flux(g.model[0]), 'cpu'),
    'layers.why_not': (lambda g: layers.why_not(g.model[0]), 'cpu'),
    'layers.named_layers': (lambda g: len(layers.named_layers(g.model)), 'cpu'),
    'layers.out_shape': (lambda g: layers.out_shape(g.model, (1, 8, 8)), 'cpu'),
    'layers.affine_map': (lambda g: layers.affine_map(g.model[0], (1, 8, 8)), 'cpu'),
    'lip_bounds.factor': (lambda g: len(lip_bounds.factor(g.model, (1, 8, 8)).children), 'cpu'),
    'lip_bounds.lip_product': (lambda g: [lip_bounds.lip_product(g.model, (1, 8, 8), ord, out, **STILL)
                                          for ord, out in ((1, None), (2, 3), (math.inf, (1, 2)))], 'cpu'),
    'lip_bounds.lip_product refined': (lambda g: lip_bounds.lip_product(g.model, (1, 8, 8)), 'cpu'),
    'lip_bounds.lip_product by other means': (lambda g: [lip_bounds.lip_product(g.model, (1, 8, 8), method=m)
                                                         for m in ('lanczos', 'paper')], 'cpu'),
    'lip_bounds.relu_chain': (lambda g: lip_bounds.relu_chain(g.model, (1, 8, 8), (0, 1)), 'cpu'),
    'lip_bounds.chain_apply': (lambda g: lip_bounds.chain_apply(lip_bounds.relu_chain(g.mlp), g.flat.double()), 'cpu'),
    'lip_bounds.lip_eclipse': (lambda g: [lip_bounds.lip_eclipse(g.mlp), lip_bounds.lip_eclipse(chain(g))], 'cpu'),
    'lip_bounds.lip_sdp': (lambda g: lip_bounds.lip_sdp(g.mlp, rounds=20), 'cpu'),
    'lip_bounds.unit_weights': (lambda g: lip_bounds.unit_weights(matrices(g)), 'model'),
    'lip_bounds.sdp_taus': (lambda g: lip_bounds.sdp_taus(lip_bounds.unit_weights(matrices(g))[0], rounds=5), 'model'),
    'lip_bounds.certify_taus': (lambda g: lip_bounds.certify_taus(
        (unit := lip_bounds.unit_weights(matrices(g))[0]), *lip_bounds.sdp_taus(unit, rounds=5)), 'cpu'),
    # points
    'lip_lower.chain_module': (lambda g: [p.detach() for p in lip_lower.chain_module(chain(g)).parameters()], 'cpu'),
    'lip_lower.jacobians': (lambda g: [lip_lower.jacobians(g.model, g.x[:5], out) for out in (None, 2, (0, 1))],
                            'model'),
    'lip_lower.jacobian_norms': (lambda g: [lip_lower.jacobian_norms(jacobian(g), ord) for ord in (1, 2, math.inf)],
                                 'model'),
    'lip_lower.worst_direction': (lambda g: [lip_lower.worst_direction(jacobian(g)[0], ord) for ord in (1, math.inf)],
                                  'model'),
    'lip_lower.quotient': (lambda g: lip_lower.quotient(g.model, g.x[0], direction(jacobian(g)), box=(0., 1.)),
                           'model'),
    'lip_lower.lip_lower': (lambda g: [lip_lower.lip_lower(g.model, g.x[:8], ord, box=(0., 1.), rounds=1)
                                       for ord in (1, 2, math.inf)], 'model'),
    'lip_lower.lip_lower in a ball': (lambda g: [lip_lower.lip_lower(g.model, g.x[:1], 2, (0, 1),
                                                                     ball=(g.x[0], .1, norm), rounds=1)
                                                 for norm in ('l2', 'linf')], 'model'),
    'lip_lower.stretches': (lambda g: lip_lower.stretches(g.mlp, g.flat), 'model'),
    'lip_lower.out_width': (lambda g: lip_lower.out_width(g.mlp, g.flat[0].to(evaluate.takes(g.mlp)[0])), 'cpu'),
    'lip_exact.lip_exact': (lambda g: [lip_exact.lip_exact(small_chain(g), (0., 1.), ord, **STILL)
                                       for ord in (2, math.inf)], 'cpu'),
    'lip_exact.lip_exact_shallow': (lambda g: [lip_exact.lip_exact_shallow(g.mlp, ord=ord) for ord in (1, 2, math.inf)],
                                    'cpu'),
    'lipschitz.lip_box': (lambda g: [lipschitz.lip_box(g.model, g.x[0], g.x[0] + .01, ord) for ord in (1, 2, math.inf)],
                          'cpu'),
    'lipschitz.lip_local': (lambda g: [ends(lipschitz.lip_local(g.mlp, g.flat[0], .01, norm=norm, **STILL))
                                       for norm in ('linf', 'l2')], 'cpu'),
    'lipschitz.sandwich': (lambda g: table_of(lipschitz.sandwich(g.mlp, g.flat[:5], **STILL)), 'cpu'),
    # models and images
    'models.is_hooked': (lambda g: models.is_hooked(g.model[0]), 'cpu'),
    'models.behaves_as': (lambda g: models.behaves_as(g.model[0], torch.nn.Conv2d), 'cpu'),
    'bases.first_layer': (lambda g: bases.first_layer(g.model).weight, 'model'),
    'bases.in_basis': (lambda g: evaluate.logits(
        bases.in_basis(copy.deepcopy(g.model), bases.basis('dct', 3, 3)), g.x), 'cpu'),
    'bases.in_pixels': (lambda g: bases.first_layer(bases.in_pixels(bases.in_basis(
        copy.deepcopy(g.model), bases.basis('random', 3, 3)))).weight.detach(), 'model'),
    'kernels.tangent_kernel': (lambda g: kernels.tangent_kernel(
        g.model, g.x[:5], parameter_numbers(g.model), batch_size=3), 'cpu'),
    'kernels.adam_weights': (lambda g: after_adam(g), 'cpu'),
    **{f'kernels.by_band {part}': (lambda g, part=part: kernels.by_band(
        g.model, g.x[:5], 3, parameter_numbers(g.model), part, 3), 'cpu')
       for part in kernels.PARTS},
    'kernels.step_by_band': (lambda g: kernels.step_by_band(g.model, g.x[:5], parameter_numbers(g.model), 3), 'cpu'),
    'models.save': (lambda g: saved(g), 'cpu'),
    'data.to_float': (lambda g: [data.to_float(g.x), data.to_float((255*g.x).byte())], 'cpu'),
    'data.show_images': (lambda g: len(data.show_images(g.x[:3]).axes), 'cpu'),
    'data.resize': (lambda g: data.resize((255*g.x).byte(), 5), 'cpu'),
    'interop.prepared': (lambda g: evaluate.logits(interop.prepared(g.model, [.2], [.5]), g.x), 'cpu'),
    'interop.notes_of': (lambda g: interop.notes_of(g.model), 'cpu'),
    'interop.Program': (lambda g: evaluate.logits(program(g), g.x), 'cpu'),
    'interop.layered': (lambda g: evaluate.logits(interop.layered(g.model, g.x[:1]), g.x), 'cpu'),
    'interop.as_layers': (lambda g: evaluate.logits(interop.as_layers(program(g)), g.x), 'cpu'),
    'interop.mapped': (lambda g: interop.mapped(g.y, tuple('0123456789'), list('9876543210'))[0], 'images'),
    'budget.timed': (lambda g: budget.timed(lambda part: part.sum().item(), g.x, 0.) > 0, 'cpu'),
    'budget.speed_of': (lambda g: budget.speed_of(g.model, g.x, g.y, CONDITIONS).proof > 0, 'cpu'),
    'audit.relabelling': (lambda g: audit.relabelling(g.y, g.y.roll(1), 10), 'cpu'),
    'audit.suspicions': (lambda g: audit.suspicions(9 - g.y, g.y, 10), 'cpu'),
    'audit.shuffled': (lambda g: audit.shuffled(g.x, g.y, 0), 'cpu'),
    # attacks
    'attacks.autoattack': (lambda g: (lambda ev: (ev.robust.tolist(), ev.x_adv))(attacks.autoattack(
        g.model, g.x[:4], g.y[:4], eps=.2, version='quick', progress=False)), 'images'),
    'pgd.fgsm': (attack('fgsm'), 'images'), 'pgd.pgd': (attack('pgd', steps=5, restarts=2), 'images'),
    'pgd.apgd': (attack('apgd', steps=8), 'images'), 'fab.deepfool': (attack('deepfool'), 'images'),
    'fab.fab': (attack('fab', steps=5), 'images'), 'square.square': (attack('square', queries=20), 'images'),
}

KNOWN = {}      # the CPU's answers
PROGRAMS = []  # one, exported on the CPU: the exporter does not know the pretended card


@pytest.fixture(scope='module', autouse=True)
def exported(given, tmp_path_factory):
    path = tmp_path_factory.mktemp('program')/'model.pt2'
    torch.export.save(torch.export.export(copy.deepcopy(given.model), (given.x[:2],),
                                          dynamic_shapes=({0: torch.export.Dim('n')},)), path)
    PROGRAMS[:] = [interop.Program(path)]


def saved(g):
    "A model that went through a file."
    import tempfile
    net = models.create('smallcnn', 10, 1, 8, width=4)
    net.load_state_dict(g.model.state_dict())
    net = net.to(evaluate.takes(g.model)[0])
    with tempfile.TemporaryDirectory() as folder:
        models.save(net, f'{folder}/a.safetensors')
        return list(models.load(f'{folder}/a.safetensors').state_dict().values())


def parameter_numbers(model):
    return torch.linspace(.1, 1, sum(p.numel() for p in model.parameters()))


def after_adam(g):
    "Adam's weights after a step."
    net = copy.deepcopy(g.model)
    where = evaluate.takes(g.model)
    opt = torch.optim.Adam(net.parameters())
    with torch.enable_grad(): net(g.x[:9].to(*where)).square().mean().backward()
    opt.step()
    return kernels.adam_weights(net, opt).log()


# Comparing

SECONDS = {'cpu_s', 'wall_s'}


def leaves(found):
    "Tensors, numbers and texts of an answer, but for times."
    if isinstance(found, torch.Tensor) or found is None: return [found]
    if isinstance(found, np.ndarray): return [torch.from_numpy(found)]
    if is_dataclass(found):
        return leaves([getattr(found, f.name) for f in fields(found) if f.name not in SECONDS])
    if isinstance(found, dict): return leaves([v for item in found.items() for v in item])
    if isinstance(found, (list, tuple)): return [leaf for part in found for leaf in leaves(part)]
    return [found]


def numbers(leaf): return torch.as_tensor(leaf).detach().cpu().double()


def close(a, b, real):
    """Are two answers equal on the pretended card but for the order of some sums?

    On a real one sums of a few hundred float32 (2^-24 each) differ by up to 1e-5 of the largest, and a decision,
    or a search after one, may fall otherwise for a few: half of the numbers are asked for."""
    if isinstance(a, (str, type(None))): return a == b
    a, b = numbers(a), numbers(b)
    if a.shape != b.shape: return False
    if not b.numel(): return True
    size = b.abs().nan_to_num(0, 0, 0).max().item()
    if not real: return torch.allclose(a, b, rtol=1e-6, atol=1e-6*size, equal_nan=True)
    return (a - b).abs().nan_to_num(0).median().item() <= 1e-4*(1 + size)


def lying(leaf): return leaf.device.type if isinstance(leaf, torch.Tensor) else 'cpu'


PLACES = dict(both=(True, True), model=(True, False), images=(False, True))


@pytest.fixture(autouse=True)
def short_descents(monkeypatch):
    "The pretended card is slow, and a few steps of a descent show as much as a thousand."
    whole = lip_bounds.sdp_taus
    few = lambda weights, rounds=5, **how: whole(weights, min(rounds, 5), **how)
    for module in lip_bounds, lip_exact: monkeypatch.setattr(module, 'sdp_taus', few)


@pytest.fixture
def expected(given, name):
    "The CPU's answer, made before a card is plugged in."
    if name not in KNOWN: KNOWN[name] = leaves(CASES[name][0](given.put('cpu', 'cpu')))
    return KNOWN[name]


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('moved', PLACES)
def test_any_device(given, name, expected, device, moved):
    call, where = CASES[name]
    with_model, with_images = (torch.device(device if there else 'cpu') for there in PLACES[moved])
    found = leaves(call(given.put(with_model, with_images)))
    assert len(found) == len(expected)
    for a, b in zip(found, expected): assert close(a, b, device != card.CARD), (a, b)
    places = {lying(leaf) for leaf in found if isinstance(leaf, torch.Tensor)}
    assert places <= {dict(cpu='cpu', model=with_model.type, images=with_images.type)[where]}


# Nothing is forgotten

# names of such parameters
TAKEN = {'model', 'net', 'x', 'X', 'images', 'image', 'module', 'layer', 'weight', 'weights', 'matrix', 'J', 'points'}
ELSEWHERE = dict(
    train='test_device.py', train_many='test_device.py', optim='test_device.py: its steps are those of training',
    threat='parts of attacks, which see images on the model\'s device only',
    oracle='likewise', pgd='likewise', fab='likewise',
    square='likewise', march='likewise', cascade='likewise', sweep='no tensors', cli='no tensors')
EXCEPT = {
    'attacks.minimal_norm': 'made of fab and apgd, which are in the table; '
                            'it takes half a minute on the pretended card',
    'audit.audit': 'a test of its own',
    'core.leads_on': 'a module of Python',
    'linear.log_steps': 'a number of points',
    'lip_bounds.Factor': 'what `factor` makes',
    **{f'lip_exact.{name}': 'matrices of the search, which is on the CPU'
       for name in ('envelope', 'open_piece', 'piece_maps')},
    'data.Labelled': 'what a file holds',
    'dynamics.fit_path': 'NumPy, no images',
    'dynamics.nearest_interpolator': 'likewise',
    'evaluate.eval_mode': 'changes no place',
    'evaluate.takes': 'says the place',
    'interop.Images': 'what a file holds',
    'certify.interval': 'one layer, where it and its input are',
    'layers.refuse': 'raises an error',
    'trajectories.log_spread': 'a number of points',
    'stats.Estimate': 'a number of images',
    'budget.attack_seconds': 'a number of images'}


def public():
    "(name, function) of all public functions and classes with a parameter for a model, its parts, or images."
    for found in pkgutil.iter_modules(robustnb.__path__):
        module = importlib.import_module(f'robustnb.{found.name}')
        if found.name in ELSEWHERE or module.__name__ != f'robustnb.{found.name}': continue
        for name in getattr(module, '__all__', ()):
            made = getattr(module, name)
            own = callable(made) and getattr(made, '__module__', '') == module.__name__
            if own and TAKEN & set(_parameters(made)): yield f'{found.name}.{name}'


def _parameters(made):
    try: return inspect.signature(made).parameters
    except ValueError: return ()


@pytest.mark.filterwarnings('ignore')
def test_nothing_is_forgotten():
    tried = {name.partition(' ')[0] for name in CASES}
    there = set(public())
    assert not there - tried - set(EXCEPT), 'neither in the table nor an exception'
    assert not set(EXCEPT) - there, 'no longer there'


# Audits

def files(given, folder):
    "Models on disk: (path, name, options of the architecture)."
    seed_all(0)
    deep = models.create('preactresnet18', 10, 1, 8, width=2, norm='batch').eval()
    small = models.create('smallcnn', 10, 1, 8, width=4)
    small.load_state_dict(given.model.state_dict())
    for net in small, deep:
        options = {k: v for k, v in net.made.items() if k in ('width', 'norm')}
        models.save(net, folder/f"{net.made['name']}.safetensors")
        yield folder/f"{net.made['name']}.safetensors", net.made['name'], options


@pytest.fixture
def by_no_clock(monkeypatch):
    "Bounds in an audit that do the same work on a slow machine."
    def lower(*args, rounds, seconds, **how): return lip_lower.lip_lower(*args, rounds=2, **how)
    def product(*args, seconds, **how): return lip_bounds.lip_product(*args, seconds=0, **how)
    monkeypatch.setattr(audit, 'lip_lower', lower)
    monkeypatch.setattr(audit, 'lip_product', product)


def audited(path, name, options, given, where):
    model = interop.prepared(interop.load_model(path, name, 1, 8, **options), [.1], [.9])
    wanted = [conditions.Gaussian(VAR), conditions.Band(VAR, 1, 4), conditions.Attack('quick', 'linf', .2, n=2)]
    return audit.audit(model, given.x[:12], given.y[:12], conditions=wanted, lipschitz=20, device=where, progress=False)


def test_audits(given, by_no_clock, device, tmp_path):
    where = 'card' if device == card.CARD else 'cuda'
    for file in files(given, tmp_path):
        ours, theirs = (audited(*file, given, place) for place in (where, 'cpu'))
        for a, b in zip(ours.rows, theirs.rows, strict=True):
            assert (a['metric'], a.get('kind'), a['n']) == (b['metric'], b.get('kind'), b['n'])
            # the search of a lower bound, and one image of 2, may go another way on a real card
            near = dict(rel_tol=1e-4) if device == card.CARD else dict(rel_tol=.05, abs_tol=.5)
            assert math.isclose(a['value'], b['value'], **near), (a, b)
        page = audit_page.save(ours, tmp_path/f'{file[1]}-page')
        assert str(device) in (page.parent/'audit.json').read_text() and 'Robustness' in page.read_text()


def test_products_are_exact_where_numbers_are_made(given):
    "On a card products may be of TF32, of 11 bits, unless it is told otherwise; here only the telling can be seen."
    seen = []
    class Looks(torch.nn.Module):
        def forward(self, x):
            seen.append(torch.backends.cudnn.conv.fp32_precision)
            return x.flatten(1)[:, :10]*3
    before = torch.backends.cudnn.conv.fp32_precision
    model = Looks().eval()
    x, y = given.x[:2], given.y[:2]
    evaluate.logits(model, x)
    bands.band_accuracy(model, x, y, VAR, 1, 1)
    lip_lower.jacobians(model, x)
    lip_lower.lip_lower(model, x, rounds=1)
    conditions.measure(model, x, y, [conditions.Attack('quick', 'linf', .01)])
    attacks.pgd(model, x, y, steps=1)
    assert set(seen) == {'ieee'} and torch.backends.cudnn.conv.fp32_precision == before
