"""Training: what a notebook can't show.

That is a process killed while it writes a checkpoint, and every optimizer at rates that no one would choose."""
import copy, json, math, os, subprocess, sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np, pytest, torch

from robustnb import data, models, optim, train
from robustnb.core import seed_all
from robustnb.train_many import fit_many

DIGITS = data.load('digits').subset(300, 1)
ONE_CLASS = replace(DIGITS, y_train=torch.zeros_like(DIGITS.y_train))


def net(seed=0, **options):
    seed_all(seed)
    return models.MLP(width=8, **options)

def weights(model): return torch.cat([p.detach().flatten() for p in model.parameters()])


# --- checkpoints

KILLED = """
import os, sys
from robustnb import data, models, train
from robustnb.core import seed_all
written, save = 0, train.save_file
def dies_in_its_third(tensors, path, meta):
    global written
    written += 1
    save(tensors, path, meta)
    if written == 3:
        os.truncate(path, 500)
        os._exit(9)
train.save_file = dies_in_its_third
seed_all(0)
digits = data.load('digits').subset(300, 1)
train.fit(models.MLP(width=8), digits, train.Config('adam', 1e-3, 4), device='cpu', checkpoint=sys.argv[1])
"""

def test_killed_while_it_writes_a_checkpoint_the_one_before_counts(tmp_path):
    path = tmp_path/'model.safetensors'
    config = train.Config('adam', 1e-3, 4)
    env = {**os.environ, 'OMP_NUM_THREADS': str(torch.get_num_threads())}
    assert subprocess.run([sys.executable, '-c', KILLED, str(path)], env=env).returncode == 9
    seen = []
    def note(model, curves): seen.append(len(curves))
    resumed = train.fit(net(5), DIGITS, config, device='cpu', checkpoint=path, on_epoch=note)
    assert seen == [3, 4], 'epochs 1 and 2 come from the file'
    whole = train.fit(net(), DIGITS, config, device='cpu')
    assert torch.equal(weights(resumed.model), weights(whole.model)) and resumed.curves == whole.curves

@pytest.mark.parametrize('optimizer', sorted(optim.OPTIMIZERS))
def test_every_optimizer_resumes_to_the_bit(tmp_path, optimizer):
    lr = optim.default_grid(optimizer)[2]
    config = train.Config(optimizer, lr, 3, batch_size=300 if optimizer == 'lbfgs' else 128)
    def stop(model, curves):
        if len(curves) == 1: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        train.fit(net(), DIGITS, config, device='cpu', checkpoint=tmp_path/'a.safetensors', on_epoch=stop)
    resumed = train.fit(net(5), DIGITS, config, device='cpu', checkpoint=tmp_path/'a.safetensors')
    whole = train.fit(net(), DIGITS, config, device='cpu')
    assert torch.equal(weights(resumed.model), weights(whole.model)) and resumed.curves == whole.curves

def test_a_diverged_run_stays_so_when_resumed(tmp_path):
    config = train.Config('sgd', 1e9, 3)
    run = lambda: train.fit(net(), DIGITS, config, device='cpu', checkpoint=tmp_path/'a.safetensors')
    first, second = run(), run()
    assert first.diverged
    assert second.diverged
    assert len(first.curves) == len(second.curves)

