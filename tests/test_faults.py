"""What happens on a cluster: workers and drivers are killed, schedulers vanish, disks fill up.

Real processes throughout."""
import contextlib, json, os, re, resource, shlex, shutil, signal, socket, subprocess, sys, threading, time
from pathlib import Path

import nbformat
import psutil
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SLEEPER = 'import time; time.sleep(1.5); value = lr'


def write_sweep(tmp_path, lrs=3, seeds=2):
    lr = [i/10 for i in range(1, lrs + 1)]
    seed = list(range(seeds))
    (tmp_path/'toy.toml').write_text(f'experiment = "toy.ipynb"\n[[grid]]\nlr = {lr}\nseed = {seed}\n')

def results_of(tmp_path): return sorted(tmp_path.glob('runs/toy/[!.]*/result.json'))
def hidden(tmp_path): return list(tmp_path.glob("runs/toy/.robustnb/work/*"))

def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(.1)
    return value

def finish(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def server_of(process):
    "The process that forks the runs of a sweep, once it is there."
    named = lambda p: 'forkserver' in ' '.join(p.cmdline())
    return wait_for(lambda: [p for p in psutil.Process(process.pid).children() if p.is_running() and named(p)])[0]


@pytest.mark.parametrize('early', [True, False])
def test_a_killed_server_of_runs_costs_nothing(tmp_path, experiment, robustnb, early):
    experiment(SLEEPER)
    write_sweep(tmp_path)
    process = robustnb('sweep', 'toy.toml', '--workers', '2')
    if not early: wait_for(lambda: hidden(tmp_path))
    server_of(process).kill()
    code, out, err = finish(process)
    assert code == 0, err
    assert len(results_of(tmp_path)) == 6
    assert not hidden(tmp_path)
    assert '6 done now' in out


def test_nobody_can_connect_to_a_sweep_on_this_machine(tmp_path, experiment, robustnb):
    from distributed import Client
    experiment(SLEEPER)
    write_sweep(tmp_path)
    process = robustnb('sweep', 'toy.toml', '--workers', '2')
    wait_for(lambda: hidden(tmp_path))
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    open_ports = {c.laddr for p in family for c in p.net_connections('inet') if c.status == 'LISTEN'}
    assert {a.ip for a in open_ports} == {'127.0.0.1'}  # pages about the state alone
    for address in open_ports:
        with pytest.raises(OSError):  # it speaks no Dask
            Client(f'tcp://{address.ip}:{address.port}', timeout=2)
    code, out, err = finish(process)
    assert code == 0, err
    ip, port = re.search(r'dashboard: http://([\d.]+):(\d+)/', out).groups()
    assert (ip, int(port)) in open_ports  # the address that is printed is the one it listens at


def test_after_a_killed_driver_a_second_start_does_the_rest(tmp_path, experiment, robustnb):
    experiment(SLEEPER)
    write_sweep(tmp_path)
    process = robustnb('sweep', 'toy.toml', '--workers', '1')
    wait_for(lambda: results_of(tmp_path))
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    alive = lambda p: p.is_running() and p.status() != psutil.STATUS_ZOMBIE
    wait_for(lambda: not any(map(alive, family)), 60)  # its workers went with it
    done = {p: p.stat().st_mtime_ns for p in results_of(tmp_path)}
    code, out, err = finish(robustnb('sweep', 'toy.toml', '--workers', '2'))
    assert code == 0, err
    assert f'{6 - len(done)} done now, {len(done)} done before' in out
    assert len(results_of(tmp_path)) == 6
    assert all(p.stat().st_mtime_ns == t for p, t in done.items())
    assert not hidden(tmp_path)


def test_two_drivers_on_one_folder_are_refused(tmp_path, experiment, robustnb):
    experiment(SLEEPER)
    write_sweep(tmp_path, 2, 1)
    first = robustnb('sweep', 'toy.toml', '--workers', '1')
    wait_for(lambda: hidden(tmp_path))
    code, _, err = finish(robustnb('sweep', 'toy.toml'))
    assert code == 2 and 'another sweep is writing here' in err
    assert finish(first)[0] == 0 and len(results_of(tmp_path)) == 2


def test_hanging_and_greedy_runs_are_stopped_and_reported(tmp_path, experiment, robustnb):
    experiment("import time\nif seed == 1: time.sleep(600)\n"
               "if seed == 2: x = bytearray(3*10**9); time.sleep(60)\nvalue = lr")
    write_sweep(tmp_path, 1, 3)
    code, out, err = finish(robustnb('sweep', 'toy.toml', '--workers', '1', '--timeout', '40', '--memory', '2'))
    assert code == 1 and len(results_of(tmp_path)) == 1, err
    assert 'timed out after 40 s' in out and 'the limit is 2.0 GB' in out
    notebooks = list(tmp_path.glob('runs/toy/*/notebook.ipynb'))
    assert len(notebooks) == 3 and all(n.stat().st_size for n in notebooks)  # saved whatever happened


def test_a_full_disk_leaves_no_half_result(tmp_path, experiment, robustnb):
    room = tmp_path/'room'  # there is some once this is there
    experiment(f"import os\nvalue = lr\nif seed == 1 and not os.path.exists({str(room)!r}):\n"
               "    from robustnb.core import write_text\n    write_text(out, '{' + 10**6*' ')")
    write_sweep(tmp_path, 2, 2)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))  # no file may grow beyond 300 kB
    code, out, err = finish(robustnb('sweep', 'toy.toml', '--workers', '1', preexec_fn=limit))
    assert code == 1, err
    assert len(results_of(tmp_path)) == 2, err
    assert 'File too large' in out, err
    assert not hidden(tmp_path)
    room.touch()
    code, out, err = finish(robustnb('sweep', 'toy.toml', '--workers', '1'))
    assert code == 0 and '2 done now, 2 done before' in out, err


