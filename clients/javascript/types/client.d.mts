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
    /** @param {ClientOptions} options */
    constructor({ baseUrl, secret, keyid, keys, timeout, fetch, now, clock }: ClientOptions);
    /** How many seconds the server's clock is ahead of the device's, as far as this client knows. */
    get clockOffset(): number;
    /**
     * Binds the userId to the storage key. To register again with the same key is a harmless retry, and gets 200.
     * @returns {Promise<{status: 200 | 201, createdAt: string}>} 201: the account is new
     */
    registerUser(): Promise<{
        status: 200 | 201;
        createdAt: string;
    }>;
    /**
     * Stores a blob as a new version. After a lost answer, call it again with the same bytes.
     * @param {Uint8Array} blob
     * @param {string} [baseSha256] the one in its header
     * @returns {Promise<Receipt>}
     */
    storeBackup(blob: Uint8Array, baseSha256?: string): Promise<Receipt>;
    /**
     * Fetches the latest version.
     * @param {string} [etag] that of the version that you have
     * @returns {Promise<Backup | null>} null (304) if that one is the latest
     * @throws {MisfitError} if the answer contradicts itself
     */
    fetchBackup(etag?: string): Promise<Backup | null>;
    /**
     * The receipts of the kept versions, newest first.
     * @returns {Promise<Receipt[]>}
     */
    listBackupVersions(): Promise<Receipt[]>;
    /**
     * Fetches one listed version.
     * @param {number} version
     * @param {object} [options]
     * @param {string | undefined} [options.etag] that of the version, if you have it
     * @param {string | undefined} [options.sha256] the one from the list
     * @returns {Promise<Backup | null>}
     * @throws {MisfitError} if it is not the one that was asked for
     */
    fetchBackupVersion(version: number, { etag, sha256 }?: {
        etag?: string | undefined;
        sha256?: string | undefined;
    }): Promise<Backup | null>;
    /**
     * Changes the storage key, signed with the present one. After a lost answer, do not repeat it: find out first.
     * @param {string} storageKey the new one
     * @param {Uint8Array} blob encrypted with the new encryption key
     * @param {string} [baseSha256]
     * @returns {Promise<Receipt>}
     */
    changeStorageKey(storageKey: string, blob: Uint8Array, baseSha256?: string): Promise<Receipt>;
    /** Deletes the account, with every version. */
    deleteUser(): Promise<void>;
    /**
     * The server's health, unsigned.
     * @returns {Promise<{status: string, version: string, degraded?: string[]}>}
     */
    getHealth(): Promise<{
        status: string;
        version: string;
        degraded?: string[];
    }>;
    #private;
}
export function unixNow(): number;
/**
 * A version that was fetched: its receipt, its blob, and its ETag.
 */
export type Backup = Receipt & {
    blob: Uint8Array;
    etag: string;
};
export type ClientOptions = {
    /**
     * the address of the server. Its paths begin at the root.
     */
    baseUrl: string;
    /**
     * the app's secret
     */
    secret: string;
    /**
     * the one that came with the secret; 'app' unless given
     */
    keyid?: string | undefined;
    /**
     * the credentials
     */
    keys: Pick<Keys, "userId" | "storageKey">;
    /**
     * seconds until the first byte of the answer to an upload, 360 unless given. Other
     * answers, and the next part of an answer, have 60 seconds at most.
     */
    timeout?: number;
    fetch?: typeof globalThis.fetch;
    /**
     * the time of the device's clock, in Unix seconds
     */
    now?: () => number;
    /**
     * a clock that several clients share, in place of `now`
     */
    clock?: Clock;
};
/**
 * The device's clock, and how many seconds the server's clock is ahead of it, as far as the client knows.
 */
export type Clock = {
    /**
     * in Unix seconds
     */
    now: () => number;
    offset: number;
    /**
     * is called, and awaited, after each correction
     */
    corrected?: () => unknown;
};
import type { Receipt } from './answers.mjs';
import type { Keys } from './keys.mjs';
