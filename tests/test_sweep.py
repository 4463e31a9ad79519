"Sweeps as a user meets them: real processes, interrupted, restarted, given wrong files."
import json, os, re, signal, subprocess, sys, time
from dataclasses import dataclass
from pathlib import Path

import pytest

from robustnb.cli import main
from robustnb.core import read_json, shipped
from robustnb.sweep import DRIVERS, Limit, Parameter, TimeUp, cluster, convert, dispatch, parameters
from robustnb.sweep import read_sweep, run_sweep

SWEEP = 'experiment = "toy.ipynb"\n[[grid]]\nlr = [0.1, 0.2, 0.3]\nseed = [0, 1]\n'


def results_of(tmp_path):
    return sorted(tmp_path.glob('runs/toy/[!.]*/result.json'))


def test_a_sweep_runs_and_prints_its_table(tmp_path, experiment, robustnb):
    experiment()
    (tmp_path/'toy.toml').write_text(SWEEP)
    process = robustnb('sweep', 'toy.toml', '--workers', '2')
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert len(results_of(tmp_path)) == 6 and '6 runs, 6 done now, 0 done before, 0 failed' in out
    again = robustnb('sweep', 'toy.toml')
    assert '0 done now, 6 done before' in again.communicate()[0]


def test_interrupted_and_started_again_it_does_only_the_missing_runs(tmp_path, experiment, robustnb):
    experiment('import time; time.sleep(2); value = lr')
    (tmp_path/'toy.toml').write_text(SWEEP)
    process = robustnb('sweep', 'toy.toml', '--workers', '1')
    while not results_of(tmp_path): time.sleep(.2)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate()
    done = {p: p.stat().st_mtime_ns for p in results_of(tmp_path)}
    assert process.returncode == 130 and re.search(r'interrupted: [1-5] of 6 runs are done', err), err
    again = robustnb('sweep', 'toy.toml', '--workers', '2')
    out, err = again.communicate()
    assert again.returncode == 0, err
    assert f'{6 - len(done)} done now, {len(done)} done before' in out
    assert len(results_of(tmp_path)) == 6 and all(p.stat().st_mtime_ns == t for p, t in done.items())
    assert not list(tmp_path.glob('runs/toy/.robustnb/work/*'))


def test_a_failed_run_is_named_and_the_others_finish(tmp_path, experiment, robustnb):
    experiment("assert lr != 0.2, 'no such luck'; value = lr")
    (tmp_path/'toy.toml').write_text(SWEEP)
    process = robustnb('sweep', 'toy.toml', '--workers', '2')
    out, err = process.communicate()
    assert process.returncode == 1 and len(results_of(tmp_path)) == 4
    assert out.count('no such luck') == 2 and 'notebook.ipynb' in out


def test_a_half_written_result_is_not_a_result(tmp_path, experiment, robustnb):
    experiment()
    (tmp_path/'toy.toml').write_text(SWEEP)
    robustnb('sweep', 'toy.toml', '--workers', '2').communicate()
    broken = results_of(tmp_path)[2]
    broken.write_text(broken.read_text()[:100])
    out, _ = robustnb('sweep', 'toy.toml').communicate()
    assert '1 done now, 5 done before' in out


def test_wrong_files_are_refused_before_anything_runs(tmp_path, experiment, robustnb):
    experiment()
    (tmp_path/'toy.toml').write_text(SWEEP.replace('lr =', 'rate ='))
    process = robustnb('sweep', 'toy.toml')
    _, err = process.communicate()
    assert process.returncode == 2 and "toy.toml:3: parameter of toy: got 'rate', accepted: 'lr', 'seed'" in err
    assert not (tmp_path/'runs').exists()
    (tmp_path/'toy.toml').write_text(SWEEP)
    process = robustnb('sweep', 'toy.toml', '--timeout', 0)
    assert 'timeout: got 0.0, accepted: a finite number > 0' in process.communicate()[1] and process.returncode == 2
    assert not (tmp_path/'runs').exists()


def test_a_reader_that_leaves_early_is_no_error():
    main = '"import sys; from robustnb.cli import main; sys.exit(main())"'
    command = f'{sys.executable} -c {main} run fig01_robustness --parameters | head -n 1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(['bash', '-c', command], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.count('\n') == 1
    assert not done.stderr


def test_own_images_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv('ROBUSTNB_DATA', str(tmp_path))
    dataset = Parameter('dataset', 'digits', choices=('digits', 'mnist'), folder=True)
    with pytest.raises(ValueError, match="dataset: got 'mine'"): convert('mine', dataset)
    (tmp_path/'mine').mkdir()
    assert convert('mine', dataset) == 'mine'


