// What the scripts have in common.

import assert from 'node:assert/strict'

const [base, caller, ...rest] = process.argv.slice(2)
assert(base && caller && process.env.KEY && rest.length === 0, 'usage: KEY=<key> node <script> <url of the gateway> <name>')

export const url = base
export const name = caller
export const key = process.env.KEY

// call calls the API with a token.
export async function call(token, headers = {}) {
  const answer = await fetch(url + '/v1/vouchers/BLCKFRDY', { headers: { ...headers, 'Authorization': 'Bearer ' + token } })
  const { code } = await answer.json()
  console.log(JSON.stringify({ status: answer.status, code }))
}

// post posts a form.
export async function post(target, form, headers) {
  const answer = await fetch(target, { method: 'POST', headers, body: new URLSearchParams(form) })
  assert(answer.ok, `${target} answered ${answer.status}`)
  return answer
}

// print prints what a client has made of an answer, but for the token.
export function print({ access_token, expires_in, expires_at, scope, token_type, ...others }, more = {}) {
  assert(access_token.length > 40)
  const left = new Date(typeof expires_at === 'number' ? expires_at * 1000 : expires_at) - Date.now()
  assert(left > 3500_000 && left < 3700_000, `expires_at is ${expires_at}`)
  console.log(JSON.stringify({ token_type, expires_in, scope, others: Object.keys(others).length, ...more }))
}
