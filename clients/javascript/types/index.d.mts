export { BackupClient } from "./client.mjs";
export * from "./crypto.mjs";
export { LostAnswerError, MisfitError, ProblemError, UnsettledChangeError, sentence } from "./answers.mjs";
export { Device, newState } from "./device.mjs";
