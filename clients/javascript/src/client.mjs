// One method for each operation of openapi.yaml that a user has. Each sends one request, signed at the last moment.

import { EXPECTED, LostAnswerError, MisfitError, hasCode, read, receiptOf } from './answers.mjs'
import { openBackup } from './blob.mjs'
import { inUtf8, sha256Hex, source, toBase64 } from './bytes.mjs'
import { DamagedError } from './errors.mjs'
import { sign } from './signature.mjs'

/** @import { Expected, Receipt } from './answers.mjs' */
/** @import { Keys } from './keys.mjs' */

/**
 * A version that was fetched: its receipt, its blob, and its ETag.
 * @typedef {Receipt & {blob: Uint8Array, etag: string}} Backup
 */

/**
 * @typedef {object} ClientOptions
 * @property {string} baseUrl the address of the server. Its paths begin at the root.
 * @property {string} secret the app's secret
 * @property {string | undefined} [keyid] the one that came with the secret; 'app' unless given
 * @property {Pick<Keys, 'userId' | 'storageKey'>} keys the credentials
 * @property {number} [timeout] seconds until the first byte of the answer to an upload, 360 unless given. Other
 *   answers, and the next part of an answer, have 60 seconds at most.
 * @property {typeof globalThis.fetch} [fetch]
 * @property {() => number} [now] the time of the device's clock, in Unix seconds
 * @property {Clock} [clock] a clock that several clients share, in place of `now`
 */

/**
 * The device's clock, and how many seconds the server's clock is ahead of it, as far as the client knows.
 * @typedef {object} Clock
 * @property {() => number} now in Unix seconds
 * @property {number} offset
 * @property {() => unknown} [corrected] is called, and awaited, after each correction
 */

/** One user on one device. Nothing is repeated but a request with a wrong clock. See `Device` for all the rest. */
export class BackupClient {
  /** @type {string} */ #origin
  /** @type {string} */ #secret
  /** @type {string | undefined} */ #keyid
  /** @type {Pick<Keys, 'userId' | 'storageKey'>} */ #keys
  /** @type {number} */ #timeout
  /** @type {typeof globalThis.fetch} */ #fetch
  /** @type {Clock} */ #clock

  /** @param {ClientOptions} options */
  constructor({ baseUrl, secret, keyid, keys, timeout = 360, fetch = globalThis.fetch, now = unixNow, clock }) {
    this.#origin = new URL(baseUrl).origin
    this.#secret = secret
    this.#keyid = keyid
    this.#keys = keys
    this.#timeout = timeout
    this.#fetch = (...request) => fetch(...request)
    this.#clock = clock ?? { now, offset: 0 }
  }

