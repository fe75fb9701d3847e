// What an answer of the server means: a success of the contract, a problem, or a lost answer.

import { BackupError } from './errors.mjs'

/**
 * What the server says about a stored version.
 * @typedef {object} Receipt
 * @property {number} version
 * @property {string} updatedAt RFC 3339, in UTC
 * @property {number} size in bytes
 * @property {string} sha256 in hex
 * @property {number} keyVersion 1 at registration, one more with each change of the password
 */

const UPDATE = 'The server does not accept this version of the app. Update the app.'
const LATER = 'The server cannot answer at the moment. Nothing is lost. Try again later.'

/**
 * What a person can be told about a problem, by its code. For a code that is not here, there is BY_STATUS.
 * @type {Readonly<Record<string, string>>}
 */
export const SENTENCES = {
  signature_invalid: UPDATE,
  signature_expired: 'The clock of this device is wrong. Correct it, and try again.',
  credentials_invalid:
    'The username or the password is wrong, or a newer version of the app moved this account: update the app.',
  app_outdated: UPDATE,
  no_backup: 'There is no backup yet.',
  no_such_version: 'This version is not kept any more. Choose another one.',
  request_timeout: 'The connection is too slow. Try again on a better one.',
  username_taken: 'This username is taken. Choose another one, or enter the password of this one.',
  recently_deleted: 'This account was deleted a moment ago. Try again in a quarter of an hour.',
  version_conflict: 'Another device has stored a newer backup. Try again.',
  payload_too_large: 'The log is too large to back up.',
  rate_limited: 'That was too often. Try again later.',
  account_damaged:
    'The account is damaged on the server, and only its operator can help. Keep the app: it has your log.',
  backup_damaged: 'This version is damaged on the server. Choose another one.',
  internal_error: LATER,
  unavailable: LATER,
  storage_full: 'The server has no room for the backup. Try again later.',
}
/** @type {Readonly<Record<number, string>>} */
const BY_STATUS = { 408: SENTENCES.request_timeout ?? '', 429: SENTENCES.rate_limited ?? '' }
const REFUSED = 'The server refused this, and nothing was changed. Update the app, or report this to its publisher.'

/**
 * What a person can be told about a problem.
 * @param {string} code
 * @param {number} status
 * @returns {string}
 */
export function sentence(code, status) {
  return (Object.hasOwn(SENTENCES, code) && SENTENCES[code]) || BY_STATUS[status] || (status >= 500 ? LATER : REFUSED)
}

/** Problems of 500 and more that say what happened. After any other, the request may have been done or not. */
const CERTAIN = ['account_damaged', 'backup_damaged', 'storage_full']

/**
 * The server refused (RFC 9457). Go by `code`. JSON and a console show the members of this class but `problem`.
 */
export class ProblemError extends BackupError {
  static { this.prototype.name = 'ProblemError' }

  /**
   * The whole problem, with `detail` and `errors`. It is the server's text: for developers, never for a person.
   * @type {Record<string, unknown>}
   */
  #problem

  /**
   * @param {number} status
   * @param {Record<string, unknown> & {code: string}} problem
   * @param {Headers} headers
   */
  constructor(status, problem, headers) {
    super(sentence(problem.code, status))
    this.#problem = problem
    /** The status of HTTP. */
    this.status = status
    /** Which problem it is. There may be new ones. */
    this.code = problem.code
    /** If it is true, the request may have been done or not, as after a lost answer. */
    this.lost = status >= 500 && !CERTAIN.includes(problem.code)
    /** After how many seconds to try again, if the server says it. */
    this.retryAfter = Number(headers.get('Retry-After')) || undefined
    /** The id of the request in the server's log. */
    this.requestId = /^[0-9a-f]{1,32}$/.exec(headers.get('X-Request-Id') ?? '')?.[0]
  }

  /** The whole problem, as the server sent it. It may repeat what the client sent, so keep it out of logs. */
  get problem() { return this.#problem }
}

/** No answer came, or an incomplete one, or one that is not of the contract. The request may have been done or not. */
export class LostAnswerError extends BackupError {
  static { this.prototype.name = 'LostAnswerError' }

