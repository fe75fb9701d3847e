// node clients/javascript/test/random_lives.mjs BASE_URL FIRST_SEED COUNT, with the secret in APP_SECRET_KEY.
// Two devices of one account on a bad network, with a server without limits: whatever happens, in an order that a seed
// decides, an honest server raises no alarm, no workout is lost, and the devices get in step.
import assert from 'node:assert/strict'
import * as c from '../src/index.mjs'

const [baseUrl, first, count] = process.argv.slice(2), secret = process.env.APP_SECRET_KEY
const derivations = [{ ...c.DERIVATIONS[0], iterations: 1 }] // takes no time
const toBytes = workouts => new TextEncoder().encode(JSON.stringify([...new Set(workouts)].sort()))
const fromBytes = log => log.length ? JSON.parse(new TextDecoder().decode(log)) : []
const merge = (mine, theirs) => toBytes([...fromBytes(mine), ...fromBytes(theirs)])
const milliseconds = number => new Promise(done => setTimeout(done, number))
const slowly = async (mine, theirs) => { await milliseconds(4); return merge(mine, theirs) }
const FATES = [...Array(6).fill('arrives'), 'is lost', 'is late', 'answer is lost', "answer is a proxy's"]

/** Numbers from 0 to 1, decided by a seed: a linear congruential generator, of which the upper bits are used. */
const numbers = seed => () => {
  seed = (seed * 1664525 + 1013904223) % 2 ** 32
  return seed / 2 ** 32
}

class Phone {
  told = []
  late = []
  state = c.newState()
  fate = () => 'arrives'

  constructor() { this.restart() }

  /** Makes the device again from what it saved. */
  restart() {
    this.device = new c.Device({
      baseUrl, secret, merge: slowly, state: this.state, fetch: (...request) => this.fetch(...request), pause: async () => {},
      save: state => { this.state = structuredClone(state) }, tell: verdict => this.told.push(verdict),
    })
  }

  async fetch(url, { signal, ...init }) {
    const fate = this.fate()
    if (fate === 'is late') this.late.push([url, init])
    if (fate === 'is lost' || fate === 'is late') throw new TypeError('fetch failed')
    const answer = await fetch(url, { ...init, signal })
    if (fate === 'answer is lost') throw new TypeError('fetch failed')
    return fate === "answer is a proxy's" ? new Response('<h1>Bad Gateway</h1>', { status: 502, headers: { 'Content-Type': 'text/html' } }) : answer
  }

  /** Lets the late requests arrive, exactly as they were signed. */
  async deliver() { for (const request of this.late.splice(0)) await fetch(...request) }

  train(name) { return this.device.update(log => merge(log, toBytes([name]))) }
}

class Life {
  passwords = ['password 0']
  trained = []
  done = { changes: 0, restores: 0, junk: 0 }
  phones = [new Phone(), new Phone()]

  constructor(seed) {
    this.random = numbers(seed)
    this.calls = ['train', 'train', 'train', 'sync', 'fetch', 'restart', 'change', 'settle', 'deliver', 'again']
    if (seed % 2) this.calls.push('restore', 'junk') // after a restore, a workout may be gone
    this.user = `a life in JavaScript, ${seed} ${Date.now()}`
  }

  pick(list) { return list[Math.floor(this.random() * list.length)] }
  calm() { for (const phone of this.phones) phone.fate = () => 'arrives' }
  rough() { for (const phone of this.phones) phone.fate = () => this.pick(FATES) }

  async begin() {
    const [one, other] = this.phones
    await one.device.register(this.user, this.passwords[0], derivations)
    await other.device.signIn(this.user, this.passwords[0], derivations)
    this.rough()
  }

  async step() {
    const phone = this.pick(this.phones)
    const call = this.pick(this.calls)
    await this.careful(phone, () => this[call](phone))
    assert.deepEqual(this.phones.map(({ told }) => told), [[], []], `a false alarm at ${call}`)
  }

  /** Does what an app does: after a refusal, finds out about a pending change, or asks the person for the password. */
  async careful(phone, call) {
    try { await call() } catch (error) {
      if (error.code === 'credentials_invalid') return this.findOut(phone)
      if (!error.lost && !(error instanceof c.UnsettledChangeError)) throw error
    }
  }

