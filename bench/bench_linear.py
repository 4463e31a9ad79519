"""Linear analysis: Figure 5 and a phase diagram against the plain way.

The plain way draws 5,000 fresh inputs for each step, passes them through a DataLoader and takes one torch optimizer
step. It is timed on a few steps of each optimizer and scaled to 200,000; nothing else is extrapolated.
"""
import numpy as np, torch
from torch.utils.data import DataLoader, TensorDataset

from robustnb.core import Stopwatch, generator, set_threads
from robustnb.linear import Problem, paper_problem, simulate

OPTIMIZERS = dict(gd=torch.optim.SGD, signgd=lambda p, lr: torch.optim.Adam(p, lr, betas=(0., 0.)),
                  adam=torch.optim.Adam, rmsprop=torch.optim.RMSprop)
STEPS = 200_000


def plain(optimizer, steps, n=5000):
    "The usual loop: fresh samples, DataLoader, model, loss, backward, step."
    problem = paper_problem()
    draw = generator(0, 'bench')
    C, sigma, star = (torch.as_tensor(a, dtype=torch.float32) for a in (problem.basis, problem.sigma, problem.w_star))
    model = torch.nn.Linear(3, 1, bias=False)
    model.weight.data = (torch.as_tensor(problem.w0, dtype=torch.float32) @ C)[None]
    opt = OPTIMIZERS[optimizer](model.parameters(), lr=.01)
    for _ in range(steps):
        frequencies = torch.randn(n, 3, generator=draw)*sigma
        for x, y in DataLoader(TensorDataset(frequencies @ C, frequencies @ star), batch_size=n):
            opt.zero_grad()
            loss = .5*(model(x).squeeze(1) - y).pow(2).mean()
            loss.backward()
            opt.step()


def figure5(mode, **options):
    "All four optimizers, 200,000 steps, 200 records."
    for name in OPTIMIZERS: simulate(paper_problem(), name, .01, STEPS, mode, **options)


def phase_diagram(size=100, steps=20_000):
    "signGD on size x size problems."
    x, ratio = np.meshgrid(np.geomspace(1/12, 12, size), np.geomspace(.03, 6, size))
    sigma = np.stack([1 + 0*x, ratio**.5, 0*x], -1)
    start = -np.stack([1/np.maximum(1, x), np.minimum(1, x), 0*x], -1)
    grid = Problem([0, 0, 0], sigma, start)
    simulate(grid, 'signgd', 2e-4, steps, record=2)


def measure(job, *args, **options):
    with Stopwatch() as watch: job(*args, **options)
    return watch


def main(timed=50):
    print(f'linear: Figure 5 = 4 optimizers x {STEPS:,} steps; torch threads {set_threads(1)}')
    plain('gd', 2)
    runs = [measure(plain, name, timed) for name in OPTIMIZERS]
    cpu, wall = (sum(getattr(w, k) for w in runs)*STEPS/timed for k in ('cpu', 'wall'))
    print(f'{"":44}{"CPU s":>10}{"wall s":>10}{"CPU ratio":>12}')
    print(f'{"plain way, " + str(4*timed) + " steps timed, scaled":44}{cpu:10,.0f}{wall:10,.0f}{1:12}')
    ways = [('sample mode', dict(mode='sample')),
            ('sample mode, 20 seeds (ratio per seed)', dict(mode='sample', seed=range(20))),
            ('population mode', dict(mode='population'))]
    for label, options in ways:
        w = measure(figure5, **options)
        n = len(options.get('seed', [0]))
        print(f'{label:44}{w.cpu:10.2f}{w.wall:10.2f}{cpu*n/w.cpu:12,.0f}')
    w = measure(phase_diagram)
    print(f'{"phase diagram, 10,000 x 20,000 steps":44}{w.cpu:10.2f}{w.wall:10.2f}')


if __name__ == '__main__': main()
