/* The explorer, part 5 of 6: where answers come from, a kernel or a folder. */
'use strict';
// ---- where answers come from

/* A kernel that computes them: messages with a number, and replies with the same number. */
function kernelSource(model) {
  const waiting = new Map();
  model.on('msg:custom', reply => {
    const [resolve, reject] = waiting.get(reply.id) || [];
    waiting.delete(reply.id);
    if (reply.error) reject?.(new Error(reply.error));
    else resolve?.(reply.content);
  });
  const view = Math.random().toString(36).slice(2); // two views hear each other
  let count = 0;
  const call = (kind, task, request = {}) =>
    new Promise((resolve, reject) => {
      const id = `${view} ${++count}`;
      waiting.set(id, [resolve, reject]);
      model.send({id, kind, task, ...request});
    });
  return {
    robots: model.get('robots'),
    first: model.get('first'),
    robot: task => call('robot', task),
    ask: (task, request) => call('ask', task, request),
    say: (task, request) => call('say', task, request),
  };
}

/* A folder of recorded answers: scripts, because a page opened from a folder may fetch no files. */
const recorded = {};
function record(name, value) {
  recorded[name] = value;
}

function script(name) {
  return recorded[name]
    ? Promise.resolve(recorded[name])
    : new Promise((resolve, reject) => {
        const node = element('script', {src: `${name}.js`});
        node.onload = () => resolve(recorded[name]);
        node.onerror = () => reject(new Error(`${name}.js is missing beside this page`));
        document.head.append(node);
      });
}

const wordsOf = text => new Set(text.toLowerCase().match(/[a-z]+/g) || []);
function likeness(a, b) {
  const [x, y] = [wordsOf(a), wordsOf(b)],
    both = [...x].filter(w => y.has(w)).length;
  return both / (x.size + y.size - both || 1);
}

function pageSource(robots) {
  const find = task => robots.find(r => r.task === task);
  const play = async (robot, i) => ({
    ...(
      await script(`films_${robot.task}_${String(Math.floor(i / robot.per_file)).padStart(2, '0')}`)
    )[i],
  });
  const cut = (answer, n) => ({...answer, generated: answer.generated.slice(0, n)});
  return {
    recorded: true,
    robots,
    robot: async task => find(task),
    ask: async (task, {measures, n}) => {
      const robot = find(task),
        far = robot.requests.map(r => distance(r, measures));
      return cut(await play(robot, far.indexOf(Math.min(...far))), n);
    },
    say: async (task, {text, n}) => {
      const robot = find(task),
        like = robot.sentences.map(s => likeness(s, text)),
        best = like.indexOf(Math.max(...like));
      if (like[best] === 0)
        throw new Error(
          'This page plays recorded sentences only, and none has a word of yours: choose one below.',
        );
      const answer = cut(await play(robot, robot.requests.length + best), n);
      const same =
        like[best] === 1
          ? ''
          : `This page plays recorded sentences; nearest to yours is "${robot.sentences[best]}". `;
      return {...answer, note: same + answer.note};
    },
  };
}
