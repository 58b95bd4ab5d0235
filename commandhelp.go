package egress

// What the commands that talk to a running Caddy say of themselves.
const (
	statusHelp = `
Reports how the tokens of a running Caddy are doing, through its admin API: a line
for each credential in use, or for the one that is named.

STATE is one of

	fresh       a live token, and the last token request succeeded
	refreshing  a token request is under way; requests are served if there is a
	            live token, else they wait
	stale       a live token, and the last token request failed: requests are
	            served until EXPIRES
	expired     no live token: requests are answered with 503
	refused     no live token, and the credential is refused: requests are
	            answered with 502
	idle        no live token, and no request has needed one lately

DETAILS says what went wrong, when the next token request is due, and what to do.

Caddy is reached at the address of its admin API: by --address, by the config that
--config names, or else at localhost:2019. As with caddy stop, no Caddyfile is looked
for.

Exits with status 1 if Caddy cannot be reached or no credential in use has that
name, and else with 0, whatever the states are.`

	refreshHelp = `
Replaces the token of a credential now, whatever failed before, and waits for it.
The token in use stays in use if that fails.

Names are those of caddy egress status; without one, they are listed.

Exits with status 1 unless another token was obtained.`

	revokeHelp = `
Revokes the token of a credential at the authorization server; another is obtained
at once, which the status that is printed is about. The token stays in use if it
cannot be revoked.

Works with voucherify (OAuth v1), and with oauth2 that has a revocation_url. It
stops nobody who has the client secret.

Names are those of caddy egress status; without one, they are listed.

Exits with status 1 if the token was not revoked.`

	introspectHelp = `
Asks the authorization server about the token of a credential: whether it is
active there, whose it is, and for how long.

Works with voucherify (OAuth v1), and with oauth2 that has an introspection_url.

Names are those of caddy egress status; without one, they are listed.

Exits with status 1 unless the server answers, and with 0 also if the token is not
active.`
)
