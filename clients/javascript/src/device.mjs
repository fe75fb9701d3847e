// A device that keeps one log and its backup in step: what it saves and when, what it does after a lost answer, when it
// tells the person.

import { UnsettledChangeError, hasCode, isLost, MisfitError, ProblemError } from './answers.mjs'
import { ALARMS, NOTHING_SEEN, decrypt, encrypt, higher, nextSequence, verdict } from './blob.mjs'
import { sha256Hex } from './bytes.mjs'
import { BackupClient, unixNow } from './client.mjs'
import { AppOutdatedError, DamagedError, DeviceError, MistypedCodeError } from './errors.mjs'
import {
  DERIVATIONS, deriveUserId, derivationsToTry, keysOfPassword, readRecoveryCode, recoveryCode, sameKeys,
} from './keys.mjs'

/** @import { Receipt } from './answers.mjs' */
/** @import { Seen, Verdict } from './blob.mjs' */
/** @import { Backup, Clock, ClientOptions } from './client.mjs' */
/** @import { Derivation, Keys } from './keys.mjs' */

/**
 * The version that a log was made from. If it cannot be decrypted, it has a sha256 alone.
 * @typedef {object} Base
 * @property {string} sha256
 * @property {number} [sequence]
 * @property {string} [logSha256] the sha256 of its log
 * @property {number} [version] its number. With it, a fetch asks for what is newer, and gets 304 if nothing is.
 */

/**
 * A blob that was sent. After a lost answer, the very same bytes are sent again. If it restores an older version,
 * `restored` is its log, which then replaces the log with the sha256 `insteadOf`.
 * @typedef {object} Upload
 * @property {Uint8Array} blob
 * @property {number} sequence
 * @property {string | undefined} baseSha256
 * @property {string} logSha256
 * @property {Uint8Array} [restored]
 * @property {string} [insteadOf]
 */

/**
 * A change of the password that may have happened or not. Both keys are kept at least until `keepUntil`. `ahead` is the
 * greatest number of seconds that the device's clock was ahead at any attempt. `keepUntil` has it included.
 * @typedef {{oldKeys: Keys, newKeys: Keys, keepUntil: number, ahead: number}} Change
 */

/**
 * A deletion that was begun at `first`. The userId may be registered again at `registerAfter`. `ahead`: as in a Change.
 * @typedef {{first: number, registerAfter: number, ahead: number}} Deletion
 */

/**
 * What a device saves, always as a whole. It belongs to one userId, and survives a sign-out. It has the keys and the
 * log: only the app may read it. It consists of plain objects and arrays of bytes, so IndexedDB and `v8.serialize` take
 * it as it is. Times are Unix seconds.
 * @typedef {object} State
 * @property {Keys | undefined} keys
 * @property {Uint8Array} log
 * @property {Base | undefined} base the version that `log` was made from
 * @property {Seen} highest the highest version that this device has seen
 * @property {string | undefined} highestLog the sha256 of the log in that version
 * @property {Upload | undefined} unsent an upload whose answer was lost
 * @property {Keys | undefined} registering the keys of a registration that has no answer so far
 * @property {Change | undefined} change
 * @property {Deletion | undefined} deletion
 * @property {readonly {keys: Keys, until: number}[]} oldKeys what is kept in case the server is restored from a
 *   snapshot
 * @property {string | undefined} succeeded the newest derivation that has succeeded
 */

/**
 * @typedef {object} DeviceOptions
 * @property {string} baseUrl the address of the server
 * @property {string} secret the app's secret
 * @property {string} [keyid] the one that came with the secret; 'app' unless given
 * @property {(mine: Uint8Array, theirs: Uint8Array) => Uint8Array | Promise<Uint8Array>} merge returns a log with what
 *   either has. It must give the same bytes on every device: otherwise, they store in turn for ever.
 * @property {State} [state] what this device has saved; a new one unless given
 * @property {(state: State) => unknown} [save] stores the state on the device. It is awaited before each request that
 *   needs the state. If it fails, the request is not sent.
 * @property {(verdict: Verdict) => unknown} [tell] tells the person that the server gave out an older state
 *   ('rollback') or another history ('unknown-base')
 * @property {number} [attempts] how often a request without an answer is sent; 4 unless given
 * @property {(seconds: number) => Promise<unknown>} [pause] waits between two attempts
 * @property {ClientOptions['timeout']} [timeout]
 * @property {ClientOptions['fetch']} [fetch]
 * @property {ClientOptions['now']} [now]
 */

