import { readFileSync } from 'node:fs'
import {
  BackupError, DamagedError, Device, MisfitError, newPassphrase, passwordProblem,
} from '@dailyreps/backup-client'

const server = { baseUrl: process.env.BACKUP_URL, secret: process.env.APP_SECRET_KEY }
const lines = name => readFileSync(new URL(`../../../fixtures/${name}`, import.meta.url), 'utf8').trimEnd().split('\n')
const commonPasswords = new Set(lines('common_passwords.txt')), words = lines('passphrase_words.txt')
const show = sentence => console.log(sentence)

const phone = new Device({ ...server, merge: mine => mine })
await phone.register('Bert', 'correct horse battery staple')
await backUp()
await changePassword('1234567890')
await changePassword(newPassphrase(words))
await backUp()

async function changePassword(password) {
  const problem = passwordProblem(password, commonPasswords)
  if (problem) return show(`Choose another password: this one is ${problem}.`)
  try {
    await phone.changePassword(password)
    show(`Your new recovery code: ${await phone.recoveryCode()}`)
  } catch (error) {
    if (!phone.state.change) return show(error.message) // nothing was changed
    // The change may have happened or not. Both passwords are kept, and sync sends the change again.
    show('The new password is not in force yet. The app tries again when there is a connection.')
  }
}

async function backUp() {
  try {
    await phone.sync()
  } catch (error) {
    if (error.code === 'credentials_invalid') return signInAgain(error)
    if (error instanceof DamagedError || error instanceof MisfitError || error.code === 'backup_damaged') {
      // Ask the person whether the log of this device may replace the latest version. Then:
      return phone.replaceUnreadable()
    }
    if (!(error instanceof BackupError)) throw error // a bug, or `save` failed
    show(error.message) // if error.lost, call sync again later, after error.retryAfter seconds if there are any
  }
}

async function signInAgain(error) {
  // If nobody changed the password, the server may have been restored from a snapshot, which undid the change.
  if (await phone.afterRefusal() === 'confirm') return phone.afterRefusal(true) // ask before: "Did you change it back?"
  show(error.message) // ask for the password, then call signIn
}