@pytest.fixture
def small_disk(tmp_path):
    """Function (kilobytes) -> command that runs another one beside a small disk.

    The disk is a file system of that size at tmp_path/runs, which no other process sees."""
    mounts = lambda: subprocess.run(['unshare', '-Urm', 'true'], capture_output=True).returncode == 0
    if not shutil.which('unshare') or not mounts(): pytest.skip('this system lets nobody mount a small disk')
    (tmp_path/'runs').mkdir()
    def command(kilobytes):
        mount = f'mount -t tmpfs -o size={kilobytes}k none runs'
        return ['unshare', '-Urm', 'sh', '-c', f'{mount} && "$@"; code=$?; ls -A runs/toy >&2; exit $code', '-']
    return command

FILLER = "import pathlib; pathlib.Path('big').write_bytes(bytes(150_000)); value = lr"

def test_a_full_disk_stops_a_sweep_and_is_named(tmp_path, experiment, robustnb, small_disk):
    experiment(FILLER)
    write_sweep(tmp_path, 5, 1)
    code, out, err = finish(robustnb('sweep', 'toy.toml', '--workers', '1', before=small_disk(500)))
    assert code == 2 and 'Traceback' not in err, err
    stopped = (r'stopped: .*/runs/toy/.*: No space left on device.*: [123] of 5 runs are done, [234] left; '
               'the same command does the rest')
    assert re.search(stopped, err), err
    assert re.search(r'5 runs, [123] done now, 0 done before, 0 failed, [234] to do', out), out


class Cluster:
    """Processes of a Dask cluster, each in a working directory of its own.

    They are started by the commands that chapter 14b prints."""
    def __init__(self, tmp_path, commands):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            self.port = str(s.getsockname()[1])
        self.tmp_path = tmp_path
        self.processes = []
        self.commands = [self.here(c) for c in commands]
    def here(self, text):
        "What the page says, for this machine: its address, a free port, a home of its own."
        here = {'HOST': '127.0.0.1', '8786': self.port, '/safe': str(self.tmp_path), 'my.toml': 'toy.toml'}
        for said, meant in here.items(): text = text.replace(said, meant)
        return text
    def command(self, *words):
        "The page's command that holds these words."
        holds = lambda command: all(w in command for w in words)
        return next(c for c in self.commands if holds(c))
    @property
    def address(self): return self.command('robustnb sweep').split()[-1]
    def start(self, command):
        folder = self.tmp_path/f'process{len(self.processes)}'
        folder.mkdir()
        program, *args = shlex.split(command)
        assert program == 'dask'
        env = {**os.environ, 'PYTHONPATH': str(ROOT)}
        with open(folder/'output.txt', 'w') as log:
            process = subprocess.Popen([sys.executable, '-m', 'dask', *args], cwd=folder, env=env,
                                       stdout=log, stderr=log, start_new_session=True)
        self.processes.append(process)
        return process
    def listens(self):
        "A connection to the scheduler, or None."
        with contextlib.suppress(OSError):
            return socket.create_connection(('127.0.0.1', int(self.port)))
    def scheduler(self): return self.start(self.command('dask scheduler'))
    def worker(self): return self.start(self.command('dask worker'))
    def sweep(self): return shlex.split(self.command('robustnb sweep'))[1:]
    def stop(self):
        for p in self.processes:
            if p.poll() is None:
                main = psutil.Process(p.pid)
                for member in main, *main.children(recursive=True): member.kill()
            p.wait()

