// HTTPS by Node. Arguments: port, tag, requests, connections. Waits for a line on stdin.
const https = require('https');

const [port, tag, count, connections] = process.argv.slice(2);
const kinds = ['small', 'missing', 'big'];
const agent = new https.Agent({ keepAlive: true, maxSockets: +connections, rejectUnauthorized: false });
let done = 0;

function ask(i) {
  return new Promise((resolve, reject) => {
    const path = `/${tag}/${kinds[i % 3]}/${i}`;
    const method = i % 4 === 0 ? 'POST' : 'GET';
    const request = https.request({ host: 'localhost', port: +port, agent, method, path }, (response) => {
      response.resume();
      response.on('end', () => {
        if (response.statusCode !== (i % 3 === 1 ? 404 : 200)) return reject(new Error(path));
        done += 1;
        return resolve();
      });
    });
    request.on('error', reject);
    if (method === 'POST') request.write('y'.repeat(3000));
    request.end();
  });
}

async function run(first) {
  for (let i = first; i < +count; i += +connections) await ask(i);
}

console.log('ready');
process.stdin.once('data', async () => {
  await Promise.all([...Array(+connections).keys()].map(run));
  console.log(done);
  process.exit(0);
});
