// Node's http with an agent that keeps connections (or FRESH=1: none, and NEXT by name).
const http = require('http');
const [host, port] = process.env.NEXT.split(':');
const fresh = process.env.FRESH === '1';
const agent = new http.Agent({ keepAlive: !fresh });

function call(path) {
  return new Promise((resolve, reject) => {
    http.get({ host, port, path, agent }, (response) => {
      response.resume();
      response.on('end', resolve);
    }).on('error', reject);
  });
}

http.createServer(async (request, response) => {
  const url = new URL(request.url, 'http://x');
  const name = url.pathname.split('/')[2];
  const row = Number(url.searchParams.get('row') || 0);
  const fan = Number(url.searchParams.get('fan') || 0);
  try {
    for (let n = 0; n < row; n++) await call(`/b/${name}/${n}`);
    await Promise.all(Array.from({ length: fan }, (_, n) => call(`/b/${name}/${row + n}`)));
    response.end('ok');
  } catch (error) {
    response.statusCode = 500;
    response.end(String(error));
  }
}).listen(Number(process.env.PORT), '127.0.0.1');

let background = 0;
setInterval(() => call(`/b/background-${process.pid}-${background++}/0`).catch(() => {}), 10);
