"Readers of results go by the fields of rows: a kind of another's is shown everywhere, and no text is parsed."
import re
from dataclasses import dataclass

import nbformat, numpy as np, pandas as pd, pytest, torch

from conftest import ROOT
from robustnb import conditions, evaluate, models, plots, report, results
from robustnb.conditions import Attack, Clean, Condition, Gaussian, condition_of, measure, select
from robustnb.core import seed_all


@dataclass(frozen=True)
class Fog(Condition):
    "A condition that robustnb does not know: images mixed with white."
    share: float
    kind = 'fog'
    def hits(self, model, x, y): return evaluate.correct(model, x*(1 - self.share) + self.share, y)

def run(optimizer, lr, clean, foggy):
    rows = [results.row('accuracy', clean, 100)]
    rows += [results.row('accuracy', value, 100, **conditions.row_fields(Fog(share))) for share, value in foggy.items()]
    config = dict(dataset='mine', model='net', optimizer=optimizer, lr=lr, seed=0)
    return results.save('', 'fig', config, rows)

FOGGY = [run('sgd', .1, .9, {.1: .8, .2: .6}), run('sgd', .3, .8, {.1: .85, .2: .8}),
         run('sgd', 1., .5, {.1: .5, .2: .4}),
         run('adam', .1, .8, {.1: .7, .2: .3}), run('adam', .3, .9, {.1: .7, .2: .2})]

@pytest.fixture
def tidy(): return results.table(FOGGY)


def test_a_condition_of_anothers_is_measured_and_found_again():
    seed_all(0)
    net = models.SmallCNN(width=4).eval()
    x = torch.rand(20, 1, 8, 8)
    clean, half, white = measure(net, x, torch.arange(20) % 10, [Fog(.5), Fog(1.)])
    assert (half['kind'], half['label'], half['strength']) == ('fog', 'fog share 0.5', .5)
    assert white['value'] in (.1, .0)
    found = condition_of(half)
    assert (found.panel, found.strength) == ('fog', .5)
    table = pd.DataFrame([clean, half, white])
    for c in Fog(.5), found: assert select(table, c).value.tolist() == [half['value']]

def test_a_disturbed_accuracy_does_not_choose_the_rate():
    blurred = dict(kind='blur', label='standard', strength=2)
    rows = [results.row('accuracy', .9), results.row('accuracy', .3, **blurred)]
    better = [results.row('accuracy', .7), results.row('accuracy', .7, **blurred)]
    config = dict(dataset='mine', model='net', optimizer='sgd', seed=0)
    tidy = results.table([results.save('', 'fig', dict(config, lr=lr), r) for lr, r in ((.1, rows), (.2, better))])
    best, = results.best_rates(tidy).to_dict('records')
    assert (best['lr'], best['mean'], best['edge']) == (.1, .9, True)
    shown, = plots.comparison(tidy).to_dict('records')
    assert (shown['standard (clean)'], shown['standard (blur)']) == ('90.0', '30.0')

def test_it_stands_in_tables(tidy):
    shown = plots.comparison(tidy).set_index('optimizer')
    columns = ['lr', 'standard', 'fog share 0.1', 'fog share 0.2']
    assert shown.loc['sgd', columns].tolist() == ['0.1 (edge)', '90.0', '80.0', '60.0']
    gaps = plots.contrasts(tidy)
    fields = gaps[['kind', 'panel', 'strength']].values.tolist()
    assert fields == [['clean', 'clean', 0.], ['fog', 'fog', .1], ['fog', 'fog', .2]]
    np.testing.assert_allclose(gaps.difference, [0, 10, 40], atol=1e-9)

def test_it_is_drawn_in_a_panel_of_its_own(tidy):
    bars = plots.bar_panel(tidy, 'fog')
    np.testing.assert_allclose([p.get_height() for p in bars.patches], [80, 60, 70, 20])
    assert bars.get_title() == 'fog'
    assert [t.get_text() for t in bars.get_xticklabels()] == ['fog share 0.1', 'fog share 0.2']
    curves = plots.strength_curves(tidy, 'fog')
    drawn = {line[0].get_color(): line[0].get_xydata() for line in curves.containers}
    np.testing.assert_allclose(drawn[plots.colour('sgd')], [[0, 90], [.1, 80], [.2, 60]])
    assert curves.get_xlabel() == 'strength'
    assert [ax.get_title() for ax in plots.robustness_bars(tidy).axes] == ['standard', 'fog']
    points = plots.trade_off(tidy, Fog(.2)).lines[0].get_xydata()
    np.testing.assert_allclose(sorted(points.tolist()), [[80, 80], [90, 60]])  # the third rate lies further below

def test_it_stands_on_the_report_page(tidy, tmp_path):
    page = report.report(report.gather(*FOGGY, failed=[]), tmp_path).read_text()
    for said in ('fog: accuracy at each best rate', 'fog: accuracy against strength', 'accuracy under fog share 0.2',
                 '<th>fog share 0.1</th>'):
        assert said in page, said
    assert 'fog share 0.1' in (tmp_path/'table.md').read_text()

