"""Render the book in nbs/ to _docs/, from _quarto.yml: with Quarto where it is on PATH, with smalldocs elsewhere.

    python tools/docs.py [--out FOLDER] [--renderer quarto|smalldocs]

Both renderers read the same folder _proc/, made here: nbdev's processed notebooks under the names their links use,
the source of each module, a table of all public names. Nothing on the site comes from the network: links to code lead
to pages of the site, formulas are MathML with a font of their own, and the search index also opens from a folder on
disk. `nbdev_docs` would overwrite README.md, which tools/notebooks.py makes.
"""
import argparse, ast, fcntl, inspect, itertools, json, os, re, shutil, subprocess, sys, tokenize
from fnmatch import fnmatch
from functools import cache
from html import unescape
from importlib import import_module
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path
from textwrap import indent
from time import perf_counter
from types import ModuleType

import yaml
from execnb.nbio import mk_cell, read_nb, write_nb
from fontTools import subset
from math_core import LatexToMathML
from nbdev import processors
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup, _nbpath2html
from smalldocs import highlight, markdown, site
from smalldocs.config import load
from vl_convert import javascript_bundle

from notebooks import NBS, ROOT, notebooks

PROC = ROOT/'_proc'
fork = get_context('fork')  # processes that begin with what this one holds
CONFIG = yaml.safe_load((ROOT/'_quarto.yml').read_text())
SCRIPT = f'<script>\n{(ROOT/"tools"/"book.js").read_text()}</script>\n'


# the reading order

def expand(contents, names):
    """The sidebar's `contents` with each glob replaced by the notebooks of `names` it matches.

    Sections without notebooks are dropped."""
    found = []
    for item in contents:
        if isinstance(item, str):
            found += sorted(n for n in names if fnmatch(n, item)) if item.endswith('.ipynb') else [item]
        elif 'href' in item: found.append(item)
        elif inner := expand(item['contents'], names): found.append({**item, 'contents': inner})
    return found

def flat(contents):
    "All pages of expanded `contents`, in reading order."
    inside = lambda item: [item] if isinstance(item, str) else flat(item.get('contents', [item.get('href')]))
    return [page for item in contents for page in inside(item)]

def reading_order():
    "Names of all notebooks in the order of the sidebar; a ValueError if one is missing there or comes twice."
    names = [p.relative_to(NBS).as_posix() for p in notebooks()]
    order = [p for p in flat(expand(CONFIG['website']['sidebar']['contents'], names)) if p.endswith('.ipynb')]
    wrong = [f'{n} stands {order.count(n)} times in the sidebar of _quarto.yml' for n in names if order.count(n) != 1]
    if wrong: raise ValueError('; '.join(wrong))
    return order


# a chapter: nbdev's processors, with three of our own

def imports(node):
    "Is this statement an import, or the list of names that nbdev exports, too?"
    if isinstance(node, (ast.Import, ast.ImportFrom)): return True
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '_all_'

class show_code(processors.Processor):
    "Exported definitions stay on the page, each under a heading with a link to its source; imports go."
    def begin(self):
        modules = (c.directives_['default_exp'][0] for c in self.nb.cells if 'default_exp' in c.directives_)
        self.module = next(modules, None)
        self.lines = {n.name: n.lineno for n in public(self.module)} if self.module else {}
        exported = lambda cell: cell.directives_.keys() & {'export', 'exports'}
        parts = lambda cell: self.pieces(cell) if exported(cell) else [cell]
        self.nb.cells[:] = [new for cell in self.nb.cells for new in parts(cell)]
        for i, cell in enumerate(self.nb.cells): cell.idx_ = i
    def pieces(self, cell):
        "The cell cut before each public definition, with its heading; nothing if the cell only imports."
        body = ast.parse(cell.source).body
        lines = cell.source.splitlines()
        if 'hide' in cell.directives_ or all(map(imports, body)): return []
        named = [n for n in body if getattr(n, 'name', '_')[0] != '_']
        first_line = lambda node: min([node.lineno, *(d.lineno for d in node.decorator_list)])
        cuts = [0] + [first_line(n) - 1 for n in named[1:]] + [len(lines)]
        for i, cut in enumerate(cuts[1:-1], 1):
            while lines[cut - 1].startswith('#'): cut -= 1
            cuts[i] = cut
        if missing := [n.name for n in named if n.name not in self.lines]:
            raise ValueError(f'{missing[0]} is not in robustnb/{self.module}.py: run nbdev_export')
        found = []
        for node, start, end in zip(named or [None], cuts, cuts[1:]):
            if node: found.append(self.heading(node.name))
            found.append(new_cell('\n'.join(lines[start:end]).strip('\n'), **({} if node else {'helpers': []})))
        return found
    def heading(self, name):
        "A cell with the heading of a definition and the link to its source."
        source = f'source/{self.module}.html#L-{self.lines[name]}'
        heading = f'### {name} {{.api-name #{self.module}.{name}}}'
        return new_cell(f'{heading}\n\n[source]({source}){{.source-link}}', 'markdown')

