// An application that has the API's host built in: gets a voucher, and prints its
// code and the status. It sends what it takes for an application's ID and secret.
//
// Usage: KEY=<secret> node client.mjs

const answer = await fetch('https://api.voucherify.io/v1/vouchers/BLCKFRDY', {
  headers: { 'X-App-Id': 'web-shop', 'X-App-Token': process.env.KEY },
})
console.log(answer.status, (await answer.json()).code)
