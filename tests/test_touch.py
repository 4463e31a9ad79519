"The figures to touch, in a browser, against the book's own functions."
import html, json, shutil, subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from robustnb import results
from robustnb.conditions import Clean, Corruption
from robustnb.linear import Problem, adversarial_risk, simulate, standard_risk
from robustnb.spectrum import filter_energy, filter_freq
from robustnb.trajectories import by_epoch

TOUCH = Path(__file__).parents[1]/'nbs/touch'
BROWSER = next(filter(None, map(shutil.which, ['chromium', 'chromium-browser', 'google-chrome'])), None)


def told(tmp_path, page, script):
    "What the script passes to `tell` in a browser that shows the page, as JSON; it may do so later."
    if not BROWSER: pytest.skip('no Chromium')
    tell = ('const tell = found => document.body.append('
            'Object.assign(document.createElement("pre"), {id: "found", textContent: JSON.stringify(found)}));')
    text = f'<!doctype html><meta charset="utf-8"><body>{page}<script>{tell}\n{script}</script>'
    (tmp_path/'page.html').write_text(text)
    command = [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--virtual-time-budget=20000',
               f'--user-data-dir={tmp_path/"profile"}', '--dump-dom', (tmp_path/'page.html').as_uri()]
    out = subprocess.run(command, capture_output=True, text=True).stdout
    return json.loads(html.unescape(out.split('<pre id="found">')[1].split('</pre>')[0]))


def computed(tmp_path, name, expression, given):
    "What a page's script makes of `given`, as JSON."
    page = (TOUCH/f'{name}.html').read_text().replace('IMAGE', 'AAAA')
    return told(tmp_path, page, f'const given = {json.dumps(given)}; tell({expression});')


def problems(n):
    "Random problems; every third has an irrelevant frequency."
    rng = np.random.default_rng(0)
    for k in range(n):
        sigma = rng.uniform(0, .2, 3)*[1, 1, k % 3 > 0]
        steps = int(10**rng.uniform(1, 4))
        start = rng.uniform(-12, 12, 3)
        yield dict(star=[5, 10, 0], sigma=sigma.tolist(), start=start.tolist(), rate=10**rng.uniform(-3, 0),
                   steps=steps, record=[0, steps//3, steps])


def test_three_frequencies_are_those_of_the_module(tmp_path):
    asked = list(problems(30))
    found = computed(tmp_path, 'three', 'given.map(threeFrequencies.simulate)', asked)
    for case, told in zip(asked, found):
        problem = Problem(case['star'], case['sigma'], case['start'])
        for name in 'gd', 'signgd':
            ours = simulate(problem, name, case['rate'], case['steps'], record=case['record'])
            np.testing.assert_allclose(told[name], ours.w, rtol=0, atol=1e-6)


def test_their_risks_are_too(tmp_path):
    asked = [[case['start'], case['star'], case['sigma'], eps] for case in problems(10) for eps in (0, .5, 2**.5)]
    found = computed(tmp_path, 'three', 'given.map(g => threeFrequencies.risks(...g))', asked)
    for (w, star, sigma, eps), told in zip(asked, found):
        problem = Problem(star, sigma, w)
        np.testing.assert_allclose(told['standard'], standard_risk(w, problem), rtol=1e-9)
        np.testing.assert_allclose(told['adversarial'], adversarial_risk(w, problem, eps), rtol=1e-9)


@pytest.mark.parametrize('side', [5, 28])
def test_the_filters_are_those_of_the_module(tmp_path, side):
    x = torch.rand(side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(side))
    shares = [0, 1, 30, 50, 70.5, 90, 99, 100]
    expression = '''given.shares.map(p => {
        const f = twoFilters.filters(given.x, p);
        return [f.freq, f.energy].map(x => x.map(row => [...row]));
    })'''
    found = computed(tmp_path, 'filters', expression, dict(x=x.tolist(), shares=shares))
    for p, (freq, energy) in zip(shares, found):
        np.testing.assert_allclose(freq, filter_freq(x, p), rtol=0, atol=1e-6)
        np.testing.assert_allclose(energy, filter_energy(x[None], p)[0], rtol=0, atol=1e-6)


def test_the_trainings_are_those_of_the_results(tmp_path):
    vl_convert = pytest.importorskip('vl_convert')
    cells = json.loads((TOUCH.parent/'touch.ipynb').read_text())['cells']
    outs = [out for cell in cells for out in cell.get('outputs', [])]
    pages = (''.join(out['data']['text/html']) for out in outs)
    shown = next(page for page in pages if 'along-spec' in page)
    (tmp_path/'vega.js').write_text(vl_convert.javascript_bundle())
    ask = '''drawn.then(async ({view}) => {
        const rows = () => view.data(Object.keys(view.getState({data: name => name.startsWith('data_')}).data)[0]);
        await view.signal('shown', 'FashionMNIST, 5,000 images: fog 5').runAsync();
        const marks = document.querySelectorAll('#along .mark-line path, #along canvas').length;
        tell({marks, rows: rows()});
    });'''
    found = told(tmp_path, shown, ask)
    runs = results.published('corruptions_fashionmnist')
    fog = by_epoch(runs[runs.trajectory > 0], [Clean(), Corruption('fog', 5)]).reset_index()
    fog = fog[(fog.optimizer == 'sgd') & (fog.epoch == fog.epoch.max())]
    ours = [row for row in found['rows'] if row['optimizer'] == 'sgd' and row['epoch'] == fog.epoch.iloc[0]]
    assert found['marks']
    assert len(ours) == 1
    assert {row['shown'] for row in found['rows']} == {'FashionMNIST, 5,000 images: fog 5'}
    for name, column in ('standard', Clean().label), ('robust', Corruption('fog', 5).label):
        np.testing.assert_allclose(ours[0][name], 100*fog[column].mean(), rtol=0, atol=1e-3)


def test_a_table_is_sorted_and_searched(tmp_path):
    rows = [('sgd', '9.5<br><small>± 1</small>'), ('adam', '71'), ('rmsprop', ''), ('lion', '10')]
    table = ('<table><thead><tr><th>who</th><th>how</th></tr></thead><tbody>'
             + ''.join(f'<tr><td>{a}</td><td>{b}</td></tr>' for a, b in rows) + '</tbody></table>')
    ask = '''
        const found = {}, rows = () => [...document.querySelectorAll('tbody tr')].filter(row => !row.hidden);
        const see = name => { found[name] = rows().map(row => row.cells[0].textContent); };
        const [who, how] = document.querySelectorAll('th'), field = document.querySelector('input');
        how.click(); see('falling');
        how.click(); see('rising');
        who.click(); see('alphabetical');
        field.value = 'D a'; field.dispatchEvent(new Event('input')); see('searched');
        found.count = document.querySelector('.count').textContent;
        tell(found);'''
    found = told(tmp_path, (TOUCH/'sortable.html').read_text().replace('TABLE', table), ask)
    assert found['falling'] == ['adam', 'lion', 'sgd', 'rmsprop']
    assert found['rising'] == ['sgd', 'lion', 'adam', 'rmsprop']
    assert found['alphabetical'] == ['adam', 'lion', 'rmsprop', 'sgd']
    assert found['searched'] == ['adam']
    assert found['count'] == '1 of 4 lines'