def new_cell(source, cell_type='code', **directives):
    cell = mk_cell(source, cell_type)
    cell.directives_ = directives
    return cell

@cache
def exporters():
    "{name: modules that export it}."
    found = {}
    for path in (ROOT/'robustnb').glob('[!_]*.py'):
        for node in public(path.stem): found.setdefault(node.name, set()).add(path.stem)
    return found

def is_own_import(node):
    "Does this statement import from this package?"
    if not isinstance(node, ast.ImportFrom) or not node.module: return False
    return node.level or node.module.startswith('robustnb.')

def meant(sources):
    "{name: the module that it comes from in these sources; '' where they define it themselves}."
    found = {}
    for source in sources:
        try: body = ast.parse(re.sub(r'^[%!].*', '', source, flags=re.M)).body
        except SyntaxError: continue
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)): found[node.name] = ''
            elif is_own_import(node):
                module = node.module.removeprefix('robustnb.')
                found |= {a.name: module for a in node.names if not a.asname}
    return found

@cache
def own_names(module):
    "`meant` on a page about one module: what it imports, and what it exports itself."
    return meant([(ROOT/'robustnb'/f'{module}.py').read_text()]) | {n.name: module for n in public(module)}

@cache
def chapters():
    "{module: its chapter's page}; experiments export nothing."
    return {Path(path).stem: path for path in map(page_of, notebooks()) if '/' not in path}

def home(name, names={}):
    """The module that a public name belongs to: what `names` says, else the only one that exports it.

    '' where that is not clear."""
    modules = exporters().get(name, ())
    stem = names.get(name, min(modules) if len(modules) == 1 else '')
    return stem if stem in modules else ''

@cache
def lookup():
    "nbdev's links of names, for the modules of this package."
    modules = [f'robustnb.{p.stem}' for p in (ROOT/'robustnb').glob('*.py')]
    spaces = {name.removeprefix('robustnb.'): ModuleType(name) for name in modules}
    return NbdevLookup(incl_libs=('robustnb',), ns=spaces)

def link_names(text, here='', names={}, folder=''):
    """Names in backticks lead to where a page in `folder` defines them.

    `here` is the folder of the page they stand on, `names` what it means by a name. What is ambiguous is not linked."""
    def link(m):  # a method's link leads to its class, a private helper's to the page
        said, call, file, anchor = m.groups()
        a_word = not call and said not in names and re.fullmatch('[a-z]+', said)
        if a_word: return f'`{said}`'  # a word like size may mean anything
        shown = f'`{said}{call or ""}`'
        name = said.split('.')[-1 - anchor.count('.')]
        stem = home(said, names) if said in exporters() else Path(file).stem
        if stem not in chapters(): return shown
        chapter = os.path.relpath(os.path.join(folder, chapters()[stem]), here or '.')
        return f'[{shown}]({chapter})' if name[0] == '_' else f'[{shown}]({chapter}#{stem}.{name})'
    nbdevs = re.escape(get_config().doc_host + get_config().doc_baseurl)
    linked = r'\[`([\w.]+)(\(\))?`\]\(' + nbdevs + r'/([\w/-]+\.html)#([\w.]+)\)'
    return re.sub(linked, link, lookup().linkify(text))