  async findOut(phone) {
    try { if (phone.state.change && await phone.device.settleChange() === 'new') return } catch (error) { if (error.lost) return }
    for (const password of [...this.passwords].reverse()) {
      try { return await phone.device.signIn(this.user, password, derivations) } catch (error) { if (error.lost) return }
    }
  }

  async train(phone) {
    const name = `workout ${this.trained.length}`
    this.trained.push(name)
    // The person goes on while the device is syncing, and the app calls it once more.
    const calls = Promise.allSettled([phone.device.sync(), phone.device.sync()])
    await milliseconds(this.random() * 12)
    await phone.train(name)
    const failed = (await calls).find(({ status }) => status === 'rejected')
    if (failed) throw failed.reason
    await phone.device.sync()
  }
  sync(phone) { return phone.device.sync() }
  fetch(phone) { return phone.device.fetch() }
  async restart(phone) { phone.restart() }
  settle(phone) { return phone.device.settleChange() }
  deliver(phone) { return phone.deliver() }
  async again(phone) { if (!phone.state.base) await phone.device.register(this.user, this.passwords.at(-1), derivations).catch(error => { if (error.code !== 'username_taken') throw error }) }

  async restore(phone, confirmed = '', chosen) {
    const version = chosen ?? this.pick(await phone.device.versions())?.version
    if (!version) return
    this.restored = true
    for (const password of this.passwords) {
      try {
        await phone.device.restore(version, { password, confirmed, derivations })
        return this.done.restores++
      } catch (error) {
        if (!(error instanceof c.DamagedError || error instanceof c.DeviceError)) throw error
      }
    }
  }

  async change(phone) {
    this.passwords.push(`password ${this.passwords.length}`)
    await phone.device.changePassword(this.passwords.at(-1), { derivations })
    this.done.changes++
  }

  /** Somebody with the storage key stores junk. A device restores the version below, as the person says. */
  async junk(phone) {
    const [latest] = await phone.device.versions()
    if (!latest || this.phones.some(({ state }) => state.change)) return
    this.calm()
    const client = new c.BackupClient({ baseUrl, secret, keys: phone.state.keys })
    const { version } = await client.storeBackup(new TextEncoder().encode('\x01 junk'), latest.sha256)
    assert.equal(version, latest.version + 1)
    this.done.junk++
    const both = this.pick([this.phones, [...this.phones].reverse()])
    for (const each of both) {
      try { await this.restore(each, 'damaged', latest.version); break } catch (error) {
        if (error.code !== 'credentials_invalid') throw error // it does not know the new password
      }
    }
    this.rough()
  }

  /** Everything arrives. Then the devices get in step. */
  async end() {
    this.calm()
    for (const phone of this.phones) await phone.deliver()
    for (const phone of [...this.phones, ...this.phones, ...this.phones]) await this.careful(phone, () => phone.device.sync())
    for (const phone of this.phones) await this.careful(phone, () => phone.device.fetch())
    const [one, other] = this.phones, log = fromBytes(one.device.log)
    assert.deepEqual([one.told, other.told], [[], []], 'a false alarm')
    assert.deepEqual(log, fromBytes(other.device.log), 'the devices are out of step')
    assert.deepEqual(one.state, structuredClone(one.device.state), 'what is saved is not what the device knows')
    if (!this.restored) assert.deepEqual(this.trained.filter(name => !log.includes(name)), [], 'a workout is lost')
    assert.deepEqual(one.state.highest, other.state.highest)
    const [latest] = await one.device.versions()
    for (const phone of this.phones) await phone.device.sync()
    assert.deepEqual((await one.device.versions())[0], latest, 'an upload for nothing')
  }
}

const total = {}
for (let seed = Number(first); seed < Number(first) + Number(count); seed++) {
  try {
    const life = new Life(seed)
    await life.begin()
    for (let step = 0; step < 20; step++) await life.step()
    await life.end()
    for (const [name, times] of Object.entries(life.done)) total[name] = (total[name] ?? 0) + times
  } catch (error) {
    console.error(`seed ${seed}`)
    throw error
  }
}
console.log(JSON.stringify(total))
