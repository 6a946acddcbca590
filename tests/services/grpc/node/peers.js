// grpc-js: see ../README.md. The library's directory is given by PEERS_MODULES, since it is not
// installed beside this file.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const readline = require('node:readline');
const grpc = require(path.join(process.env.PEERS_MODULES, '@grpc/grpc-js'));

const SERVICE = 'tracer.peers.v1.Peers';
const same = (bytes) => bytes;
// Of the server; given, if TLS is to be spoken.
const { PEERS_CERTIFICATE: certificate, PEERS_KEY: key } = process.env;

function definition(name, requestStream, responseStream) {
  return {
    path: `/${SERVICE}/${name}`,
    requestStream,
    responseStream,
    requestSerialize: same,
    requestDeserialize: same,
    responseSerialize: same,
    responseDeserialize: same,
  };
}

const METHODS = {
  Unary: definition('Unary', false, false),
  ClientStream: definition('ClientStream', true, false),
  ServerStream: definition('ServerStream', false, true),
  Bidi: definition('Bidi', true, true),
};

function asked(message) {
  const [code, delay, count, size] = message.toString('latin1').split(' ', 4).map(Number);
  return { code, delay, count, body: Buffer.alloc(size, 'y') };
}

function later(ms, action) {
  if (ms > 0) setTimeout(action, ms);
  else action();
}

const failure = (code) => ({ code, details: 'asked' });

function answer(ask, callback) {
  later(ask.delay, () => (ask.code ? callback(failure(ask.code)) : callback(null, ask.body)));
}

function finish(call, ask) {
  later(ask.delay, () => {
    if (call.cancelled) return;
    if (ask.code) call.emit('error', failure(ask.code));
    else call.end();
  });
}

const HANDLERS = {
  Unary(call, callback) {
    answer(asked(call.request), callback);
  },
  ClientStream(call, callback) {
    let ask;
    call.on('data', (message) => (ask ??= asked(message)));
    call.on('end', () => ask && answer(ask, callback));
    call.on('error', () => {});
  },
  ServerStream(call) {
    const ask = asked(call.request);
    call.on('error', () => {});
    for (let i = 0; i < ask.count; i++) call.write(ask.body);
    finish(call, ask);
  },
  Bidi(call) {
    let ask;
    call.on('data', (message) => {
      ask ??= asked(message);
      call.write(ask.body);
    });
    call.on('end', () => ask && finish(call, ask));
    call.on('error', () => {});
  },
};

function serve() {
  const server = new grpc.Server({ 'grpc.max_concurrent_streams': 1000 });
  server.addService(METHODS, HANDLERS);
  const credentials = key
    ? grpc.ServerCredentials.createSsl(null, [
        { cert_chain: fs.readFileSync(certificate), private_key: fs.readFileSync(key) },
      ])
    : grpc.ServerCredentials.createInsecure();
  server.bindAsync('127.0.0.1:0', credentials, (error, port) => {
    if (error) throw error;
    console.log(port);
  });
  process.stdin.resume().on('end', () => process.exit(0));
}

function request({ code, delay, count, size }) {
  const text = `${code} ${delay} ${count} ${size} `;
  return Buffer.from(text.padEnd(size, 'x'), 'latin1');
}

function send(stream, call) {
  let left = call.messages;
  const next = () => {
    if (left-- > 0) {
      stream.write(request(call));
      if (left > 0 && call.gap > 0) setTimeout(next, call.gap);
      else next();
    } else {
      stream.end();
    }
  };
  next();
}

function make(client, call) {
  return new Promise((resolve) => {
    const wall = BigInt(Math.round((performance.timeOrigin + performance.now()) * 1e3)) * 1000n;
    const start = process.hrtime.bigint();
    const done = (code) => resolve(`done ${call.index} ${code} ${wall} ${process.hrtime.bigint() - start}`);
    const metadata = new grpc.Metadata();
    if (call.traceparent !== '-') metadata.set('traceparent', call.traceparent);
    const options = call.timeout ? { deadline: Date.now() + call.timeout } : {};
    const method = METHODS[call.method] ?? definition(call.method, false, false);
    const to = [method.path, same, same];
    // One answer may come before the status does.
    const ignore = () => {};
    let stream;
    if (call.method === 'Bidi') {
      stream = client.makeBidiStreamRequest(...to, metadata, options);
    } else if (call.method === 'ServerStream') {
      stream = client.makeServerStreamRequest(...to, request(call), metadata, options);
    } else if (call.method === 'ClientStream') {
      stream = client.makeClientStreamRequest(...to, metadata, options, ignore);
    } else {
      stream = client.makeUnaryRequest(...to, request(call), metadata, options, ignore);
    }
    stream.on('error', ignore);
    stream.on('data', ignore);
    stream.on('status', (status) => done(status.code));
    if (method.requestStream) send(stream, call);
    if (call.cancel) setTimeout(() => stream.cancel(), call.cancel);
  });
}

async function run(client, calls, concurrency) {
  const left = calls.values();
  const lines = [];
  const work = async () => {
    for (const call of left) lines.push(await make(client, call));
  };
  await Promise.all(Array.from({ length: concurrency }, work));
  process.stdout.write(`${lines.join('\n')}\nran\n`);
}

async function client(address) {
  const credentials = certificate
    ? grpc.credentials.createSsl(fs.readFileSync(certificate))
    : grpc.credentials.createInsecure();
  const client = new grpc.Client(address, credentials);
  let calls = [];
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const words = line.split(' ');
    if (words[0] === 'call') {
      const [code, delay, count, size, messages, gap, timeout, cancel] = words.slice(4).map(Number);
      const [, index, method, traceparent] = words;
      calls.push({ index, method, traceparent, code, delay, count, size, messages, gap, timeout, cancel });
    } else if (words[0] === 'run') {
      await run(client, calls, Number(words[1]));
      calls = [];
    }
  }
  client.close();
}

if (process.argv[2] === 'server') serve();
else client(process.argv[3]);
