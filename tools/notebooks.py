"""Keep the notebooks executed, clean and in step with README.

    python tools/notebooks.py execute [NB ...]   run notebooks in place, clean them (default: whose code changed since)
    python tools/notebooks.py check              fail if one is stale, has errors, leaks a local path or is too large
    python tools/notebooks.py readme [--check]   write README.md from nbs/index.ipynb, or fail if it differs
"""
import argparse, ast, asyncio, base64, hashlib, os, posixpath, re, subprocess, sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT/'nbs'
SKIP = re.compile(r'^#\|\s*(eval:\s*false|cuda)\b', re.M)
LOCAL_PATH = re.compile(r'(?<![\w.])/(root|home|work|tmp|Users|private|opt|data)/[\w.-]+')
MAX_BYTES = 1_500_000


def notebooks():
    "Every notebook of the book, in reading order."
    hidden = lambda path: any(part.startswith(('.', '_')) for part in path.relative_to(NBS).parts)
    return sorted(p for p in NBS.rglob('*.ipynb') if not hidden(p))

def code_hash(nb):
    "Hash of all code cells: a notebook is stale when this differs from the hash stored when it was run."
    code = '\0'.join(c.source for c in nb.cells if c.cell_type == 'code')
    return hashlib.sha256(code.encode()).hexdigest()[:16]

def is_stale(path):
    nb = nbformat.read(path, 4)
    return nb.metadata.get('executed') != code_hash(nb)


class Client(NotebookClient):
    "Skips the cells that cannot run here: `#| eval: false` and `#| cuda`."
    async def async_execute_cell(self, cell, cell_index, **kwargs):
        if cell.cell_type == 'code' and SKIP.search(cell.source): return cell
        return await super().async_execute_cell(cell, cell_index, **kwargs)


def execute(path):
    "Run one notebook in place; drop stderr (progress bars, warnings naming local paths) and stamp the code's hash."
    nb = nbformat.read(path, 4)
    for cell in nb.cells:
        if cell.cell_type == 'code':
            cell.outputs = []
            cell.execution_count = None
    resources = {'metadata': {'path': str(path.parent)}}
    client = Client(nb, timeout=None, startup_timeout=600, kernel_name='python3', resources=resources)
    asyncio.run(client.async_execute())
    for cell in nb.cells:
        if cell.cell_type != 'code': continue
        cell.outputs = [o for o in cell.outputs if o.get('name') != 'stderr']
    nb.metadata['executed'] = code_hash(nb)
    nbformat.write(nb, path)
    subprocess.run(['nbdev_clean', '--fname', str(path)], check=True, cwd=ROOT)


def mixes_imports(cell):
    """Does a cell import and do something else?

    nbdev runs every cell that imports when it makes the docs, so such a cell would run alone."""
    if cell.cell_type != 'code' or re.search(r'^#\|\s*export', cell.source, re.M): return False
    body = ast.parse(cell.source).body
    imports = [node for part in body for node in ast.walk(part) if isinstance(node, (ast.Import, ast.ImportFrom))]
    return bool(imports) and not all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body)

def problems(path):
    "What is wrong with one committed notebook, as sentences."
    nb = nbformat.read(path, 4)
    name = path.relative_to(ROOT)
    size = path.stat().st_size
    if nb.metadata.get('executed') != code_hash(nb):
        yield f'{name}: code changed since it was executed (make execute)'
    if size > MAX_BYTES: yield f'{name}: {size/1e6:.1f} MB, more than {MAX_BYTES/1e6} MB'
    for i, cell in enumerate(nb.cells):
        outputs = cell.get('outputs', [])
        if any(o.output_type == 'error' for o in outputs): yield f'{name}: cell {i} stored an error'
        if mixes_imports(cell):
            yield f'{name}: cell {i} mixes imports with other code; give the imports a cell of their own'
        if found := LOCAL_PATH.search(cell.source + str(outputs)):
            yield f'{name}: cell {i} names a local path, {found[0]}'


def option(cell, name):
    "Value of a `#| name: value` line of a code cell, '' without one."
    found = re.search(rf'^#\|\s*{name}:\s*(.*?)\s*$', cell.source, re.M)
    return found[1].strip('"\'') if found else ''

def cell_markdown(cell, images):
    "One cell of the home page as Markdown, links relative to the top folder; PNG outputs are collected in `images`."
    if cell.cell_type == 'markdown':
        from_top = lambda m: posixpath.normpath(f'nbs/{m[1]}')
        return re.sub(r'(?<=\]\()(?![\w+]+:|#|/)([^)\s]+)', from_top, cell.source)
    if cell.cell_type != 'code' or re.search(r'^#\|\s*hide', cell.source, re.M): return ''
    source = '\n'.join(l for l in cell.source.splitlines() if not l.startswith('#|'))
    parts = [] if option(cell, 'echo') == 'false' else [f'```python\n{source}\n```']
    for output in cell.outputs:
        data = output.get('data', {})
        if 'image/png' in data:
            name = f'figures/home-{len(images)}.png'
            images[name] = base64.b64decode(data['image/png'])
            parts.append(f'![{option(cell, "fig-alt")}](nbs/{name})')
            if caption := option(cell, 'fig-cap'): parts.append(f'*{caption}*')
        elif 'text/markdown' in data: parts.append(data['text/markdown'])
        elif text := data.get('text/plain', output.get('text', '')):
            parts.append('\n'.join(f'    {l}' for l in text.splitlines()))
    return '\n\n'.join(parts)

def readme():
    "README.md and its images, made from the home page as it was executed."
    images = {}
    cells = nbformat.read(NBS/'index.ipynb', 4).cells
    text = '\n\n'.join(t.strip() for c in cells if (t := cell_markdown(c, images)).strip())
    return '<!-- made from nbs/index.ipynb by `make readme`; edit the notebook -->\n\n' + text + '\n', images


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('action', choices=['execute', 'check', 'readme'])
    parser.add_argument('notebooks', nargs='*', type=Path)
    parser.add_argument('--check', action='store_true')
    args = parser.parse_args()
    os.environ['PATH'] = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    if args.action == 'execute':
        for path in [p.resolve() for p in args.notebooks] or [p for p in notebooks() if is_stale(p)]:
            print('executing', path.relative_to(ROOT), flush=True)
            execute(path)
    elif args.action == 'check':
        found = [p for path in notebooks() for p in problems(path)]
        print('\n'.join(found) or f'{len(notebooks())} notebooks are executed and clean')
        sys.exit(bool(found))
    else:
        text, images = readme()
        files = {ROOT/'README.md': text.encode(), **{NBS/k: v for k, v in images.items()}}
        if args.check:
            wrong = [str(p.relative_to(ROOT)) for p, b in files.items() if not p.exists() or p.read_bytes() != b]
            sys.exit(f'differs from nbs/index.ipynb (make readme): {", ".join(wrong)}' if wrong else 0)
        for path, content in files.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)


if __name__ == '__main__': main()
