// Node's http. Prints its port; ends with its stdin.
'use strict';
const http = require('http');

const server = http.createServer((request, response) => {
  const query = new URL(request.url, 'http://localhost').searchParams;
  const [status, bytes, delay] = ['status', 'bytes', 'delay_ms'].map((key) => Number(query.get(key)));
  const answer = () => {
    const bodiless = status === 204 || status === 304;
    // Large bodies go without a length, so that Node sends them in chunks.
    const headers = bodiless || bytes > 100000 ? {} : { 'content-length': bytes };
    response.writeHead(status, headers);
    response.end(bodiless || request.method === 'HEAD' ? undefined : Buffer.alloc(bytes, 'x'));
  };
  request.resume();
  request.on('end', () => (delay ? setTimeout(answer, delay) : answer()));
});
server.keepAliveTimeout = 120000;
server.headersTimeout = 130000;
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
