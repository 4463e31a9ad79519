"Audits: what they keep, the order of their images, conditions from files and of one's own."
import inspect, json, math, time

import numpy as np
import pytest, torch
from safetensors.torch import save_file

from robustnb import audit, audit_page, conditions, data, evaluate, interop, lip_lower, models, results, train
from robustnb.cli import main
from robustnb.conditions import Attack, Band, Clean, Gaussian, Proof

BLUR = '''
from dataclasses import dataclass
import torch
from robustnb import conditions, data, evaluate

@dataclass(frozen=True)
class Blur(conditions.Condition):
    "Images blurred by the mean over a square."
    side: int
    kind = 'mylab-blur'
    def hits(self, model, x, y, topk=1):
        blurred = torch.nn.functional.avg_pool2d(data.to_float(x), self.side, 1, self.side//2, count_include_pad=False)
        return evaluate.correct(model, blurred, y, topk)
'''

@pytest.fixture(scope='module')
def digits():
    "A small net trained on digits, and 60 test images."
    few = data.load('digits').subset(600, 60)
    torch.manual_seed(0)
    net = train.fit(models.SmallCNN(width=4), few, train.Config('adam', .005, 5, 64), device='cpu').model.eval()
    return net, few.x_test, few.y_test

@pytest.fixture
def files(digits, tmp_path, monkeypatch):
    "A folder with the weights, in which the command line is run."
    monkeypatch.chdir(tmp_path)
    save_file(digits[0].state_dict(), 'net.safetensors')
    return tmp_path

COMMAND = ('audit net.safetensors --arch smallcnn --option width=4 --images digits --n 50 --lipschitz 0 '
           '--device cpu').split()

def mine(text):
    with open('mine.toml', 'w') as f: f.write(text)
    return [*COMMAND, '--conditions', 'mine.toml']

def pick(found, metric, **fields):
    fits = lambda r: r['metric'] == metric and all(r.get(k) == v for k, v in fields.items())
    return [r for r in found.rows if fits(r)]


# --- what is kept

def test_everything_that_changes_a_number_is_kept(digits, tmp_path):
    net, x, y = digits
    asked = [Gaussian(.1, n=40), Band(.1, 3, 5), Attack('quick', 'linf', .05, n=20), Proof('linf', .05, n=20)]
    found = audit.audit(net, x, y, 'mine', '0123456789', asked, 1, 3, 16, 'cpu', 'digits', progress=False, mapped=True,
                        prepared=dict(mean=[.5]))
    audit_page.save(found, tmp_path)
    kept = results.load(tmp_path/'audit.json')['config']
    tensors = {'model', 'images', 'labels'}
    words = {'progress', 'notes', 'dry_run', 'say'}  # notes stand beside the config
    assert set(inspect.signature(audit.audit).parameters) - tensors - words <= set(kept)
    assert conditions.parse(kept['conditions']) == asked
    assert kept['n_images'] == 60
    assert kept['shape'] == [1, 8, 8]
    assert kept['outputs'] == 10
    assert kept['classes'] == [*'0123456789']
    assert (kept['lipschitz'], kept['seed'], kept['batch_size']) == (1, 3, 16)
    assert (kept['device'], kept['source']) == ('cpu', 'digits')
    assert kept['mapped'] is True
    assert kept['prepared'] == {'mean': [.5]}
    assert '"mean": [0.5]' in audit_page._how(kept)

def test_the_command_keeps_what_it_did_to_images_and_model(files, capsys):
    (files/'map.json').write_text(json.dumps([*map(str, range(10))]))
    options = ('--mean .1 --std .9 --size 8 --label-map map.json --ground black --split test --variances .1 --bands 0 '
               '--linf 8/255 --n-attack 9 --seed 2')
    assert main([*COMMAND, *options.split(), '--json']) == 0
    said = json.loads(capsys.readouterr().out)['config']
    kept = results.load('audit/audit.json')['config']
    assert said == kept
    assert kept['prepared'] == dict(arch='smallcnn', options=dict(width=4), size=8, channels=None, mean=[.1], std=[.9],
                                    label_map=[*map(str, range(10))], ground='black', split='test')
    assert kept['n_images'] == 50
    assert kept['seed'] == 2
    assert kept['mapped'] is True
    asked = [Gaussian(.1), Attack('quick', 'linf', 8/255, n=9), Proof('linf', 8/255, n=9)]
    assert conditions.parse(kept['conditions']) == asked

