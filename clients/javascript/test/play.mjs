// node clients/javascript/test/play.mjs BASE_URL, with the secret in APP_SECRET_KEY: plays a whole life.
import { wholeLife } from './whole_life.mjs'

const answers = await wholeLife({ baseUrl: process.argv[2], secret: process.env.APP_SECRET_KEY })
console.log(`a whole life, by a client written from openapi.yaml and fixtures/ alone: ${answers.length} answers`)
