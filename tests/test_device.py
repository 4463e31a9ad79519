"""Everything on a card: real where there is one, pretended everywhere (see card.py)."""
import copy, gc, random

import pytest
import torch
from torch.testing import assert_close

import card
from robustnb import attacks, data, models, optim, replay, train, train_many
from robustnb.core import seed_all

REPLAYED = [name for name, spec in optim.OPTIMIZERS.items() if spec.replays]


@pytest.fixture(scope='module')
def digits(): return data.load('digits').subset(300, 60)


def net(seed=0, **kw):
    seed_all(seed)
    return models.SmallCNN(in_channels=1, input_size=8, **kw)


def weights(model):
    return torch.cat([v.detach().cpu().double().flatten() for v in model.state_dict().values()])


# What the pretended card promises

def test_the_card_refuses_the_cpu():
    with card.plugged_in():
        a = torch.arange(3.).to(card.CARD)
        meetings = (lambda: a + torch.ones(3), lambda: torch.ones(3)[a.long()],
                    lambda: a[torch.tensor([0])], lambda: torch.nn.Linear(3, 1)(a))
        for meet in meetings:
            with pytest.raises(RuntimeError, match='meet those on the card'): meet()
        with pytest.raises(RuntimeError, match='generator'):
            torch.rand(3, generator=torch.Generator(), device=card.CARD)
        assert (a + 1).device == card.CARD
        assert (a*2).tolist() == [0, 2, 4]
        assert (a + torch.tensor(1.)).sum().item() == 6
        with pytest.raises((TypeError, RuntimeError)): a.numpy()


def test_the_card_counts_what_waits():
    with card.plugged_in():
        a = torch.arange(3.).to(card.CARD)
        before = len(card.waits)
        b = torch.where(a > 1, a, 0).sum()
        assert len(card.waits) == before
        b.item()
        a[a > 1]
        a.cpu()
        assert len(card.waits) == before + 3


def test_a_tape_repeats_kernels_and_nothing_else():
    with card.plugged_in():
        a = torch.zeros(2, device=card.CARD)
        python = [0]
        def work():
            python[0] += 1
            a.add_(python[0])
        tape = card.Tape()
        tape.capture(work)
        assert a.tolist() == [0, 0], 'a capture does nothing'
        for _ in range(3): tape.replay()
        assert a.tolist() == [3, 3] and python == [1], 'the number was written down as it was'
        with pytest.raises(RuntimeError, match='not permitted'):
            tape.capture(lambda: a.sum().item())


# Replays

def test_work_that_waits_is_never_captured(device):
    total = torch.zeros((), device=device)
    def work():
        total.add_(1)
        if total.item() > 100: total.zero_()
    step = replay.Replay(work, device, 'this step')
    with pytest.warns(UserWarning, match='this step is launched kernel by kernel'):
        for _ in range(6): step()
    assert total.item() == 6
    assert step.graph is None
    assert step.why_not


def test_work_that_cannot_be_captured_is_done_plainly(device, monkeypatch):
    class Fails:
        def capture(self, work, family, device):
            raise RuntimeError('operation not permitted when stream is capturing')
    monkeypatch.setattr(replay, 'Graph', Fails)
    total = torch.zeros((), device=device)
    step = replay.Replay(lambda: total.add_(1), device)
    with pytest.warns(UserWarning, match='not permitted when stream is capturing') as told:
        for _ in range(6): step()
    assert total.item() == 6
    assert sum('not permitted' in str(w.message) for w in told) == 1


def test_work_that_tosses_coins_in_python_is_never_captured(device):
    "A graph would toss the same one for ever."
    total = torch.zeros((), device=device)
    step = replay.Replay(lambda: total.add_(random.choice([1, 2])), device, 'this step')
    with pytest.warns(UserWarning, match='draws random numbers on the CPU'):
        for _ in range(60): step()
    assert step.graph is None
    assert 60 < total.item() < 120


def test_errors_of_a_capture_that_are_no_runtime_errors(device, monkeypatch):
    "A program refuses what it is given by a ValueError; the plain call decides whether it is the model's fault."
    class Fails:
        def capture(self, work, family, device): raise ValueError('model: got a capture')
    monkeypatch.setattr(replay, 'Graph', Fails)
    total = torch.zeros((), device=device)
    step = replay.Replay(lambda: total.add_(1), device)
    with pytest.warns(UserWarning, match='got a capture'):
        for _ in range(6): step()
    assert total.item() == 6


