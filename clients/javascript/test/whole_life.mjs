// Plays the whole life of an account with a running server, in Node and in browsers. It throws at the first surprise.
import * as c from '../src/index.mjs'

const text = bytes => new TextDecoder().decode(bytes)
const log = words => new TextEncoder().encode(words)
const merge = (mine, theirs) => log([...new Set(`${text(theirs)} ${text(mine)}`.trim().split(' '))].join(' '))

function equal(found, expected, what) {
  const [one, other] = [found, expected].map(each => JSON.stringify(each))
  if (one !== other) throw new Error(`${what}: ${one} is not ${other}`)
}
async function refused(call, code) {
  try { await call() } catch (error) { return equal(error.code ?? error.name, code, 'the refusal') }
  throw new Error(`no refusal: ${code}`)
}

/**
 * @param {{baseUrl: string, secret: string, username?: string, busy?: () => Promise<void>, ready?: () => Promise<void>}} options
 *   busy: makes the server answer 503; ready: ends that
 */
export async function wholeLife({ baseUrl, secret, username = `Alex ${Math.random()}`, busy, ready }) {
  const tell = verdict => { throw new Error(`a false alarm: ${verdict}`) }
  const answers = [], pauses = [], asked = []
  const fetch = async (...request) => {
    const answer = await globalThis.fetch(...request)
    answers.push(answer.status)
    if (answer.status === 503) asked.push(Number(answer.headers.get('Retry-After')))
    return answer
  }
  const last = () => answers.at(-1)
  const options = { baseUrl, secret, merge, tell, fetch, pause: async seconds => { pauses.push(seconds); await ready?.() } }
  const phone = new c.Device(options)
  // The tablet's clock is two hours slow. It corrects for that at the first 401.
  const tablet = new c.Device({ ...options, now: () => Math.floor(Date.now() / 1000) - 7200 })
  const keys = await c.deriveKeys(username, 'a password')
  const service = new c.BackupClient({ baseUrl, secret, keys })
  equal((await service.getHealth()).status, 'ok', 'health')

  await phone.register(username, 'a password')
  equal(await c.readRecoveryCode(username.toLowerCase(), (await phone.recoveryCode()).toLowerCase()), keys, 'the recovery code')
  await refused(() => service.fetchBackup(), 'no_backup')
  await phone.update(() => log('squat'))
  await phone.sync()
  equal(phone.state.base.version, 1, 'the first version')
  await phone.sync()
  equal(last(), 304, 'a backup of what is stored')

  await tablet.signIn(username, 'a password')
  equal(answers.slice(-2), [401, 200], 'the correction of the clock')
  equal(Math.abs(tablet.clockOffset - 7200) < 60, true, 'the clock')
  await tablet.update(() => log('bench'))
  await tablet.sync()
  equal(text(tablet.log), 'squat bench', 'what the tablet merged')
  // The phone gets a conflict. It fetches, merges and stores again.
  await phone.update(mine => log(`${text(mine)} row`))
  await phone.sync()
  equal([answers.slice(-3), phone.state.base.version, text(phone.log)], [[409, 200, 201], 3, 'squat bench row'], 'the conflict')
  const latest = await service.fetchBackup(), open = await c.decrypt(latest.blob, keys)
  equal([text(open.plaintext), open.sequence], ['squat bench row', 3], 'the latest version')
  equal(await service.fetchBackup(latest.etag), null, 'what an ETag gets')

  if (busy) {
    await busy()
    await phone.versions()
    equal([answers.slice(-2), pauses.length, asked[0] > 0], [[503, 200], 1, true], 'what follows a 503')
    equal(pauses, asked, 'the pause after a 503')
  }

  await phone.changePassword('another password')
  await refused(() => tablet.versions(), 'credentials_invalid')
  equal(await tablet.afterRefusal(), 'ask', 'a changed password')
  await tablet.signIn(username, 'another password')
  await tablet.sync()
  equal((await tablet.versions()).map(receipt => receipt.keyVersion), [2, 1, 1, 1], 'the versions')
  equal(text(await phone.openVersion(1)), 'squat', 'the first version, by the kept keys')
  await phone.restore(1)
  equal([text(phone.log), phone.state.base.version], ['squat', 5], 'the restored version')
  await tablet.sync()
  equal(text(tablet.log), 'squat', 'what a device without changes adopts')
  const fresh = new c.Device(options)
  await fresh.signInWithCode(username, await phone.recoveryCode())
  await fresh.fetch()
  equal(text(fresh.log), 'squat', 'what a recovery code opens')
  await refused(() => fresh.openVersion(3), 'DamagedError')
  equal(text(await fresh.openVersion(3, { password: 'a password' })), 'squat bench row', 'an older version, by its password')
  await phone.delete()
  await refused(() => tablet.versions(), 'credentials_invalid')
  await refused(() => phone.sync(), 'UnsettledChangeError')
  return answers
}
