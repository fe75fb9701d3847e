// A device with a fake server, which gives certain answers in order. It runs in Node and in browsers.
import * as c from '../src/index.mjs'

export const SECRET = 'an-example-secret-for-the-documentation'
export const enc = new TextEncoder()
export const bytes = hex => Uint8Array.from(hex.match(/../g) ?? [], pair => parseInt(pair, 16))
export const hex = b => Array.from(b, byte => byte.toString(16).padStart(2, '0')).join('')
export const text = b => new TextDecoder().decode(b)
export const same = (a, b) => JSON.stringify(a) === JSON.stringify(b)
export const sha = async blob => hex(new Uint8Array(await crypto.subtle.digest('SHA-256', blob)))

export const log = enc.encode('{"workouts":["mine"]}')
export const merge = (mine, theirs) => enc.encode(`${text(mine)}+${text(theirs)}`)

/** Whether a call throws an error of this kind. */
export async function refuses(run, kind = c.BackupError) {
  try { await run() } catch (error) { return error instanceof kind }
  return false
}

export const problem = (status, code, more) => [status, { status, code, title: 't', detail: 'd', type: 'x:y', ...more }]
export const receipt = async (blob, version = 1, keyVersion = 1) => (
  { version, updatedAt: '2026-11-24T09:00:00Z', size: blob.length, sha256: await sha(blob), keyVersion })
/** Answers an upload: `stored(201, 3)` says that version 3 is stored. */
export const stored = (status, version, keyVersion) => async init => [status, await receipt(sentBlob(init), version, keyVersion)]
export const asBackup = async (blob, version) => [200, { ...await receipt(blob, version), data: c.toBase64(blob) }]
export const sentBlob = ({ body }) => c.fromBase64(JSON.parse(text(body)).data)

/**
 * A device with this state, and a server that gives these answers in order: [status, members or text, media type,
 * headers], a function of the request that returns one, or 'lost', if the request was done and its answer lost.
 */
export function device(answers, state = {}, { now = () => 1795510800, mergeWith = merge, ...options } = {}) {
  const sent = [], told = [], pauses = [], saved = []
  const fetch = async (url, init) => {
    sent.push({ path: new URL(url).pathname, ...init })
    if (!answers.length) throw new Error('one request too many')
    let a = await answers.shift()
    if (typeof a === 'function') a = await a(sent.at(-1))
    if (a === 'lost') throw new TypeError('fetch failed')
    const type = a[2] ?? (a[0] < 400 ? 'application/json' : 'application/problem+json')
    const body = a[1] === undefined ? null : typeof a[1] === 'string' ? a[1] : JSON.stringify(a[1])
    return new Response(body, { status: a[0], headers: { 'X-Request-Id': '1', 'Content-Type': type, ...a[3] } })
  }
  const connection = { baseUrl: 'https://x.example', secret: SECRET, fetch, now }
  const phone = new c.Device({
    ...connection, merge: mergeWith, state: { ...c.newState(log), ...state }, tell: verdict => told.push(verdict),
    pause: async seconds => { pauses.push(seconds) }, save: state => { saved.push(structuredClone(state)) }, ...options,
  })
  return { sent, told, pauses, saved, phone, client: keys => new c.BackupClient({ ...connection, keys }) }
}