def page():
    """Groups of lines in fences of chapter 14b, without comments, that start a cluster, and its settings for Dask.

    The group without certificates comes first, then the one with them."""
    cells = nbformat.read(ROOT/'nbs/14b_sweep.ipynb', 4).cells
    text = '\n'.join(c.source for c in cells if c.cell_type == 'markdown')
    fences = re.findall(r'```(\w*)\n(.*?)```', text, re.S)
    starts = [group for kind, group in fences if not kind and 'dask scheduler' in group]
    without_comments = lambda group: [l for l in group.splitlines() if not l.startswith('#')]
    settings = next(group for kind, group in fences if kind == 'yaml')
    return [without_comments(group) for group in starts], settings

@pytest.fixture
def cluster(tmp_path):
    made = Cluster(tmp_path, page()[0][0])
    yield made
    made.stop()

@pytest.fixture
def encrypted(tmp_path, monkeypatch):
    made = Cluster(tmp_path, page()[0][1])
    (tmp_path/'dask').mkdir()
    (tmp_path/'dask/tls.yaml').write_text(made.here(page()[1]))
    monkeypatch.setenv('DASK_CONFIG', str(tmp_path/'dask'))
    yield made
    made.stop()


def test_the_commands_of_the_page_run_a_sweep_on_two_workers(tmp_path, experiment, robustnb, cluster):
    experiment(SLEEPER)
    write_sweep(tmp_path)
    cluster.scheduler()
    cluster.worker()
    code, out, err = finish(robustnb(*cluster.sweep()))
    assert code == 0, err
    assert '6 done now' in out, err
    assert len(results_of(tmp_path)) == 6, err


def test_the_commands_of_the_page_run_a_sweep_with_certificates(tmp_path, experiment, robustnb, encrypted):
    if not shutil.which('openssl'): pytest.skip('openssl is not installed')
    experiment(SLEEPER)
    write_sweep(tmp_path, 2, 1)
    code, _, err = finish(robustnb(*encrypted.sweep()))  # the settings name certificates that nobody has made yet
    named = 'robustnb-cert.pem: no such file; the settings of Dask name it as distributed.comm.tls.ca-file'
    assert code == 2 and named in err
    subprocess.run(shlex.split(encrypted.command('openssl')), check=True, capture_output=True)
    encrypted.scheduler()
    encrypted.worker()
    code, out, err = finish(robustnb(*encrypted.sweep()))
    assert code == 0, err
    assert '2 done now' in out, err
    assert len(results_of(tmp_path)) == 2, err
    unencrypted = encrypted.address.replace('tls', 'tcp')
    connect = f'from distributed import Client; Client({unencrypted!r}, timeout=3)'
    env = {k: v for k, v in os.environ.items() if k != 'DASK_CONFIG'}
    stranger = subprocess.run([sys.executable, '-c', connect], env=env, capture_output=True)
    assert stranger.returncode


def test_what_is_not_there_is_named_while_waiting_and_then_given_up(tmp_path, experiment, robustnb, cluster):
    experiment()
    write_sweep(tmp_path, 1, 1)
    code, out, err = finish(robustnb(*cluster.sweep(), '--patience', '3'))
    assert code == 2, err
    assert f'waiting: no Dask scheduler answers at {cluster.address}' in err, err
    assert 'waited for 3 s' in err, err
    cluster.scheduler()
    code, out, err = finish(robustnb(*cluster.sweep(), '--patience', '8'))
    assert code == 2, err
    assert f'waiting: no worker at {cluster.address}' in err, err
    assert 'waited for 8 s' in err, err
    cluster.worker()
    code, out, err = finish(robustnb(*cluster.sweep(), '--patience', '8', '--resources', 'GPU=1'))
    assert code == 2, err
    assert f'waiting: no worker with GPU=1 at {cluster.address}' in err, err
    assert '1 to do' in out, err
    assert finish(robustnb(*cluster.sweep()))[0] == 0


@pytest.fixture
def listeners():
    "Function (what it says to whom it meets) -> port of a server on this machine."
    servers = []
    def listen(words=b''):
        servers.append(server := socket.create_server(('127.0.0.1', 0)))
        def meet():
            met = []
            with contextlib.suppress(OSError):  # closed
                while True:
                    met.append(server.accept()[0])
                    met[-1].sendall(words)
        threading.Thread(target=meet, daemon=True).start()
        return server.getsockname()[1]
    yield listen
    for server in servers: server.close()

