import { Device } from '@dailyreps/backup-client'

const asPromise = request => new Promise((done, fail) => {
  request.onsuccess = () => done(request.result)
  request.onerror = () => fail(request.error)
})

/** The device of a username on this browser. IndexedDB takes its state as it is. */
export async function openDevice(options, username) {
  // One tab at a time, until it is closed: otherwise, an older state could be saved over a newer one.
  await new Promise(held => {
    navigator.locks.request(`backup ${username}`, () => { held(); return new Promise(() => {}) })
  })
  const opening = indexedDB.open('backup', 1)
  opening.onupgradeneeded = () => opening.result.createObjectStore('states')
  const database = await asPromise(opening)
  const states = () => database.transaction('states', 'readwrite', { durability: 'strict' }).objectStore('states')
  const state = await asPromise(states().get(username))
  const save = changed => asPromise(states().put(changed, username))
  return new Device({ ...options, save, ...(state && { state }) })
}
