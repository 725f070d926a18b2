# The two commands of the README, `make figures` and `make test`, and the environment that both need.
SHELL := /bin/bash
.NOTPARALLEL:
.DEFAULT_GOAL := help
figures_goal = all
GOALS = help install demo explorer site slides figures archive paper-full seeds baselines many-policies ablations steering minutes test in-step notebooks units
SETTINGS = TASKS SCALE CORES PYTHON
.PHONY: $(GOALS)

# A misspelt setting would quietly be another run.
given := $(foreach v,$(.VARIABLES),$(if $(filter command,$(origin $v)),$v))
unknown := $(filter-out $(SETTINGS) SHELL MAKE% -%,$(given))
$(if $(unknown),$(error setting $(unknown) is unknown: expected one of $(SETTINGS)))
unknown := $(filter-out $(GOALS) .venv/.installed,$(MAKECMDGOALS))
$(if $(unknown),$(error goal $(unknown) is unknown: expected one of $(GOALS)))

TASKS ?= walker2d
SCALE ?= laptop
CORES ?= 2
ifndef PYTHON
PYTHON := $(shell command -v python3.11 || command -v python3)
endif
STAMP := .venv/.installed
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/artifacts/jax_cache

help:
	@echo 'make figures   train, generate, roll out, draw: TASKS="walker2d ..." SCALE=laptop|smoke|night|paper CORES=2'
	@echo 'make archive   search an archive from nothing: SCALE=night (the paper'"'"'s grid, 8 hours on two cores), SCALE=paper (GPUs)'
	@echo 'make paper-full  the same models at the size of the paper, trained as long (351,000 steps): many hours on two cores, or a GPU, for a row of the tables'
	@echo 'make baselines what simpler methods do with as many numbers: an hour more for their rows of the tables'
	@echo 'make seeds     further seeds, for the standard deviations of the tables: half an hour more'
	@echo 'make many-policies  damaged robots, half requests, the best of n draws: an hour more, with four seeds'
	@echo 'make steering  teach words, and count how many prompts are obeyed; sequences with a second seed: a quarter of an hour more'
	@echo 'make ablations one hyper-parameter at a time, two seeds each: an hour more'
	@echo 'make minutes   note how long steps took on this computer and how many policies it made in a second: only worth it if it had nothing else to do'
	@echo 'make demo      JupyterLab at the demo chapter: choose a robot, click the map, watch it walk'
	@echo 'make explorer  the same as a static page with recorded walks, site/explorer/: some minutes'
	@echo 'make site      all chapters as a searchable book, site/index.html: two minutes; it links to the explorer'
	@echo 'make slides    six chapters as slides for a lecture, site/slides/index.html; docs/teaching.md says how'
	@echo 'make test      notebooks and library in step, every notebook at smoke scale, pytest'
	@echo 'make install   only the virtual environment, which the others make when it is needed'

install: $(STAMP)

$(STAMP): requirements.lock settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python %d.%d is too old: install python3.11 and python3.11-venv, or name a newer one with PYTHON=..." % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	python -m pip install --disable-pip-version-check -r requirements.lock
	python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)
	jupyter lab nbs/01_demo.ipynb

explorer: $(STAMP)
	python -c 'from policydiffusion.explore import write_page; print(write_page("site/explorer"))'

# The book needs none of the library's packages, so it has a small environment of its own.
.venv-site/.installed: docs/book/requirements.txt
	$(PYTHON) -m venv .venv-site
	.venv-site/bin/python -m pip install --disable-pip-version-check -r $<
	@touch $@

site: .venv-site/.installed
	.venv-site/bin/sphinx-build -q -W --keep-going -c docs/book -d build/doctrees . site
	@echo 'open site/index.html'

slides: $(STAMP)
	python docs/slides/slides.py nbs site/slides

figures: $(STAMP)
	@case '$(CORES)' in ''|0*|*[!0-9]*) echo 'error: CORES is $(CORES): expected a whole number from 1' >&2; exit 1;; esac; \
	exec snakemake $(figures_goal) --cores $(CORES) --config scale='$(SCALE)' tasks='$(TASKS)'

paper-full: figures_goal = paper_full
baselines: figures_goal = with_baselines
many-policies: figures_goal = with_many_policies
ablations: figures_goal = with_ablations
steering: figures_goal = with_steering
seeds: figures_goal = more_seeds
archive: figures_goal = $(TASKS:%=artifacts/$(SCALE)/%/archive.safetensors)
minutes: figures_goal = minutes
paper-full seeds baselines many-policies ablations steering minutes archive: figures

test: in-step notebooks units

in-step: $(STAMP)
	@echo '== 1/3 notebooks and library in step =='; tests/in_step.sh && echo "== $$SECONDS s =="

# Tests compile far more than they roll out: XLA's older way to build loops compiles twice as fast,
# into code half as fast; and a compilation of .2 s is worth keeping for the next process.
notebooks units: export XLA_FLAGS = --xla_cpu_use_fusion_emitters=false
notebooks units: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = .2

# One thread a worker; and no test may lean on what an earlier smoke run left behind.
notebooks: $(STAMP)
	@echo '== 2/3 every notebook at smoke scale =='; rm -rf artifacts/smoke; \
	OMP_NUM_THREADS=1 TQDM_DISABLE=1 nbdev_test --n_workers 2 --do_print --timing && echo "== $$SECONDS s =="

# Two workers, each with whole files, so that a file's fixtures are made once; the longest first.
units: $(STAMP)
	@echo '== 3/3 pytest =='; \
	OMP_NUM_THREADS=1 TQDM_DISABLE=1 python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations 20 && echo "== $$SECONDS s =="
