"The interval over seeds and images covers the truth, in a simulation with another seed than the published one."
import pytest

from robustnb import results

CASES = ['images', 'seeds', 'both', 'perfect', 'unequal']


@pytest.mark.slow
def test_the_interval_covers(tmp_path, robustnb):
    sweep = f'experiment = "coverage"\n[[grid]]\ncase = {CASES}\nrepetitions = 4000\nseed = 1\n'
    (tmp_path/'again.toml').write_text(sweep)
    out, err = robustnb('sweep', 'again.toml', '--workers', '1').communicate()
    assert '5 done now' in out, err
    table = results.table(results.find(tmp_path/'runs'))
    assert (table.seed == 1).all()
    coverage = table[table.metric == 'coverage'].set_index(['method', 'case', 'n_seeds']).value
    ours = coverage.xs('estimate').unstack('case')
    assert sorted(ours) == sorted(CASES) and ours.loc[3:].min(axis=None) >= .93
    bootstrap = coverage.xs('bootstrap').unstack('case').seeds
    assert bootstrap.loc[[2, 3, 5]].max() < .9
