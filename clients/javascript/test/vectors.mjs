// Checks the package with every case of fixtures/ that concerns a client, in Node and in browsers. Like the client, this
// file was written from openapi.yaml and the fixtures alone.
import * as c from '../src/index.mjs'
import { bytes, device, enc, hex, problem, refuses, same, sha, stored, text } from './fake_server.mjs'

const errors = { damaged: c.DamagedError, mistyped: c.MistypedCodeError, 'update-the-app': c.AppOutdatedError }
const seen = t => ({ sequence: t.sequence, sha256: t.sha256 ?? undefined })
const derived = new Map()
/** The keys, derived once. */
export function keysOf(username, password, derivation = c.DERIVATIONS[0]) {
  const name = JSON.stringify([username, password, derivation])
  if (!derived.has(name)) derived.set(name, c.deriveKeys(username, password, derivation))
  return derived.get(name)
}

/** What sends an operation: the client, the members of the body, the headers, the path. */
const SEND = {
  registerUser: client => client.registerUser(),
  storeBackup: (client, { data, baseSha256 }) => client.storeBackup(c.fromBase64(data), baseSha256),
  fetchBackup: (client, body, headers) => client.fetchBackup(headers['if-none-match']),
  listBackupVersions: client => client.listBackupVersions(),
  fetchBackupVersion: (client, body, headers, path) =>
    client.fetchBackupVersion(Number(path.split('/').at(-1)), { etag: headers['if-none-match'] }),
  changeStorageKey: (client, { storageKey, data, baseSha256 }) =>
    client.changeStorageKey(storageKey, c.fromBase64(data), baseSha256),
  deleteUser: client => client.deleteUser(),
}
const BODIES = { storeBackup: ['data'], changeStorageKey: ['storageKey', 'data'] }

/** The request of an exchange, or undefined if no client sends one like this. */
async function sendable(t) {
  const pieces = t.request.map(piece => typeof piece === 'string' ? piece : piece.text.repeat(piece.times)).join('')
  const at = pieces.indexOf('\r\n\r\n'), [line, ...lines] = pieces.slice(0, at).split('\r\n'), body = pieces.slice(at + 4)
  const headers = Object.fromEntries(lines.map(each => [each.split(':', 1)[0].toLowerCase(), each.slice(each.indexOf(':') + 1).trim()]))
  const [, userId, storageKey] = /^([0-9a-f]{64}):([0-9a-f]{64})$/.exec(basic(headers.authorization)) ?? []
  const input = /^app=\("@method" "@path" "authorization" "content-digest"\);created=(\d+);keyid="([\w-]+)";alg="hmac-sha256"$/
  const [, created, keyid] = input.exec(headers['signature-input']) ?? []
  const [method, path] = line.split(' '), needs = BODIES[t.operationId] ?? []
  let members = {}
  try { if (body) { members = JSON.parse(body); c.fromBase64(members.data) } } catch { return undefined }
  const usual = Object.keys(headers).length === lines.length && !path.includes('?') && !('transfer-encoding' in headers)
    && !('expect' in headers) && !('content-encoding' in headers) && (!body || headers['content-type'] === 'application/json')
    && /^\/api\/(register|backup|backup\/versions|backup\/versions\/[1-9]\d{0,14}|user|user\/storage-key)$/.test(path)
    && same(Object.keys(members), 'baseSha256' in members ? [...needs, 'baseSha256'] : needs)
    && body === (needs.length ? JSON.stringify(members) : '')
    && headers['content-digest'] === `sha-256=:${c.toBase64(bytes(await sha(enc.encode(body))))}:`
  const bug = ['signature_missing', 'signature_invalid', 'digest_mismatch', 'malformed_request'].includes(t.answer.body?.code)
  return SEND[t.operationId] && userId && created && usual && !bug
    ? { method, path, headers, body, members, userId, storageKey, created: Number(created), keyid } : undefined
}
const basic = authorization => { try { return atob(authorization.replace(/^Basic /, '')) } catch { return '' } }

