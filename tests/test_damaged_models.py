"""Model files that are damaged or made to harm: each gives an answer or one line with its name.

Never a traceback, a crash, a hang or a machine full of memory.

Run as a script, this file is the child that reads them: a crash then ends the child and not the test."""
import json, math, os, pickle, random, resource, struct, subprocess, sys, zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from robustnb import data, interop, models, train
from robustnb.core import seed_all

LIMIT = 4 << 30    # bytes of addresses that a child may take once it has imported everything
BALLOON = 2**30    # bytes of memory that it may use then
LONG = 1700        # damaged files of the long version


# --- the models that are damaged, small and of several kinds

class Attention(nn.Module):
    "Patches, attention with a mask, pieces, a cast and numbers computed from the batch."
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(1, 8, 2, 2)
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 3)
        self.norm = nn.LayerNorm(8)
        self.register_buffer('place', torch.rand(1, 16, 8))
        self.register_buffer('mask', torch.ones(16, 16).tril() == 0)
    def forward(self, x):
        n = x.shape[0]
        x = self.norm(self.patch(x).flatten(2).transpose(1, 2) + self.place)
        q, k, v = self.qkv(x).view(n, 16, 3, 8).unbind(2)
        scores = (q @ k.transpose(1, 2)/math.sqrt(8)).masked_fill(self.mask, -math.inf)
        shares = scores.double().softmax(2).float()
        x = torch.einsum('nij,njc->nic', shares, v) + torch.zeros(16, 8, dtype=torch.float32)
        a, b = x.chunk(2, dim=1)
        return self.out(torch.cat([a, b], 1).mean(1))

class AnySize(nn.Module):
    "A free height and width."
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, 2, 1)
        self.out = nn.Linear(4, 3)
    def forward(self, x):
        x = self.conv(x).relu()
        n, c, h, w = x.shape
        return self.out(x.view(n, c, h*w).sum(2)/(h*w))

N, H, W = (torch.export.Dim(k, min=lo, max=256) for k, lo in (('n', 2), ('h', 4), ('w', 4)))
KINDS = dict(chain=(lambda: models.SmallCNN(width=4), None), normed=(lambda: models.MLP(width=8, norm='batch'), {0: N}),
             attention=(Attention, {0: N}), anysize=(AnySize, {0: N, 2: H, 3: W}))
OPTIONS = dict(name='smallcnn', in_channels=1, input_size=8, width=4)

def export(model, path, x=None, free=None, core=False):
    x = torch.rand(4, 1, 8, 8) if x is None else x
    program = torch.export.export(model.eval(), (x,), dynamic_shapes=None if free is None else (free,))
    torch.export.save(program.run_decompositions() if core else program, path)
    return path

@pytest.fixture(scope='module')
def originals(tmp_path_factory):
    "Folder with sound files, and for each the logits that it gives."
    folder = tmp_path_factory.mktemp('models')
    seed_all(0)
    x = torch.rand(5, 1, 8, 8)
    answers = {'x': x}
    for name, (make, free) in KINDS.items():
        net = make().eval()
        for suffix in '', '_core':
            export(net, folder/f'{name}{suffix}.pt2', free=free, core=bool(suffix))
            answers[f'{name}{suffix}.pt2'] = net(x).detach()
    from safetensors.torch import save_file
    net = models.SmallCNN(width=4).eval()
    save_file(net.state_dict(), folder/'net.safetensors')
    answers['net.safetensors'] = net(x).detach()
    digits = data.load('digits').subset(40, 1)
    fit = train.fit(models.SmallCNN(width=4), digits, CONFIG, device='cpu', checkpoint=folder/'run.ckpt')
    answers['run.ckpt'] = fit.model(x).detach()
    torch.save(answers, folder/'answers.pt')
    return folder

CONFIG = train.Config('adam', 1e-3, 1, batch_size=20)


# --- damage

VALUES = [None, True, -1, 0, 1, 2, 7, 2**31, 2**62, 2**64, 10**30, 1e308, -.5, 'x', '', 'as_int', 'relu', [], {}, [-1],
          [2**40]*3, ['x'], {'as_int': -1},
          {'as_none': True}, {'as_name': 'x'}, {'as_tensor': {'name': 'x'}}, {'as_ints': [2**33]},
          {'as_scalar_type': 99}, 'NaN', 'Infinity', math.nan]
PACKETS = {n: getattr(torch.ops.aten, n) for n in sorted(interop.OPERATIONS) if hasattr(torch.ops.aten, n)}
TARGETS = [f'torch.ops.aten.{n}.{o}' for n, packet in PACKETS.items() for o in packet.overloads()]
TARGETS += ['_operator.mul', '_operator.pow', '_operator.getitem', 'torch.hub.load', 'torch.ops.aten.from_file.default',
            '']

def places(tree):
    "(container, key) of everything in some JSON."
    inside = ()
    if isinstance(tree, dict): inside = tree.items()
    elif isinstance(tree, list): inside = enumerate(tree)
    for key, value in list(inside):
        yield tree, key
        yield from places(value)