/**
 * What the person agreed to if the latest version cannot be read: '' for nothing, 'damaged' to replace it,
 * 'no-newer-app' to replace one of an unknown format, because the publisher offers no newer app.
 * @typedef {'' | 'damaged' | 'no-newer-app'} Confirmed
 */

const SIGNATURE_ACTS = 901 // seconds: no signature can act for longer
const KEPT = 60 * 86_400 // seconds: no snapshot of a server lives longer
const LONGEST_PAUSE = 60 // seconds: if the server asks for more, the app calls again later

/**
 * The state of a device that has saved nothing so far.
 * @param {Uint8Array} [log]
 * @returns {State}
 */
export const newState = (log = new Uint8Array()) => ({
  keys: undefined,
  log,
  base: undefined,
  highest: NOTHING_SEEN,
  highestLog: undefined,
  unsent: undefined,
  registering: undefined,
  change: undefined,
  deletion: undefined,
  oldKeys: [],
  succeeded: undefined,
})

/**
 * One device of one user. Calls run one after the other, so `merge`, `save` and `tell` must not await one. Each throws
 * a ProblemError if the server refuses, and a LostAnswerError if there is no answer: if `error.lost` is true, call the
 * method again later.
 */
export class Device {
  /** @type {State} */ #state
  /** @type {Omit<ClientOptions, 'keys'>} */ #connection
  /** @type {Clock} */ #clock
  /** @type {DeviceOptions['merge']} */ #merge
  /** @type {NonNullable<DeviceOptions['save']>} */ #save
  /** @type {NonNullable<DeviceOptions['tell']>} */ #tell
  /** @type {number} */ #attempts
  /** @type {NonNullable<DeviceOptions['pause']>} */ #pause
  /** @type {Promise<unknown>} */ #turn = Promise.resolve()
  /** @type {Promise<unknown>} */ #saved = Promise.resolve()
  /** @type {Keys | undefined} old keys that work again, until the person was asked */ #undone

  /** @param {DeviceOptions} options */
  constructor({
    baseUrl, secret, keyid, merge, state = newState(), save = () => {}, tell = () => {}, attempts = 4, pause = sleep,
    timeout, fetch, now = unixNow,
  }) {
    this.#clock = { now, offset: 0, corrected: () => this.#clockWasCorrected() }
    const given = { ...(timeout && { timeout }), ...(fetch && { fetch }) }
    this.#connection = { baseUrl, secret, keyid, clock: this.#clock, ...given }
    this.#state = state
    this.#merge = merge
    this.#save = save
    this.#tell = tell
    this.#attempts = attempts
    this.#pause = pause
  }

