"Packaging reads settings.ini, the one place where metadata lives."
import shlex
from configparser import ConfigParser
from setuptools import find_packages, setup

ini = ConfigParser(delimiters=['='])
ini.read('settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
extras = {k.removesuffix('_requirements'): shlex.split(v) for k, v in cfg.items() if k.endswith('_requirements')}

setup(
    version=cfg['version'],
    description=cfg['description'],
    keywords=cfg['keywords'].split(),
    url=cfg['git_url'],
    author=cfg['author'],
    author_email=cfg['author_email'],
    license='Apache-2.0',
    classifiers=[f"Natural Language :: {cfg['language']}"],
    project_urls={'Source': cfg['git_url']},
    packages=find_packages(include=[cfg['lib_path'] + '*']),
    include_package_data=True,
    package_data={cfg['lib_path']: ['static/*']},
    zip_safe=False,
    install_requires=shlex.split(cfg['requirements']),
    extras_require=extras,
    long_description=open('README.md', encoding='utf-8').read(),
    long_description_content_type='text/markdown',
    entry_points={'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
)
