export function newState(log?: Uint8Array): State;
/**
 * One device of one user. Calls run one after the other, so `merge`, `save` and `tell` must not await one. Each throws
 * a ProblemError if the server refuses, and a LostAnswerError if there is no answer: if `error.lost` is true, call the
 * method again later.
 */
export class Device {
    /** @param {DeviceOptions} options */
    constructor({ baseUrl, secret, keyid, merge, state, save, tell, attempts, pause, timeout, fetch, now, }: DeviceOptions);
    /** What this device saves. Do not change it. */
    get state(): State;
    /**
     * The log, with everything that was merged so far.
     * @returns {Uint8Array}
     */
    get log(): Uint8Array;
    /** How many seconds the server's clock is ahead of the device's, as far as the device knows. */
    get clockOffset(): number;
    /**
     * The recovery code: show it after a registration and after each change of the password, which makes the old one
     * void.
     * @returns {Promise<string>} 8 groups of 7 characters
     */
    recoveryCode(): Promise<string>;
    /**
     * Changes the log, and saves it. It waits for no other call: what the person does is saved at once.
     * @param {(log: Uint8Array) => Uint8Array} edit returns the new log
     */
    update(edit: (log: Uint8Array) => Uint8Array): Promise<void>;
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
    register(username: string, password: string, derivations?: readonly Derivation[]): Promise<void>;
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
    signIn(username: string, password: string, derivations?: readonly Derivation[]): Promise<void>;
    /**
     * Signs in with the recovery code. Then ask for a new password, and change to it.
     * @param {string} username
     * @param {string} code as it was typed
     * @returns {Promise<void>}
     * @throws {MistypedCodeError} if it was mistyped, belongs to another username, or is void on this device
     * @throws {AppOutdatedError} if a newer version of the app made it
     */
    signInWithCode(username: string, code: string): Promise<void>;
    /**
     * Finds out what to do about 'credentials_invalid', if nobody changed the password or deleted the account.
     * @param {boolean} [nobodyChangedIt] true if the person confirmed that nobody changed the password back
     * @returns {Promise<'confirm' | 'changed' | 'ask'>} 'confirm': an old key works. Ask the person, then call again with
     *   true. 'changed': the server was restored from a snapshot, and the password is changed again now. 'ask': ask the
     *   person, then sign in with another password, or register.
     */
    afterRefusal(nobodyChangedIt?: boolean): Promise<"confirm" | "changed" | "ask">;
    /**
     * Backs up and restores: fetches and merges, and stores the log if it differs from the fetched one. If the log has
     * changed since, stores it at once: a conflict tells whether another device has stored. If a change of the password
     * is not settled, sends the change again instead: it stores the log, too.
     * @returns {Promise<void>}
     * @throws {AppOutdatedError} if a newer version of the app made the latest version
     * @throws {DamagedError | MisfitError} if it cannot be read: ask the person, then call replaceUnreadable
     * @throws {UnsettledChangeError} if a deletion is in progress
     */
    sync(): Promise<void>;
    /**
     * Fetches the latest version, compares it with the highest seen, and merges it. Tells the person if it is older. If
     * the log has not changed since the highest seen, and the latest version was made from that one, adopts it: so a
     * restored version reaches this device. Stores nothing.
     * @returns {Promise<void>}
     * @throws {AppOutdatedError} if a newer version of the app made it
     * @throws {DamagedError} if it is damaged, or was made with other keys
     * @throws {MisfitError} if the answer contradicts itself
     */
    fetch(): Promise<void>;
    /**
     * The receipts of the kept versions, newest first. Tells the person if there is none any more.
     * @returns {Promise<Receipt[]>}
     */
    versions(): Promise<Receipt[]>;
    /**
     * The log of an older version, for the person to look at. Nothing changes. Show the date that the log itself has: the
     * list is the server's word. The keys in force and those that this device has kept are tried, then the password.
     * @param {number} version
     * @param {{password?: string, derivations?: readonly Derivation[]}} [options] password: that of its keyVersion
     * @returns {Promise<Uint8Array>}
     * @throws {DeviceError} if the version is not listed
     * @throws {DamagedError} if it is damaged, or was made with another password: ask for it
     */
    openVersion(version: number, options?: {
        password?: string;
        derivations?: readonly Derivation[];
    }): Promise<Uint8Array>;
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
    restore(version: number, options?: {
        password?: string;
        confirmed?: Confirmed;
        derivations?: readonly Derivation[];
    }): Promise<void>;
    /**
     * Replaces a latest version that cannot be fetched or decrypted by the log. Ask the person first.
     * @returns {Promise<void>}
     * @throws {AppOutdatedError} for an unknown format. If the publisher offers no newer app, and the person confirms it,
     *   call restore or changePassword with confirmed: 'no-newer-app'.
     */
    replaceUnreadable(): Promise<void>;
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
    changePassword(password: string, { confirmed, derivations }?: {
        confirmed?: Confirmed;
        derivations?: readonly Derivation[];
    }): Promise<void>;
    /**
     * Finds out which key is in force after a change whose answer was lost. Ask at most once a minute.
     * @returns {Promise<'new' | 'old' | 'unsure'>} 'old' also if there is no change; 'unsure' while the change may still
     *   arrive: then both keys are kept
     */
    settleChange(): Promise<"new" | "old" | "unsure">;
    /**
     * Deletes the account, with every version. After a lost answer, call it again, also after a restart.
     * @param {boolean} [confirmed] true if the person was asked: needed 10 minutes after the first attempt
     * @returns {Promise<void>}
     * @throws {UnsettledChangeError} if the person has to be asked: somebody may have registered the account again
     */
    delete(confirmed?: boolean): Promise<void>;
    #private;
}
/**
 * The version that a log was made from. If it cannot be decrypted, it has a sha256 alone.
 */
