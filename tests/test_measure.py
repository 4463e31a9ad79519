"Conditions are objects, a run knows what it is, and weights that are kept are measured again."
import json, math, os, re, shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest

from robustnb import data, results
from robustnb.core import digest, read_json, write_json
from robustnb.sweep import (
    Run, asked_workers, cells_digest, decided, identity, parameters, read_experiment, read_sweep, result_path,
    run_id, run_sweep, settle)

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT/'nbs'/'experiments'
COMMITTED = results.find(ROOT/'results')


# --- results of this book

def test_a_result_gives_its_own_name():
    accepted = {path.stem: parameters(path) for path in EXPERIMENTS.glob('*.ipynb')}
    for path in COMMITTED:
        r = results.load(path)
        assert run_id(r['experiment'], r['identity'], r['protocol'], r['outside']) == path.stem
        assert identity(r['config'], accepted[r['experiment']]) == r['identity'], path


def test_each_sweep_finds_its_results(monkeypatch, tmp_path):
    monkeypatch.setenv('ROBUSTNB_DATA', str(tmp_path))  # without the data: what is known of published sets is enough
    for folder in filter(Path.is_dir, sorted((ROOT/'results').iterdir())):
        sizes = {results.load(p)['config'].get('dataset') for p in results.find(folder)}
        if sizes & {'caltech101', 'imagenette'}: continue  # a part of these was used
        sweep = decided(read_sweep(ROOT/'sweeps'/f'{folder.name}.toml'), tmp_path, ROOT/'results')
        known = {r.id for r in sweep.runs}
        found = {p.stem for p in results.find(folder)}
        complete = not sweep.candidates  # else it may be published as it goes on
        assert found == known if complete else found <= known, folder.name


def said(rows):
    "Digest of the numbers in metric rows."
    keys = 'metric', 'value', 'n', 'split', 'hits', 'map', 'eps', 'var', 'band'
    values = lambda row: [row.get(k) for k in keys]
    return digest([values(r) for r in rows])


def test_no_number_changed_when_results_were_moved_and_old_names_are_known():
    before = read_json(ROOT/'tests'/'schema1.json')  # digests of the files of version 0.1, by sweep and id
    names = {key.split('/')[0] for key in before}
    now = {name: results.by_id(ROOT/'results'/name) for name in names}
    for key, numbers in before.items():
        sweep, old = key.split('/')
        assert said(results.load(now[sweep][old])['metrics']) == numbers, key
    assert len(before) == 543


def test_a_result_of_the_old_schema_is_read(tmp_path):
    accuracy = dict(metric='accuracy', n=10, split='test')
    rows = [dict(accuracy, value=.9), dict(accuracy, value=.3, corruption='blur'),
            dict(accuracy, value=.5, norm='l2', eps=.5, attack='quick')]
    config = dict(optimizer='sgd', lr=.1, seed=0)
    old = dict(schema=1, experiment='toy', config=config, provenance={}, cost={}, metrics=rows)
    write_json(tmp_path/'result.json', old)
    tidy = results.table([tmp_path/'result.json'])
    assert list(tidy.kind) == ['clean', 'unknown', 'attack'] and results.best_rates(tidy)['mean'].tolist() == [.9]
    write_json(tmp_path/'result.json', {**old, 'schema': 3})
    with pytest.raises(ValueError, match='schema 3, this version of robustnb reads 1 and 2'):
        results.load(tmp_path/'result.json')


def test_an_accuracy_under_something_is_never_a_clean_one(tmp_path):
    with pytest.raises(ValueError, match='kind: got none'):
        results.row('accuracy', .3, 100, corruption='blur')
    rows = [results.row('accuracy', .9, 100), results.row('accuracy', .3, 100, kind='blur', radius=2)]
    tidy = results.table([results.save('', 'toy', dict(optimizer='sgd', lr=lr, seed=0), rows) for lr in (.1, .2)])
    assert set(results.best_rates(tidy)['mean']) == {.9}
    nameless = dict(metric='accuracy', value=.3, n=9, noise='jpeg')
    write_json(tmp_path/'r.json', {**results.save('', 'toy', {}, rows), 'metrics': [nameless]})
    with pytest.raises(ValueError, match='r.json: metrics, row 0: kind: got none'):
        results.load(tmp_path/'r.json')


# --- what makes a run another one

@pytest.fixture
def own(tmp_path, monkeypatch):
    """Function (body, conditions, about) -> path of a notebook of one's own.

    It has parameters dataset, conditions and lr; its folder is importable."""
    monkeypatch.syspath_prepend(tmp_path)
    known = "folders = ['dataset']\nchoices = {'dataset': 'robustnb.data:NAMES'}"
    def make(body='value = lr', folder=tmp_path, about=known):
        params = "dataset = 'digits'\nconditions = []\nlr = .1\nout = ''"
        run = (f"{body}\nfrom robustnb import results\n"
               "results.save(out, 'own', dict(lr=lr), [results.row('accuracy', value)])")
        parts = (params, ['parameters']), (about, ['about']), (run, [])
        cells = [nbformat.v4.new_code_cell(text, metadata=dict(tags=tags)) for text, tags in parts]
        meta = {'kernelspec': {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}}
        Path(folder).mkdir(exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=meta), Path(folder)/'own.ipynb')
        return Path(folder)/'own.ipynb'
    return make


