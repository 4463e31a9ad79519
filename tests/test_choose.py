"""Sweeps that choose their rates, from the command line."""
import json, shutil

import nbformat, pytest

from robustnb import results
from robustnb.cli import main

PARAMETERS = "optimizer = 'sgd'\nlr = .1\nepochs = 5\nseed = 0\nholdout = 0\nout = ''"
RUN = """from robustnb import results
config = dict(optimizer=optimizer, lr=lr, epochs=epochs, seed=seed, holdout=holdout)
split = 'holdout' if holdout else 'test'
results.save(out, 'scored', config, [results.row('accuracy', VALUE, 400, split, kind='clean')])"""

SWEEP = """experiment = "scored.ipynb"
[axes]
seed = [1, 2]
[choose]
holdout = 400
[[grid]]
optimizer = ["sgd", "adam"]
lr = [0.1, 0.2, 0.3]
"""


@pytest.fixture
def folder(tmp_path):
    "A folder with an experiment that is best at the rate .3, and a sweep that chooses."
    notebook(tmp_path, 'lr')
    (tmp_path/'rates.toml').write_text(SWEEP)
    return tmp_path


def notebook(folder, value):
    cells = [nbformat.v4.new_code_cell(PARAMETERS), nbformat.v4.new_code_cell(RUN.replace('VALUE', value))]
    cells[0].metadata.tags = ['parameters']
    kernel = dict(name='python3', display_name='Python 3', language='python')
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=kernel)), folder/'scored.ipynb')


def sweep(folder, capsys, *options):
    "(exit code, what --json prints)."
    code = main(['sweep', str(folder/'rates.toml'), '--out', str(folder/'runs'), '--results', str(folder/'results'),
                 '--workers', '1', '--json', *options])
    return code, json.loads(capsys.readouterr().out)


def test_one_command_chooses_and_does_the_rest(folder, capsys):
    code, plan = sweep(folder, capsys, '--dry-run')
    assert (code, plan['to_do']) == (0, 6)
    code, said = sweep(folder, capsys, '--publish')
    assert (code, said['runs'], said['done_now']) == (0, 6 + 2*2, 10)
    chosen = [text.split(', with')[0] for text in said['chosen']]
    assert chosen == ['chosen: adam: lr 0.3 epochs 5', 'chosen: sgd: lr 0.3 epochs 5']
    assert all('at the edge of its grid: highest lr' in text for text in said['chosen'])
    assert len(results.find(folder/'results')) == 10
    code, plan = sweep(folder, capsys, '--dry-run')
    assert (code, plan['to_do'], len(plan['runs'])) == (0, 0, 10)
    shutil.rmtree(folder/'runs')
    code, said = sweep(folder, capsys)
    assert (code, said['done_now'], said['done_before']) == (0, 0, 10), 'what is published counts'


def test_a_candidate_that_fails_holds_up_the_choice(folder, capsys):
    notebook(folder, "lr if (optimizer, lr) != ('adam', .2) else 1/0")
    code, said = sweep(folder, capsys)
    assert (code, said['runs'], len(said['failed'])) == (1, 6, 1)
    assert said['chosen'][0].startswith('not chosen: rates: 1 of 6 candidates have no result')
    assert said['failed'][0]['id'] in said['chosen'][0]
    notebook(folder, 'lr')  # mended, which makes other runs of it, as it is a notebook of one's own
    assert sweep(folder, capsys)[0] == 0


def test_a_limit_publishes_what_is_done(folder, capsys):
    notebook(folder, '(__import__("time").sleep(2), lr)[1]')
    code, said = sweep(folder, capsys)
    assert code == 0
    one = next(p for p in results.find(folder/'runs') if results.load(p)['config']['holdout'])
    shutil.rmtree(one.parent)
    code, said = sweep(folder, capsys, '--limit', '1s', '--publish')
    assert code == 124 and said['chosen'][0].startswith('not chosen')
    assert len(results.find(folder/'results')) == 5, 'the candidates that are done'


def test_all_of_a_choice_diverged(folder, capsys):
    notebook(folder, "float('nan') if optimizer == 'adam' else lr")
    code, said = sweep(folder, capsys)
    assert (code, said['runs'], said['failed']) == (1, 6, [])
    assert 'every candidate diverged' in said['chosen'][0] and 'adam' in said['chosen'][0]


def test_one_that_diverged_is_not_chosen(folder, capsys):
    notebook(folder, "float('nan') if lr == .3 else lr")
    code, said = sweep(folder, capsys)
    assert code == 0 and all('lr 0.2' in text and 'edge' not in text for text in said['chosen'])


@pytest.mark.parametrize('old, new, words', [
    ('holdout = 400', 'holdout = 0', 'choose: got holdout 0, accepted: holdout = N'),
    ('holdout = 400', 'lr = 1.0', 'choose: got holdout 0'),
    ('holdout = 400', 'holdout = 400\nover = "lr"', "over: got 'lr', accepted: a list of parameters"),
    ('holdout = 400', 'holdout = 400\nover = ["rate"]', "over: parameter of scored: got 'rate'"),
    ('[choose]', '[chose]', "key: got 'chose'")])
def test_mistakes_are_named_with_their_line(folder, capsys, old, new, words):
    (folder/'rates.toml').write_text(SWEEP.replace(old, new))
    assert main(['sweep', str(folder/'rates.toml'), '--out', str(folder/'runs')]) == 2
    assert f'{words}' in capsys.readouterr().err
    assert not (folder/'runs').exists()


def test_a_rate_at_which_some_seeds_do_not_train_is_not_chosen(folder, capsys):
    "Chosen by three seeds, of which the highest rate is best with the first and nothing with the others."
    text = (folder/'rates.toml').read_text()
    choose = 'holdout = 400'
    assert text.count(choose) == 1 and 'seed' not in text.split('[choose]')[1].split('[')[0]
    (folder/'rates.toml').write_text(text.replace(choose, f'{choose}\nseed = [0, 1, 2]'))
    notebook(folder, 'lr if lr < .3 or seed == 0 else 0.')
    code, said = sweep(folder, capsys)
    assert (code, said['runs']) == (0, 3*6 + 2*2)
    chosen = [text.split(' held-out')[0] for text in said['chosen']]
    assert chosen == [f'chosen: {name}: lr 0.2 epochs 5, with 20.00% of 400' for name in ('adam', 'sgd')]
    assert all('held-out images, mean of 3 seeds' in t for t in said['chosen'])