class local_links(processors.Processor):
    "Names in backticks lead to their chapter, and links between chapters to the other page."
    def begin(self):
        here = Path(page_of(self.nb.path_)).parent
        code = [c.source for c in read_nb(self.nb.path_).cells if c.cell_type == 'code']
        module = re.search(r'^#\| *default_exp (\w+)', '\n'.join(code), re.M)
        names = meant(code) | (own_names(module[1]) if module else {})
        def chapter(m):
            target = (NBS/here/m[1]).resolve()
            return f']({os.path.relpath(page_of(target), here)}' if target.is_relative_to(NBS) else m[0]
        for cell in self.nb.cells:
            if cell.cell_type != 'markdown': continue
            text = link_names(cell.source, here, names)
            cell.source = re.sub(r'\]\((?!\w+:)([^)#\s]+\.ipynb)', chapter, text)

def one_stream(cell):
    "What a cell printed is one block, however many pieces the kernel sent."
    whole = []
    for out in cell.get('outputs', []):
        streams = whole and out['output_type'] == whole[-1]['output_type'] == 'stream'
        if streams and out['name'] == whole[-1]['name']:
            whole[-1]['text'] = [*whole[-1]['text'], *out['text']]
        else: whole.append(out)
    if whole: cell['outputs'] = whole

class Chapter(processors.FilterDefaults):
    def base_procs(self):
        change = dict(add_show_docs=show_code, add_links=local_links, clean_show_doc=None, exec_show_docs=None,
                      add_fold=None, mv_exports=None)
        changed = (change.get(p.__name__, p) for p in super().base_procs())
        return [one_stream, *filter(None, changed)]

def page_of(path):
    "The page of a notebook, as nbdev's links name it; experiments keep their names."
    path = Path(path).resolve().relative_to(NBS)
    return path.with_suffix('.html').as_posix() if path.parent.name else _nbpath2html(path).as_posix()

def tags(cell): return cell.get('metadata', {}).get('tags', [])

ABOVE = 'The picture that this makes stands [at the top of the page](#the-picture).'

def put_first(nb):
    "The picture of the cell tagged 'lead' comes after the first paragraph; where it was made stands a link to it."
    chosen = next((cell for cell in nb.cells if 'lead' in tags(cell)), None)
    if chosen is None: return
    is_option = lambda line: re.match(r'#\| *fig-', line)
    lines = chosen.source.splitlines()
    options = list(filter(is_option, lines))
    pictures = [out for out in chosen.outputs if 'image/png' in out.get('data', {})]
    if not options or not pictures:
        raise ValueError(f'{nb.path_}: the cell tagged lead has no picture, or no fig-cap')
    first = new_cell('\n'.join(['#| echo: false', *options]))
    first['outputs'] = pictures
    chosen.outputs = [out for out in chosen.outputs if out not in pictures]
    chosen.source = '\n'.join(line for line in lines if not is_option(line))
    nb.cells.insert(nb.cells.index(chosen) + 1, new_cell(ABOVE, 'markdown'))
    is_prose = lambda cell: cell.cell_type == 'markdown' and cell.source[:1] not in '<#'
    at = next(i for i, cell in enumerate(nb.cells) if is_prose(cell))
    answer, _, rest = nb.cells[at].source.partition('\n\n')
    anchor = new_cell('<span id="the-picture"></span>', 'markdown')
    nb.cells[at:at + 1] = [new_cell(answer, 'markdown'), anchor, first, new_cell(rest, 'markdown')]

TESTS = re.compile(r'\b(assert|test_eq|test_fail|assert_\w+|pytest\.raises)\b')
IN_SIGHT = 6  # lines of an example that stay open

def summary(cell, is_chapter):
    "What stands in the place of a cell's code until it is opened; '' where the code stays in sight."
    code = [line for line in cell.source.splitlines() if not line.startswith('#|')]
    shown = {kind for out in cell.get('outputs', []) for kind in out.get('data', {})}
    if 'parameters' in tags(cell): return ''
    if 'helpers' in cell.directives_: return 'Helpers'
    if len(code) <= IN_SIGHT: return ''
    if 'image/png' in shown: return 'Code of the figure'
    if shown & {'text/html', 'text/markdown'}: return 'Code of the table'
    if not is_chapter: return 'Code'
    return 'Test' if TESTS.search(cell.source) else ''

