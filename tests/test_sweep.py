"Sweeps as a user meets them: real processes, interrupted, restarted, given wrong files."
import os, re, signal, subprocess, sys, time
from dataclasses import dataclass
from pathlib import Path

import pytest

from robustnb.core import read_json
from robustnb.sweep import Parameter, cluster, convert, dispatch, read_sweep

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
    command = f'{sys.executable} -c "import sys; from robustnb.cli import main; sys.exit(main())" run fig01_robustness --parameters | head -n 1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(['bash', '-c', command], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count('\n') == 1 and not done.stderr


def test_own_images_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv('ROBUSTNB_DATA', str(tmp_path))
    dataset = Parameter('dataset', 'digits', choices=('digits', 'mnist'), folder=True)
    with pytest.raises(ValueError, match="dataset: got 'mine'"): convert('mine', dataset)
    (tmp_path/'mine').mkdir()
    assert convert('mine', dataset) == 'mine'


def test_help_does_not_import_torch():
    code = "import sys; sys.argv = ['robustnb', '--help']\nfrom robustnb.cli import main\ntry: main()\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == 'False' and 'sweep' in done.stdout


def test_the_package_itself_imports_no_more_than_torch():
    code = "import torch, sys; before = set(sys.modules); import robustnb; print(sorted(m for m in set(sys.modules) - before if not m.startswith('robustnb')))"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'


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
    with cluster(2) as client:
        assert all(future.result() for _, future in dispatch(client, wait_for_the_others, [Job(str(i)) for i in range(12)], str(tmp_path), 12))


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
    ('experiment = "fig01_robustness"\ngrid = []', 'sweep.toml:2: grid: got'), ('experiment = "fig01_robustness"\ngrid = [1, 2]', 'sweep.toml:2: grid: got'),
    ('experiment = "fig01_robustness"\nfixed = 3', r'sweep.toml:2: fixed: got 3, accepted: a table \[fixed\]'), ('experiment = 5', 'sweep.toml:1: experiment: got 5'),
    ('experiment = "fig01_robustness"\n[axes]\nlr = []', r'sweep.toml:3: lr: got \[\], accepted: at least one value'),
    ('experiment = "fig01_robustness"\n[fixed]\nlr = "1/0"', 'sweep.toml:3: lr: got .1/0., accepted: float')])
def test_every_mistake_in_a_file_names_its_line(tmp_path, text, said):
    (tmp_path/'sweep.toml').write_text(text)
    with pytest.raises(ValueError, match=said): read_sweep(tmp_path/'sweep.toml')

def test_a_file_in_another_encoding(tmp_path):
    (tmp_path/'sweep.toml').write_bytes('# Stärke\nexperiment = "fig01_robustness"'.encode('latin-1'))
    with pytest.raises(ValueError, match='sweep.toml:1: not valid TOML'): read_sweep(tmp_path/'sweep.toml')
