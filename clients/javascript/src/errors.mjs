// What can be wrong with a backup, a code or an app. The `message` of each error is a sentence that the app may show to
// a person. No error of this package has a key, a log or a blob in it.

/** An error of this package. Its message may be shown to a person. Go by the class, not by the message. */
export class BackupError extends Error {
  static { this.prototype.name = 'BackupError' }

  /** What `JSON.stringify` shows, so that a log of errors says more than `{}`. */
  toJSON() {
    return { ...this, name: this.name, message: this.message }
  }
}

/** A newer version of the app made this. Replace nothing. */
export class AppOutdatedError extends BackupError {
  static { this.prototype.name = 'AppOutdatedError' }

  constructor() {
    super('A newer version of the app made this. Update the app.')
  }
}

/** A blob is damaged, or it was made by another user or with another password. */
export class DamagedError extends BackupError {
  static { this.prototype.name = 'DamagedError' }

  constructor() {
    super('This backup is damaged, or it was made with another password.')
  }
}

/** A recovery code was mistyped, or it belongs to another username. */
export class MistypedCodeError extends BackupError {
  static { this.prototype.name = 'MistypedCodeError' }

  constructor() {
    super('This recovery code was mistyped, or it belongs to another username.')
  }
}

/** @type {Readonly<Record<'not-signed-in' | 'another-username' | 'old-password' | 'not-listed', string>>} */
const REASONS = {
  'not-signed-in': 'Nobody is signed in.',
  'another-username': 'The log on this device belongs to another username.',
  'old-password': 'This was an earlier password of yours. Choose another one.',
  'not-listed': 'This version is not kept any more. Choose another one.',
}

/** The device itself refuses a call, and nothing was sent or changed. `reason` says why. */
export class DeviceError extends BackupError {
  static { this.prototype.name = 'DeviceError' }

  /** @param {keyof typeof REASONS} reason */
  constructor(reason) {
    super(REASONS[reason])
    this.reason = reason
  }
}
