/**
 * What a person can be told about a problem.
 * @param {string} code
 * @param {number} status
 * @returns {string}
 */
export function sentence(code: string, status: number): string;
/**
 * Reads an answer.
 * @param {{status: number, headers: Headers, text: string}} answer
 * @param {Expected} expected what a success must have
 * @param {readonly number[]} statuses the successes that the operation has
 * @returns {any} the members of a success; undefined for 204 and 304
 * @throws {ProblemError} if the server refused
 * @throws {LostAnswerError} if the answer is not of the contract
 */
export function read({ status, headers, text }: {
    status: number;
    headers: Headers;
    text: string;
}, expected: Expected, statuses: readonly number[]): any;
/**
 * What a person can be told about a problem, by its code. For a code that is not here, there is BY_STATUS.
 * @type {Readonly<Record<string, string>>}
 */
export const SENTENCES: Readonly<Record<string, string>>;
/**
 * The server refused (RFC 9457). Go by `code`. JSON and a console show the members of this class but `problem`.
 */
export class ProblemError extends BackupError {
    /**
     * @param {number} status
     * @param {Record<string, unknown> & {code: string}} problem
     * @param {Headers} headers
     */
    constructor(status: number, problem: Record<string, unknown> & {
        code: string;
    }, headers: Headers);
    /** The status of HTTP. */
    status: number;
    /** Which problem it is. There may be new ones. */
    code: string;
    /** If it is true, the request may have been done or not, as after a lost answer. */
    lost: boolean;
    /** After how many seconds to try again, if the server says it. */
    retryAfter: number | undefined;
    /** The id of the request in the server's log. */
    requestId: string | undefined;
    /** The whole problem, as the server sent it. It may repeat what the client sent, so keep it out of logs. */
    get problem(): Record<string, unknown>;
    #private;
}
/** No answer came, or an incomplete one, or one that is not of the contract. The request may have been done or not. */
export class LostAnswerError extends BackupError {
    /** @param {string} reason for developers: what came instead */
    constructor(reason: string);
    reason: string;
    lost: boolean;
}
/** A fetched version is not the one that was asked for, or it does not fit its receipt. */
export class MisfitError extends LostAnswerError {
}
/**
 * A change of the password, or a deletion, may have happened or not. Until it is settled, nothing is encrypted with the
 * old keys.
 */
export class UnsettledChangeError extends BackupError {
    /** @param {'change' | 'deletion'} what */
    constructor(what: "change" | "deletion");
    what: "change" | "deletion";
}
export function hasCode(error: unknown, code: string): error is ProblemError;
export function isLost(error: unknown): boolean;
/**
 * What an answer must have: per member a type, or the value itself in an array.
 * @typedef {Readonly<Record<string, string | readonly unknown[]>>} Expected
 */
/** @type {Record<'registration' | 'backup' | 'versions' | 'health', Expected>} */
export const EXPECTED: Record<"registration" | "backup" | "versions" | "health", Expected>;
export function receiptOf(blob: Uint8Array, sha256: string): Expected;
/**
 * What the server says about a stored version.
 */
export type Receipt = {
    version: number;
    /**
     * RFC 3339, in UTC
     */
    updatedAt: string;
    /**
     * in bytes
     */
    size: number;
    /**
     * in hex
     */
    sha256: string;
    /**
     * 1 at registration, one more with each change of the password
     */
    keyVersion: number;
};
/**
 * What an answer must have: per member a type, or the value itself in an array.
 */
export type Expected = Readonly<Record<string, string | readonly unknown[]>>;
import { BackupError } from './errors.mjs';