def fold(nb, is_chapter):
    "Plumbing, tests and the code of pictures are folded; definitions and short examples stay open."
    defined = False
    last = ''
    for cell in nb.cells:
        follows = defined
        defined = cell.cell_type == 'markdown' and '.api-name' in cell.source
        foldable = cell.cell_type == 'code' and not follows
        if not foldable or re.search(r'^#\| *(echo|code-fold)', cell.source, re.M):
            last = ''
            continue
        of_helpers = last == 'Helpers' and TESTS.search(cell.source)
        last = summary(cell, is_chapter) or ('Test' if of_helpers else '')
        if last: cell.source = f'#| code-fold: true\n#| code-summary: "{last}"\n{cell.source}'

def numbers(contents):
    """{notebook: '2.3'}, by section and place in it; of expanded `contents`.

    Pages outside a section have none, nor has the last section."""
    sections = [item['contents'] for item in contents if 'contents' in item][:-1]
    found = {}
    for i, section in enumerate(sections, 1):
        found |= {name: f'{i}.{j}' for j, name in enumerate(flat(section), 1) if name.endswith('.ipynb')}
    return found

def process(name, number=''):
    "One notebook, processed, under its page's name in _proc/, its number before its title."
    nb = read_nb(NBS/name)
    Chapter()(nb)
    fold(nb, '/' not in name)
    put_first(nb)
    front = nb.cells[0]
    front.source = re.sub(r'^output-file: .*\n', '', front.source, flags=re.M)
    def titled(m):
        title = yaml.safe_load(m[0])['title']
        return yaml.safe_dump({'title': f'{number} {title}'}, allow_unicode=True, width=1000).strip()
    if number: front.source = re.sub(r'^title: .*$', titled, front.source, flags=re.M)
    target = PROC/page_of(NBS/name).replace('.html', '.ipynb')
    target.parent.mkdir(parents=True, exist_ok=True)
    write_nb(nb, target)
    return target.relative_to(PROC).as_posix()


# pages made from the modules

@cache
def public(module):
    "Public functions and classes of an exported module, as syntax trees."
    tree = ast.parse((ROOT/'robustnb'/f'{module}.py').read_text())
    return [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name[0] != '_']

def page(path, title, description, body, **options):
    "Write one Markdown page into _proc/."
    said = dict(title=title, description=description, **options)
    front = yaml.safe_dump({k: v for k, v in said.items() if v != ''}, allow_unicode=True)
    (PROC/path).parent.mkdir(exist_ok=True)
    (PROC/path).write_text(f'---\n{front}---\n\n{body}\n')

def entry_names(module, node):
    """What the entry of a function or class means by a name.

    It is what its module exports or imports, but by one of its arguments nothing of another module."""
    given = {name.strip('`*') for name, *_ in arguments(node)}
    own = own_names(module).items()
    return dict.fromkeys(exporters(), '') | {name: stem for name, stem in own if stem == module or name not in given}

def literal(text, names, here='reference'):
    """A docstring or comment of a module as Markdown.

    Only its code in backticks is markup, and leads to the entries of the API reference."""
    parts = re.split('(`[^`]*`)', text)  # every second one is code
    parts[::2] = [re.sub(r'([\\*^~$<>_\[\]])', r'\\\1', part) for part in parts[::2]]
    parts[1::2] = [link_names(part, here, names, 'reference') for part in parts[1::2]]
    return ''.join(parts)

def table(*rows):
    "A Markdown table without the columns that are empty below the first row, its head; '' if nothing is left."
    written = lambda cell: cell.replace('|', '\\|').replace('\n', ' ')
    columns = [list(map(written, column)) for column in zip(*rows) if any(column[1:])]
    lines = [f'| {" | ".join(line)} |' for line in zip(*columns)]
    return '\n'.join([lines[0], '|:--'*len(columns) + '|', *lines[1:], '']) if lines else ''

