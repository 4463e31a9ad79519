"Every notebook runs from top to bottom, as nbdev_test runs it, each in a process of its own."
import os, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if not any(part.startswith(('.', '_')) for part in p.relative_to(ROOT).parts))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path, request):
    flags = [] if 'not slow' in request.config.option.markexpr else ['--flags', 'slow']
    nbdev_test = Path(sys.executable).with_name('nbdev_test')
    done = subprocess.run([nbdev_test, '--path', path, '--n_workers', '0', *flags], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr[-6000:]
