"Reports and audits of runs and models that are odd, but legal."
import csv, math

import pytest, torch

from robustnb import attacks, audit, audit_page, conditions, data, interop, models, report, results, train
from robustnb.core import seed_all


def fake(optimizer, lr, accuracy, experiment='fig', **config):
    rows = [results.row('accuracy', accuracy, 100), results.row('accuracy', accuracy, 100, kind='gaussian', var=.1),
            results.row('train_loss', 1., 100, 'train')]
    whole = dict(dataset='mine', model='net', optimizer=optimizer, lr=lr, seed=0, **config)
    return results.save('', experiment, whole, rows)

def swept(accuracy=.9, **config):
    return [fake(o, lr, accuracy, **config) for o in ('sgd', 'adam') for lr in (.1, .3)]

def html(runs, folder, **options):
    return report.report(report.gather(*runs, failed=[]), folder, **options).read_text()


# --- reports

def test_a_setting_of_nan_alone_is_reported(tmp_path):
    assert 'depth 2' in html([*swept(depth=1), *swept(math.nan, depth=2)], tmp_path)

def test_settings_beyond_the_sections_have_a_table(tmp_path):
    page = html([*swept(depth=1), *swept(depth=2), *swept(depth=3)], tmp_path, sections=1)
    assert '2 further settings' in page and page.count('<td>sgd') > 2
    plain = lambda d: results.save('', 'other', dict(depth=d), [results.row('sensitivity', .5, 10)])
    assert '1 further settings' in html([*swept(), plain(1)], tmp_path, sections=1)

def test_a_second_report_leaves_nothing_of_the_first(tmp_path):
    html(swept(), tmp_path)
    assert (tmp_path/'table.md').exists() and (tmp_path/'figure.png').exists()
    html([results.save('', 'other', dict(depth=1), [results.row('sensitivity', .5, 10)])], tmp_path)
    assert not (tmp_path/'table.md').exists() and not list(tmp_path.glob('figure*'))

def test_names_are_escaped(tmp_path):
    assert '<script>' not in html(swept(experiment='<script>alert(1)</script>'), tmp_path)

def test_the_error_shown_is_the_exception():
    text = ('Traceback\n  File "x"\nFileNotFoundError: mine: no such data. Looked for:\n  - mine/train.npz\n'
            'What to do: copy it there')
    assert report.last_error(text) == 'FileNotFoundError: mine: no such data. Looked for:'
    assert report.last_error('the run took longer than 3 s') == 'the run took longer than 3 s'
    assert report.last_error('') == '?'


# --- audits

def audited(channels=1, name='model', classes=(), notes=(), **asked):
    "An audit of random images that are all right, under one noise and, unless told otherwise, the usual attacks."
    seed_all(0)
    net = models.SmallCNN(3, channels, 8, 4).eval()
    x = torch.rand(12, channels, 8, 8)
    with torch.no_grad(): y = net(x).argmax(1)
    wanted = conditions.usual(channels, (.1,), bands=0, **asked)
    return audit.audit(net, x, y, name, classes, wanted, lipschitz=0, device='cpu', progress=False, notes=notes)

def test_class_names_with_dollars(tmp_path):
    audit_page.save(audited(classes=('$', '$$', 'a$b$'), attack='none'), tmp_path)

@pytest.mark.parametrize('channels', [1, 2, 3, 4])
def test_pictures_of_any_number_of_channels(tmp_path, channels):
    audit_page.save(audited(channels, attack='none'), tmp_path)

def test_a_model_in_half_precision_is_judged_but_nothing_is_proved():
    seed_all(0)
    net = models.MLP(n_classes=4, width=8).eval().bfloat16()
    x = torch.rand(6, 1, 8, 8)
    labels = torch.zeros(6, dtype=torch.long)
    with pytest.raises(ValueError, match='half precision'):
        attacks.autoattack(net, x, labels, certify=True, progress=False)
    asked = [conditions.Attack('quick', 'linf', .5)]
    all_four = conditions.measure(net, x, torch.zeros(6, dtype=torch.long), asked, topk=4)
    assert [r['value'] for r in all_four] == [1, 1]

def test_radii_that_are_none_or_come_twice(tmp_path):
    for eps in {}, {'linf': ()}: assert not [r for r in audited(eps=eps).rows if r.get('norm')]
    found = audited(eps={'linf': (.1, .01, .1), 'l2': ()})
    assert [r['eps'] for r in found.rows if r['metric'] == 'accuracy' and r.get('norm') == 'linf'] == [.01, .1]
    audit_page.save(found, tmp_path)

def test_labels_that_are_no_numbers_of_classes():
    net = models.SmallCNN(3, 1, 8, 4).eval()
    x = torch.rand(4, 1, 8, 8)
    with pytest.raises(ValueError, match='labels: got torch.float32'):
        audit.audit(net, x, torch.zeros(4))
    with pytest.raises(ValueError, match='images: got none'):
        audit.audit(net, x[:0], torch.zeros(0, dtype=torch.long))

def test_a_program_with_batch_norm_of_features(tmp_path):
    seed_all(0)
    net = models.MLP(width=8, norm='batch').eval()
    x = torch.rand(5, 1, 8, 8)
    torch.export.save(torch.export.export(net, (x,)), tmp_path/'net.pt2')
    again = interop.load_model(tmp_path/'net.pt2', in_channels=1, input_size=8)
    torch.testing.assert_close(again(x), net(x))
    assert isinstance(again, torch.nn.Sequential)