def done(tmp_path, toml):
    "Ids of the sweep's runs that count as done."
    (tmp_path/'own.toml').write_text(toml)
    sweep = read_sweep(tmp_path/'own.toml')
    return [r.id for r in sweep.runs if result_path(r, 'own', tmp_path/'runs', tmp_path/'none')], sweep


def test_editing_what_is_ones_own_makes_its_runs_not_done(tmp_path, own, monkeypatch):
    monkeypatch.setenv('ROBUSTNB_DATA', str(tmp_path))
    own()
    module = ('from dataclasses import dataclass\nfrom robustnb.conditions import Condition\n'
              '@dataclass(frozen=True)\nclass Dim(Condition):\n    by: float\n    kind = "dim"\n'
              '    def hits(self, model, x, y): return model(x*self.by).argmax(1) == y\n')
    (tmp_path/'own_conditions_a.py').write_text(module)
    data.save(data.load('digits').subset(30, 20), tmp_path/'mine')
    toml = ('experiment = "own.ipynb"\n[fixed]\ndataset = "mine"\n'
            'conditions = [{kind = "own_conditions_a:Dim", by = 0.5}]')
    sweep = done(tmp_path, toml)[1]
    assert sorted(sweep.runs[0].outside) == ['dataset', 'notebook', 'own_conditions_a:Dim']
    statuses = run_sweep(sweep, tmp_path/'runs', tmp_path/'none', workers=1, progress=False)
    assert [s['state'] for s in statuses] == ['done']
    first = done(tmp_path, toml)[0]
    own('value = lr  # the same, with a comment')
    (tmp_path/'own_conditions_a.py').write_text(module + '# a comment\n')
    assert done(tmp_path, toml)[0] == first and len(first) == 1
    (tmp_path/'own_conditions_a.py').write_text(module.replace('x*self.by', 'x/self.by'))
    assert not done(tmp_path, toml)[0]
    (tmp_path/'own_conditions_a.py').write_text(module)
    own('value = 2*lr')
    assert not done(tmp_path, toml)[0]
    own()
    assert done(tmp_path, toml)[0] == first
    shutil.copy(tmp_path/'mine'/'test.npz', tmp_path/'mine'/'train.npz')
    assert not done(tmp_path, toml)[0]


def test_two_notebooks_of_one_name_share_nothing(tmp_path, own):
    one = own('value = lr', tmp_path/'a')
    two = own('value = 2*lr', tmp_path/'b')
    first, second = (read_experiment(path).run({}) for path in (one, two))
    assert first.experiment == second.experiment and first.id != second.id


def test_a_comment_in_our_own_cells_changes_nothing():
    for path in EXPERIMENTS.glob('*.ipynb'):
        nb = nbformat.read(path, 4)
        before = cells_digest(nb)
        for cell in nb.cells:
            if cell.cell_type == 'code' and not cell.source.startswith('%'):
                cell.source += '\n# a remark'
        assert cells_digest(nb) == before
        nb.cells[-1].metadata.tags = []
        nb.cells[-1].cell_type = 'code'
        nb.cells[-1].update(source='1 + 1', outputs=[], execution_count=None)
        assert cells_digest(nb) != before


def test_a_later_default_is_written_out_and_a_new_parameter_renames_nothing(tmp_path, own):
    plain = read_experiment(own())
    renamed = read_experiment(own(about="introduced = {'lr': .2}"))
    assert plain.run({}).identity == {} and renamed.run({}).identity == dict(lr=.1)
    more = {**plain.parameters, 'width': type(plain.parameters['lr'])('width', 0)}
    assert identity({**plain.run({}).config, 'width': 0}, more) == {}


def test_parameters_of_anothers_notebook_keep_their_meaning(tmp_path):
    params = "weights = 'imagenet'\noriginal = 1\nconditions = ['fog', 'rain']\nout = ''"
    cells = [nbformat.v4.new_code_cell(params, metadata=dict(tags=['parameters'])), nbformat.v4.new_code_cell('1')]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path/'theirs.ipynb')
    run = read_experiment(tmp_path/'theirs.ipynb').run(dict(weights='none', conditions=['snow']))
    assert run.config == dict(weights='none', original=1, conditions=['snow']) and list(run.outside) == ['notebook']


def test_workers_that_differ_have_to_be_told():
    class Client:
        def __init__(self, answers): self.answers = answers
        def run(self, function, *args): return self.answers
        def scheduler_info(self): return dict(workers={'a': dict(nthreads=1)})
    assert asked_workers(Client(dict(a='bf16', b='bf16')))(max) == 'bf16'
    with pytest.raises(ValueError, match="the workers answer 'bf16', 'fp32', accepted: the same on all"):
        asked_workers(Client(dict(a='bf16', b='fp32')))(max)


