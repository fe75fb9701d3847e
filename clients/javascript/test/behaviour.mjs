// What a device does, with a fake server. Each behaviour returns whether it is as it should be.
import { inspect } from 'node:util'
import * as c from '../src/index.mjs'
import {
  SECRET, asBackup, bytes, device, enc, hex, log, merge, problem, receipt, refuses, same, sentBlob, sha, stored, text,
} from './fake_server.mjs'
import { keysOf } from './vectors.mjs'

const OLD = 'correct horse battery staple', NEW = 'a longer and better passphrase', THIRD = 'a third passphrase'
const F = 'f'.repeat(64), E = 'e'.repeat(64)
const no = problem(401, 'credentials_invalid'), none = [200, { versions: [] }]

/**
 * All behaviours, by name.
 * @param {boolean} quick true derives keys in no time
 * @param {(name: string) => Promise<Uint8Array>} read reads a file of fixtures/
 */
export async function behaviours(quick, read) {
  const fast = quick ? { ...c.DERIVATIONS[0], iterations: 1 } : c.DERIVATIONS[0]
  const masterKey = bytes('6468111e80ef9c100cb73f7420ba985cc8131f5b3ba32ed1e9e87e5994c6d601') // of openapi.yaml
  const documented = await c.keysOfMasterKey(await c.deriveUserId('alex'), masterKey)
  const oldKeys = quick ? documented : await keysOf('alex', OLD), newKeys = await keysOf('alex', NEW, fast)
  const change = (phone, password, options) => phone.changePassword(password, { derivations: [fast], ...options })
  const made = (content, sequence, baseSha256, keys = oldKeys) => c.encrypt(enc.encode(content), keys, { sequence, baseSha256 })
  const theirs = await made('theirs', 2, E), base = { sequence: 1, sha256: F }
  const list = async (...versions) => [200, { versions: await Promise.all(versions.map(each => receipt(...each))) }]
  /** A device that is signed in. */
  const phoneOf = (answers, state, options) => device(answers, { keys: oldKeys, ...state }, options)
  const at8 = { highest: { sequence: 8, sha256: F } }

  return {
    async 'the documented example'() {
      const nonce = bytes('000102030405060708090a0b')
      const blob = await c.encrypt(enc.encode('{"workouts":[]}'), oldKeys, { sequence: 1, nonce })
      const body = enc.encode(JSON.stringify({ data: c.toBase64(blob) }))
      const h = await c.sign({ method: 'POST', path: '/api/backup', body, ...oldKeys, secret: SECRET, created: 1795510800 })
      return h.Signature === 'app=:xYxeoWTsho4jXQzg4x1JPRMm9VSlQkp5saTE8/YGETA=:'
    },
    async 'lost answer: the same bytes, freshly signed, with growing pauses'() {
      let time = 1795510800
      const { phone, sent, pauses } = phoneOf(['lost', 'lost', stored(201, 2)], { base }, { now: () => time++ })
      await phone.sync()
      const signatures = new Set(sent.map(({ headers }) => headers.Signature))
      return sent.length === 3 && hex(sent[0].body) === hex(sent[2].body) && signatures.size === 3 && !phone.state.unsent
        && phone.state.base.version === 2 && same(pauses, [2, 4])
    },
    async 'a lost upload is sent again after a restart, the very same bytes'() {
      const first = phoneOf(Array(4).fill('lost'), { base })
      const lost = await refuses(() => first.phone.sync(), c.LostAnswerError)
      const second = phoneOf([stored(200, 2), [304]], first.saved.at(-1))
      await second.phone.sync()
      return lost && hex(first.sent[0].body) === hex(second.sent[0].body) && second.sent.length === 2
        && second.sent[1].headers['If-None-Match'] === `"2-${await sha(sentBlob(first.sent[0]))}"`
    },
    async 'conflict: fetch, merge, store'() {
      const { phone, sent } = phoneOf([problem(409, 'version_conflict', { currentVersion: 2 }), asBackup(theirs, 2), stored(201, 3)], { base })
      await phone.sync()
      return JSON.parse(text(sent[2].body)).baseSha256 === await sha(theirs) && text(phone.log).endsWith('+theirs')
    },
    async 'fresh install, nothing stored'() {
      const { phone, sent } = phoneOf([problem(404, 'no_backup'), stored(201, 1)])
      await phone.sync()
      return !('baseSha256' in JSON.parse(text(sent[1].body)))
    },
    async 'wrong clock, once'() {
      const { phone, sent } = phoneOf([problem(401, 'signature_expired', { serverTime: 1795514400 }), none])
      await phone.versions()
      const twice = phoneOf([problem(401, 'signature_expired', { serverTime: 5 }), problem(401, 'signature_expired', { serverTime: 5 })])
      return sent[1].headers['Signature-Input'].includes('created=1795514400;') && phone.clockOffset === 3600
        && await refuses(() => twice.phone.versions(), c.ProblemError) && twice.sent.length === 2
    },
    async 'deletion: 401 counts only as the answer to a repeat'() {
      await phoneOf(['lost', no]).phone.delete()
      await phoneOf(['lost', 'lost', [204]]).phone.delete()
      return refuses(() => phoneOf([no]).phone.delete(), c.ProblemError)
    },
    async 'password change, answer lost but done'() {
      const { phone, sent } = phoneOf(['lost', list([theirs, 2, 2])], { base })
      await change(phone, NEW)
      return c.sameKeys(phone.state.keys, newKeys) && !phone.state.change && !phone.state.base && sent.length === 2
    },
    async 'password change, not done: both keys for 901 s'() {
      let time = 1000
      const { phone } = phoneOf(['lost', no, none, no, none, no, none], { base }, { now: () => time })
      const failed = await refuses(() => change(phone, NEW), c.LostAnswerError)
      const kept = c.sameKeys(phone.state.change?.newKeys, newKeys) && phone.state.keys === oldKeys
      time += 900
      const first = await phone.settleChange()
      time += 1
      return failed && kept && first === 'unsure' && await phone.settleChange() === 'old' && !phone.state.change
    },
    async 'a lost change of the password: each row of the table'() {
      const change = { oldKeys, newKeys, keepUntil: 1795510800, ahead: 0 }
      const settle = async (...answers) => {
        const { phone } = phoneOf(answers, { change })
        return [await phone.settleChange().catch(error => error.code ?? error.name), !!phone.state.change, c.sameKeys(phone.state.keys, newKeys)]
      }
      return same(await settle(none), ['new', false, true]) && same(await settle(no, none), ['old', false, false])
        && same(await settle(no, no), ['credentials_invalid', true, false])
        && same(await settle(no, problem(429, 'rate_limited')), ['rate_limited', true, false])
        && same(await settle(...Array(4).fill('lost')), ['LostAnswerError', true, false])
    },
    async 'health, 304, problem'() {
      const { client, sent } = device([[200, { status: 'ok', version: '2.0.0' }], [304], problem(403, 'app_outdated')])
      const k = client(oldKeys)
      const ok = (await k.getHealth()).status === 'ok' && !sent[0].headers.Signature && await k.fetchBackup('"1-a"') === null
        && sent[1].headers['If-None-Match'] === '"1-a"'
      return ok && k.registerUser().then(() => false, e => e instanceof c.ProblemError && e.code === 'app_outdated' && sent.length === 3)
    },
    async 'an answer that is not of the contract is lost: the same bytes again'() {
      const { phone, sent } = phoneOf([[502, '<h1>Bad Gateway</h1>', 'text/html'], [200, '<p>Welcome</p>', 'text/html'], [200, {}], stored(201, 2)], { base })
      await phone.sync()
      return sent.length === 4 && new Set(sent.map(({ body }) => hex(body))).size === 1 && phone.state.highest.sequence === 2
    },
    async 'a receipt of other bytes is a lost answer'() {
      const other = async () => [201, await receipt(enc.encode('other'))]
      const small = async init => [201, { ...await receipt(sentBlob(init)), size: 1 }]
      const { phone, sent } = phoneOf([other, small, stored(200, 2)], { base })
      await phone.sync()
      return sent.length === 3 && phone.state.highest.sha256 === await sha(sentBlob(sent[0]))
    },
    async 'a 304 that nobody asked for is a lost answer; one of an older version is told'() {
      const { phone, told, sent } = phoneOf([[304], asBackup(theirs, 2), [304], [304]], {}, { mergeWith: mine => mine })
      await phone.fetch()
      await phone.fetch()
      const quiet = told.length === 0 && sent[2].headers['If-None-Match'] === `"2-${await sha(theirs)}"`
      const later = phoneOf([[304]], { base: { ...base, version: 1 }, ...at8 })
      await later.phone.fetch()
      return quiet && phone.state.base.sequence === 2 && same(later.told, ['rollback']) && sent.length === 3
    },
    async 'an unsettled change: nothing is encrypted with the old keys'() {
      const still = () => list([theirs, 2])
      const { phone, sent } = phoneOf(['lost', no, still(), no, still(), no, still(), no, still(), stored(200, 3, 2)], { base })
      const refused = await refuses(() => change(phone, NEW), c.LostAnswerError) && await refuses(() => phone.restore(1), c.UnsettledChangeError)
        && await refuses(() => change(phone, THIRD), c.UnsettledChangeError)
      await phone.sync()
      const uploads = sent.filter(({ method }) => method !== 'GET')
      for (const upload of uploads) await c.decrypt(sentBlob(upload), newKeys)
      return refused && uploads.length === 2 && uploads.every(({ path }) => path.endsWith('storage-key')) && c.sameKeys(phone.state.keys, newKeys) && !phone.state.change
    },
    async '408: nothing has changed, repeat'() {
      const { phone, sent } = phoneOf([problem(408, 'request_timeout'), none])
      await phone.versions()
      return sent.length === 2
    },
    async 'Retry-After is waited for, if it is not long'() {
      const busy = seconds => [...problem(503, 'unavailable'), undefined, { 'Retry-After': seconds }]
      const { phone, pauses } = phoneOf([busy('7'), none])
      await phone.versions()
      const later = phoneOf([busy('3600')])
      return same(pauses, [7]) && await later.phone.versions().then(() => false, error => error.lost && error.retryAfter === 3600)
    },
    async 'a 429 is not repeated by itself'() {
      const { phone, sent } = phoneOf([[...problem(429, 'rate_limited'), undefined, { 'Retry-After': '9' }]])
      return await phone.versions().then(() => false, error => error.retryAfter === 9 && !error.lost) && sent.length === 1
    },
    async 'sequence and base of an upload'() {
      const { phone, sent } = phoneOf([asBackup(theirs, 2), stored(201, 3), stored(201, 4)])
      await phone.sync()
      const open = await c.decrypt(sentBlob(sent[1]), oldKeys)
      await phone.update(mine => merge(mine, enc.encode('new')))
      await phone.sync()
      const { highest } = phone.state
      return open.sequence === 3 && open.baseSha256 === await sha(theirs) && await sha(sentBlob(sent[2])) === highest.sha256 && highest.sequence === 4
    },
    async 'an older version as the latest: merged, told, stored with a higher sequence'() {
      const { phone, sent, told } = phoneOf([problem(409, 'version_conflict'), asBackup(theirs, 9), stored(201, 10)], { base, ...at8 })
      await phone.sync()
      return same(told, ['rollback']) && text(phone.log).includes('mine') && (await c.decrypt(sentBlob(sent[2]), oldKeys)).sequence === 9
    },
    async 'another history: merged and told'() {
      const { phone, told } = phoneOf([asBackup(await made('fork', 9, 'a'.repeat(64)), 9), stored(201, 10)], at8)
      await phone.sync()
      return same(told, ['unknown-base']) && text(phone.log).includes('mine') && phone.state.highest.sequence === 10
    },
    async 'everything is gone: told'() {
      const { phone, told } = phoneOf([problem(404, 'no_backup'), stored(201, 1)], at8)
      await phone.sync()
      return same(told, ['rollback']) && phone.state.highest.sequence === 9
    },
    async 'registering resets the highest seen, a retry does not'() {
      const { phone } = phoneOf([[200, { createdAt: 'now' }], [201, { createdAt: 'now' }]], { base, ...at8 })
      await phone.register('Alex', OLD)
      const kept = phone.state.highest.sequence === 8
      await phone.register('Alex', OLD)
      return kept && phone.state.highest.sequence === 0 && !phone.state.base
    },
    async 'an unknown format is never overwritten'() {
      const newer = theirs.map((byte, at) => at ? byte : 2)
      const { phone, sent } = phoneOf([asBackup(newer, 3), asBackup(newer, 3)])
      return await refuses(() => phone.sync(), c.AppOutdatedError) && await refuses(() => phone.replaceUnreadable(), c.AppOutdatedError) && sent.length === 2
    },
    async 'a damaged version is replaced, as a child of it'() {
      const broken = theirs.map((byte, at) => at === 60 ? byte ^ 1 : byte)
      const { phone, sent } = phoneOf([asBackup(broken, 3), list([broken, 3]), stored(201, 4)])
      await phone.replaceUnreadable()
      const open = await c.decrypt(sentBlob(sent[2]), oldKeys)
      return open.sequence === phone.state.highest.sequence && open.sequence === 2 && open.baseSha256 === await sha(broken)
    },
    async 'another version than the one that was asked for'() {
      const wrong = () => asBackup(theirs, 1)
      const { phone, client } = phoneOf([list([theirs, 3]), ...Array.from({ length: 4 }, wrong), list([theirs, 3]), wrong(), asBackup(theirs, 3), asBackup(theirs, 3)])
      const misfit = await refuses(() => phone.openVersion(3), c.MisfitError), opened = text(await phone.openVersion(3)) === 'theirs'
      return misfit && opened && refuses(() => client(oldKeys).fetchBackupVersion(3, { sha256: E }), c.MisfitError)
    },
    async 'a restored snapshot: the old key works again, so the password is changed again'() {
      const restored = await made('theirs', 2)
      const state = { keys: newKeys, base: { ...base, version: 1 }, highest: { sequence: 5, sha256: F }, oldKeys: [{ keys: oldKeys, until: 1795510801 }] }
      const { phone, sent, told } = phoneOf([list([restored, 2]), asBackup(restored, 2), stored(200, 3, 2)], state)
      const asked = await phone.afterRefusal() === 'confirm' && sent.length === 1
      const outcome = await phone.afterRefusal(true), open = await c.decrypt(sentBlob(sent[2]), newKeys)
      const late = phoneOf([no], { oldKeys: [{ keys: oldKeys, until: 1795510800 }] })
      const unconditional = !('If-None-Match' in sent[1].headers) // the base was decrypted with other keys
      return asked && unconditional && outcome === 'changed' && same(told, ['rollback']) && open.sequence === 6 && c.sameKeys(phone.state.keys, newKeys) && await late.phone.afterRefusal() === 'ask'
    },
    async 'after a change, the old keys are kept for 60 days'() {
      const { phone } = phoneOf([stored(200, 3, 2)], { base })
      await change(phone, NEW)
      const { oldKeys: kept, highest } = phone.state
      return kept.length === 1 && kept[0].keys === oldKeys && kept[0].until === 1795510800 + 60 * 86400 && highest.sequence === 2
    },
    async 'nothing is stored if nothing has changed'() {
      const union = (a, b) => hex(a) === hex(b) ? a : merge(a, b)
      const { phone, sent } = phoneOf([asBackup(theirs, 2), asBackup(theirs, 2)], { log: enc.encode('theirs') }, { mergeWith: union })
      await phone.sync()
      await phone.sync()
      return text(phone.log) === 'theirs' && sent.every(({ method }) => method === 'GET')
    },
    async 'a restored log replaces the log when it is acknowledged, and not before'() {
      const old = await made('old', 1)
      const { phone, sent } = phoneOf([asBackup(theirs, 2), list([theirs, 2], [old, 1]), asBackup(old, 1), 'lost', 'lost', 'lost', 'lost', stored(200, 3), [304]])
      const lost = await refuses(() => phone.restore(1), c.LostAnswerError) && !!phone.state.unsent && text(phone.log).endsWith('+theirs')
      await phone.sync()
      const { sequence } = await c.decrypt(sentBlob(sent[3]), oldKeys)
      return lost && sequence === 3 && hex(sentBlob(sent[3])) === hex(sentBlob(sent[7])) && text(phone.log) === 'old'
    },
    async 'what was added while the answer to a restore was lost stays'() {
      const old = await made('old', 1)
      const { phone } = phoneOf([asBackup(theirs, 2), list([theirs, 2], [old, 1]), asBackup(old, 1), 'lost', 'lost', 'lost', 'lost', stored(200, 3), stored(201, 4)])
      await refuses(() => phone.restore(1))
      await phone.update(() => enc.encode('new'))
      await phone.sync()
      return text(phone.log) === 'new+old'
    },
    async 'a restored log reaches a device that has not changed, and no other'() {
      const restored = await made('old', 3, await sha(theirs))
      const state = { log: enc.encode('theirs') }, union = (a, b) => hex(a) === hex(b) ? a : merge(a, b)
      const one = phoneOf([asBackup(theirs, 2), asBackup(restored, 3)], state, { mergeWith: union })
      await one.phone.sync()
      await one.phone.sync()
      const other = phoneOf([asBackup(theirs, 2), problem(409, 'version_conflict'), asBackup(restored, 3), stored(201, 4)], state, { mergeWith: union })
      await other.phone.sync()
      await other.phone.update(() => log)
      await other.phone.sync()
      return text(one.phone.log) === 'old' && text(other.phone.log).endsWith('+old')
    },
    async 'junk on top, and the version below it restored: a sequence above all others'() {
      const junk = theirs.map((byte, at) => at === 60 ? byte ^ 1 : byte), below = await made('below', 9), both = () => list([junk, 3], [below, 2])
      const { phone, sent } = phoneOf([asBackup(junk, 3), asBackup(junk, 3), both(), both(), asBackup(below, 2), stored(201, 4)], { highest: { sequence: 7, sha256: F } })
      const asked = await refuses(() => phone.restore(2), c.DamagedError)
      await phone.restore(2, { confirmed: 'damaged' })
      return asked && (await c.decrypt(sentBlob(sent[5]), oldKeys)).sequence === 11
    },
    async 'an unknown format, and the person confirms that there is no newer app'() {
      const newer = theirs.map((byte, at) => at ? byte : 2)
      const { phone, sent } = phoneOf([asBackup(newer, 3), asBackup(newer, 3), list([newer, 3]), stored(200, 4, 2)])
      const refused = await refuses(() => change(phone, NEW, { confirmed: 'damaged' }), c.AppOutdatedError)
      await change(phone, NEW, { confirmed: 'no-newer-app' })
      return refused && JSON.parse(text(sent[3].body)).baseSha256 === await sha(newer) && c.sameKeys(phone.state.keys, newKeys)
    },
    async 'a 200 to the repeat of a lost registration resets the highest seen, also after a restart'() {
      const { phone } = phoneOf(['lost', [200, { createdAt: 'now' }]], at8)
      const later = phoneOf([[200, { createdAt: 'now' }]], { ...at8, registering: oldKeys })
      for (const each of [phone, later.phone]) await each.register('Alex', OLD)
      return phone.state.highest.sequence === 0 && later.phone.state.highest.sequence === 0 && !later.phone.state.registering
    },
    async '507 and damage are no lost answers'() {
      const { phone, sent } = phoneOf([problem(507, 'storage_full'), problem(500, 'backup_damaged'), problem(500, 'account_damaged')], { base })
      const refused = await refuses(() => phone.sync(), c.ProblemError) && await refuses(() => phone.fetch(), c.ProblemError)
      return refused && await refuses(() => phone.fetch(), c.ProblemError) && sent.length === 3 && !phone.state.unsent
    },
    async 'another success than that of the operation is lost'() {
      const { phone, sent } = phoneOf([[202, { versions: [] }], [204], [201, { versions: [] }], none])
      await phone.versions()
      return sent.length === 4
    },
    async 'the wait after a clock that was ahead'() {
      const ahead = problem(401, 'signature_expired', { serverTime: 1795510800 - 500 })
      const { phone } = phoneOf([ahead, 'lost', no, none], { base })
      await refuses(() => change(phone, NEW))
      const other = phoneOf([ahead, [204]])
      await other.phone.delete()
      return phone.state.change.keepUntil === 1795510800 + 1401 && phone.state.change.ahead === 500
        && other.phone.state.deletion.registerAfter === 1795510800 + 1401 && refuses(() => other.phone.register('Alex', OLD), c.UnsettledChangeError)
    },
    async 'a lost deletion is repeated for 10 minutes, then the person is asked'() {
      let time = 1000
      const { phone, sent } = phoneOf([...Array(4).fill('lost'), [204]], {}, { now: () => time })
      await refuses(() => phone.delete(), c.LostAnswerError)
      time += 600
      const asks = await refuses(() => phone.delete(), c.UnsettledChangeError) && await refuses(() => phone.sync(), c.UnsettledChangeError)
      await phone.delete(true)
      return asks && sent.length === 5
    },
    async 'a sign-in ends a deletion that did not happen'() {
      const deletion = { first: 1, registerAfter: 1795510800, ahead: 0 }, code = await c.recoveryCode(oldKeys)
      const early = phoneOf([none], { deletion: { ...deletion, registerAfter: 1795510801 } }), late = phoneOf([none], { deletion })
      for (const { phone } of [early, late]) await phone.signInWithCode('alex', code)
      return !!early.phone.state.deletion && !late.phone.state.deletion
    },
    async 'a recovery code signs in, and a void one does not'() {
      const code = await c.recoveryCode(oldKeys), { phone } = device([none]), refused = device([no])
      await phone.signInWithCode('Alex ', code.toLowerCase())
      return phone.state.keys.storageKey === oldKeys.storageKey && phone.state.succeeded === 'v1'
        && await refuses(() => refused.phone.signInWithCode('alex', code), c.ProblemError) && !refused.phone.state.keys
        && refuses(() => device([]).phone.signInWithCode('anna', code), c.MistypedCodeError)
    },
    async 'an older version of another password: the kept keys, then the password that the person types'() {
      const old = await made('old', 1, undefined, newKeys), both = () => list([theirs, 2], [old, 1])
      const kept = phoneOf([both(), asBackup(old, 1)], { oldKeys: [{ keys: newKeys, until: 1795510809 }] })
      const { phone } = phoneOf([both(), asBackup(old, 1), both(), asBackup(old, 1), asBackup(theirs, 2), both(), asBackup(old, 1), stored(201, 3)])
      const password = { password: NEW, derivations: [fast] }
      const opened = text(await kept.phone.openVersion(1)) === 'old' && await refuses(() => phone.openVersion(1), c.DamagedError)
        && text(await phone.openVersion(1, password)) === 'old' && text(phone.log) === text(log)
      await phone.restore(1, password)
      return opened && text(phone.log) === 'old'
    },
    async 'a device that is not signed in'() {
      const { phone } = device([])
      return await refuses(() => phone.sync(), c.DeviceError) && refuses(() => phone.recoveryCode(), c.DeviceError)
    },
    async 'a state belongs to one username'() {
      const { phone, sent } = phoneOf([])
      return await refuses(() => phone.register('anna', 'a password'), c.DeviceError) && await refuses(() => phone.signIn('anna', 'a password'), c.DeviceError) && sent.length === 0
    },
    async 'a new password that is in force, or kept as an old one'() {
      const { phone, sent } = phoneOf([], { oldKeys: [{ keys: newKeys, until: 1795510809 }] })
      await phone.changePassword(OLD)
      return sent.length === 0 && refuses(() => change(phone, NEW), c.DeviceError)
    },
    async 'calls run one after the other, and an edit waits for none'() {
      let answer
      const slow = new Promise(done => { answer = done })
      const { phone, sent } = phoneOf([slow, asBackup(theirs, 2), stored(201, 3)], { base }, { mergeWith: async (a, b) => { await 0; return merge(a, b) } })
      const calls = Promise.all([phone.sync(), phone.versions()].map(call => call.catch(error => error)))
      await phone.update(() => enc.encode('added'))
      while (!sent.length) await new Promise(done => setTimeout(done, 1))
      const alone = sent.length === 1 && text(phone.log) === 'added'
      answer(problem(409, 'version_conflict'))
      await calls
      return alone && sent[2].method === 'POST' && text(phone.log) === 'added+theirs' && sent[3].path.endsWith('versions')
    },
    async 'a log is bytes, whatever the app makes'() {
      const { phone, saved } = phoneOf([asBackup(theirs, 2)], {}, { mergeWith: () => 'text' })
      return await refuses(() => phone.update(async mine => mine), TypeError) && await refuses(() => phone.fetch(), TypeError)
        && text(phone.log) === text(log) && saved.length === 0
    },
    async 'an answer in parts'() {
      const parts = ['{"versions"', ':[', ']}'], trickle = async function* () { for (const part of parts) { await new Promise(done => setTimeout(done, 30)); yield enc.encode(part) } }
      const fetch = async () => new Response(ReadableStream.from(trickle()), { headers: { 'Content-Type': 'application/json' } })
      return same(await phoneOf([], {}, { fetch }).phone.versions(), [])
    },
    async 'what is added during a merge is merged, too'() {
      let merging
      const { phone } = phoneOf([asBackup(theirs, 2)], {}, { mergeWith: async (a, b) => { await merging?.(); return merge(a, b) } })
      merging = async () => { merging = undefined; await phone.update(() => enc.encode('added')) }
      await phone.fetch()
      return text(phone.log) === 'added+theirs'
    },
    async 'the state is saved before the request, as a whole, and never an earlier one last'() {
      const { phone, saved } = phoneOf([init => saved.at(-1).unsent && stored(201, 2)(init)], { base })
      await phone.sync()
      const failing = phoneOf([], { base }, { save: () => { throw new Error('the disk is full') } })
      return same(Object.keys(saved.at(-1)), Object.keys(c.newState())) && !saved.at(-1).unsent && hex(saved.at(-1).log) === hex(phone.log)
        && await refuses(() => failing.phone.sync(), Error) && failing.sent.length === 0
    },
    async 'an endless wait ends'() {
      const never = (url, { signal }) => new Promise((_, fail) => { signal.addEventListener('abort', () => fail(signal.reason)) })
      const { phone } = phoneOf([], {}, { fetch: never, timeout: 0.01 })
      return phone.versions().then(() => false, error => error instanceof c.LostAnswerError && error.reason === 'AbortError')
    },
    async 'no error shows a key, the secret, a log or a blob'() {
      const state = { base, highest: { sequence: 8, sha256: F } }
      const echo = (status, type = 'application/problem+json') => async init => {
        const told = `${JSON.stringify(init.headers)} ${init.body ? text(init.body) : ''} ${atob(init.headers.Authorization.slice(6))}`
        const key = init.body && JSON.parse(text(init.body)).storageKey || oldKeys.storageKey
        return [status, { status, code: 'version_conflict', title: told, detail: told, type: told, [told]: told, errors: [told], serverTime: told, currentVersion: key }, type, { 'X-Request-Id': key, 'Retry-After': key }]
      }
      const newer = theirs.map((byte, at) => at ? byte : 2)
      const runs = [
        [phone => phone.sync(), Array(9).fill(echo(400))],
        [phone => phone.sync(), Array(9).fill(echo(500))],
        [phone => phone.sync(), Array(9).fill(echo(200, 'application/json'))],
        [phone => phone.sync(), Array(9).fill(async init => problem(400, (await echo(400)(init))[1].currentVersion))],
        [phone => phone.sync(), Array(9).fill(init => { throw Object.assign(new TypeError(text(init.body)), { request: init, cause: Object.assign(new Error(init.headers.Authorization), { code: oldKeys.storageKey }) }) })],
        [phone => change(phone, NEW), Array(9).fill(echo(400))],
        [phone => change(phone, NEW), Array(9).fill('lost')],
        [phone => change(phone, NEW), Array(9).fill(no)],
        [phone => phone.register('Alex', OLD), Array(9).fill(echo(409))],
        [phone => phone.delete(), Array(9).fill(echo(401))],
        [phone => phone.fetch(), [asBackup(newer, 3)]],
        [phone => phone.fetch(), [asBackup(theirs.map((byte, at) => at === 60 ? byte ^ 1 : byte), 3)]],
        [phone => phone.fetch(), Array.from({ length: 4 }, async () => [200, { ...(await asBackup(theirs, 3))[1], size: 1 }])],
        [phone => phone.signInWithCode('alex', `${'0'.repeat(55)}1`), []],
        [phone => phone.restore(1), Array.from({ length: 2 }, () => list([theirs, 3])).flatMap(each => [asBackup(theirs, 3), each])],
        [phone => phone.register('Alex', OLD), [], { deletion: { first: 0, registerAfter: 1e10, ahead: 0 } }],
      ]
      for (const [run, answers, more] of runs) {
        const { phone, sent } = phoneOf(answers, { ...state, ...more })
        const error = await run(phone).then(() => undefined, failed => failed)
        if (!(error instanceof Error)) return false
        const secrets = [SECRET, oldKeys, newKeys, ...sent.flatMap(({ headers, body }) => [headers.Authorization?.slice(6), body && JSON.parse(text(body)).data]), c.toBase64(theirs), text(log)]
          .flatMap(each => each?.userId ? [each.storageKey, hex(each.encryptionKey), c.toBase64(each.encryptionKey), hex(each.masterKey), each.encryptionKey.join(', ')] : each).filter(Boolean)
        const shown = [error.message, `${error}`, JSON.stringify(error), inspect(error), inspect(error, { depth: 9, showHidden: true }), error.stack, ...Object.values(error).map(String)].join('\n')
        const found = secrets.find(secret => shown.includes(secret.slice(0, 24)))
        if (found) { console.error(shown); return false }
        if (error instanceof c.BackupError && !/^[A-Z][^\n]{10,160}\.$/.test(error.message)) { console.error('no sentence:', error.message); return false }
      }
      return true
    },
    async 'a device shows no key, no log'() {
      const { phone, client } = phoneOf([])
      const shown = [phone, client(oldKeys)].map(each => JSON.stringify(each) + inspect(each, { depth: 9 })).join()
      return ![SECRET, oldKeys.storageKey, oldKeys.encryptionKey.join(', '), text(log)].some(secret => shown.includes(secret))
    },
    async 'lone surrogates are refused'() {
      return await refuses(() => c.deriveUserId('a\ud800'), RangeError) && refuses(() => c.deriveKeys('alex', '\udc00a'), RangeError)
    },
    async 'passphrases'() {
      const lines = async name => text(await read(name)).trimEnd().split('\n')
      const words = await lines('passphrase_words.txt'), common = new Set(await lines('common_passwords.txt'))
      const phrases = new Set(Array.from({ length: 20 }, () => c.newPassphrase(words)))
      return phrases.size === 20 && [...phrases].every(each => each.split(' ').length === 4 && !c.passwordProblem(each, common)) && words.length === 7776
    },
  }
}
