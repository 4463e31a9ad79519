"""A pretended card: a device that is no CPU, with real numbers, for machines without a GPU.

Inside `with card.plugged_in():` tensors can lie on the device `CARD`. As on a GPU they do not meet those of the CPU;
what would wait for the card is counted in `card.waits`. A step can be captured there and replayed as CUDA does it:
the same kernels on the same memory, nothing of Python between them. What computes is the CPU, so results agree
to the last bit or two.
"""
import random, sys
from contextlib import contextmanager, nullcontext
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from robustnb import core

aten = torch.ops.aten
CARD = torch.device('lazy')  # the one device of torch that no machine has and whose gradients are computed without it
COPIES = {aten._to_copy.default, aten.copy_.default}
WAITS = {aten._local_scalar_dense.default, aten.is_nonzero.default, aten.item.default, aten.nonzero.default,
         aten.masked_select.default, aten.equal.default, aten._unique2.default, aten.unique_dim.default}
waits = []    # what waited for the card, by the name of the operation
_tape = None  # what records the operations of a capture


class OnCard(torch.Tensor):
    "A tensor on the card; `inner` holds its numbers."
    @staticmethod
    def __new__(cls, inner):
        layout = dict(strides=inner.stride(), storage_offset=inner.storage_offset(), layout=inner.layout)
        return torch.Tensor._make_wrapper_subclass(cls, inner.size(), dtype=inner.dtype, device=CARD, **layout)
    def __init__(self, inner): self.inner = inner
    def __repr__(self): return f'OnCard({self.inner})'
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})
    def data_ptr(self): return self.inner.data_ptr()
    def tolist(self): return self.cpu().tolist()  # torch's own looks at the memory
    def __format__(self, spec): return format(self.cpu(), spec)
    @property
    def data(self): return self.detach()
    @data.setter
    def data(self, value):
        torch.Tensor.data.__set__(self, value)
        self.inner = value.inner


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Makers(TorchFunctionMode):
    "torch.tensor and its like make their numbers on the CPU, out of reach of `_Mode`."
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.new_tensor and isinstance(args[0], OnCard):
            return torch.tensor(args[1], dtype=args[0].dtype).to(CARD)
        if func not in (torch.tensor, torch.as_tensor, torch.asarray): return func(*args, **kwargs)
        device = kwargs.pop('device', None)
        made = func(*args, **kwargs)
        return made if device is None else made.to(device)


def _inner(t): return t.inner if isinstance(t, OnCard) else t


def _check_meeting(func, on, off, target, kwargs):
    "Refuse what a GPU refuses."
    if (on or target == CARD.type) and kwargs.get('generator') is not None:
        raise RuntimeError(f'{func}: a generator of the CPU for numbers on the card')
    if on and off and func not in COPIES:
        raise RuntimeError(f'{func}: tensors on the CPU {[tuple(t.shape) for t in off]} meet those on the card')


def _waits(func, args, on, target):
    "Does this wait for the card, or bring numbers to it, neither of which a capture can hold?"
    if func in WAITS: return bool(on)
    if func is aten._to_copy.default:
        return target is not None and (target == CARD.type) != bool(on)
    if func is aten.copy_.default:
        return isinstance(args[0], OnCard) != isinstance(args[1], OnCard) and args[1].ndim > 0
    if func in (aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default):
        return bool(on) and any(t is not None and t.dtype == torch.bool for t in args[1])
    return False


def _run(func, args, kwargs):
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    on = [t for t in tensors if isinstance(t, OnCard)]
    off = [t for t in tensors if not isinstance(t, OnCard) and t.ndim]
    device = kwargs.get('device')
    target = None if device is None else torch.device(device).type
    _check_meeting(func, on, off, target, kwargs)
    if _waits(func, args, on, target):
        if _tape is not None: raise RuntimeError(f'{func}: not permitted while the card captures')
        waits.append(f'{func} {"down" if on and not (func is aten.copy_.default and off) else "up"}')
    plain_args, plain_kwargs = tree_map(_inner, (args, kwargs))
    if target == CARD.type: plain_kwargs['device'] = torch.device('cpu')
    if _tape is not None and on: out = _tape.record(func, plain_args, plain_kwargs)
    elif _tape is not None and target == CARD.type: out = _tape.record(func, plain_args, plain_kwargs)
    else: out = func(*plain_args, **plain_kwargs)
    if func is aten.copy_.default: return args[0]
    known = {id(t.inner): t for t in on}
    def wrapped(t):
        if not isinstance(t, torch.Tensor): return t
        return known[id(t)] if id(t) in known else OnCard(t)
    return tree_map(wrapped, out) if (on if device is None else target == CARD.type) else out


