"""Every shell line and every Python block that stands on a page or in README runs as it is printed.

It runs in a folder that holds what the page speaks of."""
import os, re, subprocess, sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from conftest import ROOT
from robustnb import data, models

# what cannot run in a test, by a part of its text, and why
ELSEWHERE = {
    'download.pytorch.org': 'it downloads torch; tests/test_wheel.py and tests/test_own.py install the wheel',
    'make test': 'it is what runs this test; tests/test_sweep.py runs the sweep of `make demo`',
    'HOST:8786': 'tests/test_faults.py runs these lines with this machine as HOST',
    'SLURMCluster': 'needs Slurm',
    'CUDA_VISIBLE_DEVICES=$k': 'needs four GPUs',
}
# blocks that take longer than half a minute, by a part of their text
LONG = ['--arch preactresnet18', 'robustnb sweep demo', 'robustnb sweep my.toml --dry-run',
        'sweeps/demo.toml --set dataset', 'attacks_spectra.ipynb', 'lipschitz.ipynb']
# what a Python block takes for granted, by a part of its text
GIVEN = {
    'filter_freq(part': ('import torch\nfrom robustnb.spectrum import filter_freq\n'
                         'x, p = torch.zeros(20, 1, 8, 8, dtype=torch.uint8), 50\n'),
    'torch.export.save': ('import torch\nfrom robustnb import models\n'
                          'net, images = models.SmallCNN(), torch.rand(20, 1, 8, 8)\n'
                          'pixels, labels = (255*images[:, 0]).byte().numpy(), torch.arange(20).numpy() % 10\n'),
}


def blocks():
    "(place, language, text) of every fenced block on a page."
    for path in sorted((ROOT/'nbs').rglob('*.ipynb')):
        if any(part.startswith(('.', '_')) for part in path.relative_to(ROOT).parts): continue
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type != 'markdown': continue
            for language, text in re.findall(r'^```(\w*)\n(.*?)^```', cell.source, re.M | re.S):
                yield path.relative_to(ROOT/'nbs').as_posix(), language or 'bash', text

def named(place, text, among): return next((part for part in among if part in text), None)

runs = lambda place, language, text: language in ('bash', 'python') and not named(place, text, ELSEWHERE)
BLOCKS = [block for block in blocks() if runs(*block)]


def case(place, language, text):
    marks = [pytest.mark.slow] if named(place, text, LONG) else []
    return pytest.param(place, language, text, id=f'{place}: {text.splitlines()[0][:60]}', marks=marks)

@pytest.fixture
def project(tmp_path):
    "The project's root as a reader has it, with a model, images and a sweep file of his own."
    for name in 'nbs', 'sweeps', 'results': (tmp_path/name).symlink_to(ROOT/name)
    toml = next(text for place, language, text in blocks() if language == 'toml' and 'experiment' in text)
    (tmp_path/'my.toml').write_text(toml)
    digits = data.load('digits')
    for i in range(20):
        folder = tmp_path/'photos'/digits.classes[digits.y_test[i]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.x_test[i, 0].numpy()).save(folder/f'{i}.png')
    return tmp_path

def give_model(project, text):
    "The model file that a block speaks of."
    for name, arch in re.findall(r'(\w+)\.safetensors --arch (\w+)', text):
        net = models.create(arch, 10, 1, 32 if '--size 32' in text else 8)
        save_file(net.state_dict(), project/f'{name}.safetensors')
    for name in re.findall(r'(\w+)\.pt2', text):
        net = models.SmallCNN().eval()
        batch = torch.export.Dim('batch')
        program = torch.export.export(net, (torch.rand(2, 1, 8, 8),), dynamic_shapes=({0: batch},))
        torch.export.save(program, project/f'{name}.pt2')
        pixels = (255*torch.rand(20, 8, 8)).byte().numpy()
        labels = torch.arange(20).numpy() % 10
        np.savez(project/'test.npz', images=pixels, labels=labels)


@pytest.mark.parametrize('place, language, text', [case(*block) for block in BLOCKS])
def test_a_block_runs_as_it_is_printed(place, language, text, project):
    if 'fashionmnist' in text:
        try: data.load('fashionmnist', download=False)
        except FileNotFoundError as e: pytest.skip(str(e).splitlines()[0])
    if language == 'bash':
        give_model(project, text)
        command = ['bash', '-ec', text]
    else: command = [sys.executable, '-c', GIVEN.get(named(place, text, GIVEN), '') + text]
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'}
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_no_exception_outlives_its_block():
    texts = [text for _, _, text in blocks()]
    for part in [*ELSEWHERE, *LONG, *GIVEN]: assert any(part in text for text in texts), part

def test_the_readme_is_the_home_page():
    home = [text for place, _, text in blocks() if place == 'index.ipynb']
    assert re.findall(r'^```\w*\n(.*?)^```', (ROOT/'README.md').read_text(), re.M | re.S) == home