export type Base = {
    sha256: string;
    sequence?: number;
    /**
     * the sha256 of its log
     */
    logSha256?: string;
    /**
     * its number. With it, a fetch asks for what is newer, and gets 304 if nothing is.
     */
    version?: number;
};
/**
 * A blob that was sent. After a lost answer, the very same bytes are sent again. If it restores an older version,
 * `restored` is its log, which then replaces the log with the sha256 `insteadOf`.
 */
export type Upload = {
    blob: Uint8Array;
    sequence: number;
    baseSha256: string | undefined;
    logSha256: string;
    restored?: Uint8Array;
    insteadOf?: string;
};
/**
 * A change of the password that may have happened or not. Both keys are kept at least until `keepUntil`. `ahead` is the
 * greatest number of seconds that the device's clock was ahead at any attempt. `keepUntil` has it included.
 */
export type Change = {
    oldKeys: Keys;
    newKeys: Keys;
    keepUntil: number;
    ahead: number;
};
/**
 * A deletion that was begun at `first`. The userId may be registered again at `registerAfter`. `ahead`: as in a Change.
 */
export type Deletion = {
    first: number;
    registerAfter: number;
    ahead: number;
};
/**
 * What a device saves, always as a whole. It belongs to one userId, and survives a sign-out. It has the keys and the
 * log: only the app may read it. It consists of plain objects and arrays of bytes, so IndexedDB and `v8.serialize` take
 * it as it is. Times are Unix seconds.
 */
export type State = {
    keys: Keys | undefined;
    log: Uint8Array;
    /**
     * the version that `log` was made from
     */
    base: Base | undefined;
    /**
     * the highest version that this device has seen
     */
    highest: Seen;
    /**
     * the sha256 of the log in that version
     */
    highestLog: string | undefined;
    /**
     * an upload whose answer was lost
     */
    unsent: Upload | undefined;
    /**
     * the keys of a registration that has no answer so far
     */
    registering: Keys | undefined;
    change: Change | undefined;
    deletion: Deletion | undefined;
    /**
     * what is kept in case the server is restored from a
     * snapshot
     */
    oldKeys: readonly {
        keys: Keys;
        until: number;
    }[];
    /**
     * the newest derivation that has succeeded
     */
    succeeded: string | undefined;
};
export type DeviceOptions = {
    /**
     * the address of the server
     */
    baseUrl: string;
    /**
     * the app's secret
     */
    secret: string;
    /**
     * the one that came with the secret; 'app' unless given
     */
    keyid?: string;
    /**
     * returns a log with what
     * either has. It must give the same bytes on every device: otherwise, they store in turn for ever.
     */
    merge: (mine: Uint8Array, theirs: Uint8Array) => Uint8Array | Promise<Uint8Array>;
    /**
     * what this device has saved; a new one unless given
     */
    state?: State;
    /**
     * stores the state on the device. It is awaited before each request that
     * needs the state. If it fails, the request is not sent.
     */
    save?: (state: State) => unknown;
    /**
     * tells the person that the server gave out an older state
     * ('rollback') or another history ('unknown-base')
     */
    tell?: (verdict: Verdict) => unknown;
    /**
     * how often a request without an answer is sent; 4 unless given
     */
    attempts?: number;
    /**
     * waits between two attempts
     */
    pause?: (seconds: number) => Promise<unknown>;
    timeout?: ClientOptions["timeout"];
    fetch?: ClientOptions["fetch"];
    now?: ClientOptions["now"];
};
/**
 * What the person agreed to if the latest version cannot be read: '' for nothing, 'damaged' to replace it,
 * 'no-newer-app' to replace one of an unknown format, because the publisher offers no newer app.
 */
export type Confirmed = "" | "damaged" | "no-newer-app";
import type { Derivation } from './keys.mjs';
import type { Receipt } from './answers.mjs';
import type { Keys } from './keys.mjs';
import type { Seen } from './blob.mjs';
import type { Verdict } from './blob.mjs';
import type { ClientOptions } from './client.mjs';
