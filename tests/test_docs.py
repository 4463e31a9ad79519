"The book as a reader meets it: rendered by tools/docs.py, opened in Chromium, page by page."
import fcntl, functools, http.server, itertools, json, os, re, shutil, subprocess, sys, threading
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/'tools'))
import docs

CHROMIUM = next(filter(None, map(shutil.which, ['chromium', 'chromium-browser', 'google-chrome'])), None)
DRIVER = shutil.which('chromedriver')
browser_needed = pytest.mark.skipif(not (CHROMIUM and DRIVER),
                                    reason='no browser: apt-get install chromium chromium-driver')
PHONE = dict(width=390, height=844, mobile=True, deviceScaleFactor=2)
DESKTOP = dict(width=1280, height=900, mobile=False, deviceScaleFactor=1)
MAX_PAGE = 3_000_000

# what one page shows, asked in the page itself
LOOK = '''
const box = e => e.getBoundingClientRect();
const scrolls = e => e && (/auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
document.querySelectorAll('details').forEach(d => d.open = true);
const prose = document.querySelector('main').cloneNode(true);
prose.querySelectorAll('code, pre, math, table, .cell-output').forEach(e => e.remove());
const all = selector => [...document.querySelectorAll(selector)];
const names = /sqrt|frac|left|right|alpha|beta|sigma|lambda|epsilon|cdot|quad/;
const drawn = m => box(m).width > 2 && box(m).height > 2 && !m.querySelector('merror');
return {
  title: document.title, heading: document.querySelector('h1')?.textContent,
  width: document.documentElement.scrollWidth,
  cut: all('main *').filter(e => box(e).right > innerWidth + 1 && !scrolls(e)).map(e => e.outerHTML.slice(0, 80)),
  shrunk: all('main figure img').filter(i => i.naturalWidth > 520 && box(i).width < 500).map(i => i.alt),
  images: [...document.images].map(
    i => ({alt: i.alt, loaded: i.complete && i.naturalWidth > 0, start: i.src.slice(0, 60)})),
  links: all('a[href]').map(a => a.href),
  ids: all('[id]').map(e => e.id),
  formulas: all('.math').length,
  rendered: all('.math > math').filter(drawn).length,
  lost: all('math').map(m => m.textContent).filter(t => names.test(t)),
  tex: prose.textContent.match(/\\\\[a-zA-Z]{3,}|\\$[^$\\s][^$]*\\$/g) || [],
}'''

# how far down the first picture is while the code is folded, in pixels; null where there is none
FIRST = '''
document.querySelectorAll('details').forEach(d => d.open = false);
const high = e => e.getBoundingClientRect().height > 60;
const pictures = [...document.querySelectorAll('main img, main svg, main canvas')].filter(high);
return pictures.length ? pictures[0].getBoundingClientRect().top + scrollY : null;'''

# can the font of the formulas be had, within a second? A theme that is switched just then takes it away once more
FONT = '''
const done = arguments[0], font = '16px "Book Math"';
const there = () => document.fonts.check(font);
let left = 50;
const load = () => document.fonts.load(font).finally(
  () => there() || !left-- ? done(there()) : setTimeout(load, 20));
load();'''

# is the page dark, within a second?
DARK = '''
const done = arguments[0];
const colours = () => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3);
const dark = () => Math.max(...colours()) < 80;
let left = 50;
const look = () => dark() || !left-- ? done(dark()) : setTimeout(look, 20);
look();'''


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