# --- conditions in sweep files

def test_a_module_that_cannot_be_imported_is_named(tmp_path, own):
    own()
    (tmp_path/'own_broken.py').write_text('def half(')
    (tmp_path/'own_failing.py').write_text('1/0')
    (tmp_path/'own_other.py').write_text('Blur = 3')
    broken = dict(own_broken='SyntaxError', own_failing='ZeroDivisionError', own_other='which is no condition')
    for module, said in broken.items():
        with pytest.raises(ValueError, match=f'own.toml:3: kind: got .{module}:Blur., .*{said}'):
            done(tmp_path, f'experiment = "own.ipynb"\n[fixed]\nconditions = [{{kind = "{module}:Blur"}}]')


@pytest.mark.parametrize('line, said', [
    ('{kind = "hail"},', r"own.toml:5: kind: got 'hail', accepted: 'clean', 'gaussian'"),
    ('{kind = "gaussian", variance = 1},', 'own.toml:5: variance: no field of gaussian, accepted: n, var'),
    ('{kind = "gaussian"},', 'own.toml:5: var: missing for gaussian'),
    ('{kind = "attack", attack = "quick", norm = "linf", eps = "8//255"},', 'own.toml:5: eps: got'),
    ('{kind = "gaussian", var = []},', r'own.toml:5: var: got \[\]'),
    ('{kind = "band", var = 0.1, band = 11},', 'own.toml:5: band: got 11'),
    ('3,', 'own.toml:3: conditions: got'),
    ('{kind = "nowhere:Fog"},', 'own.toml:5: kind: got .nowhere:Fog., and there is no nowhere')])
def test_a_mistake_in_conditions_names_its_line(tmp_path, line, said):
    listed = f'conditions = [\n  {{kind = "clean"}},\n  {line}\n]\n'
    (tmp_path/'own.toml').write_text(f'experiment = "fig01_robustness"\n[fixed]\n{listed}')
    with pytest.raises(ValueError, match=said): read_sweep(tmp_path/'own.toml')


def test_conditions_are_one_value_or_an_axis_of_lists(tmp_path):
    def runs(text):
        (tmp_path/'own.toml').write_text(f'experiment = "fig01_robustness"\n[axes]\nconditions = {text}')
        return [r.config['conditions'] for r in read_sweep(tmp_path/'own.toml').runs]
    two = '[{kind = "gaussian", var = 0.1}, {kind = "gaussian", var = 0.2}]'
    assert runs(two) == [[dict(kind='gaussian', var=[.1, .2])]]
    assert runs('[[{kind = "gaussian", var = 0.1}], []]') == [[dict(kind='gaussian', var=.1)], []]


def test_weights_need_an_experiment_that_keeps_them(tmp_path):
    (tmp_path/'own.toml').write_text('experiment = "fig05_linear"\nkeep_weights = true')
    said = 'own.toml:2: keep_weights: fig05_linear has no parameter weights that is filled'
    with pytest.raises(ValueError, match=said): read_sweep(tmp_path/'own.toml')


# --- a condition of one's own, from the command line to the page

BLUR = (ROOT/'CONTRIBUTING.md').read_text(encoding='utf-8')


def own_condition():
    "The module of the example in CONTRIBUTING."
    return next(code for code in re.findall(r'```python\n(.*?)```', BLUR, re.S) if '(Condition)' in code)


def test_the_condition_of_contributing_runs_from_outside_of_the_package(tmp_path, robustnb, monkeypatch):
    (tmp_path/'mylab.py').write_text(own_condition())
    name = re.search(r'class (\w+)\(Condition\)', own_condition())[1]
    (tmp_path/'mine.toml').write_text(
        'experiment = "fig01_robustness"\nkeep_weights = true\n[fixed]\nepochs = 2\nn_train = 200\nn_test = 100\n'
        'conditions = []\n[axes]\noptimizer = ["sgd", "adam"]')
    out, err = robustnb('sweep', 'mine.toml', '--workers', 1).communicate()
    assert '2 done now' in out, err
    (tmp_path/'more.toml').write_text(f'conditions = [{{kind = "mylab:{name}", side = [3, 5]}}]')
    # the command's own environment has PYTHONPATH set to the checkout; the module lies in the working directory
    process = robustnb('measure', 'runs/fig01_robustness', '--conditions', 'more.toml', '--workers', 1)
    out, err = process.communicate()
    assert process.returncode == 0 and '2 done now' in out, err
    found = [results.load(p) for p in results.find(tmp_path/'runs'/'measure')]
    kinds = lambda result: [row['kind'] for row in result['metrics']]
    assert [kinds(f) for f in found] == [['clean', 'blur', 'blur']]*2
    assert all(f'mylab:{name}' in f['outside'] for f in found)
    out, err = robustnb('measure', 'runs/fig01_robustness', '--conditions', 'more.toml', '--workers', 1).communicate()
    assert '0 done now, 2 done before' in out, err
    page = next((tmp_path/'runs'/'reports').glob('*/report.html')).read_text(encoding='utf-8')
    assert 'blur' in page
