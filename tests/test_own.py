"One's own: optimizers of every kind, networks, data sets, by module:Name."
import importlib, itertools, json, os, shutil, subprocess, sys
from dataclasses import asdict
from pathlib import Path

import numpy as np, pytest, torch
from PIL import Image

from robustnb import conditions, data, models, optim, results, sweep, train
from robustnb.core import code_digest

ROOT = Path(__file__).parent.parent

MODULE = '''
import torch
from torch import nn
from robustnb import data

class Plain(torch.optim.Optimizer):
    "Step after the backward pass, without a closure."
    def __init__(self, params, lr): super().__init__(params, dict(lr=lr))
    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group['params']: p -= group['lr']*p.grad

class Deaf(Plain):
    "Takes a closure and never calls it."
    def step(self, closure=None): super().step()

class Mute(Plain):
    "Calls its closure inside no_grad, and returns nothing."
    @torch.no_grad()
    def step(self, closure):
        closure()
        Plain.step(self)

class Sharp(torch.optim.Optimizer):
    "SAM around momentum, as its authors' code."
    def __init__(self, params, lr, rho=.05):
        super().__init__(params, dict(lr=lr, rho=rho))
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr, momentum=.9)
        self.param_groups = self.base_optimizer.param_groups
    @torch.no_grad()
    def first_step(self):
        norm = torch.stack([p.grad.norm() for g in self.param_groups for p in g['params']]).norm()
        for group in self.param_groups:
            for p in group['params']:
                self.state[p]['old'] = p.clone()
                p += group['rho']*p.grad/norm
    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for p in group['params']: p.copy_(self.state[p]['old'])
        self.base_optimizer.step()
    def step(self, closure): raise RuntimeError('asks twice')

class Averaging(torch.optim.Optimizer):
    "Evaluates at the mean of all weights so far, steps from the last ones."
    def __init__(self, params, lr): super().__init__(params, dict(lr=lr, k=0, train_mode=False))
    def swap(self):
        for group in self.param_groups:
            for p in group['params']:
                if 'other' in self.state[p]: p.data, self.state[p]['other'] = self.state[p]['other'], p.data
    def train(self): self.mode(True)
    def eval(self): self.mode(False)
    def mode(self, training):
        if self.param_groups[0]['train_mode'] != training: self.swap()
        for group in self.param_groups: group['train_mode'] = training
    @torch.no_grad()
    def step(self, closure=None):
        if not self.param_groups[0]['train_mode']: raise RuntimeError('not in train mode')
        with torch.enable_grad(): loss = closure()
        for group in self.param_groups:
            group['k'] += 1
            for p in group['params']:
                p -= group['lr']*p.grad
                mean = self.state[p].setdefault('other', p.clone())
                mean += (p - mean)/group['k']
        return loss

def halved(params, lr): return torch.optim.SGD(params, lr/2)
def greedy(params, lr): return torch.optim.LBFGS(params, lr)
def nothing(params, lr): pass
def needy(params, lr, base): return base(params, lr)
def mean(params, lr): return 1/0
number = 3

class Wide(nn.Sequential):
    def __init__(self, n_classes, in_channels, width=8):
        super().__init__(nn.Conv2d(in_channels, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, n_classes))

def fixed(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
def digits(n=100): return data.load('digits').subset(n, 40)
'''
GOOD = 'Plain Deaf Mute Sharp Averaging halved'.split()


@pytest.fixture
def lab(tmp_path, monkeypatch):
    "Name of an importable module with the definitions above."
    name = f'lab{next(itertools.count(len(list(sys.modules))))}'
    (tmp_path/f'{name}.py').write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield name
    sys.modules.pop(name, None)


def trained(optimizer, epochs=3, images=None, **kw):
    "A fit on a few digits."
    torch.manual_seed(0)
    config = train.Config(optimizer, lr=.1, epochs=epochs, batch_size=50, schedule='constant')
    net = models.SmallCNN(in_channels=1, input_size=8)
    return train.fit(net, images or data.load('digits').subset(200, 50), config, 'cpu', **kw)


def weights(fit): return torch.cat([p.detach().flatten() for p in fit.model.parameters()])


def test_those_without_closures_and_without_enable_grad_train_as_plain_descent_does(lab):
    expected = weights(trained('sgd'))
    for name in 'Plain', 'Deaf', 'Mute':
        torch.testing.assert_close(weights(trained(f'{lab}:{name}')), expected, rtol=1e-5, atol=1e-6)