def arguments(node):
    """Arguments of a function, or of a class's constructor, and what it returns.

    A list of (name, annotation, default, line), None where absent."""
    if isinstance(node, ast.ClassDef):
        init = next((n for n in node.body if getattr(n, 'name', '') == '__init__'), None)
        if init is None:
            fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
            return [(f'`{n.target.id}`', n.annotation, n.value, n.lineno) for n in fields]
        node = init
    a = node.args
    positional = [x for x in a.posonlyargs + a.args if x.arg != 'self']
    defaults = [None]*(len(positional) - len(a.defaults)) + a.defaults
    pairs = [*zip(positional, defaults), *zip(a.kwonlyargs, a.kw_defaults)]
    found = [(f'`{x.arg}`', x.annotation, default, x.lineno) for x, default in pairs]
    starred = ('*', a.vararg), ('**', a.kwarg)
    found += [(f'`{star}{x.arg}`', x.annotation, None, x.lineno) for star, x in starred if x]
    found.sort(key=lambda argument: argument[-1])
    return found + ([('returns', node.returns, None, node.returns.lineno)] if node.returns else [])

def remarks(path):
    """The comment at the end of each line of a file that has one: {line: text}.

    The lines of comment alone below it belong to it."""
    found = {}
    first, last = 0, -1
    with open(path, 'rb') as f: tokens = list(tokenize.tokenize(f.readline))
    comments = [t for t in tokens if t.type == tokenize.COMMENT]
    for t in comments:
        line = t.start[0]
        text = t.string.lstrip('# ')
        if line > last + 1 or t.line.lstrip()[0] != '#': first = line
        found[first] = f'{found[first]} {text}' if first in found else text
        last = line
    return found

def kind(annotation, names):
    "A type as written; it leads to the entry of the class of this package that it names."
    if annotation is None: return ''
    text = ast.unparse(annotation).strip("'")
    found = [f'({stem}.html#{stem}.{name})' for name in re.findall(r'\w+', text) if (stem := home(name, names))]
    return f'[`{text}`]{found[0]}' if found else f'`{text}`'

def parameters(node, said, module):
    """The API table of one function, or of a class's constructor: types, defaults and remarks as written.

    What shares a line shares its remark."""
    own = entry_names(module, node)
    rows = []
    written = lambda tree: re.sub(r'^field\(default_factory=(\w+)\)$', r'\1()', ast.unparse(tree))
    shared = lambda argument: argument[-1] if argument[-1] in said else argument[0]
    for _, group in itertools.groupby(arguments(node), key=shared):
        names, types, defaults, lines = zip(*group)
        alone = len(names) == 1
        given = [f'`{written(d)}`' if alone else f'`{n.strip("`")}={written(d)}`' for n, d in zip(names, defaults) if d]
        kinds = ', '.join(kind(t, own) for t in types if t)
        rows.append((', '.join(names), kinds, ', '.join(given), literal(said.get(lines[0], ''), own)))
    return table(('parameter', 'type', 'default', 'meaning'), *rows)

def members(node, said, module):
    "The table of a class's properties, and its methods with their signatures and API tables."
    found = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name[0] != '_']
    is_property = lambda n: any(ast.unparse(d) == 'property' for d in n.decorator_list)
    told = lambda n: literal(ast.get_docstring(n) or '', entry_names(module, n))
    row = lambda n: (f'`.{n.name}`', kind(n.returns, entry_names(module, n)), told(n))
    text = [table(('property', 'type', 'meaning'), *[row(n) for n in found if is_property(n)])]
    for n in found:
        if is_property(n): continue
        given = arguments(n)
        text += [': '.join(filter(None, [f'- `.{n.name}({signature(given)})`', told(n).replace('\n', ' ')])) + '\n']
        has_table = any(annotation or line in said for _, annotation, _, line in given)
        if has_table: text.append(indent(parameters(n, said, module), '  '))
    return text

def signature(arguments):
    "The arguments of a method as they are written in a call, with their defaults."
    written = lambda name, default: name.strip('`') + (f'={ast.unparse(default)}' if default else '')
    return ', '.join(written(name, default) for name, _, default, _ in arguments if name != 'returns')

def short(value):
    """A constant in a few words: a dictionary's keys, the names of classes.

    '' if it is long, or only says what it is and where in memory."""
    if isinstance(value, type): return value.__name__
    if isinstance(value, set): value = sorted(value)
    text = ', '.join(map(short, value)) if isinstance(value, (dict, list, tuple)) else repr(value)
    return text if len(text) < 200 and text[:1] != '<' else ''