def mutate(tree, rng):
    "Change some JSON in place, as a careless or hostile program would."
    found = list(places(tree))
    box, key = rng.choice(found)
    change = rng.choice('value value value delete swap target name kind number'.split())
    if change == 'value': box[key] = rng.choice(VALUES)
    elif change == 'delete': del box[key]
    elif change == 'swap':
        other, k = rng.choice(found)
        box[key], other[k] = other[k], box[key]
    else:
        of = dict(target=lambda b, k: k == 'target', name=lambda b, k: k in ('name', 'as_name', 'path_name'),
                  kind=lambda b, k: str(k).startswith('as_'), number=lambda b, k: type(b[k]) is int)
        some = [(b, k) for b, k in found if isinstance(b, (dict, list)) and of[change](b, k)]
        if not some: return
        box, key = rng.choice(some)
        if change == 'target': box[key] = rng.choice(TARGETS)
        elif change == 'name':
            b, k = rng.choice(some)
            box[key] = b[k]
        elif change == 'number': box[key] = rng.choice([v for v in VALUES if type(v) is int])
        else: box[rng.choice([k for _, k in some if isinstance(k, str)])] = box.pop(key)

def damaged_json(text, rng):
    tree = json.loads(text)
    root = tree
    is_program = isinstance(tree, dict) and 'graph_module' in tree
    if is_program and rng.random() < .9:  # most of it are notes on the source
        module = tree['graph_module']
        told = lambda node: {k: node[k] for k in ('target', 'inputs', 'outputs')}
        nodes = [told(node) for node in module['graph']['nodes']]
        root = rng.choice([module['signature'], nodes, module['graph']['tensor_values']])
        if isinstance(root, list): module['graph']['nodes'] = root
    for _ in range(rng.choice([1, 1, 2, 4])):
        try: mutate(root, rng)
        except (KeyError, IndexError, TypeError): pass  # an earlier change has taken the place away
    try: return json.dumps(tree).encode()
    except (ValueError, RecursionError): return b'[' * 1000  # a swap has put something into itself

def flipped(raw, rng):
    raw = bytearray(raw)
    for _ in range(rng.choice([1, 3, 30])): raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(raw)

def cut(raw, rng): return raw[:rng.randrange(len(raw))]

def rewritten(source, target, change, **how):
    "Copy of an archive with members changed by `change(name, bytes)`."
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, 'w', **how) as new:
        for n in old.namelist(): new.writestr(n, change(n, old.read(n)))
    return target

def header_changed(raw, rng):
    "A safetensors file with another header of a length that fits it, or not."
    n, = struct.unpack('<Q', raw[:8])
    head = damaged_json(raw[8:8 + n], rng)
    if rng.random() < .3:
        tree = json.loads(raw[8:8 + n])
        meta = tree.get('__metadata__', {})
        meta['robustnb'] = damaged_json(meta.get('robustnb', '{}'), rng).decode()
        tree['__metadata__'] = meta
        head = json.dumps(tree).encode()
    length = len(head) if rng.random() < .9 else rng.choice([0, 7, 2**40, 2**63])
    return struct.pack('<Q', length) + head + raw[8 + n:]

def damage(source, target, rng):
    "Write a damaged copy of a model file; returns what was done. Every tenth is sound, and some damage has no effect."
    raw = source.read_bytes()
    if rng.random() < .1:
        target.write_bytes(raw)
        return 'sound'
    if source.suffix == '.pt2':
        part = rng.choice(['models/model.json']*6 + ['model_weights_config.json', 'flip', 'cut'])
        if part not in ('flip', 'cut'):
            rewritten(source, target, lambda n, b: damaged_json(b, rng) if n.endswith(part) else b)
            return part
    else: part = rng.choice(['header']*3 + ['flip', 'cut'])
    target.write_bytes(dict(flip=flipped, cut=cut, header=header_changed)[part](raw, rng))
    return part


# --- the child

def answer(path, x):
    "Logits of a model file, whatever its kind."
    if path.suffix == '.ckpt':
        digits = data.load('digits').subset(40, 1)
        fit = train.fit(models.SmallCNN(width=4), digits, CONFIG, device='cpu', checkpoint=path)
        return fit.model(x).detach()
    options = OPTIONS if path.suffix == '.safetensors' else {}
    with torch.no_grad(): return interop.load_model(path, **options)(x)

def child(folder, start, stop):
    "Damage and read files number `start` to `stop`; one line of JSON each."
    torch.set_num_threads(1)
    folder = Path(folder)
    answers = torch.load(folder/'answers.pt')
    sources = sorted(p for p in folder.iterdir() if p.name in answers)
    for source in sources: answer(source, answers['x'])  # what is imported once, before the limit
    taken = int(Path('/proc/self/statm').read_text().split()[0])*resource.getpagesize() + LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (taken, taken))
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(start, stop):
        rng = random.Random(i)
        source = rng.choice(sources)
        target = folder/f'damaged_{i}{source.suffix}'
        done = damage(source, target, rng)
        before = target.read_bytes()
        print(json.dumps(dict(i=i, source=source.name, done=done)), flush=True)
        kind, text, z = 'answer', '', None
        try: z = answer(target, answers['x'])
        except Exception as e: kind, text = type(e).__name__, str(e)
        wanted = answers[source.name]
        same = z is not None and z.shape == wanted.shape and torch.allclose(z, wanted, rtol=1e-4, atol=1e-5)
        may_change = target.suffix != '.ckpt' or kind == 'answer'
        kept = may_change or target.read_bytes() == before
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) << 10
        found = dict(i=i, kind=kind, text=text, named=target.name in text, same=same, kept=kept, grown=grown)
        print(json.dumps(found), flush=True)
        target.unlink()

def outcomes(folder, start, stop):
    "What the child says about each file; an AssertionError with the file if it dies."
    run = subprocess.run([sys.executable, __file__, str(folder), str(start), str(stop)], capture_output=True, text=True,
                         env={**os.environ, 'OMP_NUM_THREADS': '1'})
    lines = [json.loads(l) for l in run.stdout.splitlines() if l.startswith('{')]
    assert run.returncode == 0, (run.returncode, lines[-1:], run.stderr[-2000:])
    return [a | b for a, b in zip(lines[::2], lines[1::2], strict=True)]