def test_the_usual_conditions_are_those_of_the_command_line(files, digits):
    assert main(COMMAND + ['--n-attack', '5', '--attack', 'none']) == 0
    kept = results.load('audit/audit.json')['config']
    assert conditions.parse(kept['conditions']) == conditions.usual(1, attack='none')
    net, x, y = digits
    kept = audit.audit(net, x[:8], y[:8], lipschitz=0, progress=False).config
    assert conditions.parse(kept['conditions']) == conditions.usual(1)


# --- which images

def test_clean_hits_begin_with_those_of_the_attacked_images(digits):
    net, x, y = digits
    asked = [Gaussian(.1, n=30), Attack('quick', 'linf', .1, n=25), Proof('linf', .02, n=25)]
    found = audit.audit(net, x, y, conditions=asked, seed=4, lipschitz=0, progress=False)
    ours, labels = audit.shuffled(x, y, 4)
    assert not torch.equal(ours, x) and sorted(labels.tolist()) == sorted(y.tolist())
    right = evaluate.correct(net, ours, labels).numpy()
    clean, noisy, lost, attacked, proved = found.rows
    np.testing.assert_array_equal(audit.hits_of(clean), right)
    np.testing.assert_array_equal(audit.hits_of(clean, 25), right[:25])
    assert (audit.hits_of(attacked) <= right[:25]).all() and (audit.hits_of(proved) <= right[:25]).all()
    metrics = ['accuracy', 'accuracy', 'accuracy_loss', 'accuracy', 'certified_accuracy']
    assert [r['metric'] for r in found.rows] == metrics
    assert lost['n'] == 30 and lost['value'] == pytest.approx((right[:30] - audit.hits_of(noisy)).mean())
    for r in found.rows:
        assert r['lower'] <= r['value'] <= r['upper']
        assert ('hits' in r) == (r['metric'] != 'accuracy_loss')
    assert not any(r.get('eps') == 0 for r in found.rows)
    said = dict(audit_page.sentences(found))['Attack, linf']
    assert f'Of 25 images {right[:25].mean():.1%} are right unattacked' in said

def test_noise_drawn_several_times_is_compared_with_its_mean(digits):
    net, x, y = digits
    noisy, lost = audit.audit(net, x, y, conditions=[Gaussian(.2, draws=3)], lipschitz=0, progress=False).rows[1:]
    clean = evaluate.correct(net, x, y).double().mean().item()
    assert noisy['draws'] == 3 and lost['value'] == pytest.approx(clean - noisy['value'])

