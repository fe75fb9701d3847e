// From username and password to the keys. Choosing a password. The recovery code.

import { concat, fromHex, inUtf8, sha256, source, subtle, toHex } from './bytes.mjs'
import { AppOutdatedError, MistypedCodeError } from './errors.mjs'

/**
 * A way from a password to the keys.
 * @typedef {object} Derivation
 * @property {string} name
 * @property {number} iterations of PBKDF2
 * @property {string} storageKeyInfo info of HKDF
 * @property {string} encryptionKeyInfo info of HKDF
 */

/**
 * The keys of a username and a password. `userId` and `storageKey` are for the server: 64 lowercase hex characters
 * each. `encryptionKey` and `masterKey`, 32 bytes each, never leave the device.
 * @typedef {object} Keys
 * @property {string} userId
 * @property {string} storageKey
 * @property {Uint8Array} encryptionKey
 * @property {Uint8Array} masterKey
 * @property {string} derivation the name of the derivation
 */

/** @type {Derivation} */
const V1 = {
  name: 'v1',
  iterations: 600_000,
  storageKeyInfo: 'dailyreps/v1/storage-key',
  encryptionKeyInfo: 'dailyreps/v1/encryption-key',
}

/**
 * All derivations, newest first. The userId is the same for all of them.
 * @type {readonly Derivation[]}
 */
export const DERIVATIONS = [V1]

/** @param {string} text */
const lower = text => Array.from(text, character => character.toLowerCase()).join('')

/**
 * The form of a username that is hashed: NFKC, White_Space stripped at both ends, each code point in lowercase by
 * itself, NFKC again.
 * @param {string} username
 * @returns {string}
 * @throws {RangeError} if nothing is left: all people without a name would share an account
 */
export function normalizeUsername(username) {
  const stripped = username.normalize('NFKC').replace(/^\p{White_Space}+|\p{White_Space}+$/gu, '')
  if (!stripped) throw new RangeError('The username is empty.')
  return lower(stripped).normalize('NFKC')
}

/**
 * The userId of a username.
 * @param {string} username
 * @returns {Promise<string>} 64 lowercase hex characters
 * @throws {RangeError} for an empty username, or half a character
 */
export async function deriveUserId(username) {
  return toHex(await sha256(inUtf8(`dailyreps/v1/user-id/${normalizeUsername(username)}`)))
}

/**
 * The keys of a username and a password: PBKDF2 (RFC 8018) and HKDF (RFC 5869) with SHA-256. It takes some tenths of a
 * second, on purpose.
 * @param {string} username
 * @param {string} password
 * @param {Derivation} [derivation] the newest, unless given
 * @returns {Promise<Keys>}
 * @throws {RangeError} for an empty username, or half a character
 */
export async function deriveKeys(username, password, derivation = V1) {
  return keysOfPassword(await deriveUserId(username), password, derivation)
}

/**
 * The same, for a device that has the userId.
 * @param {string} userId
 * @param {string} password
 * @param {Derivation} [derivation] the newest, unless given
 * @returns {Promise<Keys>}
 * @throws {RangeError} for half a character
 */
export async function keysOfPassword(userId, password, derivation = V1) {
  const { iterations } = derivation, normalized = source(inUtf8(password.normalize('NFKC')))
  const secret = await subtle.importKey('raw', normalized, 'PBKDF2', false, ['deriveBits'])
  const parameters = { name: 'PBKDF2', hash: 'SHA-256', salt: source(fromHex(userId)), iterations }
  return keysOfMasterKey(userId, new Uint8Array(await subtle.deriveBits(parameters, secret, 256)), derivation)
}

/**
 * The keys that HKDF-SHA256, with an empty salt, derives from the master key.
 * @param {string} userId
 * @param {Uint8Array} masterKey 32 bytes
 * @param {Derivation} [derivation]
 * @returns {Promise<Keys>}
 */
export async function keysOfMasterKey(userId, masterKey, derivation = V1) {
  const key = await subtle.importKey('raw', source(masterKey), 'HKDF', false, ['deriveBits'])
  /** @param {string} info */
  const expand = async info => {
    const parameters = { name: 'HKDF', hash: 'SHA-256', salt: source(new Uint8Array()), info: source(inUtf8(info)) }
    return new Uint8Array(await subtle.deriveBits(parameters, key, 256))
  }
  const storageKey = toHex(await expand(derivation.storageKeyInfo))
  const encryptionKey = await expand(derivation.encryptionKeyInfo)
  return { userId, storageKey, encryptionKey, masterKey, derivation: derivation.name }
}

