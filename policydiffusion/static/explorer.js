/* The explorer, part 6 of 6: the whole page. */
'use strict';

// ---- the whole

function numbersTable(robot, answer) {
  const range = xs =>
    xs.length === 1
      ? share(xs[0])
      : `${share(mean(xs))} (${share(Math.min(...xs))} to ${share(Math.max(...xs))})`;
  const films = answer.generated,
    row = (name, ...cells) =>
      element(
        'tr',
        {},
        element('th', {scope: 'row'}, name),
        ...cells.map(c => element('td', {}, c)),
      );
  const asked = m => (answer.asked ? share(answer.asked[m]) : 'in words');
  const rows = robot.measures.map((name, m) =>
    row(name, asked(m), share(answer.elite.measures[m]), range(films.map(f => f.measures[m]))),
  );
  if (answer.asked)
    rows.push(
      row(
        'distance from what was asked',
        '',
        share(distance(answer.asked, answer.elite.measures)),
        range(films.map(f => distance(answer.asked, f.measures))),
      ),
    );
  rows.push(
    row('reward per step', '', share(answer.elite.reward), range(films.map(f => f.reward))),
  );
  rows.push(
    row(
      'seconds on its feet',
      '',
      answer.elite.seconds.toFixed(1),
      mean(films.map(f => f.seconds)).toFixed(1),
    ),
  );
  const head = element(
    'tr',
    {},
    ...['', 'asked', 'archive', 'generated'].map(h => element('th', {scope: 'col'}, h)),
  );
  return element(
    'table',
    {class: 'pdx-numbers'},
    element('thead', {}, head),
    element('tbody', {}, ...rows),
  );
}

function told(film, asked) {
  const fell = film.fell
    ? `falls after ${film.seconds.toFixed(1)} s`
    : `stays up for all ${film.seconds.toFixed(0)} s`;
  return asked ? `${fell}, misses the request by ${share(distance(asked, film.measures))}` : fell;
}

function summary(answer) {
  // of what is shown, which may be fewer draws than were recorded
  const {asked, elite, generated} = answer,
    miss = film => distance(asked, film.measures);
  const who =
    generated.length === 1 ? 'the generated policy' : `${generated.length} generated policies`;
  return (
    `Asked for ${asked.map(share).join(', ')}: ` +
    `the nearest policy of the archive misses it by ${share(miss(elite))}, ` +
    `${who} by ${share(mean(generated.map(miss)))}.`
  );
}

function toldTogether(films, asked) {
  if (films.length === 1) return told(films[0], asked);
  const up = films.filter(f => !f.fell).length;
  const miss = asked
    ? `, miss the request by ${share(mean(films.map(f => distance(asked, f.measures))))} on average`
    : '';
  return `${up} of ${films.length} stay up${miss}`;
}

class Explorer {
  constructor(root, source) {
    this.source = source;
    this.seed = 0;
    this.n = 1;
    this.clock = 0;
    this.turn = 0;
    this.listeners = [];
    this.map = new BehaviourMap(
      at => this.ask(at),
      at => this.moved(at),
    );
    this.sides = [
      new Side('Nearest policy of the archive', ELITE),
      new Side('Generated policy', DRAWN),
    ];
    this.status = element('p', {class: 'pdx-status', role: 'status', 'aria-live': 'polite'});
    this.numbers = element('div', {class: 'pdx-table'});
    this.here = element('p', {class: 'pdx-here'});
    this.others = element('div', {class: 'pdx-others'});
    // JupyterLab would take arrow keys and Enter for its own
    this.node = element(
      'div',
      {class: 'pdx', 'data-lm-suppress-shortcuts': 'true'},
      this.robotBar(),
      this.panes(),
    );
    root.append(this.node);
    this.playing = !matchMedia('(prefers-reduced-motion: reduce)').matches;
    this.listen(matchMedia('(prefers-color-scheme: dark)'), 'change', () => this.restyle());
    this.watch(new ResizeObserver(() => this.map.draw()));
    this.watch(
      new IntersectionObserver(seen => {
        this.visible = seen.at(-1).isIntersecting;
      }),
    );
    this.labelPlay();
    this.frame = requestAnimationFrame(now => this.tick(now));
    this.choose(source.first || source.robots[0].task);
  }

  watch(observer) {
    observer.observe(this.node);
    this.listeners.push(() => observer.disconnect());
  }

  listen(target, name, what) {
    target.addEventListener(name, what);
    this.listeners.push(() => target.removeEventListener(name, what));
  }

  robotBar() {
    this.robotButtons = this.source.robots.map(({task, title}) =>
      element(
        'button',
        {type: 'button', 'data-task': task, onclick: () => this.choose(task)},
        title,
      ),
    );
    return element(
      'div',
      {class: 'pdx-robots', role: 'group', 'aria-label': 'Robot'},
      ...this.robotButtons,
    );
  }