def test_shared_weights_and_numpys_numbers_go_into_a_checkpoint(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Linear(64, 64)
            self.b = torch.nn.Linear(64, 64)
            self.out = torch.nn.Linear(64, 10)
            self.b.weight = self.a.weight
        def forward(self, x): return self.out(torch.relu(self.b(torch.relu(self.a(x.flatten(1))))))
    config = train.Config('adam', np.float64(1e-3), np.int64(2), seed=np.int64(3))
    path = tmp_path/'a.safetensors'
    first, second = (train.fit(Tied(), DIGITS, config, device='cpu', checkpoint=path) for _ in range(2))
    assert first.curves == second.curves and second.model.a.weight is second.model.b.weight


# --- checkpoints that are damaged

def changed(path, tensors=lambda t: t, meta=lambda m: m):
    "Rewrite a checkpoint with other tensors and metadata."
    from safetensors import safe_open
    from safetensors.torch import save_file
    with safe_open(path, 'pt') as f:
        old = {k: f.get_tensor(k) for k in f.keys()}
        text = f.metadata()
    new = meta(json.loads(text['robustnb']))
    save_file(tensors(old), path, {'robustnb': new if isinstance(new, str) else json.dumps(new)})

def field(name, value): return lambda m: m | {name: value}

DAMAGE = {
    'not JSON': dict(meta=lambda m: 'abc'), 'brackets': dict(meta=lambda m: '['*100_000),
    'list': dict(meta=lambda m: []), 'nothing': dict(meta=lambda m: {}),
    'digits': dict(meta=lambda m: '1'*5000), 'config': dict(meta=field('config', [])),
    'curves': dict(meta=field('curves', {})), 'line': dict(meta=field('curves', [1])),
    'lines': dict(meta=field('curves', [{}])),
    'loss': dict(meta=lambda m: m | dict(curves=[m['curves'][0] | dict(loss='x')])),
    'epochs': dict(meta=lambda m: m | dict(curves=[m['curves'][0] | dict(epoch=i) for i in range(9)])),
    'optimizer': dict(meta=field('optim', [])),
    'no state': dict(meta=field('optim', {})), 'state': dict(meta=field('optim', {'dict': [['state', 3]]})),
    'names': dict(meta=lambda m: m | dict(optim=json.loads(json.dumps(m['optim']).replace('exp_avg_sq', 'x')))),
    'types': dict(tensors=lambda t: {k: v.long() if k.startswith('model.') else v for k, v in t.items()}),
    'double': dict(tensors=lambda t: {k: v.double() for k, v in t.items()}),
    'no weights': dict(tensors=lambda t: {k: v for k, v in t.items() if not k.startswith('model.')}),
    'no memory': dict(tensors=lambda t: {k: v for k, v in t.items() if not k.startswith('optim.')}),
    'turned': dict(tensors=lambda t: {k: v.T.contiguous() if v.ndim == 2 and k.startswith('optim.') else v for k,
                                      v in t.items()}),
    'shapes': dict(tensors=lambda t: {k: v.flatten() for k, v in t.items()})}

@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    "A sound checkpoint after one of two epochs."
    path = tmp_path_factory.mktemp('run')/'run.safetensors'
    def stop(model, curves):
        if len(curves) == 1: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        train.fit(net(), DIGITS, TWO, device='cpu', checkpoint=path, on_epoch=stop)
    return path

TWO = train.Config('adam', 1e-3, 2)

@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_checkpoint_is_named_and_kept(tmp_path, checkpoint, damage):
    path = tmp_path/'run.safetensors'
    path.write_bytes(checkpoint.read_bytes())
    changed(path)
    assert len(train.fit(net(5), DIGITS, TWO, device='cpu',
                         checkpoint=path).curves) == 2, 'the control: rewritten as it was, it goes on'
    path.write_bytes(checkpoint.read_bytes())
    changed(path, **DAMAGE[damage])
    before = path.read_bytes()
    with pytest.raises(ValueError, match='run.safetensors: .*; delete it'):
        train.fit(net(5), DIGITS, TWO, device='cpu', checkpoint=path)
    assert path.read_bytes() == before

def test_a_checkpoint_that_is_no_file(tmp_path, checkpoint):
    os.mkfifo(tmp_path/'pipe')
    (tmp_path/'empty').touch()
    (tmp_path/'cut').write_bytes(checkpoint.read_bytes()[:-1])
    for name in 'pipe', 'empty', 'cut', '.':
        with pytest.raises(ValueError, match='not a complete checkpoint'):
            train.fit(net(), DIGITS, TWO, device='cpu', checkpoint=tmp_path/name)
    assert len(train.fit(net(), DIGITS, TWO, device='cpu', checkpoint=tmp_path/'new').curves) == 2


# --- a Config of wrong types

@pytest.mark.parametrize('bad, words', [
    (dict(options=3), 'options: got 3, accepted: a dict'), (dict(options=[('momentum', .9)]), 'options: got'),
    (dict(options={3: .9}), 'option of sgd: got .3.'),
    (dict(optimizer='momentum', options={'momentum': 'x'}), "option momentum of momentum: got 'x', accepted: a number"),
    (dict(optimizer='adam', options={'betas': .9}), 'option betas of adam: got 0.9, accepted: 2 numbers'),
    (dict(optimizer='adam', options={'betas': (.9, None)}), 'option betas of adam: got None'),
    (dict(optimizer='muon', options={'nesterov': 1}), 'accepted: True or False'),
    (dict(optimizer='muon', options={'ns_steps': 2.5}), 'a whole number'),
    (dict(optimizer='momentum', options={'momentum': math.nan}), 'got nan'),
    (dict(optimizer='momentum', options={'momentum': True}), 'got True'),
    (dict(lr=10**400), 'lr: got a whole number of more than 50 digits'),
    (dict(epochs=10**400), 'epochs: got a whole number of more than 50 digits'),
    (dict(seed=-10**400), 'seed: got a whole number'),
    (dict(lr=torch.ones(2)), r'lr: got tensor\(\[1., 1.\]\), accepted: one value'),
    (dict(lr=np.ones(10**6)), 'lr: got array'), (dict(optimizer=np.array(['sgd', 'adam'])), 'optimizer: got array'),
    (dict(lr='.1'), "lr: got '.1', accepted: a finite number >= 0"), (dict(lr=None), 'lr: got None'),
    (dict(lr=1j), 'lr: got 1j'), (dict(lr=[.1]), r'lr: got \[0.1\]'), (dict(warmup=math.inf), 'warmup: got inf'),
    (dict(epochs=True), 'epochs: got True, accepted: a whole number'), (dict(epochs=2.5), 'epochs: got 2.5'),
    (dict(epochs=np.float64(2.5)), 'epochs: got 2.5'), (dict(epochs=np.bool_(True)), 'epochs: got True'),
    (dict(batch_size='3'), "batch_size: got '3'"), (dict(batch_size=0), 'batch_size: got 0'),
    (dict(seed=None), 'seed: got None'), (dict(optimizer=None), 'optimizer: got None, accepted: .sgd.'),
    (dict(optimizer={}), 'optimizer: got'),
    (dict(optimizer=train.Config), 'optimizer: got'), (dict(schedule=3), 'schedule: got'),
    (dict(augment=[]), 'augment: got'), (dict(precision=16), 'precision: got'),
    (dict(weight_decay='0'), 'weight_decay: got'), (dict(label_smoothing=2), 'label_smoothing: got 2')])
def test_wrong_types_in_a_config(bad, words):
    with pytest.raises(ValueError, match=words) as error: train.Config(**bad)
    assert len(str(error.value)) < 400

def test_numbers_of_every_library_in_a_config():
    from fractions import Fraction
    config = train.Config('adam', np.float32(.5), np.int64(2), torch.tensor(3), weight_decay=Fraction(1, 4),
                          warmup=torch.tensor(.5), seed=np.uint8(3), options={'betas': (np.float64(.5), .75)})
    assert config == train.Config('adam', .5, 2, 3, weight_decay=.25, warmup=.5, seed=3, options={'betas': (.5, .75)})
    json.dumps(vars(config))
    assert train.Config('adam', options={'betas': [.9, .99]}).options == {'betas': [.9, .99]}
    assert train.Config('lbfgs', 1,
                        options={'line_search_fn': 'strong_wolfe',
                                 'max_iter': 5}).options['line_search_fn'] == 'strong_wolfe'


# --- rates and data that no one would choose

def test_lbfgs_on_colour_images():
    images = SimpleNamespace(x_train=torch.rand(100, 3, 8, 8), y_train=torch.arange(100) % 10)
    fit = train.fit(models.SmallCNN(10, 3, 8, 4), images, train.Config('lbfgs', 1., 2, batch_size=100), device='cpu')
    assert fit.curves[1]['loss'] < fit.curves[0]['loss']

def test_batch_norm_with_one_image_left_over():
    fit = train.fit(net(norm='batch'), DIGITS.subset(65, 1), train.Config('sgd', .1, 1, batch_size=32), device='cpu')
    assert math.isfinite(fit.curves[0]['loss'])
    for n, sizes in (65, [32, 33]), (66, [32, 32, 2]), (1, [1]):
        assert train._sizes(n, 32, net(norm="batch")) == sizes
    assert train._sizes(65, 32, net()) == [32, 32, 1]

@pytest.mark.parametrize('optimizer', sorted(optim.OPTIMIZERS))
def test_a_rate_of_a_billion_is_a_result(optimizer):
    fit = train.fit(net(), DIGITS, train.Config(optimizer, 1e9, 3), device='cpu')
    assert 1 <= len(fit.curves) <= 3 and isinstance(fit.diverged, bool)
    last = fit.curves[-1]
    assert fit.diverged == (not math.isfinite(last['loss'] + last['weight_norm']))
    assert fit.diverged or last['weight_norm'] > 1e3, 'either it diverged or the weights are far away'

def test_in_one_pass_a_rate_of_a_billion_is_a_result_too():
    rates = lambda optimizer: (1e9, optim.default_grid(optimizer)[2])
    configs = [train.Config(o, lr, 2) for o in optim.OPTIMIZERS if o != 'lbfgs' for lr in rates(o)]
    fits = fit_many([net() for _ in configs], DIGITS, configs, device='cpu')
    assert not any(f.diverged for f in fits[1::2])
    for f in fits[::2]: assert f.diverged or f.curves[-1]['weight_norm'] > 1e3, f.config.optimizer

@pytest.mark.parametrize('bad', [math.nan, math.inf, -1., '0.1', None])
def test_rates_that_are_none(bad):
    with pytest.raises(ValueError, match='lr'): train.Config('sgd', bad)

@pytest.mark.parametrize('optimizer', ['sgd', 'adam', 'muon', 'soap', 'lbfgs'])
def test_a_batch_larger_than_the_data_is_the_data(optimizer):
    rate = optim.default_grid(optimizer)[1]
    run = lambda n: train.fit(net(), DIGITS, train.Config(optimizer, rate, 3, batch_size=n), device='cpu')
    large, exact = run(10**9), run(len(DIGITS.x_train))
    assert torch.equal(weights(large.model), weights(exact.model))
    assert large.curves[-1]['loss'] < large.curves[0]['loss']

@pytest.mark.parametrize('optimizer', sorted(optim.OPTIMIZERS))
def test_data_of_one_class(optimizer):
    lr = optim.default_grid(optimizer)[2]
    fit = train.fit(net(), ONE_CLASS, train.Config(optimizer, lr, 4), device='cpu')
    assert not fit.diverged and fit.curves[-1]['loss'] < fit.curves[0]['loss']
    single = train.fit(net(n_classes=1), ONE_CLASS, train.Config(optimizer, lr, 2), device='cpu')
    assert not single.diverged
    assert single.curves[-1]['loss'] == 0
    assert single.curves[-1]['accuracy'] == 1

def test_images_and_labels_must_match():
    with pytest.raises(ValueError, match=r'300 training images and labels of shape \(299,\)'):
        broken = copy.copy(DIGITS)
        object.__setattr__(broken, 'y_train', DIGITS.y_train[:-1])
        train.fit(net(), broken, train.Config(), device='cpu')