/** Each returns whether the client does what the case says, or undefined if the case is for servers only. */
const checks = {
  // If a case is valid, the client must produce these values. If it is invalid, the client must not produce them.
  async Username(t) {
    if (t.error) return refuses(() => c.deriveUserId(t.username), RangeError)
    const n = c.normalizeUsername(t.username)
    const mine = [n, hex(enc.encode(n)), await c.deriveUserId(t.username)]
    return same(mine, [t.normalized, t.normalizedUtf8, t.userId]) === (t.result === 'valid')
  },
  async Keys(t, g) {
    const { iterations, storageKeyInfo, encryptionKeyInfo } = g
    const derivation = { name: g.derivation, iterations, storageKeyInfo, encryptionKeyInfo }
    if (g.derivation === 'v1' && !same([derivation], c.DERIVATIONS)) return false
    const k = await keysOf(t.username, t.password, derivation)
    const password = hex(enc.encode(t.password.normalize('NFKC')))
    const mine = [c.normalizeUsername(t.username), k.userId, password, hex(k.masterKey), k.storageKey, hex(k.encryptionKey)]
    return same(mine, [t.normalized, t.userId, t.passwordUtf8, t.masterKey, t.storageKey, t.encryptionKey]) === (t.result === 'valid')
  },
  async Expansion(t) {
    const k = await c.keysOfMasterKey('ab'.repeat(32), bytes(t.masterKey))
    return k.storageKey === t.storageKey && hex(k.encryptionKey) === t.encryptionKey
  },
  async Blob(t) {
    const keys = { userId: t.userId, encryptionKey: bytes(t.encryptionKey) }
    if (t.result === 'invalid') return refuses(() => c.decrypt(bytes(t.blob), keys), errors[t.error])
    const version = { sequence: t.sequence, baseSha256: t.baseSha256 ?? undefined }
    const blob = await c.encrypt(bytes(t.plaintext), keys, { ...version, nonce: bytes(t.nonce) })
    const open = await c.decrypt(bytes(t.blob), keys)
    return hex(blob) === t.blob && hex(open.plaintext) === t.plaintext && open.sequence === version.sequence
      && open.baseSha256 === version.baseSha256 && hex(c.blobHeader(version.sequence, version.baseSha256)) === t.header
  },
  async Data(t) {
    if (t.result === 'invalid') return refuses(() => c.openBackup(t), c.DamagedError)
    return hex(await c.openBackup(t)) === t.blob && c.toBase64(bytes(t.blob)) === t.data
  },
  async File(t, g, read) {
    const keys = { userId: t.userId, encryptionKey: bytes(t.encryptionKey) }
    const file = await read(t.file)
    const blob = await c.encrypt(file, keys, { sequence: t.sequence, nonce: bytes(t.nonce) })
    return file.length === t.fileSize && blob.length === t.size && await sha(blob) === t.sha256
      && hex((await c.decrypt(blob, keys)).plaintext) === hex(file)
  },
  async RecoveryCode(t) {
    const read = () => c.readRecoveryCode(t.username, t.code)
    if (t.result === 'invalid') return refuses(read, errors[t.error])
    const k = await read()
    return same([k.userId, hex(k.masterKey), k.storageKey, hex(k.encryptionKey)],
      [t.userId, t.masterKey, t.storageKey, t.encryptionKey]) && await c.recoveryCode(k) === t.shown
  },
  async Password(t, g, read, commonPasswords) { return c.passwordProblem(t.password, commonPasswords) === t.error },
  async Verdict(t) {
    const highest = seen(t.highest), latest = seen(t.latest)
    const found = c.verdict(highest, latest.sequence, latest.sha256, t.latest.baseSha256 ?? undefined)
    const after = c.higher(highest, latest.sequence, latest.sha256), expected = seen(t.highestAfter)
    return found === t.verdict && c.ALARMS.includes(found) === t.tell && after.sequence === expected.sequence
      && after.sha256 === expected.sha256
  },
  async Sequence(t) {
    const next = () => c.nextSequence(t.base, { sequence: t.highest, sha256: 'ab' }, t.restored)
    return t.result === 'invalid' ? refuses(next, RangeError) : next() === t.next
  },
  // Play the sign-in against a server that accepts one key, with derivations that take no time.
  async SignIn(t) {
    const known = t.derivations.map((name, i) => ({ ...c.DERIVATIONS[0], name, iterations: i + 1 }))
    const keys = Object.fromEntries(await Promise.all(known.map(async d => [d.name, (await c.deriveKeys('alex', 'a', d)).storageKey])))
    const tries = []
    let changed = false
    const { phone } = device(Array(20).fill(async init => {
      const key = atob(init.headers.Authorization.slice(6)).split(':')[1], name = t.derivations.find(each => keys[each] === key)
      if (init.method === 'GET' && init.path.endsWith('versions')) {
        tries.push(name)
        return name === t.inForce ? [200, { versions: [] }] : problem(401, 'credentials_invalid')
      }
      if (init.method === 'GET') return problem(404, 'no_backup')
      changed = JSON.parse(new TextDecoder().decode(init.body)).storageKey === keys[t.derivations[0]] && name === t.inForce
      return stored(200, 1, 2)(init)
    }), { succeeded: t.succeeded ?? undefined })
    const refused = await phone.signIn('alex', 'a', known).then(() => false, error => error.code === 'credentials_invalid')
    return same(tries, t.tries) && refused === (t.outcome === null) && changed === t.change
      && (phone.state.succeeded ?? null) === t.succeededAfter
  },
  // An invalid request is a case for servers only: the server must refuse it. So is one with another parameterOrder.
  async Request(t, g) {
    if (t.result === 'invalid' || t.parameterOrder) return undefined
    const mine = await c.sign({ ...t, body: enc.encode(t.body), secret: g.secrets[t.keyid] })
    const theirs = Object.fromEntries(t.headers.map(h => [h.split(': ', 1)[0].toLowerCase(), h.slice(h.indexOf(': ') + 2)]))
    return Object.entries(mine).length === 4 && Object.entries(mine).every(([k, v]) => theirs[k.toLowerCase()] === v)
  },
  // The client sends the same request, and understands the answer. What a client cannot send is a case for servers only.
  async Exchange(t, g) {
    const wanted = await sendable(t), secret = g.secrets[wanted?.keyid]
    if (!wanted || !secret) return undefined
    const { status, headers, body } = t.answer, sent = []
    const fetch = async (url, init) => {
      sent.push({ ...init, path: new URL(url).pathname })
      return new Response(body ? JSON.stringify(body) : null, { status, headers })
    }
    const { keyid, created, userId, storageKey } = wanted
    const client = new c.BackupClient({ baseUrl: 'https://backup.example', secret, keyid, keys: { userId, storageKey }, fetch, now: () => created })
    const done = await SEND[t.operationId](client, wanted.members, wanted.headers, wanted.path).then(value => ({ value }), error => ({ error }))
    const [{ method, path, headers: mine, body: data }] = sent
    const proofs = Object.entries(mine).every(([name, value]) => wanted.headers[name.toLowerCase()] === value)
    if (!same([method, path, data ? text(data) : '', proofs], [wanted.method, wanted.path, wanted.body, true])) return false
    if (status >= 400) return done.error instanceof c.ProblemError && done.error.code === body.code && done.error.status === status
    if (status === 304) return done.value === null
    return !done.error && Object.entries(body ?? {}).every(([name, value]) =>
      name === 'data' ? c.toBase64(done.value.blob) === value : same((name === 'versions' ? { versions: done.value } : done.value)[name], value))
  },
}

