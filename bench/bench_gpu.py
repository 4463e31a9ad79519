"""On a GPU: training and attacks against the plain way on the same card, in one run; a table, and the same as JSON.

    python bench/bench_gpu.py [--json FILE] [--parts train,deep,many,attacks,large] [--device cuda]

Beside each figure stands that of the same code with the steps launched kernel by kernel, as version 0.1 did it
(`eager`). Data: FashionMNIST and CIFAR-10 where ROBUSTNB_DATA holds them, random pixels elsewhere (speed does not
depend on the pixels; what survives an attack does).
`--device cpu` tries the script out on small parts; its figures mean nothing.
"""
import argparse, contextlib, io, json, logging, subprocess, sys, time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from robustnb import attacks, data, models, optim, replay, train
from robustnb.core import provenance, seed_all
from robustnb.train_many import fit_many

logging.getLogger().setLevel(logging.ERROR)


def load(name, n, shape):
    try: return data.load(name, download=False).subset(n, 1000)
    except (OSError, ValueError):
        shape = (n + 1000, *shape)
        x = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        y = torch.arange(n + 1000) % 10
        return data.Data(name, x[:n], y[:n], x[n:], y[n:], tuple('0123456789'), 'random pixels')


class Bench:
    def __init__(self, device):
        self.device = torch.device(device)
        self.small = self.device.type == 'cpu'
        self.rows = []

    def seconds(self, work):
        "Wall seconds of `work()`, the card's included."
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def wait(self):
        if not self.small: torch.cuda.synchronize(self.device)

    def add(self, what, unit, **figures):
        self.rows.append(dict(what=what, unit=unit, **figures))
        base = figures.pop('ours')
        better = (lambda a, b: a/b) if unit.endswith('/s') else (lambda a, b: b/a)
        measured = {name: value for name, value in figures.items() if isinstance(value, float)}
        others = [f'{name} {value:,.4g} ({better(base, value):.2f}x)' for name, value in measured.items()]
        notes = [f'{name} {value}' for name, value in figures.items() if name not in measured]
        print(f'{what:66} {base:12,.4g} {unit:9}', *others, *notes, flush=True)


@contextlib.contextmanager
def eagerly():
    "Inside the block no step is captured."
    before = replay.Replay.__call__
    replay.Replay.__call__ = lambda self: self.work()
    try: yield
    finally: replay.Replay.__call__ = before


def plain_rate(b, make, images, epochs):
    "Images a second of a DataLoader over tensors, in fp32 without TF32."
    model = make().to(b.device)
    opt = torch.optim.SGD(model.parameters(), .01)
    def run():
        tensors = TensorDataset(data.to_float(images.x_train), images.y_train)
        for x, y in DataLoader(tensors, 128, shuffle=True, drop_last=True):
            opt.zero_grad()
            nn.functional.cross_entropy(model(x.to(b.device)), y.to(b.device)).backward()
            opt.step()
    with replay.exact():
        run()
        return len(images.x_train)*epochs/b.seconds(lambda: [run() for _ in range(epochs)])


def our_rate(b, make, images, precision, epochs, batch_size=128):
    "Images a second of `fit`, the first epoch (which captures) left out; also why it did not replay, if so."
    times = []
    def note(model, curves):
        b.wait()
        times.append(time.perf_counter())
    config = train.Config('sgd', .01, epochs + 1, batch_size=batch_size, precision=precision)
    fit = train.fit(make(), images, config, device=str(b.device), on_epoch=note)
    return len(images.x_train)*epochs/(times[-1] - times[0]), fit.eager