  panes() {
    this.count = element('select', {
      'aria-label': 'Policies to generate',
      onchange: e => {
        this.n = +e.target.value;
        this.repeat?.();
      },
    });
    this.countLabel = element('label', {}, 'generate ', this.count);
    this.again = element(
      'button',
      {
        type: 'button',
        onclick: () => {
          this.seed++;
          this.repeat?.();
        },
      },
      'draw again',
    );
    this.play = element('button', {
      type: 'button',
      onclick: () => {
        this.playing = !this.playing;
        this.labelPlay();
      },
    });
    this.buttons = element('div', {class: 'pdx-buttons'}, this.countLabel, this.again, this.play);
    const legend = element(
      'p',
      {class: 'pdx-legend'},
      '✕ asked  ',
      element('b', {style: `color:${ELITE}`}, '■'),
      ' elite did  ',
      element('b', {style: `color:${DRAWN}`}, '●'),
      ' generated did',
    );
    this.bar = element('p', {class: 'pdx-colours'});
    const left = element(
      'div',
      {class: 'pdx-left'},
      this.map.canvas,
      legend,
      this.bar,
      this.here,
      this.others,
      this.buttons,
      this.sayBox(),
    );
    const right = element(
      'div',
      {class: 'pdx-right'},
      element('div', {class: 'pdx-sides'}, ...this.sides.map(s => s.node)),
      this.status,
      this.numbers,
    );
    return element('div', {class: 'pdx-panes'}, left, right);
  }

  sayBox() {
    this.words = element('input', {
      type: 'text',
      maxlength: 200,
      'aria-label': 'Ask in words',
      autocomplete: 'off',
    });
    this.known = element('div', {
      class: 'pdx-known',
      role: 'group',
      'aria-label': 'Sentences to try',
    });
    this.sayForm = element(
      'form',
      {
        class: 'pdx-say',
        onsubmit: e => {
          e.preventDefault();
          this.say(this.words.value);
        },
      },
      this.words,
      element('button', {type: 'submit'}, 'say it'),
      this.known,
    );
    return this.sayForm;
  }

  labelPlay() {
    this.play.textContent = this.playing ? 'pause' : 'play';
    this.play.setAttribute('aria-pressed', String(!this.playing));
  }

  style() {
    const css = getComputedStyle(this.node),
      read = name => css.getPropertyValue(`--pdx-${name}`).trim();
    return {sky: read('sky'), floor: read('floor'), tile: read('tile')};
  }

  restyle() {
    this.sides.forEach(s => s.stage?.restyle(this.style()));
    this.map.draw();
  }

  async choose(task) {
    this.robotButtons.forEach(b => b.setAttribute('aria-pressed', String(b.dataset.task === task)));
    await this.request(`Opening ${task} ...`, async () => {
      const robot = await this.source.robot(task);
      return () => {
        this.robot = robot;
        this.map.open(robot);
        this.sides.forEach(s => s.open(robot, this.style()));
        this.fill(robot);
        this.map.draw();
        this.moved(this.map.at, false);
        return this.ask(this.map.at);
      };
    });
  }

  fill(robot) {
    this.count.replaceChildren(
      ...robot.draws.map(n =>
        element('option', {value: n}, n === 1 ? '1 policy' : `${n} policies`),
      ),
    );
    this.count.value = this.n = robot.draws.includes(this.n) ? this.n : 1;
    this.countLabel.hidden = robot.draws.length < 2;
    this.again.hidden = Boolean(this.source.recorded);
    this.sayForm.hidden = !robot.sentences;
    this.words.placeholder = robot.sentences ? robot.sentences[0] : '';
    this.words.value = '';
    this.known.replaceChildren(
      ...(robot.sentences || []).map(text =>
        element(
          'button',
          {
            type: 'button',
            onclick: () => {
              this.words.value = text;
              this.say(text);
            },
          },
          text,
        ),
      ),
    );
    this.bar.replaceChildren(
      `reward of an episode: ${Math.round(robot.range[0])} `,
      element('span', {
        class: 'pdx-ramp',
        style: `background:linear-gradient(90deg,${VIRIDIS.join()})`,
      }),
      ` ${Math.round(robot.range[1])}`,
    );
    this.fillOthers(robot);
  }

