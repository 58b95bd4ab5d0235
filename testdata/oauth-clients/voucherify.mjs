// Sends what OAuthApi of Voucherify's JavaScript SDK 3.0.3 sends, which is not in a
// package registry, and calls the API with the token as that SDK does: the
// requests of generateOauthToken, revokeOauthToken and a call whose
// authentication is X-Voucherify-OAuth. The SDK's answer has six members.
//
// Usage: node voucherify.mjs <url of the gateway> <name>, with the key in KEY

import { call, key, name, post, print, url } from './common.mjs'

const headers = {
  'X-App-Id': name,
  'X-App-Token': key,
  'User-Agent': 'OpenAPI-Javascript-SDK/3.0.3',
}
for (const scope of [{}, { scope: 'vouchers validations' }]) {
  const answer = await post(url + '/v1/oauth/token', { grant_type: 'client_credentials', ...scope }, { ...headers, 'Accept': 'application/json' })
  print(await answer.json())
}
const { access_token } = await (await post(url + '/v1/oauth/token', { grant_type: 'client_credentials' }, headers)).json()
await call(access_token, { 'User-Agent': headers['User-Agent'] })
await post(url + '/v1/oauth/token/revoke', { access_token }, headers)