def constants(path, package, said):
    "The table of a module's public constants that are short; their names lead to the source."
    assigned = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.Assign)]
    targets = [(target, n.lineno) for n in assigned for target in getattr(n.targets[0], 'elts', n.targets)]
    named = [(target.id, line) for target, line in targets if isinstance(target, ast.Name)]
    rows = []
    for name, line in named:
        value = short(getattr(package, name)) if name in package.__all__ else ''
        if not value: continue
        link = f'[`{name}`](../source/{path.stem}.html#L-{line})'
        rows.append((link, f'`{value}`', literal(said.get(line, ''), own_names(path.stem))))
    return ['## Constants {.api-entry}\n', table(('name', 'value', 'meaning'), *rows)] if rows else []

def commands(parser):
    """A command line's commands, each with the table of its arguments and options, and its examples.

    The help says the defaults, or has them added."""
    text = []
    for command in next(a for a in parser._actions if a.dest == 'command').choices.values():
        form = command._get_formatter()
        rows = []
        for a in sorted(command._actions[1:], key=lambda a: bool(a.option_strings)):  # the first is --help
            told = [form._expand_help(a)] if a.help else []
            without_default = a.nargs == 0 or a.default in (None, '', [])
            if not without_default and '(default: ' not in ''.join(told):
                told.append(f'(default: {a.default})')
            rows.append((f'`{form._format_action_invocation(a)}`', literal(' '.join(told), {})))
        text += [f'## {command.prog} {{.api-name .api-entry}}\n', literal(command.description, {}) + '\n',
                 table(('argument', 'meaning'), *rows), f'```\n{command.epilog}\n```\n']
    return text

def entry(node, doc, said, module, chapter):
    "A function or class in the API reference: its heading, its docstring and its tables."
    anchor = f'{module}.{node.name}'
    text = [f'## {node.name} {{.api-name .api-entry #{anchor}}}\n',
            f'[source](../source/{module}.html#L-{node.lineno}){{.source-link}}\n',
            literal(doc, entry_names(module, node)) + f' [In the chapter](../{chapter}#{anchor}).\n',
            parameters(node, said, module)]
    return text + members(node, said, module) if isinstance(node, ast.ClassDef) else text

def module_pages(module, chapter):
    "A module's API tables and its source with numbered lines; returns its table of names."
    path = ROOT/'robustnb'/f'{module}.py'
    package = import_module(f'robustnb.{module}')
    said = remarks(path)
    names = [('name', 'what it does')]
    own = own_names(module)
    elsewhere = [literal(f'`{name}`', own) for name in package.__all__ if home(name, own) not in ('', module)]
    text = [f'[All modules](../reference.html) · [The chapter](../{chapter}) explains and tests all this.\n',
            f'Also here: {", ".join(elsewhere)}.\n' if elsewhere else '']
    if hasattr(package, 'make_parser'): text += commands(package.make_parser())
    for node in public(module):
        doc = inspect.getdoc(getattr(package, node.name)) or ''
        text += entry(node, doc, said, module, chapter)
        first = literal(doc.split('\n')[0], entry_names(module, node), here='')
        names.append((f'[`{node.name}`](reference/{module}.html#{module}.{node.name})', first))
    text += constants(path, package, said)
    page(f'reference/{module}.md', f'robustnb.{module}', package.__doc__ or '', '\n'.join(text),
         **{'from': 'markdown-smart'})
    source = f'````{{#L .python code-line-numbers=true}}\n{path.read_text().rstrip()}\n````'
    page(f'source/{module}.md', f'{module}.py', 'Exported from its chapter: edit the notebook, not this file',
         f'[The chapter](../{chapter})\n\n{source}', search=False, toc=False)
    return [f'## [robustnb.{module}](reference/{module}.html) {{.api-entry}}\n', table(*names)]

def reference(names):
    "The API reference, its modules in the order of their numbers."
    text = []
    for name in sorted(names):
        source = '\n'.join(c.source for c in read_nb(NBS/name).cells)
        found = re.search(r'^#\| *default_exp (\w+)', source, re.M)
        if found: text += module_pages(found[1], page_of(NBS/name))
    page('reference.md', 'API reference', 'Every public function and class, by module', '\n'.join(text),
         **{'from': 'markdown-smart'})


