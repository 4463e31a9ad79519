"Move results and sweep files of schema 1 to schema 2: conditions instead of seven parameters, runs named by their identity. Run once: python tools/migrate.py results sweeps"
import json
import sys
import tomllib
from functools import lru_cache
from pathlib import Path

from robustnb.conditions import tables
from robustnb.core import read_json, shipped, write_json
from robustnb.results import upgraded
from robustnb.sweep import identity, parameters, run_id

GONE = dict(  # parameters of schema 1 that are conditions now, with their defaults
    fig01_robustness=dict(variances=[.01, .05, .1], attack_version='quick', n_attack=50, eps_linf=[.05, .1], eps_l2=[.5],
                          n_standard=0, standard_linf=.1, standard_l2=.5, band_var=0.),
    fig02_irrelevant=dict(variances=[], n_attack=0, eps_linf=.03, eps_l2=.5),
    fig04_bands=dict(noise_var=.1, n_bands=10, noise_draws=3))


def attacks(attack, radii, n):
    "Tables of one attack at {norm: radii}."
    return [dict(kind='attack', attack=attack, norm=norm, eps=eps, n=n) for norm, eps in radii.items() if eps != []]


def fig01(old):
    "Conditions of a run of Figure 1."
    found = [dict(kind='gaussian', var=old['variances'])] if old['variances'] else []
    name = dict(quick='quick', standard='autoattack').get(old['attack_version'])
    if name: found += attacks(name, dict(linf=old['eps_linf'], l2=old['eps_l2']), old['n_attack'])
    if old['n_standard']:
        found += attacks('autoattack', dict(linf=old['standard_linf'], l2=old['standard_l2']), old['n_standard'])
    return found + ([dict(kind='band', var=old['band_var'])] if old['band_var'] else [])


def fig02(old):
    "Conditions of a run of Figure 2."
    found = [dict(kind='gaussian', var=old['variances'])] if old['variances'] else []
    return found + (attacks('quick', dict(linf=old['eps_linf'], l2=old['eps_l2']), old['n_attack']) if old['n_attack'] else [])


def fig04(old):
    "Conditions of a run of Figure 4."
    bands = {} if old['n_bands'] == 10 else dict(n_bands=old['n_bands'])
    return [dict(kind='band', var=old['noise_var'], **bands, draws=old['noise_draws'])]


CONDITIONS = dict(fig01_robustness=fig01, fig02_irrelevant=fig02, fig04_bands=fig04)


def conditions(experiment, given):
    "Tables of conditions that old parameters ask for."
    return CONDITIONS[experiment]({**GONE[experiment], **given})


@lru_cache
def accepted(experiment): return parameters(shipped('experiments')/f'{experiment}.ipynb')


def config_of(experiment, old):
    "The config in today's parameters; one that came later has the value with which it was introduced."
    gone = GONE.get(experiment, {})
    new = {k: v for k, v in old.items() if k not in gone}
    before_attacks = dict(attack_version='none')  # the oldest runs do not have the parameter
    if gone: new['conditions'] = tables(conditions(experiment, {**before_attacks, **{k: v for k, v in old.items() if k in gone}}))
    return {**{k: p.introduced for k, p in accepted(experiment).items()}, **new}


def draws_of(config):
    "How often noise was drawn in each band."
    return next((c['draws'] for c in config.get('conditions', []) if c['kind'] == 'band' and 'draws' in c), 1)


def moved(path):
    "The result of schema 1 in `path` as one of schema 2, and its id."
    old = upgraded(read_json(path))
    experiment, config = old['experiment'], config_of(old['experiment'], old['config'])
    draws = draws_of(config)
    rows = [{**r, 'draws': draws} if r.get('kind') == 'band' and draws > 1 else r for r in old['metrics']]
    who = identity(config, accepted(experiment))
    new = dict(old, config=config, identity=who, protocol=1, outside={}, source='unknown', aliases=[path.stem], metrics=rows)
    return new, run_id(experiment, who, 1, {})


def move_results(folder):
    "Replace each result of schema 1 by one of schema 2 under its new name."
    for path in sorted(Path(folder).rglob('*.json')):
        if read_json(path).get('schema') != 1: continue
        new, name = moved(path)
        target = path.with_name(f'{name}.json')
        assert not target.exists(), f'{path}: {target} is there'
        write_json(target, new)
        path.unlink()


def inline(value):
    "TOML of a value inside of an inline table."
    if isinstance(value, list): return f'[{", ".join(map(inline, value))}]'
    if isinstance(value, dict): return f'{{{", ".join(f"{k} = {inline(v)}" for k, v in value.items())}}}'
    return json.dumps(value)


def move_sweep(path):
    "Rewrite one sweep file: the old keys of a section become one list of conditions."
    text = path.read_text(encoding='utf-8')
    spec = tomllib.loads(text)
    gone = GONE.get(spec['experiment'], {})
    fixed = {k: v for k, v in spec.get('fixed', {}).items() if k in gone}
    grids = [{k: one(v, gone[k]) for k, v in g.items() if k in gone} for g in spec.get('grid', [])]
    if not fixed and not any(grids): return
    per_grid, lines, section, grid = any(grids), [], None, -1
    for line in text.splitlines():
        key = line.partition('=')[0].strip()
        if line.startswith('['): section = line.strip()
        if section == '[[grid]]' and line.startswith('['): grid, told = grid + 1, False
        if section == '[fixed]' and line.startswith('['): told = False
        if key not in gone or section is None:
            lines.append(line)
            continue
        here = None if told else grids[grid] if section == '[[grid]]' else None if per_grid else {}
        if here is not None: lines.append(f'conditions = {listed(conditions(spec["experiment"], {**fixed, **here}))}')
        told = told or here is not None
    path.write_text('\n'.join(lines) + '\n', encoding='utf-8')


def one(value, default):
    "The only value of an axis."
    several = isinstance(value, list) and (not isinstance(default, list) or isinstance(value[0], list))
    if several and len(value) > 1: raise ValueError(f'an axis of {value}')
    return value[0] if several else value


def listed(found):
    "A list of tables, one a line."
    return '[]' if not found else '[\n' + ''.join(f'    {inline(c)},\n' for c in found) + ']'


if __name__ == '__main__':
    results, sweeps = sys.argv[1:]
    for path in sorted(Path(sweeps).glob('*.toml')): move_sweep(path)
    move_results(results)
