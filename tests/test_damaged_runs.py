"""Random damage to the files of sweeps, and random kills.

Nothing is lost or done twice, nothing ends in a traceback, and what is whole is still read right."""
import itertools, json, os, random, signal, time
from contextlib import suppress

import nbformat
import psutil
import pytest

from robustnb import plots, results
from robustnb.core import read_json
from robustnb.report import gather, failure_table, provenance_table, report
from robustnb.sweep import Parameter, convert, damaged, is_done, parameters, read_sweep, result_path, run_sweep

ODD = [{}, [], [1], None, True, -1, 1.5, 10**400, '', 'x', '\ud800', {'$float': 'nan'}, {'$float': []}, {'a': {}},
       [[[]]], 'nan', 2**70, {'metric': 1}]
STRAY = [b'[', b'{', b'"', b'\n', b'9'*400, b'[' * 100_000, b'1e400', b'NaN', b'\xff\xfe', b'1979-05-27', b"'''",
         b'%run x\n', b'9**9**9']
EMPTY = [b'', b'{}', b'[]', b'null', b'0', b'"x"', b'\x00'*50, '{}'.encode('utf-16')]


# --- damage

def places(value, path=()):
    "Path of every value in nested tables and lists."
    yield path
    inner = []
    if isinstance(value, dict): inner = value.items()
    elif isinstance(value, list): inner = enumerate(value)
    for key, part in inner: yield from places(part, (*path, key))

def changed_value(text, rng):
    "JSON text in which one value is another, or is gone."
    content = json.loads(text)
    path = rng.choice([p for p in places(content) if p])
    owner = content
    for key in path[:-1]: owner = owner[key]
    if rng.random() < .2: del owner[path[-1]]
    else: owner[path[-1]] = rng.choice(ODD)
    return json.dumps(content).encode()

def changed_bytes(text, rng):
    "Text that is cut, doubled, or has other bytes, as disks leave it."
    content = bytearray(text.encode())
    at = rng.randrange(len(content))
    kind = rng.randrange(6)
    if kind == 0: del content[at:]
    if kind == 1: content[at:at] = bytes(rng.randrange(256) for _ in range(3))
    if kind == 2: content[at] = rng.randrange(256)
    if kind == 3: content[at:at + rng.randrange(1, 30)] = b''
    if kind == 4: content[at:at] = rng.choice(STRAY)
    if kind == 5: content[:] = rng.choice(EMPTY)
    return bytes(content)

def damages(text, n, seed, ways=(changed_bytes,)):
    rng = random.Random(seed)
    return (rng.choice(ways)(text, rng) for _ in range(n))

def count(short, long):
    return pytest.mark.parametrize('n', [short, pytest.param(long, marks=pytest.mark.slow)])


@pytest.fixture
def done(tmp_path, experiment):
    "A sweep file of two finished runs, which have all kinds of values in them."
    body = ('import torch\nvalue = lr\n'
            'extra = [results.accuracy_row(torch.arange(20) % 3 > 0, kind="gaussian", var=.1), '
            'results.row("loss", float("nan"), 20, norm="linf", eps=8/255)]')
    path = experiment(f'from robustnb import results\n{body}')
    saved = 'dict(lr=lr, seed=seed), ['
    more = "dict(optimizer='sgd', lr=lr, seed=seed), [*extra, "
    path.write_text(path.read_text().replace(saved, more))
    (tmp_path/'toy.toml').write_text('# two runs\nexperiment = "toy.ipynb"\n[fixed]\nseed = 3\n'
                                     '[[grid]]\nlr = [0.1, "1/5"]\n')
    sweep = read_sweep(tmp_path/'toy.toml')
    run_sweep(sweep, tmp_path/'runs', tmp_path/'results', workers=2, progress=False)
    assert all(result_path(r, sweep.name, tmp_path/'runs', tmp_path/'results') for r in sweep.runs)
    return sweep

def refused(function, *args, name):
    "Is the call refused by a ValueError that names the file? Anything else it may raise fails the test."
    try: function(*args)
    except ValueError as e:
        assert name in str(e) and len(str(e)) < 2000, e
        return True
    return False


