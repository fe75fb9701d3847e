/**
 * Text in UTF-8.
 * @param {string} text
 * @returns {Uint8Array}
 * @throws {RangeError} for a lone surrogate, which has no UTF-8 form: TextEncoder would make U+FFFD of it
 */
export function inUtf8(text: string): Uint8Array;
/**
 * Base64 (RFC 4648 section 4).
 * @param {Uint8Array} bytes
 * @returns {string}
 */
export function toBase64(bytes: Uint8Array): string;
/**
 * The bytes of canonical base64, at least one.
 * @param {string} text
 * @returns {Uint8Array}
 * @throws {RangeError} for anything else. `atob` alone would ignore spaces, missing padding and unused bits.
 */
export function fromBase64(text: string): Uint8Array;
/**
 * One array of all bytes.
 * @param {...ArrayLike<number>} parts
 * @returns {Uint8Array}
 */
export function concat(...parts: ArrayLike<number>[]): Uint8Array;
export function source(bytes: Uint8Array): BufferSource;
export function toHex(bytes: Uint8Array): string;
export function fromHex(hex: string): Uint8Array;
export function sha256(bytes: Uint8Array): Promise<Uint8Array>;
export function sha256Hex(bytes: Uint8Array): Promise<string>;
export const subtle: SubtleCrypto;
