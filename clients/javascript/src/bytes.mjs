// Bytes as hex, as base64 and as UTF-8, and their SHA-256.

const { subtle } = globalThis.crypto ?? {}
if (!subtle) throw new Error('there is no Web Crypto: a page needs HTTPS or localhost, Node needs version 20')

const encoder = new TextEncoder()

/**
 * Web Crypto. Its types take only what is not shared between threads; so does this package.
 * @param {Uint8Array} bytes
 */
export const source = bytes => /** @type {BufferSource} */ (bytes)
export { subtle }

/**
 * Text in UTF-8.
 * @param {string} text
 * @returns {Uint8Array}
 * @throws {RangeError} for a lone surrogate, which has no UTF-8 form: TextEncoder would make U+FFFD of it
 */
export function inUtf8(text) {
  if (/\p{Surrogate}/u.test(text)) throw new RangeError('The text has half a character (a lone surrogate).')
  return encoder.encode(text)
}

/**
 * Lowercase hex.
 * @param {Uint8Array} bytes
 * @returns {string}
 */
export const toHex = bytes => Array.from(bytes, byte => byte.toString(16).padStart(2, '0')).join('')

/**
 * The bytes of hex.
 * @param {string} hex
 * @returns {Uint8Array}
 */
export const fromHex = hex => Uint8Array.from(hex.match(/../g) ?? [], pair => parseInt(pair, 16))

/**
 * Base64 (RFC 4648 section 4).
 * @param {Uint8Array} bytes
 * @returns {string}
 */
export function toBase64(bytes) {
  const parts = []
  for (let at = 0; at < bytes.length; at += 8192) {
    // `apply` takes a typed array as it is; `...` would be several times as slow.
    parts.push(String.fromCharCode.apply(null, /** @type {any} */ (bytes.subarray(at, at + 8192))))
  }
  return btoa(parts.join(''))
}

/**
 * The bytes of canonical base64, at least one.
 * @param {string} text
 * @returns {Uint8Array}
 * @throws {RangeError} for anything else. `atob` alone would ignore spaces, missing padding and unused bits.
 */
export function fromBase64(text) {
  const [, last, padding] = /^[A-Za-z0-9+/]*([A-Za-z0-9+/])(={0,2})$/.exec(text) ?? []
  const unusedBits = { '': '', '=': 'AEIMQUYcgkosw048', '==': 'AQgw' }[padding ?? '']
  if (!last || text.length % 4 || (unusedBits && !unusedBits.includes(last))) throw new RangeError('not canonical base64')
  const binary = atob(text), bytes = new Uint8Array(binary.length)
  for (let at = 0; at < bytes.length; at++) bytes[at] = binary.charCodeAt(at)
  return bytes
}

/**
 * One array of all bytes.
 * @param {...ArrayLike<number>} parts
 * @returns {Uint8Array}
 */
export function concat(...parts) {
  const all = new Uint8Array(parts.reduce((length, part) => length + part.length, 0))
  let at = 0
  for (const part of parts) {
    all.set(part, at)
    at += part.length
  }
  return all
}

/**
 * SHA-256.
 * @param {Uint8Array} bytes
 * @returns {Promise<Uint8Array>} 32 bytes
 */
export const sha256 = async bytes => new Uint8Array(await subtle.digest('SHA-256', source(bytes)))

/**
 * SHA-256 in hex.
 * @param {Uint8Array} bytes
 * @returns {Promise<string>} 64 characters
 */
export const sha256Hex = async bytes => toHex(await sha256(bytes))
