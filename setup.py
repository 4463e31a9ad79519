"Everything about the package is read from settings.ini, as nbdev 2 does it; a build takes the experiments and sweep files along."
from configparser import ConfigParser
from pathlib import Path

import setuptools
from setuptools.command.build_py import build_py

root = Path(__file__).resolve().parent
parser = ConfigParser(delimiters=['='])
parser.read(root/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']


class WithExperiments(build_py):
    "Copies experiments, sweep files and results into the package that is built, so that an installed one can run and show them."
    def run(self):
        super().run()
        if self.editable_mode: return
        taken = ('nbs/experiments', '*.ipynb'), ('sweeps', '*.toml'), ('results', '*/*.json'), ('results', 'families.toml')
        for folder, kind in taken:
            for path in (root/folder).glob(kind):
                target = Path(self.build_lib)/cfg['lib_name']/Path(folder).name/path.relative_to(root/folder)
                self.mkpath(str(target.parent))
                self.copy_file(str(path), str(target))


setuptools.setup(
    name=cfg['lib_name'], version=cfg['version'], license='Apache-2.0',
    description=cfg['description'], keywords=cfg['keywords'], author=cfg['author'], author_email=cfg['author_email'],
    url=cfg['git_url'], long_description=(root/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research',
                 'Natural Language :: English', *(f'Programming Language :: Python :: 3.{v}' for v in (11, 12, 13)),
                 'Operating System :: POSIX :: Linux', 'Typing :: Typed'],
    packages=setuptools.find_packages(include=['robustnb', 'robustnb.*']), include_package_data=True,
    package_data={'robustnb': ['py.typed']}, cmdclass={'build_py': WithExperiments},
    python_requires=f">={cfg['min_python']}", install_requires=cfg['requirements'].split(),
    extras_require={'dev': cfg['dev_requirements'].split()}, zip_safe=False,
    entry_points={'console_scripts': cfg.get('console_scripts', '').split(),
                  'papermill.engine': ['warm=robustnb.warm:WarmEngine'],
                  'nbdev': [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"]})