# Training

def trained(device, digits, config, **kw):
    return train.fit(net(**kw), digits, config, device=device)


def same_course(ours, theirs):
    """The same training but for rounding: sums in another order, and rates of 24 bits.

    They move a step by 1e-7 of its length; what twenty steps make of that stays far below a hundredth."""
    assert len(ours.curves) == len(theirs.curves)
    for a, b in zip(ours.curves, theirs.curves):
        assert a['lr'] == b['lr']
        assert abs(a['loss'] - b['loss']) < .01*b['loss']
        assert abs(a['accuracy'] - b['accuracy']) < .02
    assert (weights(ours.model) - weights(theirs.model)).norm() < .01*weights(theirs.model).norm()


def same_steps(device, ours, theirs):
    "The same kernels on the same numbers; a real card may add them up in another order."
    if device != card.CARD: return same_course(ours, theirs)
    assert torch.equal(weights(ours.model), weights(theirs.model))
    assert ours.curves == theirs.curves


@pytest.mark.parametrize('name', REPLAYED)
def test_replayed_training_is_the_same_training(device, digits, name, monkeypatch):
    lr = optim.default_grid(name)[1]
    config = train.Config(name, lr, 3, batch_size=64, augment='flip+crop', schedule='cosine', warmup=1.)
    ours = trained(device, digits, config)
    assert ours.eager == ''
    same_course(ours, trained('cpu', digits, config))
    monkeypatch.setattr(replay.Replay, 'plain', 10**9)
    same_steps(device, ours, trained(device, digits, config))


@pytest.mark.parametrize('name', [n for n in optim.OPTIMIZERS if n not in REPLAYED])
def test_other_optimizers_are_eager_and_say_so(device, digits, name):
    config = train.Config(name, optim.default_grid(name)[0], 1, batch_size=100)
    ours = trained(device, digits, config)
    assert ours.eager == f'{name} keeps numbers in Python' and 'no CUDA graph' in repr(ours)
    same_course(ours, trained('cpu', digits, config))


def test_batch_norm_replays(device, digits, monkeypatch):
    config = train.Config('momentum', 1e-3, 3, batch_size=64)
    ours = trained(device, digits, config, norm='batch')
    assert not ours.eager
    monkeypatch.setattr(replay.Replay, 'plain', 10**9)
    same_steps(device, ours, trained(device, digits, config, norm='batch'))


def test_dropout_replays(device, digits):
    "Each replay draws again: a dropped unit is not dropped for ever."
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(.9), torch.nn.Linear(64, 10))
    for p in model.parameters(): p.data.zero_()
    fit = train.fit(model, digits, train.Config('sgd', .5, 5, batch_size=64, schedule='constant'), device=device)
    assert not fit.eager
    assert (weights(model)[:640].view(10, 64).abs().sum(0) > 0).sum() >= 50, 'pixels of ink have learned'


@pytest.mark.parametrize('batch_size', [50, 64, 299, 1000])
def test_batches_of_every_size(device, digits, batch_size):
    config = train.Config('momentum', .01, 5, batch_size=batch_size)
    same_course(trained(device, digits, config), trained('cpu', digits, config))


@pytest.mark.parametrize('name', ['sgd', 'momentum', 'adam', 'nadam', 'lion'])
@pytest.mark.parametrize('first', ['card', 'cpu'])
def test_a_run_goes_on_on_another_device(digits, name, first, tmp_path):
    config = train.Config(name, optim.default_grid(name)[1], 4, batch_size=100)
    whole = trained('cpu', digits, config)
    def interrupt(model, curves):
        if len(curves) == 2: raise KeyboardInterrupt
    with card.plugged_in():
        path = tmp_path/'a.safetensors'
        second = 'cpu' if first == 'card' else 'card'
        with pytest.raises(KeyboardInterrupt):
            train.fit(net(), digits, config, device=first, checkpoint=path, on_epoch=interrupt)
        same_course(train.fit(net(7), digits, config, device=second, checkpoint=path), whole)