def training(b, what, make, images, precisions, plain_epochs, epochs, batch_size=128):
    plain = plain_rate(b, make, images, plain_epochs)
    for precision in precisions:
        ours, why = our_rate(b, make, images, precision, epochs, batch_size)
        with eagerly(): eager, _ = our_rate(b, make, images, precision, max(1, epochs//4), batch_size)
        notes = dict(not_replayed=why) if why else {}
        b.add(f'{what}, {precision}, batch {batch_size}', 'images/s', ours=ours, eager=eager, plain=plain, **notes)


def part_train(b):
    images = load('fashionmnist', 2_000 if b.small else 60_000, (1, 28, 28))
    precisions = ['fp32'] if b.small else ['fp32', 'tf32', 'bf16']
    training(b, 'two-layer CNN, FashionMNIST', models.TwoLayerCNN, images, precisions, 1, 1 if b.small else 8)


def part_deep(b):
    images = load('cifar10', 128 if b.small else 20_000, (3, 32, 32))
    make = models.PreActResNet18
    precisions = ['fp32'] if b.small else ['bf16', 'tf32']
    training(b, 'PreActResNet18, 32x32', make, images, precisions, 1, 1 if b.small else 3)


def part_many(b):
    digits = data.load('digits')
    seeds = range(1 if b.small else 5)
    rates = {name: optim.default_grid(name)[:6] for name in ('sgd', 'adam', 'rmsprop')}
    plan = [(name, rate, seed) for name in rates for rate in rates[name] for seed in seeds]
    configs = [train.Config(name, rate, 5, seed=seed) for name, rate, seed in plan]
    def run():
        fit_many([models.MLP() for _ in plan], digits, configs, device=str(b.device))
    run()
    ours = b.seconds(run)
    with eagerly(): eager = b.seconds(run)
    b.add(f'{len(plan)} digits MLPs, 5 epochs', 's', ours=ours, eager=eager)


def peer(b, model, x, y, norm, eps, batch_size):
    "Seconds and survivors of pyautoattack, or nothing where it is not installed."
    try: from pyautoattack import AutoAttack
    except ImportError: return {}
    attack = AutoAttack(model, norm=dict(linf='Linf', l2='L2')[norm], eps=eps, version='standard', device=str(b.device))
    run = lambda: attack.run_standard_evaluation(x.to(b.device), y.to(b.device), batch_size=batch_size)
    found = []
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        seconds = b.seconds(lambda: found.append(run()))
    x_adv = found[0][0] if isinstance(found[0], tuple) else found[0]
    with torch.no_grad(): robust = int((model(x_adv.to(b.device)).argmax(1) == y.to(b.device)).sum())
    return dict(pyautoattack=seconds, their_survivors=str(robust))


def attacked(b, what, model, x, y, norm, eps, batch_size):
    version = 'quick' if b.small else 'standard'
    run = lambda: attacks.autoattack(model, x, y, norm, eps, version, batch_size=batch_size, progress=False)
    with replay.exact():
        found = []
        ours = b.seconds(lambda: found.append(run()))
        with eagerly(): eager = b.seconds(run)
        theirs = {} if b.small else peer(b, model, x, y, norm, eps, batch_size)
    survivors = str(int(found[0].robust.sum()))
    b.add(f'{what}, {norm} {eps:.4g}, {len(x)} images', 's', ours=ours, eager=eager, survivors=survivors, **theirs)


def part_attacks(b):
    images = load('fashionmnist', 500 if b.small else 20_000, (1, 28, 28))
    seed_all(0)
    config = train.Config('sgd', .05, 1 if b.small else 5)
    model = train.fit(models.TwoLayerCNN(), images, config, device=str(b.device)).model
    n = 4 if b.small else 1000
    x, y = images.x_test[:n].float()/255, images.y_test[:n]
    for norm, eps in ('linf', 4/255), ('l2', .3):
        attacked(b, 'AutoAttack standard, two-layer CNN', model, x, y, norm, eps, 1000)


def part_large(b):
    images = load('cifar10', 128 if b.small else 10_000, (3, 32, 32))
    seed_all(0)
    config = train.Config('sgd', .1, 1 if b.small else 10, precision='fp32' if b.small else 'bf16')
    model = train.fit(models.PreActResNet18(), images, config, device=str(b.device)).model
    n = 1 if b.small else 128
    x, y = images.x_test[:n].float()/255, images.y_test[:n]
    attacked(b, 'AutoAttack standard, PreActResNet18', model, x, y, 'linf', .5/255, 128)


PARTS = dict(train=part_train, deep=part_deep, many=part_many, attacks=part_attacks, large=part_large)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--json', help='file for the figures')
    parser.add_argument('--parts', default=','.join(PARTS))
    parser.add_argument('--device', default='cuda')
    args = parser.parse_args()
    if args.device.startswith('cuda') and not torch.cuda.is_available():
        print('bench_gpu: no CUDA device here (--device cpu tries the script out)')
        sys.exit()
    b = Bench(args.device)
    about = provenance(args.device)
    if not b.small:
        ask = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
        about['driver'] = subprocess.run(ask, capture_output=True, text=True).stdout.strip()
    print(about['gpu'] or about['processor'], 'torch', torch.__version__, 'CUDA', torch.version.cuda)
    failed = []
    for name in args.parts.split(','):
        try: PARTS[name](b)
        except Exception as e:
            failed.append(name)
            print(f'{name}: {type(e).__name__}: {e}', flush=True)
        if args.json:
            about_all = dict(provenance=about, rows=b.rows)
            with open(args.json, 'w') as f: json.dump(about_all, f, indent=1)
    sys.exit(bool(failed))
