"The package as it is installed: a wheel built from a copy of the tree, unpacked elsewhere, used in an empty folder."
import ast, json, os, re, shutil, signal, subprocess, sys, time
from importlib.metadata import packages_distributions

import pytest

from conftest import ROOT
from robustnb import results
from test_own import photos

COPIED = ['robustnb', 'nbs/experiments', 'sweeps', 'results', 'setup.py', 'settings.ini', 'MANIFEST.in', 'README.md',
          'LICENSE']


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    "Folder that a wheel of this tree was installed to, without its dependencies."
    source = tmp_path_factory.mktemp('source')
    target = tmp_path_factory.mktemp('site')
    for name in COPIED:
        copy = shutil.copytree if (ROOT/name).is_dir() else shutil.copy
        (source/name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT/name, source/name)
    install = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-build-isolation']
    subprocess.run([*install, '--target', target, source], check=True)
    return target


def test_a_wheel_brings_experiments_and_sweeps(installed, tmp_path):
    env = {**os.environ, 'PYTHONPATH': str(installed)}
    def robustnb(*args):
        code = ('import sys, robustnb; print(robustnb.__file__, file=sys.stderr); '
                'from robustnb.cli import main; sys.exit(main())')
        command = [sys.executable, '-c', code, *args]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0 and str(installed) in done.stderr, done.stderr
        return json.loads(done.stdout)
    shipped = lambda folder, kind: {p.name for p in folder.glob(kind)}
    assert shipped(installed/'robustnb/experiments', '*.ipynb') == shipped(ROOT/'nbs/experiments', '*.ipynb') != set()
    assert shipped(installed/'robustnb/sweeps', '*.toml') == shipped(ROOT/'sweeps', '*.toml') != set()
    brought = {p.parent.name for p in (installed/'robustnb/results').glob('*/*.json')}
    assert brought == {p.name for p in (ROOT/'results').iterdir() if p.is_dir()}
    assert (installed/'robustnb/results/families.toml').is_file()
    assert len(robustnb('sweep', 'demo', '--dry-run', '--json')['runs']) == 28
    robustnb('run', 'fig08_energy', '--json')
    result, = tmp_path.glob('runs/fig08_energy/*/result.json')
    assert json.loads(result.read_text())['config']['dataset'] == 'digits'


def requirements(installed):
    "Names of what the installed package requires, in lower case."
    text, = (path.read_text() for path in installed.glob('robustnb-*.dist-info/METADATA'))
    lines = [line for line in re.findall(r'^Requires-Dist: (.*)$', text, re.M) if 'extra ==' not in line]
    return {re.match(r'[\w.-]+', line)[0].lower().replace('_', '-') for line in lines}


def imported(path):
    "Top-level packages that a module imports, wherever in it."
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split('.')[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom) and not node.level: yield node.module.split('.')[0]


def test_requirements_are_what_the_modules_import(installed):
    needed = {name for path in (installed/'robustnb').glob('*.py') for name in imported(path)}
    needed -= {'robustnb', 'timm', *sys.stdlib_module_names}  # timm is asked for where it is installed only
    homes = packages_distributions()
    normal = lambda names: {name.lower().replace('_', '-') for name in names}
    distributions = {name: normal(homes[name]) for name in needed}
    required = requirements(installed)
    brought = required | ({'distributed'} if 'dask' in required else set())
    unlisted = {name for name, homes in distributions.items() if not homes & brought}
    assert not unlisted
    unused = required - set().union(*distributions.values())
    # kernels, inline figures and Markdown tables need them
    assert unused <= {'ipykernel', 'matplotlib-inline', 'tabulate'}
    assert not required & {'nbdev', 'fastcore', 'execnb', 'ghapi'}


