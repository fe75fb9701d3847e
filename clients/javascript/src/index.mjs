// A client of the DailyReps Backup API for browsers and Node. It needs Web Crypto and fetch, and nothing else.

/** @typedef {import('./answers.mjs').Receipt} Receipt */
/** @typedef {import('./client.mjs').Backup} Backup */
/** @typedef {import('./client.mjs').ClientOptions} ClientOptions */
/** @typedef {import('./device.mjs').Confirmed} Confirmed */
/** @typedef {import('./device.mjs').DeviceOptions} DeviceOptions */
/** @typedef {import('./device.mjs').State} State */

export { LostAnswerError, MisfitError, ProblemError, UnsettledChangeError } from './answers.mjs'
export { BackupClient } from './client.mjs'
export * from './crypto.mjs'
export { Device, newState } from './device.mjs'
