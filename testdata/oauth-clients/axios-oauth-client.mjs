// Gets a token with axios-oauth-client and calls the API with it.
//
// Usage: node axios-oauth-client.mjs <url of the gateway> <name>, with the key in KEY

import axios from 'axios'
import { clientCredentials } from 'axios-oauth-client'
import { call, key, name, print, url } from './common.mjs'

const getToken = clientCredentials(axios.create(), url + '/oauth2/token', name, key)
const answer = await getToken()
print(answer)
await call(answer.access_token)

const scoped = await getToken('vouchers validations')
print(scoped)
await call(scoped.access_token)
