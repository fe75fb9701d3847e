/**
 * The first 41 bytes of a blob.
 * @param {number} sequence from 1 to 2^53 - 1
 * @param {string} [baseSha256] in hex
 * @returns {Uint8Array}
 * @throws {RangeError} for a sequence or a base that cannot be one
 */
export function blobHeader(sequence: number, baseSha256?: string): Uint8Array;
/**
 * Encrypts a log to the blob that is stored: a header of 41 bytes, a nonce of 12, AES-256-GCM, a tag of 16.
 * @param {Uint8Array} plaintext
 * @param {Pick<Keys, 'userId' | 'encryptionKey'>} keys
 * @param {{sequence: number, baseSha256?: string | undefined, nonce?: Uint8Array}} version baseSha256: the one that the
 *   upload will name. nonce: only to repeat a test vector, because two logs under the same nonce and key reveal both
 * @returns {Promise<Uint8Array>}
 * @throws {RangeError} for a sequence, a base or a nonce that cannot be one
 */
export function encrypt(plaintext: Uint8Array, { userId, encryptionKey }: Pick<Keys, "userId" | "encryptionKey">, { sequence, baseSha256, nonce }: {
    sequence: number;
    baseSha256?: string | undefined;
    nonce?: Uint8Array;
}): Promise<Uint8Array>;
/**
 * Decrypts a blob.
 * @param {Uint8Array} blob
 * @param {Pick<Keys, 'userId' | 'encryptionKey'>} keys
 * @returns {Promise<Decrypted>}
 * @throws {AppOutdatedError} for a format that this version does not know: never overwrite such a blob
 * @throws {DamagedError} if it is damaged, or was made with other keys
 */
export function decrypt(blob: Uint8Array, { userId, encryptionKey }: Pick<Keys, "userId" | "encryptionKey">): Promise<Decrypted>;
/**
 * The blob of an answer's `data`.
 * @param {{data: string, size: number, sha256: string, version?: number}} backup the answer: size in bytes, sha256 in
 *   hex
 * @param {{version?: number | undefined, sha256?: string | undefined}} [asked] the version that was asked for, and its
 *   sha256 from the list, if they are known
 * @returns {Promise<Uint8Array>}
 * @throws {DamagedError} if it does not fit its receipt, or is not what was asked for
 */
export function openBackup({ data, size, sha256, version }: {
    data: string;
    size: number;
    sha256: string;
    version?: number;
}, asked?: {
    version?: number | undefined;
    sha256?: string | undefined;
}): Promise<Uint8Array>;
/**
 * The sequence of a new blob: one more than that of its base, of the highest seen, and of a version being restored.
 * @param {number | null} baseSequence 0 without a base, null if the base cannot be decrypted: it counts as one more
 *   than the others
 * @param {Pick<Seen, 'sequence'>} highest
 * @param {number} [restored]
 * @returns {number}
 * @throws {RangeError} after 2^53 - 1
 */
export function nextSequence(baseSequence: number | null, highest: Pick<Seen, "sequence">, restored?: number): number;
/**
 * Compares the latest version, decrypted, with the highest seen. If there is no version, its sequence is 0.
 * 'rollback' and 'unknown-base': merge, never adopt, and tell the person.
 * @param {Seen} highest
 * @param {number} sequence
 * @param {string} [sha256]
 * @param {string} [baseSha256]
 * @returns {Verdict}
 */
export function verdict(highest: Seen, sequence: number, sha256?: string, baseSha256?: string): Verdict;
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
export const NOTHING_SEEN: Seen;
/**
 * The verdicts that the person has to be told.
 * @type {readonly Verdict[]}
 */
export const ALARMS: readonly Verdict[];
export function higher(highest: Seen, sequence: number, sha256: string | undefined): Seen;
/**
 * The highest version that a device has seen. A device that has seen none has the sequence 0.
 */
export type Seen = {
    sequence: number;
    /**
     * in hex
     */
    sha256: string | undefined;
};
/**
 * What a blob says.
 */
export type Decrypted = {
    plaintext: Uint8Array;
    sequence: number;
    /**
     * the sha256 of the version that it was made from, in hex
     */
    baseSha256: string | undefined;
};
export type Verdict = "first" | "same" | "next" | "later" | "unknown-base" | "rollback";
import type { Keys } from './keys.mjs';