def project_page(name):
    "A Markdown file of the top folder as a page; its links to notebooks lead to their pages."
    title, _, body = (ROOT/name).read_text().partition('\n')
    body = re.sub(r'\]\(nbs/([^)#\s]+\.ipynb)', lambda m: f']({page_of(NBS/m[1])}', body)
    page(name.lower(), title.strip('# '), '', link_names(body))


# rendering

def renamed(item, pages):
    "An entry of the sidebar with its notebooks replaced by `pages`."
    if not isinstance(item, dict): return pages.get(item, item)
    new = dict(item)
    if 'href' in item: new['href'] = renamed(item['href'], pages)
    if 'contents' in item: new['contents'] = [renamed(i, pages) for i in item['contents']]
    return new

def prepare():
    "Fill _proc/ with everything a renderer needs; returns the pages in reading order."
    shutil.rmtree(PROC, ignore_errors=True)
    order = reading_order()
    skip = shutil.ignore_patterns('*.ipynb', '.*', '_*', 'nbdev.yml', 'sidebar.yml')
    shutil.copytree(NBS, PROC, ignore=skip)
    os.environ['IN_TEST'] = '1'  # as nbdev does while it processes: nothing exports
    contents = expand(CONFIG['website']['sidebar']['contents'], order)
    number = numbers(contents)
    with fork.Pool() as pool:
        processed = pool.starmap_async(process, [(name, number.get(name, '')) for name in order])
        vega = pool.apply_async(javascript_bundle)  # one page draws with it
        reference(order)
        pages = dict(zip(order, processed.get()))
        (PROC/'vega.js').write_text(vega.get())
    for name in 'CONTRIBUTING.md', 'CHANGELOG.md': project_page(name)
    config = json.loads(json.dumps(CONFIG))
    config['website']['sidebar']['contents'] = [renamed(item, pages) for item in contents]
    config['format']['html']['include-in-header'] = 'book.html'
    (PROC/'book.html').write_text(SCRIPT)
    (PROC/'_quarto.yml').write_text(yaml.safe_dump(config, sort_keys=False))
    return pages

class Site(site.Site):
    "smalldocs' site, its pages rendered by as many processes as there are cores."
    def load_symbols(self):  # the last step before the pages
        super().load_symbols()
        with fork.Pool(initializer=setattr, initargs=(Site, 'forked', self)) as pool:
            self.rendered = dict(zip(self.pages, pool.map(Site.in_child, self.pages, chunksize=1)))

    @staticmethod
    def in_child(source):
        "What rendering one page makes of it, and what it tells the site."
        site = Site.forked
        page = site.pages[source]
        site.resources, site.broken, site.warnings = set(), [], []
        super(Site, site).render_page(page)
        del page.env['link']  # a function, for the rendering alone
        return page.html, page.env, site.resources, site.broken, site.warnings

    def render_page(self, page):
        page.html, page.env, resources, broken, warnings = self.rendered.pop(page.src)
        self.resources |= resources
        self.broken += broken
        self.warnings += warnings

def smalldocs():
    "Render _proc/ with smalldocs, formulas as MathML; returns its warnings."
    highlight.css_class = cache(highlight.css_class)  # it is asked for each of 700,000 tokens
    convert = LatexToMathML().convert_with_local_state
    def formula(kind, displaystyle):
        "How smalldocs is to render a formula of this kind."
        def render(self, tokens, i, options, env):
            text = convert(tokens[i].content.strip(), displaystyle=displaystyle)
            return f'<span class="math {kind}">{text}</span>'
        return render
    markdown.math_inline = formula('inline', False)
    markdown.math_display = formula('display', True)
    markdown.math_block = lambda *args: f'<p>{markdown.math_display(*args)}</p>\n'
    book = Site(load(PROC), quiet=True)
    book.build()
    return [w for w in book.warnings if 'html-math-method' not in w]

ALPHABETS = [('a', 'z', 0x1d44e), ('A', 'Z', 0x1d434), ('α', 'ω', 0x1d6fc), ('Α', 'Ω', 0x1d6e2)]  # where italics begin

