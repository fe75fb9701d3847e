/**
 * The form of a username that is hashed: NFKC, White_Space stripped at both ends, each code point in lowercase by
 * itself, NFKC again.
 * @param {string} username
 * @returns {string}
 * @throws {RangeError} if nothing is left: all people without a name would share an account
 */
export function normalizeUsername(username: string): string;
/**
 * The userId of a username.
 * @param {string} username
 * @returns {Promise<string>} 64 lowercase hex characters
 * @throws {RangeError} for an empty username, or half a character
 */
export function deriveUserId(username: string): Promise<string>;
/**
 * The keys of a username and a password: PBKDF2 (RFC 8018) and HKDF (RFC 5869) with SHA-256. It takes some tenths of a
 * second, on purpose.
 * @param {string} username
 * @param {string} password
 * @param {Derivation} [derivation] the newest, unless given
 * @returns {Promise<Keys>}
 * @throws {RangeError} for an empty username, or half a character
 */
export function deriveKeys(username: string, password: string, derivation?: Derivation): Promise<Keys>;
/**
 * The same, for a device that has the userId.
 * @param {string} userId
 * @param {string} password
 * @param {Derivation} [derivation] the newest, unless given
 * @returns {Promise<Keys>}
 * @throws {RangeError} for half a character
 */
export function keysOfPassword(userId: string, password: string, derivation?: Derivation): Promise<Keys>;
/**
 * The keys that HKDF-SHA256, with an empty salt, derives from the master key.
 * @param {string} userId
 * @param {Uint8Array} masterKey 32 bytes
 * @param {Derivation} [derivation]
 * @returns {Promise<Keys>}
 */
export function keysOfMasterKey(userId: string, masterKey: Uint8Array, derivation?: Derivation): Promise<Keys>;
/**
 * The derivations that a sign-in tries, in this order: from the newest to the one that has succeeded. A server could
 * otherwise answer 401 and get a storage key that is easier to attack.
 * @param {string} [succeeded] the name of the newest that has succeeded on this device for this account
 * @param {readonly Derivation[]} [derivations] the ones that this app knows, newest first
 * @returns {readonly Derivation[]}
 * @throws {AppOutdatedError} if the name is unknown
 */
export function derivationsToTry(succeeded?: string, derivations?: readonly Derivation[]): readonly Derivation[];
/**
 * Why a password cannot be chosen. A sign-in does not ask: an older password may be weaker.
 * @param {string} password
 * @param {{has(password: string): boolean}} commonPasswords a Set of the lines of fixtures/common_passwords.txt
 * @returns {'too-short' | 'too-common' | undefined}
 */
export function passwordProblem(password: string, commonPasswords: {
    has(password: string): boolean;
}): "too-short" | "too-common" | undefined;
/**
 * Words, drawn at random, with spaces between.
 * @param {readonly string[]} words the lines of fixtures/passphrase_words.txt
 * @param {number} [count]
 * @returns {string}
 */
export function newPassphrase(words: readonly string[], count?: number): string;
/**
 * The recovery code. With the username, it opens the account like the password. A change of the password makes it void.
 * @param {Pick<Keys, 'userId' | 'masterKey'>} keys
 * @returns {Promise<string>} 8 groups of 7 characters
 */
export function recoveryCode({ userId, masterKey }: Pick<Keys, "userId" | "masterKey">): Promise<string>;
/**
 * The keys of a recovery code, as it was typed: small letters, spaces and other dashes do not matter.
 * @param {string} username
 * @param {string} typed
 * @returns {Promise<Keys>}
 * @throws {MistypedCodeError} if it was mistyped, or belongs to another username
 * @throws {AppOutdatedError} if a newer version of the app made it
 */
export function readRecoveryCode(username: string, typed: string): Promise<Keys>;
/**
 * All derivations, newest first. The userId is the same for all of them.
 * @type {readonly Derivation[]}
 */
export const DERIVATIONS: readonly Derivation[];
export function sameKeys(one: Keys | undefined, other: Keys | undefined): boolean;
/**
 * A way from a password to the keys.
 */
export type Derivation = {
    name: string;
    /**
     * of PBKDF2
     */
    iterations: number;
    /**
     * info of HKDF
     */
    storageKeyInfo: string;
    /**
     * info of HKDF
     */
    encryptionKeyInfo: string;
};
/**
 * The keys of a username and a password. `userId` and `storageKey` are for the server: 64 lowercase hex characters
 * each. `encryptionKey` and `masterKey`, 32 bytes each, never leave the device.
 */
export type Keys = {
    userId: string;
    storageKey: string;
    encryptionKey: Uint8Array;
    masterKey: Uint8Array;
    /**
     * the name of the derivation
     */
    derivation: string;
};
