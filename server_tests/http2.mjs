// Sends requests over one HTTP/2 connection: node http2.mjs URL CA_FILE < requests.json > answers.json
// A request is {method, path, headers, body in base64}. An answer is {status, headers, body in base64}.

import { readFileSync } from 'node:fs'
import http2 from 'node:http2'
import { gunzipSync, zstdDecompressSync } from 'node:zlib'

const [url, authority] = process.argv.slice(2)
const DECODE = { gzip: gunzipSync, zstd: zstdDecompressSync }

function send(session, { method, path, headers, body }) {
  return new Promise((resolve, reject) => {
    const stream = session.request({ ':method': method, ':path': path, ...headers }, { endStream: !body })
    const chunks = []
    let answer
    stream.on('response', (head) => (answer = head))
    stream.on('data', (chunk) => chunks.push(chunk))
    stream.on('error', reject)
    stream.on('end', () => {
      const { ':status': status, ...rest } = answer
      const received = Buffer.concat(chunks)
      const decoded = received.length && rest['content-encoding'] ? DECODE[rest['content-encoding']](received) : received
      resolve({ status, headers: rest, body: decoded.toString('base64') })
    })
    if (body) stream.end(Buffer.from(body, 'base64'))
  })
}

const session = http2.connect(url, { ca: readFileSync(authority) })
await new Promise((resolve, reject) => session.once('connect', resolve).once('error', reject))
if (session.alpnProtocol !== 'h2') throw new Error(`the connection is ${session.alpnProtocol}`)
const answers = []
for (const request of JSON.parse(readFileSync(0))) answers.push(await send(session, request))
session.close()
process.stdout.write(JSON.stringify(answers))
