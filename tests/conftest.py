"Shared by all tests: experiments of one line, and the command line as a user starts it."
import os, signal, subprocess, sys
from contextlib import nullcontext
from pathlib import Path

import nbformat
import pytest
import torch

import card

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def seeded():
    "PyTorch begins each process with another seed: a test that fails must fail again."
    torch.manual_seed(0)


CUDA = pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA'))


@pytest.fixture(params=['card', CUDA])
def device(request):
    "A device that is no CPU; the test runs with the card plugged in where it is the pretended one."
    with card.plugged_in() if request.param == 'card' else nullcontext():
        yield card.CARD if request.param == 'card' else torch.device('cuda')


@pytest.fixture
def experiment(tmp_path):
    "Function (body, name) -> path of an experiment notebook with parameters lr, seed and out, whose run is `body`."
    def make(body='value = lr', name='toy'):
        params = nbformat.v4.new_code_cell("lr = .1\nseed = 0\nout = ''", metadata={'tags': ['parameters']})
        run = nbformat.v4.new_code_cell(
            f"{body}\nfrom robustnb import results\n"
            f"results.save(out, '{name}', dict(lr=lr, seed=seed), [results.row('accuracy', value)])")
        meta = {'kernelspec': {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}}
        nbformat.write(nbformat.v4.new_notebook(cells=[params, run], metadata=meta), tmp_path/f'{name}.ipynb')
        return tmp_path/f'{name}.ipynb'
    return make


@pytest.fixture
def robustnb(tmp_path):
    """Function (*args, before: a command that runs it, **Popen options) -> running process of the command line.

    It runs in an empty folder and in a process group of its own."""
    main = 'import sys; from robustnb.cli import main; sys.exit(main())'
    def start(*args, preexec_fn=lambda: None, before=(), **kw):
        def child():
            # a background shell lets its children ignore them
            for number in signal.SIGINT, signal.SIGHUP: signal.signal(number, signal.SIG_DFL)
            preexec_fn()
        return subprocess.Popen([*before, sys.executable, '-c', main, *map(str, args)], cwd=tmp_path,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                                preexec_fn=child, env={**os.environ, 'PYTHONPATH': str(ROOT)}, **kw)
    return start