def test_help_does_not_import_torch():
    code = ("import sys; sys.argv = ['robustnb', '--help']\nfrom robustnb.cli import main\n"
            "try: main()\nexcept SystemExit: pass\nprint('torch' in sys.modules)")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == 'False' and 'sweep' in done.stdout


def test_the_package_itself_imports_no_more_than_torch():
    code = ("import torch, sys; before = set(sys.modules); import robustnb; new = set(sys.modules) - before; "
            "print(sorted(m for m in new if not m.startswith('robustnb')))")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == '[]'


@dataclass
class Job:
    id: str


def wait_for_the_others(job, folder, n):
    "The first job ends when all others have ended; false where that never happens."
    if job.id != '0':
        Path(folder, job.id).touch()
        return True
    for _ in range(600):
        if len(list(Path(folder).iterdir())) == n - 1: return True
        time.sleep(.1)
    return False


def test_a_long_run_holds_up_no_other(tmp_path):
    jobs = [Job(str(i)) for i in range(12)]
    with cluster(2) as client:
        assert all(future.result() for _, future in dispatch(client, wait_for_the_others, jobs, str(tmp_path), 12))


def test_a_relative_data_folder_is_the_one_of_whoever_starts_the_sweep(tmp_path, experiment, robustnb, monkeypatch):
    experiment('import os; value = float(os.path.isdir(os.environ["ROBUSTNB_DATA"]))')
    (tmp_path/'mine').mkdir()
    monkeypatch.setenv('ROBUSTNB_DATA', 'mine')
    process = robustnb('run', 'toy.ipynb')
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert read_json(*results_of(tmp_path))['metrics'][0]['value'] == 1


# --- sweep files with mistakes

@pytest.mark.parametrize('text, said', [
    ('experiment = "fig01_robustness"\n[grid]\nlr = 0.1', r'sweep.toml:2: grid: got .*accepted: tables \[\[grid\]\]'),
    ('experiment = "fig01_robustness"\ngrid = []', 'sweep.toml:2: grid: got'),
    ('experiment = "fig01_robustness"\ngrid = [1, 2]', 'sweep.toml:2: grid: got'),
    ('experiment = "fig01_robustness"\nfixed = 3', r'sweep.toml:2: fixed: got 3, accepted: a table \[fixed\]'),
    ('experiment = 5', 'sweep.toml:1: experiment: got 5'),
    ('experiment = "fig01_robustness"\n[axes]\nlr = []', r'sweep.toml:3: lr: got \[\], accepted: at least one value'),
    ('experiment = "fig01_robustness"\n[fixed]\nlr = "1/0"', 'sweep.toml:3: lr: got .1/0., accepted: float')])
def test_every_mistake_in_a_file_names_its_line(tmp_path, text, said):
    (tmp_path/'sweep.toml').write_text(text)
    with pytest.raises(ValueError, match=said): read_sweep(tmp_path/'sweep.toml')

def test_a_file_in_another_encoding(tmp_path):
    (tmp_path/'sweep.toml').write_bytes('# Stärke\nexperiment = "fig01_robustness"'.encode('latin-1'))
    with pytest.raises(ValueError, match='sweep.toml:1: not valid TOML'):
        read_sweep(tmp_path/'sweep.toml')


# --- what a driver carries

def test_a_driver_without_gpus_does_without_torch():
    "Torch takes seconds and half a GiB, which only the runs need."
    found = [path for driver in DRIVERS for path in Path('/dev').glob(driver)]
    if found: pytest.skip('this machine has a driver of GPUs')
    code = "import sys; from robustnb import cli, sweep; print(sweep.gpus(), sweep.seats(2), 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert out == '[] [{}, {}] False\n'


# --- who settles precision, and which GPU a run sees

FAKE = '''
# A machine with two GPUs, of which the second may be without bf16. Only processes forked for runs may initialise CUDA.
import os, sys
import torch
seen = lambda: os.environ.get('CUDA_VISIBLE_DEVICES', '0,1').split(',')
for_runs = 'multiprocessing.forkserver' in ' '.join(sys.orig_argv)
def initialise():
    assert for_runs, 'CUDA was initialised in a process that does no run'
    return True
torch.cuda.device_count = lambda: len(seen())
torch.cuda.is_available = initialise
torch.cuda.is_bf16_supported = lambda *args, **options: initialise() and seen()[0] in os.environ['BF16_ON']
torch.cpu.get_capabilities = dict
'''

@pytest.fixture
def two_gpus(tmp_path):
    "Function (numbers of the GPUs that compute in bf16) -> a command that runs another one on a machine with two GPUs."
    (tmp_path/'fake').mkdir()
    (tmp_path/'fake/sitecustomize.py').write_text(FAKE)
    path = os.pathsep.join([str(tmp_path/'fake'), str(Path(__file__).resolve().parents[1])])
    return lambda bf16: ['env', '-u', 'CUDA_VISIBLE_DEVICES', f'PYTHONPATH={path}', f'BF16_ON={bf16}']


