// Gets a token with simple-oauth2, calls the API with it, and revokes it.
//
// Usage: node simple-oauth2.mjs <url of the gateway> <name>, with the key in KEY

import { ClientCredentials } from 'simple-oauth2'
import { call, key, name, print, url } from './common.mjs'

for (const authorizationMethod of ['header', 'body']) {
  const client = new ClientCredentials({
    client: { id: name, secret: key },
    auth: { tokenHost: url, tokenPath: '/oauth2/token', revokePath: '/oauth2/revoke' },
    options: { authorizationMethod },
  })
  const accessToken = await client.getToken({})
  print(accessToken.token, { expired: accessToken.expired(300) }) // would be asked for anew
  await call(accessToken.token.access_token)
  await accessToken.revoke('access_token')
}
