import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { deserialize, serialize } from 'node:v8'
import { Device } from '@dailyreps/backup-client'

const file = process.env.STATE_FILE
const device = new Device({
  baseUrl: process.env.BACKUP_URL,
  secret: process.env.APP_SECRET_KEY,
  merge: mine => mine,
  ...(existsSync(file) && { state: deserialize(readFileSync(file)) }),
  save: state => {
    writeFileSync(`${file}.new`, serialize(state), { mode: 0o600, flush: true })
    renameSync(`${file}.new`, file) // all of it or nothing
  },
})
if (!device.state.keys) await device.register('Carla', 'correct horse battery staple')
await device.update(log => new Uint8Array([...log, 1]))
await device.sync()
console.log(`version ${device.state.base.version}, ${device.log.length} bytes`)