@pytest.mark.parametrize('kind', ['tcp', 'tls'])
def test_what_listens_and_is_no_scheduler_is_given_up(tmp_path, experiment, robustnb, request, listeners, kind):
    if kind == 'tls' and not shutil.which('openssl'): pytest.skip('openssl is not installed')
    experiment()
    write_sweep(tmp_path, 1, 1)
    cluster = request.getfixturevalue('cluster' if kind == 'tcp' else 'encrypted')
    if kind == 'tls':
        subprocess.run(shlex.split(cluster.command('openssl')), check=True, capture_output=True)
    ports = listeners(), listeners(b'SSH-2.0-OpenSSH_9.2\r\n')
    addresses = [f'{kind}://127.0.0.1:{port}' for port in ports]
    started = [robustnb('sweep', 'toy.toml', '--out', f'runs{port}', '--scheduler', address)
               for port, address in zip(ports, addresses)]
    for address, process in zip(addresses, started):
        code, out, err = finish(process)
        assert code == 2, err
        assert f'stopped: {address}: what listens there is no Dask scheduler with' in err, err
        assert '1 to do' in out, err
        assert 'Traceback' not in err
    cluster.scheduler()
    cluster.worker()
    code, out, err = finish(robustnb(*cluster.sweep()))
    assert code == 0 and '1 done now' in out, err


def test_a_worker_is_no_scheduler(tmp_path, experiment, robustnb, cluster):
    experiment()
    write_sweep(tmp_path, 1, 1)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    cluster.scheduler()
    cluster.start(f'{cluster.command("dask worker")} --nworkers 1 --no-nanny --worker-port {port}')
    code, out, err = finish(robustnb('sweep', 'toy.toml', '--scheduler', f'tcp://127.0.0.1:{port}', '--patience', '5'))
    newer = f'tcp://127.0.0.1:{port}: what listens there belongs to Dask and is no scheduler, perhaps a worker'
    # Dask of 2025.1 waits for an answer that never comes
    older = f'no Dask scheduler answers at tcp://127.0.0.1:{port}'
    assert code == 2, err
    assert f'stopped: {newer}' in err or f'stopped: {older}' in err, err


@pytest.mark.parametrize('kind', ['foreign', 'expired', 'no key of its'])
def test_certificates_that_do_not_fit_stop_a_sweep(tmp_path, experiment, robustnb, encrypted, kind):
    if not shutil.which('openssl'): pytest.skip('openssl is not installed')
    experiment()
    write_sweep(tmp_path, 1, 1)
    make = shlex.split(encrypted.command('openssl'))
    subprocess.run(make, check=True, capture_output=True)
    cert, key = tmp_path/'robustnb-cert.pem', tmp_path/'robustnb-key.pem'
    yesterday = ['openssl', 'x509', '-in', cert, '-signkey', key, '-days', '-1', '-out', cert]
    if kind == 'expired' and subprocess.run(yesterday, capture_output=True).returncode:
        pytest.skip('this openssl makes no expired certificates')
    encrypted.scheduler()
    with contextlib.closing(wait_for(encrypted.listens)): pass
    before = key.read_bytes()
    if kind != 'expired': subprocess.run(make, check=True, capture_output=True)
    if kind == 'no key of its': key.write_bytes(before)
    code, out, err = finish(robustnb(*encrypted.sweep()))
    said = {'foreign': 'certificate verify failed: self-signed certificate',
            'expired': 'certificate has expired', 'no key of its': 'key values mismatch'}
    assert code == 2, err
    assert said[kind] in err, err
    assert 'Traceback' not in err, err
    assert 'waiting' not in err, err


def test_a_full_disk_at_the_driver_is_no_lost_scheduler(tmp_path, experiment, robustnb, cluster, small_disk):
    experiment(f"open({str(tmp_path/'count')!r}, 'a').write('x'); {FILLER}")
    write_sweep(tmp_path, 5, 1)
    cluster.scheduler()
    cluster.worker()
    code, out, err = finish(robustnb(*cluster.sweep(), before=small_disk(500)))
    assert code == 2 and re.search(r'stopped: .*/runs/toy/.*: No space left on device.* of 5 runs are done', err), err
    assert len((tmp_path/'count').read_text()) <= 5  # no run was done twice


def test_a_cluster_goes_on_while_one_worker_dies_and_another_joins(tmp_path, experiment, robustnb, cluster):
    experiment(SLEEPER)
    write_sweep(tmp_path, 4, 3)
    cluster.scheduler()
    workers = [cluster.worker() for _ in range(3)]
    process = robustnb(*cluster.sweep())
    wait_for(lambda: results_of(tmp_path))
    os.killpg(workers[0].pid, signal.SIGKILL)
    cluster.worker()
    code, out, err = finish(process)
    assert code == 0, err
    assert len(results_of(tmp_path)) == 12 and '12 done now' in out


def test_a_scheduler_that_comes_back_is_waited_for(tmp_path, experiment, robustnb, cluster):
    experiment(SLEEPER)
    write_sweep(tmp_path, 4, 2)
    cluster.scheduler()
    cluster.worker()
    process = robustnb(*cluster.sweep())
    wait_for(lambda: results_of(tmp_path))
    cluster.stop()
    early = {p: p.stat().st_mtime_ns for p in results_of(tmp_path)}
    time.sleep(2)
    cluster.scheduler()
    cluster.worker()
    code, out, err = finish(process)
    assert code == 0, out + err
    assert len(results_of(tmp_path)) == 8 and all(p.stat().st_mtime_ns == t for p, t in early.items())


