// Demo: the shop's orders, in Node. Asks STOCK and PAYMENT, where they are; no tracing code.
'use strict';
const http = require('node:http');

const { STOCK, PAYMENT } = process.env;
const agent = new http.Agent({ keepAlive: true });

function ask(base, method, path) {
  return new Promise((resolve) => {
    if (!base) return resolve({ status: 200, text: '{}' });
    const request = http.request(base + path, { method, agent }, (response) => {
      let text = '';
      response.on('data', (part) => { text += part; });
      response.on('end', () => resolve({ status: response.statusCode, text }));
    });
    request.on('error', () => resolve({ status: 502, text: '{"error":"no answer"}' }));
    request.end();
  });
}

const server = http.createServer(async (request, response) => {
  request.resume();
  const url = new URL(request.url, 'http://orders');
  let result = await ask(STOCK, 'GET', url.pathname);
  if (request.method === 'POST' && result.status === 200) {
    result = await ask(PAYMENT, 'POST', '/charge' + url.search);
  }
  response.writeHead(result.status, { 'content-type': 'application/json' });
  response.end(result.text);
});

server.listen(0, '127.0.0.1', () => console.log(server.address().port));