def test_kinds_that_say_little_are_shown_too(tmp_path):
    "Neither label nor strength, or conditions of equal strength: bars and tables, but no curve."
    made = []
    for optimizer in 'sgd', 'adam':
        rows = [results.row('accuracy', .9, 100), results.row('accuracy', .5, 100, kind='bare')]
        twin = lambda label: results.row('accuracy', .4, 100, kind='twin', label=label, strength=1)
        rows += [twin('twin a'), twin('twin b')]
        rows.append(results.row('accuracy', .1, 100, kind='attack', norm='linf', eps=.1, attack='mine'))
        made.append(results.save('', 'fig', dict(dataset='d', model='m', optimizer=optimizer, lr=.1, seed=0), rows))
    page = report.report(report.gather(*made, failed=[]), tmp_path).read_text()
    for said in '<th>bare</th>', '<th>twin b</th>', '<th>attack mine linf eps 0.1</th>':
        assert said in page, said
    assert 'against strength' not in page
    with pytest.raises(ValueError, match='several conditions have the strength 1'):
        plots.strength_curves(results.table(made), 'twin')
    with pytest.raises(ValueError, match='do not say how strong'):
        plots.strength_curves(results.table(made), 'bare')

def test_what_was_not_measured_is_refused(tidy):
    for wrong in Gaussian(.1), Attack('quick', 'linf', .1), 'standard', 3:
        with pytest.raises(ValueError, match='condition: got .*accepted: '):
            plots.rate_curves(tidy, wrong)
    assert plots.rate_curves(tidy, Clean()).get_title() == plots.rate_curves(tidy).get_title() == 'standard, 1 seed'

def test_an_edge_is_a_fact():
    gathered = lambda *made: report.gather(*made, failed=[])
    assert gathered(*FOGGY).edge and not gathered(FOGGY[0], FOGGY[3]).edge  # of a single rate nothing can be said
    better = [run('sgd', lr, clean, {}) for lr, clean in ((.1, .8), (.3, .9), (1., .7))]
    assert not gathered(*better).edge and gathered(*better, run('sgd', 3., .95, {})).edge
    assert not gathered().edge


# --- the pages

def cells(name):
    nb = nbformat.read(ROOT/'nbs'/f'{name}.ipynb', 4)
    return [c for c in nb.cells if c.cell_type == 'code']

def test_the_claim_map_selects_by_fields():
    "The labels say nothing here; what a line is about stands in its fields."
    source, = [c.source for c in cells('claims') if 'def strongest' in c.source]
    space = dict(pd=pd)
    exec(source, space)
    facts = [('clean', 'clean', 0., None), ('gaussian', 'gaussian', .1, None), ('gaussian', 'gaussian', .01, None),
             ('attack', 'linf', .03, 'quick'), ('attack', 'linf', .01, 'autoattack'), ('attack', 'l2', .7, 'quick'),
             ('attack', 'l2', .1, 'quick'), ('attack', 'l2', .9, 'quick')]
    names = 'kind', 'panel', 'strength', 'attack'
    rows = [dict(zip(names, fact), condition='?', against='adam', paper=1.) for fact in facts]
    contrasts = pd.DataFrame(rows)
    contrasts.loc[7, 'paper'] = np.nan  # a radius that the paper does not have
    assert list(space['strongest'](contrasts).index) == [0, 1, 4, 5]

PARSED = {  # what a decision made from a text looks like
    'the first word of a label': r'\.split\(\)\[0\]',
    'words of a column of texts': r'\.str\.split\(',
    'a label cut': r'removeprefix\((kind|panel)\)',
    'a mark in a table': r"'\(edge\)' in",
    'a help text': r'\bin \w+\.(help|meaning)\b',
    'where images came from': r"'[^']*split with[^']*' in ",
    'a title': r'get_title\(\)\.',
    'a label searched': r'condition\.str\.',
    'labels as names': r"(condition|kind|panel)s? [!=]= '(standard|noise)'",
    'a kind of schema 1': r"(\.noise\b|\['noise'\]|noise='(gaussian|band)')"}

SOURCES = [*sorted((ROOT/'robustnb').glob('*.py')), *sorted((ROOT/'nbs').rglob('*.ipynb'))]

@pytest.mark.parametrize('path', SOURCES, ids=lambda p: p.name)
def test_nothing_parses_labels_help_texts_or_tables(path):
    if path.suffix == '.py': text = path.read_text()
    elif path.name[0].isdigit(): pytest.skip('a chapter: its module is looked at')
    else: text = '\n'.join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == 'code')
    found = [f'{what}: {line.strip()[:100]}'
             for line in text.splitlines() for what, form in PARSED.items() if re.search(form, line)]
    assert not found, found