@pytest.mark.parametrize('address', ['nonsense', '127.0.0.1:99999', '8.8.8.8:0'])
def test_where_no_dashboard_can_listen(tmp_path, experiment, robustnb, address):
    experiment()
    write_sweep(tmp_path, 1, 1)
    code, out, err = finish(robustnb('sweep', 'toy.toml', '--dashboard', address))
    assert code == 2, err
    assert f"dashboard: got '{address}', accepted: HOST:PORT of this machine" in err, err
    assert not (tmp_path/'runs').exists(), err


# --- signals

def survivors(tmp_path):
    "Processes that still work for the sweep in this folder."
    return [p for p in psutil.process_iter() if str(tmp_path) in (cwd_of(p) or '')]

def left_in(folder):
    """Temporary files that somebody forgot.

    Caches of torch, a module that it writes, and an empty folder of Dask's are none."""
    none = 'dask-scratch-space', 'global.lock', 'purge.lock', '_remote_module_non_scriptable.py'
    torchs = {p.parent for p in folder.rglob('_remote_module_non_scriptable.py')}
    known = lambda p: p.name in none or p in torchs or 'torchinductor' in str(p)
    return [p for p in folder.rglob('*') if not known(p)]

def cwd_of(p):
    try: return p.cwd()
    except psutil.Error: return None


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize('whole_group', [False, True])
def test_signals_end_a_sweep_in_order(tmp_path, experiment, robustnb, monkeypatch, number, whole_group):
    (tmp_path/'tmp').mkdir()
    monkeypatch.setenv('TMPDIR', str(tmp_path/'tmp'))
    monkeypatch.setenv('BEGUN', str(tmp_path/'begun'))
    experiment("import os, time; from tqdm import tqdm; open(os.environ['BEGUN'] + str(seed), 'w'); "
               'bar = tqdm(total=1); time.sleep(1.5 if seed == 0 else 600); value = lr')
    write_sweep(tmp_path, 1, 3)
    process = robustnb('sweep', 'toy.toml', '--workers', '2')
    wait_for(lambda: results_of(tmp_path) and len(list(tmp_path.glob('begun*'))) == 3)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    code, out, err = finish(process)
    assert code == 128 + number
    assert '3 runs, 1 done now, 0 done before, 0 failed, 2 to do' in out and 'report.html' in out, out + err
    assert 'interrupted: 1 of 3 runs are done, 2 left; the same command does the rest' in err, err
    assert 'leaked' not in err, err
    assert 'Traceback' not in err, err
    assert not hidden(tmp_path)
    assert not left_in(tmp_path/'tmp')
    assert not survivors(tmp_path)


def test_a_temporary_folder_may_lie_deep(tmp_path, experiment, robustnb, monkeypatch):
    "The names of sockets have an end: 107 bytes. A cluster's folder for a job can be longer."
    (deep := tmp_path/('folder-of-a-job-'*8)).mkdir()
    monkeypatch.setenv('TMPDIR', str(deep))
    experiment('value = lr')
    write_sweep(tmp_path, 1, 2)
    code, out, err = finish(robustnb('sweep', 'toy.toml', '--workers', '2'))
    assert code == 0 and '2 done now' in out, err
    assert not left_in(deep) and not survivors(tmp_path)


def test_a_second_signal_ends_at_once(tmp_path, experiment, robustnb, monkeypatch):
    (tmp_path/'tmp').mkdir()
    monkeypatch.setenv('TMPDIR', str(tmp_path/'tmp'))
    experiment('import time; time.sleep(600); value = lr')
    write_sweep(tmp_path, 1, 1)
    process = robustnb('sweep', 'toy.toml', '--workers', '1')
    wait_for(lambda: hidden(tmp_path))
    while process.poll() is None:  # on a busy machine two signals may become one
        os.kill(process.pid, signal.SIGINT)
        time.sleep(.05)
    code, out, err = finish(process)
    assert code == 130 and 'Traceback' not in err
    wait_for(lambda: not survivors(tmp_path))
    assert not left_in(tmp_path/'tmp')  # its runs have cleared up behind it


def test_a_signal_ends_a_sweep_whose_server_is_still_loading(tmp_path, experiment, robustnb):
    # found before the real one, which the server loads first
    (tmp_path/'papermill.py').write_text("import time; open('loading', 'w').close(); time.sleep(600)")
    experiment()
    write_sweep(tmp_path, 1, 1)
    process = robustnb('sweep', 'toy.toml', '--workers', '1')
    wait_for((tmp_path/'loading').exists)
    process.terminate()
    code, out, err = finish(process)
    assert code == 128 + signal.SIGTERM, err
    assert 'interrupted: 0 of 1 runs are done' in err, err
    assert 'Traceback' not in err, err
    assert not hidden(tmp_path) and not survivors(tmp_path)