def test_the_package_is_typed_and_has_all_its_modules(installed, tmp_path):
    assert (installed/'robustnb/py.typed').is_file()
    code = 'from robustnb.all import *; import robustnb; print(dct.__file__, attacks.__name__)'
    command = [sys.executable, '-W', 'error::DeprecationWarning:robustnb', '-c', code]
    env = {**os.environ, 'PYTHONPATH': str(installed)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(installed) in done.stdout and 'robustnb.attacks' in done.stdout


@pytest.mark.parametrize('old, new', [('engine', 'warm'), ('many', 'train_many'), ('foreign', 'interop')])
def test_old_names_of_modules_lead_on(old, new):
    code = (f'import robustnb.{old} as old, robustnb.{new} as new; '
            f'from robustnb import {old}; assert old is new is {old}')
    command = [sys.executable, '-W', 'always::DeprecationWarning', '-c', code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and f'robustnb.{old} is robustnb.{new} now' in done.stderr, done.stderr


LAB = {
    'opt': '''
import torch
from .tools import sign
class Signs(torch.optim.Optimizer):
    def __init__(self, params, lr): super().__init__(params, dict(lr=lr))
    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group['params']: p -= group['lr']*sign(p.grad)
''', 'tools': '''
def sign(g): return g.sign()
''', 'nets': '''
from torch import nn
class Wide(nn.Sequential):
    def __init__(self, n_classes, in_channels, width=16):
        super().__init__(nn.Conv2d(in_channels, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, n_classes))
''', 'seen': '''
from dataclasses import dataclass
from robustnb.conditions import Condition
from robustnb.data import to_float
from robustnb.evaluate import correct
@dataclass(frozen=True)
class Dim(Condition):
    by: float
    kind = 'dim'
    def hits(self, model, x, y, topk=1): return correct(model, to_float(x)*self.by, y, topk)
'''}
OWN_SWEEP = '''
experiment = "fig01_robustness"
keep_weights = true
[fixed]
dataset = "./photos"
model = "mylab.nets:Wide"
epochs = 300
batch_size = 8
conditions = [{kind = "gaussian", var = 0.01}, {kind = "mylab.seen:Dim", by = [0.5, 0.9]}]
[axes]
optimizer = ["sgd", "mylab.opt:Signs"]
lr = [0.003, 0.01, 0.03]
'''


@pytest.fixture
def lab(tmp_path):
    "A folder with a package of one's own, photos of three classes, and a sweep of them."
    (tmp_path/'mylab').mkdir()
    for name, text in LAB.items(): (tmp_path/'mylab'/f'{name}.py').write_text(text)
    photos(tmp_path/'photos')
    (tmp_path/'own.toml').write_text(OWN_SWEEP)
    (tmp_path/'asked.toml').write_text(
        'conditions = [{kind = "gaussian", var = 0.01}, {kind = "mylab.seen:Dim", by = 0.9}, '
        '{kind = "attack", attack = "quick", norm = "linf", eps = "2/255", n = 10}]')
    return tmp_path


@pytest.mark.slow
def test_ones_own_folder_runs_resumes_reports_and_audits(installed, lab):
    "From the wheel: killed after its first run, the same command does the rest on two workers."
    def start(*args):
        code = 'import sys; from robustnb.cli import main; sys.exit(main())'
        env = {**os.environ, 'PYTHONPATH': str(installed)}
        return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], cwd=lab, env=env,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    def robustnb(*args):
        process = start(*args)
        out, err = process.communicate()
        assert process.returncode == 0, out + err
        return out
    def made():
        return [results.load(path) for path in lab.glob('runs/fig01_robustness/*/result.json')]
    sweep = 'sweep', 'own.toml', '--workers', 2
    process = start(*sweep)
    while process.poll() is None and not made(): time.sleep(.05)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130, process.stderr.read()
    before = len(made())
    assert 0 < before < 6
    assert f'{6 - before} done now, {before} done before, 0 failed' in robustnb(*sweep)
    assert 'mylab.opt:Signs' in robustnb('report', 'runs', '--to', 'page') and (lab/'page'/'report.html').is_file()
    found = made()
    kinds = lambda result: sorted({row['kind'] for row in result['metrics'] if 'kind' in row})
    assert [kinds(r) for r in found] == [['clean', 'dim', 'gaussian']]*6
    assert {r['provenance']['commit'] for r in found} == {None} and {r['config']['n_train'] for r in found} == {48}
    accuracy = lambda path: results.load(path)['metrics'][0]['value']
    best = max(lab.glob('runs/fig01_robustness/*/result.json'), key=accuracy)
    out = robustnb('audit', best.with_name('model.safetensors'), '--arch', 'mylab.nets:Wide', '--images', 'photos',
                   '--conditions', 'asked.toml', '--to', 'audit')
    config = json.loads((lab/'audit'/'audit.json').read_text())['config']
    assert 'mylab.nets:Wide' in json.dumps(config)
    assert 'page: audit/audit.html' in out


@pytest.mark.slow
def test_it_installs_beside_nbdev_3(tmp_path):
    "Into an environment of its own, which needs the network and 6 GB."
    run = lambda *command: subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    run(sys.executable, '-m', 'venv', tmp_path/'env')
    python = tmp_path/'env/bin/python'
    run(python, '-m', 'pip', 'install', '-q', 'nbdev>=3')
    run(python, '-m', 'pip', 'install', '-q', ROOT)
    assert run(python, '-m', 'pip', 'show', 'nbdev').split('Version: ')[1].startswith('3')
    run(python, '-m', 'pip', 'check')
    run(python, '-c', 'import robustnb.all')
    assert 'standard' in run(tmp_path/'env/bin/robustnb', 'run', 'fig01_robustness', '--set', 'epochs=1')