  fillOthers(robot) {
    // more than two measures: which two the map shows, and a slider for each of the others
    const {map} = this,
      names = robot.measures;
    if (names.length < 3) return this.others.replaceChildren();
    const pick = axis =>
      element(
        'label',
        {},
        axis ? 'up ' : 'right ',
        element(
          'select',
          {
            'aria-label': axis ? 'Measure upwards' : 'Measure to the right',
            onchange: e => {
              const was = map.axes[axis],
                now = +e.target.value;
              if (map.axes[1 - axis] === now) map.axes[1 - axis] = was;
              map.axes[axis] = now;
              this.fillOthers(robot);
              map.draw();
            },
          },
          ...names.map((name, m) =>
            element('option', {value: m, selected: map.axes[axis] === m}, name),
          ),
        ),
      );
    const sliders = names.map((name, m) =>
      map.axes.includes(m)
        ? null
        : element(
            'label',
            {class: 'pdx-slider'},
            `${name} `,
            element('input', {
              type: 'range',
              min: 0,
              max: 1,
              step: 0.01,
              value: map.at[m],
              'aria-label': name,
              'data-measure': m,
              oninput: e => {
                map.at[m] = +e.target.value;
                map.draw();
                this.moved(map.at);
              },
              onchange: () => this.ask(map.at),
            }),
          ),
    );
    this.others.replaceChildren(element('div', {}, pick(0), pick(1)), ...sliders.filter(Boolean));
  }

  moved(at, byHand = true) {
    if (byHand) this.map.moved = true;
    const reward = this.map.rewardHere();
    this.here.textContent =
      `${this.robot.measures.map((name, m) => `${name} ${share(at[m])}`).join(', ')}: ` +
      (reward === null
        ? 'the archive has no policy in this cell'
        : `the archive's elite earns ${Math.round(reward)}`);
    this.map.canvas.setAttribute('aria-description', this.here.textContent);
  }

  ask(at) {
    const task = this.robot.task,
      request = {measures: [...at], n: this.n, seed: this.seed};
    return this.request('Drawing a policy and letting it walk ...', () =>
      this.answered(this.source.ask(task, request), () => this.ask(this.map.at)),
    );
  }

  say(text) {
    if (!text.trim()) {
      this.status.textContent = 'Type a sentence first, or choose one below.';
      return undefined;
    }
    const task = this.robot.task,
      request = {text, n: this.n, seed: this.seed};
    return this.request(`Looking for a policy that obeys "${text}" ...`, () =>
      this.answered(this.source.say(task, request), () => this.say(text)),
    );
  }

  async answered(promise, repeat) {
    const answer = await promise;
    answer.elite = await readFilm(answer.elite);
    answer.generated = await Promise.all(answer.generated.map(readFilm));
    return () => {
      this.repeat = repeat;
      this.show(answer);
    };
  }

  async request(waiting, work) {
    // only the latest request may change the page
    const turn = ++this.turn,
      started = performance.now();
    this.status.textContent = waiting;
    this.node.setAttribute('aria-busy', 'true');
    try {
      const finish = await work();
      if (turn !== this.turn) return;
      this.node.dataset.wait = Math.round(performance.now() - started);
      await finish();
    } catch (error) {
      if (turn === this.turn) this.status.textContent = error.message || String(error);
    }
    if (turn === this.turn) this.node.setAttribute('aria-busy', 'false');
  }

  show(answer) {
    this.map.answer = answer;
    this.map.moved = false;
    if (answer.asked) {
      this.map.at = [...answer.asked];
      this.fillOthers(this.robot);
    }
    this.map.draw();
    this.moved(this.map.at, false);
    this.sides[0].show([answer.elite], told(answer.elite, answer.asked));
    this.sides[1].show(answer.generated, toldTogether(answer.generated, answer.asked));
    this.numbers.replaceChildren(numbersTable(this.robot, answer));
    this.films = [answer.elite, ...answer.generated];
    this.span = Math.max(...this.films.map(duration), 0.5);
    this.clock = 0;
    this.fresh = true;
    this.status.textContent = answer.asked ? summary(answer) : answer.note;
    this.node.dataset.answers = +(this.node.dataset.answers || 0) + 1;
  }

  tick(now) {
    const seconds = Math.min((now - (this.last ?? now)) / 1000, 0.1);
    this.last = now;
    if (!this.films || !this.visible) {
      /* nothing to see */
    } else if (this.playing || this.fresh) {
      this.clock = (this.clock + seconds) % (this.span + PAUSE);
      this.sides.forEach(side => side.draw(Math.min(this.clock, this.span), this.span));
      this.fresh = false;
    } else if (this.sides.some(s => s.stage?.controls)) {
      // a paused body can be looked at from all sides
      this.sides.forEach(side => side.draw(Math.min(this.clock, this.span), this.span));
    }
    this.frame = requestAnimationFrame(t => this.tick(t));
  }

  close() {
    cancelAnimationFrame(this.frame);
    this.listeners.forEach(stop => stop());
    this.sides.forEach(s => s.close());
  }
}

const PolicyExplorer = {
  record,
  readFilm,
  mount: (root, source) => new Explorer(root, source),
  page: root => new Explorer(root, pageSource(recorded.robots)),
  widget: ({model, el}) => {
    const it = new Explorer(el, kernelSource(model));
    return () => it.close();
  },
};
