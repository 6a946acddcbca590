// One hop of a chain: hop.js ADDRESS NEXT MARK answers gRPC calls of any method on ADDRESS, and asks NEXT for the
// same path over HTTP/2 before it does. Prints its port; ends with its stdin. gRPC is spoken by hand, since
// libraries want to know their methods before.
'use strict';
const http2 = require('http2');

const [address, next] = process.argv.slice(2);
let session;
function connected() {
  if (!session || session.closed || session.destroyed) {
    session = http2.connect(next);
    session.on('error', () => {});
  }
  return session;
}

const server = http2.createServer();
server.on('stream', (stream, headers) => {
  const finish = (status) => {
    stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: true });
    stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': status }));
    // An empty message.
    stream.end(Buffer.alloc(5));
  };
  stream.on('error', () => {});
  stream.resume();
  const call = connected().request({ ':path': headers[':path'] });
  call.on('response', (answer) => {
    call.resume();
    call.on('end', () => finish(answer[':status'] === 200 ? '0' : '13'));
  });
  call.on('error', () => finish('14'));
  call.end();
});
server.listen(0, address, () => console.log(server.address().port));
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