@count(150, 600)
def test_damaged_results(done, tmp_path, n):
    place = tmp_path/'runs/toy'/done.runs[0].id
    whole = (place/'result.json').read_text()
    kinds = [0, 0]
    for content in damages(whole, n, 1, (changed_bytes, changed_value)):
        (place/'result.json').write_bytes(content)
        bad = refused(results.load, place/'result.json', name='result.json')
        kinds[bad] += 1
        assert is_done(place) != bad and bool(damaged(done, tmp_path/'runs', tmp_path/'results')) == bad
        if bad: continue  # what is read must serve everybody
        made = gather(tmp_path/'runs')
        plots.comparison(made.tidy)
        provenance_table(made.made)
    assert min(kinds) > n/20  # some damage is harmless: a letter of a commit
    (place/'result.json').write_text(whole)
    assert is_done(place) and results.load(place/'result.json')['config']['lr'] == done.runs[0].config['lr']


def test_values_that_a_page_relies_on(done, tmp_path):
    path = tmp_path/'runs/toy'/done.runs[0].id/'result.json'
    whole = path.read_text()
    row = dict(metric='accuracy', value=.5, n=10, split='test')
    def with_row(**kw): return lambda r: r['metrics'].append({**row, **kw})
    def with_radii(r):  # and no attack named
        r['metrics'] += [{**row, 'kind': 'attack', 'norm': 'l2', 'eps': eps} for eps in (.1, .2)]
    for change, said in ((lambda r: r['config'].update(dataset=['mnist']), 'dataset'),
                         (lambda r: r['config'].update(model={}), 'model'),
                         (lambda r: r['config'].update(name='\udc80'), 'not a complete JSON file'),
                         (with_row(), 'kind'), (with_row(kind='attack', norm='linf'), 'eps'),
                         (with_row(kind='attack', norm='linf', eps={'$float': 'nan'}), 'eps'),
                         (with_row(kind='gaussian'), 'var'), (with_row(kind='band', var=.1, band='low'), 'band'),
                         (with_row(kind='band', var=.1, band=3), None),
                         (with_row(kind='attack', norm='linf', eps=.1), None),
                         (with_row(kind='clean'), None), (with_row(kind='haze', strength='much'), 'strength'),
                         (with_radii, None)):
        result = json.loads(whole)
        change(result)
        path.write_text(json.dumps(result))
        if said:
            with pytest.raises(ValueError, match=f'result.json: .*{said}'): gather(tmp_path/'runs')
        else: report(gather(tmp_path/'runs'), tmp_path/'page')


def test_halves_of_characters(tmp_path, experiment, robustnb):
    with pytest.raises(ValueError, match='name: got .*accepted: texts'):
        convert('\udcff', Parameter('name', 'x'))
    experiment("raise ValueError(chr(0xdcff))")
    for _ in range(2):
        process = robustnb('run', 'toy.ipynb')
        out, err = process.communicate()
        assert process.returncode == 1, out + err
        assert 'udcff' in out, out + err
        assert 'Traceback' not in err, out + err
    failed, = results.failures(tmp_path/'runs')
    assert 'udcff' in failed['error'] and 'JSON' not in failed['error']


@count(100, 300)
def test_damaged_status_files(done, tmp_path, n):
    place = tmp_path/'runs/toy'/done.runs[0].id
    whole = (place/'status.json').read_text()
    for content in damages(whole, n, 2, (changed_bytes, changed_value)):
        (place/'status.json').write_bytes(content)
        bad = refused(results.load_status, place/'status.json', name='status.json')
        failed = results.failures(tmp_path/'runs')
        assert not (bad and is_done(place)) and bad <= any('status.json' in f['error'] for f in failed)
        failure_table(failed)
    (place/'status.json').write_text(whole)
    assert is_done(place) and not results.failures(tmp_path/'runs')


@count(100, 400)
def test_damaged_sweep_files(done, tmp_path, n):
    path = tmp_path/'toy.toml'
    whole = path.read_text()
    kinds = [0, 0]
    for content in damages(whole, n, 3):
        path.write_bytes(content)
        kinds[refused(read_sweep, path, name='toy.toml')] += 1
    assert min(kinds) > n/50
    path.write_bytes(b'\xef\xbb\xbf' + whole.encode())  # Windows begins files so
    assert [r.config for r in read_sweep(path).runs] == [dict(lr=.1, seed=3), dict(lr=.2, seed=3)]


