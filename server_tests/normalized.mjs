// node server_tests/normalized.mjs LINES
// Reads a JSON array of strings. Writes as JSON what the JavaScript client makes of them:
// - unicode: the Unicode version of this Node
// - known: for each string, whether that version assigns all of its code points
// - usernames: for each known string, the username, or null if the client refuses it
// - masterKeys: of passwords with LINES known strings each, one a line, after one iteration of PBKDF2
import { readFileSync } from 'node:fs'
import { DERIVATIONS, deriveKeys, normalizeUsername } from '../clients/javascript/src/index.mjs'

const count = Number(process.argv[2])
const strings = JSON.parse(readFileSync(0, 'utf8'))
const known = strings.map(text => !/\p{Unassigned}/u.test(text)), all = strings.filter((_, at) => known[at])
const usernames = all.map(text => {
  try { return normalizeUsername(text) } catch (error) { if (error instanceof RangeError) return null; throw error }
})
const masterKeys = []
for (let at = 0; at < all.length; at += count) {
  const keys = await deriveKeys('alex', all.slice(at, at + count).join('\n'), { ...DERIVATIONS[0], iterations: 1 })
  masterKeys.push(Buffer.from(keys.masterKey).toString('hex'))
}
process.stdout.write(JSON.stringify({ unicode: process.versions.unicode, known, usernames, masterKeys }))
