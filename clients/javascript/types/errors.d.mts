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
