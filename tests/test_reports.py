"Reports and audits of runs and models that are odd, but legal."
import math

import pytest, torch

from robustnb import attacks, audit, foreign, models, report, results
from robustnb.core import seed_all


def fake(optimizer, lr, accuracy, experiment='fig', **config):
    rows = [results.row('accuracy', accuracy, 100), results.row('accuracy', accuracy, 100, noise='gaussian', var=.1), results.row('train_loss', 1., 100, 'train')]
    return results.save('', experiment, dict(dataset='mine', model='net', optimizer=optimizer, lr=lr, seed=0, **config), rows)

def swept(accuracy=.9, **config): return [fake(o, lr, accuracy, **config) for o in ('sgd', 'adam') for lr in (.1, .3)]

def html(runs, folder, **options): return report.report(report.gather(*runs, failed=[]), folder, **options).read_text()


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
    text = 'Traceback\n  File "x"\nFileNotFoundError: mine: no such data. Looked for:\n  - mine/train.npz\nWhat to do: copy it there'
    assert report.last_error(text) == 'FileNotFoundError: mine: no such data. Looked for:'
    assert report.last_error('the run took longer than 3 s') == 'the run took longer than 3 s' and report.last_error('') == '?'


# --- audits

def audited(channels=1, **options):
    seed_all(0)
    net, x = models.SmallCNN(3, channels, 8, 4).eval(), torch.rand(12, channels, 8, 8)
    with torch.no_grad(): y = net(x).argmax(1)
    return audit.audit(net, x, y, bands=0, variances=(.1,), lipschitz=0, device='cpu', progress=False, **options)

def test_class_names_with_dollars(tmp_path): audit.save(audited(classes=('$', '$$', 'a$b$'), attack='none'), tmp_path)

@pytest.mark.parametrize('channels', [1, 2, 3, 4])
def test_pictures_of_any_number_of_channels(tmp_path, channels): audit.save(audited(channels, attack='none'), tmp_path)

def test_a_model_in_half_precision_is_judged_but_nothing_is_proved():
    seed_all(0)
    net, x = models.MLP(n_classes=4, width=8).eval().bfloat16(), torch.rand(6, 1, 8, 8)
    with pytest.raises(ValueError, match='half precision'): attacks.autoattack(net, x, torch.zeros(6, dtype=torch.long), certify=True, progress=False)
    all_four, = attacks.accuracy_rows(net, x, torch.zeros(6, dtype=torch.long), 'linf', [.5], 'quick', topk=4, progress=False)
    assert all_four['value'] == 1

def test_radii_that_are_none_or_come_twice(tmp_path):
    for eps in {}, {'linf': ()}: assert not [r for r in audited(eps=eps).rows if r.get('norm')]
    found = audited(eps={'linf': (.1, .01, .1), 'l2': ()})
    assert [r['eps'] for r in found.rows if r['metric'] == 'accuracy' and r.get('norm') == 'linf'] == [0, .01, .1]
    audit.save(found, tmp_path)

def test_labels_that_are_no_numbers_of_classes():
    net, x = models.SmallCNN(3, 1, 8, 4).eval(), torch.rand(4, 1, 8, 8)
    with pytest.raises(ValueError, match='labels: got torch.float32'): audit.audit(net, x, torch.zeros(4))
    with pytest.raises(ValueError, match='images: got none'): audit.audit(net, x[:0], torch.zeros(0, dtype=torch.long))

def test_a_program_with_batch_norm_of_features(tmp_path):
    seed_all(0)
    net, x = models.MLP(width=8, norm='batch').eval(), torch.rand(5, 1, 8, 8)
    torch.export.save(torch.export.export(net, (x,)), tmp_path/'net.pt2')
    again = foreign.load_model(tmp_path/'net.pt2', in_channels=1, input_size=8)
    torch.testing.assert_close(again(x), net(x))
    assert isinstance(again, torch.nn.Sequential)