def settled(tmp_path, robustnb, before, *more):
    "Exit code of a dry run with precision 'auto', the precisions of its runs, and what is said."
    (tmp_path/'auto.toml').write_text('experiment = "fig01_robustness"\n[fixed]\nprecision = "auto"')
    process = robustnb('sweep', 'auto.toml', '--dry-run', '--json', *more, before=before)
    out, err = process.communicate()
    runs = json.loads(out)['runs'] if out else []
    return process.returncode, [run['config']['precision'] for run in runs], err


@pytest.mark.parametrize('bf16, precision', [('01', 'bf16'), ('', 'fp32')])
def test_precision_is_settled_by_the_gpu_of_a_run(tmp_path, robustnb, two_gpus, bf16, precision):
    code, found, err = settled(tmp_path, robustnb, two_gpus(bf16))
    assert (code, found) == (0, [precision]), err


def test_gpus_that_differ_leave_precision_open(tmp_path, robustnb, two_gpus):
    code, found, err = settled(tmp_path, robustnb, two_gpus('0'))
    said = "precision: the workers answer 'bf16', 'fp32', accepted: the same on all; give a value in the sweep file"
    assert code == 2 and said in err, err
    assert settled(tmp_path, robustnb, two_gpus('0'), '--set', 'precision=fp32')[:2] == (0, ['fp32'])
    one = [*two_gpus('0'), 'CUDA_VISIBLE_DEVICES=0']  # the others are hidden by the user
    assert settled(tmp_path, robustnb, one)[:2] == (0, ['bf16'])


BUSY = '''import os, time
from pathlib import Path
start = time.time()
if lr == .1 and seed == 0 and not Path({there!r}, 'died').exists():
    Path({there!r}, 'died').touch()
    os.kill(os.getpid(), 9)
time.sleep(1.5)
value = lr
gpu = os.environ.get('CUDA_VISIBLE_DEVICES')
Path({there!r}, f'{{lr}}-{{seed}}').write_text(f'{{gpu}} {{start}} {{time.time()}}')'''


def watched(tmp_path, experiment, robustnb, before, *more):
    "A sweep whose first run dies: how many runs it did at a time on each GPU."
    there = tmp_path/'seen'
    there.mkdir()
    experiment(BUSY.format(there=str(there)))
    (tmp_path/'toy.toml').write_text(SWEEP)
    process = robustnb('sweep', 'toy.toml', *more, before=before)
    out, err = process.communicate()
    assert process.returncode == 1 and '5 done now, 0 done before, 1 failed' in out, err
    runs = [path.read_text().split() for path in there.glob('0.*')]
    def meeting(run):
        "GPUs of the runs that were under way when this one began."
        begun = float(run[1])
        return [gpu for gpu, start, end in runs if float(start) <= begun < float(end)]
    most = lambda gpu: max(meeting(run).count(gpu) for run in runs)
    return {gpu: most(gpu) for gpu in sorted({run[0] for run in runs})}


@pytest.mark.parametrize('given, at_a_time', [
    ([], {'0': 1, '1': 1}), (['--per-gpu', '2'], {'0': 2, '1': 2}),
    (['--workers', '1'], {'0': 1}), (['--workers', '3'], {'0': 2, '1': 1})])
def test_each_run_sees_one_gpu_and_one_that_dies_leaves_it(tmp_path, experiment, robustnb, two_gpus, given, at_a_time):
    assert watched(tmp_path, experiment, robustnb, two_gpus('01'), *given) == at_a_time


def test_gpus_that_the_user_names_are_shared_out(tmp_path, experiment, robustnb, two_gpus):
    names = [*two_gpus('01'), 'CUDA_VISIBLE_DEVICES=GPU-5ebe,GPU-9cc1']
    assert watched(tmp_path, experiment, robustnb, names) == {'GPU-5ebe': 1, 'GPU-9cc1': 1}


def test_runs_for_each_gpu_need_one(tmp_path, experiment, robustnb):
    experiment()
    (tmp_path/'toy.toml').write_text(SWEEP)
    hidden = ['env', 'CUDA_VISIBLE_DEVICES=']
    for more in [], ['--dry-run']:
        process = robustnb('sweep', 'toy.toml', '--per-gpu', '2', *more, before=hidden)
        out, err = process.communicate()
        assert process.returncode == 2 and not (tmp_path/'runs').exists()
        assert 'per_gpu: got 2, accepted: a whole number >= 1 where torch sees a GPU, and here it sees none' in err


# --- a sweep that is given a time