def test_the_audited_model_comes_back_as_it_was():
    seed_all(0)
    model = models.SmallCNN(width=4).train()
    x = torch.rand(20, 1, 8, 8)
    model[0].eval()
    modes = [m.training for m in model.modules()]
    place = [p.device for p in model.parameters()]
    audit.audit(model, x, torch.arange(20) % 10, conditions=[], lipschitz=0)
    assert modes == [m.training for m in model.modules()] and place == [p.device for p in model.parameters()]

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_audits_in_other_precisions(dtype):
    seed_all(0)
    model = models.SmallCNN(width=4).eval()
    x, y = torch.rand(20, 1, 8, 8), torch.arange(20) % 10
    options = dict(conditions=conditions.usual(eps=dict(linf=(.01,)), n_attack=5), lipschitz=1, progress=False)
    kept = audit.audit(model, x, y, **options)
    found = audit.audit(model.to(dtype), x, y, **options)
    assert [r['metric'] for r in found.rows][:5] == [r['metric'] for r in kept.rows][:5]
    with torch.inference_mode(): inside = audit.audit(model, x.clone(), y.clone(), **options)
    values = lambda a: [r['value'] for r in a.rows if 'accuracy' in r['metric']]
    assert values(inside) == values(found)

@pytest.mark.parametrize('kind', [torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64])
def test_images_of_other_kinds_are_refused_by_name(kind):
    images = torch.zeros(4, 1, 8, 8).to(kind)
    with pytest.raises(ValueError, match=str(kind).removeprefix('torch.')):
        audit.audit(models.SmallCNN(width=4), images, torch.arange(4), progress=False)

@pytest.mark.filterwarnings('ignore:.*vanished')
def test_what_is_in_doubt_stands_in_every_file_of_an_audit(tmp_path):
    class Rounds(torch.nn.Module):
        def forward(self, x): return (4*x).round()/4
    digits = data.load('digits').subset(400, 60)
    net = train.fit(models.SmallCNN(width=4), digits, train.Config('adam', .005, 8, 64), device='cpu').model
    asked = conditions.usual(1, (), bands=0, eps=dict(linf=(.1,), l2=(.5,)))
    options = dict(conditions=asked, lipschitz=0, progress=False)
    rounding = torch.nn.Sequential(Rounds(), net).eval()
    page = audit_page.save(audit.audit(rounding, digits.x_test, digits.y_test, **options), tmp_path)
    for path in page, tmp_path/'audit.md', tmp_path/'audit.json': assert 'vanished' in path.read_text()
    saved = results.load(tmp_path/'audit.json')
    assert all('vanished' in note for note in saved['notes'][-2:])
    assert any('vanished' in said for said in results.doubts(saved))
    plain = audit_page.save(audit.audit(net, digits.x_test, digits.y_test, **options), tmp_path)
    assert 'vanished' not in plain.read_text()

def test_hostile_names_are_text_in_every_file(tmp_path):
    classes = ('<script>alert(1)</script>', 'a|b', '[x](javascript:alert(1))', '_hidden', '猫', '=1+1', r'$\frac{',
               'tab\there', 'no\nline', '--><b>')
    found = audited(classes=classes, name='<img src=x onerror=alert(1)>', attack='none', notes=['class <b>x</b> | y'])
    page = audit_page.save(found, tmp_path).read_text()
    words = (tmp_path/'audit.md').read_text()
    for text in page, words: assert not any(bad in text for bad in ('<script', '<img', '<b>'))
    assert '](javascript' not in words

def test_a_spreadsheet_finds_no_formula(tmp_path):
    html([fake(o, lr, .9) for o in ('=cmd()', '@sum', '+1', '-x', 'a|<b>') for lr in (.1, .3)], tmp_path)
    cells = [cell for line in csv.reader((tmp_path/'runs.csv').open()) for cell in line]
    assert not [cell for cell in cells if cell[:1] in ('=', '@', '+', '-') and not is_number(cell)]
    assert "'=cmd()" in cells and "'-x" in cells
    assert '<b>' not in (tmp_path/'table.md').read_text()

def is_number(text):
    try: float(text)
    except ValueError: return False
    return True

def test_an_audit_says_which_outputs_it_took_the_classes_for():
    options = dict(conditions=[{'kind': 'clean'}], lipschitz=0, progress=False)
    net = models.SmallCNN(width=4).eval()
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6) % 2
    guessed = [note for note in audit.audit(net, x, y, classes=('cat', 'dog'), **options).notes if 'taken for' in note]
    assert len(guessed) == 1
    assert "2 classes and the model 10 outputs" in guessed[0]
    assert "'cat' for 0, 'dog' for 1" in guessed[0]
    for sure in dict(classes=('cat', 'dog'), mapped=True), dict(classes=tuple('abcdefghij')), {}:
        assert not any('taken for' in note for note in audit.audit(net, x, y, **sure, **options).notes)

def test_logits_that_are_not_finite_are_counted_on_the_page(tmp_path):
    class Overflows(models.SmallCNN):
        def forward(self, x):
            bright = x.amax((1, 2, 3)) > .9
            return super().forward(x).masked_fill(bright[:, None], torch.nan)
    x = torch.rand(40, 1, 8, 8)*.8
    x[35:, 0, 0, 0] = 1
    net = Overflows(width=4).eval()
    options = dict(conditions=[{'kind': 'clean'}], lipschitz=0, progress=False)
    y = models.SmallCNN.forward(net, x).argmax(1)
    found = audit.audit(net, x, y, **options)
    page = audit_page.save(found, tmp_path).read_text()
    assert '5 of 40 images have logits of NaN or infinity: they count as wrong.' in page
    assert found.rows[0]['value'] == 35/40
    assert not any('NaN' in note for note in audit.audit(net, x[:35], y[:35], **options).notes)
