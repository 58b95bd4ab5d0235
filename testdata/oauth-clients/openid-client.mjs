// Discovers the token endpoint with openid-client (RFC 8414), gets a token, calls
// the API with it, and revokes it.
//
// Usage: node openid-client.mjs <url of the gateway> <name>, with the key in KEY

import * as client from 'openid-client'
import { call, key, name, print, url } from './common.mjs'

// by default with client_secret_post
for (const [issuer, authentication] of [[url, undefined], [url + '/oauth2', client.ClientSecretBasic(key)]]) {
  const config = await client.discovery(new URL(issuer), name, key, authentication, {
    algorithm: 'oauth2',
    execute: [client.allowInsecureRequests], // http
  })
  const answer = await client.clientCredentialsGrant(config)
  print(answer, { expires: answer.expiresIn() > 300 })
  await call(answer.access_token)
  await client.tokenRevocation(config, answer.access_token)
}
