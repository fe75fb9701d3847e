import { Device } from '@dailyreps/backup-client'

const server = { baseUrl: process.env.BACKUP_URL, secret: process.env.APP_SECRET_KEY }

// A log is bytes, at first none. The log of this app is a sorted list of workouts. To merge is to keep what either has.
const toBytes = workouts => new TextEncoder().encode(JSON.stringify([...new Set(workouts)].sort()))
const fromBytes = log => log.length ? JSON.parse(new TextDecoder().decode(log)) : []
const merge = (mine, theirs) => toBytes([...fromBytes(mine), ...fromBytes(theirs)])

const phone = new Device({ ...server, merge })
await phone.register('Anna', 'correct horse battery staple')
console.log('write this down:', await phone.recoveryCode())
await phone.update(log => toBytes([...fromBytes(log), 'Monday: squat']))
await phone.sync()

// The second device needs the username and the password, and nothing else.
const tablet = new Device({ ...server, merge })
await tablet.signIn('Anna', 'correct horse battery staple')
await tablet.sync()
console.log('on the tablet:', fromBytes(tablet.log))

// Both go on. The second to store is told of a conflict: it fetches, merges, and stores again.
await phone.update(log => toBytes([...fromBytes(log), 'Tuesday: row']))
await tablet.update(log => toBytes([...fromBytes(log), 'Tuesday: bench']))
await phone.sync()
await tablet.sync()
console.log('merged:', fromBytes(tablet.log))

// An older version becomes the latest, and its log replaces the log of the device.
const [, , oldest] = await tablet.versions()
console.log('version', oldest.version, 'has', fromBytes(await tablet.openVersion(oldest.version)))
await tablet.restore(oldest.version)
console.log('restored:', fromBytes(tablet.log))
await tablet.delete()