def check(found, n):
    assert len(found) == n
    for f in found:
        assert f['kind'] == 'answer' or (f['kind'] == 'ValueError' and f['named']), f
        assert len(f['text']) < 2000, f
        assert f['kept'], f
        assert f['grown'] < BALLOON, f
        assert f['done'] != 'sound' or f['same'], f
    assert sum(f['done'] == 'sound' for f in found) > n/30 and sum(f['kind'] == 'ValueError' for f in found) > n/4

# --- what a program may be, with the answers of the model that it was made from

class Casts(nn.Module):
    "Every way to say a type or a device."
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(12, 3)
        self.register_buffer('mean', torch.rand(3, 1, 1).double())
    def forward(self, x):
        x = x.double() - self.mean
        x = x.half().float() + x.to(torch.float64).float() + x.bfloat16().to('cpu', torch.float32)
        x = x.type_as(self.out.weight).to('cpu').to(dtype=torch.float32, memory_format=torch.channels_last, copy=True)
        steps = torch.arange(12, dtype=torch.float64, device=x.device).to(torch.int32).long()
        more = torch.zeros(1, 12, dtype=torch.float32, device='cpu') + torch.full((1, 12), .5, dtype=torch.float32)
        more = more + torch.ones_like(steps)[None].float() + torch.full_like(more, 2, dtype=torch.float64).float()
        more = more + x.new_zeros(12) + x.new_ones((12,), dtype=torch.float32)
        return self.out(x.flatten(1)*torch.tensor([1., 2, 3]*4) + more + steps.float())

class Einsum(nn.Module):
    "einsum, views of sizes that come from the images, and a repeated constant."
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.rand(3, 4, 4, 5))
    def forward(self, x):
        z = torch.einsum('nchw,chwk->nk', x, self.w)
        return z.view(z.size(0), -1).reshape(-1, 5) + x.mean((1, 2, 3))[:, None].expand(-1, 5).repeat(1, 1)

class Dropping(nn.Sequential):
    "Normalisation inside, dropout in evaluation, and a dictionary of one output."
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(), nn.Flatten(), nn.Dropout(),
                         nn.Linear(16, 3))
    def forward(self, x):
        return {'logits': super().forward((x - .45)/torch.tensor([.2, .3, .4])[:, None, None])}

def plain(z): return next(iter(z.values())) if isinstance(z, dict) else z

@pytest.mark.parametrize('kind', ['fixed', 'free', 'core'])
@pytest.mark.parametrize('make, shape', [
    (Casts, (3, 2, 2)), (Einsum, (3, 4, 4)), (Dropping, (3, 4, 4)), (Attention, (1, 8, 8)), (AnySize, (1, 8, 8)),
    (lambda: models.TwoLayerCNN(5, 3, 16), (3, 16, 16)),
    (lambda: models.PreActResNet18(5, 1, 8, width=4, norm='batch'), (1, 8, 8))])
