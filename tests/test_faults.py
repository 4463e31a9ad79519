"What happens on a cluster: workers and drivers are killed, schedulers vanish, disks fill up. Real processes throughout."
import os, resource, signal, socket, subprocess, sys, time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
SLEEPER = 'import time; time.sleep(1.5); value = lr'


def write_sweep(tmp_path, lrs=3, seeds=2):
    (tmp_path/'toy.toml').write_text(f'experiment = "toy.ipynb"\n[[grid]]\nlr = {[i/10 for i in range(1, lrs + 1)]}\nseed = {list(range(seeds))}\n')

def results_of(tmp_path): return sorted(tmp_path.glob('runs/toy/[!.]*/result.json'))
def hidden(tmp_path): return list(tmp_path.glob('runs/toy/.*'))

def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(.1)
    return value

def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def test_a_worker_killed_in_mid_run_costs_nothing(tmp_path, experiment, robustnb):
    experiment(SLEEPER), write_sweep(tmp_path)
    process = robustnb('sweep', 'toy.toml', '--workers', '2')
    wait_for(lambda: hidden(tmp_path))
    workers = [p for p in psutil.Process(process.pid).children() if 'spawn_main' in ' '.join(p.cmdline())]
    workers[0].kill()
    code, out, err = finish(process)
    assert code == 0, err
    assert len(results_of(tmp_path)) == 6 and not hidden(tmp_path) and '6 done now' in out


def test_after_a_killed_driver_a_second_start_does_the_rest(tmp_path, experiment, robustnb):
    experiment(SLEEPER), write_sweep(tmp_path)
    process = robustnb('sweep', 'toy.toml', '--workers', '1')
    wait_for(lambda: results_of(tmp_path))
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    wait_for(lambda: not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], 60)  # its workers went with it
    done = {p: p.stat().st_mtime_ns for p in results_of(tmp_path)}
    code, out, err = finish(robustnb('sweep', 'toy.toml', '--workers', '2'))
    assert code == 0, err
    assert f'{6 - len(done)} done now, {len(done)} done before' in out
    assert len(results_of(tmp_path)) == 6 and all(p.stat().st_mtime_ns == t for p, t in done.items()) and not hidden(tmp_path)


def test_two_drivers_on_one_folder_are_refused(tmp_path, experiment, robustnb):
    experiment(SLEEPER), write_sweep(tmp_path, 2, 1)
    first = robustnb('sweep', 'toy.toml', '--workers', '1')
    wait_for(lambda: hidden(tmp_path))
    code, _, err = finish(robustnb('sweep', 'toy.toml'))
    assert code == 2 and 'another sweep is writing here' in err
    assert finish(first)[0] == 0 and len(results_of(tmp_path)) == 2


def test_hanging_and_greedy_runs_are_stopped_and_reported(tmp_path, experiment, robustnb):
    experiment("import time\nif seed == 1: time.sleep(600)\nif seed == 2: x = bytearray(3*10**9); time.sleep(60)\nvalue = lr"), write_sweep(tmp_path, 1, 3)
    code, out, err = finish(robustnb('sweep', 'toy.toml', '--workers', '1', '--timeout', '20', '--memory', '2'))
    assert code == 1 and len(results_of(tmp_path)) == 1, err
    assert 'timed out after 20 s' in out and 'the limit is 2.0 GB' in out
    notebooks = list(tmp_path.glob('runs/toy/*/notebook.ipynb'))
    assert len(notebooks) == 3 and all(n.stat().st_size for n in notebooks)  # saved whatever happened


def test_a_full_disk_leaves_no_half_result(tmp_path, experiment, robustnb):
    experiment("value = lr\nif seed == 1:\n    from robustnb.core import write_text\n    write_text(out, '{' + 10**6*' ')"), write_sweep(tmp_path, 2, 2)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))  # no file may grow beyond 300 kB
    code, out, err = finish(robustnb('sweep', 'toy.toml', '--workers', '1', preexec_fn=limit))
    assert code == 1 and len(results_of(tmp_path)) == 2 and 'File too large' in out, err
    assert not hidden(tmp_path)
    experiment()
    code, out, err = finish(robustnb('sweep', 'toy.toml', '--workers', '1'))
    assert code == 0 and '2 done now, 2 done before' in out, err


class Cluster:
    "A Dask scheduler and workers as separate processes, each worker in a working directory of its own."
    def __init__(self, tmp_path):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            self.port = s.getsockname()[1]
        self.tmp_path, self.processes, self.address = tmp_path, [], f'tcp://127.0.0.1:{self.port}'
        self.scheduler()
    def start(self, *args):
        folder = self.tmp_path/f'process{len(self.processes)}'
        folder.mkdir()
        env = {**os.environ, 'PYTHONPATH': str(ROOT), 'DASK_DISTRIBUTED__WORKER__DAEMON': 'False', 'OMP_NUM_THREADS': '1'}
        process = subprocess.Popen([sys.executable, '-m', 'dask', *args], cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        self.processes.append(process)
        return process
    def scheduler(self):
        self.head = self.start('scheduler', '--host', '127.0.0.1', '--port', str(self.port), '--dashboard-address', ':0')
    def worker(self):
        return self.start('worker', self.address, '--nthreads', '1', '--nworkers', '1', '--no-dashboard', '--death-timeout', '120')
    def stop(self):
        for p in self.processes:
            try: os.killpg(p.pid, signal.SIGKILL)
            except ProcessLookupError: pass
            p.wait()

@pytest.fixture
def cluster(tmp_path):
    made = Cluster(tmp_path)
    yield made
    made.stop()


def test_a_cluster_goes_on_while_one_worker_dies_and_another_joins(tmp_path, experiment, robustnb, cluster):
    experiment(SLEEPER), write_sweep(tmp_path, 4, 3)
    workers = [cluster.worker() for _ in range(3)]
    process = robustnb('sweep', 'toy.toml', '--scheduler', cluster.address)
    wait_for(lambda: results_of(tmp_path))
    os.killpg(workers[0].pid, signal.SIGKILL)
    cluster.worker()
    code, out, err = finish(process)
    assert code == 0, err
    assert len(results_of(tmp_path)) == 12 and '12 done now' in out


def test_a_scheduler_that_comes_back_is_waited_for(tmp_path, experiment, robustnb, cluster):
    experiment(SLEEPER), write_sweep(tmp_path, 4, 2)
    cluster.worker()
    process = robustnb('sweep', 'toy.toml', '--scheduler', cluster.address)
    wait_for(lambda: results_of(tmp_path))
    for p in cluster.processes: os.killpg(p.pid, signal.SIGKILL)
    early = {p: p.stat().st_mtime_ns for p in results_of(tmp_path)}
    time.sleep(2)
    cluster.scheduler()
    cluster.worker()
    code, out, err = finish(process)
    assert code == 0, err
    assert len(results_of(tmp_path)) == 8 and all(p.stat().st_mtime_ns == t for p, t in early.items())