def many(device, digits, names):
    configs = [train.Config(name, optim.default_grid(name)[i], 3, batch_size=64, seed=i, weight_decay=.01*i)
               for i, name in enumerate(names)]
    seed_all(0)
    return train_many.fit_many([models.MLP() for _ in configs], digits, configs, device=device)


@pytest.mark.parametrize('names', [['sgd', 'sgd', 'adam'], ['momentum', 'nesterov', 'rmsprop', 'adagrad', 'adadelta'],
                                   ['amsgrad', 'adamw', 'nadam', 'lion', 'signsgd', 'muon']], ids=' '.join)
def test_many_models_in_one_graph(device, digits, names, monkeypatch):
    ours = many(device, digits, names)
    plain = many('cpu', digits, names)
    assert not any(fit.eager for fit in ours)
    for a, b in zip(ours, plain):
        same_course(a, b)
        if device == card.CARD:
            assert_close(weights(a.model), weights(b.model), rtol=1e-3, atol=1e-5)
    monkeypatch.setattr(replay.Replay, 'plain', 10**9)
    for a, b in zip(ours, many(device, digits, names)): same_steps(device, a, b)


def test_soap_counts_in_python(device, digits):
    ours = many(device, digits, ['sgd', 'soap'])
    plain = many('cpu', digits, ['sgd', 'soap'])
    assert ours[0].eager == 'soap looks at its count'
    for a, b in zip(ours, plain): same_course(a, b)


def test_weights_that_are_put_elsewhere_go_on_learning(device, digits):
    "As by a function that takes the model to the CPU and back after each epoch."
    config = train.Config('sgd', .1, 4, batch_size=64)
    def away(model, curves):
        for p in model.parameters(): p.data = p.data.clone()
    moved = train.fit(net(), digits, config, device=device, on_epoch=away)
    same_course(moved, trained(device, digits, config))


def test_a_finished_training_keeps_no_memory(device, digits):
    "Its graph leads to the images and the optimizer's state; nothing may lead back to it in a circle."
    alive = lambda: sum(type(o).__name__ in ('_Trainer', '_Passes') for o in gc.get_objects())
    gc.collect()
    before = alive()
    gc.disable()
    try:
        ours = trained(device, digits, train.Config('sgd', .1, 1, batch_size=64))
        several = many(device, digits, ['sgd', 'adam'])
        assert alive() == before and not ours.eager and len(several) == 2
    finally: gc.enable()


def test_an_epoch_waits_once(digits):
    "What is put on the card before the first batch does not wait for it; the line of the curves does."
    with card.plugged_in():
        epochs = []
        train.fit(net(), digits, train.Config('adam', 1e-3, 5, batch_size=50, augment='flip+crop'), device='card',
                  on_epoch=lambda model, curves: epochs.append(len(card.waits)))
        last = card.waits[epochs[-2]:epochs[-1]]
    assert [w for w in last if not w.endswith('up')] == ['aten._to_copy.default down'], last


