// Node's http, with something between a request and each of its calls: what the path's `way` says.
const { AsyncLocalStorage } = require('async_hooks');
const crypto = require('crypto');
const fs = require('fs');
const http = require('http');
const { promisify } = require('util');
const zlib = require('zlib');
const [host, port] = process.env.NEXT.split(':');
const fresh = process.env.FRESH === '1';
const agent = new http.Agent({ keepAlive: !fresh });

function call(path, done) {
  http.get({ host, port, path, agent }, (response) => {
    response.resume();
    response.on('end', () => done());
  }).on('error', done);
}

const promised = (what) => (then) => what().then(() => then(), then);
const ways = {
  timer: (then) => setTimeout(then, 3),
  // One that a timer makes.
  nested: (then) => setTimeout(() => setTimeout(then, 1), 1),
  immediate: (then) => setImmediate(then),
  nextTick: (then) => process.nextTick(then),
  file: (then) => fs.readFile(__filename, then),
  promisedFile: promised(() => fs.promises.readFile(__filename)),
  key: (then) => crypto.pbkdf2('a', 'b', 100, 16, 'sha256', then),
  promisedKey: promised(() => promisify(crypto.pbkdf2)('a', 'b', 100, 16, 'sha256')),
  zip: (then) => zlib.gzip('some text', then),
  interval: (then) => {
    let times = 0;
    const timer = setInterval(() => {
      if (++times < 2) return;
      clearInterval(timer);
      then();
    }, 1);
  },
  // Nothing tells what this one goes on with, unless promises have ids.
  sleep: promised(() => promisify(setTimeout)(3)),
};
// Then promises have ids too, before Node 24.
const storage = process.env.STORAGE ? new AsyncLocalStorage() : { run: (_, then) => then() };
const names = (process.env.WAY || 'timer').split(',');

function serve(name, count, done) {
  let n = 0;
  const next = (error) => {
    if (error || n === count) return done(error);
    const at = n++;
    ways[names[at % names.length]]((failed) => {
      if (failed) return done(failed);
      call(`/b/${name}/${at}`, next);
    });
  };
  next();
}

http.createServer((request, response) => {
  const url = new URL(request.url, 'http://x');
  const name = url.pathname.split('/')[2];
  const count = Number(url.searchParams.get('row') || 0) + Number(url.searchParams.get('fan') || 0);
  storage.run(name, () => serve(name, count, (error) => {
    response.statusCode = error ? 500 : 200;
    response.end(String(error || 'ok'));
  }));
}).listen(Number(process.env.PORT), '127.0.0.1');

let background = 0;
const inBackground = () => call(`/b/background-${process.pid}-${background++}/0`, () => {});
setInterval(inBackground, 7);
(function again() {
  setTimeout(() => fs.readFile(__filename, inBackground), 9).unref();
  setTimeout(again, 11);
}());
(function soon() {
  setTimeout(() => setImmediate(() => { inBackground(); soon(); }), 13);
}());
