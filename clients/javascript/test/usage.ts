// What an app in TypeScript does with the package. The test compiles this file and does not run it.
import {
  BackupClient, BackupError, Device, LostAnswerError, ProblemError, deriveKeys, newState,
  type Confirmed, type Keys, type Receipt, type State, type Verdict,
} from '@dailyreps/backup-client'
import { encrypt, decrypt, sign, passwordProblem } from '@dailyreps/backup-client/crypto'

const server = { baseUrl: 'https://backup.example', secret: 'a secret' }
const kept: State[] = []

export async function everything(): Promise<Receipt[]> {
  const keys: Keys = await deriveKeys('Anna', 'a password')
  const device = new Device({
    ...server,
    merge: (mine: Uint8Array, theirs: Uint8Array) => mine.length > theirs.length ? mine : theirs,
    state: newState(),
    save: (state: State) => { kept.push(state) },
    tell: (verdict: Verdict) => verdict satisfies string,
  })
  await device.register('Anna', 'a password')
  await device.signIn('Anna', 'a password')
  await device.signInWithCode('Anna', 'a code')
  await device.update((log: Uint8Array): Uint8Array => log)
  await device.sync()
  await device.fetch()
  const confirmed: Confirmed = 'damaged'
  await device.restore(1, { password: 'an old one', confirmed })
  await device.changePassword('another one', { confirmed: 'no-newer-app' })
  const force: 'new' | 'old' | 'unsure' = await device.settleChange()
  const outcome: 'confirm' | 'changed' | 'ask' = await device.afterRefusal(force === 'old')
  await device.replaceUnreadable()
  await device.delete(outcome === 'ask')
  const opened: Uint8Array = await device.openVersion(1)
  const blob: Uint8Array = await encrypt(opened, keys, { sequence: 1, baseSha256: device.state.base?.sha256 })
  const { plaintext, sequence, baseSha256 } = await decrypt(blob, keys)
  const problem: 'too-short' | 'too-common' | undefined = passwordProblem('a password', new Set<string>())
  const headers = await sign({ method: 'GET', path: '/api/backup', ...keys, secret: 's', created: sequence })
  const client = new BackupClient({ ...server, keys })
  const latest = await client.fetchBackup(headers.Signature + plaintext + baseSha256 + problem)
  if (latest) latest.blob satisfies Uint8Array
  return device.versions()
}

export function told(error: unknown): string {
  if (error instanceof ProblemError) return `${error.code} ${error.status} ${error.retryAfter ?? 0} ${error.requestId} ${error.problem}`
  if (error instanceof LostAnswerError) return `${error.reason} ${error.lost}`
  return error instanceof BackupError ? error.message : 'a bug'
}

// @ts-expect-error a device needs to merge
new Device(server)
// @ts-expect-error the state is the device's
new Device({ ...server, merge: mine => mine }).state = newState()
// @ts-expect-error a version is a number
new Device({ ...server, merge: mine => mine }).restore('1')
// @ts-expect-error nobody can agree to this
new Device({ ...server, merge: mine => mine }).restore(1, { confirmed: 'yes' })
// @ts-expect-error the log is bytes
new Device({ ...server, merge: mine => mine }).update(log => `${log}`)
// @ts-expect-error the inner parts are not part of the package
import('@dailyreps/backup-client/src/device.mjs')