def test_a_batch_without_room_names_one_that_fits(digits):
    "Also late in an epoch; what fails in the caller's own function is no matter of the batch."
    class Crowded(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()
            self.asked = 0
        def forward(self, x):
            self.asked += 1
            if len(x) > 40 and self.asked > 4:
                raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')
            return self.net(x)
    config = train.Config('sgd', .1, 2, batch_size=64)
    with pytest.raises(ValueError, match='batch_size: got 64, .*CUDA out of memory.*accepted: at most 32'):
        train.fit(Crowded(), digits, config, device='cpu')
    def ask(model, curves): raise torch.OutOfMemoryError('of another')
    with pytest.raises(torch.OutOfMemoryError, match='of another'):
        train.fit(net(), digits, config, device='cpu', on_epoch=ask)


def test_a_model_that_looks_at_its_numbers_trains_eagerly(device, digits):
    class Looks(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()
        def forward(self, x): return self.net(x)*(2. if x.mean().item() > 2 else 1.)
    with pytest.warns(UserWarning, match='a training step is launched kernel by kernel'):
        ours = train.fit(Looks(), digits, train.Config('sgd', .1, 2, batch_size=64), device=device)
    assert ours.eager
    assert ours.curves[-1]['loss'] < ours.curves[0]['loss']


# Attacks

@pytest.fixture(scope='module')
def victim(digits):
    return train.fit(net(), digits, train.Config('adam', 3e-3, 6, batch_size=64), device='cpu').model


@pytest.fixture
def images(digits): return digits.x_test[:24].float()/255, digits.y_test[:24]


def quick(model, x, y, norm, eps):
    return attacks.autoattack(model, x[:5], y[:5], norm, eps, 'quick', progress=False, batch_size=8)
def apgd(model, x, y, norm, eps): return attacks.apgd(model, x, y, norm, eps, steps=20)
def apgd_dlr(model, x, y, norm, eps):
    return attacks.apgd(model, x, y, norm, eps, 'dlr', steps=12, runs=2)
def deepfool(model, x, y, norm, eps): return attacks.deepfool(model, x, y, norm, eps, steps=5)
def apgd_targeted(model, x, y, norm, eps):
    return attacks.apgd(model, x, y, norm, eps, 'dlr-targeted', steps=14, runs=2)
def fab(model, x, y, norm, eps): return attacks.fab(model, x, y, norm, eps, targets=2, steps=14)
def fab_anywhere(model, x, y, norm, eps):
    return attacks.fab(model, x[:12], y[:12], norm, targets=2, steps=14)
def square(model, x, y, norm, eps):
    return attacks.square(model, x, y, norm, eps, queries=60, batch_size=13)
def nearest(model, x, y, norm, eps):
    return attacks.minimal_norm(model, x[:4], y[:4], norm, rounds=1, steps=10)
def in_portions(model, x, y, norm, eps):
    return attacks.pgd(model, x, y, norm, eps, restarts=2, steps=8, batch_size=13)


ATTACKS = [attacks.fgsm, attacks.pgd, apgd, deepfool, apgd_dlr, apgd_targeted, fab, fab_anywhere, square, quick,
           nearest, in_portions]


def found_by(attack, model, x, y, norm):
    found = attack(model, x, y, norm, .1 if norm == 'linf' else .6)
    name = next(name for name in ('robust', 'radius', 'fooled') if hasattr(found, name))
    return found.x_adv, getattr(found, name)


def agree(ours, theirs, device):
    """All but one image in 200 have the same verdict.

    Paths part where a sign hangs on the last bit, which on the pretended card is rare."""
    x_adv, hit = (found.cpu() for found in ours)
    x_cpu, hit_cpu = theirs
    if hit.dtype == torch.bool: assert (hit != hit_cpu).sum() <= max(1, len(hit)/200)
    else: assert ((hit - hit_cpu).abs() <= .05*hit_cpu).all()
    assert x_adv.shape == x_cpu.shape
    if device == card.CARD:
        near = (x_adv - x_cpu).flatten(1).abs().amax(1) < .01
        assert near.float().mean() > .8


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('attack', ATTACKS, ids=lambda a: a.__name__)
def test_attacks_agree_with_the_cpu(device, victim, images, attack, norm):
    x, y = images
    theirs = found_by(attack, victim, x, y, norm)
    model = copy.deepcopy(victim).to(device)
    agree(found_by(attack, model, x, y, norm), theirs, device)
    ours = found_by(attack, model, x.to(device), y.to(device), norm)
    assert ours[0].device.type == device.type
    agree(ours, theirs, device)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('attack', [apgd_targeted, fab, square, attacks.pgd], ids=lambda a: a.__name__)
def test_replayed_attacks_are_the_same_attacks(victim, images, attack, norm, monkeypatch):
    "On the pretended card to the last bit: what a step asks for is all there is to it."
    replayed = []
    again = card.Tape.replay
    monkeypatch.setattr(card.Tape, 'replay', lambda self: replayed.append(again(self)))
    x, y = images
    with card.plugged_in():
        model = copy.deepcopy(victim).to(card.CARD)
        ours = [part.cpu() for part in found_by(attack, model, x, y, norm)]
        assert len(replayed) > 5
        monkeypatch.setattr(replay.Replay, 'plain', 10**9)
        plain = [part.cpu() for part in found_by(attack, model, x, y, norm)]
    assert torch.equal(ours[0], plain[0]) and torch.equal(ours[1], plain[1])