def _memory(t): return t.untyped_storage().data_ptr()


class Tape:
    "A captured piece of work: what the card was asked for, to be asked for again."
    def capture(self, work, family=(), device=CARD):
        "Note what `work` asks for; as with CUDA nothing is changed by that."
        global _tape
        self.calls = []
        self._before = []
        _tape = self
        try: work()
        finally:
            _tape = None
            for t, value in reversed(self._before): t.copy_(value)
            del self._before
    def record(self, func, args, kwargs):
        for argument, value in zip(func._schema.arguments, args):
            if argument.alias_info is not None and argument.alias_info.is_write: self._keep(value)
        for argument in func._schema.arguments:
            writes = argument.alias_info is not None and argument.alias_info.is_write
            if writes and argument.name in kwargs: self._keep(kwargs[argument.name])
        if 'batch_norm' in func._schema.name:  # it writes its running means without saying so
            self._keep(args)
        out = func(*args, **kwargs)
        given = {_memory(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        fresh = [isinstance(t, torch.Tensor) and _memory(t) not in given for t in tree_leaves(out)]
        self.calls.append((func, args, kwargs, tree_leaves(out), fresh))
        return out
    def _keep(self, value):
        for t in tree_leaves(value):
            if isinstance(t, torch.Tensor): self._before.append((t, t.clone()))
    def replay(self):
        for func, args, kwargs, old, fresh in self.calls:
            new = tree_leaves(func(*args, **kwargs))
            for a, b, is_fresh in zip(old, new, fresh):
                if is_fresh: a.copy_(b)


def _with_card(function): return lambda *args, **kw: [*function(*args, **kw), CARD.type]


class _Autocast(torch.autocast):
    "torch's own, which does not know the card."
    def __init__(self, device_type, *args, **kw):
        super().__init__('cpu' if device_type == CARD.type else device_type, *args, **kw)


@contextmanager
def _told_of_waits(told):
    before = len(waits)
    yield
    told += waits[before:]


def _tossed():
    "Python's random numbers; torch's of the CPU are the pretended card's, too, and a tape draws them again."
    return random.getstate()


def _everywhere(modules, **names):
    "Patches of these names in all modules that have them."
    return [mock.patch.object(m, name, new) for m in modules for name, new in names.items() if hasattr(m, name)]


@contextmanager
def plugged_in(replays=True):
    "The card is there inside the block, for torch and for robustnb; `replays`: its steps can be captured."
    ours = [m for name, m in list(sys.modules.items()) if name.startswith('robustnb.')]
    torchs = [m for name, m in list(sys.modules.items()) if name.startswith(('torch.optim', 'torch.utils._foreach'))]
    patches = []
    for kind in 'fused', 'foreach', 'capturable':
        name = f'_get_{kind}_kernels_supported_devices' if kind != 'capturable' else '_get_capturable_supported_devices'
        having = [m for m in torchs if hasattr(m, name)]
        patches += [mock.patch.object(m, name, _with_card(getattr(m, name))) for m in having]
    patches += [mock.patch.object(torch, 'autocast', _Autocast)]
    pick = lambda name='auto': CARD if str(name) in ('auto', 'card', CARD.type) else core.device(name)
    replayed = lambda device: replays and torch.device(device) == CARD
    patches += _everywhere(ours, pick_device=pick, replays=replayed, Graph=Tape,
                           _aside=lambda device: nullcontext(), _told_of_waits=_told_of_waits, _tossed=_tossed)
    for patch in patches: patch.start()
    waits.clear()
    try:
        with _Mode(), _Makers(): yield
    finally:
        for patch in patches: patch.stop()