@pytest.mark.parametrize('where', ['2>&1 | true', '>&- 2>&-', '<&- 2>&-', '>/dev/full 2>&1'])
def test_runs_go_on_when_nobody_reads(tmp_path, experiment, robustnb, where):
    experiment()
    write_sweep(tmp_path, 2, 1)
    finish(robustnb('sweep', 'toy.toml', '--workers', '1', before=['bash', '-c', f'"$@" {where}', '-']))
    assert len(results_of(tmp_path)) == 2 and not hidden(tmp_path)


# --- what a run may do to live longer

STUCK = "import re; re.match('(a+)+$', 64*'a' + 'b')"  # in C, for years, with the lock of the interpreter held

def escapes(tmp_path, body):
    "Body of a run that starts a process in a session of its own, by a parent that is gone, and then does `body`."
    orphan = f'setsid sh -c "cd {tmp_path} && exec sleep 1000" & sleep .5'
    return f"import subprocess; subprocess.run(['sh', '-c', '{orphan}'])\n{body}\nvalue = lr"

@pytest.mark.parametrize('engine', ['warm', 'nbclient'])
@pytest.mark.parametrize('body', ['pass', STUCK, 'import os; os._exit(3)'])
def test_nothing_outlives_its_run(tmp_path, experiment, robustnb, engine, body):
    experiment(escapes(tmp_path, body))
    write_sweep(tmp_path, 1, 1)
    code, out, err = finish(robustnb('sweep', 'toy.toml', '--timeout', '20', '--engine', engine))
    assert code == (body != 'pass'), out + err
    if body == STUCK: assert 'timed out after 20 s' in out
    assert not survivors(tmp_path)


def test_a_run_stuck_in_c_ends_with_its_driver(tmp_path, experiment, robustnb):
    experiment(escapes(tmp_path, STUCK))
    write_sweep(tmp_path, 1, 1)
    process = robustnb('sweep', 'toy.toml', '--workers', '1')
    wait_for(lambda: [p for p in survivors(tmp_path) if 'sleep' in p.name()])
    time.sleep(1)
    process.kill()
    finish(process)
    wait_for(lambda: not survivors(tmp_path))


# --- nothing of the user's is touched

def home_like(folder):
    """A folder as people have it: a repository with hidden folders, links and rights taken away.

    Some files have names that a sweep might use."""
    folders = ['.venv-3.11/bin', '.my-data', 'work/.venv-3.11', 'work/.my-data', '.toy-abcdefgh', 'elsewhere/.keep-1',
               'toy/.old-1', 'toy/0123456789ab', 'toy/notes-2', 'reports/mine', 'audit']
    files = ['.lock', '.token', 'table.md', 'figure.png', 'figure-1.png', 'status.json',
             'toy/.lock', 'toy/.token', 'toy/table.md',
             'reports/table.md', 'reports/figure.png', 'reports/mine/table.md']
    for name in folders:
        (folder/name).mkdir(parents=True)
        (folder/name/'letter.txt').write_text('mine')
    for name in files: (folder/name).write_text('mine')
    (folder/'link').symlink_to('elsewhere')
    (folder/'toy/.link-1').symlink_to(folder/'elsewhere')
    (folder/'toy/.broken-1').symlink_to('nowhere')
    (folder/'work/.my-data').chmod(0o500)
    (folder/'work/.my-data/letter.txt').chmod(0o400)
    (folder/'toy/notes [1]*?').mkdir()
    (folder/'toy/notes [1]*?/letter.txt').write_text('mine')
    if shutil.which('git'): subprocess.run(['git', 'init', '-q', folder], check=True)

def listing(folder):
    """Every path with its rights, and its time of change with its content, or where it leads.

    Of folders the rights only."""
    def seen(path):
        rights = path.lstat().st_mode
        if path.is_symlink(): return rights, os.readlink(path)
        return (rights, path.lstat().st_mtime_ns, path.read_bytes()) if path.is_file() else (rights,)
    return {path.relative_to(folder): seen(path) for path in folder.rglob('*')}

def small_model(folder):
    "A model file and images of the user's, for an audit: digits in class folders, and a program that sorts them."
    from PIL import Image
    from sklearn.datasets import load_digits
    digits = load_digits()
    for i in range(40):
        path = folder/'photos'/str(digits.target[i])/f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[i]*15).astype('uint8')).save(path)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
    torch.export.save(torch.export.export(model, (torch.rand(2, 1, 8, 8),)), folder/'net.pt2')

