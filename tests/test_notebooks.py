"Every notebook runs from top to bottom, as nbdev_test runs it, each in a process of its own."
import os, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
hidden = lambda path: any(part.startswith(('.', '_')) for part in path.relative_to(ROOT).parts)
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if not hidden(p))
# else another seed each time
SEEDED = ("import runpy, sys, torch; torch.manual_seed(0); sys.argv = sys.argv[1:]; "
          "runpy.run_path(sys.argv[0], run_name='__main__')")


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path, request):
    flags = [] if 'not slow' in request.config.option.markexpr else ['--flags', 'slow']
    nbdev_test = Path(sys.executable).with_name('nbdev_test')
    command = [sys.executable, '-c', SEEDED, nbdev_test, '--path', path, '--n_workers', '0', *flags]
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-6000:]
    assert 'Success' in done.stdout, done.stdout
