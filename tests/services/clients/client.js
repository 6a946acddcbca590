// A client on Node's http: ADDRESS RUN REQUESTS. Prints the driver's report; ends with its stdin.
'use strict';
const http = require('http');

const [address, run, requests] = process.argv.slice(2);
const [host, port] = address.split(':');
const agent = new http.Agent({ keepAlive: true, maxSockets: 8 });

function send(number) {
  const method = ['GET', 'POST', 'PUT', 'DELETE'][number % 4];
  const status = [200, 201, 404, 500, 200][number % 5];
  const bytes = [0, 17, 4000, 150000][Math.floor(number / 4) % 4];
  // Not a measurement: the event loop lies between it and the system calls.
  const record = {
    method, path: `/r/${run}-${number}`, query: `status=${status}&bytes=${bytes}&delay_ms=0`, status: 0,
    duration_ns: 0, started_ns: 0, local_port: 0, reused: false, preopened: false, preempted: true,
    response_bytes: 0, error: null,
  };
  return new Promise((resolve) => {
    const options = { host, port, method, agent, path: `${record.path}?${record.query}` };
    options.headers = { 'user-agent': 'tracer-driver/1' };
    if (method === 'POST') options.headers['content-length'] = 3000;
    const request = http.request(options, (response) => {
      record.status = response.statusCode;
      record.reused = request.reusedSocket;
      response.on('data', (piece) => { record.response_bytes += piece.length; });
      response.on('end', () => resolve(record));
    });
    request.on('socket', (socket) => {
      const note = () => { record.local_port = socket.localPort; };
      if (socket.connecting) socket.on('connect', note); else note();
    });
    request.on('error', (error) => { record.error = String(error); resolve(record); });
    // Without a length Node sends chunks.
    if (method === 'POST') request.write(Buffer.alloc(3000, 'b'));
    if (method === 'PUT') { request.write(Buffer.alloc(5000, 'b')); request.write('more'); }
    request.end();
  });
}

Promise.all(Array.from({ length: Number(requests) }, (_, number) => send(number))).then((records) => {
  console.log(JSON.stringify({ pid: process.pid, address, run, records }));
  process.stdin.resume();
  process.stdin.on('end', () => process.exit(0));
});