@count(100, 400)
def test_damaged_notebooks(tmp_path, experiment, n):
    path = experiment()
    nb = nbformat.read(path, 4)
    cell = nb.cells[0].source = "lr = .1  # learning rate\nseed: int = 3\neps = [8/255, 2*lr]\na, b = 1, 'x'\nout = ''"
    nbformat.write(nb, path)
    whole = path.read_text()
    kinds = [0, 0]
    for i, content in enumerate(damages(cell, n//2, 4)):
        nb.cells[0].source = content.decode(errors='replace')
        nbformat.write(nb, path)
        kinds[refused(parameters, path, name='toy.ipynb')] += 1
    for content in damages(whole, n//2, 5, (changed_bytes, changed_value)):
        path.write_bytes(content)
        kinds[refused(parameters, path, name='toy.ipynb')] += 1
    assert min(kinds) > n/50
    path.write_text(whole)
    assert {k: p.default for k, p in parameters(path).items()} == dict(lr=.1, seed=3, eps=[8/255, .2], a=1, b='x')


@pytest.mark.parametrize('text, said', [
    ('lr = ' + '9'*400, 'toy.toml:3: lr: got'),
    ('lr = ' + '9'*5000, 'toy.toml: not valid TOML'),
    ('lr = 1e400', 'toy.toml: not valid TOML, 1e400: too large'),
    ('lr = 1979-05-27', 'toy.toml:3: lr: got'),
    ('lr = [1979-05-27T07:32:00]', 'toy.toml:3: lr: got'),
    ('lr = {a = {b = 1}}', 'toy.toml:3: lr: got'),
    ('lr = ' + '['*100_000, 'toy.toml: not valid TOML, nested too deeply'),
    ('seed = 99999999999999999999', 'toy.toml:3: seed: got'),
    ('"l\\u0000r" = 1', 'toy.toml'),
    ('"ключ" = 1', 'toy.toml:3: parameter of toy'),
    ('lr = "1e400/1"', 'toy.toml:3: lr: got'),
    ('lr = true', 'toy.toml:3: lr: got')])
def test_odd_values_in_sweep_files(tmp_path, experiment, text, said):
    experiment()
    (tmp_path/'toy.toml').write_text(f'experiment = "toy.ipynb"\n[fixed]\n{text}\n')
    with pytest.raises(ValueError) as error: read_sweep(tmp_path/'toy.toml')
    assert said in str(error.value) and len(str(error.value)) < 500


def test_dates_are_refused_where_any_type_is_accepted():
    import datetime
    for default in None, [], ['x']:
        for value in datetime.date(2000, 1, 1), [datetime.date(2000, 1, 1)], 2**64:
            with pytest.raises(ValueError, match='weight_decay: got'):
                convert(value, Parameter('weight_decay', default))
    assert convert(.1, Parameter('weight_decay', None)) == .1


def test_other_encodings_of_sweep_files(tmp_path, experiment):
    experiment()
    (tmp_path/'toy.toml').write_bytes('experiment = "toy.ipynb"'.encode('utf-16'))
    with pytest.raises(ValueError, match='toy.toml:1: not valid TOML, which is UTF-8'):
        read_sweep(tmp_path/'toy.toml')


@pytest.mark.parametrize('source, said', [
    ('import os', 'cell 1, line 1'),
    ('lr = .1\n%matplotlib inline', 'cell 1, line 2'),
    ('lr = .1\n!ls', 'cell 1, line 2'),
    ('lr = .1\n\nseed = int(3)', 'cell 1, line 3'),
    ('lr = .1\nseed = 9**9**9', 'cell 1, line 2'),
    ('lr = [*[1]]', 'cell 1, line 1'),
    ('lr = (1).real', 'cell 1, line 1'),
    ('lr = ' + '('*5000, 'cell 1')])
def test_code_in_parameter_cells(tmp_path, experiment, source, said):
    path = experiment()
    nb = nbformat.read(path, 4)
    nb.cells[0].source = source
    nbformat.write(nb, path)
    with pytest.raises(ValueError) as error: parameters(path)
    assert f'{path}: {said}' in str(error.value)


def test_two_parameter_cells_are_refused(tmp_path, experiment):
    path = experiment()
    nb = nbformat.read(path, 4)
    nb.cells.append(nb.cells[0])
    nbformat.write(nb, path)
    with pytest.raises(ValueError, match='cells 1, 3 are tagged parameters'): parameters(path)


@pytest.mark.parametrize('name', ['result.json', 'status.json'])
@pytest.mark.parametrize('kind', ['folder', 'pipe', 'empty', 'brackets'])
def test_a_damaged_run_is_named_and_done_again(done, tmp_path, robustnb, name, kind):
    path = tmp_path/'runs/toy'/done.runs[0].id/name
    path.unlink()
    if kind == 'folder': path.mkdir()
    if kind == 'pipe': os.mkfifo(path)
    if kind == 'empty': path.touch()
    if kind == 'brackets': path.write_text('[' * 100_000)
    out, err = robustnb('sweep', 'toy.toml', '--dry-run').communicate()
    assert '2 runs, 1 to do' in out, err
    process = robustnb('sweep', 'toy.toml')
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    assert '1 done now, 1 done before' in out, out + err
    assert 'damaged: ' in out, out + err
    assert name in out, out + err
    assert 'Traceback' not in err, out + err
    assert all(result_path(r, done.name, tmp_path/'runs', tmp_path/'results') for r in done.runs)


# --- kills

def family(process):
    "The processes of a sweep by what they are: driver, server, watchers, runs."
    try: driver = psutil.Process(process.pid)
    except psutil.Error: return []
    with suppress(psutil.Error): return [driver, *driver.children(recursive=True)]
    return []

def contents(folder):
    "What was measured, by run."
    values = lambda path: [(r['metric'], r['value']) for r in read_json(path)['metrics']]
    return {p.parent.name: values(p) for p in folder.glob('runs/*/[!.]*/result.json')}

def stamps(folder):
    "When each run's result was written."
    return {p: p.stat().st_mtime_ns for p in folder.glob('runs/*/[!.]*/result.json')}

@count(6, 200)
def test_random_kills_lose_and_double_nothing(tmp_path, experiment, robustnb, n):
    rng = random.Random(n)
    runs = max(6, n//5)
    sums = 'x = 0.\nfor i in range(1000): x += (lr + seed)/(i + 1)\ntime.sleep(.3); value = x'
    for name in 'one', 'two':
        experiment(f'import time\n{sums}', name)
        seeds = list(range(runs//2))
        grid = f'[[grid]]\nlr = [0.1, 0.2]\nseed = {seeds}\n'
        (tmp_path/f'{name}.toml').write_text(f'experiment = "{name}.ipynb"\n{grid}')
    kills = 0
    landed = {}
    for name in itertools.cycle(['one', 'two']):
        if kills >= n: break
        before = stamps(tmp_path)
        process = robustnb('sweep', f'{name}.toml', '--workers', '2')
        end = time.monotonic() + rng.uniform(0, 8)
        while time.monotonic() < end and process.poll() is None: time.sleep(.05)
        victims = family(process)
        kind = rng.choice(['driver', 'other', 'other', 'terminate'])
        with suppress(psutil.Error, IndexError):
            if kind == 'driver': victims[0].kill()
            if kind == 'terminate': victims[0].send_signal(signal.SIGTERM)
            if kind == 'other': rng.choice(victims[1:]).kill()
            kills += 1
            landed[kind] = landed.get(kind, 0) + 1
        out, err = process.communicate()
        assert 'Traceback' not in err, err
        # nothing that was done is gone, has changed or was done again
        assert before.items() <= stamps(tmp_path).items()
        if process.returncode == 0 and kind != 'other':  # it was done before the signal came: begin a new round
            for p in tmp_path.glob(f'runs/{name}/[!.]*/status.json'):
                if rng.random() < .3:
                    for q in sorted(p.parent.iterdir()): q.unlink()
                    p.parent.rmdir()
    undisturbed = {}
    for name in 'one', 'two':
        out, err = robustnb('sweep', f'{name}.toml', '--workers', '2').communicate()
        assert f'{runs} runs, ' in out and ' 0 failed' in out, out + err
        assert not list(tmp_path.glob(f'runs/{name}/.robustnb/work/*'))
        robustnb('sweep', f'{name}.toml', '--workers', '2', '--out', 'quiet/runs').communicate()
    print(kills, landed)
    assert contents(tmp_path) == contents(tmp_path/'quiet') and len(contents(tmp_path)) == 2*runs
