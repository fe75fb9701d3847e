/** An error of this package. Its message may be shown to a person. Go by the class, not by the message. */
export class BackupError extends Error {
    /** What `JSON.stringify` shows, so that a log of errors says more than `{}`. */
    toJSON(): this & {
        name: string;
        message: string;
    };
}
/** A newer version of the app made this. Replace nothing. */
export class AppOutdatedError extends BackupError {
    constructor();
}
/** A blob is damaged, or it was made by another user or with another password. */
export class DamagedError extends BackupError {
    constructor();
}
/** A recovery code was mistyped, or it belongs to another username. */
export class MistypedCodeError extends BackupError {
    constructor();
}
/** The device itself refuses a call, and nothing was sent or changed. `reason` says why. */
export class DeviceError extends BackupError {
    /** @param {keyof typeof REASONS} reason */
    constructor(reason: keyof typeof REASONS);
    reason: "not-signed-in" | "another-username" | "old-password" | "not-listed";
}
/** @type {Readonly<Record<'not-signed-in' | 'another-username' | 'old-password' | 'not-listed', string>>} */
declare const REASONS: Readonly<Record<"not-signed-in" | "another-username" | "old-password" | "not-listed", string>>;
export {};