def render(renderer, out):
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    subprocess.run([sys.executable, ROOT/'tools/docs.py', '--renderer', renderer, '--out', out], check=True, env=env)
    return out

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The rendered site's folder; all test processes share one build."
    base = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ: base = base.parent
    with open(base/'docs.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base/'site').exists():
            render('smalldocs', base/'site')
    return base/'site'


@pytest.fixture(scope='module')
def url(site):
    "The site's address on this machine."
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = ('headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking '
             'disable-component-update disable-sync disable-dev-shm-usage')
    for flag in flags.split(): options.add_argument(f'--{flag}')
    options.add_argument(f'--user-data-dir={tmp_path_factory.mktemp("profile")}')
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.execute_cdp_cmd('Network.enable', {})
    driver.execute_cdp_cmd('Network.setCacheDisabled', {'cacheDisabled': True})  # every page is weighed whole
    yield driver
    driver.quit()


def screen(browser, size, scheme='light'):
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
    colours = {'name': 'prefers-color-scheme', 'value': scheme}
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': [colours]})


@pytest.fixture(scope='module')
def visits(site, url, browser):
    """What every page shows on a phone: {page: answers of LOOK, console messages, requests}.

    Looked at once for all test processes."""
    store = site.with_suffix('.json')
    with open(site.with_name('visits.lock'), 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not store.exists():
            paths = [p for p in sorted(site.rglob('*.html')) if 'site_libs' not in p.parts]
            pages = [p.relative_to(site).as_posix() for p in paths]
            store.write_text(json.dumps({page: visit(browser, url, page) for page in pages}))
    return json.loads(store.read_text().replace('BASE/', url))


def visit(browser, url, page):
    screen(browser, PHONE)
    browser.get_log('performance')
    browser.get_log('browser')
    browser.get(url + page)
    font = browser.execute_async_script(FONT)
    seen = browser.execute_script(LOOK) | {'font': font}
    screen(browser, DESKTOP, 'dark')
    seen['first_picture'] = browser.execute_script(FIRST)
    seen['width_desktop'] = browser.execute_script('return document.documentElement.scrollWidth')
    seen['dark'] = browser.execute_async_script(DARK)
    seen['console'] = [m['message'] for m in browser.get_log('browser')]
    messages = [json.loads(m['message'])['message'] for m in browser.get_log('performance')]
    seen['requests'] = [m['params']['request']['url'] for m in messages if m['method'] == 'Network.requestWillBeSent']
    seen['failed'] = [m['params'] for m in messages if m['method'] == 'Network.loadingFailed']
    seen['bytes'] = sum(m['params']['encodedDataLength'] for m in messages if m['method'] == 'Network.loadingFinished')
    return json.loads(json.dumps(seen).replace(url, 'BASE/'))


def faults(visits, find):
    return {page: found for page, seen in visits.items() if (found := find(seen))}


def test_every_notebook_has_its_place_in_the_reading_order(monkeypatch):
    order = docs.reading_order()
    assert order[0] == 'index.ipynb' and len(order) == len(docs.notebooks())
    monkeypatch.setattr(docs, 'notebooks', lambda: [docs.NBS/n for n in [*order, 'experiments/forgotten.ipynb']])
    with pytest.raises(ValueError, match='experiments/forgotten.ipynb stands 0 times in the sidebar'):
        docs.reading_order()


def test_no_figure_is_missing():
    for path in docs.notebooks():
        for cell in json.loads(path.read_text())['cells']:
            source = ''.join(cell['source'])
            figure = cell['cell_type'] == 'code' and re.search(r'^#\| *fig-(cap|alt):', source, re.M)
            if not figure or '#| cuda' in source: continue
            stored = any('image/png' in out.get('data', {}) for out in cell['outputs'])
            assert stored, f'{path.name}: no figure stored for\n{source[:300]}'


def test_llms_txt_names_every_chapter(site):
    text = (site/'llms.txt').read_text()
    for name in docs.reading_order():
        copy = docs.page_of(docs.NBS/name).replace('.html', '.llms.md')
        assert copy in text and (site/copy).stat().st_size > 200


def test_api_tables_keep_each_remark_with_its_argument():
    said = docs.remarks(ROOT/'robustnb/optim.py')
    tables = {node.name: docs.parameters(node, said, 'optim').splitlines() for node in docs.public('optim')}
    assert "| `**options` |  |  | the rule's options, e.g. betas, eps, momentum |" in tables['create']
    assert '| returns | `torch.optim.Optimizer` |  |  |' in tables['create']
    assert tables['muon'][2].startswith('| `w`, `g`, `s`, `lr` |  | parameters, gradient, state, learning rate')


def test_a_remark_goes_on_below_its_line(tmp_path):
    (tmp_path/'short.py').write_text('# a heading\n\ndef f(\n    a,  # one\n        # and two\n        # and three\n'
                                     '    b,\n    # four\n    c,  # five\n): pass\n')
    assert docs.remarks(tmp_path/'short.py') == {1: 'a heading', 4: 'one and two and three', 8: 'four', 9: 'five'}


def node_of(module, name):
    return next(n for n in docs.public(module) if n.name == name)


def test_api_entries_link_only_what_a_name_can_mean():
    said = lambda text, module, name: docs.literal(text, docs.entry_names(module, node_of(module, name)))
    interval = '[`Interval`](conv_norm.html#conv_norm.Interval)'
    assert said('of `radius`, an `Interval`', 'lip_lower', 'lip_lower') == f'of `radius`, an {interval}'
    radius = '[`spectrum.radius`](spectrum.html#spectrum.radius)'
    assert said('see `spectrum.radius`', 'lip_lower', 'lip_lower') == f'see {radius}'
    # the one an argument, the other imported
    assert said('with `certify`, `pgd`', 'attacks', 'autoattack') == 'with `certify`, [`pgd`](pgd.html#pgd.pgd)'
    # argument and function of the same module
    assert said('see `momentum`', 'optim', 'nesterov') == 'see [`momentum`](optim.html#optim.momentum)'
    shown = lambda module, name, remarks: docs.parameters(node_of(module, name), remarks, module)
    assert f'| returns | {interval} |' in shown('lip_exact', 'lip_exact', {})
    assert '| [`Evaluation \\| None`](cascade.html#cascade.Evaluation) |' in shown('attacks', 'autoattack', {})
    nadam = shown('optim', 'nadam', docs.remarks(ROOT/'robustnb/optim.py'))
    assert '| `w`, `g`, `s`, `lr`, `betas`, `eps` | `betas=(0.9, 0.999)`, `eps=1e-08` |' in nadam


def test_api_entries_of_classes_hold_properties_and_methods():
    text = '\n'.join(docs.members(node_of('data', 'Data'), docs.remarks(ROOT/'robustnb/data.py'), 'data'))
    assert '| `.shape` | `tuple` | C,H,W of one image. |' in text and '| `.n_classes` | `int` |' in text
    assert '\n- `.subset(n_train=None, n_test=None, seed=None)`: The same data set' in text
    assert '\n  | `n_train` | `int \\| None` | `None` | training images to keep' in text
    assert '\n  | returns | [`Data`](data.html#data.Data) |' in text


def test_constants_are_shown_in_short():
    assert docs.short(('none', 'batch')) == docs.short({'none': 0, 'batch': [1]}) == "'none', 'batch'"
    assert docs.short({3, 2}) == '2, 3'
    assert docs.short((int, dict)) == 'int, dict'
    assert docs.short(1e-12) == '1e-12'
    assert docs.short(range) == 'range' and docs.short('a'*300) == docs.short(['a'*20]*20) == ''
    assert docs.short(threading.Event()) == docs.short(''.format) == ''
    path = ROOT/'robustnb/conv_norm.py'
    title, rows = docs.constants(path, docs.import_module('robustnb.conv_norm'), docs.remarks(path))
    assert title.startswith('## Constants')
    assert re.search(r'\| \[`SAFETY`\]\(../source/conv_norm.html#L-\d+\) \| `8` \| covers', rows)
    assert 'Interval' not in rows


def test_commands_come_with_their_options():
    from robustnb.cli import make_parser
    text = docs.commands(make_parser())
    first = text.index('## robustnb run {.api-name .api-entry}\n')
    run = text[first + 2].splitlines()
    assert run[2].startswith('| `experiment` | a notebook')
    assert '| `--engine {warm,nbclient}` | as for sweep (default: warm) |' in run
    assert '| `--out OUT` | folder of runs (default: runs) |' in run
    assert text[first + 3].startswith('```\nexamples:\n  robustnb run  ')
    named = 'run sweep measure report audit compare data completion'.split()
    assert [t.split()[2] for t in text[::4]] == named


class Fetches(HTMLParser):
    "Addresses that a page loads, and those it links to."
    def __init__(self, page):
        super().__init__()
        self.loads = []
        self.links = []
        self.feed(page.read_text())
    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == 'a': self.links.append(given.get('href') or '')
        else: self.loads += [given[name] for name in ('src', 'href') if given.get(name)]

QUARTO = pytest.param(
    'quarto', marks=pytest.mark.skipif(not shutil.which('quarto'), reason='Quarto is not installed'))

@pytest.mark.parametrize('renderer', ['smalldocs', QUARTO])
def test_a_rendered_book_is_whole_and_needs_no_network(renderer, request, tmp_path):
    if renderer == 'smalldocs': site = request.getfixturevalue('site')
    else: site = render(renderer, tmp_path/'site')
    pages = {p.relative_to(site).as_posix(): Fetches(p) for p in site.rglob('*.html') if 'site_libs' not in p.parts}
    assert not {docs.page_of(docs.NBS/name) for name in docs.reading_order()} - pages.keys()
    foreign = lambda address: re.match('(https?:)?//', address)
    assert not {page: found for page, seen in pages.items() if (found := [*filter(foreign, seen.loads)])}
    for sheet in site.rglob('*.css'):
        unquoted = sheet.read_text().replace('"', '').replace("'", '')
        assert not re.search(r'url\((https?:)?//', unquoted), sheet.name
    def lost(page, address):
        if re.match(r'\w+:|#|$', address): return False
        path = unquote(re.split('[?#]', address)[0])
        return not (site/page).parent.joinpath(path).exists()
    dead = lambda page, seen: [a for a in seen.links + seen.loads if lost(page, a)]
    assert not {page: found for page, seen in pages.items() if (found := dead(page, seen))}

def test_what_a_renderer_fetches_is_taken_out(tmp_path):
    "Quarto adds jQuery and RequireJS to pages with tables, and its themes import fonts."
    own = '<script src="site_libs/own.js"></script>\n<script>let x = 1;</script>\n'
    foreign = ('<script src="https://cdn.example/require.min.js" integrity="x" crossorigin="anonymous"></script>\n'
               '<script type="application/javascript" data-relocate-top="true">'
               'define(\'jquery\', [],function() {return window.jQuery;})</script>\n')
    (tmp_path/'page.html').write_text(own + foreign + own)
    fonts = 'https://fonts.example/css2?family=A:wght@300;400&display=swap'
    (tmp_path/'theme.css').write_text(f'@import url("{fonts}");a{{color:red}}')
    docs.offline(tmp_path)
    assert (tmp_path/'page.html').read_text() == own + own
    assert (tmp_path/'theme.css').read_text() == 'a{color:red}'

def test_no_markdown_is_left_in_the_text(site):
    for page in site.rglob('*.html'):
        text = re.sub(r'<(pre|code|script|math)\b.*?</\1>', '', page.read_text(), flags=re.S)
        assert not re.search(r'\]\([\w./]+\)|^\s*\|.*\|\s*$', text, re.M), page.name


def code(text):
    "Code blocks of a Markdown text: (language, text)."
    return re.findall(r'^```(\w*)\n(.*?)^```$', text, re.M | re.S)

def blocks(path): return code(path.read_text(encoding='utf-8'))


def test_links_between_files_of_the_repository():
    for name in 'README.md', 'CONTRIBUTING.md', 'CHANGELOG.md':
        for link in re.findall(r'\]\(([^)#\s]+)', (ROOT/name).read_text()):
            assert re.match(r'\w+:', link) or (ROOT/link).exists(), f'{name}: {link}'


def test_the_contributing_guide_turns_a_notebook_into_a_module(tmp_path):
    pairs = itertools.pairwise(text for _, text in blocks(ROOT/'CONTRIBUTING.md'))
    chapter, commands = next(pair for pair in pairs if pair[0].startswith('# %%\n#| default_exp margin'))
    for name in 'settings.ini', 'setup.py', 'README.md', 'tools', 'robustnb', 'nbs/00_core.ipynb':
        target = tmp_path/name
        target.parent.mkdir(exist_ok=True)
        (shutil.copytree if (ROOT/name).is_dir() else shutil.copy)(ROOT/name, target)
    (tmp_path/'16_margin.py').write_text(chapter)
    env = {**os.environ, 'PYTHONPATH': str(tmp_path), 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'}
    subprocess.run(['bash', '-ec', commands], cwd=tmp_path, env=env, check=True)
    shown = ('import torch; from robustnb.margin import margin; '
             'print(margin(torch.eye(2), torch.tensor([0, 0])).tolist())')
    done = subprocess.run([sys.executable, '-c', shown], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout == '[1.0, -1.0]\n'


def parts(path):
    "The parts of a Markdown file that hold blocks of code: {heading: blocks}."
    texts = re.split(r'^## ', path.read_text(encoding='utf-8'), flags=re.M)
    return {text.split('\n', 1)[0]: found for text in texts if (found := code(text))}

GUIDE = parts(ROOT/'CONTRIBUTING.md')
# parts of the guide whose blocks are not run here, and where they are
OTHERS = {'# Contributing': 'what make does is run by everybody who makes it',
          'How a notebook becomes a module': 'the test above runs it'}


def command(language, text, folder):
    "What runs a block as it is printed, None for a file, which is written."
    named = re.match(r'# ([\w/]+\.(?:py|toml))\n', text)
    if named:
        (folder/named[1]).parent.mkdir(exist_ok=True)
        (folder/named[1]).write_text(text)
    elif not language: return ['bash', '-ec', text]


@pytest.mark.parametrize('heading', sorted(GUIDE.keys() - OTHERS.keys()))
def test_the_contributing_guide_runs_as_it_is_printed(heading, tmp_path):
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'ROBUSTNB_DATA': str(tmp_path),
           'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'}
    commands = []
    script = ['from importlib import import_module']
    for language, text in GUIDE[heading]:
        inside = re.match(r'# nbs/\d+\w*?_(\w+)\.ipynb', text)
        space = f'vars(import_module("robustnb.{inside[1]}"))' if inside else 'globals()'
        commands.append(command(language, text, tmp_path))
        scripted = language == 'python' and commands[-1] is None
        if scripted and not (tmp_path/text.split('\n')[0][2:]).is_file():
            script.append(f'exec({text!r}, {space})')
    for line in [*filter(None, commands), [sys.executable, '-c', '\n'.join(script)]]:
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_contributing_guide_has_no_private_names():
    assert set(OTHERS) < set(GUIDE)
    for heading, found in GUIDE.items():
        for language, text in found:
            assert not re.findall(r'(?<![\w./{])_[A-Za-z]\w*(?!\w*/)', text), heading


@browser_needed
def test_pages_open_without_errors_or_outside_requests(visits, url):
    assert len(visits) > len(docs.reading_order())
    inside = (url, 'data:', 'chrome:')
    outside = lambda s: [r for r in s['requests'] if not r.startswith(inside)]
    assert not faults(visits, lambda s: s['console'] + s['failed'] + outside(s))
    assert not faults(visits, lambda s: not s['heading'] or not s['title'])
    assert not faults(visits, lambda s: [i for i, n in Counter(s['ids']).items() if n > 1])


@browser_needed
def test_links_lead_somewhere(visits, site, url):
    def leads(page, anchor):
        if not (site/page).exists(): return False
        return not anchor or unquote(anchor) in visits[page or 'index.html']['ids']
    def broken(seen):
        inside = [link.removeprefix(url).partition('#') for link in seen['links'] if link.startswith(url)]
        return [page + hash + anchor for page, hash, anchor in inside if not leads(page, anchor)]
    assert not faults(visits, broken)


@browser_needed
def test_images_load_and_say_what_they_show(visits):
    assert any(s['images'] for s in visits.values())
    assert not faults(visits, lambda s: [i for i in s['images'] if not i['loaded'] or len(i['alt']) < 10])


@browser_needed
def test_formulas_are_rendered(visits):
    assert sum(s['formulas'] for s in visits.values()) > 20
    assert not faults(visits, lambda s: s['formulas'] - s['rendered'])
    assert not faults(visits, lambda s: s['tex'] or s['lost'])
    assert not faults(visits, lambda s: not s['font'])


@browser_needed
def test_nothing_scrolls_sideways_and_the_dark_theme_is_dark(visits):
    assert not faults(visits, lambda s: s['cut'])
    assert not faults(visits, lambda s: s['width'] > PHONE['width'] or s['width_desktop'] > DESKTOP['width'])
    assert not faults(visits, lambda s: not s['dark'])


@browser_needed
def test_wide_figures_keep_their_size_on_a_phone(visits):
    assert not faults(visits, lambda s: s['shrunk'])


@browser_needed
def test_a_page_shows_its_picture_first(visits):
    pictured = {page: seen for page, seen in visits.items() if seen['first_picture'] is not None}
    screens = {page: seen['first_picture']/DESKTOP['height'] for page, seen in pictured.items()}
    assert not {page: n for page, n in screens.items() if n > (1.5 if page.startswith('experiments/') else 3)}


def test_code_that_is_no_definition_is_folded(site):
    page = (site/'kernels.html').read_text()
    folded = re.findall(r'<details class="code-fold">\s*<summary>([^<]*)</summary>(.*?)</details>', page, re.S)
    told = {summary: text for summary, text in folded}
    assert {'Helpers', 'Test', 'Code of the figure'} <= set(told)
    assert not [text for text in told.values() if 'def tangent_kernel' in re.sub('<[^>]+>', '', text)]
    assert 'def tangent_kernel' in re.sub('<[^>]+>', '', page)


@browser_needed
def test_pages_are_light(visits):
    assert not faults(visits, lambda s: s['bytes'] > MAX_PAGE and s['bytes'])


@browser_needed
@pytest.mark.parametrize('scheme', ['http', 'file'])
def test_search_finds_a_function(scheme, site, url, browser):
    from selenium.webdriver import Keys
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait
    word, page = ('filter_energy', 'spectrum') if (site/'spectrum.html').exists() else ('noise_curve', 'evaluate')
    screen(browser, DESKTOP)
    browser.get((url if scheme == 'http' else site.as_uri() + '/') + 'index.html')
    browser.switch_to.active_element.send_keys('/')
    browser.switch_to.active_element.send_keys(word)
    results = WebDriverWait(browser, 10).until(lambda b: b.find_elements(By.CSS_SELECTOR, '.search-result'))
    targets = [r.get_attribute('href') for r in results]
    assert any(t.endswith(f'/{page}.html#{page}.{word}') for t in targets), targets
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    WebDriverWait(browser, 10).until(lambda b: '#' in b.current_url)
    assert word in browser.find_element(By.TAG_NAME, 'main').text


SEARCH = """const [asked, done] = arguments;
    const answered = docs => done(new Fuse(docs, {}).search(asked).map(hit => hit.item));
    fetch('search.json').then(answer => answer.json()).then(answered);"""

@browser_needed
@pytest.mark.parametrize('asked, first', [
    ('timm', ''), ('attacks', 'attack'), ('lipschitz constants', 'lipschitz'), ('autoattack', 'autoattack')])
def test_search_finds_whole_words_and_chapters_first(asked, first, url, browser):
    browser.get(url + 'index.html')
    found = browser.execute_async_script(SEARCH, asked)
    texts = [' '.join([one['title'], one['section'], one['text']]).lower() for one in found]
    assert found and all(re.search(rf'(?<![^\W_]){word}', text) for text in texts for word in asked.split())
    assert first in found[0]['title'].lower() and (not first or '#' not in found[0]['href'])


@browser_needed
def test_search_reads_british_and_american_spelling(url, browser):
    browser.get(url + 'index.html')
    british, american = [browser.execute_async_script(SEARCH, word) for word in ('normalisation', 'normalization')]
    assert british and british == american

@browser_needed
@pytest.mark.parametrize('size', [DESKTOP, PHONE], ids=['desktop', 'phone'])
def test_the_keyboard_reaches_the_sidebar(size, url, browser):
    from selenium.webdriver import Keys
    screen(browser, size)
    browser.get(url + 'core.html')
    asked = ("const e = document.activeElement; "
             "return [!!e.closest('#quarto-sidebar'), e.matches('.quarto-btn-toggle'), e.href || '']")
    focus = lambda: browser.execute_script(asked)
    for _ in range(40):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        inside, button, href = focus()
        if button: browser.switch_to.active_element.send_keys(Keys.ENTER)
        if inside and 'fig01' in href: break
    assert inside and 'fig01' in href
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert 'fig01' in browser.current_url
