/* The explorer, part 4 of 6: one of the two walks, with its contact bars. */
'use strict';

// ---- contact bars

function drawBars(canvas, robot, films, seconds, span, ratio) {
  const pen = canvas.getContext('2d'),
    k = robot.measures.length,
    n = films.length;
  const {width, height} = canvas,
    left = 4 * ratio,
    row = height / k,
    wide = width - 2 * left;
  const place = t => Math.round(left + (wide * t) / span); // whole pixels leave no seams
  pen.clearRect(0, 0, width, height);
  films.forEach((film, f) =>
    robot.measures.forEach((_, m) => {
      const y = m * row + row * 0.12 + (f * row * 0.76) / n,
        h = (row * 0.76) / n - (n > 1 ? ratio * 0.5 : 0);
      pen.fillStyle = robot.colours[m];
      for (let t = 0; t < film.frames - 1; t++) {
        const value = film.bars[m * film.frames + t] / 255;
        if (value < 0.02) continue;
        pen.globalAlpha = value;
        pen.fillRect(
          place(t / film.rate),
          y,
          Math.max(1, place((t + 1) / film.rate) - place(t / film.rate)),
          h,
        );
      }
      pen.globalAlpha = 1;
      if (film.fell) {
        pen.fillStyle = '#888';
        pen.fillRect(place(duration(film)), y, 2 * ratio, h);
      }
    }),
  );
  pen.fillStyle = getComputedStyle(canvas).color;
  pen.fillRect(place(Math.min(seconds, span)) - ratio, 0, 2 * ratio, height);
}

class Side {
  // one of the two walks: title, picture, contact bars
  constructor(title, colour) {
    this.canvas = element('canvas', {class: 'pdx-stage', role: 'img'});
    this.bars = element('canvas', {class: 'pdx-bars', role: 'img'});
    this.legend = element('div', {class: 'pdx-feet'});
    this.verdict = element('p', {class: 'pdx-verdict'});
    this.title = title;
    this.films = [];
    const mark = element('span', {class: 'pdx-swatch', style: `background:${colour}`});
    this.node = element(
      'section',
      {class: 'pdx-side', 'aria-label': title},
      element('h3', {}, mark, title),
      this.verdict,
      this.canvas,
      this.legend,
      this.bars,
    );
  }

  open(robot, style) {
    this.close();
    const fresh = element('canvas', {class: 'pdx-stage', role: 'img'}); // lost contexts stay lost
    this.canvas.replaceWith(fresh);
    this.robot = robot;
    this.stage = openStage(fresh, robot, style);
    this.canvas = this.stage.canvas;
    this.legend.replaceChildren(
      ...robot.measures.map((name, m) =>
        element('span', {}, element('i', {style: `background:${robot.colours[m]}`}), name),
      ),
    );
    this.bars.style.height = `${Math.max(2, robot.measures.length) * 18}px`;
    this.size = null;
  }

  show(films, described) {
    this.films = films;
    this.stage.show(films);
    this.verdict.textContent = described;
    this.canvas.setAttribute('aria-label', `${this.title} walking: ${described}`);
    this.bars.setAttribute(
      'aria-label',
      `${this.title}, over time: ${this.robot.measures
        .map((name, m) => `${name} ${share(mean(films.map(f => f.measures[m])))}`)
        .join(', ')} of the time`,
    );
  }

  draw(seconds, span) {
    if (!this.stage || !this.films.length) return;
    const ratio = Math.min(window.devicePixelRatio || 1, 2),
      {clientWidth: w, clientHeight: h} = this.canvas;
    if (!w || !h) return;
    if (this.size !== `${w} ${h} ${ratio}`) {
      this.size = `${w} ${h} ${ratio}`;
      this.stage.resize(w, h, ratio);
      Object.assign(this.bars, {
        width: this.bars.clientWidth * ratio,
        height: this.bars.clientHeight * ratio,
      });
    }
    this.stage.draw(seconds);
    drawBars(this.bars, this.robot, this.films, seconds, span, ratio);
  }

  close() {
    this.stage?.close();
    this.stage = null;
    this.films = [];
  }
}