def test_what_cannot_be_proved_is_said_and_the_rest_measured(digits):
    class Sum(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
        def forward(self, x): return self.net(x) + x.flatten(1)[:, :10]
    net, x, y = digits
    asked = [Attack('quick', 'l2', .1, n=9), Proof('l2', .1, n=9)]
    audited = lambda model: audit.audit(model, x, y, conditions=asked, lipschitz=0, progress=False)
    plain, other = audited(net), audited(Sum(net).eval())
    assert pick(plain, 'certified_accuracy') and not plain.notes
    assert not pick(other, 'certified_accuracy') and 'no image is proved robust' in other.notes[0]
    assert pick(other, 'accuracy', kind='attack')

@pytest.mark.filterwarnings('ignore')
def test_few_classes_are_no_standard_attack(tmp_path):
    torch.manual_seed(0)
    net = models.SmallCNN(3, 1, 8, 4).eval()
    x = torch.rand(12, 1, 8, 8)
    with torch.no_grad(): y = net(x).argmax(1)
    asked = [Attack('autoattack', 'linf', .01, n=3)]
    found = audit.audit(net, x, y, conditions=asked, lipschitz=0, progress=False)
    attacked, = pick(found, 'accuracy', kind='attack')
    assert (attacked['attack'], attacked['variant']) == ('autoattack', 'nonstandard')
    assert 'not the standard one' in dict(audit_page.sentences(found))['Attack, linf']
    assert 'nonstandard' in audit_page.save(found, tmp_path).read_text()

def test_two_attacks_of_one_norm_are_told_apart(digits, tmp_path):
    net, x, y = digits
    asked = [Attack(attack, 'linf', .05, n=6) for attack in ('quick', 'autoattack')] + [Proof('l2', .05, n=6)]
    found = audit.audit(net, x, y, conditions=asked, lipschitz=0, progress=False)
    topics = [topic for topic, _ in audit_page.sentences(found)]
    assert topics == ['Accuracy', 'Attack, linf, quick', 'Attack, linf, autoattack', 'Proof, l2']
    audit_page.save(found, tmp_path)


# --- conditions of one's own, and in files

def test_a_condition_from_outside_is_on_the_page(files, monkeypatch, capsys):
    (files/'mylab_conditions.py').write_text(BLUR)
    monkeypatch.syspath_prepend(files)
    assert main([*mine('conditions = [{kind = "mylab_conditions:Blur", side = [1, 3]}]'), '--json']) == 0
    said = json.loads(capsys.readouterr().out)
    blurred = [r for r in said['metrics'] if r['metric'] == 'accuracy' and r['kind'] == 'mylab-blur']
    assert [r['strength'] for r in blurred] == [1, 3]
    assert blurred[0]['value'] == said['metrics'][0]['value']  # one pixel: nothing
    assert said['sentences']['mylab-blur'].startswith('Under mylab-blur side 1 it is right on ')
    assert 'under mylab-blur side 3, on ' in said['sentences']['mylab-blur']
    page, words = ((files/'audit'/name).read_text() for name in ('audit.html', 'audit.md'))
    assert 'Accuracy against the strength of mylab-blur' in page and 'mylab-blur side 3' in words
    assert said['config']['conditions'] == [dict(kind='mylab_conditions:Blur', side=[1, 3])]
    monkeypatch.delitem(conditions.KINDS, 'mylab-blur')  # where the class is not known the page is the same
    back = results.load('audit/audit.json')
    again = audit.Audit('again', back['metrics'], back['config'], [], {})
    assert dict(audit_page.sentences(again)) == said['sentences']

def test_a_field_named_like_what_is_kept_is_refused(digits, monkeypatch):
    import dataclasses
    namespace = dict(kind='odd', hits=lambda self, model, x, y: evaluate.correct(model, x, y))
    Odd = dataclasses.make_dataclass('Odd', [('seed', float)], bases=(conditions.Condition,), frozen=True,
                                     namespace=namespace)
    net, x, y = digits
    with pytest.raises(ValueError, match="'seed', which names what an audit keeps"):
        audit.audit(net, x, y, conditions=[Odd(.1)], lipschitz=0)
    conditions.KINDS.pop('odd', None)

@pytest.mark.parametrize('text, message', [
    ('conditions = [\n  {kind = "clean"},\n  {kind = "gaussian", variance = 0.1}]',
     'mine.toml:3: variance: no field of gaussian, accepted: n, var, draws'),
    ('conditions = [{kind = "hail"}]',
     "mine.toml:1: kind: got 'hail', accepted: 'clean', 'gaussian', 'band', 'attack', 'proof'"),
    ('[[conditions]]\nkind = "attack"\nattack = "quick"\nnorm = "l1"\neps = 1',
     "mine.toml:4: norm: got 'l1', accepted: 'linf', 'l2'"),
    ('# var = 1\n[[conditions]]\nkind = "band"\nvar = 0.1\n\n[[conditions]]\nkind = "gaussian"\nvar = [0.1, -1]',
     'mine.toml:8: var: got -1, accepted: a finite number > 0'),
    ('conditions = [{kind = "gaussian"}]', 'mine.toml:1: var: missing for gaussian'),
    ('conditions = [{kind = "nowhere:Fog"}]', 'mine.toml:1: kind: got'),
    ('\nconditions = "clean"', 'mine.toml:2: conditions: got'),
    ('conditions = []', 'mine.toml: conditions: got none'),
    ('conditions = [{kind = "clean"}]\n[fixed]\nn = 5', 'mine.toml:2: fixed: no key of such a file'),
    ('conditions = [', 'mine.toml: not valid TOML'),
    ('', 'mine.toml: got an empty file')])
def test_mistakes_in_a_file_are_named_with_their_line(files, capsys, text, message):
    assert main(mine(text)) == 2
    assert f'robustnb: {message}' in capsys.readouterr().err

def test_a_file_of_conditions_is_measured(files, capsys):
    text = '''# what we ask
    conditions = [{kind = "gaussian", var = [0.01, "1/10"]},  # {kind = "hail"}
                  {kind = "attack", attack = "quick", norm = "l2", eps = [0.1], n = 7}]'''
    assert main(mine(text)) == 0
    kept = results.load('audit/audit.json')
    measured = [(r['kind'], r['n']) for r in kept['metrics'] if r['metric'] == 'accuracy']
    assert measured == [('clean', 50), ('gaussian', 50), ('gaussian', 50), ('attack', 7)]
    asked = [Gaussian(.01), Gaussian(.1), Attack('quick', 'l2', .1, n=7)]
    assert conditions.parse(kept['config']['conditions']) == asked

@pytest.mark.parametrize('option', [
    '--variances', '--bands 3', '--band-var .1', '--attack none', '--linf 8/255', '--l2 1', '--n-attack 9'])
def test_a_file_and_options_that_say_the_same_are_refused(files, capsys, option):
    assert main([*mine('conditions = [{kind = "clean"}]'), *option.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'robustnb: {option.split()[0]}: got beside --conditions mine.toml')
    assert main(mine('conditions = [{kind = "clean"}]')) == 0

def test_a_file_that_is_not_there(files, capsys):
    assert main([*COMMAND, '--conditions', 'nowhere.toml']) == 2
    assert 'nowhere.toml: no such file' in capsys.readouterr().err


# What it costs

def test_a_dry_run_says_the_cost_and_leaves_nothing(files, capsys):
    code = main('audit net.safetensors --arch smallcnn --option width=4 --images digits --dry-run --to page'.split())
    said = capsys.readouterr().out
    assert code == 0
    assert 'This audit takes up to' in said
    assert not (files/'page').exists()


def test_a_budget_takes_fewer_images_and_says_so(digits):
    class Slow(torch.nn.Module):
        "The net, a hundredth of a second an image and pass."
        def __init__(self):
            super().__init__()
            self.net = digits[0]
        def forward(self, x):
            time.sleep(.01*len(x))
            return self.net(x) + 0*x.flatten(1)[:, :10]   # so that it is no chain of layers, which would not sleep
    slow = Slow().eval()
    found = audit.audit(slow, *digits[1:], conditions=conditions.usual(n_attack=60), lipschitz=0, budget=20)
    attacked = pick(found, 'accuracy', kind='attack')
    assert all(r['n'] < 60 for r in attacked)
    assert found.notes[0].startswith('To be done in') and 'instead of up to' in found.notes[0]
    assert conditions.parse(found.config['conditions'])


@pytest.mark.parametrize('budget', ['10', 'soon', '0m'])
def test_a_budget_without_unit_is_refused(files, capsys, budget):
    assert main(f'audit net.safetensors --arch smallcnn --images digits --budget {budget}'.split()) == 2
    assert f'budget: got {budget!r}, accepted: a time above 0 with its unit' in capsys.readouterr().err


def test_normalisation_in_forward_keeps_the_proofs(digits):
    class Written(torch.nn.Module):
        "The digits' net as people write networks."
        def __init__(self, net):
            super().__init__()
            self.conv = net[0]
            self.last = net[-1]
            self.between = torch.nn.Sequential(*list(net)[1:-1])
        def forward(self, x): return self.last(self.between(self.conv((x - .1)/.9)))
    net, x, y = digits
    written = Written(net).eval()
    wanted = [Proof('linf', 1/255, n=20)]
    found = audit.audit(written, x, y, conditions=wanted, lipschitz=1)
    by_hand = torch.nn.Sequential(interop.prepared(net, [.1], [.9])).eval()
    other = audit.audit(by_hand, x, y, conditions=wanted, lipschitz=1)
    assert pick(found, 'certified_accuracy')[0]['value'] == pick(other, 'certified_accuracy')[0]['value'] > 0
    assert pick(found, 'lipschitz_upper') and not found.notes


def test_a_model_of_a_thousand_outputs_has_a_lower_bound():
    "Without a thousand backward passes an image."
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.SiLU(), torch.nn.Flatten(),
                              torch.nn.Linear(3600, 1000)).eval()
    passes = []
    net.register_forward_hook(lambda *_: passes.append(1))
    x = torch.rand(64, 3, 32, 32)
    y = torch.arange(64) % 10
    found = lip_lower.lip_lower(net, x, rounds=0)
    steepest = lip_lower.jacobian_norms(lip_lower.jacobians(net, x[:2])).min().item()
    assert found.lower > .8*steepest and len(passes) < 200


def test_bars_move_within_a_stage(digits, capsys):
    net, x, y = digits
    conditions.measure(net, x, y, [Attack('quick', 'linf', 8/255, n=20)], progress=True)
    shown = [part for part in capsys.readouterr().err.split('\r') if 'apgd-ce' in part]
    assert shown   # a bar was there
