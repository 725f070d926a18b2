/* The explorer, part 3 of 6: the map of behaviours. */
'use strict';

// ---- the map

class BehaviourMap {
  constructor(onAsk, onMove) {
    Object.assign(this, {onAsk, onMove, at: [], answer: null, axes: [0, 1]});
    this.canvas = element('canvas', {
      class: 'pdx-map',
      tabindex: 0,
      role: 'application',
      'aria-roledescription': 'map',
      onkeydown: e => this.key(e),
    });
    const canvas = this.canvas;
    canvas.addEventListener('pointerdown', e => {
      canvas.setPointerCapture(e.pointerId);
      this.drag = true;
      this.point(e);
    });
    canvas.addEventListener('pointermove', e => {
      if (this.drag) this.point(e);
    });
    canvas.addEventListener('pointerup', e => {
      if (this.drag) {
        this.drag = false;
        this.point(e);
        this.onAsk(this.at);
      }
    });
    canvas.addEventListener('pointercancel', () => {
      this.drag = false;
    });
  }

  open(robot) {
    Object.assign(this, {robot, answer: null, axes: [0, 1], at: [...robot.start]});
    this.canvas.setAttribute(
      'aria-label',
      `Map of the behaviours of ${robot.title}. Arrow keys move the cross, ` +
        'with Shift ten times as far, and Enter asks for a policy there.',
    );
  }

  box() {
    const ratio = Math.min(window.devicePixelRatio || 1, 2),
      size = this.canvas.clientWidth;
    return {ratio, size, left: 46, top: 8, side: size - 54};
  }

  point(event) {
    const {left, top, side} = this.box(),
      r = this.canvas.getBoundingClientRect();
    this.move(
      clamp((event.clientX - r.left - left) / side),
      clamp(1 - (event.clientY - r.top - top) / side),
    );
  }

  move(x, y) {
    this.at[this.axes[0]] = x;
    this.at[this.axes[1]] = y;
    this.draw();
    this.onMove(this.at);
  }

  key(event) {
    const step = event.shiftKey ? 0.1 : 0.01;
    const way = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]}[
      event.key
    ];
    if (event.key === 'Enter' || event.key === ' ') this.onAsk(this.at);
    else if (way) this.move(...way.map((d, i) => clamp(this.at[this.axes[i]] + d * step)));
    else return;
    event.preventDefault();
  }

  cellOf(x, m) {
    return Math.min(Math.floor(x * this.robot.dims[m]), this.robot.dims[m] - 1);
  }

  inSlice(cell) {
    return this.robot.dims.every(
      (_, m) => this.axes.includes(m) || cell[m] === this.cellOf(this.at[m], m),
    );
  }

  rewardHere() {
    const cell = this.robot.cells.find(c =>
      this.robot.dims.every((_, m) => c[m] === this.cellOf(this.at[m], m)),
    );
    return cell ? cell[this.robot.dims.length] : null;
  }

  draw() {
    const {ratio, size, left, top, side} = this.box();
    if (!size || !this.robot) return;
    const height = size + 2;
    Object.assign(this.canvas, {width: size * ratio, height: height * ratio});
    this.canvas.style.height = `${height}px`;
    const pen = this.canvas.getContext('2d'),
      ink = getComputedStyle(this.canvas).color;
    pen.scale(ratio, ratio);
    const place = p => [left + p[this.axes[0]] * side, top + (1 - p[this.axes[1]]) * side];
    this.cells(pen, left, top, side);
    this.frame(pen, ink, left, top, side);
    this.marks(pen, ink, place);
  }

  cells(pen, left, top, side) {
    const [a, b] = this.axes,
      {dims, range} = this.robot,
      {ratio} = this.box();
    const snap = x => Math.round(x * ratio) / ratio; // whole pixels leave no seams
    const shade = getComputedStyle(this.canvas).getPropertyValue('--pdx-tile');
    const right = i => snap(left + (i * side) / dims[a]),
      up = i => snap(top + side - (i * side) / dims[b]);
    pen.fillStyle = getComputedStyle(this.canvas).getPropertyValue('--pdx-empty');
    pen.fillRect(left, top, side, side);
    for (const here of [false, true])
      for (const cell of this.robot.cells)
        if (this.inSlice(cell) === here) {
          const x = right(cell[a]),
            y = up(cell[b] + 1),
            wide = right(cell[a] + 1) - x,
            high = up(cell[b]) - y;
          pen.fillStyle = here
            ? viridis((cell[dims.length] - range[0]) / (range[1] - range[0] || 1))
            : shade;
          pen.fillRect(x, y, wide, high); // other places of the sliders are only hinted at
        }
    Object.assign(pen, {fillStyle: '#fff', strokeStyle: 'rgba(0,0,0,.55)', lineWidth: 1});
    for (const r of this.robot.requests || [])
      if (this.inSlice(r.map((x, m) => this.cellOf(x, m)))) {
        pen.beginPath();
        pen.arc(left + r[a] * side, top + (1 - r[b]) * side, 2.3, 0, 7);
        pen.fill();
        pen.stroke();
      }
  }

  frame(pen, ink, left, top, side) {
    const [a, b] = this.axes.map(m => this.robot.measures[m]);
    Object.assign(pen, {
      strokeStyle: ink,
      fillStyle: ink,
      lineWidth: 1,
      font: '12px system-ui, sans-serif',
      textAlign: 'center',
    });
    pen.strokeRect(left, top, side, side);
    for (const v of [0, 0.5, 1]) {
      pen.fillText(v, left + v * side, top + side + 15);
      pen.textAlign = 'right';
      pen.fillText(v, left - 5, top + (1 - v) * side + 4);
      pen.textAlign = 'center';
    }
    pen.font = '13px system-ui, sans-serif';
    pen.fillText(a, left + side / 2, top + side + 32);
    pen.save();
    pen.translate(13, top + side / 2);
    pen.rotate(-Math.PI / 2);
    pen.fillText(b, 0, 0);
    pen.restore();
  }

  marks(pen, ink, place) {
    const dot = (p, colour, square) => {
      const [x, y] = place(p);
      pen.beginPath();
      if (square) pen.rect(x - 5, y - 5, 10, 10);
      else pen.arc(x, y, 5.5, 0, 7);
      Object.assign(pen, {fillStyle: colour, strokeStyle: '#fff', lineWidth: 2});
      pen.fill();
      pen.stroke();
    };
    if (this.answer) {
      dot(this.answer.elite.measures, ELITE, true);
      this.answer.generated.forEach(film => dot(film.measures, DRAWN, false));
    }
    if (this.answer && !this.answer.asked && !this.moved) return; // words: there is no cross
    const [x, y] = place(this.at);
    for (const [colour, width] of [
      ['#fff', 6],
      ['#111', 2.5],
    ]) {
      Object.assign(pen, {strokeStyle: colour, lineWidth: width, lineCap: 'round'});
      pen.beginPath();
      for (const d of [-1, 1]) {
        pen.moveTo(x - 8, y - 8 * d);
        pen.lineTo(x + 8, y + 8 * d);
      }
      pen.stroke();
    }
  }
}