  /** @param {string} reason for developers: what came instead */
  constructor(reason) {
    super('There is no answer from the server. Nothing is lost. Try again later.')
    this.reason = reason
    this.lost = true
  }
}

/** A fetched version is not the one that was asked for, or it does not fit its receipt. */
export class MisfitError extends LostAnswerError {
  static { this.prototype.name = 'MisfitError' }
}

/**
 * A change of the password, or a deletion, may have happened or not. Until it is settled, nothing is encrypted with the
 * old keys.
 */
export class UnsettledChangeError extends BackupError {
  static { this.prototype.name = 'UnsettledChangeError' }

  /** @param {'change' | 'deletion'} what */
  constructor(what) {
    super(what === 'change'
      ? 'The change of the password is not complete, and the new password is not in force. Try again when there is a '
        + 'connection.'
      : 'This account is being deleted. Confirm the deletion to go on with it.')
    this.what = what
  }
}

/**
 * Whether an error is a problem with this code.
 * @param {unknown} error
 * @param {string} code
 * @returns {error is ProblemError}
 */
export const hasCode = (error, code) => error instanceof ProblemError && error.code === code

/**
 * Whether a request may have been done or not.
 * @param {unknown} error
 */
export const isLost = error => (error instanceof ProblemError || error instanceof LostAnswerError) && error.lost

/** A code has no key in it, though a hostile server could send back what it got. */
const CODE = /^(?!.*[0-9a-f]{24})[a-z0-9_]{1,64}$/
const RECEIPT = { version: 'number', updatedAt: 'string', size: 'number', sha256: 'string', keyVersion: 'number' }

/**
 * What an answer must have: per member a type, or the value itself in an array.
 * @typedef {Readonly<Record<string, string | readonly unknown[]>>} Expected
 */

/** @type {Record<'registration' | 'backup' | 'versions' | 'health', Expected>} */
export const EXPECTED = {
  registration: { createdAt: 'string' },
  backup: { ...RECEIPT, data: 'string' },
  versions: { versions: 'array' },
  health: { status: 'string' },
}

/**
 * The receipt of an upload must be that of the bytes that were sent.
 * @param {Uint8Array} blob
 * @param {string} sha256
 * @returns {Expected}
 */
export const receiptOf = (blob, sha256) => ({ ...RECEIPT, size: [blob.length], sha256: [sha256] })

/**
 * @param {unknown} value
 * @param {string | readonly unknown[]} expected
 */
function is(value, expected) {
  if (typeof expected !== 'string') return value === expected[0]
  return expected === 'array' ? Array.isArray(value) : typeof value === expected
}

/**
 * Reads an answer.
 * @param {{status: number, headers: Headers, text: string}} answer
 * @param {Expected} expected what a success must have
 * @param {readonly number[]} statuses the successes that the operation has
 * @returns {any} the members of a success; undefined for 204 and 304
 * @throws {ProblemError} if the server refused
 * @throws {LostAnswerError} if the answer is not of the contract
 */
export function read({ status, headers, text }, expected, statuses) {
  if ((status === 204 || status === 304) && statuses.includes(status)) return undefined
  const type = (headers.get('Content-Type') ?? '').split(';', 1)[0]?.trim().toLowerCase()
  const members = type === 'application/json' || type === 'application/problem+json' ? parsed(text) : undefined
  const fits = members && (type === 'application/json'
    ? statuses.includes(status) && Object.entries(expected).every(([name, kind]) => is(members[name], kind))
    : status >= 400 && CODE.test(String(members.code)) && typeof members.code === 'string')
  if (!fits) throw new LostAnswerError(`an answer with the status ${status}, which is not one of the contract`)
  if (status >= 400) throw new ProblemError(status, members, headers)
  return members
}

/**
 * @param {string} text
 * @returns {any} the members of a JSON object, or undefined
 */
function parsed(text) {
  try {
    const found = JSON.parse(text)
    return found !== null && typeof found === 'object' && !Array.isArray(found) ? found : undefined
  } catch {
    return undefined
  }
}
