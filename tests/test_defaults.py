"One meaning, one default: of `batch_size` and of `progress`, in all that is public."
import ast, importlib, inspect, pkgutil
from collections import Counter

import robustnb
from conftest import ROOT
from robustnb.threat import BATCH

OTHERS = {
    'train.Config': 'of a step of training, which changes the result',
    'kernels.tangent_kernel': 'of Jacobians, which hold all parameters for each logit', 'kernels.by_band': 'likewise'}


def public():
    "(module.name or module.class.method, what it is) of all public functions and classes, and of their methods."
    for found in pkgutil.iter_modules(robustnb.__path__):
        module = importlib.import_module(f'robustnb.{found.name}')
        for name in getattr(module, '__all__', ()):
            made = getattr(module, name)
            if not callable(made) or getattr(made, '__module__', '') != module.__name__: continue
            yield f'{found.name}.{name}', made
            if inspect.isclass(made): yield from methods(f'{found.name}.{name}', made)


def methods(place, cls):
    for name, made in vars(cls).items():
        made = getattr(made, '__func__', made)
        if inspect.isfunction(made) and not name.startswith('_'): yield f'{place}.{name}', made


def defaults(parameter, things):
    "{place: default} where a function has that parameter, with a default."
    found = {}
    for place, made in things:
        try: given = inspect.signature(made).parameters.get(parameter)
        except ValueError: continue
        if given is None or given.default is inspect.Parameter.empty: continue
        found[place] = given.default
    return found


def test_batches_are_of_two_sizes():
    found = defaults('batch_size', public())
    others = {place: size for place, size in found.items() if size not in (512, BATCH)}
    assert not others.keys() - OTHERS.keys(), others
    assert OTHERS.keys() <= found.keys(), 'no longer there'
    of_attacks = {place for place, size in found.items() if size == BATCH} - OTHERS.keys()
    homes = {place.partition('.')[0] for place in of_attacks}
    assert homes == {'attacks', 'certify', 'fab', 'oracle', 'pgd', 'square'}, 'what is no attack and no proof has 512'


def test_nothing_shows_bars_unless_asked():
    found = defaults('progress', public())
    assert {'attacks.autoattack', 'audit.audit', 'sweep.run_sweep', 'train.fit'} <= found.keys()
    assert set(found.values()) == {False}, found


def test_the_command_takes_the_same_batches():
    from robustnb.cli import make_parser
    asked = make_parser().parse_args('audit net.pt2 --images digits'.split())
    assert asked.batch_size == 512


def test_a_third_default_is_seen():
    def one(batch_size=512, progress=True): pass
    class Two:
        @staticmethod
        def judge(x, batch_size=64): pass
    things = [('one', one), *methods('two', Two)]
    assert defaults('batch_size', things) == {'one': 512, 'two.judge': 64}
    assert defaults('progress', things) == {'one': True}


def test_no_name_is_defined_twice_in_a_module():
    "The later one would silently take the place of the earlier."
    for path in sorted((ROOT/'robustnb').glob('*.py')):
        defined = Counter()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)): defined[node.name] += 1
            targets = node.targets if isinstance(node, ast.Assign) else []
            defined.update(target.id for target in targets if isinstance(target, ast.Name))
        twice = [name for name, times in defined.items() if times > 1 and name != '_']
        assert not twice, (path.name, twice)
