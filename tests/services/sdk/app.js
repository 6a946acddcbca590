// A service that asks the next one the same. Argument: its URL. Prints its port; ends with its stdin.
const http = require('http');

const next = process.argv[2];
const server = http.createServer((request, response) => {
  request.resume();
  http.get(next + request.url, { agent: false }, (answer) => {
    answer.resume();
    answer.on('end', () => {
      response.statusCode = answer.statusCode;
      response.end('ok');
    });
  }).on('error', () => {
    response.statusCode = 502;
    response.end();
  });
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