def test_a_limit_ends_a_sweep_and_the_next_call_goes_on(tmp_path, experiment, robustnb):
    begun = tmp_path/'begun'
    begun.mkdir()
    mark = f"open({str(begun)!r} + f'/{{lr}}-{{seed}}', 'a').write('x')"
    experiment(f'{mark}; import time; time.sleep(6); value = lr')
    (tmp_path/'toy.toml').write_text(SWEEP)
    start = time.monotonic()
    process = robustnb('sweep', 'toy.toml', '--workers', '1', '--limit', '30s')
    out, err = process.communicate()
    assert process.returncode == 124 and time.monotonic() - start < 60, err  # a busy machine takes its time to sum up
    done = {p: p.stat().st_mtime_ns for p in results_of(tmp_path)}
    n = len(done)
    assert 0 < n < 6 and 'stopped: the time limit of 30s is over: ' in err, err
    assert f'{n} of 6 runs are done, {6 - n} left; the same command does the rest' in err
    assert f'{n} done now, 0 done before, 0 failed, {6 - n} to do' in out
    assert {p.parent for p in done} == set(tmp_path.glob('runs/toy/[!.]*'))
    assert not list(tmp_path.glob('runs/toy/.robustnb/work/*'))
    again = robustnb('sweep', 'toy.toml', '--workers', '1', '--limit', '1h')  # longer than it takes
    out, err = again.communicate()
    assert again.returncode == 0 and f'{6 - n} done now, {n} done before' in out, err
    assert all(p.stat().st_mtime_ns == t for p, t in done.items())
    assert sum(len(p.read_text()) for p in begun.iterdir()) <= 7  # only what was stopped was begun again


def test_a_limit_that_is_over_before_the_first_run_begins_none(tmp_path, experiment, robustnb):
    experiment('import time; time.sleep(60); value = lr')
    (tmp_path/'toy.toml').write_text(SWEEP)
    process = robustnb('sweep', 'toy.toml', '--workers', '2', '--limit', '1s')
    out, err = process.communicate()
    assert process.returncode == 124, err
    assert '0 of 6 runs are done, 6 left' in err, err
    assert '0 failed' in out, err
    assert not list(tmp_path.glob('runs/toy/[!.]*')) and not list(tmp_path.glob('runs/toy/.robustnb/work/*'))


def test_a_limit_ends_the_wait_for_a_scheduler(tmp_path, experiment, robustnb):
    experiment()
    (tmp_path/'toy.toml').write_text(SWEEP)
    (tmp_path/'auto.toml').write_text('experiment = "fig01_robustness"\n[fixed]\nprecision = "auto"')
    nobody = '--scheduler', 'tcp://127.0.0.1:9', '--limit', '5s'
    for file in 'toy.toml', 'auto.toml':  # which asks the workers while it plans
        process = robustnb('sweep', file, *nobody)
        _, err = process.communicate()
        assert process.returncode == 124, err
        assert 'the time limit of 5s is over' in err, err
        assert 'Traceback' not in err, err


def test_a_limit_from_python(tmp_path, experiment):
    "It is over once the first run is done, whatever that takes here."
    experiment('import time; time.sleep(1 if seed else 600); value = lr')
    (tmp_path/'toy.toml').write_text('experiment = "toy.ipynb"\n[[grid]]\nseed = [1, 0]\n')
    sweep = read_sweep(tmp_path/'toy.toml')
    statuses = []
    limit = Limit('1h')
    def each(status):
        statuses.append(status)
        limit.end = time.monotonic()
    with pytest.raises(TimeUp, match='the time limit of 1h is over'):
        run_sweep(sweep, tmp_path/'runs', tmp_path/'none', workers=1, progress=False, each=each, limit=limit)
    assert [s['state'] for s in statuses] == ['done'] and len(results_of(tmp_path)) == 1


def _numbers(parameter):
    "The numbers that are its default; [] where it is something else."
    values = parameter.default if isinstance(parameter.default, list) else [parameter.default]
    return [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]

@pytest.mark.parametrize('path', sorted(shipped('experiments').glob('*.ipynb')), ids=lambda path: path.stem)
def test_every_number_that_an_experiment_takes_has_a_range(path):
    for parameter in parameters(path).values():
        numbers = _numbers(parameter)
        assert parameter.bounds or not numbers, parameter.name
        for number in numbers: convert(number, parameter)


@pytest.mark.parametrize('given', ['epochs=0', 'lr=-1', 'batch_size=0', 'n_test=-1', 'topk=50', 'width=-3',
                                   'weight_decay=-1', 'holdout=5000'])
def test_an_impossible_number_is_refused_before_anything_runs(given, tmp_path, capsys):
    assert main(['run', 'fig01_robustness', '--set', given, '--out', str(tmp_path/'runs')]) == 2
    name = given.partition('=')[0]
    assert f'{name}: got' in capsys.readouterr().err and not (tmp_path/'runs').exists()
