// Plays the whole life of an account with client.mjs: node whole_life.mjs BASE_URL, with the secret in APP_SECRET_KEY.
import assert from 'node:assert/strict'
import { BackupClient, ProblemError, decrypt, deriveKeys, readRecoveryCode, recoveryCode } from './client.mjs'

const [baseUrl] = process.argv.slice(2)
const secret = process.env.APP_SECRET_KEY
const text = bytes => new TextDecoder().decode(bytes)
const log = words => new TextEncoder().encode(words)
const merge = (mine, theirs) => log([...new Set(`${text(theirs)} ${text(mine)}`.split(' '))].join(' '))
const code = expected => error => error instanceof ProblemError && error.code === expected

const keys = await deriveKeys('Alex in JavaScript', 'a password')
const tell = verdict => assert.fail(`a false alarm: ${verdict}`)
const phone = new BackupClient({ baseUrl, secret, keys, pause: 0.1, tell })
const tablet = new BackupClient({ baseUrl, secret, keys, pause: 0.1, tell, now: () => Math.floor(Date.now() / 1000) - 7200 })
assert.equal((await phone.getHealth()).status, 'ok')
await phone.registerUser()
assert.deepEqual(await readRecoveryCode('alex in javascript', (await recoveryCode(keys)).toLowerCase()), keys)
await assert.rejects(phone.fetchBackup(), code('no_backup'))
assert.equal((await phone.sync(log('squat'), merge)).receipt.version, 1)
// The tablet's clock is two hours slow. The client corrects for that, then fetches, merges and stores.
assert.equal(text((await tablet.sync(log('bench'), merge)).log), 'squat bench')
assert.equal(tablet.clockOffset > 7100, true)
// The phone gets a conflict. It fetches, merges and stores again.
const merged = await phone.sync(log('squat row'), merge)
assert.equal(merged.receipt.version, 3)
assert.equal(text(merged.log), 'squat bench row')
const latest = await phone.fetchBackup()
assert.equal(text((await decrypt(latest.blob, keys)).plaintext), 'squat bench row')
assert.equal((await decrypt(latest.blob, keys)).sequence, 3)
assert.equal(await phone.fetchBackup(latest.etag), null)
const newKeys = await deriveKeys('Alex in JavaScript', 'another password')
await phone.changePassword(newKeys, merged.log, merge)
await assert.rejects(tablet.listBackupVersions(), code('credentials_invalid'))
assert.deepEqual((await phone.listBackupVersions()).map(receipt => receipt.keyVersion), [2, 1, 1, 1])
const restored = await phone.restore(1, merged.log, merge, { keys })
assert.equal(restored.receipt.version, 5)
assert.equal(text(restored.log), 'squat')
assert.equal((await phone.sync(restored.log, merge)).receipt, undefined) // there is nothing to store
await phone.deleteUser()
await assert.rejects(phone.listBackupVersions(), code('credentials_invalid'))
console.log('a whole life, by a client written from openapi.yaml and fixtures/ alone')
