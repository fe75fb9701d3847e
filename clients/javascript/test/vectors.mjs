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
  getHealth: client => client.getHealth(),
  registerUser: client => client.registerUser(),
  storeBackup: (client, { data, baseSha256 }) => client.storeBackup(c.fromBase64(data), baseSha256),
  fetchBackup: (client, body, headers) => client.fetchBackup(headers['If-None-Match']),
  listBackupVersions: client => client.listBackupVersions(),
  fetchBackupVersion: (client, body, headers, path) =>
    client.fetchBackupVersion(Number(path.split('/').at(-1)), { etag: headers['If-None-Match'] }),
  changeStorageKey: (client, { storageKey, data, baseSha256 }) =>
    client.changeStorageKey(storageKey, c.fromBase64(data), baseSha256),
  deleteUser: client => client.deleteUser(),
}
const PROOFS = ['Authorization', 'Content-Digest', 'Signature-Input', 'Signature']

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
  // The client makes the request of its operation, and understands the answer. What no client sends is for a server only.
  async Exchange(t, g) {
    if (t.flags.includes('ServerOnly')) return undefined
    const [head, body] = t.request.map(piece => piece.text?.repeat(piece.times) ?? piece).join('').split('\r\n\r\n')
    const [line, ...rest] = head.split('\r\n'), [method, path] = line.split(' ')
    const theirs = Object.fromEntries(rest.map(each => each.split(/: (.*)/, 2)))
    const [userId, storageKey] = atob((theirs.Authorization ?? '').slice(6)).split(':')
    const [, created, keyid] = /created=([0-9]+);keyid="(.*?)"/.exec(theirs['Signature-Input']) ?? []
    const { status, headers, body: members } = t.answer, sent = [], upload = body ? JSON.parse(body) : {}
    const fetch = async (url, init) => {
      sent.push({ path: new URL(url).pathname, ...init })
      return new Response(members && JSON.stringify(members), { status, headers })
    }
    const app = { secret: g.secrets[keyid], keyid }
    const client = new c.BackupClient({ baseUrl: 'https://backup.example', ...app, keys: { userId, storageKey }, fetch, now: () => Number(created) })
    const done = await SEND[t.operationId](client, upload, theirs, path).then(value => ({ value }), error => ({ error }))
    const [first] = sent, mine = first.body ? text(first.body) : ''
    if (first.method !== method || first.path !== path || first.headers['If-None-Match'] !== theirs['If-None-Match']) return false
    if (mine && !same(Object.entries(JSON.parse(mine)).sort(), Object.entries(upload).sort())) return false
    // If the body is the same JSON in another layout, sign it as it is: a client signs whatever bytes it sends.
    const made = mine === body ? first.headers : created ? await c.sign({ method, path, body: enc.encode(body), userId, storageKey, ...app, created }) : {}
    if (!PROOFS.every(name => made[name] === theirs[name])) return false
    if (status >= 400) return done.error instanceof c.ProblemError && done.error.code === members.code && done.error.status === status
    if (status === 304) return done.value === null
    const found = t.operationId === 'listBackupVersions' ? { versions: done.value } : done.value
    return !done.error && Object.entries(members ?? {}).every(([name, value]) =>
      name === 'data' ? c.toBase64(found.blob) === value : same(found[name], value))
  },
}

/** Each string of normalization.txt that this Unicode version knows: as a username, and as a line of a password. */
async function checkNormalization(lines, note) {
  const string = points => String.fromCodePoint(...points.split(' ').map(each => parseInt(each, 16)))
  const points = string => Array.from(string, each => each.codePointAt(0).toString(16)).join(' ')
  const nameOf = string => { try { return c.normalizeUsername(string) } catch { return undefined } }
  const known = []
  for (const [source, nfkc] of lines.filter(line => line[0] !== '#').map(line => line.split(';').map(string))) {
    if (/\p{Unassigned}/u.test(source)) { note('Normalization', '', undefined); continue }
    known.push([source, nfkc])
    const stays = !/^\p{White_Space}|\p{White_Space}$/u.test(nfkc) && Array.from(nfkc).every(each => each.toLowerCase() === each)
    note('Normalization', points(source), nameOf(source) === (stays ? nfkc : nameOf(nfkc)))
  }
  const fast = { ...c.DERIVATIONS[0], iterations: 1 }, userId = await c.deriveUserId('alex')
  for (let at = 0; at < known.length; at += 64) {
    const [sources, nfkcs] = [0, 1].map(column => known.slice(at, at + 64).map(pair => pair[column]).join('\n'))
    const secret = await crypto.subtle.importKey('raw', enc.encode(nfkcs), 'PBKDF2', false, ['deriveBits'])
    const expected = await crypto.subtle.deriveBits({ name: 'PBKDF2', hash: 'SHA-256', salt: bytes(userId), iterations: 1 }, secret, 256)
    const { masterKey } = await c.keysOfPassword(userId, sources, fast)
    note('Normalization', `in the password ${points(sources)}`, hex(masterKey) === hex(new Uint8Array(expected)))
  }
}

/**
 * Checks all cases.
 * @param {(name: string) => Promise<Uint8Array>} read reads a file of fixtures/
 * @param {(type: string, id: string, ok: boolean | undefined) => void} note gets each outcome
 * @param {boolean} [quick] true leaves out the cases of PBKDF2, which take their time
 */
export async function checkVectors(read, note, quick = false) {
  const lines = async name => text(await read(name)).trimEnd().split('\n')
  await checkNormalization(await lines('normalization.txt'), note)
  const commonPasswords = new Set(await lines('common_passwords.txt'))
  for (const name of ['derivation', 'encryption', 'devices', 'signing', 'exchanges']) {
    const file = JSON.parse(text(await read(`${name}.json`)))
    let count = 0
    for (const g of file.testGroups) for (const t of g.tests) {
      count++
      if (quick && g.type === 'Keys') continue
      if (!['valid', 'invalid'].includes(t.result) || !checks[g.type]) throw new Error(`unknown: ${g.type} ${t.result}`)
      let ok = false
      try { ok = await checks[g.type](t, g, read, commonPasswords) } catch (error) { console.error(error) }
      note(g.type, `${t.tcId} ${t.comment} (${t.result})`, ok)
    }
    if (count !== file.numberOfTests) note(name, `${count} tests of ${file.numberOfTests}`, false)
  }
}