/**
 * Whether both are the same keys, as far as a server can tell.
 * @param {Keys | undefined} one
 * @param {Keys | undefined} other
 */
export const sameKeys = (one, other) => !!one && one.userId === other?.userId && one.storageKey === other.storageKey

/**
 * The derivations that a sign-in tries, in this order: from the newest to the one that has succeeded. A server could
 * otherwise answer 401 and get a storage key that is easier to attack.
 * @param {string} [succeeded] the name of the newest that has succeeded on this device for this account
 * @param {readonly Derivation[]} [derivations] the ones that this app knows, newest first
 * @returns {readonly Derivation[]}
 * @throws {AppOutdatedError} if the name is unknown
 */
export function derivationsToTry(succeeded, derivations = DERIVATIONS) {
  if (!succeeded) return derivations
  const at = derivations.findIndex(derivation => derivation.name === succeeded)
  if (at < 0) throw new AppOutdatedError()
  return derivations.slice(0, at + 1)
}

// ---- Choosing a password. A sign-in checks none of this. ------------------------------------------------------

/**
 * Why a password cannot be chosen. A sign-in does not ask: an older password may be weaker.
 * @param {string} password
 * @param {{has(password: string): boolean}} commonPasswords a Set of the lines of fixtures/common_passwords.txt
 * @returns {'too-short' | 'too-common' | undefined}
 */
export function passwordProblem(password, commonPasswords) {
  const normalized = password.normalize('NFKC')
  if (Array.from(normalized).length < 10) return 'too-short'
  return commonPasswords.has(lower(normalized)) ? 'too-common' : undefined
}

/**
 * Words, drawn at random, with spaces between.
 * @param {readonly string[]} words the lines of fixtures/passphrase_words.txt
 * @param {number} [count]
 * @returns {string}
 */
export function newPassphrase(words, count = 4) {
  const limit = 2 ** 32 - 2 ** 32 % words.length // so that each word is equally likely
  const draw = () => {
    for (;;) {
      const [number = limit] = crypto.getRandomValues(new Uint32Array(1))
      if (number < limit) return words[number % words.length]
    }
  }
  return Array.from({ length: count }, draw).join(' ')
}

// ---- The recovery code: the master key, written down -----------------------------------------------------------

const CROCKFORD = '0123456789ABCDEFGHJKMNPQRSTVWXYZ'

/**
 * @param {string} userId
 * @param {Uint8Array} content
 */
async function checksum(userId, content) {
  return (await sha256(concat(inUtf8(`dailyreps/v1/recovery-code/${userId}`), content))).slice(0, 2)
}

/**
 * The recovery code. With the username, it opens the account like the password. A change of the password makes it void.
 * @param {Pick<Keys, 'userId' | 'masterKey'>} keys
 * @returns {Promise<string>} 8 groups of 7 characters
 */
export async function recoveryCode({ userId, masterKey }) {
  const content = concat([1], masterKey)
  let number = BigInt(`0x${toHex(concat(content, await checksum(userId, content)))}`)
  let code = ''
  for (let place = 0; place < 56; place++, number >>= 5n) code = CROCKFORD[Number(number & 31n)] + code
  return (code.match(/.{7}/g) ?? []).join('-')
}

/**
 * The keys of a recovery code, as it was typed: small letters, spaces and other dashes do not matter.
 * @param {string} username
 * @param {string} typed
 * @returns {Promise<Keys>}
 * @throws {MistypedCodeError} if it was mistyped, or belongs to another username
 * @throws {AppOutdatedError} if a newer version of the app made it
 */
export async function readRecoveryCode(username, typed) {
  // Only ASCII letters have a capital here: toUpperCase() would also read U+0131 as I and U+017F as S.
  const code = typed.replace(/[\p{White_Space}\u002d\u2010-\u2015\u2212]/gu, '')
    .replace(/[a-z]/g, letter => letter.toUpperCase())
    .replace(/O/g, '0').replace(/[IL]/g, '1')
  if (!/^[0-9A-HJKMNP-TV-Z]{56}$/.test(code)) throw new MistypedCodeError()
  const number = Array.from(code).reduce((sum, character) => sum << 5n | BigInt(CROCKFORD.indexOf(character)), 0n)
  const bytes = fromHex(number.toString(16).padStart(70, '0'))
  const content = bytes.slice(0, 33)
  const userId = await deriveUserId(username)
  if (toHex(await checksum(userId, content)) !== toHex(bytes.slice(33))) throw new MistypedCodeError()
  if (content[0] !== 1) throw new AppOutdatedError()
  return keysOfMasterKey(userId, content.slice(1))
}