def test_a_program_gives_the_logits_of_its_model(tmp_path, make, shape, kind):
    net = make().eval()
    x = torch.rand(7, *shape)
    free = None if kind == 'fixed' else {0: N}
    again = interop.load_model(export(net, tmp_path/'net.pt2', x[:4], free, kind == 'core'))
    torch.testing.assert_close(again(x), plain(net(x)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again(x[:1]), plain(net(x[:1])), rtol=1e-4, atol=1e-5)
    assert again(x[:0]).shape == plain(net(x))[:0].shape
    notes = interop.notes_of(interop.prepared(again, [0.]*shape[0], [1.]*shape[0]))
    assert any('batches of exactly 4' in n for n in notes) == (kind == 'fixed')

@pytest.mark.parametrize('name, size', [
    ('resnet18', 64), ('mobilenet_v3_small', 64), ('convnext_tiny', 32),
    pytest.param('vit_b_16', 32, marks=pytest.mark.slow)])
def test_programs_of_torchvision(tmp_path, name, size):
    from torchvision.models import get_model
    net = get_model(name, weights=None, **(dict(image_size=size) if 'vit' in name else {})).eval()
    x = torch.rand(5, 3, size, size)
    again = interop.load_model(export(net, tmp_path/'net.pt2', x[:2], {0: N}))
    with torch.no_grad(): torch.testing.assert_close(again(x), net(x), rtol=1e-3, atol=1e-4)

def test_free_height_and_width(tmp_path):
    net = AnySize().eval()
    program = interop.load_model(export(net, tmp_path/'net.pt2', free={0: N, 2: H, 3: W}))
    for shape in (5, 1, 11, 23), (1, 1, 4, 256), (2, 1, 8, 8):
        x = torch.rand(shape)
        torch.testing.assert_close(program(x), net(x), rtol=1e-4, atol=1e-5)
    for shape in (2, 1, 3, 8), (2, 1, 8, 257), (2, 3, 8, 8), (2, 1, 8):
        with pytest.raises(ValueError, match=r'accepted: \(1, 4..256, 4..256\)'):
            program(torch.rand(shape))
    h = torch.export.Dim('h', min=1, max=8)
    square = interop.Program(export(net, tmp_path/'square.pt2', torch.rand(2, 1, 17, 17),
                                    {0: N, 2: 4*h + 1, 3: 4*h + 1}))
    x = torch.rand(3, 1, 25, 25)
    torch.testing.assert_close(square(x), net(x), rtol=1e-4, atol=1e-5)
    for size in (25, 21), (24, 24), (37, 37):
        with pytest.raises(ValueError, match='in steps of 4'): square(torch.rand(3, 1, *size))

def test_only_a_wrong_size_is_called_one(tmp_path):
    class Lookup(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(4, 3)
        def forward(self, x): return self.table((x.flatten(1).sum(1)*100).long())
    program = interop.load_model(export(Lookup(), tmp_path/'net.pt2', torch.zeros(2, 1, 2, 2), {0: N}))
    assert program(torch.zeros(3, 1, 2, 2)).shape == (3, 3)
    with pytest.raises(ValueError,
                       match=r'net.pt2: node \d+ \(embedding.default\) fails .*: index out of range') as error:
        program(torch.ones(3, 1, 2, 2))
    assert 'accepted' not in str(error.value)

class Twice(nn.Module):
    "More than one output."
    def forward(self, x): return {'logits': x.flatten(1), 'more': [x.mean((1, 2, 3))]}

class Constant(nn.Module):
    "No word about the images."
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.rand(4, 3))
    def forward(self, x): return self.w*1

class Unpooled(nn.Module):
    "One number an image."
    def forward(self, x): return x.mean((1, 2, 3))

@pytest.mark.parametrize('make, words',
                         [(Twice, '2 outputs'), (Constant, 'do not depend on the images'),
                          (Unpooled, 'accepted: logits N,K'), (nn.Identity, 'accepted: logits N,K')])
def test_programs_that_classify_nothing(tmp_path, make, words):
    with pytest.raises(ValueError, match=f'net.pt2: got a program .*{words}'):
        interop.load_model(export(make(), tmp_path/'net.pt2', free={0: N}))

def test_a_program_without_nodes_gives_its_inputs(tmp_path):
    program = interop.load_model(export(nn.Identity(), tmp_path/'net.pt2', torch.rand(4, 5), {0: N}))
    x = torch.rand(7, 5)
    assert torch.equal(program(x), x)


# --- archives of other kinds

OLD = r'got a program in the layout of PyTorch 2.8 or older.*\n.*torch.export.save\(torch.export.load'

def test_the_layouts_of_older_versions(originals, tmp_path):
    for name, members in dict(torch26={'serialized_exported_program.json': '{}', 'serialized_state_dict.pt': 'x',
                                       'version': '8.1'},
                              torch28={'net/archive_format': 'pt2', 'net/models/model.json': '{}',
                                       'net/data/weights/model.pt': 'x'}).items():
        with zipfile.ZipFile(tmp_path/f'{name}.pt2', 'w') as z:
            for n, text in members.items(): z.writestr(n, text)
        for read in interop.load_model, interop.Program:
            with pytest.raises(ValueError, match=rf'{name}.pt2: {OLD}'):
                read(tmp_path/f'{name}.pt2')

def test_several_programs_in_one_file(originals, tmp_path):
    again = rewritten(originals/'chain.pt2', tmp_path/'two.pt2', lambda n, b: b)
    with zipfile.ZipFile(originals/'chain.pt2') as z: text = z.read('chain/models/model.json')
    with zipfile.ZipFile(again, 'a') as z: z.writestr('chain/models/other.json', text)
    with pytest.raises(ValueError, match=r'two.pt2: got 2 programs in one file \(model, other\), accepted: one'):
        interop.load_model(again)

def test_compiled_code_and_other_schemas(originals, tmp_path):
    with zipfile.ZipFile(tmp_path/'code.pt2', 'w') as z:
        for n in 'net/archive_format', 'net/data/aotinductor/model/net.so': z.writestr(n, 'pt2')
    with pytest.raises(ValueError, match='code.pt2: got compiled code'):
        interop.load_model(tmp_path/'code.pt2')
    with pytest.raises(ValueError, match='got a program of schema 9, accepted: 8'):
        interop.load_model(edited(originals, tmp_path, lambda t: t['schema_version'].update(major=9)))

def test_what_is_no_file(tmp_path, originals):
    os.mkfifo(tmp_path/'pipe')
    (tmp_path/'empty.pt2').touch()
    (tmp_path/'link.pt2').symlink_to(originals/'chain.pt2')
    assert interop.load_model(tmp_path/'link.pt2')
    weights = lambda path: interop.load_weights(path, 'smallcnn', 1, 8)
    for read in interop.load_model, interop.Program, interop.file_kind, weights:
        for name, words in dict(pipe='a pipe', empty='an empty file').items():
            path = tmp_path/(name if name == 'pipe' else f'{name}.pt2')
            with pytest.raises(ValueError, match=f'{path.name}: got {words}'): read(path)
        with pytest.raises(ValueError, match='got a folder'): read(tmp_path)
        with pytest.raises(ValueError, match='/dev/null: got a device'): read('/dev/null')
        with pytest.raises(FileNotFoundError, match='absent.pt2'): read(tmp_path/'absent.pt2')


# --- hostile programs

def edited(originals, tmp_path, change, source='chain.pt2'):
    "Copy of a sound program whose JSON `change` has changed in place."
    def members(n, b):
        if not n.endswith('models/model.json'): return b
        tree = json.loads(b)
        change(tree)
        return json.dumps(tree).encode()
    return rewritten(originals/source, tmp_path/'edited.pt2', members)

def name(n): return {'as_tensor': {'name': n}}

def before_the_logits(*steps):
    "A change that puts nodes (target, {argument: value}, result) at the end, and adds the last result to the logits."
    def change(tree):
        graph = tree['graph_module']['graph']
        out = tree['graph_module']['signature']['output_specs'][0]['user_output']['arg']
        for target, args, result in (*steps,
                                     ('torch.ops.aten.add.Tensor', dict(self=out, other=name(steps[-1][2])),
                                      'the_end')):
            inputs = [dict(name=k, arg=v, kind=1) for k, v in args.items()]
            outputs = [{'as_sym_int': {'as_name': result}} if target.startswith('_operator') else name(result)]
            graph['nodes'].append(dict(target=target, inputs=inputs, outputs=outputs, metadata={}))
        tree['graph_module']['signature']['output_specs'][0]['user_output']['arg'] = name('the_end')
    return change

def full(size):
    return 'torch.ops.aten.full.default', dict(size={'as_ints': size}, fill_value={'as_float': 0.}), 'zeros'

def after_full(size, target, **args):
    return full(size), (f'torch.ops.aten.{target}', dict(self=name('zeros'), **args), 'result')

def test_nodes_put_in_are_computed(originals, tmp_path):
    sound = interop.load_model(originals/'chain.pt2')
    x = torch.rand(5, 1, 8, 8)
    changed = interop.load_model(edited(originals, tmp_path,
                                        before_the_logits(*after_full([1, 10], 'add.Scalar', other={'as_int': 2}))))
    torch.testing.assert_close(changed(x), sound(x) + 2, rtol=1e-5, atol=1e-6)

ints = lambda *v: {'as_ints': list(v)}
def chain_of(n, target, argument):
    "Nodes z0, z1, ..., each of the result before it, and the first of zeros."
    names = ['zeros', *(f'z{i}' for i in range(n))]
    return [(f'torch.ops.aten.{target}', argument(a), b) for a, b in zip(names, names[1:])]

DOUBLING = [full([1, 10])] + chain_of(40, 'cat.default', lambda a: dict(tensors={'as_tensors': [{'name': a}]*2}))
SQUARES = [full([2**13, 2**13])] + chain_of(64, 'mm.default', lambda a: dict(self=name(a), mat2=name(a)))
WIDE = [full([1, 1]), ('torch.ops.aten.expand.default', dict(self=name('zeros'), size=ints(2**20, 2**20)), 'wide')]
READ = [full([1, 1]), ('torch.ops.aten.expand.default', dict(self=name('zeros'), size=ints(2**14, 2**15)), 'wide')]
NEEDS = 'GiB at one time'
WORKS = 'operations for each image'
NUMBERS = 'beyond 2..63'
BOMBS = dict(
    full=([full([2**20, 2**20])], f'{NEEDS}|{WORKS}'), huge=([full([2**62, 2**62])], 'fails'),
    negative=([full([-1])], 'fails'), cat=(DOUBLING, f'{NEEDS}|{WORKS}'),
    repeat=(after_full([1, 10], 'repeat.default', repeats=ints(2**20, 2**10)), f'{NEEDS}|{WORKS}'),
    clone=([*WIDE, ('torch.ops.aten.clone.default', dict(self=name('wide')), 'result')], f'{NEEDS}|{WORKS}'),
    sum=([*WIDE, ('torch.ops.aten.sum.default', dict(self=name('wide')), 'result')], WORKS),
    pieces=([*WIDE, ('torch.ops.aten.unbind.int', dict(self=name('wide')), 'result')], 'without a list of results'),
    square=(SQUARES, WORKS),
    reading=([*READ, *[('torch.ops.aten.sum.default', dict(self=name('wide')), f's{i}') for i in range(1000)]], WORKS),
    nodes=([full([1, 10])] + chain_of(20_001, 'alias.default', lambda a: dict(self=name(a))),
           'nodes, accepted: at most 20,000'),
    window=(after_full([1, 1, 2**13, 2**13], 'avg_pool2d.default', kernel_size=ints(2**12, 2**12), stride=ints(1, 1)),
            WORKS),
    pad=(after_full([1, 1, 8, 8], 'constant_pad_nd.default', pad=ints(2**30, 2**30)), f'{NEEDS}|{WORKS}'),
    empty=(after_full([1, 4, 0], 'sum.default'), 'without elements'),
    groups=(after_full([1, 4, 2, 2], 'channel_shuffle.default', groups={'as_int': 0}), 'fails'),
    power=([('_operator.pow', dict(a={'as_int': 9**9}, b={'as_int': 9**9}), 'n'), full([1, 10])], NUMBERS),
    times=([('_operator.mul', dict(a={'as_int': 2**62}, b={'as_int': 2**62}), 'n'), full([1, 10])], NUMBERS),
    digits=([('_operator.mul', dict(a={'as_int': 10**4000}, b={'as_int': 2}), 'n'), full([1, 10])], 'at most 63 bits'),
    number=([('torch.ops.aten.expand.default', dict(self={'as_int': 1}, size=ints(2**20, 2**20)), 'result')], 'fails'),
    copies=([('torch.ops.aten.repeat.default', dict(self={'as_int': 1}, repeats=ints(2**20, 2**20)), 'result')],
            'fails'),
    text=([('_operator.mul', dict(a={'as_string': 'x'}, b={'as_int': 2**40}), 'n'), full([1, 10])],
          'other than numbers'))

@pytest.mark.parametrize('bomb', BOMBS)
def test_what_grows_is_refused_before_it_does(originals, tmp_path, bomb):
    steps, words = BOMBS[bomb]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=f'edited.pt2: .*({words})'):
        interop.load_model(edited(originals, tmp_path, before_the_logits(*steps)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20, 'less than a GiB more, in KiB'

def test_what_grows_with_the_batch_is_refused_when_it_does(originals, tmp_path):
    class Outer(nn.Module):
        def forward(self, x):
            n = x.shape[0]
            x = x.flatten(1)[:, :3]
            return x + x.new_zeros(1).expand(n*n*n*n*n*4096).clone().sum()*0
    program = interop.load_model(export(Outer(), tmp_path/'net.pt2', torch.rand(2, 1, 8, 8), {0: N}))
    x = torch.rand(64, 1, 8, 8)
    torch.testing.assert_close(program(x[:3]), x[:3].flatten(1)[:, :3])
    with pytest.raises(ValueError, match=f'net.pt2: .*({NEEDS}|{WORKS})'): program(x)
    torch.testing.assert_close(program(x[:3]), x[:3].flatten(1)[:, :3])

INTS_FOR_TYPES = [('ones.default', dict(size=ints(1))), ('zeros.default', dict(size=ints(1))),
                  ('full.default', dict(size=ints(1), fill_value={'as_int': 1})),
                  ('arange.default', dict(end={'as_int': 3})),
                  ('arange.start', dict(start={'as_int': 0}, end={'as_int': 3})),
                  ('scalar_tensor.default', dict(s={'as_int': 3})),
                  *((f'{n}_like.default', dict(self=name('x'))) for n in ('ones', 'zeros')),
                  ('new_ones.default', dict(self=name('x'), size=ints(1))), ('_to_copy.default', dict(self=name('x'))),
                  ('sum.default', dict(self=name('x'))), ('to.dtype', dict(self=name('x')))]

@pytest.mark.parametrize('wrong',
                         [{'as_int': -1}, {'as_int': 10**6}, {'as_scalar_type': -1}, {'as_scalar_type': 99},
                          {'as_float': 1.}, {'as_layout': 7}, {'as_tensor': {'name': 'x'}},
                          {'as_sym_int': {'as_int': -1}}])
@pytest.mark.parametrize('target, args', INTS_FOR_TYPES)
def test_a_number_where_a_type_belongs(originals, tmp_path, target, args, wrong):
    module = json.loads(zipfile.ZipFile(originals/'chain.pt2').read('chain/models/model.json'))['graph_module']
    image = module['signature']['input_specs'][-1]['user_input']['arg']
    args = {k: image if v == name('x') else v for k, v in args.items()}
    for dtype, words in (wrong, 'dtype: got a program'), ({'as_scalar_type': 7}, None):
        file = edited(originals, tmp_path,
                      before_the_logits((f'torch.ops.aten.{target}', dict(args, dtype=dtype), 'r'),
                                        ('torch.ops.aten.sum.default', dict(self=name('r')), 'result')))
        if words is None: assert interop.load_model(file)(torch.rand(3, 1, 8, 8)).shape == (3, 10)
        else:
            with pytest.raises(ValueError, match=words): interop.load_model(file)

@pytest.mark.parametrize('target', ['div.Tensor_mode', 'div_.Tensor_mode', 'div.Scalar_mode'])
@pytest.mark.parametrize('kind', [4, 5])
@pytest.mark.parametrize('mode, divisor, words',
                         [('trunc', -1, 'divided by -1'), ('trunc', 2, None), ('floor', 1, None)])
def test_the_quotient_that_ends_a_process(originals, tmp_path, target, kind, mode, divisor, words):
    lowest = -2**31 if kind == 4 else -2**63
    low = dict(size=ints(3), fill_value={'as_int': lowest + 1}, dtype={'as_scalar_type': kind})
    other = dict(low, fill_value={'as_int': divisor})
    by = {'as_int': divisor} if 'Scalar' in target else name('by')
    file = edited(originals, tmp_path, before_the_logits(
        ('torch.ops.aten.full.default', low, 'low'), ('torch.ops.aten.full.default', other, 'by'),
        ('torch.ops.aten.sub.Scalar', dict(self=name('low'), other={'as_int': 1}), 'lowest'),
        (f'torch.ops.aten.{target}', dict(self=name('lowest'), other=by, rounding_mode={'as_string': mode}), 'q'),
        ('torch.ops.aten.to.dtype', dict(self=name('q'), dtype={'as_scalar_type': 8}), 'real'),
        ('torch.ops.aten.sum.default', dict(self=name('real')), 'result')))
    model = interop.load_model(file)
    sound = interop.load_model(originals/'chain.pt2')
    x = torch.rand(3, 1, 8, 8)
    if words:
        with pytest.raises(ValueError, match=f'edited.pt2: node .*{words}'): model(x)
    else:
        quotient = 3*lowest/divisor
        torch.testing.assert_close(model(x), (sound(x) + quotient).to(model(x).dtype), rtol=1e-6, atol=1e-3)

@pytest.mark.parametrize('change, words', [
    (lambda t: t['graph_module']['graph']['nodes'].pop(1), 'which nothing before it defines'),
    (lambda t: t['graph_module']['graph']['nodes'].append(t['graph_module']['graph']['nodes'][-1]), 'defines .* again'),
    (lambda t: t['graph_module']['graph'].update(nodes=[]), 'are defined by no node'),
    (lambda t: t['graph_module']['graph']['nodes'][0].update(inputs=[]), 'without input'),
    (lambda t: t['graph_module']['signature'].update(input_specs=[]), 'with 0 inputs'),
    (lambda t: t['graph_module'].pop('signature'), 'not a program that can be read'),
    (lambda t: t['graph_module']['graph']['tensor_values'].clear(), 'not a program that can be read'),
    (lambda t: t['graph_module']['graph']['nodes'][0]['inputs'][3].update(arg={'as_ints': [0, 0]}),
     'fails for images')])
def test_graphs_that_do_not_hold_together(originals, tmp_path, change, words):
    with pytest.raises(ValueError, match=f'edited.pt2: .*{words}'):
        interop.load_model(edited(originals, tmp_path, change))

@pytest.mark.parametrize('text',
                         [b'', b'[]', b'{}', b'null', b'3', b'['*100_000, b'{"a":'*100_000, b'NaN', b'\xff\xfe',
                          b'1'*5000, b'{"graph_module": []}', b'{"graph_module": {"graph": null, "signature": 3}}'])
@pytest.mark.parametrize('member', ['models/model.json', 'model_weights_config.json'])
def test_json_of_other_kinds(originals, tmp_path, member, text):
    file = rewritten(originals/'chain.pt2', tmp_path/'other.pt2', lambda n, b: text if n.endswith(member) else b)
    with pytest.raises(ValueError, match='other.pt2: ') as error: interop.load_model(file)
    assert len(str(error.value)) < 600

def weights_changed(originals, tmp_path, change, **how):
    "Copy of a program whose first weight's entry `change` has changed."
    def members(n, b):
        if not n.endswith('model_weights_config.json'): return b
        tree = json.loads(b)
        change(next(iter(tree['config'].values())))
        return json.dumps(tree).encode()
    return rewritten(originals/'chain.pt2', tmp_path/'edited.pt2', members, **how)

whole = lambda *values: [{'as_int': v} for v in values]

@pytest.mark.parametrize('change, words', [
    (lambda e: e['tensor_meta'].update(sizes=whole(2**30), strides=whole(0)), 'take more than 4 times its size'),
    (lambda e: e['tensor_meta'].update(sizes=whole(2**62, 2**62), strides=whole(0, 0)),
     'take more than 4 times its size'),
    (lambda e: e['tensor_meta'].update(sizes=whole(2**20), strides=whole(1)), 'accepted: within the storage'),
    (lambda e: e['tensor_meta'].update(storage_offset={'as_int': 10**9}), 'accepted: within the storage'),
    (lambda e: e['tensor_meta'].update(storage_offset={'as_int': -1}), 'a whole number >= 0'),
    (lambda e: e['tensor_meta'].update(sizes=whole(-4)), 'a whole number >= 0'),
    (lambda e: e['tensor_meta'].update(strides=[]), '4 sizes and 0 strides'),
    (lambda e: e['tensor_meta'].update(dtype=99), 'a data type'),
    (lambda e: e.update(path_name='../../../../etc/passwd'), 'got an archive without'),
    (lambda e: e.update(path_name='/etc/passwd'), 'got an archive without'),
    (lambda e: e.update(use_pickle=True), 'is a pickle'),
    (lambda e: e.update(tensor_meta=None), 'is a pickle')])
def test_weights_that_lie_elsewhere(originals, tmp_path, change, words):
    with pytest.raises(ValueError, match=f'edited.pt2: .*{words}'):
        interop.load_model(weights_changed(originals, tmp_path, change))

def test_packed_archives(originals, tmp_path):
    sound = interop.load_model(originals/'chain.pt2')
    x = torch.rand(3, 1, 8, 8)
    file = rewritten(originals/'chain.pt2', tmp_path/'packed.pt2', lambda n, b: b, compression=zipfile.ZIP_DEFLATED)
    assert torch.equal(interop.load_model(file)(x), sound(x))
    grown = lambda n, b: b + bytes(interop.ROOM) if n.endswith('/weight_0') else b
    with pytest.raises(ValueError, match='bomb.pt2: .*members take more than 4 times its size'):
        interop.load_model(rewritten(originals/'chain.pt2', tmp_path/'bomb.pt2', grown,
                                     compression=zipfile.ZIP_DEFLATED))
    long = lambda n, b: b + b' '*interop.GRAPH if n.endswith('/model.json') else b
    with pytest.raises(ValueError, match='long.pt2: .*accepted: at most 33,554,432'):
        interop.load_model(rewritten(originals/'chain.pt2', tmp_path/'long.pt2', long,
                                     compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(ValueError, match='packed in an unusual way'):
        interop.load_model(rewritten(originals/'chain.pt2', tmp_path/'bz.pt2', lambda n, b: b,
                                     compression=zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(file, 'a') as z:
        with pytest.warns(UserWarning, match='Duplicate name'):
            z.writestr('chain/models/model.json', b'{}')
    with pytest.raises(ValueError, match='two members of one name'): interop.load_model(file)

def test_an_end_that_speaks_of_other_disks(originals, tmp_path):
    raw = bytearray((originals/'chain.pt2').read_bytes())
    at = raw.rindex(b'PK\6\7')  # where the end of a large archive is: which disk, where on it, how many disks
    assert interop.file_kind(originals/'chain.pt2') == 'program'
    raw[at + 16:at + 20] = struct.pack('<I', 7)
    (tmp_path/'disks.pt2').write_bytes(raw)
    for read in interop.file_kind, interop.load_model, interop.Program:
        with pytest.raises(ValueError, match='disks.pt2: .*multiple disks'):
            read(tmp_path/'disks.pt2')

def test_no_pickle_runs(originals, tmp_path):
    ran = tmp_path/'ran'
    class Bomb:
        def __reduce__(self): return Path.touch, (ran,)
    bomb = pickle.dumps(Bomb())
    data_only = lambda n: n.endswith('.json') or 'archive' in n or 'byteorder' in n
    inside = rewritten(originals/'chain.pt2', tmp_path/'inside.pt2', lambda n, b: b if data_only(n) else bomb)
    (tmp_path/'bare.pt2').write_bytes(bomb)
    (tmp_path/'bare.safetensors').write_bytes(bomb)
    torch.save(Bomb(), tmp_path/'saved.pt2')
    for path in inside, tmp_path/'bare.pt2', tmp_path/'bare.safetensors', tmp_path/'saved.pt2':
        with pytest.raises(ValueError, match=path.name):
            interop.load_model(path, **(OPTIONS if path.suffix == '.safetensors' else {}))
    with pytest.raises(ValueError, match='bare.pt2: not a complete checkpoint'):
        train.fit(models.SmallCNN(width=4), data.load('digits').subset(40, 1), CONFIG, device='cpu',
                  checkpoint=tmp_path/'bare.pt2')
    assert not ran.exists()
    pickle.loads(bomb)
    assert ran.exists(), 'the control: it runs where somebody unpickles it'


# --- weights

def test_pickled_weights_never_run_code(tmp_path):
    ran = tmp_path/'ran'
    net = models.SmallCNN(width=4)
    class Bomb:
        def __reduce__(self): return Path.touch, (ran,)
    held = net.state_dict()
    kinds = dict(beside=dict(model=held, args=Bomb()), within=dict(held, more=Bomb()),
                 whole=net, old=dict(model=held, args=Bomb()))
    for name, content in kinds.items():
        path = tmp_path/f'{name}.pth'
        torch.save(content, path, _use_new_zipfile_serialization=name != 'old')
        with pytest.raises(ValueError, match=f'{name}.pth: got a file with a pickle in it that ') as error:
            interop.load_model(path, 'smallcnn', 1, 8, width=4)
        assert 'save_file(model.state_dict()' in str(error.value)
    assert not ran.exists()
    torch.load(tmp_path/'old.pth', weights_only=False)
    assert ran.exists(), 'the control: it runs where somebody unpickles it'

def test_damaged_pickled_weights(tmp_path):
    net = models.SmallCNN(width=4)
    rng = random.Random(0)
    read = 0
    torch.save(dict(epoch=3, state_dict=net.state_dict()), tmp_path/'good.pth')
    raw = (tmp_path/'good.pth').read_bytes()
    for i in range(60):
        bad = bytearray(raw[:rng.randrange(1, len(raw))] if i%2 else raw)
        for _ in range(3): bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        (tmp_path/'bad.pth').write_bytes(bad)
        try: read += bool(interop.load_model(tmp_path/'bad.pth', 'smallcnn', 1, 8, width=4))
        except ValueError as e: assert 'bad.pth' in str(e)
    assert read < 60

def saved(tensors, path):
    from safetensors.torch import save_file
    save_file(tensors, path)
    return path

@pytest.mark.parametrize('kind, options', [
    ('smallcnn', dict(width=2**40)), ('twolayercnn', dict(width=2**60)), ('mlp', dict(width=2**40)),
    ('torchvision/mobilenet_v2', dict(width_mult=1e308)), ('torchvision/mobilenet_v2', dict(round_nearest=0))])
def test_options_that_no_network_has(originals, kind, options):
    path = originals/'net.safetensors'
    with pytest.raises(ValueError, match='net.safetensors: its architecture, .* cannot be made with the options'):
        interop.load_weights(path, kind, 3 if kind.startswith('torchvision') else 1, 8, **options)
    with pytest.raises(ValueError, match='depth: got .*, accepted: a whole number >= 0 and <= 1000'):
        interop.load_weights(path, 'mlp', 1, 8, depth=10**9)
    channels = 'model: got torchvision/resnet18 for images of 1 channels, accepted: images of 3'
    with pytest.raises(ValueError, match=channels):
        interop.load_weights(path, 'torchvision/resnet18', 1, 8)
    assert interop.load_weights(path, 'smallcnn', 1, 8, width=4)(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_weights_of_other_types_and_numbers_of_classes(tmp_path):
    net = models.SmallCNN(7, width=4).eval()
    x = torch.rand(3, 1, 8, 8)
    own = net.state_dict()
    again = interop.load_model(saved(own, tmp_path/'own.safetensors'), **OPTIONS)
    assert torch.equal(again(x), net(x)) and again(x).shape == (3, 7)
    half = interop.load_model(saved({k: v.half() for k, v in own.items()}, tmp_path/'half.safetensors'), **OPTIONS)
    torch.testing.assert_close(half(x), net(x), rtol=.01, atol=.01)
    first = next(iter(own))
    bias = next(k for k in reversed(own) if k.endswith('bias'))
    for change, words in (({first: own[first].long()}, 'is torch.int64'),
                          ({first: own[first].to(torch.complex64)}, 'is torch.complex64'),
                          ({bias: torch.zeros(10**7)}, 'does not fit'),
                          ({bias: torch.zeros(0)}, 'does not fit|classes'),
                          ({k: v[:0] for k, v in own.items()}, 'does not fit|classes'),
                          ({'x'*10**6: own[bias].clone()}, r'holds x{60}, which smallcnn lacks'),
                          ({'\x1b[31m': own[bias].clone()}, r'holds \\x1b\[31m, which')):
        with pytest.raises(ValueError, match=f'bad.safetensors: .*({words})'):
            interop.load_model(saved(own | change, tmp_path/'bad.safetensors'), **OPTIONS)


# --- many damaged files

needs_proc = pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='no /proc to read the memory from')

@needs_proc
def test_three_hundred_damaged_files(originals): check(outcomes(originals, 0, 300), 300)

@needs_proc
@pytest.mark.slow
def test_many_damaged_files(originals):
    for start in range(300, 300 + LONG, 340): check(outcomes(originals, start, start + 340), 340)


if __name__ == '__main__': child(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