/**
 * Checks all cases.
 * @param {(name: string) => Promise<Uint8Array>} read reads a file of fixtures/
 * @param {(type: string, id: string, ok: boolean | undefined) => void} note gets each outcome
 * @param {boolean} [quick] true leaves out the cases of PBKDF2, which take their time
 */
export async function checkVectors(read, note, quick = false) {
  const lines = new TextDecoder().decode(await read('common_passwords.txt')).trimEnd().split('\n')
  const commonPasswords = new Set(lines)
  for (const name of ['derivation', 'encryption', 'devices', 'signing', 'exchanges']) {
    const file = JSON.parse(new TextDecoder().decode(await read(`${name}.json`)))
    let count = 0, played = 0
    for (const g of file.testGroups) for (const t of g.tests) {
      count++
      if (quick && g.type === 'Keys') continue
      if (!['valid', 'invalid'].includes(t.result) || !checks[g.type]) throw new Error(`unknown: ${g.type} ${t.result}`)
      let ok = false
      try { ok = await checks[g.type](t, g, read, commonPasswords) } catch (error) { console.error(error) }
      played += ok === true
      note(g.type, `${t.tcId} ${t.comment} (${t.result})`, ok)
    }
    if (name === 'exchanges' && played < 190) note('Exchange', `only ${played} that a client can send`, false)
    if (count !== file.numberOfTests) note(name, `${count} tests of ${file.numberOfTests}`, false)
  }
}
