"""What a sweep costs beyond its runs.

The warm engine against an ordinary kernel for each run, many trivial runs, and a long queue.

    python bench/bench_sweep.py [runs] [queue]

`runs` trivial notebooks (default 1000) on two workers, the overhead of the ordinary kernel from eight of them; then
the time and the driver's memory for queues up to `queue` jobs (default 100,000) that do nothing, in thousands of jobs:
if it grows linearly, the time per job stays the same.
"""
import itertools, sys, tempfile
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil

from robustnb.core import Stopwatch
from robustnb.sweep import cluster, dispatch, read_sweep, run_sweep

RUNS, QUEUE = (int(sys.argv[i]) if len(sys.argv) > i else n for i, n in ((1, 1000), (2, 100_000)))
memory = lambda: psutil.Process().memory_info().rss/2**20


def trivial(folder, n):
    "A sweep of n runs that save one number."
    params = nbformat.v4.new_code_cell("seed = 0\nout = ''", metadata={'tags': ['parameters']})
    body = nbformat.v4.new_code_cell(
        "from robustnb import results\n"
        "results.save(out, 'trivial', dict(seed=seed), [results.row('accuracy', 1.)])")
    meta = dict(kernelspec=dict(name='python3', display_name='Python 3', language='python'))
    nbformat.write(nbformat.v4.new_notebook(cells=[params, body], metadata=meta), folder/'trivial.ipynb')
    (folder/'trivial.toml').write_text(f'experiment = "trivial.ipynb"\n[[grid]]\nseed = {list(range(n))}\n')
    return read_sweep(folder/'trivial.toml')


def timed(n, engine):
    "Wall seconds of n trivial runs on two workers, and the driver's memory before and after, in MiB."
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        before = memory()
        with Stopwatch() as watch:
            statuses = run_sweep(trivial(folder, n), folder/'runs', folder/'none', workers=2, engine=engine,
                                 progress=False)
        assert len(statuses) == n and all(s['state'] == 'done' for s in statuses)
    return watch.wall, before, memory()


@dataclass(frozen=True)
class Job:
    id: int


def queued(n):
    "Wall seconds and driver CPU seconds to dispatch n jobs that do nothing to two workers."
    with cluster(2) as client, Stopwatch() as watch:
        assert sum(1 for _ in dispatch(client, lambda job: None, map(Job, range(n)))) == n
    return watch.wall, watch.cpu


if __name__ == '__main__':
    few = {engine: [timed(n, engine)[0] for n in (2, 10)] for engine in ('warm', 'nbclient')}
    for engine, (two, ten) in few.items():
        print(f'{engine:9} {2*(ten - two)/8:6.2f} s a run and worker, '
              f'{two:5.1f} s for the first two (start of the workers included)')
    wall, before, after = timed(RUNS, 'warm')
    print(f'{RUNS} trivial runs on two workers, warm: {wall/60:.2f} min, {2*wall/RUNS:.3f} s a run and worker; '
          f'memory of the driver {before:.0f} -> {after:.0f} MiB')
    for n in itertools.takewhile(lambda n: n <= QUEUE, (1000, 10_000, 100_000)):
        before = memory()
        wall, cpu = queued(n)
        print(f'queue of {n:7,}: {wall:7.1f} s, {1e3*wall/n:.2f} ms a job (driver {1e3*cpu/n:.2f} ms CPU); '
              f'memory {before:.0f} -> {memory():.0f} MiB')
