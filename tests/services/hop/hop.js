// One hop of a chain: hop.js ADDRESS NEXT MARK serves HTTP on ADDRESS and asks NEXT for the same path before
// it answers. Prints its port; ends with its stdin.
'use strict';
const http = require('http');

const [address, next] = process.argv.slice(2);
const agent = new http.Agent({ keepAlive: true });
const server = http.createServer((request, response) => {
  const call = http.get(next + request.url, { agent }, (answer) => {
    response.writeHead(answer.statusCode);
    answer.pipe(response);
  });
  call.on('error', () => {
    response.writeHead(502);
    response.end();
  });
});
server.listen(0, address, () => console.log(server.address().port));
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
