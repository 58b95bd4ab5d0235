// Command caddy is Caddy with its standard modules, caddy-egress and the
// sandbox: what xcaddy would generate, for development and for trying it out.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddy-egress/caddy-egress"
	_ "github.com/caddy-egress/caddy-egress/sandbox"
)

func main() {
	caddycmd.Main()
}
