// HTTP/1.1 and HTTP/2 under TLS. Arguments: address, certificate, key, mark. Prints its port.
const http2 = require('http2');
const fs = require('fs');

const [address, certificate, key] = process.argv.slice(2);
const files = { cert: fs.readFileSync(certificate), key: fs.readFileSync(key), allowHTTP1: true };
const server = http2.createSecureServer(files, (request, response) => {
  request.resume();
  request.on('end', () => response.end('ok'));
});
server.listen(0, address, () => console.log(server.address().port));