def test_nothing_of_the_users_is_touched(tmp_path, experiment, robustnb):
    experiment()
    write_sweep(tmp_path, 2, 1)
    home_like(tmp_path)
    small_model(tmp_path)
    before = listing(tmp_path)
    assert finish(robustnb('sweep', 'toy.toml', '--out', '.'))[0] == 0
    assert finish(robustnb('run', 'toy.ipynb', '--out', '.', '--set', 'lr=0.7'))[0] == 0
    assert finish(robustnb('run', 'toy.ipynb', '--out', '.', '--set', 'lr=0.7', '--again'))[0] == 0
    code, _, err = finish(robustnb('report', 'toy', '--to', 'page'))
    assert code == 0, err
    code, out, err = finish(robustnb('sweep', 'toy.toml', '--out', '.'))
    assert code == 0 and '0 done now, 2 done before' in out, err
    audit = ['audit', 'net.pt2', '--images', 'photos', '--linf', '1/255',
             '--n-attack', '8', '--lipschitz', '1', '--bands', '2']
    for _ in range(2):  # the second replaces the first
        code, _, err = finish(robustnb(*audit, '--to', 'audit'))
        assert code == 0, err
    after = listing(tmp_path)
    assert {k: v for k, v in after.items() if k in before} == before
    made = {k.parts[:2] for k in after.keys() - before.keys()}
    runs = {p for p in made if p[0] == 'toy' and re.fullmatch('[0-9a-f]{12}', p[1])}
    assert len(runs) == 3 and {p[0] for p in made} == {'toy', 'page', 'reports', 'audit'}
    audits = {('audit', name) for name in ('audit.html', 'audit.md', 'audit.json', '.robustnb-audit.json')}
    assert made - runs - {p for p in made if p[0] == 'page'} == {('toy', '.robustnb'), ('reports', 'toy')} | audits


@pytest.mark.parametrize('engine', ['warm', 'nbclient'])
def test_what_people_add_to_the_folder_of_a_run_outlives_the_next_run(tmp_path, experiment, robustnb, engine):
    experiment('value = lr; open("weights.bin", "w").write("ours")')
    again = ['run', 'toy.ipynb', '--engine', engine, '--again']
    assert finish(robustnb(*again))[0] == 0
    place = next(tmp_path.glob('runs/toy/[0-9a-f]*'))
    (place/'letter.txt').write_text('mine')
    (place/'notebook.ipynb').write_text('edited')
    for _ in range(2): assert finish(robustnb(*again))[0] == 0
    assert (place/'letter.txt').read_text() == 'mine' and (place/'notebook.before.ipynb').read_text() == 'edited'
    names = {p.name for p in place.iterdir()} - {'log.txt'}
    assert names == {'letter.txt', 'notebook.before.ipynb', 'notebook.ipynb',
                     'result.json', 'status.json', 'weights.bin'}


def test_a_file_in_the_place_of_a_report_is_refused(tmp_path, experiment, robustnb):
    experiment()
    write_sweep(tmp_path, 1, 1)
    home_like(tmp_path)
    for name in 'report.html', 'runs.csv': (tmp_path/'reports'/name).write_text('mine')
    before = listing(tmp_path)
    assert finish(robustnb('run', 'toy.ipynb', '--out', '.'))[0] == 0
    code, _, err = finish(robustnb('report', 'toy', '--to', 'reports'))
    assert code == 2
    assert 'reports/' in err
    assert 'not from a report' in err
    assert {k: v for k, v in listing(tmp_path).items() if k in before} == before


@pytest.mark.parametrize('kind', ['folder', 'file', 'link'])
def test_something_in_the_place_of_a_run_is_refused(tmp_path, experiment, robustnb, kind):
    from robustnb.sweep import read_sweep
    experiment()
    write_sweep(tmp_path, 1, 1)
    place = tmp_path/'runs/toy'/read_sweep(tmp_path/'toy.toml').runs[0].id
    place.parent.mkdir(parents=True)
    (tmp_path/'elsewhere').mkdir()
    (tmp_path/'elsewhere/letter.txt').touch()
    if kind == 'folder': shutil.copytree(tmp_path/'elsewhere', place)
    if kind == 'file': place.write_text('mine')
    if kind == 'link': place.symlink_to(tmp_path/'elsewhere')
    before = listing(tmp_path)
    code, out, err = finish(robustnb('sweep', 'toy.toml'))
    assert code == 2 and f'{place}: not a run of robustnb, so it will not be replaced' in err
    assert {k: v for k, v in listing(tmp_path).items() if k in before} == before


def test_a_finished_run_may_lie_elsewhere(tmp_path, experiment, robustnb):
    experiment()
    write_sweep(tmp_path, 1, 1)
    assert finish(robustnb('sweep', 'toy.toml'))[0] == 0
    place = results_of(tmp_path)[0].parent
    place.rename(tmp_path/'moved')
    place.symlink_to(tmp_path/'moved')
    code, out, err = finish(robustnb('sweep', 'toy.toml'))
    assert code == 0 and '0 done now, 1 done before' in out, err


