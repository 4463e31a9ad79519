"""Everything on a card: real where there is one, pretended everywhere (see card.py)."""
import pytest
import torch
from torch.testing import assert_close

import card
from robustnb import data, models, optim, replay, train, train_many
from robustnb.core import seed_all

REPLAYED = [name for name, spec in optim.OPTIMIZERS.items() if spec.replays]


@pytest.fixture(scope='module')
def digits(): return data.load('digits').subset(300, 60)


def net(seed=0, **kw):
    seed_all(seed)
    return models.SmallCNN(in_channels=1, input_size=8, **kw)


def weights(model): return torch.cat([v.detach().cpu().double().flatten() for v in model.state_dict().values()])


# What the pretended card promises

def test_the_card_refuses_the_cpu():
    with card.plugged_in():
        a = torch.arange(3.).to(card.CARD)
        for meet in lambda: a + torch.ones(3), lambda: torch.ones(3)[a.long()], lambda: a[torch.tensor([0])], lambda: torch.nn.Linear(3, 1)(a):
            with pytest.raises(RuntimeError, match='meet those on the card'): meet()
        with pytest.raises(RuntimeError, match='generator'): torch.rand(3, generator=torch.Generator(), device=card.CARD)
        assert (a + 1).device == card.CARD and (a*2).tolist() == [0, 2, 4] and (a + torch.tensor(1.)).sum().item() == 6
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
        with pytest.raises(RuntimeError, match='not permitted'): tape.capture(lambda: a.sum().item())


# Replays

def test_work_that_waits_is_never_captured(device):
    total = torch.zeros((), device=device)
    def work():
        total.add_(1)
        if total.item() > 100: total.zero_()
    step = replay.Replay(work, device, 'this step')
    with pytest.warns(UserWarning, match='this step is launched kernel by kernel'):
        for _ in range(6): step()
    assert total.item() == 6 and step.graph is None and step.why_not


def test_work_that_cannot_be_captured_is_done_plainly(device, monkeypatch):
    class Fails:
        def capture(self, work): raise RuntimeError('operation not permitted when stream is capturing')
    monkeypatch.setattr(replay, 'Graph', Fails)
    total = torch.zeros((), device=device)
    step = replay.Replay(lambda: total.add_(1), device)
    with pytest.warns(UserWarning, match='not permitted when stream is capturing') as told:
        for _ in range(6): step()
    assert total.item() == 6 and len(told) == 1


# Training

def trained(device, digits, config, **kw): return train.fit(net(**kw), digits, config, device=device)


def same_course(ours, theirs):
    """The same training but for rounding: sums in another order, and rates of 24 bits, move a step by 1e-7 of its length; what twenty steps make
    of that stays far below a hundredth."""
    assert len(ours.curves) == len(theirs.curves)
    for a, b in zip(ours.curves, theirs.curves):
        assert a['lr'] == b['lr'] and abs(a['loss'] - b['loss']) < .01*b['loss'] and abs(a['accuracy'] - b['accuracy']) < .02
    assert (weights(ours.model) - weights(theirs.model)).norm() < .01*weights(theirs.model).norm()


def same_steps(device, ours, theirs):
    "The same kernels on the same numbers; a real card may add them up in another order."
    if device == card.CARD: assert torch.equal(weights(ours.model), weights(theirs.model)) and ours.curves == theirs.curves
    else: same_course(ours, theirs)


@pytest.mark.parametrize('name', REPLAYED)
def test_replayed_training_is_the_same_training(device, digits, name, monkeypatch):
    config = train.Config(name, optim.default_grid(name)[1], 3, batch_size=64, augment='flip+crop', schedule='cosine', warmup=1.)
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
    assert not fit.eager and (weights(model)[:640].view(10, 64).abs().sum(0) > 0).sum() >= 50, 'pixels of ink have learned'


@pytest.mark.parametrize('batch_size', [50, 64, 299, 1000])
def test_batches_of_every_size(device, digits, batch_size):
    config = train.Config('momentum', .01, 5, batch_size=batch_size)
    same_course(trained(device, digits, config), trained('cpu', digits, config))


@pytest.mark.parametrize('name', ['momentum', 'adam', 'nadam', 'lion'])
@pytest.mark.parametrize('first', ['card', 'cpu'])
def test_a_run_goes_on_on_another_device(digits, name, first, tmp_path):
    config = train.Config(name, optim.default_grid(name)[1], 4, batch_size=100)
    whole = trained('cpu', digits, config)
    def interrupt(model, curves):
        if len(curves) == 2: raise KeyboardInterrupt
    with card.plugged_in():
        path = tmp_path/'a.safetensors'
        second = 'cpu' if first == 'card' else 'card'
        with pytest.raises(KeyboardInterrupt): train.fit(net(), digits, config, device=first, checkpoint=path, on_epoch=interrupt)
        same_course(train.fit(net(7), digits, config, device=second, checkpoint=path), whole)


def test_an_epoch_waits_once(digits):
    "What is put on the card before the first batch does not wait for it; the line of the curves does."
    with card.plugged_in():
        epochs = []
        train.fit(net(), digits, train.Config('adam', 1e-3, 5, batch_size=50, augment='flip+crop'), device='card',
                  on_epoch=lambda model, curves: epochs.append(len(card.waits)))
        last = card.waits[epochs[-2]:epochs[-1]]
    assert [w for w in last if not w.endswith('up')] == ['aten._to_copy.default down'], last


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