  /** How many seconds the server's clock is ahead of the device's, as far as this client knows. */
  get clockOffset() { return this.#clock.offset }

  /**
   * Binds the userId to the storage key. To register again with the same key is a harmless retry, and gets 200.
   * @returns {Promise<{status: 200 | 201, createdAt: string}>} 201: the account is new
   */
  async registerUser() {
    const { status, members } = await this.#signed('POST', '/api/register', EXPECTED.registration, [200, 201])
    return { ...members, status }
  }

  /**
   * Stores a blob as a new version. After a lost answer, call it again with the same bytes.
   * @param {Uint8Array} blob
   * @param {string} [baseSha256] the one in its header
   * @returns {Promise<Receipt>}
   */
  async storeBackup(blob, baseSha256) {
    const expected = receiptOf(blob, await sha256Hex(blob)), body = inJson({ data: toBase64(blob), baseSha256 })
    return (await this.#signed('POST', '/api/backup', expected, [200, 201], { body })).members
  }

  /**
   * Fetches the latest version.
   * @param {string} [etag] that of the version that you have
   * @returns {Promise<Backup | null>} null (304) if that one is the latest
   * @throws {MisfitError} if the answer contradicts itself
   */
  fetchBackup(etag) { return this.#fetchAt('/api/backup', etag, {}) }

  /**
   * The receipts of the kept versions, newest first.
   * @returns {Promise<Receipt[]>}
   */
  async listBackupVersions() {
    return (await this.#signed('GET', '/api/backup/versions', EXPECTED.versions, [200])).members.versions
  }

  /**
   * Fetches one listed version.
   * @param {number} version
   * @param {object} [options]
   * @param {string | undefined} [options.etag] that of the version, if you have it
   * @param {string | undefined} [options.sha256] the one from the list
   * @returns {Promise<Backup | null>}
   * @throws {MisfitError} if it is not the one that was asked for
   */
  fetchBackupVersion(version, { etag, sha256 } = {}) {
    return this.#fetchAt(`/api/backup/versions/${version}`, etag, { version, sha256 })
  }

  /**
   * Changes the storage key, signed with the present one. After a lost answer, do not repeat it: find out first.
   * @param {string} storageKey the new one
   * @param {Uint8Array} blob encrypted with the new encryption key
   * @param {string} [baseSha256]
   * @returns {Promise<Receipt>}
   */
  async changeStorageKey(storageKey, blob, baseSha256) {
    const expected = receiptOf(blob, await sha256Hex(blob))
    const body = inJson({ storageKey, data: toBase64(blob), baseSha256 })
    return (await this.#signed('PUT', '/api/user/storage-key', expected, [200], { body })).members
  }

  /** Deletes the account, with every version. */
  async deleteUser() {
    await this.#signed('DELETE', '/api/user', {}, [204])
  }

  /**
   * The server's health, unsigned.
   * @returns {Promise<{status: string, version: string, degraded?: string[]}>}
   */
  async getHealth() {
    return (await this.#send('GET', '/health', EXPECTED.health, [200], {})).members
  }

  /**
   * @param {string} path
   * @param {string | undefined} etag
   * @param {{version?: number | undefined, sha256?: string | undefined}} asked
   */
  async #fetchAt(path, etag, asked) {
    // A 304 that nobody asked for is a lost answer.
    const statuses = etag ? [200, 304] : [200]
    const headers = etag ? { 'If-None-Match': etag } : {}
    const answer = await this.#signed('GET', path, EXPECTED.backup, statuses, { headers })
    if (answer.status === 304) return null
    const { data, ...receipt } = answer.members
    try {
      const blob = await openBackup(answer.members, asked)
      return { ...receipt, blob, etag: answer.headers.get('ETag') ?? `"${receipt.version}-${receipt.sha256}"` }
    } catch (error) {
      if (!(error instanceof DamagedError)) throw error
      throw new MisfitError('a version that does not fit its receipt, or is not the one that was asked for')
    }
  }

  /**
   * Sends a signed request. If the device's clock is wrong, corrects for it and repeats the request once.
   * @param {string} method
   * @param {string} path
   * @param {Expected} expected
   * @param {readonly number[]} statuses
   * @param {{headers?: Record<string, string>, body?: Uint8Array}} [more]
   */
  async #signed(method, path, expected, statuses, { headers = {}, body } = {}) {
    const send = async () => {
      const created = Math.floor(this.#clock.now() + this.#clock.offset), { userId, storageKey } = this.#keys
      const app = { secret: this.#secret, keyid: this.#keyid }
      const proofs = await sign({ method, path, body, userId, storageKey, created, ...app })
      const type = body ? { 'Content-Type': 'application/json' } : {}
      return this.#send(method, path, expected, statuses, { headers: { ...headers, ...type, ...proofs }, body })
    }
    try {
      return await send()
    } catch (error) {
      if (!hasCode(error, 'signature_expired') || !Number.isInteger(error.problem.serverTime)) throw error
      this.#clock.offset = Number(error.problem.serverTime) - Math.floor(this.#clock.now())
      await this.#clock.corrected?.()
      return send()
    }
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {Expected} expected
   * @param {readonly number[]} statuses
   * @param {{headers?: Record<string, string>, body?: Uint8Array | undefined}} request
   */
  async #send(method, path, expected, statuses, { headers = {}, body }) {
    const canceller = new AbortController()
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer
    /** @param {number} seconds */
    const within = seconds => {
      clearTimeout(timer)
      timer = setTimeout(() => canceller.abort(), seconds * 1000)
    }
    let response, text = ''
    try {
      within(body ? this.#timeout : Math.min(60, this.#timeout))
      response = await this.#fetch(this.#origin + path, {
        method,
        headers,
        ...(body && { body: /** @type {BodyInit} */ (source(body)) }),
        redirect: 'error', // a signature is for one server and one path
        cache: 'no-store',
        credentials: 'omit', // so that a 401 opens no dialog of the browser
        signal: canceller.signal,
      })
      const decoder = new TextDecoder('utf-8', { fatal: true })
      for (const reader = response.body?.getReader(); reader;) {
        within(60) // an answer that has begun may take long, as long as bytes come
        const { done, value } = await reader.read()
        text += decoder.decode(value, { stream: !done })
        if (done) break
      }
    } catch (error) {
      throw new LostAnswerError(reasonOf(error)) // not the error itself: it could have the request in it
    } finally {
      clearTimeout(timer)
    }
    const { status, headers: theirs } = response
    return { status, headers: theirs, members: read({ status, headers: theirs, text }, expected, statuses) }
  }
}

/** The device's clock, in whole Unix seconds. */
export const unixNow = () => Math.floor(Date.now() / 1000)

/** @param {Record<string, unknown>} members those that are undefined are left out */
const inJson = members => inUtf8(JSON.stringify(members))

/**
 * @param {unknown} error of fetch
 * @returns {string} its kind, such as 'TypeError ECONNREFUSED', and nothing else of it
 */
function reasonOf(error) {
  if (!(error instanceof Error)) return 'no answer'
  const { code } = /** @type {{code?: unknown}} */ (error.cause ?? {})
  return typeof code === 'string' && /^[A-Z_]+$/.test(code) ? `${error.name} ${code}` : error.name
}