def test_groups_keep_the_rates_that_a_function_gives_them(lab):
    def half(name, lr):
        torch.manual_seed(0)
        net = models.SmallCNN(in_channels=1, input_size=8)
        config = train.Config(name, lr=lr, epochs=4, batch_size=50)  # the rate falls tenfold on the way
        return weights(train.fit(net, data.load('digits').subset(200, 50), config, 'cpu'))
    torch.testing.assert_close(half(f'{lab}:halved', .2), half('sgd', .1), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(half(f'{lab}:halved', .1), half('sgd', .1))


@pytest.mark.parametrize('name', GOOD)
def test_the_class_and_its_name_are_one_config_of_json(lab, name):
    thing = getattr(importlib.import_module(lab), name)
    by_class = train.Config(thing, lr=.1)
    by_name = train.Config(f'{lab}:{name}', lr=.1)
    assert by_class == by_name and json.loads(json.dumps(asdict(by_class)))['optimizer'] == f'{lab}:{name}'


@pytest.mark.parametrize('name', GOOD)
def test_a_resumed_run_is_the_same_to_the_bit(lab, name, tmp_path):
    whole = trained(f'{lab}:{name}', epochs=4)
    path = tmp_path/'run.safetensors'
    class Killed(Exception): pass
    def kill(model, curves):
        if len(curves) == 2: raise Killed
    with pytest.raises(Killed): trained(f'{lab}:{name}', epochs=4, checkpoint=path, on_epoch=kill)
    again = trained(f'{lab}:{name}', epochs=4, checkpoint=path)
    assert again.resumed == 2 and again.curves == whole.curves
    assert torch.equal(weights(again), weights(whole))


def test_a_two_step_one_takes_the_gradient_uphill(lab):
    w = torch.nn.Parameter(torch.tensor([1., 0]))
    opt = optim.create(f'{lab}:Sharp', [w], .1, rho=.5)
    def closure():
        opt.zero_grad()
        (loss := (w**2).sum()).backward()
        return loss
    assert optim.step(opt, closure).item() == 1
    torch.testing.assert_close(w.detach(), torch.tensor([1 - .1*2*1.5, 0]))  # the gradient at 1 + rho


def test_evaluations_checkpoints_and_the_end_see_the_averaged_weights(lab, tmp_path):
    seen = []
    path = tmp_path/'run.safetensors'
    def look(model, curves):
        seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        return {}
    fit = trained(f'{lab}:Averaging', epochs=2, checkpoint=path, record=look)
    torch.manual_seed(0)
    net = models.SmallCNN(in_channels=1, input_size=8)
    plain = trained('sgd', epochs=2)
    walked = []
    # by hand: the mean of what plain descent visits, step by step
    images = data.load('digits').subset(200, 50)
    opt = torch.optim.SGD(net.parameters(), .1)
    from robustnb.core import generator
    for epoch in range(2):
        for index in torch.randperm(200, generator=generator(0, 'order', epoch)).split(50):
            opt.zero_grad()
            logits = net(data.to_float(images.x_train[index]))
            torch.nn.functional.cross_entropy(logits, images.y_train[index]).backward()
            opt.step()
            walked.append(torch.cat([p.detach().flatten().clone() for p in net.parameters()]))
    torch.testing.assert_close(weights(plain), walked[-1], rtol=1e-5, atol=1e-6)
    for epoch, at in enumerate(seen):
        mean = torch.stack(walked[:4*(epoch + 1)]).mean(0)
        torch.testing.assert_close(at, mean, rtol=1e-4, atol=1e-5)
    assert torch.equal(weights(fit), seen[-1])
    assert fit.curves[-1]['weight_norm'] == pytest.approx(seen[-1].norm().item(), rel=1e-5)
    fresh = models.SmallCNN(in_channels=1, input_size=8)
    train.load_checkpoint(path, fresh, optim.create(f'{lab}:Averaging', fresh.parameters(), .1), fit.config)
    assert torch.equal(torch.cat([p.detach().flatten() for p in fresh.parameters()]), seen[-1])


BAD = {'greedy': 'asks for the gradient .* times a step', 'nothing': 'gives NoneType',
       'needy': "missing a required argument: 'base'", 'mean': 'ZeroDivisionError', 'number': 'int',
       'Absent': "has no 'Absent'", 'Wide': 'cannot be called with params, lr'}

@pytest.mark.parametrize('name', BAD)
def test_what_cannot_work_is_one_line_with_its_place_in_the_sweep_file(lab, name, tmp_path):
    with pytest.raises(ValueError, match=BAD[name]) as error: train.Config(f'{lab}:{name}')
    said = str(error.value)
    assert said.startswith(f"optimizer: got '{lab}:{name}'")
    assert '\n' not in said
    assert 'accepted: ' in said
    (tmp_path/'my.toml').write_text('experiment = "fig01_robustness"\n[fixed]\nlr = 0.1\n[axes]\n'
                                    f'optimizer = ["sgd", "{lab}:{name}"]\n')
    with pytest.raises(ValueError, match=f"my.toml:5: optimizer: got '{lab}:{name}'"):
        sweep.read_sweep(tmp_path/'my.toml')


def test_a_module_that_breaks_or_is_not_there_is_one_line(tmp_path, monkeypatch):
    (tmp_path/'broken_lab.py').write_text('import nothing_of_that_name')
    (tmp_path/'wrong_lab.py').write_text('def f(:\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    wrong = dict(broken_lab='no nothing_of_that_name', wrong_lab='SyntaxError', absent_lab='no absent_lab')
    for name, why in wrong.items():
        for make in train.Config, lambda n: models.create(n, 10, 1, 8), data.load:
            with pytest.raises(ValueError, match=why) as error: make(f'{name}:X')
            assert '\n' not in str(error.value)


def test_a_spec_needs_no_rule(lab, monkeypatch):
    monkeypatch.setitem(optim.OPTIMIZERS, 'mine', optim.Spec(torch=importlib.import_module(lab).Plain))
    torch.testing.assert_close(weights(trained('mine')), weights(trained('sgd')), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="'mine', accepted: one that has a rule"):
        optim.update('mine', np.ones(2), np.ones(2), {}, .1)


def test_the_trial_of_an_optimizer_moves_no_random_numbers(lab):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    optim.check_own(f'{lab}:Sharp')
    assert torch.equal(torch.rand(3), expected)


PACKAGES = [('schedulefree', 'AdamWScheduleFree'), ('schedulefree', 'SGDScheduleFree'), ('lion_pytorch', 'Lion'),
            ('pytorch_optimizer', 'AdaBelief'), ('pytorch_optimizer', 'Adan'),
            ('pytorch_optimizer', 'ScheduleFreeAdamW')]
RATES = dict(SGDScheduleFree=1., Lion=1e-3)

@pytest.mark.parametrize('package, name', PACKAGES)
def test_published_packages_train_and_resume(package, name, tmp_path):
    pytest.importorskip(package)
    def fit(**kw):
        torch.manual_seed(0)
        lr = RATES.get(name, .01)
        config = train.Config(f'{package}:{name}', lr=lr, epochs=6, batch_size=32, schedule='constant')
        net = models.SmallCNN(in_channels=1, input_size=8)
        return train.fit(net, data.load('digits').subset(400, 50), config, 'cpu', **kw)
    whole = fit()
    path = tmp_path/'run.safetensors'
    assert whole.curves[-1]['loss'] < .7*whole.curves[0]['loss']
    class Killed(Exception): pass
    def kill(model, curves):
        if len(curves) == 3: raise Killed
    with pytest.raises(Killed): fit(checkpoint=path, on_epoch=kill)
    assert torch.equal(weights(fit(checkpoint=path)), weights(whole))


def test_sam_of_pytorch_optimizer_in_a_function(tmp_path, monkeypatch):
    pytest.importorskip('pytorch_optimizer')
    (tmp_path/'sam_lab.py').write_text('import torch\nfrom pytorch_optimizer import SAM\n'
                                       'def sam(params, lr): return SAM(params, torch.optim.SGD, lr=lr, momentum=.9)\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    whole = trained('sam_lab:sam', epochs=4)
    path = tmp_path/'run.safetensors'
    class Killed(Exception): pass
    def kill(model, curves):
        if len(curves) == 2: raise Killed
    with pytest.raises(Killed): trained('sam_lab:sam', epochs=4, checkpoint=path, on_epoch=kill)
    assert torch.equal(weights(trained('sam_lab:sam', epochs=4, checkpoint=path)), weights(whole))


def test_the_optimizer_of_contributing_steps_as_by_hand(tmp_path, monkeypatch):
    guide = (ROOT/'CONTRIBUTING.md').read_text(encoding='utf-8')
    (tmp_path/'myopt.py').write_text('# mylab/opt.py' + guide.split('# mylab/opt.py')[1].split('```')[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    w = torch.nn.Parameter(torch.tensor([1., 1]))
    opt = optim.create('myopt:Signum', [w], .1)
    for g in [2., -2], [-1., 1]:
        def closure():
            opt.zero_grad()
            (loss := (w*torch.tensor(g)).sum()).backward()
            return loss
        optim.step(opt, closure)
    torch.testing.assert_close(w.detach(), torch.tensor([.8, 1.2]))  # the mean is .2, then .08: the sign stays


# --- networks and data

def test_networks_of_ones_own_are_called_with_what_they_take(lab):
    assert models.create(f'{lab}:Wide', 5, 3, 16, width=4, norm='none')(torch.rand(2, 3, 16, 16)).shape == (2, 5)
    assert models.create(f'{lab}:fixed', 10, 1, 8)(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    for name, options, why in ('Wide', dict(norm='batch'), 'norm'), ('number', {}, 'int'), ('digits', {}, 'gives Data'):
        with pytest.raises(ValueError, match=why):
            models.create(f'{lab}:{name}', 10, 1, 8, **options)


def test_networks_of_timm():
    timm = pytest.importorskip('timm')
    assert models.create('timm/resnet10t', 5, 1, 32, norm='none')(torch.rand(2, 1, 32, 32)).shape == (2, 5)


def test_no_weights_file_runs_code(lab, tmp_path):
    net = models.create(f'{lab}:Wide', 5, 1, 8)
    models.save(net, tmp_path/'net.safetensors')
    sys.modules.pop(lab)
    with pytest.raises(ValueError, match='code that only a file names is not run'):
        models.load(tmp_path/'net.safetensors')
    assert lab not in sys.modules
    assert isinstance(models.load(tmp_path/'net.safetensors', f'{lab}:Wide'), torch.nn.Sequential)


def test_a_sweep_of_ones_own_runs_resumes_and_knows_edits(lab, tmp_path):
    def read():
        (tmp_path/'my.toml').write_text(
            f'experiment = "fig01_robustness"\n[fixed]\ndataset = "{lab}:digits"\nmodel = "{lab}:Wide"\n'
            'epochs = 2\nconditions = []\n'
            f'[axes]\noptimizer = ["adam", "{lab}:Sharp"]')
        return sweep.read_sweep(tmp_path/'my.toml')
    def do(): return sweep.run_sweep(read(), tmp_path/'runs', tmp_path/'none', workers=2)
    first = read()
    assert [s['state'] for s in do()] == ['done', 'done'], do()
    assert do() == []
    found = [results.load(p) for p in results.find(tmp_path/'runs')]
    assert sorted(map(len, (f['outside'] for f in found))) == [3, 4]
    path = tmp_path/f'{lab}.py'
    path.write_text(MODULE + '# a comment\n')
    assert [r.id for r in read().runs] == [r.id for r in first.runs]
    path.write_text(MODULE.replace('rho=.05', 'rho=.1'))
    assert not {r.id for r in read().runs} & {r.id for r in first.runs}


@pytest.fixture
def ids(tmp_path):
    "Function (folder) -> ids of the runs of its own.toml, with its modules, in a process of its own."
    (tmp_path/'empty').mkdir()
    def read(folder):
        code = ('from robustnb.sweep import read_sweep; '
                f'print(*[r.id for r in read_sweep({str(folder/"own.toml")!r}).runs])')
        done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path/'empty', capture_output=True, text=True,
                              env={**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{folder}'})
        assert done.returncode == 0, done.stderr
        return done.stdout.split()
    return read


STEP = 'import torch\ndef rate(lr): return lr/2\n'

@pytest.mark.parametrize('importing', [
    'from .deep.step import rate', 'from . import deep\nfrom mylab.deep import step\nrate = step.rate',
    'import mylab.deep.step as step\nrate = step.rate', 'from mystep import rate'])
def test_what_a_module_imports_belongs_to_its_runs(importing, ids, tmp_path):
    lab = tmp_path/'at'
    step = lab/('mystep.py' if 'mystep' in importing else 'mylab/deep/step.py')
    (lab/'mylab'/'deep').mkdir(parents=True)
    (lab/'mylab'/'__init__.py').touch()
    (lab/'mylab'/'opt.py').write_text('import torch\nfrom .tools import make\n')
    (lab/'mylab'/'tools.py').write_text(f'import torch\n{importing}\n'
                                        'def make(params, lr): return torch.optim.SGD(params, rate(lr))\n')
    (lab/'mylab'/'other.py').write_text('1/0')
    step.write_text(STEP)
    (lab/'own.toml').write_text('experiment = "fig01_robustness"\n[fixed]\nconditions = []\n'
                                'optimizer = "mylab.opt:make"\n')
    first = ids(lab)
    step.write_text(STEP + '# a comment\n')
    (lab/'mylab'/'other.py').write_text('2/0')  # which nobody imports
    lab.rename(tmp_path/'moved')
    assert ids(tmp_path/'moved') == first
    (tmp_path/'moved'/step.relative_to(lab)).write_text(STEP.replace('lr/2', 'lr/3'))
    assert ids(tmp_path/'moved') != first


def test_a_lone_module_keeps_the_digest_of_its_file(lab):
    experiment = sweep.read_experiment(sweep.find_experiment('fig01_robustness'))
    run = experiment.run(dict(optimizer=f'{lab}:halved'))
    assert run.outside == {f'{lab}:halved': code_digest(MODULE)}


def test_photos_beside_the_sweep_file(tmp_path, robustnb):
    data.save(data.load('digits').subset(60, 20), tmp_path/'at'/'photos')
    (tmp_path/'at'/'my.toml').write_text('experiment = "fig01_robustness"\n[fixed]\nepochs = 1\nconditions = []\n'
                                         'dataset = "./photos"')
    here = sweep.read_sweep(tmp_path/'at'/'my.toml').runs
    out, err = robustnb('sweep', 'at/my.toml', '--workers', 1).communicate()
    assert '1 done now' in out, err
    (tmp_path/'at').rename(tmp_path/'moved')
    moved = sweep.read_sweep(tmp_path/'moved'/'my.toml').runs
    assert [r.id for r in moved] == [r.id for r in here]
    assert moved[0].config['dataset'] == str(tmp_path/'moved'/'photos')
    (tmp_path/'moved'/'my.toml').write_text('experiment = "fig01_robustness"\n[fixed]\ndataset = "./foto"')
    said = r'my.toml:3: dataset: got .*moved/foto.*a folder or .npz of your own \("./photos" beside the sweep file'
    with pytest.raises(ValueError, match=said):
        sweep.read_sweep(tmp_path/'moved'/'my.toml')


def photos(folder, classes=('dark', 'light', 'red'), n=20):
    "Colour images of 24x24 in a folder for each class, dim, bright and red on noise."
    levels = dict(dark=(60, 60, 60), light=(150, 150, 150), red=(180, 40, 40))
    for label, i in itertools.product(classes, range(n)):
        noise = np.random.default_rng([i, len(label)]).integers(0, 60, (24, 24, 3))
        (folder/label).mkdir(parents=True, exist_ok=True)
        Image.fromarray((noise + levels[label]).astype(np.uint8)).save(folder/label/f'{i}.png')


def test_photos_that_cannot_be_trained_on_are_one_line_with_its_place(tmp_path):
    photos(tmp_path/'one', ['dark'], 3)
    photos(tmp_path/'broken', n=3)
    (tmp_path/'broken'/'light'/'1.png').write_text('no image')
    (tmp_path/'empty').mkdir()
    wrong = dict(one='images of 1 class; wanted 2', broken='light/1.png: cannot be read as an image',
                 empty='wanted a folder of images for each class')
    for name, why in wrong.items():
        (tmp_path/'my.toml').write_text(f'experiment = "fig01_robustness"\n[fixed]\ndataset = "./{name}"')
        with pytest.raises(ValueError, match=f'my.toml:3: .*{why}') as error:
            sweep.read_sweep(tmp_path/'my.toml')
        assert '\n' not in str(error.value)
    photos(tmp_path/'broken', n=3)
    (tmp_path/'my.toml').write_text('experiment = "fig01_robustness"\n[fixed]\ndataset = "./broken"')
    assert len(sweep.read_sweep(tmp_path/'my.toml').runs) == 1


CONDITIONS = '''
import torch
from dataclasses import dataclass
from robustnb.conditions import Condition
@dataclass(frozen=True)
class Silent(Condition):
    kind = 'silent'
@dataclass(frozen=True)
class Short(Condition):
    kind = 'short'
    def hits(self, images): return images > 0
@dataclass(frozen=True)
class Demanding(Condition):
    kind = 'demanding'
    def hits(self, model, x, y, topk, seed): return model(x).argmax(1) == y
@dataclass(frozen=True)
class Counting(Condition):
    kind = 'counting'
    def hits(self, model, x, y): return (model(x).argmax(1) == y).sum()
'''

def test_conditions_that_cannot_judge_are_one_line_with_its_place(tmp_path, monkeypatch):
    (tmp_path/'judges_lab.py').write_text(CONDITIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in 'Silent', 'Short':
        (tmp_path/'my.toml').write_text('experiment = "fig01_robustness"\n[fixed]\n'
                                        f'conditions = [{{kind = "judges_lab:{name}"}}]')
        said = f"my.toml:3: kind: got 'judges_lab:{name}', whose hits cannot be called"
        with pytest.raises(ValueError, match=said) as error: sweep.read_sweep(tmp_path/'my.toml')
        assert '\n' not in str(error.value)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    # of two classes always the first
    with torch.no_grad(): net[1].weight.zero_().add_(torch.tensor([[1.], [0]]))
    x, y = torch.ones(3, 1, 2, 2), torch.tensor([0, 1, 0])
    def measured_under(name): return conditions.measure(net, x, y, [dict(kind=f'judges_lab:{name}')])
    assert measured_under('Demanding')[1]['value'] == 2/3
    said = r'Counting.hits: got torch.int64 of shape \(\), accepted: torch.bool of shape \(3,\)'
    with pytest.raises(ValueError, match=said): measured_under('Counting')


def test_networks_that_do_not_fit_the_images_are_one_line(tmp_path, monkeypatch):
    (tmp_path/'nets_lab.py').write_text(
        'from torch import nn\n'
        'def shape(n_classes): return nn.Sequential(nn.Flatten(), nn.Linear(5, n_classes))\n'
        'def few(n_classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))\n'
        'def fails(): raise KeyError(3)')
    monkeypatch.syspath_prepend(str(tmp_path))
    wrong = dict(shape=r'does not take images of shape \(1, 8, 8\)', few=r'gives \(2, 2\) for 2 images',
                 fails='raises KeyError: 3')
    for name, why in wrong.items():
        with pytest.raises(ValueError, match=f"model: got 'nets_lab:{name}', which {why}") as error:
            models.create(f'nets_lab:{name}', 3, 1, 8)
        assert '\n' not in str(error.value)


# --- measured again

def measured(process):
    "What a command of robustnb printed, which ended well."
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    return out


def test_runs_of_ones_own_are_measured_again_with_and_without_weights(tmp_path, robustnb):
    (tmp_path/'own_lab.py').write_text(MODULE)
    (tmp_path/'my.toml').write_text('experiment = "fig01_robustness"\nkeep_weights = true\n[fixed]\n'
                                    'dataset = "own_lab:digits"\nmodel = "own_lab:Wide"\n'
                                    'optimizer = "own_lab:Sharp"\nepochs = 1\nconditions = []\n')
    (tmp_path/'more.toml').write_text('conditions = [{kind = "gaussian", var = 0.1}]')
    measured(robustnb('sweep', 'my.toml', '--workers', 1))
    measure = 'measure', 'runs/fig01_robustness', '--conditions', 'more.toml', '--workers', 1
    for names in [], ['--own', 'own_lab:Sharp', 'own_lab:digits']:
        process = robustnb(*measure, *names)
        out, err = process.communicate()
        said = 'code that only a result names is not run, accepted: one that you name, too: --own own_lab:'
        assert process.returncode == 2, err
        assert said in err, err
        assert err.count('\n') == 1, err
    assert '1 done now' in measured(robustnb(*measure, '--own', 'own_lab:Wide', 'own_lab:digits'))
    first, = (results.load(p) for p in results.find(tmp_path/'runs'/'measure'))
    weights, = (tmp_path/'runs'/'fig01_robustness').glob('*/model.safetensors')
    weights.unlink()
    shutil.rmtree(tmp_path/'runs'/'measure')
    process = robustnb(*measure, '--own', 'own_lab:Wide', 'own_lab:digits')
    assert 'own_lab:Sharp, and code that only a result names' in process.communicate()[1]
    every = '--own', 'own_lab:Wide', 'own_lab:digits', 'own_lab:Sharp'
    assert '1 done now' in measured(robustnb(*measure, *every))
    again, = (results.load(p) for p in results.find(tmp_path/'runs'/'measure'))
    assert [r['hits'] for r in again['metrics']] == [r['hits'] for r in first['metrics']]
    assert any('trained again' in note for note in again['notes'])
    (tmp_path/'own_lab.py').write_text(MODULE.replace('rho=.05', 'rho=.1'))
    process = robustnb(*measure, *every)
    assert 'own_lab:Sharp, which was edited after this run was made' in process.communicate()[1]
