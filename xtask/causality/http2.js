// A gRPC (MODE=grpc) or HTTP/2 (MODE=h2) service that calls itself, as grpc-go/main.go.
const http = require('http');
const http2 = require('http2');
const [host, port] = process.env.NEXT.split(':');
const agent = new http.Agent({ keepAlive: true });
let over;

function call(path) {
  return new Promise((resolve, reject) => {
    http.get({ host, port, path, agent }, (response) => {
      response.resume();
      response.on('end', resolve);
    }).on('error', reject);
  });
}

async function serve(path) {
  const name = path.slice(path.lastIndexOf('/') + 1);
  if (name.endsWith('.l')) return;
  await call(`/b/${name}/0`);
  await over(`/b/${name}/${name}.l`);
}

function withHttp2(ready) {
  const server = http2.createServer();
  server.on('stream', (stream, headers) => {
    serve(headers[':path']).then(() => {
      stream.respond({ ':status': 200 });
      stream.end('ok');
    }, () => stream.close());
  });
  server.listen(0, '127.0.0.1', () => {
    const session = http2.connect(`http://127.0.0.1:${server.address().port}`);
    over = (path) => new Promise((resolve, reject) => {
      const stream = session.request({ ':path': path });
      stream.resume();
      stream.on('end', resolve);
      stream.on('error', reject);
      stream.end();
    });
    ready();
  });
}

function withGrpc(ready) {
  const grpc = require(process.env.GRPC);
  const server = new grpc.Server();
  const same = (bytes) => bytes;
  const handler = (path) => ({
    type: 'unary',
    path,
    serialize: same,
    deserialize: same,
    func: (_call, callback) => {
      serve(path).then(() => callback(null, Buffer.from('x')), callback);
    },
  });
  // Every path is a method.
  server.handlers = { get: handler, has: () => true };
  server.bindAsync('127.0.0.1:0', grpc.ServerCredentials.createInsecure(), (error, bound) => {
    if (error) throw error;
    const client = new grpc.Client(`127.0.0.1:${bound}`, grpc.credentials.createInsecure());
    over = (path) => new Promise((resolve, reject) => {
      client.makeUnaryRequest(path, same, same, Buffer.from('x'), (failed) => {
        if (failed) reject(failed); else resolve();
      });
    });
    ready();
  });
}

function start() {
  http.createServer(async (request, response) => {
    const url = new URL(request.url, 'http://x');
    const name = url.pathname.split('/')[2];
    const row = Number(url.searchParams.get('row') || 0);
    const fan = Number(url.searchParams.get('fan') || 0);
    const path = (n) => `/b/${name}/${name}.${n}`;
    try {
      for (let n = 0; n < row; n++) await over(path(n));
      await Promise.all(Array.from({ length: fan }, (_, n) => over(path(row + n))));
      response.end('ok');
    } catch (error) {
      response.statusCode = 500;
      response.end(String(error));
    }
  }).listen(Number(process.env.PORT), '127.0.0.1');
  let background = 0;
  setInterval(() => {
    const name = `background-${process.pid}-${background++}`;
    call(`/b/${name}/0`).catch(() => {});
    over(`/b/${name}/${name}.l`).catch(() => {});
  }, 10);
}

(process.env.MODE === 'grpc' ? withGrpc : withHttp2)(start);