  /** What this device saves. Do not change it. */
  get state() { return this.#state }

  /**
   * The log, with everything that was merged so far.
   * @returns {Uint8Array}
   */
  get log() { return this.#state.log }

  /** How many seconds the server's clock is ahead of the device's, as far as the device knows. */
  get clockOffset() { return this.#clock.offset }

  /**
   * The recovery code: show it after a registration and after each change of the password, which makes the old one
   * void.
   * @returns {Promise<string>} 8 groups of 7 characters
   */
  async recoveryCode() { return recoveryCode(this.#keys) }

  /**
   * Changes the log, and saves it. It waits for no other call: what the person does is saved at once.
   * @param {(log: Uint8Array) => Uint8Array} edit returns the new log
   */
  async update(edit) { await this.#put({ log: asLog(edit(this.#state.log)) }) }

  // ---- Signing in --------------------------------------------------------------------------------------------

  /**
   * Registers. Check the password before, by passwordProblem. A repeat after a lost answer is harmless. In a new
   * account, this device has seen nothing.
   * @param {string} username
   * @param {string} password
   * @param {readonly Derivation[]} [derivations] the ones that this app knows, newest first
   * @returns {Promise<void>}
   * @throws {DeviceError} if the state belongs to another username
   * @throws {UnsettledChangeError} if a delayed deletion could delete the new account
   * @throws {RangeError} for an empty username, or half a character
   */
  register(username, password, derivations = DERIVATIONS) {
    return this.#inTurn(async () => {
      const userId = await deriveUserId(username)
      this.#mustBelongTo(userId)
      await this.#register(await keysOfPassword(userId, password, derivations[0]))
    })
  }

  /** @param {Keys} keys */
  async #register(keys) {
    const { registering, deletion } = this.#state
    if (deletion && this.#clock.now() < deletion.registerAfter) throw new UnsettledChangeError('deletion')
    let lost = sameKeys(registering, keys)
    await this.#put({ registering: keys })
    let status
    try {
      const answer = await this.#repeated(keys, client => client.registerUser(), error => { lost ||= isLost(error) })
      status = answer.status
    } catch (error) {
      if (!isLost(error)) await this.#put({ registering: undefined })
      throw error
    }
    // A 200 to the repeat of a lost registration means a new account, too. Any other 200 does not.
    const seen = { base: undefined, highest: NOTHING_SEEN, highestLog: undefined, unsent: undefined }
    const settled = { registering: undefined, deletion: undefined }
    await this.#put({ keys, succeeded: keys.derivation, ...settled, ...(status === 201 || lost ? seen : {}) })
  }

  /**
   * Signs in: the newest derivation first. If an older one is in force, moves the account to the newest.
   * @param {string} username
   * @param {string} password
   * @param {readonly Derivation[]} [derivations] the ones that this app knows, newest first
   * @returns {Promise<void>}
   * @throws {DeviceError} if the state belongs to another username: ask whose log it is, and use another state
   * @throws {AppOutdatedError} if a newer version of the app moved this account
   * @throws {RangeError} for an empty username, or half a character
   */
  signIn(username, password, derivations = DERIVATIONS) {
    return this.#inTurn(() => this.#signIn(username, password, derivations))
  }

  /**
   * @param {string} username
   * @param {string} password
   * @param {readonly Derivation[]} derivations
   */
  async #signIn(username, password, derivations) {
    const userId = await deriveUserId(username)
    this.#mustBelongTo(userId)
    const tried = derivationsToTry(this.#state.succeeded, derivations)
    for (const derivation of tried) {
      const keys = await keysOfPassword(userId, password, derivation)
      try {
        await this.#list(keys)
      } catch (error) {
        if (!hasCode(error, 'credentials_invalid') || derivation === tried.at(-1)) throw error
        continue
      }
      await this.#enter(keys)
      const newest = derivations[0]
      if (newest && derivation !== newest) await this.#changePassword(await keysOfPassword(userId, password, newest))
      return
    }
  }

  /**
   * Signs in with the recovery code. Then ask for a new password, and change to it.
   * @param {string} username
   * @param {string} code as it was typed
   * @returns {Promise<void>}
   * @throws {MistypedCodeError} if it was mistyped, belongs to another username, or is void on this device
   * @throws {AppOutdatedError} if a newer version of the app made it
   */
  signInWithCode(username, code) {
    return this.#inTurn(async () => {
      const keys = await readRecoveryCode(username, code)
      this.#mustBelongTo(keys.userId)
      const { succeeded } = this.#state
      if (!derivationsToTry(succeeded).some(({ name }) => name === keys.derivation)) throw new MistypedCodeError()
      await this.#list(keys)
      await this.#enter(keys)
    })
  }

  /** @param {Keys} keys those that are in force */
  async #enter(keys) {
    const { keys: before, change, deletion } = this.#state
    /** @type {Partial<State>} */
    const changes = { keys, succeeded: keys.derivation, registering: undefined }
    if (deletion && this.#clock.now() >= deletion.registerAfter) changes.deletion = undefined // it did not happen
    if (before && !sameKeys(before, keys)) { // another device changed the password
      const stillOpen = sameKeys(change?.oldKeys, keys)
      const attempted = !change || stillOpen || sameKeys(change.newKeys, keys) ? [] : [change.newKeys]
      changes.unsent = undefined
      changes.change = stillOpen ? change : undefined
      changes.oldKeys = this.#oldKeysWith(keys, ...attempted, before)
    }
    await this.#put(changes)
  }

  /**
   * Finds out what to do about 'credentials_invalid', if nobody changed the password or deleted the account.
   * @param {boolean} [nobodyChangedIt] true if the person confirmed that nobody changed the password back
   * @returns {Promise<'confirm' | 'changed' | 'ask'>} 'confirm': an old key works. Ask the person, then call again with
   *   true. 'changed': the server was restored from a snapshot, and the password is changed again now. 'ask': ask the
   *   person, then sign in with another password, or register.
   */
  afterRefusal(nobodyChangedIt = false) {
    return this.#inTurn(async () => {
      const undone = this.#undone ??= await this.#oldKeysInForce()
      if (!undone || !nobodyChangedIt) return undone ? 'confirm' : 'ask'
      await this.#fetch(undone)
      await this.#changePassword(this.#keys, { oldKeys: undone })
      this.#undone = undefined
      return 'changed'
    })
  }

