// A client of the DailyReps Backup API for browsers and Node. It needs Web Crypto and fetch, and nothing else.

export {
  LostAnswerError, MisfitError, ProblemError, UnsettledChangeError, sentence,
} from './answers.mjs'
export { BackupClient } from './client.mjs'
export * from './crypto.mjs'
export { Device, newState } from './device.mjs'
