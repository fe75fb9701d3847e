// The blob: its header, encryption and decryption. Which sequence a new one gets, and whether the latest is really it.

import { concat, fromBase64, fromHex, inUtf8, sha256Hex, source, subtle, toHex } from './bytes.mjs'
import { AppOutdatedError, DamagedError } from './errors.mjs'

/** @import { Keys } from './keys.mjs' */

/**
 * The highest version that a device has seen. A device that has seen none has the sequence 0.
 * @typedef {object} Seen
 * @property {number} sequence
 * @property {string | undefined} sha256 in hex
 */

/**
 * What a blob says.
 * @typedef {object} Decrypted
 * @property {Uint8Array} plaintext
 * @property {number} sequence
 * @property {string | undefined} baseSha256 the sha256 of the version that it was made from, in hex
 */

/** @typedef {'first' | 'same' | 'next' | 'later' | 'unknown-base' | 'rollback'} Verdict */

/**
 * What a device has seen before it has seen a version.
 * @type {Seen}
 */
export const NOTHING_SEEN = Object.freeze({ sequence: 0, sha256: undefined })

/**
 * The verdicts that the person has to be told.
 * @type {readonly Verdict[]}
 */
export const ALARMS = ['rollback', 'unknown-base']

/** @param {number} number */
const isSequence = number => Number.isSafeInteger(number) && number > 0
/**
 * @param {string} userId
 * @param {Uint8Array} header
 */
const associatedData = (userId, header) => concat(inUtf8(`dailyreps/v1/${userId}`), header)
/**
 * @param {Uint8Array} nonce
 * @param {string} userId
 * @param {Uint8Array} header
 */
const gcm = (nonce, userId, header) => (
  { name: 'AES-GCM', iv: source(nonce), additionalData: source(associatedData(userId, header)), tagLength: 128 })
/**
 * @param {Uint8Array} key
 * @param {'encrypt' | 'decrypt'} use
 */
const aes = (key, use) => subtle.importKey('raw', source(key), 'AES-GCM', false, [use])

/**
 * The first 41 bytes of a blob.
 * @param {number} sequence from 1 to 2^53 - 1
 * @param {string} [baseSha256] in hex
 * @returns {Uint8Array}
 * @throws {RangeError} for a sequence or a base that cannot be one
 */
export function blobHeader(sequence, baseSha256) {
  if (!isSequence(sequence)) throw new RangeError('a sequence counts from 1 to 2^53 - 1')
  const base = baseSha256 ? fromHex(baseSha256) : new Uint8Array(32)
  if (base.length !== 32) throw new RangeError('a base is a sha256')
  return concat([1], fromHex(sequence.toString(16).padStart(16, '0')), base)
}

/**
 * Encrypts a log to the blob that is stored: a header of 41 bytes, a nonce of 12, AES-256-GCM, a tag of 16.
 * @param {Uint8Array} plaintext
 * @param {Pick<Keys, 'userId' | 'encryptionKey'>} keys
 * @param {{sequence: number, baseSha256?: string | undefined, nonce?: Uint8Array}} version baseSha256: the one that the
 *   upload will name. nonce: only to repeat a test vector, because two logs under the same nonce and key reveal both
 * @returns {Promise<Uint8Array>}
 * @throws {RangeError} for a sequence, a base or a nonce that cannot be one
 */
export async function encrypt(plaintext, { userId, encryptionKey }, { sequence, baseSha256, nonce }) {
  const iv = nonce ?? crypto.getRandomValues(new Uint8Array(12))
  if (iv.length !== 12) throw new RangeError('a nonce has 12 bytes')
  const header = blobHeader(sequence, baseSha256)
  const sealed = await subtle.encrypt(gcm(iv, userId, header), await aes(encryptionKey, 'encrypt'), source(plaintext))
  return concat(header, iv, new Uint8Array(sealed))
}

/**
 * Decrypts a blob.
 * @param {Uint8Array} blob
 * @param {Pick<Keys, 'userId' | 'encryptionKey'>} keys
 * @returns {Promise<Decrypted>}
 * @throws {AppOutdatedError} for a format that this version does not know: never overwrite such a blob
 * @throws {DamagedError} if it is damaged, or was made with other keys
 */
export async function decrypt(blob, { userId, encryptionKey }) {
  if (blob.length && blob[0] !== 1) throw new AppOutdatedError()
  if (blob.length < 69) throw new DamagedError()
  const header = blob.slice(0, 41), nonce = blob.slice(41, 53), key = await aes(encryptionKey, 'decrypt')
  let plaintext
  try {
    plaintext = new Uint8Array(await subtle.decrypt(gcm(nonce, userId, header), key, source(blob.slice(53))))
  } catch {
    throw new DamagedError()
  }
  const sequence = Number(`0x${toHex(blob.slice(1, 9))}`), base = header.slice(9)
  if (!isSequence(sequence)) throw new DamagedError()
  return { plaintext, sequence, baseSha256: base.some(byte => byte) ? toHex(base) : undefined }
}

/**
 * The blob of an answer's `data`.
 * @param {{data: string, size: number, sha256: string, version?: number}} backup the answer: size in bytes, sha256 in
 *   hex
 * @param {{version?: number | undefined, sha256?: string | undefined}} [asked] the version that was asked for, and its
 *   sha256 from the list, if they are known
 * @returns {Promise<Uint8Array>}
 * @throws {DamagedError} if it does not fit its receipt, or is not what was asked for
 */
export async function openBackup({ data, size, sha256, version }, asked = {}) {
  let blob
  try {
    blob = fromBase64(data)
  } catch {
    throw new DamagedError()
  }
  if (blob.length !== size || await sha256Hex(blob) !== sha256) throw new DamagedError()
  if ((asked.version ?? version) !== version || (asked.sha256 ?? sha256) !== sha256) throw new DamagedError()
  return blob
}

/**
 * The sequence of a new blob: one more than that of its base, of the highest seen, and of a version being restored.
 * @param {number | null} baseSequence 0 without a base, null if the base cannot be decrypted: it counts as one more
 *   than the others
 * @param {Pick<Seen, 'sequence'>} highest
 * @param {number} [restored]
 * @returns {number}
 * @throws {RangeError} after 2^53 - 1
 */
export function nextSequence(baseSequence, highest, restored = 0) {
  const others = Math.max(highest.sequence, restored)
  const next = 1 + Math.max(baseSequence ?? others + 1, others)
  if (!isSequence(next)) throw new RangeError('there is no sequence after the largest')
  return next
}

/**
 * The highest seen after one more version: an acknowledged upload, or the latest version, decrypted. Not after a lost
 * answer, nor for an older version that was fetched on purpose.
 * @param {Seen} highest
 * @param {number} sequence
 * @param {string | undefined} sha256
 * @returns {Seen}
 */
export const higher = (highest, sequence, sha256) => sequence > highest.sequence ? { sequence, sha256 } : highest

/**
 * Compares the latest version, decrypted, with the highest seen. If there is no version, its sequence is 0.
 * 'rollback' and 'unknown-base': merge, never adopt, and tell the person.
 * @param {Seen} highest
 * @param {number} sequence
 * @param {string} [sha256]
 * @param {string} [baseSha256]
 * @returns {Verdict}
 */
export function verdict(highest, sequence, sha256, baseSha256) {
  if (highest.sequence === 0) return 'first'
  if (sequence <= highest.sequence) {
    return sequence === highest.sequence && sha256 === highest.sha256 ? 'same' : 'rollback'
  }
  if (sequence > highest.sequence + 1) return 'later'
  return baseSha256 === highest.sha256 ? 'next' : 'unknown-base'
}