  async #oldKeysInForce() {
    // Two at most: each refusal counts as a failed credential.
    for (const { keys, until } of this.#state.oldKeys.slice(-2).reverse()) {
      if (until <= this.#clock.now()) continue
      try {
        await this.#list(keys)
        return keys
      } catch (error) {
        if (!hasCode(error, 'credentials_invalid')) throw error
      }
    }
    return undefined
  }

  // ---- Keeping the log and its backup in step ----------------------------------------------------------------

  /**
   * Backs up and restores: fetches and merges, and stores the log if it differs from the fetched one. If the log has
   * changed since, stores it at once: a conflict tells whether another device has stored. If a change of the password
   * is not settled, sends the change again instead: it stores the log, too.
   * @returns {Promise<void>}
   * @throws {AppOutdatedError} if a newer version of the app made the latest version
   * @throws {DamagedError | MisfitError} if it cannot be read: ask the person, then call replaceUnreadable
   * @throws {UnsettledChangeError} if a deletion is in progress
   */
  sync() { return this.#inTurn(() => this.#sync()) }

  /** @returns {Promise<void>} */
  async #sync() {
    this.#mustNotBeDeleted()
    const { change, unsent } = this.#state
    if (change && await this.#inForce(change) === 'old') {
      return this.#changePassword(change.newKeys, { oldKeys: change.oldKeys })
    }
    if (this.#state.unsent && unsent) {
      try {
        await this.#send(unsent)
      } catch (error) {
        if (!hasCode(error, 'version_conflict')) throw error
        await this.#fetch()
      }
    }
    if (await this.#isStored()) await this.#fetch()
    await this.#onLatest(async () => {
      if (!await this.#isStored()) await this.#send(await this.#seal(this.#keys))
    })
  }

