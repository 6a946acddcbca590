// HTTP/1.1 or HTTP/2 under TLS. Arguments: version, URL, path, groups, requests in each, mark. A group has a connection of its own,
// on which it asks for one thing after the other. Prints `ready`, waits for a line, and prints how many were answered.
const https = require('https');
const http2 = require('http2');

const [version, base, path, groups, each] = process.argv.slice(2);
let done = 0;

function over1(agent, name) {
  return new Promise((resolve, reject) => {
    const request = https.request(base + name, { agent }, (response) => {
      response.resume();
      response.on('end', resolve);
    });
    request.on('error', reject);
    request.end();
  });
}

function over2(session, name) {
  return new Promise((resolve, reject) => {
    const request = session.request({ ':path': name });
    request.resume();
    request.on('end', resolve);
    request.on('error', reject);
    request.end();
  });
}

async function group(number) {
  const open = version === '2'
    ? http2.connect(base, { rejectUnauthorized: false })
    : new https.Agent({ keepAlive: true, maxSockets: 1, rejectUnauthorized: false });
  for (let i = 0; i < +each; i += 1) {
    await (version === '2' ? over2 : over1)(open, `${path}-${number}-${i}`);
    done += 1;
  }
  if (version === '2') open.close();
  else open.destroy();
}

console.log('ready');
process.stdin.once('data', async () => {
  await Promise.all([...Array(+groups).keys()].map(group));
  console.log(done);
  process.exit(0);
});