@pytest.mark.parametrize('mask', [0o022, 0o077, 0o002])
def test_folders_follow_the_umask(tmp_path, experiment, robustnb, mask):
    experiment()
    write_sweep(tmp_path, 1, 1)
    assert finish(robustnb('sweep', 'toy.toml', preexec_fn=lambda: os.umask(mask)))[0] == 0
    place = results_of(tmp_path)[0].parent
    assert place.stat().st_mode & 0o777 == 0o777 & ~mask
    assert all(p.stat().st_mode & 0o777 == 0o666 & ~mask for p in place.iterdir())


def test_odd_names_of_sweeps(tmp_path, experiment, robustnb):
    experiment()
    write_sweep(tmp_path, 1, 1)
    (tmp_path/'toy.toml').rename(tmp_path/'...toml')
    code, out, err = finish(robustnb('sweep', '...toml', '--publish'))
    assert code == 0, err
    assert (tmp_path/'runs/reports/_/report.html').is_file(), err
    assert len(list((tmp_path/'results/_').iterdir())) == 1, err
    write_sweep(tmp_path, 1, 1)
    code, out, err = finish(robustnb('sweep', 'toy.toml', '--set', f'lr={"1"*17}.{"1"*250}'))
    assert code == 0 and len(list((tmp_path/'runs/reports').iterdir())) == 2, err


# --- what was measured stays

@pytest.mark.parametrize('engine', ['warm', 'nbclient'])
def test_a_result_that_was_saved_survives_what_fails_later(tmp_path, experiment, robustnb, engine):
    path = experiment()
    # a kernel that quits after its last cell has ended well
    leave = 'quit()' if engine == 'warm' else 'os._exit(1)'
    nb = nbformat.read(path, 4)
    fail = str(tmp_path/'fail')
    last = f"import os\nif os.path.exists({fail!r}): {leave} if lr == .1 else print('\\ud800'.encode())"
    nb.cells.append(nbformat.v4.new_code_cell(last))
    nbformat.write(nb, path)
    write_sweep(tmp_path, 2, 1)
    (tmp_path/'fail').touch()
    code, out, err = finish(robustnb('sweep', 'toy.toml', '--engine', engine))
    kept = sorted(tmp_path.glob('runs/toy/*/unfinished.json'))
    assert code == 1, out + err
    assert '2 failed' in out, out + err
    assert out.count('is kept beside it, in unfinished.json, and does not count') == 2, out + err
    assert len(kept) == 2 and not results_of(tmp_path)
    experiment("raise RuntimeError('before anything is saved')")
    assert finish(robustnb('sweep', 'toy.toml'))[0] == 1
    assert len(list(tmp_path.glob('runs/toy/*/unfinished.json'))) == 2  # still there
    experiment()
    code, out, err = finish(robustnb('sweep', 'toy.toml'))
    assert code == 0, err
    assert '2 done now' in out, err
    assert len(results_of(tmp_path)) == 2, err


@pytest.mark.parametrize('command', ['run', 'sweep'])
def test_a_result_that_was_saved_survives_an_interruption(tmp_path, experiment, robustnb, command):
    path = experiment()
    nb = nbformat.read(path, 4)
    wait = str(tmp_path/'wait')
    last = f'import os, time\nif os.path.exists({wait!r}): time.sleep(600)'
    nb.cells.append(nbformat.v4.new_code_cell(last))
    nbformat.write(nb, path)
    write_sweep(tmp_path, 1, 1)
    (tmp_path/'wait').touch()
    start = ['run', 'toy.ipynb'] if command == 'run' else ['sweep', 'toy.toml']
    process = robustnb(*start)
    wait_for(lambda: any((p/'result.json').exists() for p in hidden(tmp_path)))
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert code == 130 and 'Traceback' not in err, out + err
    place, = tmp_path.glob('runs/toy/[0-9a-f]*')
    status = json.loads((place/'status.json').read_text())
    assert status['state'] == 'failed'
    assert status['error'] == 'interrupted after its result was saved'
    assert status['kept'] == 'unfinished.json'
    assert json.loads((place/'unfinished.json').read_text())['metrics'][0]['value'] == .1 and not results_of(tmp_path)
    if command == 'sweep': assert 'is kept beside it, in unfinished.json, and does not count' in out
    (tmp_path/'wait').unlink()
    code, out, err = finish(robustnb(*start))
    assert code == 0 and len(results_of(tmp_path)) == 1, out + err
    (tmp_path/'wait').touch()  # a run that is done stays so when it is interrupted while it is done again
    process = robustnb('run', 'toy.ipynb', '--again')
    wait_for(lambda: any((p/'result.json').exists() for p in hidden(tmp_path)))
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130 and len(results_of(tmp_path)) == 1
