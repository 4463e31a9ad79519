"The package as it is installed: a wheel built from a copy of the tree, unpacked elsewhere, used in an empty folder."
import json, os, shutil, subprocess, sys

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
    assert len(robustnb('sweep', 'demo', '--dry-run', '--json')['runs']) == 28
    robustnb('run', 'fig08_energy', '--json')
    result, = tmp_path.glob('runs/fig08_energy/*/result.json')
    assert json.loads(result.read_text())['config']['dataset'] == 'digits'