  async #isStored() {
    const { base, log } = this.#state
    return !!base && base.logSha256 === await sha256Hex(log)
  }

  /**
   * Fetches the latest version, compares it with the highest seen, and merges it. Tells the person if it is older. If
   * the log has not changed since the highest seen, and the latest version was made from that one, adopts it: so a
   * restored version reaches this device. Stores nothing.
   * @returns {Promise<void>}
   * @throws {AppOutdatedError} if a newer version of the app made it
   * @throws {DamagedError} if it is damaged, or was made with other keys
   * @throws {MisfitError} if the answer contradicts itself
   */
  fetch() { return this.#inTurn(() => this.#fetch()) }

  async #fetch(keys = this.#keys) {
    const { base } = this.#state
    const etag = base?.version && sameKeys(keys, this.#state.keys) ? `"${base.version}-${base.sha256}"` : undefined
    let backup
    try {
      backup = await this.#repeated(keys, client => client.fetchBackup(etag))
    } catch (error) {
      if (!hasCode(error, 'no_backup')) throw error
      await this.#compare(0)
      await this.#put({ base: undefined })
      return
    }
    if (!backup) { // 304: the latest is the base, which the log has in it already
      await this.#compare(base?.sequence ?? 0, base?.sha256)
      return
    }
    const { sha256, version } = backup, { plaintext, sequence, baseSha256 } = await decrypt(backup.blob, keys)
    const logSha256 = await sha256Hex(plaintext), found = await this.#compare(sequence, sha256, baseSha256)
    const highest = higher(this.#state.highest, sequence, sha256)
    const highestLog = highest.sha256 === sha256 ? logSha256 : this.#state.highestLog
    const before = this.#state.highestLog
    await this.#putWithLog(
      async mine => found === 'next' && before === await sha256Hex(mine) ? plaintext : this.#merge(mine, plaintext),
      { base: { sha256, sequence, logSha256, version }, highest, highestLog })
  }

  /**
   * @param {number} sequence
   * @param {string} [sha256]
   * @param {string} [baseSha256]
   */
  async #compare(sequence, sha256, baseSha256) {
    const found = verdict(this.#state.highest, sequence, sha256, baseSha256)
    if (ALARMS.includes(found)) await this.#tell(found)
    return found
  }

  /**
   * The receipts of the kept versions, newest first. Tells the person if there is none any more.
   * @returns {Promise<Receipt[]>}
   */
  versions() { return this.#inTurn(() => this.#versions()) }

  async #versions() {
    const versions = await this.#list()
    if (!versions.length) await this.#compare(0)
    return versions
  }

  async #list(keys = this.#keys) { return this.#repeated(keys, client => client.listBackupVersions()) }

  /**
   * The log of an older version, for the person to look at. Nothing changes. Show the date that the log itself has: the
   * list is the server's word. The keys in force and those that this device has kept are tried, then the password.
   * @param {number} version
   * @param {{password?: string, derivations?: readonly Derivation[]}} [options] password: that of its keyVersion
   * @returns {Promise<Uint8Array>}
   * @throws {DeviceError} if the version is not listed
   * @throws {DamagedError} if it is damaged, or was made with another password: ask for it
   */
  openVersion(version, options = {}) {
    return this.#inTurn(async () => (await this.#openVersion(version, options)).plaintext)
  }

  /**
   * @param {number} version
   * @param {{password?: string, derivations?: readonly Derivation[]}} options
   * @returns {Promise<import('./blob.mjs').Decrypted>}
   */
  async #openVersion(version, { password, derivations = DERIVATIONS }) {
    const listed = (await this.#versions()).find(receipt => receipt.version === version)
    if (!listed) throw new DeviceError('not-listed')
    const { sha256 } = listed, { userId } = this.#keys
    const backup = await this.#repeated(this.#keys, client => client.fetchBackupVersion(version, { sha256 }))
    const { blob } = /** @type {Backup} */ (backup)
    /** @type {(() => Promise<Keys> | Keys)[]} */
    const tried = [this.#keys, ...this.#state.oldKeys.map(({ keys }) => keys).reverse()].map(keys => () => keys)
    if (password !== undefined) tried.push(...derivations.map(each => () => keysOfPassword(userId, password, each)))
    for (const keys of tried) {
      try {
        return await decrypt(blob, await keys()) // it is old on purpose: no verdict
      } catch (error) {
        if (!(error instanceof DamagedError)) throw error
      }
    }
    throw new DamagedError()
  }

  /**
   * Stores an older version again, as the latest. When this is acknowledged, its log replaces the log of the device.
   * @param {number} version
   * @param {{password?: string, confirmed?: Confirmed, derivations?: readonly Derivation[]}} [options] password: as in
   *   openVersion. confirmed: what the person agreed to, if the latest version cannot be read
   * @returns {Promise<void>}
   * @throws {DeviceError} if the version is not listed
   * @throws {DamagedError} if it, or the latest version, is damaged or was made with another password
   * @throws {UnsettledChangeError} if a change of the password, or a deletion, is not settled
   */
  restore(version, options = {}) {
    const { confirmed = '' } = options
    return this.#inTurn(async () => {
      await this.#mustBeSettled()
      await this.#fetchToReplace(this.#keys, confirmed)
      const { plaintext, sequence } = await this.#openVersion(version, options)
      const store = async () => this.#send(await this.#seal(this.#keys, plaintext, sequence))
      await this.#onLatest(store, this.#keys, confirmed)
    })
  }

  /**
   * Replaces a latest version that cannot be fetched or decrypted by the log. Ask the person first.
   * @returns {Promise<void>}
   * @throws {AppOutdatedError} for an unknown format. If the publisher offers no newer app, and the person confirms it,
   *   call restore or changePassword with confirmed: 'no-newer-app'.
   */
  replaceUnreadable() {
    return this.#inTurn(async () => {
      await this.#mustBeSettled()
      await this.#fetchToReplace(this.#keys, 'damaged')
      await this.#send(await this.#seal(this.#keys))
    })
  }

  /**
   * Fetches and merges the latest version. If it cannot be read, and the person agreed, names it as the base.
   * @param {Keys} keys
   * @param {Confirmed} confirmed
   */
  async #fetchToReplace(keys, confirmed) {
    try {
      await this.#fetch(keys)
    } catch (error) {
      const newer = error instanceof AppOutdatedError
      const damaged = error instanceof DamagedError || error instanceof MisfitError || hasCode(error, 'backup_damaged')
      if (!(newer ? confirmed === 'no-newer-app' : damaged && confirmed)) throw error
      const [latest] = await this.#list(keys)
      if (!latest) throw error
      await this.#put({ base: { sha256: latest.sha256 } })
    }
  }

  // ---- Changing the password ---------------------------------------------------------------------------------

  /**
   * Changes the password. Check it before, by passwordProblem. If this fails and `state.change` is there, both
   * passwords are kept: tell the person that the new one is not in force, and call sync, which sends the change again,
   * or settleChange. Afterwards, show the new recovery code. If the password is the one in force, there is nothing to
   * change.
   * @param {string} password the new one
   * @param {{confirmed?: Confirmed, derivations?: readonly Derivation[]}} [options] confirmed: as in restore
   * @returns {Promise<void>}
   * @throws {DeviceError} if this device keeps the password as an old one
   * @throws {UnsettledChangeError} if a change to another password is not settled, or a deletion is in progress
   * @throws {RangeError} for half a character
   */
  changePassword(password, { confirmed = '', derivations = DERIVATIONS } = {}) {
    return this.#inTurn(async () => {
      const newKeys = await keysOfPassword(this.#keys.userId, password, derivations[0])
      await this.#changePassword(newKeys, { confirmed })
    })
  }

  /**
   * @param {Keys} newKeys
   * @param {{oldKeys?: Keys, confirmed?: Confirmed}} [options] oldKeys: the keys in force, if they are not the device's
   */
  async #changePassword(newKeys, { oldKeys = this.#keys, confirmed = '' } = {}) {
    this.#mustNotBeDeleted()
    const { change } = this.#state
    if (change && !sameKeys(change.newKeys, newKeys) && await this.#inForce(change) === 'old') {
      throw new UnsettledChangeError('change')
    }
    if (sameKeys(newKeys, oldKeys)) return
    if (this.#state.oldKeys.some(({ keys }) => sameKeys(keys, newKeys))) throw new DeviceError('old-password')
    await this.#onLatest(() => this.#change(oldKeys, newKeys), oldKeys, confirmed)
  }

  /**
   * One attempt.
   * @param {Keys} oldKeys
   * @param {Keys} newKeys
   */
  async #change(oldKeys, newKeys) {
    const upload = await this.#seal(newKeys), { storageKey } = newKeys
    const ahead = Math.max(this.#state.change?.ahead ?? 0, -this.#clock.offset)
    const keepUntil = this.#clock.now() + SIGNATURE_ACTS + ahead
    // An upload with the old keys is sent no more.
    await this.#put({ unsent: undefined, change: { oldKeys, newKeys, keepUntil, ahead } })
    let receipt
    try {
      receipt = await this.#as(oldKeys).changeStorageKey(storageKey, upload.blob, upload.baseSha256)
    } catch (error) {
      // If the old key gets 401, or if there is no answer, an earlier attempt may have succeeded.
      if (!isLost(error) && !hasCode(error, 'credentials_invalid')) throw error
      if (await this.#settle() !== 'new') throw error
      return
    }
    await this.#adopt(oldKeys, newKeys, await this.#seen(upload, receipt.version))
  }

  /**
   * Goes on with the new keys.
   * @param {Keys} oldKeys
   * @param {Keys} newKeys
   * @param {Partial<State>} seen
   */
  async #adopt(oldKeys, newKeys, seen) {
    const settled = { unsent: undefined, change: undefined, succeeded: newKeys.derivation }
    await this.#put({ ...seen, ...settled, keys: newKeys, oldKeys: this.#oldKeysWith(newKeys, oldKeys) })
  }

  /**
   * The old keys that are still kept, and these. None of them is that in force.
   * @param {Keys} inForce
   * @param {...Keys} old
   */
  #oldKeysWith(inForce, ...old) {
    const now = this.#clock.now()
    const others = this.#state.oldKeys.filter(({ keys }) => ![...old, inForce].some(other => sameKeys(keys, other)))
    const kept = others.filter(({ until }) => until > now)
    return [...kept, ...old.map(keys => ({ keys, until: now + KEPT }))]
  }

  /**
   * Finds out which key is in force after a change whose answer was lost. Ask at most once a minute.
   * @returns {Promise<'new' | 'old' | 'unsure'>} 'old' also if there is no change; 'unsure' while the change may still
   *   arrive: then both keys are kept
   */
  settleChange() { return this.#inTurn(() => this.#settle()) }

  async #settle() {
    const { change } = this.#state
    if (!change) return 'old'
    const asked = this.#clock.now()
    if (await this.#inForce(change) === 'new') return 'new'
    if (asked < (this.#state.change ?? change).keepUntil) return 'unsure' // its time may be longer now
    await this.#put({ change: undefined })
    return 'old'
  }

  /**
   * Asks with the new keys, then with the old ones:
   *
   * | new key | old key | |
   * |---|---|---|
   * | 200 | not asked | 'new': goes on with the new key |
   * | credentials_invalid | 200 | 'old': so far, it has not happened |
   * | credentials_invalid | credentials_invalid | throws: try again, then ask for username and password |
   * | any other combination | | throws: ask again later |
   * @param {Change} change
   */
  async #inForce({ newKeys, oldKeys }) {
    try {
      await this.#list(newKeys)
    } catch (error) {
      if (!hasCode(error, 'credentials_invalid')) throw error
      await this.#list(oldKeys)
      return 'old'
    }
    await this.#adopt(oldKeys, newKeys, { base: undefined })
    return 'new'
  }

  // ---- Deleting the account ----------------------------------------------------------------------------------

  /**
   * Deletes the account, with every version. After a lost answer, call it again, also after a restart.
   * @param {boolean} [confirmed] true if the person was asked: needed 10 minutes after the first attempt
   * @returns {Promise<void>}
   * @throws {UnsettledChangeError} if the person has to be asked: somebody may have registered the account again
   */
  delete(confirmed = false) { return this.#inTurn(() => this.#delete(confirmed)) }

  /** @param {boolean} confirmed */
  async #delete(confirmed) {
    let repeat = !!this.#state.deletion
    for (let attempt = 1; ; attempt++) {
      const now = this.#clock.now(), { deletion } = this.#state, first = deletion?.first ?? now
      if (!confirmed && now >= first + 600) throw new UnsettledChangeError('deletion')
      const ahead = Math.max(deletion?.ahead ?? 0, -this.#clock.offset)
      await this.#put({ deletion: { first, registerAfter: now + SIGNATURE_ACTS + ahead, ahead } })
      try {
        return await this.#as(this.#keys).deleteUser()
      } catch (error) {
        if (repeat && hasCode(error, 'credentials_invalid')) return
        if (!mayRepeat(error) && !repeat) await this.#put({ deletion: undefined }) // it was refused
        if (!mayRepeat(error) || attempt >= this.#attempts) throw error
        repeat ||= isLost(error)
        await this.#pauseAfter(error, attempt)
      }
    }
  }

  // ---- One upload, one request, one state --------------------------------------------------------------------

  /**
   * Stores on the base. After a conflict, fetches, merges and stores again.
   * @param {() => Promise<void>} store
   * @param {Keys} [keys]
   * @param {Confirmed} [confirmed]
   */
  async #onLatest(store, keys = this.#keys, confirmed = '') {
    if (!this.#state.base) await this.#fetchToReplace(keys, confirmed)
    for (let attempt = 1; ; attempt++) {
      try {
        return await store()
      } catch (error) {
        if (!hasCode(error, 'version_conflict') || attempt >= this.#attempts) throw error
      }
      await this.#fetchToReplace(keys, confirmed)
    }
  }

  /**
   * @param {Keys} keys
   * @param {Uint8Array} [restored]
   * @param {number} [restoredSequence]
   * @returns {Promise<Upload>}
   */
  async #seal(keys, restored, restoredSequence) {
    const { base, log, highest } = this.#state, plaintext = restored ?? log, baseSha256 = base?.sha256
    const sequence = nextSequence(base ? base.sequence ?? null : 0, highest, restoredSequence)
    const blob = await encrypt(plaintext, keys, { sequence, baseSha256 })
    const logSha256 = await sha256Hex(plaintext)
    return { blob, sequence, baseSha256, logSha256, ...(restored && { restored, insteadOf: await sha256Hex(log) }) }
  }

  /** @param {Upload} upload */
  async #send(upload) {
    await this.#put({ unsent: upload })
    let receipt
    try {
      receipt = await this.#repeated(this.#keys, client => client.storeBackup(upload.blob, upload.baseSha256))
    } catch (error) {
      if (!isLost(error)) await this.#put({ unsent: undefined })
      throw error
    }
    const seen = { ...await this.#seen(upload, receipt.version), unsent: undefined }, { restored } = upload
    if (!restored) return this.#put(seen)
    // What was added while the answer was lost stays.
    await this.#putWithLog(
      async log => await sha256Hex(log) === upload.insteadOf ? restored : this.#merge(log, restored), seen)
  }

  /**
   * What changes when the server has acknowledged an upload.
   * @param {Upload} upload
   * @param {number} version
   */
  async #seen({ blob, sequence, logSha256 }, version) {
    const sha256 = await sha256Hex(blob), highest = higher(this.#state.highest, sequence, sha256)
    const highestLog = highest.sha256 === sha256 ? logSha256 : this.#state.highestLog
    return { base: { sha256, sequence, logSha256, version }, highest, highestLog }
  }

  /**
   * Sends a request that may be repeated, freshly signed each time, until there is an answer.
   * @template Answer
   * @param {Keys} keys
   * @param {(client: BackupClient) => Promise<Answer>} send
   * @param {(error: unknown) => void} [failed]
   */
  async #repeated(keys, send, failed = () => {}) {
    for (let attempt = 1; ; attempt++) {
      try {
        return await send(this.#as(keys))
      } catch (error) {
        failed(error)
        if (!mayRepeat(error) || attempt >= this.#attempts) throw error
        await this.#pauseAfter(error, attempt)
      }
    }
  }

  /**
   * @param {unknown} error
   * @param {number} attempt
   */
  async #pauseAfter(error, attempt) {
    const { retryAfter } = error instanceof ProblemError ? error : {}
    if ((retryAfter ?? 0) > LONGEST_PAUSE) throw error
    await this.#pause(retryAfter ?? 2 * attempt)
  }

  /** @param {Keys} keys */
  #as(keys) { return new BackupClient({ ...this.#connection, keys }) }

  get #keys() {
    if (!this.#state.keys) throw new DeviceError('not-signed-in')
    return this.#state.keys
  }

  /** If the device's clock was ahead at an attempt, the signature acts for longer by the difference. */
  async #clockWasCorrected() {
    const { change, deletion } = this.#state, ahead = -this.#clock.offset
    if (change && ahead > change.ahead) {
      await this.#put({ change: { ...change, keepUntil: change.keepUntil + ahead - change.ahead, ahead } })
    }
    if (deletion && ahead > deletion.ahead) {
      const registerAfter = deletion.registerAfter + ahead - deletion.ahead
      await this.#put({ deletion: { ...deletion, registerAfter, ahead } })
    }
  }

  /** @param {string} userId */
  #mustBelongTo(userId) {
    const { keys } = this.#state
    if (keys && keys.userId !== userId) throw new DeviceError('another-username')
  }

  #mustNotBeDeleted() { if (this.#state.deletion) throw new UnsettledChangeError('deletion') }

  async #mustBeSettled() {
    this.#mustNotBeDeleted()
    const { change } = this.#state
    if (change && await this.#inForce(change) === 'old') throw new UnsettledChangeError('change')
  }

  /**
   * Runs one call after the other: two at once would send from one base.
   * @template Result
   * @param {() => Promise<Result>} call
   * @returns {Promise<Result>}
   */
  #inTurn(call) {
    const done = this.#turn.then(call)
    this.#turn = done.catch(() => {})
    return done
  }

  /**
   * Changes the state and saves it, all of it. A later state is never overwritten by an earlier one.
   * @param {Partial<State>} changes
   * @returns {Promise<void>}
   */
  async #put(changes) {
    this.#state = { ...this.#state, ...changes }
    const saved = this.#saved.then(() => this.#save(this.#state))
    this.#saved = saved.catch(() => {})
    await saved
  }

  /**
   * Changes the log together with more of the state. If the person edits the log meanwhile, begins again.
   * @param {(log: Uint8Array) => Uint8Array | Promise<Uint8Array>} make
   * @param {Partial<State>} changes
   */
  async #putWithLog(make, changes) {
    for (;;) {
      const { log } = this.#state, made = asLog(await make(log))
      if (this.#state.log === log) return this.#put({ ...changes, log: made })
    }
  }
}

/**
 * @param {unknown} log what the app made
 * @returns {Uint8Array}
 */
function asLog(log) {
  if (!(log instanceof Uint8Array)) throw new TypeError('a log is a Uint8Array')
  return log
}

/** @param {unknown} error */
const mayRepeat = error => isLost(error) || (error instanceof ProblemError && error.status === 408)

/**
 * @param {number} seconds
 * @returns {Promise<void>}
 */
const sleep = seconds => new Promise(done => setTimeout(done, seconds * 1000))
