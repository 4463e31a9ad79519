"The package as it is installed: a wheel built from a copy of the tree, unpacked elsewhere, used in an empty folder."
import ast, json, os, re, shutil, subprocess, sys
from importlib.metadata import packages_distributions

import pytest

from conftest import ROOT

COPIED = ['robustnb', 'nbs/experiments', 'sweeps', 'results', 'setup.py', 'settings.ini', 'MANIFEST.in', 'README.md', 'LICENSE']


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    "Folder that a wheel of this tree was installed to, without its dependencies."
    source, target = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('site')
    for name in COPIED:
        copy = shutil.copytree if (ROOT/name).is_dir() else shutil.copy
        (source/name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT/name, source/name)
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-build-isolation', '--target', target, source], check=True)
    return target


def test_a_wheel_brings_experiments_and_sweeps(installed, tmp_path):
    def robustnb(*args):
        code = 'import sys, robustnb; print(robustnb.__file__, file=sys.stderr); from robustnb.cli import main; sys.exit(main())'
        done = subprocess.run([sys.executable, '-c', code, *args], cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(installed)}, capture_output=True, text=True)
        assert done.returncode == 0 and str(installed) in done.stderr, done.stderr
        return json.loads(done.stdout)
    shipped = lambda folder, kind: {p.name for p in folder.glob(kind)}
    assert shipped(installed/'robustnb/experiments', '*.ipynb') == shipped(ROOT/'nbs/experiments', '*.ipynb') != set()
    assert shipped(installed/'robustnb/sweeps', '*.toml') == shipped(ROOT/'sweeps', '*.toml') != set()
    assert {p.parent.name for p in (installed/'robustnb/results').glob('*/*.json')} == {p.name for p in (ROOT/'results').iterdir() if p.is_dir()}
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
        if isinstance(node, ast.Import): yield from (alias.name.split('.')[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom) and not node.level: yield node.module.split('.')[0]


def test_requirements_are_what_the_modules_import(installed):
    needed = {name for path in (installed/'robustnb').glob('*.py') for name in imported(path)}
    needed -= {'robustnb', 'timm', *sys.stdlib_module_names}  # timm is asked for where it is installed only
    homes = packages_distributions()
    distributions = {name: {home.lower().replace('_', '-') for home in homes[name]} for name in needed}
    required = requirements(installed)
    unlisted = {name for name, homes in distributions.items() if not homes & (required | ({'distributed'} if 'dask' in required else set()))}
    assert not unlisted
    unused = required - set().union(*distributions.values())
    assert unused <= {'ipykernel', 'matplotlib-inline', 'tabulate'}  # kernels, inline figures and Markdown tables need them
    assert not required & {'nbdev', 'fastcore', 'execnb', 'ghapi'}


def test_the_package_is_typed_and_has_all_its_modules(installed, tmp_path):
    assert (installed/'robustnb/py.typed').is_file()
    code = 'from robustnb.all import *; import robustnb; print(dct.__file__, attacks.__name__)'
    done = subprocess.run([sys.executable, '-W', 'error::DeprecationWarning:robustnb', '-c', code], cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(installed)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(installed) in done.stdout and 'robustnb.attacks' in done.stdout


@pytest.mark.parametrize('old, new', [('engine', 'warm'), ('many', 'train_many'), ('foreign', 'interop')])
def test_old_names_of_modules_lead_on(old, new):
    code = f'import robustnb.{old} as old, robustnb.{new} as new; from robustnb import {old}; assert old is new is {old}'
    done = subprocess.run([sys.executable, '-W', 'always::DeprecationWarning', '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and f'robustnb.{old} is robustnb.{new} now' in done.stderr, done.stderr


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
