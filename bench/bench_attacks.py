"""Attacks against pyautoattack on the same model and images, in one run, one thread, CPU seconds.

    python bench/bench_attacks.py [--images 100] [--optimizer sgd]

The model is the small CNN (conv 16 4x4 s2, conv 32 4x4 s2, linear 100, linear 10), trained here for two epochs on
FashionMNIST; without FashionMNIST it is the small CNN on the 8x8 digits. pyautoattack 0.2 gives the same results as
the authors' code.
"""
import argparse, contextlib, io, logging, os, time

os.environ.setdefault('OMP_NUM_THREADS', '1')
import torch
from torch import nn

from robustnb import attacks, data, models, train
from robustnb.core import Stopwatch, provenance, seed_all, set_threads
from robustnb.pgd import ce
from robustnb.oracle import Oracle

TARGETS = {('linf', 'standard'): 1.35, ('l2', 'standard'): 1.5, ('linf', 'quick'): 4., ('l2', 'quick'): 4.,
           ('linf', 'proofs'): 1.8}


def network():
    "The small CNN for FashionMNIST."
    return nn.Sequential(nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
                         nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10))

def subject(optimizer, n):
    "A trained model, its images and labels, the radii."
    try:
        images = data.load('fashionmnist')
        radii = dict(linf=4/255, l2=.3)
    except Exception as e:
        print(f'no FashionMNIST here ({str(e).splitlines()[0]}); digits instead')
        images = data.load('digits')
        radii = dict(linf=.1, l2=.5)
    seed_all(0)
    net = models.SmallCNN() if images.shape[1] == 8 else network()
    net = train.fit(net, images, train.Config(optimizer, dict(sgd=.1, adam=1e-3)[optimizer], 2), device='cpu').model
    return images.name, net, data.to_float(images.x_test[:n]), images.y_test[:n], radii

def published(net, x, y, norm, eps):
    "pyautoattack's standard evaluation: robust flags and seconds."
    from pyautoattack import AutoAttack
    logging.getLogger('auto-attack').setLevel(logging.ERROR)
    with Stopwatch() as watch, contextlib.redirect_stdout(io.StringIO()):
        attack = AutoAttack(net, norm=dict(linf='Linf', l2='L2')[norm], eps=eps, seed=0, version='standard')
        _, label = attack.run_standard_evaluation(x, y, batch_size=250)
    return label == y, watch

def price(net, x, y, repeats=20):
    "CPU microseconds of a forward and of a gradient pass, the cheapest of several."
    oracle = Oracle(net, x, y)
    def best(f):
        times = []
        for _ in range(repeats):
            start = time.process_time()
            f()
            times.append(time.process_time() - start)
        return min(times)/len(x)*1e6
    gradient = lambda: oracle.gradient(x, lambda z: ce(z, y))
    return dict(forward=best(lambda: oracle.logits(x)), gradient=best(gradient))

def line(what, cpu, wall, base, robust, target=None):
    ratio = f'{base.cpu/cpu:6.2f}x' + (f' (target {target}x)' if target else '')
    print(f'{what:34}{cpu:9.1f}{wall:9.1f}{robust:8}  {ratio}', flush=True)

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', type=int, default=100)
    parser.add_argument('--optimizer', default='sgd', choices=['sgd', 'adam'])
    args = parser.parse_args()
    set_threads(1)
    name, net, x, y, radii = subject(args.optimizer, args.images)
    made = provenance()
    machine = f'{made["threads"]} thread, {made["processor"]}, torch {made["versions"]["torch"]}'
    print(f'{name}, small CNN trained by {args.optimizer}, {len(x)} images, {machine}')
    cost = price(net, x, y)
    print(f'a pass costs {cost["forward"]:.1f} us forward, {cost["gradient"]:.1f} us with the gradient\n')
    print(f'{"":34}{"CPU s":>9}{"wall s":>9}{"robust":>8}  ratio of CPU time')
    runs = {}
    for norm, eps in radii.items():
        robust, base = published(net, x, y, norm, eps)
        line(f'{norm} {eps:.4f} pyautoattack standard', base.cpu, base.wall, base, int(robust.sum()))
        for kind in 'standard', 'quick', 'proofs':
            version = 'quick' if kind == 'quick' else 'standard'
            with Stopwatch() as watch:
                ev = attacks.autoattack(net, x, y, norm, eps, version, progress=False, certify=kind == 'proofs')
            runs[norm, kind] = ev
            robust = int(ev.robust.sum())
            line(f'{norm} {eps:.4f} robustnb {kind}', watch.cpu, watch.wall, base, robust, TARGETS.get((norm, kind)))
    print('\nwhere the time goes, and the floor: passes times their price')
    for (norm, kind), ev in runs.items():
        if kind == 'quick': continue
        price_of = lambda passes: sum(cost[k]*n for k, n in passes.items())/1e6
        floor = {attack: price_of(passes) for attack, passes in ev.passes.items()}
        each = ', '.join(f'{a} {ev.cpu_s[a]:.1f} s (floor {floor[a]:.1f})' for a in ev.passes if a != 'clean')
        proved = f', proved {ev.certified_accuracy:.1%}' if kind == 'proofs' else ''
        together = f'together {sum(ev.cpu_s.values()):.1f} s, floor {sum(floor.values()):.1f} s'
        print(f'{norm} {kind}: {each}; {together}{proved}')
    if os.cpu_count() < 2: return print('\none core only: two processes not tried')
    print('\ntwo processes on two cores, wall seconds '
          '(standard mode on eight times the images; starting the processes, 3 seconds, included)')
    many = x.repeat(8, 1, 1, 1), y.repeat(8)
    walls = []
    for workers in 1, 2:
        with Stopwatch() as watch:
            attacks.autoattack(net, *many, 'linf', radii['linf'], 'standard', progress=False, workers=workers)
        walls.append(watch.wall)
    print(f'one {walls[0]:.1f}, two {walls[1]:.1f}: {walls[0]/walls[1]:.2f}x (target 1.8x)')


if __name__ == '__main__': main()