def characters(out):
    "The characters of the formulas in a rendered book."
    texts = [t for p in out.rglob('*.html') for t in re.findall(r'<m(?:i|o|n|text)\b[^>]*>([^<]*)', p.read_text())]
    return {c for t in texts for c in unescape(t)}

def math_font(out):
    """Write math.woff: STIX Two Math cut down to the characters of the book's formulas.

    It has lower roots, and tighter fractions in lines of text."""
    chars = characters(out)
    italic = {chr(start + ord(c) - ord(first)) for c in chars for first, last, start in ALPHABETS if first <= c <= last}
    options = subset.Options(flavor='woff', layout_features=['*'], name_IDs=[0, 13, 14])
    font = subset.load_font(files('ziamath')/'fonts'/'STIXTwoMath-Regular.ttf', options)
    constants = font['MATH'].table.MathConstants
    variants = font['MATH'].table.MathVariants
    constants.FractionNumeratorShiftUp.Value = 440
    constants.FractionDenominatorShiftDown.Value = 360
    constants.RadicalRuleThickness.Value = 52
    # browsers reserve the width of the widest root for every root: make them equally wide
    root = variants.VertGlyphConstruction[variants.VertGlyphCoverage.glyphs.index('uni221A')]
    width, right = font['hmtx']['uni221A'][0], font['glyf']['uni221A'].xMax
    def squeeze(name, x, y):
        font['glyf'][name].coordinates.scale((x, y))
        font['glyf'][name].recalcBounds(font['glyf'])
        font['hmtx'][name] = width, font['glyf'][name].xMin
    for v in root.MathGlyphVariantRecord:
        squeeze(v.VariantGlyph, right/font['glyf'][v.VariantGlyph].xMax, .76)
        v.AdvanceMeasurement = round(.76*v.AdvanceMeasurement)
    parts = {part.glyph for part in root.GlyphAssembly.PartRecords}
    widest = max(font['glyf'][p].xMax for p in parts)
    for part in parts: squeeze(part, right/widest, 1)
    cut = subset.Subsetter(options)
    cut.populate(text=''.join(chars | italic) + 'ℎ√')
    cut.subset(font)
    subset.save_font(font, out/'math.woff', options)

WEB = {  # what the renderers fetch, by the ends of the files' names
    # the themes' fonts
    '.css': r'@import url\(["\']?https?:[^)]*\);?',
    # what Quarto adds to pages with tables
    '.html': r'<script[^>]*(?:\bsrc=["\']https?:[^>]*>|>define\(["\']jquery["\'].*?)</script>\n?',
}

def offline(out):
    "Take out of a rendered book what would come from the network; nothing on its pages needs it."
    for ending, pattern in WEB.items():
        for path in out.rglob(f'*{ending}'): path.write_text(re.sub(pattern, '', path.read_text()))

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=ROOT/'_docs')
    usual = 'quarto' if shutil.which('quarto') else 'smalldocs'
    parser.add_argument('--renderer', choices=['quarto', 'smalldocs'], default=usual)
    args = parser.parse_args()
    start = perf_counter()
    out = args.out.resolve()
    is_filled = out.is_dir() and any(out.iterdir())
    if is_filled and not (out/'site_libs').is_dir():
        sys.exit(f'--out: {out} holds something else than a rendered book')
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    lock = open(ROOT/'_quarto.yml')
    fcntl.flock(lock, fcntl.LOCK_EX)  # another rendering, which uses _proc/ too, waits until this process ends
    pages = prepare()
    prepared = perf_counter()
    if args.renderer == 'quarto':
        subprocess.run(['quarto', 'render', '--no-cache'], cwd=PROC, check=True)
    else:
        for warning in smalldocs(): print(warning)
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(PROC/CONFIG['project']['output-dir'], out)
    math_font(out)
    shutil.copy(PROC/'vega.js', out)
    offline(out)
    (out/'search.js').write_text('bookIndex = ' + (out/'search.json').read_text())
    times = f'{prepared - start:.0f} s for the notebooks, {perf_counter() - prepared:.0f} s for the pages'
    print(f'{len(pages)} chapters in {os.path.relpath(out)}/ ({times})')


if __name__ == '__main__': main()
