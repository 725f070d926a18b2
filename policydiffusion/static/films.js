/* The explorer, part 1 of 6: helpers, and recorded films. The parts are classic scripts
 * that share their names, so that a page opened from a folder and a notebook's widget (where they
 * are joined) can both use them. Formatted by prettier, at 100 characters. */
'use strict';

const MILLIMETRE = 1e-3,
  ROTATION = 1 / 4096; // units of a recorded pose, as in explore.py
const VIRIDIS = [
  '#440154',
  '#482878',
  '#3e4989',
  '#31688e',
  '#26828e',
  '#1f9e89',
  '#35b779',
  '#6ece58',
  '#b5de2b',
  '#fde725',
];
const ELITE = '#c25b12',
  DRAWN = '#7a3db8'; // colours of the two sides, legible on light and dark
const PAUSE = 1; // seconds between the end of a film and its next round

const clamp = (x, low = 0, high = 1) => Math.min(high, Math.max(low, x));
const share = x => x.toFixed(2);
const mean = xs => xs.reduce((a, b) => a + b, 0) / xs.length;
const distance = (a, b) => Math.hypot(...a.map((x, i) => x - b[i]));

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, '');
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function viridis(x) {
  const at = clamp(x) * (VIRIDIS.length - 1),
    i = Math.min(Math.floor(at), VIRIDIS.length - 2),
    t = at - i;
  const part = (hex, k) => parseInt(hex.slice(1 + 2 * k, 3 + 2 * k), 16);
  const mix = k => Math.round((1 - t) * part(VIRIDIS[i], k) + t * part(VIRIDIS[i + 1], k));
  return `rgb(${[0, 1, 2].map(mix).join()})`;
}

// ---- recorded films

const bytesOf = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/* Poses come column by column as differences of 16 bits, all low bytes before all high ones. */
async function readFilm(film) {
  const bytes = await inflate(bytesOf(film.pose)),
    n = bytes.length / 2;
  const columns = film.links * 7,
    pose = new Float32Array(n);
  for (let c = 0; c < columns; c++) {
    const unit = c % 7 < 3 ? MILLIMETRE : ROTATION;
    for (let t = 0, sum = 0; t < film.frames; t++) {
      const i = c * film.frames + t;
      sum += ((bytes[i] | (bytes[n + i] << 8)) << 16) >> 16;
      pose[t * columns + c] = sum * unit;
    }
  }
  return {...film, pose, columns, bars: bytesOf(film.bars)};
}

/* All links at a moment: (position, quaternion w x y z) of each, between the two nearest frames. */
function poseAt(film, seconds) {
  const at = clamp(seconds * film.rate, 0, film.frames - 1),
    i = Math.floor(at),
    j = Math.min(i + 1, film.frames - 1);
  const a = i * film.columns,
    b = j * film.columns,
    t = at - i,
    out = new Float32Array(film.columns);
  for (let c = 0; c < film.columns; c += 7) {
    let dot = 0;
    for (let k = 3; k < 7; k++) dot += film.pose[a + c + k] * film.pose[b + c + k];
    const sign = dot < 0 ? -1 : 1;
    for (let k = 0; k < 7; k++)
      out[c + k] = (1 - t) * film.pose[a + c + k] + t * film.pose[b + c + k] * (k < 3 ? 1 : sign);
    const size = Math.hypot(out[c + 3], out[c + 4], out[c + 5], out[c + 6]) || 1;
    for (let k = 3; k < 7; k++) out[c + k] /= size;
  }
  return out;
}

const duration = film => (film.frames - 1) / film.rate;
// sideways place of each body
const lanes = (n, gap) => [...Array(n).keys()].map(i => (i - (n - 1) / 2) * gap);
