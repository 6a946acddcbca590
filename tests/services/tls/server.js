// HTTPS by Node, whose OpenSSL is in its executable. Arguments: certificate, key.
const https = require('https');
const fs = require('fs');

const [cert, key] = process.argv.slice(2).map((file) => fs.readFileSync(file));
const server = https.createServer({ cert, key }, (request, response) => {
  request.resume();
  request.on('end', () => {
    const body = 'x'.repeat(request.url.includes('/big/') ? 50000 : 100);
    const status = request.url.includes('/missing/') ? 404 : 200;
    response.writeHead(status, { 'content-length': body.length });
    response.end(body);
  });
});
server.keepAliveTimeout = 60000;
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
